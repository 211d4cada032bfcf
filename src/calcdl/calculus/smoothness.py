"""Whether a derivative exists: the limit of the difference quotient, taken from both sides."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Int

from calcdl.calculus import limits
from calcdl.calculus.derivatives import derivative
from calcdl.trees import as_floating
from calcdl.types import Array, Scalar

STATUSES = (
    "differentiable here",
    "not differentiable here: the slopes of the two sides differ",
    "not differentiable here: the slope has no bound",
    "not differentiable here: the difference quotient oscillates",
    "defined on one side of here only, with a slope on that side",
    "not decided: the difference quotient does not settle, or round-off hides it",
)
DIFFERENTIABLE, CORNER, STEEP, OSCILLATES, ONE_SIDED, UNDECIDED = range(6)


class Differentiability(NamedTuple):
    """Whether a derivative exists, by the limits of the difference quotient.

    Attributes:
        value: the derivative, or the slope of the one side there is; NaN where neither exists.
        error: bound on its error.
        status: index into `STATUSES`.
        quotient: the limit of the quotient; its `approaches` are those of negative and of positive steps.
    """

    value: Scalar
    error: Scalar
    status: Int[Array, ""]
    quotient: limits.Limit

    @property
    def verdict(self) -> str:
        """The status in words; for concrete results."""
        return STATUSES[int(self.status)]


def differentiability(f: Callable[[Scalar], Scalar], x: Scalar | float, order: int = 1) -> Differentiability:
    r"""Ask whether a derivative exists at a point, and take it as the limit that it is.

    $$ f^{(n)}(x) = \lim_{h \to 0} \frac{f^{(n-1)}(x + h) - f^{(n-1)}(x)}{h} $$

    `jax.grad` cannot tell: it follows one branch of |x| at 0. The lower derivatives are those of JAX, with its
    conventions at x. As any limit taken by a computer this one can be fooled by what happens closer to x than numbers
    are.

    Args:
        f: function of a scalar, continuous at x.
        x: where; may be traced.
        order: n, of the derivative that is asked for, at least 1.

    Returns:
        The verdict with its evidence, in the dtype of x.

    Raises:
        ValueError: order is not a whole number of at least 1.

    Example:
        >>> for f in (jnp.sin, jnp.abs, jnp.cbrt):
        ...     print(differentiability(f, 0.0).verdict)
        differentiable here
        not differentiable here: the slopes of the two sides differ
        not differentiable here: the slope has no bound
        >>> differentiability(lambda x: x * jnp.abs(x), 0.0, order=2).verdict
        'not differentiable here: the slopes of the two sides differ'
    """
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"order must be a whole number of at least 1, got {order!r}")
    x, lower = as_floating(x), derivative(f, order - 1)
    quotient = limits.limit(lambda h: (lower(x + h) - lower(x)) / h, jnp.zeros_like(x))
    sides = quotient.approaches.status
    exists = sides == limits.CONVERGES

    def of_either(*statuses: int) -> Array:
        return jnp.any(jnp.isin(sides, jnp.asarray(statuses)))

    status = jnp.select(
        [quotient.status == limits.CONVERGES, jnp.all(exists), of_either(limits.UP, limits.DOWN),
         of_either(limits.OSCILLATES), jnp.any(exists) & of_either(limits.UNDEFINED)],
        [jnp.int32(number) for number in range(UNDECIDED)],
        UNDECIDED,
    )  # fmt: skip
    side = jnp.argmax(exists)
    value = jnp.where(status == ONE_SIDED, quotient.approaches.value[side], quotient.value)
    error = jnp.where(status == ONE_SIDED, quotient.approaches.error[side], quotient.error)
    known = (status == DIFFERENTIABLE) | (status == ONE_SIDED)
    return Differentiability(jnp.where(known, value, jnp.nan), jnp.where(known, error, jnp.inf), status, quotient)
