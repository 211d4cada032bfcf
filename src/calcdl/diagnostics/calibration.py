r"""Whether probabilities are true: of all events given the probability p, does a share p happen?

Events are put into bins by their probability. In each the mean probability is set beside the share that happened:

    error = Σ_b n_b/n |mean p in b - share in b|

It is not 0 for true probabilities, since events are few: how large chance alone makes it, is seen by drawing outcomes
from the probabilities and taking their error.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from calcdl.types import Array, Scalar


class Reliability(NamedTuple):
    """Sums over the events in bins of their probability.

    Attributes:
        events: how many.
        expected: the sum of their probabilities.
        happened: how many of them happened.
        error: the expected calibration error, between 0 and 1.
    """

    events: Float[Array, " bins"]
    expected: Float[Array, " bins"]
    happened: Float[Array, " bins"]
    error: Scalar


def reliability(
    probability: Float[Array, "*shape"],
    happened: Float[Array, "*shape"] | Bool[Array, "*shape"],
    weight: Float[Array, "*shape"] | None = None,
    *,
    bins: int = 10,
) -> Reliability:
    r"""Compare probabilities with what happened, in bins of equal width.

    $$ \frac{1}{\sum_i w_i} \sum_b \Bigl| \sum_{i \in b} w_i (p_i - h_i) \Bigr| $$

    Args:
        probability: p, from 0 to 1; those of all classes, or of all but one.
        happened: h, 1 or 0.
        weight: w, how much each event counts; by default 1.
        bins: how many.

    Returns:
        The sums by bin, and the error.

    Raises:
        ValueError: shapes that differ, no bin.

    Example:
        >>> found = reliability(jnp.array([0.1, 0.1, 0.9, 0.9]), jnp.array([0, 0, 1, 0]), bins=2)
        >>> found.events.tolist(), found.happened.tolist(), round(float(found.error), 3)
        ([2.0, 2.0], [0.0, 1.0], 0.25)

    Reference:
        Naeini, Cooper and Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015.
    """
    weight = jnp.ones_like(probability) if weight is None else weight
    if not jnp.shape(probability) == jnp.shape(happened) == jnp.shape(weight):
        shapes = ", ".join(str(jnp.shape(one)) for one in (probability, happened, weight))
        raise ValueError(f"probability, happened and weight: expected one shape, got {shapes}")
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins: expected a positive integer, got {bins!r}")
    p, h, w = (jnp.ravel(one).astype(probability.dtype) for one in (probability, happened, weight))
    place = jax.nn.one_hot(jnp.clip(p * bins, 0, bins - 1).astype(jnp.int32), bins, dtype=p.dtype)
    expected, true = (w * p) @ place, (w * h) @ place
    return Reliability(w @ place, expected, true, jnp.sum(jnp.abs(expected - true)) / jnp.sum(w))
