"""Mean-field theory of wide random networks: lengths forward, gradients backward.

Weights of layer l are independent with variance weight_variance / fan_in, biases have variance bias_variance, and the
width is infinite. Then each pre-activation is normal with one variance q_l, the length, and

    q_{l+1} = V(q_l) = σ_w² E[φ(√q_l z)²] + σ_b²,    z ~ N(0, 1),

while the squared gradient by pre-activations shrinks, from layer l + 1 back to layer l at equal widths, by

    χ(q_l) = σ_w² E[φ'(√q_l z)²].

LeCun and square Glorot initialisation have σ_w² = 1, He has 2, each times the square of the gain. The activation φ is
any differentiable function of a scalar; `breakpoints` are where it has kinks or fine features, as for
`calculus.quadrature.gaussian_expectation`. Everything may be traced but φ and its breakpoints.

Reference: Poole et al. 2016, arXiv:1606.05340, eq. 3; Schoenholz et al. 2017, arXiv:1611.01232, eq. 14.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from calcdl.calculus.quadrature import gaussian_expectation
from calcdl.theory.arguments import checked
from calcdl.types import Array

Function = Callable[[Array], Array]
Number = Float[Array, ""] | float

BREAKPOINTS = (-3.0, 0.0, 3.0)

FIXED, DECAYS, GROWS, ANY = range(4)
KINDS = (
    "the length settles at a positive fixed point",
    "the length decays to zero",
    "the length grows without bound",
    "every length is a fixed point",
)

# Lengths at which limits are evaluated, and the range that is searched around the start, in powers of two.
_SHORTEST, _LONGEST = 1e-24, 1e24
_OCTAVES = 80


class FixedPoint(NamedTuple):
    """Where the length map leads.

    Attributes:
        q: the limit of q_l: positive, 0, infinite, or the start where every length is fixed.
        growth: the limit of q_{l+1} / q_l; 1 at a fixed point, and also where the length decays or grows more slowly
            than geometrically.
        chi1: the limit of χ(q_l).
        kind: index into `KINDS`.
    """

    q: Float[Array, ""]
    growth: Float[Array, ""]
    chi1: Float[Array, ""]
    kind: Int[Array, ""]


class Trajectory(NamedTuple):
    """Lengths and gradients through the layers 1 to depth.

    Attributes:
        q: length of the pre-activations of each layer.
        chi1: χ(q_l) of each layer.
        log_gradient_ratio: log of the mean squared gradient by the pre-activations of layer 1 over that of layer l.
    """

    q: Float[Array, " depth"]
    chi1: Float[Array, " depth"]
    log_gradient_ratio: Float[Array, " depth"]


def length_map(
    function: Function,
    q: Number,
    weight_variance: Number,
    bias_variance: Number = 0.0,
    breakpoints: tuple[float, ...] = BREAKPOINTS,
) -> Float[Array, ""]:
    """Take the length of the pre-activations one layer further.

    `V(q) = σ_w² E[φ(√q z)²] + σ_b²`

    Args:
        function: φ.
        q: length, the variance of a pre-activation, at least 0; differentiable where positive.
        weight_variance: σ_w², the variance of a weight times fan_in.
        bias_variance: σ_b².
        breakpoints: kinks of φ.

    Returns:
        The length in the next layer.

    Raises:
        ValueError: q or a variance is negative or not finite.

    Example:
        >>> round(float(length_map(jax.nn.relu, 3.0, 2.0)), 4)
        3.0

    Reference: Poole et al. 2016, arXiv:1606.05340, eq. 3.
    """
    q, weight_variance, bias_variance = checked(q=q, weight_variance=weight_variance, bias_variance=bias_variance)
    second = gaussian_expectation(lambda x: function(x) ** 2, scale=jnp.sqrt(q), breakpoints=breakpoints)
    return jnp.asarray(weight_variance * second + bias_variance)


def chi1(
    function: Function, q: Number, weight_variance: Number, breakpoints: tuple[float, ...] = BREAKPOINTS
) -> Float[Array, ""]:
    """Factor on the mean squared gradient from one layer to the one before it.

    `χ(q) = σ_w² E[φ'(√q z)²]`

    Args:
        function: φ.
        q: length of the pre-activations; 0 stands for the limit from above.
        weight_variance: σ_w², the variance of a weight times fan_in.
        breakpoints: kinks of φ.

    Returns:
        χ: above 1 gradients explode towards the input, below 1 they vanish.

    Raises:
        ValueError: q or the variance is negative or not finite.

    Example:
        >>> round(float(chi1(jax.nn.relu, 3.0, 1.0)), 4)
        0.5

    Reference: Schoenholz et al. 2017, arXiv:1611.01232, eq. 14.
    """
    q, weight_variance = checked(q=q, weight_variance=weight_variance)
    slope = jax.grad(function)
    # At length 0 itself a kink would be met on the one side that jax.grad takes.
    scale = jnp.sqrt(jnp.maximum(q, _SHORTEST))
    second = gaussian_expectation(lambda x: slope(x) ** 2, scale=scale, breakpoints=breakpoints)
    return jnp.asarray(weight_variance * second)


def length_fixed_point(
    function: Function,
    weight_variance: Number,
    bias_variance: Number = 0.0,
    start: Number = 1.0,
    breakpoints: tuple[float, ...] = BREAKPOINTS,
) -> FixedPoint:
    """Find where the length map leads from a start, or how it escapes.

    `q* = V(q*)`

    The map is not iterated. On a grid of octaves in the direction in which it moves the start, the first length that
    it moves back bounds the limit, which safeguarded Newton steps then find; for an increasing map, and those of all
    common activations are, this is the limit of the iteration. So a critical map, whose iteration creeps like 1/l,
    costs no more than another; growth = 1 tells it where the length decays or grows. V(q) and q count as equal within
    500 units of rounding; two fixed points within one octave are passed over together.

    Args:
        function: φ.
        weight_variance: σ_w², the variance of a weight times fan_in.
        bias_variance: σ_b².
        start: the length from which the map is followed, positive.
        breakpoints: kinks of φ.

    Returns:
        The limit with growth, χ and kind, differentiable in both variances.

    Raises:
        ValueError: a variance is negative, the start is not positive, or one of them is not finite.

    Example:
        >>> limit = length_fixed_point(jnp.tanh, 2.0)
        >>> round(float(limit.q), 4), round(float(limit.chi1), 4), KINDS[limit.kind]
        (0.618, 1.1055, 'the length settles at a positive fixed point')
        >>> limit = length_fixed_point(jax.nn.relu, 3.0)
        >>> float(limit.q), round(float(limit.growth), 4), KINDS[limit.kind]
        (inf, 1.5, 'the length grows without bound')

    Reference: Poole et al. 2016, arXiv:1606.05340, section 2; Hayou et al. 2019, arXiv:1902.06853, section 3.
    """
    numbers = checked(weight_variance=weight_variance, bias_variance=bias_variance, start=start)
    if isinstance(start, float | int) and start == 0:
        raise ValueError("start must be positive, got 0: the length map of length 0 says nothing of others")
    return FixedPoint(*_fixed_point(function, breakpoints, *numbers))


def gradient_factor(
    function: Function,
    weight_variance: Number,
    bias_variance: Number = 0.0,
    start: Number = 1.0,
    breakpoints: tuple[float, ...] = BREAKPOINTS,
) -> Float[Array, ""]:
    """Predict the factor on the norm of the gradient from one layer to the one before it, in deep networks.

    `r = sqrt(χ(q*))`, or the limit of sqrt(χ(q_l)) where the length decays or grows

    Critical networks reach it only like 1/l: 1 for tanh with weight_variance 1, where layer l has about 1 - 1/(2 l).

    Args are those of `length_fixed_point`.

    Returns:
        The factor; a gradient loses the ratio a in log(a) / -log(r) layers.

    Raises:
        ValueError: as `length_fixed_point`.

    Example:
        >>> round(float(gradient_factor(jax.nn.relu, 1.0)), 4), round(float(gradient_factor(jax.nn.sigmoid, 1.0)), 4)
        (0.7071, 0.2361)

    Reference: Schoenholz et al. 2017, arXiv:1611.01232, eq. 14.
    """
    return jnp.sqrt(length_fixed_point(function, weight_variance, bias_variance, start, breakpoints).chi1)


def length_trajectory(
    function: Function,
    q: Number,
    weight_variance: Number,
    bias_variance: Number = 0.0,
    *,
    depth: int,
    breakpoints: tuple[float, ...] = BREAKPOINTS,
) -> Trajectory:
    """Follow length and gradient through the layers of a network of finite depth.

    `q_1 = q`,  `q_{l+1} = V(q_l)`,  `log(g_1 / g_l) = Σ_{k<l} log χ(q_k)`

    Args:
        function: φ.
        q: length in layer 1; σ_w² m + σ_b² for inputs of second moment m.
        weight_variance: σ_w², the variance of a weight times fan_in.
        bias_variance: σ_b².
        depth: number of layers, at least 1.
        breakpoints: kinks of φ.

    Returns:
        Lengths, χ and gradient ratios of the layers 1 to depth.

    Raises:
        ValueError: q or a variance is negative or not finite, or depth is below 1.

    Example:
        >>> trajectory = length_trajectory(jax.nn.relu, 2.0, 1.0, depth=3)
        >>> print(trajectory.q.round(4))
        [2.  1.  0.5]

    Reference: Schoenholz et al. 2017, arXiv:1611.01232, section 4.
    """
    numbers = checked(q=q, weight_variance=weight_variance, bias_variance=bias_variance)
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return Trajectory(*_trajectory(function, breakpoints, depth, *numbers))


def gain(
    function: Function, preserve: str = "second_moment", breakpoints: tuple[float, ...] = BREAKPOINTS
) -> Float[Array, ""]:
    """Compute the factor on the weights that keeps unit normal pre-activations as they are.

    `g = 1 / sqrt(E[φ(z)²])`, or `1 / sqrt(Var[φ(z)])`, or `1 / sqrt(E[φ'(z)²])`

    Args:
        function: φ.
        preserve: "second_moment" of the activations, which keeps the length 1; their "variance"; or the "gradient".
        breakpoints: kinks of φ.

    Returns:
        The gain; infinite for an activation that lets nothing of the kind through.

    Raises:
        ValueError: preserve is none of the three.

    Example:
        >>> round(float(gain(jax.nn.relu)), 4), round(float(gain(jnp.tanh)), 4)
        (1.4142, 1.5925)

    Reference: He et al. 2015, arXiv:1502.01852, eq. 10 for relu; Klambauer et al. 2017, arXiv:1706.02515, for selu.
    """
    if preserve not in _MOMENTS:
        raise ValueError(f"preserve must be one of {', '.join(_MOMENTS)}; got {preserve!r}")
    return 1 / jnp.sqrt(_MOMENTS[preserve](function, breakpoints))


def _second_moment(function: Function, breakpoints: tuple[float, ...]) -> Array:
    return jnp.asarray(gaussian_expectation(lambda x: function(x) ** 2, breakpoints=breakpoints))


def _variance(function: Function, breakpoints: tuple[float, ...]) -> Array:
    mean = gaussian_expectation(function, breakpoints=breakpoints)
    return _second_moment(lambda x: function(x) - mean, breakpoints)


_MOMENTS: dict[str, Callable[[Function, tuple[float, ...]], Array]] = {
    "second_moment": _second_moment,
    "variance": _variance,
    "gradient": lambda function, breakpoints: _second_moment(jax.grad(function), breakpoints),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fixed_point(
    function: Function, breakpoints: tuple[float, ...], weight_variance: Array, bias_variance: Array, start: Array
) -> FixedPoint:
    def lengthen(q: Array) -> Array:
        return length_map(function, q, weight_variance, bias_variance, breakpoints)

    octaves = 2.0 ** jnp.arange(1, _OCTAVES + 1, dtype=start.dtype)
    upward, downward = start * octaves, start / octaves
    drift = jax.vmap(lambda q: lengthen(q) / q - 1)(jnp.concatenate([start[None], upward, downward]))
    drift = jnp.where(jnp.abs(drift) <= 500 * float(np.finfo(start.dtype).eps), 0, drift)
    is_any, is_rising = jnp.all(drift == 0), drift[0] > 0

    # The map keeps to the side on which it starts, so the first length that it moves back is beyond its limit.
    path = jnp.where(is_rising, upward, downward)
    is_beyond = jnp.where(is_rising, drift[1 : _OCTAVES + 1] < 0, drift[_OCTAVES + 1 :] > 0)
    index = jnp.argmax(is_beyond)
    far, near = path[index], jnp.where(index == 0, start, path[index - 1])
    is_at_rest = drift[0] == 0
    lower = jnp.where(is_at_rest, start / 2, jnp.minimum(near, far))
    upper = jnp.where(is_at_rest, start * 2, jnp.maximum(near, far))
    root = _root(function, breakpoints, (weight_variance, bias_variance), lower, upper)

    choose = functools.partial(jnp.select, [is_any, is_at_rest | jnp.any(is_beyond), is_rising])
    at = choose([start, root, jnp.full_like(start, _LONGEST)], jnp.full_like(start, _SHORTEST))
    ratio = lengthen(at) / at
    return FixedPoint(
        q=jnp.where(jnp.isnan(drift[0]), jnp.nan, choose([start, root, jnp.full_like(start, jnp.inf)], 0)),
        growth=choose([1, 1, jnp.maximum(ratio, 1)], jnp.minimum(ratio, 1)),
        chi1=chi1(function, at, weight_variance, breakpoints),
        kind=choose([ANY, FIXED, GROWS], DECAYS).astype(jnp.int32),
    )


def _root(
    function: Function, breakpoints: tuple[float, ...], variances: tuple[Array, Array], lower: Array, upper: Array
) -> Array:
    """Solve V(q) = q between a length that V raises and one that it lowers, by Newton steps within the bracket."""
    slope = jax.value_and_grad(function)
    rounding = 8 * float(np.finfo(lower.dtype).eps)

    def residual(q: Array) -> Array:
        return length_map(function, q, *variances, breakpoints=breakpoints) - q

    def terms(x: Array) -> tuple[Array, Array]:
        value, derivative = slope(x)
        return value * value, value * derivative * x

    def step(state: Any) -> Any:
        q, lower, upper, _, count = state
        second, change = gaussian_expectation(terms, scale=jnp.sqrt(q), breakpoints=breakpoints)
        excess = variances[0] * second + variances[1] - q
        lower, upper = jnp.where(excess > 0, q, lower), jnp.where(excess > 0, upper, q)
        newton = q - excess / (variances[0] * change / q - 1)
        following = jnp.where((newton >= lower) & (newton <= upper), newton, jnp.sqrt(lower * upper))
        is_done = jnp.abs(excess) <= rounding * q
        return jnp.where(is_done, q, following), lower, upper, is_done, count + 1

    def solve(_: Callable[[Array], Array], first: Array) -> Array:
        start = first, lower, upper, jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        return jnp.asarray(jax.lax.while_loop(lambda state: ~state[3] & (state[4] < 100), step, start)[0])

    def solve_tangent(linear: Callable[[Array], Array], tangent: Array) -> Array:
        change = linear(jnp.ones_like(tangent))
        return tangent / jnp.where(change == 0, 1, change)

    return jnp.asarray(jax.lax.custom_root(residual, jnp.sqrt(lower * upper), solve, solve_tangent))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _trajectory(
    function: Function, breakpoints: tuple[float, ...], depth: int, first: Array, *variances: Array
) -> Trajectory:
    def layer(q: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        factor = chi1(function, q, variances[0], breakpoints)
        return length_map(function, q, variances[0], variances[1], breakpoints), (q, factor)

    _, (lengths, factors) = jax.lax.scan(layer, first, length=depth)
    logs = jnp.concatenate([jnp.zeros_like(factors[:1]), jnp.cumsum(jnp.log(factors[:-1]))])
    return Trajectory(lengths, factors, logs)
