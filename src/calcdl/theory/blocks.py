r"""Mean-field theory of deep networks with normalisation, with residual connections, and with both.

One equation for all of them, with the stream h_l, a normalisation N and the branch scale α:

    h_l = s h_{l-1} + α (φ(N(h_{l-1})) W_l + b_l)

With a residual connection s = 1; without one s = 0 and α = 1. Let q_l be the variance of a stream entry. At infinite
width, per layer, with the factor χ on the squared gradient by the stream:

    none    q' = s q + α² (σ_w² E[φ(√q z)²] + σ_b²)     χ = s + α² σ_w² E[φ'(√q z)²]
    layer   q' = s q + α² (σ_w² E[φ(z)²] + σ_b²)        χ = s + α² σ_w² E[φ'(z)²] / q
    batch   q' = s q + α² σ_w² A                        χ = s + α² σ_w² T / q

For batch normalisation q is the variance within a batch of B examples, with divisor B - 1; a bias is the same for all
of them and falls out. With x a feature that was normalised, so that Σ x_i = 0 and Σ x_i² = B,

    A = E[φ(x_1)²] - E[φ(x_1) φ(x_2)]
    T = ((B - 1) E[φ'(x_1)²] + E[φ'(x_1) φ'(x_2)] - E[x_1² φ'(x_1)²] + E[x_1 x_2 φ'(x_1) φ'(x_2)]) / (B - 3)

Without a residual connection the factor T / A is above 1 for every φ: batch normalisation makes gradients explode,
relu's square by π / (π - 1) = 1.467 a layer in large batches. The gradient by the stream is taken to sum to 0 over the
batch, as it does below every batch normalisation; where examples are independent, its mean has a share of 1 / B.

Reference: Yang et al. 2019, arXiv:1902.08129, sections 3 and 4; Yang and Schoenholz 2017, arXiv:1712.08969;
Hanin 2018, arXiv:1801.03744, for the fluctuations.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.calculus.quadrature import gaussian_expectation
from calcdl.theory.arguments import checked
from calcdl.theory.meanfield import BREAKPOINTS, Trajectory, chi1, length_fixed_point, length_map
from calcdl.theory.pairs import batch_pair_expectation
from calcdl.types import Array

Function = Callable[[Array], Array]
Number = Float[Array, ""] | float

NORMALISATIONS = ("none", "batch", "layer")

_LONGEST = 1e24


class Asymptote(NamedTuple):
    """How the squared gradient changes in the deepest networks.

    Attributes:
        chi1: the limit of χ(q_l).
        exponent: the limit of l (χ(q_l) - 1) for a residual network whose branches are normalised: there χ goes to 1
            and the squared gradient of layer l over that of the last of L layers is (L / l)^exponent; NaN elsewhere.
    """

    chi1: Float[Array, ""]
    exponent: Float[Array, ""]


class BatchMoments(NamedTuple):
    """What batch normalisation and an activation make of one layer.

    Attributes:
        variance: A, the variance within the batch that the layer's activations have.
        gradient: T, the squared gradient that comes back through both, times the variance of the stream.
    """

    variance: Float[Array, ""]
    gradient: Float[Array, ""]


def block_trajectory(
    function: Function,
    q: Number,
    weight_variance: Number,
    bias_variance: Number = 0.0,
    *,
    depth: int,
    normalisation: str = "none",
    batch: int | None = None,
    residual: Number | None = None,
    breakpoints: tuple[float, ...] = BREAKPOINTS,
) -> Trajectory:
    """Follow the stream's variance and the gradient by the stream through the layers.

    `q_1 = q`,  `q_{l+1}` and `χ(q_l)` as above,  `log(g_1 / g_l) = Σ_{k<l} log χ(q_k)`

    Args:
        function: φ.
        q: variance in layer 1, positive; with batch normalisation that within a batch, with divisor B - 1:
            σ_w² times that of the inputs.
        weight_variance: σ_w², the variance of a weight times fan_in.
        bias_variance: σ_b².
        depth: number of layers, at least 1.
        normalisation: "none", "batch" or "layer".
        batch: examples of a batch, at least 4; for batch normalisation only.
        residual: None without a residual connection, else the branch scale α: 1 plain, 1/sqrt(depth) scaled; may be
            traced.
        breakpoints: kinks of φ.

    Returns:
        Variances, χ and gradient ratios of the layers 1 to depth.

    Raises:
        ValueError: normalisation is none of the three, batch does not fit it, a number is negative or not finite, or
            depth is below 1.

    Example:
        >>> trajectory = block_trajectory(jax.nn.relu, 1.0, 2.0, depth=3, residual=1.0)
        >>> print(trajectory.q, trajectory.chi1.round(4))
        [1. 2. 4.] [2. 2. 2.]

    Reference: Yang and Schoenholz 2017, arXiv:1712.08969, section 4; Yang et al. 2019, arXiv:1902.08129, section 3.
    """
    _check(normalisation, batch)
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    skip, branch = (0.0, 1.0) if residual is None else (1.0, residual)
    numbers = checked(q=q, weight_variance=weight_variance, bias_variance=bias_variance, residual=branch)
    return Trajectory(*_trajectory(function, breakpoints, depth, normalisation, batch, skip, *numbers))


def asymptote(
    function: Function,
    weight_variance: Number,
    bias_variance: Number = 0.0,
    *,
    normalisation: str = "none",
    batch: int | None = None,
    residual: Number | None = None,
    start: Number = 1.0,
    breakpoints: tuple[float, ...] = BREAKPOINTS,
) -> Asymptote:
    """Predict the factor on the squared gradient a layer in deep networks, or the power of depth where that is 1.

    `χ = lim χ(q_l)`,  `exponent = lim l (χ(q_l) - 1)`

    A residual stream of α² σ_w² E[φ(N)²] a layer grows, so a normalised branch counts ever less. With a branch scale
    of 1/sqrt(depth) there is no limit of this kind: the gradient of all layers together stays within
    exp(σ_w² E[φ'²]), see `block_trajectory`.

    Args are those of `block_trajectory` and `meanfield.length_fixed_point`.

    Returns:
        The limits.

    Raises:
        ValueError: as `block_trajectory`.

    Example:
        >>> print(f"{asymptote(jax.nn.relu, 2.0, normalisation='batch', batch=1000).chi1:.4f}")
        1.4685
        >>> print(f"{asymptote(jax.nn.relu, 2.0, normalisation='layer', residual=1.0).exponent:.4f}")
        1.0000

    Reference: Yang et al. 2019, arXiv:1902.08129, theorem 3.9; Yang and Schoenholz 2017, arXiv:1712.08969.
    """
    _check(normalisation, batch)
    branch = 1.0 if residual is None else residual
    weights, biases, branch, start = checked(
        weight_variance=weight_variance, bias_variance=bias_variance, residual=branch, start=start
    )
    nothing = jnp.full_like(weights, jnp.nan)
    if normalisation == "none":
        if residual is None:
            return Asymptote(length_fixed_point(function, weights, biases, start, breakpoints).chi1, nothing)
        # Where V(q) / q goes to 0 as q grows, so does the slope of V, and with it E[φ'²].
        return Asymptote(1 + branch**2 * chi1(function, _LONGEST, weights, breakpoints), nothing)
    added, returned = _normalised(function, breakpoints, normalisation, batch, weights, biases)
    if residual is None:
        return Asymptote(returned / added, nothing)
    return Asymptote(jnp.ones_like(weights), returned / added)


def batch_moments(function: Function, batch: int, breakpoints: tuple[float, ...] = BREAKPOINTS) -> BatchMoments:
    """Compute what batch normalisation and φ make of a layer, for a weight variance of 1.

    `A = E[φ(x_1)²] - E[φ(x_1) φ(x_2)]`,  `T = B / (B - 3) E[tr((G - u u^T) D G D)] / (B - 1)`, see above,
    with `G = 1 - 1 1^T / B`, `u = x / √B`, `D = diag φ'(x)`

    Args:
        function: φ.
        batch: examples B, at least 4: in smaller batches the mean square of the gradient is infinite.
        breakpoints: kinks of φ.

    Returns:
        A and T. Without a residual connection the squared gradient grows by T / A a layer.

    Raises:
        ValueError: batch is not a whole number of at least 4.

    Example:
        >>> variance, gradient = batch_moments(lambda x: x, 8)
        >>> print(f"{gradient / variance:.4f}")
        1.2000

    Reference: Yang et al. 2019, arXiv:1902.08129, section 4.
    """
    with_slope = jax.value_and_grad(function)

    def terms(x: Array, y: Array) -> tuple[Array, Array]:
        (value, slope), (other, other_slope) = with_slope(x), with_slope(y)
        own, own_projected = (slope**2 + other_slope**2) / 2, ((x * slope) ** 2 + (y * other_slope) ** 2) / 2
        mixed = slope * other_slope
        return (value - other) ** 2 / 2, (batch - 1) * own + mixed - own_projected + x * y * mixed

    variance, gradient = batch_pair_expectation(terms, batch, breakpoints=breakpoints)
    return BatchMoments(variance, gradient / (batch - 3))


def fluctuation(
    function: Function,
    q: Number = 1.0,
    weight_variance: Number = 1.0,
    *,
    width: Number,
    normalisation: str = "none",
    residual: Number | None = None,
    breakpoints: tuple[float, ...] = BREAKPOINTS,
) -> Float[Array, ""]:
    """Predict how much one layer's factor on one example's squared gradient varies between networks of finite width.

    `Var(|δ_l|² / |δ_{l+1}|²) / χ² = (4 s k + k² (3 E[φ'^4] / E[φ'²]² - 1)) / (N (s + k)²)`,  `k = α² σ_w² E[φ'²]`

    with k over q for layer normalisation. To first order in 1 / N; the layers' shares add up, and the mean of the
    logarithm is half of it below the logarithm of the mean. The length's own fluctuations, which φ' makes felt unless
    φ is homogeneous, come on top; in a batch, examples share part of it.

    Args:
        function: φ.
        q: variance of the stream.
        weight_variance: σ_w²; without a residual connection it cancels.
        width: units N of a layer.
        normalisation: "none" or "layer".
        residual: None without a residual connection, else the branch scale α.
        breakpoints: kinks of φ.

    Returns:
        The relative variance, 5 / N for relu.

    Raises:
        ValueError: normalisation is neither, or a number is negative or not finite.

    Example:
        >>> print(f"{fluctuation(jax.nn.relu, width=1000):.4f}")
        0.0050

    Reference: Hanin 2018, arXiv:1801.03744, theorem 2.
    """
    if normalisation not in ("none", "layer"):
        raise ValueError(f"normalisation must be none or layer, got {normalisation!r}: a batch has no single example")
    branch = 1.0 if residual is None else residual
    q, weights, branch, width = checked(q=q, weight_variance=weight_variance, residual=branch, width=width)
    slope = jax.grad(function)
    scale = jnp.sqrt(q) if normalisation == "none" else jnp.ones_like(q)
    second, fourth = gaussian_expectation(
        lambda x: (slope(x) ** 2, slope(x) ** 4), scale=scale, breakpoints=breakpoints
    )
    spread = 3 * fourth / second**2 - 1
    if residual is None:
        return jnp.asarray(spread / width)
    through = branch**2 * weights * second / (q if normalisation == "layer" else 1)
    return jnp.asarray((4 * through + through**2 * spread) / (width * (1 + through) ** 2))


def _check(normalisation: str, batch: Any) -> None:
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS)}; got {normalisation!r}")
    if normalisation != "batch" and batch is not None:
        raise ValueError(f"batch is for batch normalisation, got {batch!r} with normalisation {normalisation!r}")
    if normalisation == "batch" and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 4):
        raise ValueError(f"batch must be a whole number of at least 4 for batch normalisation, got {batch!r}")


def _normalised(
    function: Function,
    breakpoints: tuple[float, ...],
    normalisation: str,
    batch: int | None,
    weight_variance: Array,
    bias_variance: Array,
) -> tuple[Array, Array]:
    """Return what a normalised branch of scale 1 adds to the variance, and to the squared gradient times that."""
    if normalisation == "batch" and batch is not None:
        moments = batch_moments(function, batch, breakpoints)
        added, returned = (moment.astype(weight_variance.dtype) for moment in moments)
        return weight_variance * added, weight_variance * returned
    one = jnp.ones_like(weight_variance)
    added = length_map(function, one, weight_variance, bias_variance, breakpoints)
    return added, chi1(function, one, weight_variance, breakpoints)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _trajectory(
    function: Function,
    breakpoints: tuple[float, ...],
    depth: int,
    normalisation: str,
    batch: int | None,
    skip: float,
    first: Array,
    weight_variance: Array,
    bias_variance: Array,
    branch: Array,
) -> Trajectory:
    variances = weight_variance, bias_variance

    def layer(q: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        added = length_map(function, q, *variances, breakpoints=breakpoints)
        factor = chi1(function, q, weight_variance, breakpoints)
        return skip * q + branch**2 * added, (q, skip + branch**2 * factor)

    if normalisation == "none":
        _, (lengths, factors) = jax.lax.scan(layer, first, length=depth)
    else:
        added, returned = _normalised(function, breakpoints, normalisation, batch, *variances)
        layers = jnp.arange(depth, dtype=first.dtype)
        later = branch**2 * added * (layers if skip else 1)
        lengths = jnp.where(layers == 0, first, skip * first + later)
        factors = skip + branch**2 * returned / lengths
    logs = jnp.concatenate([jnp.zeros_like(factors[:1]), jnp.cumsum(jnp.log(factors[:-1]))])
    return Trajectory(lengths, factors, logs)
