"""Parameters as one vector, in the dtype in which steps are computed, for methods that solve linear systems."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from calcdl.trees import cast_like, widen
from calcdl.types import Array, Params


class Vector(NamedTuple):
    """A tree as a vector, and the ways back.

    Attributes:
        entries: all leaves one after another, in the widest of their dtypes, at least float32.
        wide: makes the tree of a vector, half precision as float32.
        rounded: makes the tree of a vector in the leaves' own dtypes.
    """

    entries: Float[Array, " n"]
    wide: Callable[[Array], Params]
    rounded: Callable[[Array], Params]

    def round(self, entries: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return the vector that is left when every entry is rounded to the dtype of its leaf."""
        return flatten(self.rounded(entries)).entries


def flatten(params: Params) -> Vector:
    """Write a tree of floating-point arrays as one vector.

    `{"a": [x, y], "b": z}  ->  (x, y, z)`

    Args:
        params: pytree of floating-point arrays.

    Returns:
        The vector with its ways back.

    Example:
        >>> vector = flatten({"a": jnp.ones(2, jnp.bfloat16), "b": jnp.float32(3.0)})
        >>> vector.entries.tolist(), vector.rounded(2 * vector.entries)["a"].dtype
        ([1.0, 1.0, 3.0], dtype(bfloat16))
    """
    entries, back = ravel_pytree(widen(params))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.asarray(leaf).dtype), params)

    def wide(entries: Array) -> Params:
        return back(entries)

    def rounded(entries: Array) -> Params:
        return cast_like(back(entries), shapes)

    return Vector(entries, wide, rounded)
