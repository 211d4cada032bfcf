"""Mean-field theory of two inputs: how alike a wide random network finds them, layer by layer.

The pre-activations of one unit on two inputs of equal length are jointly normal, with variance q_l and correlation c_l:

    c_{l+1} = C(c_l) = (σ_w² E[φ(x_1) φ(x_2)] + σ_b²) / V(q_l),    x_1, x_2 ~ N(0, q_l) with correlation c_l,

with V the length map of `meanfield`. C(1) = 1 always, and C is convex from 0 to 1, so its slope at 1 decides: up to 1,
all inputs end up alike; above 1, even close ones are driven apart to one correlation c* < 1. The derivative

    χ_c = σ_w² E[φ'(x_1) φ'(x_2)]

is the factor on the inner product of two inputs' gradients from one layer to the one before it, χ(q) that at c = 1. For
a scalar φ of kinks in `breakpoints`, see `meanfield`; for relu C is the arc-cosine kernel. One evaluation takes about
60,000 values of φ: under `jax.vmap` over thousands of points prefer `jax.lax.map`.

Reference: Poole et al. 2016, arXiv:1606.05340, eq. 5; Schoenholz et al. 2017, arXiv:1611.01232, eq. 5 and 18;
Cho and Saul 2009, Kernel methods for deep learning.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from calcdl.theory.arguments import checked
from calcdl.theory.meanfield import BREAKPOINTS, chi1, length_map, length_trajectory
from calcdl.theory.pairs import by_distance
from calcdl.types import Array

Function = Callable[[Array], Array]
Number = Float[Array, ""] | float

# Lengths between which limits are evaluated.
_SHORTEST, _LONGEST = 1e-24, 1e24


class CorrelationTrajectory(NamedTuple):
    """Two inputs and their gradients through the layers 1 to depth.

    Attributes:
        q: length of the pre-activations of each layer.
        correlation: c_l, of the two inputs' pre-activations.
        chi1: χ(q_l), the factor on squared gradients from layer l + 1 to layer l.
        chi_c: the same for the inner product of the two inputs' gradients.
        log_gradient_ratio: log of the mean squared gradient by the pre-activations of layer 1 over that of layer l.
        log_gradient_correlation: log of the correlation of the two inputs' gradients in layer 1 over that in layer l.
    """

    q: Float[Array, " depth"]
    correlation: Float[Array, " depth"]
    chi1: Float[Array, " depth"]
    chi_c: Float[Array, " depth"]
    log_gradient_ratio: Float[Array, " depth"]
    log_gradient_correlation: Float[Array, " depth"]


def correlation_map(
    function: Function,
    correlation: Number,
    q: Number,
    weight_variance: Number,
    bias_variance: Number = 0.0,
    breakpoints: tuple[float, ...] = BREAKPOINTS,
) -> Float[Array, ""]:
    """Take the correlation of two inputs one layer further.

    `C(c) = (σ_w² E[φ(x_1) φ(x_2)] + σ_b²) / V(q)`

    1 - C is computed as the expectation of a square, so that no digits are lost as c goes to 1.

    Args:
        function: φ.
        correlation: c, between -1 and 1.
        q: length of both inputs' pre-activations; 0 stands for the limit from above.
        weight_variance: σ_w², the variance of a weight times fan_in.
        bias_variance: σ_b².
        breakpoints: kinks of φ.

    Returns:
        The correlation in the next layer; differentiable, also at c = 1 and -1.

    Raises:
        ValueError: correlation is outside -1 to 1, or another number is negative or not finite.

    Example:
        >>> round(float(correlation_map(jax.nn.relu, 0.0, 1.0, 2.0)), 6), round(1 / math.pi, 6)
        (0.31831, 0.31831)

    Reference: Poole et al. 2016, arXiv:1606.05340, eq. 5.
    """
    _check_correlation(correlation)
    numbers = checked(q=q, weight_variance=weight_variance, bias_variance=bias_variance, correlation=correlation)
    return jnp.asarray(_correlation_map(function, breakpoints, *numbers))


def correlation_slope(
    function: Function,
    correlation: Number,
    q: Number,
    weight_variance: Number,
    breakpoints: tuple[float, ...] = BREAKPOINTS,
) -> Float[Array, ""]:
    """Factor on the inner product of two inputs' gradients from one layer to the one before it.

    `χ_c = σ_w² E[φ'(x_1) φ'(x_2)]`, the slope of C at a fixed point of the length

    Args are those of `correlation_map`.

    Returns:
        χ_c; at correlation 1 it is `meanfield.chi1`.

    Raises:
        ValueError: as `correlation_map`.

    Example:
        >>> round(float(correlation_slope(jax.nn.relu, 0.0, 1.0, 2.0)), 6)
        0.5

    Reference: Schoenholz et al. 2017, arXiv:1611.01232, eq. 11.
    """
    _check_correlation(correlation)
    q, weight_variance, correlation = checked(q=q, weight_variance=weight_variance, correlation=correlation)
    return jnp.asarray(_slope(function, breakpoints, 1 - jnp.asarray(correlation), q, weight_variance))


def correlation_fixed_point(
    function: Function,
    q: Number,
    weight_variance: Number,
    bias_variance: Number = 0.0,
    breakpoints: tuple[float, ...] = BREAKPOINTS,
) -> Float[Array, ""]:
    """Find the correlation to which all pairs of inputs are led at one length.

    `c* = C(c*)`: 1 where the slope of C there is at most 1, and else the one solution in [0, 1)

    Where C is the identity, as for a linear network, every correlation stays and 1 is given. The solution is that of
    (1 - C(c)) / (1 - c) = 1, whose left side has no root at 1, so it keeps its digits when it is near to 1.

    Args are those of `correlation_map`; the limits themselves, q = 0 and infinity, are allowed.

    Returns:
        c*, differentiable by q and both variances.

    Raises:
        ValueError: q is nan or negative, or a variance is negative or not finite.

    Example:
        >>> from calcdl.theory.meanfield import length_fixed_point
        >>> limit = length_fixed_point(jnp.tanh, 2.0, 0.05)
        >>> round(float(correlation_fixed_point(jnp.tanh, limit.q, 2.0, 0.05)), 3)
        0.744

    Reference: Poole et al. 2016, arXiv:1606.05340, section 2.2.
    """
    q = _LONGEST if isinstance(q, float) and q == math.inf else q
    numbers = checked(q=q, weight_variance=weight_variance, bias_variance=bias_variance)
    return 1 - fixed_distance(function, breakpoints, *numbers)


def correlation_trajectory(
    function: Function,
    q: Number,
    correlation: Number,
    weight_variance: Number,
    bias_variance: Number = 0.0,
    *,
    depth: int,
    breakpoints: tuple[float, ...] = BREAKPOINTS,
) -> CorrelationTrajectory:
    """Follow two inputs and their gradients through the layers of a network of finite depth.

    `c_1 = c`,  `c_{l+1} = C(c_l)`,  `log(r_1 / r_l) = Σ_{k<l} log(χ_c(c_k) / χ(q_k))`

    Args:
        function: φ.
        q: length in layer 1; σ_w² m + σ_b² for inputs of second moment m.
        correlation: c in layer 1; (σ_w² m r + σ_b²) / q for inputs of correlation r.
        weight_variance: σ_w², the variance of a weight times fan_in.
        bias_variance: σ_b².
        depth: number of layers, at least 1.
        breakpoints: kinks of φ.

    Returns:
        Lengths, correlations and gradients of the layers 1 to depth.

    Raises:
        ValueError: as `correlation_map`, or depth is below 1.

    Example:
        >>> trajectory = correlation_trajectory(jax.nn.relu, 2.0, 0.0, 2.0, depth=3)
        >>> [round(float(c), 4) for c in trajectory.correlation]
        [0.0, 0.3183, 0.4937]

    Reference: Schoenholz et al. 2017, arXiv:1611.01232, section 4.
    """
    _check_correlation(correlation)
    q, weight_variance, bias_variance, correlation = checked(
        q=q, weight_variance=weight_variance, bias_variance=bias_variance, correlation=correlation
    )
    lengths = length_trajectory(function, q, weight_variance, bias_variance, depth=depth, breakpoints=breakpoints)
    variances = jnp.asarray(weight_variance), jnp.asarray(bias_variance)
    found = _trajectory(function, breakpoints, lengths.q, lengths.chi1, jnp.asarray(correlation), *variances)
    ratio = jnp.log(found[1] / lengths.chi1)[:-1]
    log_correlation = jnp.concatenate([jnp.zeros_like(found[1][:1]), jnp.cumsum(ratio)])
    return CorrelationTrajectory(
        lengths.q, found[0], lengths.chi1, found[1], lengths.log_gradient_ratio, log_correlation
    )


def fixed_distance(
    function: Function, breakpoints: tuple[float, ...], q: Array, weight_variance: Array, bias_variance: Array
) -> Array:
    """Solve for 1 - c*, as `correlation_fixed_point`, with all its digits.

    Example:
        >>> numbers = checked(q=1.0, weight_variance=3.0, bias_variance=0.0)
        >>> print(f"{fixed_distance(jnp.tanh, BREAKPOINTS, *numbers):.4f}")
        1.0000
    """
    found: Array = _fixed_distance(function, breakpoints, q, weight_variance, bias_variance)
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fixed_distance(
    function: Function, breakpoints: tuple[float, ...], q: Array, weight_variance: Array, bias_variance: Array
) -> Array:
    epsilon = float(np.finfo(q.dtype).eps)
    q = jnp.clip(q, _SHORTEST, _LONGEST)
    length = length_map(function, q, weight_variance, bias_variance, breakpoints)
    slope = jax.grad(function)

    def secant(distance: Array) -> tuple[Array, Array]:
        """Return (1 - C) / (1 - c) and its derivative by 1 - c."""

        def terms(x: Array, y: Array) -> tuple[Array, Array]:
            return (function(x) - function(y)) ** 2 / 2, slope(x) * slope(y)

        apart, alike = by_distance(terms, distance, jnp.sqrt(q), breakpoints)
        value = weight_variance * apart / length / distance
        return value, (weight_variance * alike * q / length - value) / distance

    def step(state: Any) -> Any:
        distance, lower, upper, _, count = state
        value, change = secant(distance)
        excess = value - 1
        lower, upper = jnp.where(excess > 0, distance, lower), jnp.where(excess > 0, upper, distance)
        newton = distance - excess / jnp.where(change == 0, 1, change)
        following = jnp.where((newton >= lower) & (newton <= upper), newton, jnp.sqrt(lower * upper))
        is_done = (jnp.abs(excess) <= 8 * epsilon) | (following == distance)
        return following, lower, upper, is_done, count + 1

    is_alike = chi1(function, q, weight_variance, breakpoints) * q / length <= 1 + 500 * epsilon

    def solve(_: Callable[[Array], Array], first: Array) -> Array:
        start = first, jnp.full_like(q, epsilon), jnp.ones_like(q), is_alike, jnp.zeros((), jnp.int32)
        return jnp.asarray(jax.lax.while_loop(lambda state: ~state[3] & (state[4] < 100), step, start)[0])

    def solve_tangent(linear: Callable[[Array], Array], tangent: Array) -> Array:
        change = linear(jnp.ones_like(tangent))
        return tangent / jnp.where(change == 0, 1, change)

    root = jax.lax.custom_root(lambda distance: secant(distance)[0] - 1, jnp.ones_like(q), solve, solve_tangent)
    return jnp.where(is_alike, 0, root)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _correlation_map(
    function: Function,
    breakpoints: tuple[float, ...],
    q: Array,
    weight_variance: Array,
    bias_variance: Array,
    correlation: Array,
) -> Array:
    q = jnp.clip(q, _SHORTEST, _LONGEST)
    apart = by_distance(_half_square(function), _distance(correlation), jnp.sqrt(q), breakpoints)
    length = length_map(function, q, weight_variance, bias_variance, breakpoints)
    return _following(correlation, weight_variance * apart / length)


def _half_square(function: Function) -> Callable[[Array, Array], Array]:
    return lambda x, y: (function(x) - function(y)) ** 2 / 2


def _distance(correlation: Array) -> Array:
    """Return 1 - c, a step off the ends: there the angle has an infinite derivative; here that of C is within 1e-8."""
    margin = 2 * float(np.finfo(correlation.dtype).eps)
    held = jax.lax.stop_gradient(correlation)
    return jnp.clip(1 - held, margin, 2 - margin) - (correlation - held)


def _following(correlation: Array, distance: Array) -> Array:
    following = 1 - distance
    return jnp.where(correlation == 1, 1 + (following - jax.lax.stop_gradient(following)), following)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _slope(
    function: Function, breakpoints: tuple[float, ...], distance: Array, q: Array, weight_variance: Array
) -> Array:
    slope = jax.grad(function)
    scale = jnp.sqrt(jnp.clip(q, _SHORTEST, _LONGEST))
    return jnp.asarray(weight_variance * by_distance(lambda x, y: slope(x) * slope(y), distance, scale, breakpoints))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _trajectory(
    function: Function,
    breakpoints: tuple[float, ...],
    lengths: Array,
    factors: Array,
    first: Array,
    weight_variance: Array,
    bias_variance: Array,
) -> tuple[Array, Array]:
    gradient = jax.grad(function)

    def terms(x: Array, y: Array) -> tuple[Array, Array]:
        return _half_square(function)(x, y), gradient(x) * gradient(y)

    def layer(correlation: Array, at: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        q, factor = at
        q = jnp.clip(q, _SHORTEST, _LONGEST)
        apart, alike = by_distance(terms, _distance(correlation), jnp.sqrt(q), breakpoints)
        length = length_map(function, q, weight_variance, bias_variance, breakpoints)
        slope = jnp.where(correlation == 1, factor, weight_variance * alike)
        return _following(correlation, weight_variance * apart / length), (correlation, slope)

    found: tuple[Array, Array] = jax.lax.scan(layer, first, (lengths, factors))[1]
    return found


def _check_correlation(correlation: Any) -> None:
    if isinstance(correlation, float | int) and not -1 <= correlation <= 1:
        raise ValueError(f"correlation must be between -1 and 1, got {correlation}")
