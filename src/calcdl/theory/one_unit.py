r"""One unit that learns a line: what its activation allows, and how fast a linear one arrives.

The unit :math:`\phi(w x + b)` is to become :math:`t = s x + c` and sees standard normal inputs, new ones at every step
of gradient descent. The range of its activation alone bounds the loss, for any weights (`least_loss`). For the identity
the mean over all runs is known at every step (`identity_loss`), noise of the batches included, and so is the learning
rate beyond which it grows (`identity_limit`).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.types import Array, Scalar

Number = Float[Array, ""] | float


def least_loss(least: Number, greatest: Number, slope: Number, intercept: Number) -> Scalar:
    r"""Return the least mean square error of any function of x with values in a range.

    `E[(t - greatest)_+²] + E[(least - t)_+²],  t ~ N(intercept, slope²)`,  that of the nearest value in the range

    Args:
        least: lower end of the range; -inf where there is none.
        greatest: upper end, above the lower; inf where there is none.
        slope: s, not 0.
        intercept: c.

    Returns:
        The bound, in the unit of the target squared; 0 for a range without ends. Reached by the ReLU, and by any
        activation that is a straight line cut off at the ends of its range.

    Example:
        >>> print(f"{least_loss(0.0, math.inf, 2.0, 1.0):.3f}, {least_loss(-math.inf, math.inf, 2.0, 1.0):.3f}")
        0.839, 0.000
    """
    least, greatest, slope, intercept = _arrays(least, greatest, slope, intercept)
    return _beyond(greatest, intercept, slope) + _beyond(-least, -intercept, slope)


def identity_loss(
    learning_rate: Number, steps: int, batch: int, slope: Number, intercept: Number, start_variance: Number
) -> Float[Array, " steps"]:
    r"""Return the expected loss of the identity before every step of stochastic gradient descent.

    `p' = ((1 - 2 η)² + 8 η² / n) p + (4 η² / n) q,  q' = (4 η² / n) p + (1 - 2 η)² q,  loss = p + q`

    p and q are the mean squares of w - s and b - c over the runs. With the n inputs x of a batch an error changes by
    `-2 η A`, A the mean of `(x, 1) (x, 1)'`, and `E[A] = I`, `E[A_11²] = 1 + 2/n`, `E[A_12²] = 1/n`, `A_22 = 1`.

    Args:
        learning_rate: η, of the mean of the squared error over the batch.
        steps: how many losses.
        batch: n, normal inputs a step.
        slope: s.
        intercept: c.
        start_variance: variance of w and of b at the start, where their means are 0.

    Returns:
        One loss a step, in the unit of the target squared.

    Example:
        >>> identity_loss(0.5, steps=3, batch=8, slope=2.0, intercept=1.0, start_variance=0.0).tolist()
        [5.0, 1.625, 0.484375]
    """
    rate, slope, intercept, variance = _arrays(learning_rate, slope, intercept, start_variance)
    keep, noise = (1 - 2 * rate) ** 2, 4 * rate**2 / batch

    def step(errors: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        p, q = errors
        return ((keep + 2 * noise) * p + noise * q, noise * p + keep * q), p + q

    return jax.lax.scan(step, (slope**2 + variance, intercept**2 + variance), length=steps)[1]


def identity_limit(batch: int) -> float:
    r"""Return the learning rate below which `identity_loss` goes to 0, and above which it grows without end.

    `η = 1 / (1 + (1 + √2) / n)`,  where the recursion of `identity_loss` has the eigenvalue 1

    Without noise it is 1, which is 2 divided by the largest eigenvalue of the Hessian.

    Args:
        batch: n, normal inputs a step.

    Returns:
        The limit, between 0.29 and 1.

    Example:
        >>> round(identity_limit(10), 4)
        0.8055
    """
    return 1 / (1 + (1 + math.sqrt(2)) / batch)


def _beyond(end: Array, mean: Array, deviation: Array) -> Array:
    """Return the mean square by which a normal variable exceeds an end; 0 for an end at infinity."""
    finite = jnp.isfinite(end)
    c = (jnp.where(finite, end, mean) - mean) / jnp.abs(deviation)
    density = jnp.exp(-(c**2) / 2) / math.sqrt(2 * math.pi)
    share = (1 + c**2) * jax.lax.erfc(c / math.sqrt(2)) / 2 - c * density
    return jnp.where(finite, deviation**2 * share, 0)


def _arrays(*numbers: Number) -> tuple[Array, ...]:
    dtype = jnp.promote_types(jnp.result_type(*numbers, 1.0), jnp.float32)
    return tuple(jnp.asarray(number, dtype) for number in numbers)
