"""Phases of wide random networks: how deep signals reach, and the weights at which they reach deepest.

At the fixed point q* of the length map, deviations of lengths, of correlations and of gradients change by a factor a
layer, so each dies out, or grows, like exp(-l / ξ) over a depth scale ξ = -1 / log(factor):

    lengths          χ_q = σ_w² dE[φ²]/dq at q*
    correlations     χ_c = σ_w² E[φ'(x_1) φ'(x_2)] at c*
    squared gradient χ_1 = σ_w² E[φ'²] at q*

Where χ_1 < 1 all inputs become alike and gradients vanish (ordered); where χ_1 > 1 close inputs part and gradients
explode (chaotic). On the edge between the two both scales are infinite, and what is left decays like a power of depth.
A network trains up to a depth of a few ξ_c.

Reference: Schoenholz et al. 2017, arXiv:1611.01232, section 3; Hayou et al. 2019, arXiv:1902.06853, section 2.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from calcdl.calculus.quadrature import gaussian_expectation
from calcdl.theory.arguments import checked
from calcdl.theory.correlations import correlation_slope, fixed_distance
from calcdl.theory.meanfield import BREAKPOINTS, GROWS, length_fixed_point, length_map
from calcdl.types import Array

Function = Callable[[Array], Array]
Number = Float[Array, ""] | float

ORDERED, CRITICAL, CHAOTIC = range(3)
PHASES = (
    "ordered: all inputs become alike, and gradients vanish",
    "critical: what inputs differ in, and gradients, are kept longest",
    "chaotic: close inputs are driven apart, and gradients explode",
)

AT_LENGTH, AT_ZERO, EVERYWHERE, NOWHERE = range(4)
EDGES = (
    "the edge is at a positive length",
    "the edge is the limit of lengths going to zero",
    "every length is on the edge",
    "no weight variance is critical with this bias variance",
)

# Lengths at which limits are evaluated, and the range that is searched, in powers of two.
_SHORTEST, _LONGEST = 1e-24, 1e24
_OCTAVES = 80


class Phase(NamedTuple):
    """What a network of great depth does to lengths, correlations and gradients.

    A depth scale is in layers; it is infinite where the factor is 1, and negative where it is above 1: there the
    deviation grows.

    Attributes:
        q: the length to which the layers lead: positive, 0, infinite, or the start where every length is kept.
        chi1: factor on the squared gradient from one layer to the one before it.
        chi_q: factor on a deviation of the length.
        c_star: the correlation to which pairs of inputs are led; 1 unless close inputs part; NaN where the length grows
            and every correlation is kept.
        chi_c: factor on a deviation of the correlation; NaN where the length grows, for it is the length that the
            products of two inputs grow with.
        xi_q: depth scale of lengths.
        xi_c: depth scale of correlations.
        xi_gradient: depth scale of the squared gradient.
        kind: index into `PHASES`.
    """

    q: Float[Array, ""]
    chi1: Float[Array, ""]
    chi_q: Float[Array, ""]
    c_star: Float[Array, ""]
    chi_c: Float[Array, ""]
    xi_q: Float[Array, ""]
    xi_c: Float[Array, ""]
    xi_gradient: Float[Array, ""]
    kind: Int[Array, ""]

    @property
    def verdict(self) -> str:
        """The kind in a sentence; for one network only, outside `jax.jit`."""
        return PHASES[int(self.kind)]


class Edge(NamedTuple):
    """A point on the border between order and chaos.

    Attributes:
        weight_variance: σ_w² at which χ_1 = 1.
        q: the length there.
        chi_q: factor on a deviation of the length; above 1 the layers lead away from q.
        beta: correlations go to 1 like `1 - c_l ~ beta / l^power`; infinite where they do so more slowly or not at all.
        power: 1 where φ is smooth, 2 where it has a kink.
        kind: index into `EDGES`; all numbers are NaN where there is no edge.
    """

    weight_variance: Float[Array, ""]
    q: Float[Array, ""]
    chi_q: Float[Array, ""]
    beta: Float[Array, ""]
    power: Float[Array, ""]
    kind: Int[Array, ""]

    @property
    def verdict(self) -> str:
        """The kind in a sentence; for one edge only, outside `jax.jit`."""
        return EDGES[int(self.kind)]


def phase(
    function: Function,
    weight_variance: Number,
    bias_variance: Number = 0.0,
    start: Number = 1.0,
    breakpoints: tuple[float, ...] = BREAKPOINTS,
) -> Phase:
    """Find the phase of a network and its depth scales.

    `χ_1 < 1`: ordered, `χ_1 > 1`: chaotic;  `ξ = -1 / log χ`

    Factors within 4e-10 of 1 in float64 (7e-5 in float32) count as 1. Where no positive length is fixed, the factors
    are their limits.

    Args:
        function: φ, an activation of a scalar.
        weight_variance: σ_w², the variance of a weight times fan_in.
        bias_variance: σ_b².
        start: the length from which the layers are followed, positive.
        breakpoints: kinks of φ.

    Returns:
        The phase; its numbers but the kind are differentiable in both variances.

    Raises:
        ValueError: as `meanfield.length_fixed_point`.

    Example:
        >>> found = phase(jnp.tanh, 1.5, 0.05)
        >>> print(f"{found.xi_c:.3f} {found.verdict}")
        15.791 ordered: all inputs become alike, and gradients vanish

    Reference: Schoenholz et al. 2017, arXiv:1611.01232, eq. 9, 12 and 19.
    """
    limit = length_fixed_point(function, weight_variance, bias_variance, start, breakpoints)
    weights, biases, _ = checked(weight_variance=weight_variance, bias_variance=bias_variance, start=start)
    numbers = (number.astype(limit.q.dtype) for number in (weights, biases))
    found: Phase = _phase(function, breakpoints, *limit, *numbers)
    return found


def edge_of_chaos(
    function: Function, bias_variance: Number = 0.0, breakpoints: tuple[float, ...] = BREAKPOINTS
) -> Edge:
    """Find the weight variance that is neither ordered nor chaotic.

    `σ_w² E[φ'(√q z)²] = 1` and `q = σ_w² E[φ(√q z)²] + σ_b²`

    Both hold where `q - E[φ²] / E[φ'²] = σ_b²`, an equation in q alone; of several solutions the one of least length is
    found. Correlations then creep: with `1 - C = (1 - c) - (1 - c)² / β + ...`, β = 2 E[φ'²] / (q E[φ''²]), where φ is
    smooth; a kink, over which φ' jumps by J at b, contributes `κ = σ_w² J² exp(-b² / 2q) / (√2 π)` to
    `C' = 1 - κ √(1 - c)`, whence `1 - c_l ~ 9 / (κ l)²`.

    Args:
        function: φ, an activation of a scalar.
        bias_variance: σ_b².
        breakpoints: kinks of φ.

    Returns:
        The point on the edge; weight variance and q are differentiable in the bias variance where q is positive.

    Raises:
        ValueError: bias_variance is negative or not finite.

    Example:
        >>> edge = edge_of_chaos(jnp.tanh, 0.05)
        >>> print(f"{edge.weight_variance:.6f} {edge.beta:.4f}; {edge.verdict}")
        1.760955 6.1711; the edge is at a positive length

    Reference: Hayou et al. 2019, arXiv:1902.06853, propositions 2 and 3.
    """
    (bias_variance,) = checked(bias_variance=bias_variance)
    found: Edge = _edge(function, breakpoints, bias_variance)
    return found


def _tolerance(dtype: Any) -> float:
    return math.exp(0.6 * math.log(float(np.finfo(dtype).eps)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _phase(
    function: Function,
    breakpoints: tuple[float, ...],
    q: Array,
    growth: Array,
    gradient: Array,
    kind: Array,
    weight_variance: Array,
    bias_variance: Array,
) -> Phase:
    at = jnp.clip(q, _SHORTEST, _LONGEST)
    deviation = weight_variance * _moments(function, breakpoints, at)[2]
    distance = fixed_distance(function, breakpoints, at, weight_variance, bias_variance)
    is_alike = distance == 0
    mean = gaussian_expectation(function, scale=jnp.sqrt(at), breakpoints=breakpoints)
    length = length_map(function, at, weight_variance, bias_variance, breakpoints)
    from_independent = (weight_variance * mean**2 + bias_variance) / length
    # A convex map through (0, 0) and (1, 1) of slope 1 there is the identity.
    is_kept = (kind == GROWS) & is_alike & (jnp.abs(from_independent) <= _tolerance(q.dtype))
    inner = correlation_slope(function, 1 - jnp.where(is_alike, 0.5, distance), at, weight_variance, breakpoints)
    alike = jnp.where(kind == GROWS, jnp.nan, jnp.where(is_alike, gradient, inner))
    is_critical = jnp.abs(gradient - 1) <= _tolerance(q.dtype)
    return Phase(
        q=q,
        chi1=gradient,
        chi_q=deviation,
        c_star=jnp.where(is_kept, jnp.nan, 1 - distance),
        chi_c=alike,
        xi_q=_depth_scale(deviation),
        xi_c=_depth_scale(alike),
        xi_gradient=_depth_scale(gradient),
        kind=jnp.select([is_critical, gradient < 1], [CRITICAL, ORDERED], CHAOTIC).astype(jnp.int32),
    )


def _depth_scale(factor: Array) -> Array:
    is_one = jnp.abs(factor - 1) <= _tolerance(factor.dtype)
    return jnp.where(is_one, jnp.inf, -1 / jnp.log(jnp.where(is_one, 2, factor)))


def _moments(function: Function, breakpoints: tuple[float, ...], q: Array) -> tuple[Array, Array, Array]:
    """Return E[φ²], E[φ'²] and the derivative of the first by q."""
    with_slope = jax.value_and_grad(function)

    def terms(x: Array) -> tuple[Array, Array, Array]:
        value, slope = with_slope(x)
        return value * value, slope * slope, value * slope * x / q

    found: tuple[Array, Array, Array] = gaussian_expectation(terms, scale=jnp.sqrt(q), breakpoints=breakpoints)
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _edge(function: Function, breakpoints: tuple[float, ...], bias_variance: Array) -> Edge:
    dtype = bias_variance.dtype

    def excess(q: Array) -> Array:
        second, slope, _ = _moments(function, breakpoints, q)
        return 1 - (second / slope + bias_variance) / q

    grid = 2.0 ** jnp.arange(-_OCTAVES, _OCTAVES + 1, dtype=dtype)
    signs = jax.vmap(excess)(grid)
    signs = jnp.where(jnp.abs(signs) <= 500 * float(np.finfo(dtype).eps), 0, signs)
    is_crossed = (signs[:-1] < 0) & (signs[1:] >= 0) & jnp.any(signs > 0)
    index = jnp.argmax(is_crossed)
    root = _bisected(excess, jnp.log(grid[index]), jnp.log(grid[index + 1]))
    kind = jnp.select(
        [jnp.all(signs == 0), jnp.any(is_crossed), signs[0] == 0], [EVERYWHERE, AT_LENGTH, AT_ZERO], NOWHERE
    )
    q = jnp.select([kind == AT_LENGTH, kind == AT_ZERO], [root, jnp.full_like(root, _SHORTEST)], 1)
    _, slope, change = _moments(function, breakpoints, q)
    curvature = gaussian_expectation(
        lambda x: jax.grad(jax.grad(function))(x) ** 2, scale=jnp.sqrt(q), breakpoints=breakpoints
    )
    creep = _kinks(function, breakpoints, q) / slope
    smooth = jnp.where((kind == AT_ZERO) | (curvature == 0), jnp.inf, 2 * slope / (q * curvature))
    beta = jnp.where(creep > 0, 9 / jnp.where(creep > 0, creep, 1) ** 2, smooth)
    power = jnp.where(creep > 0, 2, jnp.ones_like(q))
    found = Edge(1 / slope, jnp.where(kind == AT_ZERO, 0, q), change / slope, beta, power, kind.astype(jnp.int32))
    nowhere: Edge = jax.tree.map(lambda number: jnp.where(kind == NOWHERE, jnp.nan, number), found)
    return nowhere._replace(kind=found.kind)


def _bisected(excess: Callable[[Array], Array], lower: Array, upper: Array) -> Array:
    """Solve by halving the interval of the logarithm; differentiable."""

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        is_below = excess(jnp.exp(middle)) < 0
        return jnp.where(is_below, middle, ends[0]), jnp.where(is_below, ends[1], middle)

    def solve(_: Callable[[Array], Array], first: Array) -> Array:
        return jnp.exp(sum(jax.lax.fori_loop(0, 52, halve, (lower, upper))) / 2)

    def solve_tangent(linear: Callable[[Array], Array], tangent: Array) -> Array:
        change = linear(jnp.ones_like(tangent))
        return tangent / jnp.where(change == 0, 1, change)

    return jnp.asarray(jax.lax.custom_root(excess, jnp.exp(lower), solve, solve_tangent))


def _kinks(function: Function, breakpoints: tuple[float, ...], q: Array) -> Array:
    """Return `Σ_b J_b² exp(-b² / 2q) / (√2 π)` over the breakpoints at which φ' jumps."""
    points, near = jnp.asarray(breakpoints, q.dtype), 2.0**-9
    slope = jax.vmap(jax.grad(function))

    def across(step: float) -> Array:
        return jnp.asarray(slope(points + step) - slope(points - step))

    # What is left of the difference as the step goes to 0, its linear term removed.
    jumps = (4 * across(near / 4) - across(near)) / 3
    jumps = jnp.where(jnp.abs(jumps) < 1e-5, 0, jumps)
    return jnp.asarray(jnp.sum(jumps**2 * jnp.exp(-(points**2) / (2 * q))) / (math.sqrt(2) * math.pi))
