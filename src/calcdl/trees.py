"""Pytrees as vectors: names of leaves, maps by name, products and norms that neither overflow nor vanish.

Products and norms accept floating-point leaves only: `split_floating` takes the others out of a tree.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from calcdl.types import Array, Scalar


def names(tree: Any) -> tuple[str, ...]:
    """Dotted name of every leaf, in the order of `jax.tree.leaves`.

    `{"a": [x, y]}  ->  ("a.0", "a.1")`

    Args:
        tree: any pytree; a bare leaf has the empty name.

    Returns:
        One name a leaf: keys, fields and positions joined by dots.

    Example:
        >>> names({"dense": {"weight": 1.0, "bias": 2.0}, "scale": [3.0]})
        ('dense.bias', 'dense.weight', 'scale.0')
    """
    return tuple(_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree))


def map_with_names(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Map of a function of (name, leaf) over a tree.

    `leaf  ->  function(name, leaf)`

    Args:
        function: takes the dotted name and the leaf, and returns the new leaf.
        tree: any pytree.

    Returns:
        A tree of the same structure.

    Example:
        >>> map_with_names(lambda name, leaf: f"{name} = {leaf}", {"bias": 1.0, "weight": [2.0]})
        {'bias': 'bias = 1.0', 'weight': ['weight.0 = 2.0']}
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_name(path), leaf), tree)


def dot(left: Any, right: Any) -> Scalar:
    """Inner product of two trees as if each were one long vector.

    `<a, b> = Σ_i a_i b_i`

    Half-precision leaves are accumulated in float32. The precision set for matrix products has no influence.

    Args:
        left: pytree of floating-point arrays.
        right: pytree of the same structure and shapes.

    Returns:
        A scalar of the widest dtype of the leaves, at least float32; 0 for empty trees.

    Raises:
        ValueError: the structures or the shapes differ.
        TypeError: a leaf is not floating point.

    Example:
        >>> float(dot({"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([3.0, 4.0])}))
        11.0
    """
    structure, other_structure = str(jax.tree.structure(left)), str(jax.tree.structure(right))
    if structure != other_structure:
        raise ValueError(f"right must have the structure of left, {structure}; got {other_structure}")
    total = jnp.zeros((), jnp.float32)
    for name, one, other in zip(names(left), jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        one, other = _accumulator(one), _accumulator(other)
        if one.shape != other.shape:
            raise ValueError(f"right must have the shape {one.shape} at {name!r}, as left; got {other.shape}")
        total = total + jnp.sum(one * other)
    return total


def norm(tree: Any) -> Scalar:
    """Euclidean norm of a tree as if it were one long vector, safe from overflow and underflow.

    `‖a‖ = sqrt(Σ_i a_i²)`, computed as in `array_norm`

    Args:
        tree: pytree of floating-point arrays.

    Returns:
        A scalar of the widest dtype of the leaves, at least float32. Zeros and empty trees give 0.

    Raises:
        TypeError: a leaf is not floating point.

    Example:
        >>> print(f"{norm({'a': jnp.array([3e-30]), 'b': jnp.array([4e-30])}):.6e}")
        5.000000e-30
    """
    leaves = [_accumulator(leaf) for leaf in jax.tree.leaves(tree)]
    if not leaves:
        return jnp.zeros((), jnp.float32)
    dtype = jnp.result_type(*leaves)
    return array_norm(jnp.stack([array_norm(leaf.astype(dtype)) for leaf in leaves]))


def array_norm(x: Float[Array, "..."], axis: int | tuple[int, ...] | None = None) -> Float[Array, "..."]:
    """Euclidean norm along axes, safe from overflow and underflow.

    `‖x‖ = m sqrt(Σ_i (x_i / m)²)`, `m = max_i |x_i|`;  `∂‖x‖/∂x_i = x_i / ‖x‖`, taken as 0 for zeros

    The squares of entries near 1e-35 vanish in float32, and with them a norm that is taken without the scale.

    Args:
        x: floating-point array of any shape.
        axis: the axes to reduce; None reduces all of them.

    Returns:
        The norms, of the dtype of x but at least float32; infinite if an entry is, NaN if one is.

    Raises:
        TypeError: x is not floating point.

    Example:
        >>> print(f"{array_norm(jnp.full(4, 1e-35, jnp.float32)):.6e}")
        2.000000e-35
    """
    axes = tuple(range(jnp.ndim(x))) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return _norm_along(axes, _accumulator(x))


def split_floating(tree: Any) -> tuple[Any, Any]:
    """Split of a tree into what can be differentiated and what cannot.

    `tree  ->  (floating, rest)`, each of the structure of the tree with None in the places of the other

    Args:
        tree: any pytree; Python floats count as floating point.

    Returns:
        The tree of floating-point leaves, which `jax.grad` takes as it is, and the tree of all other leaves.

    Example:
        >>> split_floating({"weight": 1.5, "steps": 3})
        ({'steps': None, 'weight': 1.5}, {'steps': 3, 'weight': None})
    """
    floating = jax.tree.map(lambda leaf: leaf if _is_floating(leaf) else None, tree)
    rest = jax.tree.map(lambda leaf: None if _is_floating(leaf) else leaf, tree)
    return floating, rest


def join_floating(floating: Any, rest: Any) -> Any:
    """Inverse of `split_floating`.

    `join_floating(*split_floating(tree)) == tree`

    Args:
        floating: tree with None in the places of the other leaves.
        rest: tree of the same shape with None in the places of the floating-point leaves.

    Returns:
        The whole tree.

    Raises:
        ValueError: both trees hold a leaf in the same place, or their structures differ.

    Example:
        >>> join_floating({"steps": None, "weight": 1.5}, {"steps": 3, "weight": None})
        {'steps': 3, 'weight': 1.5}
    """

    def either(one: Any, other: Any) -> Any:
        if one is not None and other is not None:
            raise ValueError(f"floating and rest must not share a place; got {one!r} and {other!r} in one")
        return other if one is None else one

    return jax.tree.map(either, floating, rest, is_leaf=lambda leaf: leaf is None)


def as_floating(x: Any) -> Array:
    """Array of a number or an array, in its own dtype if that can be differentiated.

    `x  ->  x`, whole numbers and truth values in the default float

    Args:
        x: a number or an array.

    Returns:
        The array; complex numbers stay complex.

    Example:
        >>> as_floating(3).dtype == jnp.zeros(()).dtype, as_floating(jnp.float16(3)).dtype
        (True, dtype('float16'))
    """
    array = jnp.asarray(x)
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def widen(tree: Any) -> Any:
    """Half-precision leaves in float32, in which steps are computed; all others as they are.

    `tree  ->  tree`

    Args:
        tree: pytree of floating-point arrays.

    Returns:
        A tree of the same structure.

    Example:
        >>> widen({"weight": jnp.bfloat16(1.5)})["weight"].dtype
        dtype('float32')
    """
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.promote_types(jnp.asarray(leaf).dtype, jnp.float32)), tree)


def widest(tree: Any) -> Any:
    """Dtype of the widest leaf, at least float32: the one in which steps are computed.

    `tree  ->  dtype`

    Args:
        tree: pytree of floating-point arrays.

    Returns:
        The dtype; float32 for an empty tree.

    Example:
        >>> widest({"weight": jnp.bfloat16(1.5)})
        dtype('float32')
    """
    return jnp.result_type(jnp.float32, *(jnp.asarray(leaf).dtype for leaf in jax.tree.leaves(tree)))


def cast_like(tree: Any, like: Any) -> Any:
    """Leaves rounded to the dtypes of those of another tree.

    `tree  ->  tree`

    Args:
        tree: pytree of arrays.
        like: pytree of the same structure, which has the dtypes.

    Returns:
        A tree of the same structure.

    Example:
        >>> cast_like(jnp.float32(1.5), jnp.bfloat16(0)).dtype
        dtype(bfloat16)
    """
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_floating(leaf: Any) -> bool:
    if isinstance(leaf, float):
        return True
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _accumulator(leaf: Any) -> Array:
    if not _is_floating(leaf):
        kind = leaf.dtype if hasattr(leaf, "dtype") else type(leaf).__name__
        raise TypeError(f"leaves must be floating point, got {kind}; see split_floating")
    array = jnp.asarray(leaf)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _scaled(axes: tuple[int, ...], x: Array) -> tuple[Array, Array, Array]:
    """Return x / m, the norm of that (1 for zeros), and m, kept where its reciprocal is a normal number."""
    limits = np.finfo(x.dtype)
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=axes, keepdims=True, initial=0)
    scale = jnp.clip(largest, float(limits.tiny) * 1e8, float(limits.max) * 1e-8)
    ratio = x / scale
    squares = jnp.sum(ratio**2, axis=axes, keepdims=True)
    return ratio, jnp.sqrt(jnp.where(squares == 0, 1, squares)), scale


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _norm_along(axes: tuple[int, ...], x: Array) -> Array:
    ratio, length, scale = _scaled(axes, x)
    is_zero = jnp.all(ratio == 0, axis=axes, keepdims=True)
    return jnp.squeeze(jnp.where(is_zero, 0, length * scale), axes)


# Through the formula the chain rule multiplies by m and divides by m again, and loses what lies between.
@_norm_along.defjvp
def _(axes: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    ratio, length, _ = _scaled(axes, x)
    return _norm_along(axes, x), jnp.sum(ratio / length * tangent, axis=axes)
