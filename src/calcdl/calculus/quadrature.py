"""Fixed rules: sums over nodes chosen beforehand, for one variable and for expectations under the normal distribution.

`riemann`, `trapezoid`, `simpson`, `gauss_legendre` and `gauss_hermite` are the rules of the textbook; they report no
error. The first five are also in `RULES`, all called as `rule(f, lower, upper, count)`.

`gaussian_expectation` is for the mean of an activation, which one Gauss-Hermite rule does not fit. Its kinks belong on
the edge of a panel, and its features stay of size one however wide the distribution is, so panels must be graded
towards them. Hence a Gauss-Legendre rule on each of many panels, whose edges follow both scales: that of the
distribution and that of the function.
"""

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from calcdl.types import Array

Function = Callable[[Array], Any]
Number = Float[Array, ""] | float

_PLACES = {"left": 0.0, "midpoint": 0.5, "right": 1.0}

_NODES_PER_PANEL = 16
# In standard deviations. The density beyond 20 is below 1e-87, which leaves room for functions that grow like exp.
_LAST = 20.0
# The odd offset and factor keep these edges from falling on a kink, whose edge must be able to move alone.
_STEPS = np.concatenate([np.arange(-18, -10, 2), np.arange(-10, 10), np.arange(10, 20, 2)]) + 1 / math.e
# In the units of the argument, on both sides of each breakpoint: twice as far, panels twice as wide.
_GRADES = np.concatenate([-(2.0 ** np.arange(13, -7, -1)), 2.0 ** np.arange(-6, 14)]) * math.sqrt(2)


def gaussian_expectation(
    function: Callable[[Array], Any],
    *,
    scale: Float[Array, ""] | float = 1.0,
    mean: Float[Array, ""] | float = 0.0,
    breakpoints: tuple[float, ...] = (-3.0, 0.0, 3.0),
) -> Any:
    """Integrate a function of one normal variable against its density.

    `E[f(x)] = ∫ f(mean + scale z) exp(-z²/2) / sqrt(2 π) dz`

    In float64 the relative error is near 1e-14 for functions that are smooth between breakpoints and vary on a scale
    of 1 or more (near a breakpoint 0.03 or more), at every scale. The derivatives by scale and mean are those of the
    integral, also where f jumps at a breakpoint; with one within reach of a narrow distribution they err by about
    1e-16 f / scale.

    Args:
        function: f, of a scalar; it may return any pytree of arrays, each of whose entries is integrated.
        scale: standard deviation of x, at least 0; may be traced.
        mean: mean of x; may be traced.
        breakpoints: where f has kinks, jumps or fine features, in units of x. The default fits all of
            `nn.activations.ACTIVATIONS` and their derivatives.

    Returns:
        The expectation, of the structure that f returns, computed in the dtype of scale and mean (at least float32;
        for Python numbers the default float).

    Raises:
        ValueError: scale is a negative number, or scale, mean or a breakpoint is not finite.

    Example:
        >>> round(float(gaussian_expectation(lambda x: jnp.maximum(x, 0) ** 2, scale=2.0)), 5)
        2.0
    """
    _check_numbers(scale, mean, breakpoints)
    dtype = jnp.promote_types(jnp.result_type(scale, mean, 1.0), jnp.float32)
    scale, mean = jnp.asarray(scale, dtype), jnp.asarray(mean, dtype)
    z, weights = _quadrature(scale, mean, np.asarray(breakpoints, np.float64))
    values = jax.vmap(function)(mean + scale * z)
    return jax.tree.map(lambda value: jnp.sum(_like_rows(weights, value) * value, axis=0), values)


def _quadrature(scale: Array, mean: Array, breakpoints: np.ndarray[Any, Any]) -> tuple[Array, Array]:
    """Return nodes in standard deviations and their weights, density included."""
    dtype = scale.dtype
    divisor = jnp.where(scale == 0, 1, scale)
    kinks = (jnp.asarray(breakpoints, dtype) - mean) / divisor
    grades = ((breakpoints[:, None] + _GRADES[None, :]).ravel().astype(dtype) - mean) / divisor
    # A kink carries its edge along when scale or mean change, and the panels on both sides with it: that is the
    # boundary term of Leibniz's rule, which a jump needs. Any other edge may stay where it is.
    edges = jnp.concatenate([kinks, jax.lax.stop_gradient(grades), jnp.asarray([-_LAST, *_STEPS, _LAST], dtype)])
    edges = jnp.sort(jnp.clip(edges, -_LAST, _LAST))
    centre, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    points, point_weights = (jnp.asarray(part, dtype) for part in _legendre())
    z = centre[:, None] + half[:, None] * points[None, :]
    density = jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return z.ravel(), (half[:, None] * point_weights[None, :] * density).ravel()


@functools.cache
def _legendre() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return np.polynomial.legendre.leggauss(_NODES_PER_PANEL)


def _like_rows(weights: Array, value: Array) -> Array:
    return weights.reshape(weights.shape + (1,) * (value.ndim - 1))


def _check_numbers(scale: Any, mean: Any, breakpoints: tuple[float, ...]) -> None:
    for name, value in [("scale", scale), ("mean", mean), *(("breakpoints", value) for value in breakpoints)]:
        if isinstance(value, float | int) and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    if isinstance(scale, float | int) and scale < 0:
        raise ValueError(f"scale must be a standard deviation, at least 0, got {scale}")


def gauss_legendre(f: Function, lower: Number, upper: Number, nodes: int = 32) -> Any:
    """Integrate by the Gauss-Legendre rule, exact for polynomials of degree 2 nodes - 1.

    `∫_a^b f(x) dx ≈ (b - a) / 2 Σ_i w_i f((a + b) / 2 + (b - a) / 2 x_i)`, `x_i` the zeros of the Legendre polynomial

    Args:
        f: integrand, from a scalar to a pytree of arrays.
        lower: lower limit; may be traced.
        upper: upper limit; may be traced.
        nodes: number of nodes.

    Returns:
        The sum, of the structure that f returns, in the dtype of the limits.

    Raises:
        ValueError: there is no node.

    Example:
        >>> print(f"{gauss_legendre(lambda x: x**8, -1.0, 1.0, nodes=5):.6f}")
        0.222222
    """
    x, weights = np.polynomial.legendre.leggauss(_count("nodes", nodes, 1))
    return _rule(f, lower, upper, (1 + x) / 2, weights / 2)


def gauss_hermite(f: Function, nodes: int = 32, *, mean: Number = 0.0, scale: Number = 1.0) -> Any:
    """Mean of a smooth function of a normal variable by the Gauss-Hermite rule, exact for degree 2 nodes - 1.

    `E[f(x)] ≈ Σ_i w_i f(mean + √2 scale x_i) / √π`, `x_i` the zeros of the Hermite polynomial

    For functions that are not smooth on the scale of the distribution `gaussian_expectation` is the better one.

    Args:
        f: function of a scalar that returns a pytree of arrays.
        nodes: number of nodes.
        mean: mean of x; may be traced.
        scale: standard deviation of x; may be traced.

    Returns:
        The expectation, of the structure that f returns, in the dtype of mean and scale.

    Raises:
        ValueError: there is no node.

    Example:
        >>> print(f"{gauss_hermite(lambda x: x**4, nodes=3, scale=2.0):.4f}")
        48.0000
    """
    x, weights = np.polynomial.hermite.hermgauss(_count("nodes", nodes, 1))
    mean, scale = _common(mean, scale)
    z = jnp.asarray(math.sqrt(2) * x, scale.dtype)
    return _sum(f, mean + scale * z, jnp.asarray(weights / math.sqrt(math.pi), scale.dtype))


def riemann(f: Function, lower: Number, upper: Number, panels: int, *, rule: str = "midpoint") -> Any:
    """Riemann sum over equal panels.

    `h Σ_i f(a + (i + θ) h)`, `h = (b - a) / panels`, θ = 0 (left), 1/2 (midpoint) or 1 (right)

    The error is O(h) at the ends of the panels and O(h²) at their middles.

    Args:
        f: integrand, from a scalar to a pytree of arrays.
        lower: lower limit; may be traced.
        upper: upper limit; may be traced.
        panels: number of panels.
        rule: "left", "midpoint" or "right".

    Returns:
        The sum, of the structure that f returns, in the dtype of the limits.

    Raises:
        ValueError: the rule is unknown or there is no panel.

    Example:
        >>> [round(float(riemann(lambda x: x, 0.0, 1.0, 2, rule=rule)), 3) for rule in ("left", "midpoint", "right")]
        [0.25, 0.5, 0.75]
    """
    if rule not in _PLACES:
        raise ValueError(f"rule must be one of {', '.join(_PLACES)}, got {rule!r}")
    count = _count("panels", panels, 1)
    return _rule(f, lower, upper, (np.arange(count) + _PLACES[rule]) / count, np.full(count, 1 / count))


def trapezoid(f: Function, lower: Number, upper: Number, panels: int) -> Any:
    """Integrate by the composite trapezoidal rule.

    `h (f_0 / 2 + f_1 + ... + f_{n-1} + f_n / 2)`, `h = (b - a) / n`; error `-(b - a) h² f''(ξ) / 12`

    For a smooth periodic function over its period the error falls faster than any power of h.

    Args:
        f: integrand, from a scalar to a pytree of arrays.
        lower: lower limit; may be traced.
        upper: upper limit; may be traced.
        panels: number of panels n.

    Returns:
        The sum, of the structure that f returns, in the dtype of the limits.

    Raises:
        ValueError: there is no panel.

    Example:
        >>> print(f"{trapezoid(lambda x: x**2, 0.0, 1.0, 2):.4f}")
        0.3750
    """
    count = _count("panels", panels, 1)
    weights = np.full(count + 1, 1 / count)
    weights[[0, -1]] /= 2
    return _rule(f, lower, upper, np.arange(count + 1) / count, weights)


def simpson(f: Function, lower: Number, upper: Number, panels: int) -> Any:
    """Integrate by the composite Simpson rule, exact for cubic polynomials.

    `h / 3 (f_0 + 4 f_1 + 2 f_2 + ... + 4 f_{n-1} + f_n)`, `h = (b - a) / n`; error `-(b - a) h⁴ f''''(ξ) / 180`

    Args:
        f: integrand, from a scalar to a pytree of arrays.
        lower: lower limit; may be traced.
        upper: upper limit; may be traced.
        panels: number of panels n, even.

    Returns:
        The sum, of the structure that f returns, in the dtype of the limits.

    Raises:
        ValueError: the number of panels is odd or below 2.

    Example:
        >>> print(f"{simpson(lambda x: x**3, 0.0, 1.0, 2):.4f}")
        0.2500
    """
    count = _count("panels", panels, 2)
    if count % 2:
        raise ValueError(f"panels must be even, got {count}")
    weights = np.full(count + 1, 2.0)
    weights[1::2] = 4
    weights[[0, -1]] = 1
    return _rule(f, lower, upper, np.arange(count + 1) / count, weights / (3 * count))


def _count(name: str, value: int, least: int) -> int:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def _common(*numbers: Number) -> list[Array]:
    dtype = jnp.promote_types(jnp.result_type(*numbers, 1.0), jnp.float32)
    return [jnp.asarray(number, dtype) for number in numbers]


def _rule(f: Function, lower: Number, upper: Number, places: Any, weights: Any) -> Any:
    """Sum over places in [0, 1], with weights that add to 1."""
    lower, upper = _common(lower, upper)
    places, weights = jnp.asarray(places, lower.dtype), jnp.asarray(weights, lower.dtype)
    # This form hits both limits exactly.
    return _sum(f, lower * (1 - places) + upper * places, (upper - lower) * weights)


def _sum(f: Function, x: Array, weights: Array) -> Any:
    return jax.tree.map(lambda value: jnp.sum(_like_rows(weights, value) * value, axis=0), jax.vmap(f)(x))


RULES = {
    "left": partial(riemann, rule="left"),
    "midpoint": partial(riemann, rule="midpoint"),
    "right": partial(riemann, rule="right"),
    "trapezoid": trapezoid,
    "simpson": simpson,
    "gauss_legendre": gauss_legendre,
}
