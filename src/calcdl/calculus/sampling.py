"""Integrals over boxes by sampling, for dimensions in which no grid is possible.

`monte_carlo` draws independent points: its standard error falls like samples^-1/2 whatever the dimension.
`quasi_monte_carlo` spreads the points evenly along a lattice and only moves the lattice at random: for smooth
functions of few variables its error falls almost like samples^-1 or faster, and the moves give the standard error.

Reference: Cranley and Patterson 1976, SIAM J. Numer. Anal. 13:904-914 (random shifts); Hickernell 2002 (folding).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.types import Array

Number = Float[Array, ""] | float


class Estimate(NamedTuple):
    """A random estimate of an integral.

    Attributes:
        value: the estimate, unbiased.
        standard_error: estimate of its standard deviation.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]


def monte_carlo(
    key: Array,
    f: Callable[[Float[Array, " dimension"]], Array],
    lower: Sequence[Number] | Float[Array, " dimension"],
    upper: Sequence[Number] | Float[Array, " dimension"],
    samples: int,
) -> Estimate:
    """Estimate an integral over a box from independent uniform points.

    `V / n Σ_i f(x_i)`, standard error `V s / √n`, with the volume V and the sample standard deviation s of f

    Args:
        key: random key.
        f: integrand of a point, to a scalar.
        lower: finite lower limits.
        upper: finite upper limits.
        samples: number of points n.

    Returns:
        The `Estimate`, in the dtype of the limits.

    Raises:
        ValueError: lower and upper differ in length, or there are fewer than 2 samples.

    Example:
        >>> value, standard_error = monte_carlo(jax.random.key(0), lambda x: jnp.sum(x), [0.0] * 6, [1.0] * 6, 10_000)
        >>> bool(abs(value - 3) < 4 * standard_error)
        True
    """
    low, width = _box(lower, upper)
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    points = low[None, :] + width[None, :] * jax.random.uniform(key, (samples, low.shape[0]), low.dtype)
    values = jax.vmap(f)(points).astype(low.dtype) * jnp.prod(width)
    return Estimate(jnp.mean(values), jnp.std(values, ddof=1) / math.sqrt(samples))


def quasi_monte_carlo(
    key: Array,
    f: Callable[[Float[Array, " dimension"]], Array],
    lower: Sequence[Number] | Float[Array, " dimension"],
    upper: Sequence[Number] | Float[Array, " dimension"],
    samples: int,
    *,
    replicates: int = 16,
) -> Estimate:
    """Estimate an integral over a box from an evenly spread sequence, moved at random.

    `x_i = fold(i α + shift mod 1)`, `α_j = φ^-j`, `φ^(d+1) = φ + 1`, `fold(u) = 1 - |2u - 1|`

    Folding makes the integrand periodic without a jump. The standard error is that of the mean over the shifts.

    Args:
        key: random key.
        f: integrand of a point, to a scalar.
        lower: finite lower limits.
        upper: finite upper limits.
        samples: points in each replicate.
        replicates: independent shifts of the sequence.

    Returns:
        The `Estimate`, in the dtype of the limits.

    Raises:
        ValueError: lower and upper differ in length, there is no sample, or there are fewer than 2 replicates.

    Example:
        >>> value, standard_error = quasi_monte_carlo(
        ...     jax.random.key(0), lambda x: jnp.exp(-jnp.sum(x)), [0.0] * 3, [1.0] * 3, 1000
        ... )
        >>> bool(abs(value - (1 - math.exp(-1)) ** 3) < 1e-4)
        True
    """
    low, width = _box(lower, upper)
    if samples < 1 or replicates < 2:
        raise ValueError(f"samples must be at least 1 and replicates at least 2, got {samples} and {replicates}")
    dimension = low.shape[0]
    phi = 2.0
    for _ in range(60):
        phi = (1 + phi) ** (1 / (dimension + 1))
    # In whole numbers the sequence keeps its evenness, however long it is and in every dtype.
    alpha = jnp.asarray([round((phi ** -(j + 1) % 1) * 2**32) for j in range(dimension)], jnp.uint32)
    walk = jnp.arange(samples, dtype=jnp.uint32)[:, None] * alpha[None, :]

    def replicate(key: Array) -> Array:
        moved = walk + jax.random.bits(key, (1, dimension), jnp.uint32)
        u = (moved >> 8).astype(low.dtype) / 2**24 if low.dtype == jnp.float32 else moved.astype(low.dtype) / 2**32
        points = low[None, :] + width[None, :] * (1 - jnp.abs(2 * u - 1))
        return jnp.mean(jax.vmap(f)(points).astype(low.dtype)) * jnp.prod(width)

    means = jax.lax.map(replicate, jax.random.split(key, replicates))
    return Estimate(jnp.mean(means), jnp.std(means, ddof=1) / math.sqrt(replicates))


def _box(
    lower: Sequence[Number] | Float[Array, " dimension"], upper: Sequence[Number] | Float[Array, " dimension"]
) -> tuple[Float[Array, " dimension"], Float[Array, " dimension"]]:
    low, high = jnp.asarray(lower), jnp.asarray(upper)
    if low.shape != high.shape or low.ndim != 1:
        raise ValueError(f"lower and upper must be vectors of one length, got the shapes {low.shape} and {high.shape}")
    dtype = jnp.promote_types(jnp.result_type(low, high, 1.0), jnp.float32)
    return low.astype(dtype), (high - low).astype(dtype)
