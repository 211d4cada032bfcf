r"""Variational autoencoders: codes with a distribution, and the gradient through a draw from it.

A `Coder` is an encoder that says where the code z of an image may lie, N(m, s²), and a decoder that says what images z
stands for. Training minimises `distortion + β rate`, the two terms of `bound`; at β = 1 that is minus the evidence
lower bound,

    ELBO = E_q[log p(x|z)] - KL(q(z|x) || N(0, 1)) <= log p(x).

`surrogate` has the gradient of the ELBO by either of its estimators; prefer the reparameterised one wherever the
decoder has a derivative by z.

Reference: Kingma and Welling 2014, Auto-encoding variational Bayes, arXiv:1312.6114, equations 3, 4 and 10.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.nn.losses import binary_cross_entropy
from calcdl.types import Array, Key, Params, Scalar

ESTIMATORS = ("reparameterised", "score function", "score function, baseline")


class Coder(NamedTuple):
    """An encoder and a decoder, with one tree of parameters.

    Attributes:
        init: ``key -> params``.
        encode: ``(params, x) -> (m, log s)``, both [rows, latents].
        decode: ``(params, z) -> output``.
        log_density: ``(params, output, x) -> log p(x|z)``, one number a row.
    """

    init: Callable[[Key], Params]
    encode: Callable[[Params, Array], Any]
    decode: Callable[[Params, Array], Array]
    log_density: Callable[[Params, Array, Array], Array]


def kl_to_standard_normal(mean: Float[Array, "*shape"], log_deviation: Float[Array, "*shape"]) -> Any:
    """Kullback-Leibler divergence of a normal distribution from the standard one.

    `KL(N(m, s²) || N(0, 1)) = (m² + s² - 1 - log s²) / 2`

    Args:
        mean: m.
        log_deviation: log s.

    Returns:
        The divergence of each element, in nats, with its digits where s is near 1.

    >>> print(kl_to_standard_normal(jnp.array([0.0, 1.0]), jnp.array([0.0, 0.0])))
    [0.  0.5]
    """
    return (mean**2 + jnp.expm1(2 * log_deviation) - 2 * log_deviation) / 2


def log_normal(z: Any, mean: Any, log_deviation: Any) -> Any:
    """Log density of a normal distribution.

    `log N(z; m, s²) = -((z - m) / s)² / 2 - log s - log(2π) / 2`

    Args:
        z: where.
        mean: m.
        log_deviation: log s.

    Returns:
        The log density of each element, in nats.

    >>> print(f"{log_normal(jnp.float32(0.0), 0.0, 0.0):.4f}")
    -0.9189
    """
    return -(((z - mean) * jnp.exp(-log_deviation)) ** 2) / 2 - log_deviation - math.log(2 * math.pi) / 2


def log_binomial(logit: Float[Array, "*shape"], share: Float[Array, "*shape"], trials: int) -> Float[Array, "*shape"]:
    """Log probability of a count of successes in n trials.

    `log p(k) = log(n! / (k! (n - k)!)) - n l`,  with k = n y, and l the cross-entropy of the share y

    Args:
        logit: log-odds of a success.
        share: y = k / n, for a whole number k from 0 to n.
        trials: n.

    Returns:
        The log probability of each element, in nats.

    >>> print(f"{jnp.exp(log_binomial(jnp.float32(0.0), jnp.float32(0.5), 2)):.4f}")
    0.5000
    """
    ways = jnp.asarray([math.log(math.comb(trials, count)) for count in range(trials + 1)], share.dtype)
    return ways[jnp.rint(trials * share).astype(jnp.int32)] - trials * binary_cross_entropy(logit, share)


def bound(
    coder: Coder, params: Params, x: Float[Array, "rows columns"], noise: Float[Array, "rows latents"]
) -> Float[Array, "2 rows"]:
    """Distortion and rate of each row, by one draw of its code: the ELBO is minus their sum.

    `z = m + s e`,  `distortion = -log p(x|z)`,  `rate = Σ KL(N(m, s²) || N(0, 1))`

    Args:
        coder: encoder and decoder.
        params: their parameters.
        x: rows.
        noise: e, standard normal.

    Returns:
        The two terms, in nats.

    >>> unit = Coder(lambda key: (), lambda p, x: (x, 0 * x), lambda p, z: z, lambda p, z, x: -jnp.sum((x - z) ** 2, 1))
    >>> print(bound(unit, (), jnp.ones((1, 2)), jnp.full((1, 2), 3.0)))
    [[18.]
     [ 1.]]
    """
    mean, log_deviation = coder.encode(params, x)
    output = coder.decode(params, mean + jnp.exp(log_deviation) * noise)
    rate = jnp.sum(kl_to_standard_normal(mean, log_deviation), axis=-1)
    return jnp.stack([-coder.log_density(params, output, x), rate])


def surrogate(
    estimator: str,
    coder: Coder,
    params: Params,
    x: Float[Array, "rows columns"],
    noise: Float[Array, "rows latents"],
    baseline: Float[Array, " rows"] | None = None,
) -> Scalar:
    """Return a number whose gradient by the encoder's parameters estimates that of the mean ELBO.

    `∇E_q[f] = E[∇f(m + s e)] = E_q[(f(z) - b) ∇log q(z)]`,  with f = log p(x|z), and KL in closed form

    Args:
        estimator: one of `ESTIMATORS`: the first expectation; the second with b = 0; the second.
        coder: encoder and decoder.
        params: their parameters.
        x: rows.
        noise: e, standard normal.
        baseline: b, a number a row that does not depend on e, for the last estimator.

    Returns:
        The number; only its gradient has a meaning.

    Raises:
        ValueError: an unknown estimator, or the last without a baseline.

    >>> unit = Coder(lambda key: (), lambda p, x: (p * x, 0 * x), lambda p, z: z, lambda p, z, x: jnp.sum(z, 1))
    >>> slope = jax.grad(lambda p, name: surrogate(name, unit, p, jnp.ones((1, 1)), jnp.ones((1, 1))))
    >>> float(slope(2.0, "reparameterised")), float(slope(2.0, "score function"))
    (-1.0, 1.0)

    Reference: Williams 1992, Simple statistical gradient-following algorithms, theorem 1, for the score function.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: expected one of {'; '.join(ESTIMATORS)}, got {estimator!r}")
    if estimator == ESTIMATORS[0]:
        return -jnp.mean(jnp.sum(bound(coder, params, x, noise), axis=0))
    mean, log_deviation = coder.encode(params, x)
    z = jax.lax.stop_gradient(mean + jnp.exp(log_deviation) * noise)
    size = jax.lax.stop_gradient(coder.log_density(params, coder.decode(params, z), x))
    if estimator == ESTIMATORS[2]:
        if baseline is None:
            raise ValueError("baseline: expected one number a row for this estimator, got None")
        size = size - baseline
    log_q = log_normal(z, mean, log_deviation)
    return jnp.mean(jnp.sum(size[:, None] * log_q - kl_to_standard_normal(mean, log_deviation), axis=-1))
