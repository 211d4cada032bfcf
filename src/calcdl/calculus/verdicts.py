"""What can be said of an approach to a limit, and how the readings of its values are joined to that."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float, Int

from calcdl.calculus.shells import Reading
from calcdl.types import Array

STATUSES = (
    "converges",
    "tends to +infinity",
    "tends to -infinity",
    "does not exist: the values oscillate",
    "does not exist: the sides or paths differ",
    "not defined on a side from which it is approached",
    "not decided: the values move too slowly or too irregularly to tell",
    "not decided: round-off hides the values",
)
CONVERGES, UP, DOWN, OSCILLATES, DIFFERS, UNDEFINED, SLOW, ROUGH = range(8)


class Approach(NamedTuple):
    """A limit from one side, or along one path.

    Attributes:
        value: the limit; infinite, or NaN where it does not exist; the best guess where it is not decided.
        error: estimate of its error; infinite where it is not decided, NaN where there is no finite limit.
        status: index into `STATUSES`.
        points: the points, the farthest first.
        values: the function there.
        noise: how far round-off may have moved each value.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]
    status: Int[Array, ""]
    points: Float[Array, " points"]
    values: Float[Array, " points"]
    noise: Float[Array, " points"]

    @property
    def verdict(self) -> str:
        """The status in words; for concrete results."""
        return STATUSES[int(self.status)]


def verdict_of(main: Reading, deep: Reading, hollow: Array) -> tuple[Array, Array, Array]:
    """Join what the nearer and the nearest shells say: value, error and status."""
    grows = jnp.where(main.grows != 0, main.grows, jnp.where(main.settled | main.oscillates, 0, deep.grows))
    grows = jnp.where((deep.clear >= 6) & (deep.grows != grows), 0, grows)
    doubtful = (main.grows != 0) & (grows == 0)
    oscillates = main.oscillates | (deep.oscillates & ~main.settled)
    better = deep.settled & ((deep.error < main.error) | ~main.settled)
    value, error = jnp.where(better, deep.value, main.value), jnp.where(better, deep.error, main.error)
    settled = (main.settled | deep.settled) & ~doubtful
    undecided = jnp.where(main.clear >= 3, SLOW, ROUGH)
    status = jnp.where(oscillates, OSCILLATES, jnp.where(settled, CONVERGES, undecided))
    status = jnp.where(grows > 0, UP, jnp.where(grows < 0, DOWN, status))
    status = jnp.where(hollow, UNDEFINED, status)
    return *with_status(value, error, status), status.astype(jnp.int32)


def with_status(value: Array, error: Array, status: Array) -> tuple[Array, Array]:
    """Leave a value only to those that have one."""
    infinite = (status == UP) | (status == DOWN)
    none = (status == OSCILLATES) | (status == DIFFERS) | (status == UNDEFINED)
    infinity = jnp.where(status == UP, jnp.full_like(value, jnp.inf), -jnp.inf)
    value = jnp.where(infinite, infinity, jnp.where(none, jnp.nan, value))
    return value, jnp.where(none | infinite, jnp.nan, jnp.where(status == CONVERGES, error, jnp.inf))
