"""Multiple integrals, one variable inside the other, over boxes and over regions with variable limits.

    ∫_a^b ∫_{c(x)}^{d(x)} f(x, y) dy dx

Each layer is a double-exponential rule, which does not mind that the inner integral of a disc starts like a square
root, nor a singularity on the border. The number of points grows as a power of the dimension: from five on, prefer
`sampling.quasi_monte_carlo`.

Reference: Takahasi and Mori 1974, Publications RIMS 9:721-741.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from calcdl.calculus.adaptive import CONVERGES, NOT_FINITE, NOT_REACHED
from calcdl.calculus.integrals import Integral
from calcdl.calculus.panels import is_infinite
from calcdl.types import Array

Number = Float[Array, ""] | float
Limit = Number | Callable[..., Array]

# By dimension, so that no rule has more than about a million points.
_NODES = {1: 301, 2: 141, 3: 81, 4: 33}
_REACH = {"finite": 3.1, "half": 4.0, "whole": 3.1}


def integrate_region(
    f: Callable[..., Array], limits: Sequence[tuple[Limit, Limit]], *, nodes: int | None = None
) -> Integral:
    """Integrate over a region with variable limits.

    `∫_{l_1}^{u_1} ∫_{l_2(x_1)}^{u_2(x_1)} ... ∫_{l_d(x_1, ..., x_{d-1})}^{u_d(...)} f(x_1, ..., x_d) dx_d ... dx_1`

    Args:
        f: integrand of d scalars.
        limits: pairs (lower, upper) from the outermost to the innermost variable. A limit is a number, maybe traced, an
            infinite Python number, or a function of the variables before it.
        nodes: points along each variable; fewer for more variables by default.

    Returns:
        The `Integral`: the error is twice the greatest difference from the same rule with fewer points.
        Differentiable by whatever f and the limits close over.

    Raises:
        ValueError: there is no variable, there are more than 4, or there are fewer than 8 nodes.

    Example:
        >>> half_circle = lambda x: jnp.sqrt(1 - x**2)
        >>> disc = integrate_region(lambda x, y: x**2, [(-1.0, 1.0), (lambda x: -half_circle(x), half_circle)])
        >>> print(f"{disc.value:.6f}", disc.verdict)
        0.785398 converges
    """
    if len(limits) not in _NODES:
        raise ValueError(f"limits must be of 1 to 4 variables, got {len(limits)}; for more use quasi_monte_carlo")
    count = _NODES[len(limits)] if nodes is None else nodes
    if count < 8:
        raise ValueError(f"nodes must be at least 8, got {count}")
    numbers = [limit for pair in limits for limit in pair if not callable(limit)]
    dtype = jnp.promote_types(jnp.result_type(1.0, *numbers), jnp.float32)
    value, absolute, used = _nested(f, limits, count, 1.0, dtype)
    others = [_nested(f, limits, max(5, round(share * count)), share, dtype) for share in (0.7, 0.85)]
    epsilon = float(np.finfo(dtype).eps)
    # One difference may be small by chance where f has a kink, two hardly.
    spread = jnp.max(jnp.abs(jnp.stack([other[0] for other in others]) - value))
    error = 2 * spread + 50 * epsilon * absolute
    reached = error <= jnp.maximum(epsilon**0.5 * jnp.abs(value), 100 * epsilon * absolute)
    status = jnp.where(jnp.isfinite(value), jnp.where(reached, CONVERGES, NOT_REACHED), NOT_FINITE)
    error = jnp.where(jnp.isfinite(error), error, jnp.inf)
    return Integral(
        value, error, status.astype(jnp.int32), jnp.asarray(used + sum(other[2] for other in others), jnp.int32)
    )


def integrate_box(
    f: Callable[[Float[Array, " dimension"]], Array],
    lower: Sequence[Number] | Float[Array, " dimension"],
    upper: Sequence[Number] | Float[Array, " dimension"],
    *,
    nodes: int | None = None,
) -> Integral:
    """Integrate over a box.

    `∫_{lower_1}^{upper_1} ... ∫_{lower_d}^{upper_d} f(x) dx_d ... dx_1`

    Args:
        f: integrand of a point.
        lower: lower limits; infinite ones as Python or NumPy numbers.
        upper: upper limits, likewise.
        nodes: points along each variable.

    Returns:
        The `Integral`, as from `integrate_region`.

    Raises:
        ValueError: lower and upper differ in length, or as for `integrate_region`.

    Example:
        >>> print(f"{integrate_box(lambda x: jnp.sum(x**2), [-1.0, -1.0], [1.0, 1.0]).value:.6f}")
        2.666667
    """
    if len(lower) != len(upper):
        raise ValueError(f"upper must have as many entries as lower, {len(lower)}; got {len(upper)}")
    return integrate_region(lambda *x: f(jnp.stack(x)), list(zip(lower, upper, strict=True)), nodes=nodes)


def _nested(f: Callable[..., Array], limits: Any, count: int, share: float, dtype: Any) -> tuple[Array, Array, int]:
    """Lay the rules inside each other; return the sum, that of absolute values, and the number of points."""
    points: list[Array] = []
    weights = jnp.ones(1, dtype)
    for pair in limits:
        low, high = (
            jax.vmap(limit)(*points).astype(dtype)
            if callable(limit)
            else jnp.broadcast_to(jnp.asarray(limit, dtype), weights.shape)
            for limit in pair
        )
        lower_far, upper_far = (not callable(limit) and is_infinite(limit) for limit in pair)
        x, w = _layer(low, high, lower_far, upper_far, count, share, dtype)
        points = [*(jnp.repeat(point, count) for point in points), x.ravel()]
        weights = (weights[:, None] * w).ravel()
    terms = weights * jax.vmap(f)(*points).astype(dtype)
    # Far out 0 * inf is common; where more than that is wrong, the two resolutions differ.
    terms = jnp.where(jnp.isnan(terms) & (weights > 1e3), 0, terms)
    return jnp.sum(terms), jnp.sum(jnp.abs(terms)), weights.shape[0]


def _layer(
    low: Array, high: Array, lower_far: bool, upper_far: bool, count: int, share: float, dtype: Any
) -> tuple[Float[Array, "outer nodes"], Float[Array, "outer nodes"]]:
    kind = "whole" if lower_far and upper_far else "half" if lower_far or upper_far else "finite"
    # Coarser rules end sooner, so that what lies beyond their ends shows in the difference.
    reach = _REACH[kind] * (0.6 + 0.4 * share)
    t, step = np.linspace(-reach, reach, count, retstep=True)
    s, slope = np.pi / 2 * np.sinh(t), step * np.pi / 2 * np.cosh(t)
    if kind == "finite":
        decay = np.exp(-2 * np.abs(s))
        small, weights = decay / (1 + decay), 2 * slope * decay / (1 + decay) ** 2
        weights = jnp.asarray(weights / np.sum(weights), dtype)
        left, right = (jnp.asarray(np.where(side, small, 1 - small), dtype) for side in (t < 0, t > 0))
        return low[:, None] * right[None, :] + high[:, None] * left[None, :], (high - low)[:, None] * weights[None, :]
    if kind == "half":
        distance, weights = jnp.asarray(np.exp(s), dtype), jnp.asarray(slope * np.exp(s), dtype)
        x = low[:, None] + distance[None, :] if upper_far else high[:, None] - distance[None, :]
        return x, jnp.broadcast_to(weights[None, :], x.shape)
    x = jnp.broadcast_to(jnp.asarray(np.sinh(s), dtype)[None, :], (low.shape[0], count))
    return x, jnp.broadcast_to(jnp.asarray(slope * np.cosh(s), dtype)[None, :], x.shape)
