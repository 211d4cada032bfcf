"""Gradient checking: what a program says its gradient is, beside what its values say.

Two numbers are compared for every entry. The analytic one is what `jax.grad` returns, custom derivatives included. The
numeric one is extrapolated from differences of values (`calculus.richardson`), once from both sides and once from
each side, and comes with an error estimate, so an entry is "wrong" only where the two lie further apart than all known
errors allow. Both are computed in float64: a 1 % slip in a formula is the same slip there, while in bfloat16 round-off
alone is as large. What the arguments' own dtype does to the gradient is reported apart.

- `check_gradient`: the table, the worst entry and a verdict, for a person.
- `compare_gradient`: the numbers behind it, for use under `jit` and `vmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, Int

from calcdl import trees
from calcdl.calculus.richardson import slopes
from calcdl.types import Array, Objective, Params

AGREES, DIFFERS, KINK, HIDDEN = range(4)
STATUSES = (
    "agrees with the differences",
    "differs from the differences",
    "at a kink: within the slopes of the two sides",
    "cannot be told: the noise of the function hides it",
)
# Beyond its estimated error the numeric side is trusted to this share of an entry.
_TOLERANCE = 1e-3
# Entries below this share of the largest one may be hidden by noise without being counted as hidden.
_NEGLIGIBLE = 1e-3
_ENTRIES_AT_ONCE = 64


class Comparison(NamedTuple):
    """An array's gradient, entry by entry.

    Attributes:
        analytic: by `jax.grad`, or as given.
        numeric: by differences of values.
        error: bound on the error of the numeric side.
        left: numeric slope from below.
        right: numeric slope from above.
        excess: how far the two lie apart, in units of what is allowed; above 1 is wrong.
        status: index into `STATUSES`.
    """

    analytic: Float[Array, "..."]
    numeric: Float[Array, "..."]
    error: Float[Array, "..."]
    left: Float[Array, "..."]
    right: Float[Array, "..."]
    excess: Float[Array, "..."]
    status: Int[Array, "..."]


class Leaf(NamedTuple):
    """One line of the table: an array of the arguments.

    Attributes:
        name: dotted name of the leaf.
        shape: its shape.
        dtype: its dtype.
        counts: number of entries by status, in the order of `STATUSES`.
        worst: index of the entry whose two sides lie furthest apart, in units of what is allowed.
        analytic: `jax.grad` there.
        numeric: the differences there.
        error: bound on the error of the numeric side there.
        excess: how far apart they are there, in units of what is allowed; above 1 is wrong.
        rounding: largest change of the gradient, relative to its largest entry, when it is computed in dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    counts: tuple[int, ...]
    worst: tuple[int, ...]
    analytic: float
    numeric: float
    error: float
    excess: float
    rounding: float


class GradientCheck(NamedTuple):
    """The outcome of `check_gradient`; print it to see the table.

    Attributes:
        passes: no entry differs, and the gradient is finite in the arguments' own dtype.
        verdict: the outcome in a sentence that names the worst entry.
        leaves: one record a leaf.
    """

    passes: bool
    verdict: str
    leaves: tuple[Leaf, ...]

    def __str__(self) -> str:
        """Return the table, worst entry of each leaf, and the verdict."""
        head = ("leaf", "shape", "dtype", "agree", "differ", "kink", "hidden", "worst entry", "analytic (grad)",
                "numeric (differences)", "± error", "rounding")  # fmt: skip
        rows = [head] + [
            (leaf.name or "x", str(leaf.shape), leaf.dtype, *map(str, leaf.counts), str(list(leaf.worst)),
             f"{leaf.analytic:.6g}", f"{leaf.numeric:.6g}", f"{leaf.error:.1e}", f"{leaf.rounding:.1e}")
            for leaf in self.leaves
        ]  # fmt: skip
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, self.verdict])


def compare_gradient(
    f: Objective, x: Params, *, gradient: Callable[[Params], Params] | None = None, tolerance: float = _TOLERANCE
) -> Any:
    """Set the gradient beside differences, entry by entry.

    `|∂f/∂x_i - D_i f| ≤ error_i + tolerance |D_i f|`

    Where the slopes from the left and from the right differ by more than their errors, any number between them is a
    subgradient and passes as a kink. Works under `jit` and `vmap`; computes in the dtype of x.

    Args:
        f: scalar function of a pytree of floating-point arrays.
        x: where.
        gradient: what is judged; None judges `jax.grad(f)`.
        tolerance: relative difference allowed beyond the estimated error.

    Returns:
        A `Comparison` for each leaf, in a tree of the structure of x.

    Raises:
        ValueError: f does not return a scalar, or the gradient has not the structure of x.

    Example:
        >>> found = compare_gradient(lambda x: jnp.sum(jnp.abs(x)), jnp.array([1.0, 0.0]))
        >>> [STATUSES[status] for status in found.status]
        ['agrees with the differences', 'at a kink: within the slopes of the two sides']
    """
    returned = jax.eval_shape(f, x)
    if not hasattr(returned, "shape") or returned.shape != ():
        raise ValueError(f"f must return a scalar, got {returned}; sum or average it first")
    analytic = (jax.grad(f) if gradient is None else gradient)(x)
    expected, got = str(jax.tree.structure(x)), str(jax.tree.structure(analytic))
    if expected != got:
        raise ValueError(f"gradient must return the structure of x, {expected}; got {got}")
    flat, unflatten = ravel_pytree(x)

    def at_entry(entry: tuple[Array, Array]) -> Comparison:
        index, slope = entry
        return _judge(lambda value: f(unflatten(flat.at[index].set(value))), flat[index], slope, tolerance)

    entries = (jnp.arange(flat.size), ravel_pytree(analytic)[0].astype(flat.dtype))
    judged = jax.lax.map(at_entry, entries, batch_size=min(_ENTRIES_AT_ONCE, flat.size))
    judged = _hide(judged, f(x), tolerance)
    leaves, structure = jax.tree.flatten(x)
    ends = np.cumsum([jnp.size(leaf) for leaf in leaves])
    columns = zip(*(jnp.split(part, ends[:-1]) for part in judged), strict=True)
    found = [Comparison(*(part.reshape(jnp.shape(leaf)) for part in column))
             for column, leaf in zip(columns, leaves, strict=True)]  # fmt: skip
    return jax.tree.unflatten(structure, found)


def check_gradient(
    f: Objective, x: Params, *, gradient: Callable[[Params], Params] | None = None, tolerance: float = _TOLERANCE
) -> GradientCheck:
    """Check the gradient of a scalar function against differences of its values, every entry of it.

    Values are taken about 600 times an entry, so this is for a small instance of a model. Leaves that are not floating
    point are left alone. All is computed in float64, whatever the dtype of x and whether or not x64 is on; the column
    `rounding` says what the dtype of x itself changes.

    Args:
        f: scalar function of a pytree; of its floating-point leaves it must accept wider dtypes.
        x: where.
        gradient: what is judged; None judges `jax.grad(f)`. Give it to check a formula derived by hand.
        tolerance: relative difference allowed beyond the estimated error of the numeric side.

    Returns:
        The verdict and the table. An entry that the noise of f hides does not fail; it is counted and said.

    Raises:
        ValueError: x has no floating-point entry, f does not return a scalar, or the gradient has not the structure of
            x.

    Example:
        >>> check = check_gradient(lambda p: jnp.sum(jnp.tanh(p["w"]) ** 2), {"w": jnp.array([0.5, -1.0])})
        >>> check.passes, check.leaves[0].counts
        (True, (2, 0, 0, 0))
    """
    floating, rest = trees.split_floating(x)
    if sum(np.size(leaf) for leaf in jax.tree.leaves(floating)) == 0:
        raise ValueError("x must have at least one floating-point entry, got none; see trees.split_floating")
    floating = jax.tree.map(jnp.asarray, floating)

    def of_floating(parts: Params) -> Array:
        return f(trees.join_floating(parts, rest))

    def own(parts: Params) -> Params:
        if gradient is None:
            return jax.grad(of_floating)(parts)
        return trees.split_floating(gradient(trees.join_floating(parts, rest)))[0]

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), floating)
        found = jax.jit(lambda parts: compare_gradient(of_floating, parts, gradient=own, tolerance=tolerance))(wide)
    narrow = own(floating)
    parts = zip(trees.names(floating), jax.tree.leaves(floating), jax.tree.leaves(narrow),
                jax.tree.leaves(found, is_leaf=lambda part: isinstance(part, Comparison)), strict=True)  # fmt: skip
    leaves = tuple(_line(*part) for part in parts if part[1].size)
    return GradientCheck(*_outcome(leaves), leaves)


def _judge(along: Callable[[Array], Array], at: Array, analytic: Array, tolerance: float) -> Comparison:
    """Judge one partial derivative, of which the estimate from both sides is the best where there is no kink."""
    both, left, right = slopes(along, at)
    allowed_of_sides = left.error + right.error + tolerance * jnp.maximum(jnp.abs(left.value), jnp.abs(right.value))
    is_kink = jnp.abs(left.value - right.value) > allowed_of_sides
    low, high = jnp.minimum(left.value, right.value), jnp.maximum(left.value, right.value)
    outside = jnp.maximum(jnp.maximum(low - analytic, analytic - high), 0)
    beside = outside / allowed_of_sides
    smooth = jnp.abs(analytic - both.value) / (both.error + tolerance * jnp.abs(both.value))
    # A kink nearby that round-off hides from the one-sided slopes spoils the two-sided one: both must object.
    excess = jnp.where(is_kink, beside, jnp.minimum(beside, smooth))
    excess = jnp.where(jnp.isfinite(analytic), jnp.where(jnp.isnan(excess), 0, excess), jnp.inf)
    status = jnp.where(excess > 1, DIFFERS, jnp.where(is_kink, KINK, AGREES)).astype(jnp.int32)
    return Comparison(analytic, both.value, both.error, left.value, right.value, excess, status)


def _hide(found: Comparison, value: Array, tolerance: float) -> Comparison:
    """Take back what was said of entries whose error hides a slip of ten times the tolerance."""
    sizes = jnp.abs(found.analytic)
    largest = jnp.max(sizes)
    negligible = jnp.where(largest > 0, _NEGLIGIBLE * largest, jnp.sqrt(jnp.finfo(value.dtype).eps) * jnp.abs(value))
    seen = found.error <= 10 * tolerance * jnp.maximum(sizes, negligible)
    return found._replace(status=jnp.where((found.status == AGREES) & ~seen, HIDDEN, found.status))


def _line(name: str, leaf: Array, narrow: Array, found: Comparison) -> Leaf:
    analytic = np.asarray(found.analytic, np.float64)
    worst = np.unravel_index(np.argmax(found.excess), analytic.shape)
    largest = np.max(np.abs(analytic))
    rounding = float(np.max(np.abs(np.asarray(narrow, np.float64) - analytic)) / (largest if largest > 0 else 1.0))
    counts = np.bincount(np.ravel(found.status), minlength=len(STATUSES))
    sides = (found.analytic, found.numeric, found.error, found.excess)
    grad, numeric, error, excess = (float(np.asarray(part)[worst]) for part in sides)
    kind, tally, place = str(leaf.dtype), tuple(counts.tolist()), tuple(map(int, worst))
    return Leaf(name, leaf.shape, kind, tally, place, grad, numeric, error, excess, rounding)


def _outcome(leaves: tuple[Leaf, ...]) -> tuple[bool, str]:
    agree, differ, kink, hidden = (sum(leaf.counts[status] for leaf in leaves) for status in range(len(STATUSES)))
    total = agree + differ + kink + hidden
    lost = [leaf for leaf in leaves if not np.isfinite(leaf.rounding)]
    if differ:
        worst = max(leaves, key=lambda leaf: leaf.excess)
        place = f"{worst.name or 'x'}[{', '.join(map(str, worst.worst))}]"
        numbers = f"grad {worst.analytic:.6g}, differences {worst.numeric:.6g} ± {worst.error:.1e}"
        return False, f"wrong in {differ} of {total} entries, worst at {place}: {numbers}"
    if lost:
        return False, f"not finite in {lost[0].dtype} at {lost[0].name or 'x'}, though finite in a wider dtype"
    extra = f", {kink} at kinks" * bool(kink) + f", {hidden} hidden by the noise of the function" * bool(hidden)
    return True, f"agrees in {agree} of {total} entries{extra}"
