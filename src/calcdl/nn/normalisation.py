"""Normalisation: features brought to mean 0 and variance 1, then to a learned shift and scale.

    y = γ (x - mean) / sqrt(variance + ε) + β,    variance = mean of (x - mean)², divided by the number of values

Over what the mean runs is all that tells the members apart:

| name | mean over | one example depends on the others |
|---|---|---|
| batch | all axes but the last: every example, and every place of an image | while statistics are those of the batch |
| layer | the last axis: the features of one example, or of one place | no |
| none | nothing, y = x | no |

Means and variances of half-precision values are computed in float32. A normalised value does not change when x is
scaled, so the gradient by x is divided by the scale of x: normalisation trades the scale of the weights for a learning
rate of their directions.

Reference: Ioffe and Szegedy 2015, arXiv:1502.03167; Ba, Kiros and Hinton 2016, arXiv:1607.06450.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.types import Array, Key, Params

EPSILON = 1e-5


class Statistics(NamedTuple):
    """What batch normalisation knows of each feature.

    Attributes:
        mean: over examples and places.
        variance: mean squared distance from it.
    """

    mean: Float[Array, "*layers features"]
    variance: Float[Array, "*layers features"]


class Normalisation(NamedTuple):
    """A `Layer` that can say what it measured.

    Attributes:
        init: ``(key, shape of one input) -> params``, which are ``{"scale": γ, "shift": β}``, or empty.
        apply: ``(params, x, statistics=None) -> y``; None stands for the statistics of x itself.
        statistics: ``(x) -> Statistics`` for batch normalisation; None for what needs none at inference.
    """

    init: Callable[[Key, tuple[int, ...]], Params]
    apply: Callable[..., Array]
    statistics: Callable[[Array], Statistics | None]


def batch_norm(epsilon: Any = EPSILON, dtype: Any = jnp.float32) -> Normalisation:
    """Make a normalisation of each feature over the batch.

    `y_ij = γ_j (x_ij - m_j) / sqrt(v_j + ε) + β_j`,  `m_j = mean_i x_ij`,  `v_j = mean_i (x_ij - m_j)²`

    At inference give it statistics, such as `running_statistics` of many batches; then no example depends on another.

    Args:
        epsilon: ε, positive; may be traced.
        dtype: of the parameters.

    Returns:
        The layer. Its `apply` raises ValueError for fewer than two values a feature when it is given no statistics.

    Raises:
        ValueError: an ε that is not positive and finite.

    Example:
        >>> layer = batch_norm(1e-9)
        >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]], jnp.float32)
        >>> layer.apply(layer.init(jax.random.key(0), (2,)), x).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]

    Reference: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1.
    """
    _positive(epsilon)

    def apply(
        params: Mapping[str, Array], x: Float[Array, "*batch features"], statistics: Statistics | None = None
    ) -> Float[Array, "*batch features"]:
        known = batch_statistics(x) if statistics is None else statistics
        return _normalised(params, x, _along(known.mean, x), _along(known.variance, x), epsilon)

    return Normalisation(lambda key, shape: _identity_params(shape, dtype), apply, batch_statistics)


def layer_norm(epsilon: Any = EPSILON, dtype: Any = jnp.float32) -> Normalisation:
    """Make a normalisation of each example over its features.

    `y_ij = γ_j (x_ij - m_i) / sqrt(v_i + ε) + β_j`,  `m_i = mean_j x_ij`,  `v_i = mean_j (x_ij - m_i)²`

    Args:
        epsilon: ε, positive; may be traced.
        dtype: of the parameters.

    Returns:
        The layer; it takes no statistics.

    Raises:
        ValueError: an ε that is not positive and finite.

    Example:
        >>> layer = layer_norm(1e-9)
        >>> x = jnp.array([[1.0, 3.0], [30.0, 10.0]], jnp.float32)
        >>> layer.apply(layer.init(jax.random.key(0), (2,)), x).tolist()
        [[-1.0, 1.0], [1.0, -1.0]]

    Reference: Ba, Kiros and Hinton 2016, arXiv:1607.06450, eq. 4.
    """
    _positive(epsilon)

    def apply(
        params: Mapping[str, Array], x: Float[Array, "*batch features"], statistics: None = None
    ) -> Float[Array, "*batch features"]:
        del statistics
        mean, variance = _moments(x, (x.ndim - 1,))
        return _normalised(params, x, mean, variance, epsilon)

    return Normalisation(lambda key, shape: _identity_params(shape, dtype), apply, lambda x: None)


def no_norm(epsilon: Any = EPSILON, dtype: Any = jnp.float32) -> Normalisation:
    """Make the normalisation that does nothing, so that a config can name it.

    `y = x`

    Args:
        epsilon: of no effect.
        dtype: of no effect.

    Returns:
        The layer, without parameters.

    Example:
        >>> no_norm().apply({}, jnp.array([[1.0, 3.0]])).tolist()
        [[1.0, 3.0]]
    """
    del epsilon, dtype
    return Normalisation(lambda key, shape: {}, lambda params, x, statistics=None: x, lambda x: None)


def batch_statistics(x: Float[Array, "*batch features"]) -> Statistics:
    """Mean and variance of each feature over all other axes.

    `m_j = mean_i x_ij`,  `v_j = mean_i (x_ij - m_j)²`

    Args:
        x: features along the last axis.

    Returns:
        The statistics, at least float32.

    Raises:
        ValueError: fewer than two values a feature.

    Example:
        >>> found = batch_statistics(jnp.array([[1.0, 10.0], [3.0, 30.0]]))
        >>> found.mean.tolist(), found.variance.tolist()
        ([2.0, 20.0], [1.0, 100.0])
    """
    if math.prod(x.shape[:-1]) < 2:
        raise ValueError(
            f"x: batch normalisation needs two values a feature or more, got the shape {x.shape}; "
            "give a batch of examples, or statistics"
        )
    mean, variance = _moments(x, tuple(range(x.ndim - 1)))
    return Statistics(mean.reshape(-1), variance.reshape(-1))


def running_statistics(old: Any, new: Any, momentum: Any = 0.9) -> Any:
    """Average statistics over batches, the latest most.

    `r  ->  μ r + (1 - μ) s`

    Args:
        old: r, `Statistics`, or a tree of them as `Network.statistics` returns it.
        new: s, those of one more batch.
        momentum: μ, from 0 to 1; may be traced.

    Returns:
        The average, of the structure of `old`.

    Raises:
        ValueError: a momentum outside of 0 to 1.

    Example:
        >>> old, new = Statistics(jnp.zeros(1), jnp.ones(1)), Statistics(jnp.ones(1), jnp.full(1, 3.0))
        >>> found = running_statistics(old, new, 0.5)
        >>> found.mean.tolist(), found.variance.tolist()
        ([0.5], [2.0])

    Reference: Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.1.
    """
    if isinstance(momentum, float | int) and not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected a number from 0 to 1, got {momentum!r}")

    def average(before: Array, now: Array) -> Array:
        share = 1 - jnp.asarray(momentum).astype(before.dtype)
        return before + share * (now - before)

    return jax.tree.map(average, old, new)


def _positive(epsilon: Any) -> None:
    if isinstance(epsilon, float | int) and not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon: expected a positive number, got {epsilon!r}")


def _identity_params(shape: tuple[int, ...], dtype: Any) -> dict[str, Array]:
    return {"scale": jnp.ones(shape[-1], dtype), "shift": jnp.zeros(shape[-1], dtype)}


def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(x, axis=axes, keepdims=True)
    return mean, jnp.mean(jnp.square(x - mean), axis=axes, keepdims=True)


def _along(row: Array, x: Array) -> Array:
    """Give one row of features the number of axes of x."""
    return row.reshape((1,) * (x.ndim - 1) + row.shape)


def _normalised(params: Mapping[str, Array], x: Array, mean: Array, variance: Array, epsilon: Any) -> Array:
    scale, shift = (_along(params[name], x) for name in ("scale", "shift"))
    y = (x - mean) * jax.lax.rsqrt(variance + jnp.asarray(epsilon).astype(variance.dtype)) * scale + shift
    return y.astype(jnp.result_type(x, scale))


NORMALISATIONS: dict[str, Callable[..., Normalisation]] = {
    "none": no_norm,
    "batch": batch_norm,
    "layer": layer_norm,
}
