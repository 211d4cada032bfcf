r"""Linear least squares in closed form, to the digits that the data hold.

The minimiser x of ||A x - b|| and its residual r solve one square system, which never squares the condition
number:

    r + A x = b,    A' r = 0

Columns are scaled by powers of two (exact), A is factorised by QR or SVD, and two steps of iterative
refinement solve the system again for what is left of its right-hand side, computed in twice the working
precision. The normal equations A'A x = A'b are never formed.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from calcdl.optim.hyperparameters import choose
from calcdl.types import Array, Scalar

Method = Literal["qr", "svd"]
REFINEMENTS = 2


class LeastSquares(NamedTuple):
    """A linear fit and what is known of its accuracy.

    Attributes:
        coefficients: the minimiser, in targets' unit per column's unit; the intercept, if asked for, comes
            first. Where the method is "qr" and the columns are dependent, they and all that follows from them
            are NaN, and `digits` is 0.
        standard_errors: standard deviations of the coefficients under independent noise of one variance; NaN
            where there are no more rows than columns.
        residuals: targets minus fit, in the targets' unit.
        residual_sum_of_squares: their squares' sum.
        r_squared: share of the targets' sum of squares that the fit explains; about the mean where there is
            an intercept, about zero otherwise.
        rank: number of independent columns.
        condition: largest over smallest singular value of the scaled columns.
        digits: decimal digits of the worst coefficient that survive when every number given is rounded to its
            dtype.
    """

    coefficients: Float[Array, " columns"]
    standard_errors: Float[Array, " columns"]
    residuals: Float[Array, " rows"]
    residual_sum_of_squares: Scalar
    r_squared: Scalar
    rank: Int[Array, ""]
    condition: Scalar
    digits: Scalar


class _Factors(NamedTuple):
    basis: Array  # orthonormal columns that span those of A
    pseudo_root: Array  # W with A^+ = W basis^T, so that (A^T A)^+ = W W^T


def linear_least_squares(
    features: Float[Array, "rows columns"],
    targets: Float[Array, " rows"],
    *,
    method: Method = "qr",
    intercept: bool = False,
) -> LeastSquares:
    r"""Fit targets by a linear combination of columns.

    $$ x = \arg\min_x \lVert A x - b \rVert_2 $$

    Works under `jit` and `vmap`; coefficients and residuals are differentiable by features and targets, to
    any order, through the system above.

    Args:
        features: the columns A, float32 or float64.
        targets: b, in the same dtype.
        method: "qr", or "svd", which gives dependent columns the shortest solution in scaled columns.
        intercept: whether a column of ones is put first.

    Returns:
        The fit, in the dtype of the data.

    Raises:
        ValueError: an unknown method, shapes that do not fit, or fewer rows than columns.
        TypeError: another dtype.

    Example:
        >>> x = jnp.asarray([[1.0], [2.0], [4.0]], jnp.float32)
        >>> fit = linear_least_squares(x, 2 * x[:, 0] + 1, intercept=True)
        >>> fit.coefficients.round(3).tolist(), int(fit.rank)
        ([1.0, 2.0], 2)

    Reference:
        Bjorck, Iterative refinement of linear least squares solutions, BIT 7 (1967) 257.
    """
    factorise = choose("method", method, METHODS)
    columns, right = jnp.asarray(features), jnp.asarray(targets)
    if columns.ndim != 2 or right.shape != columns.shape[:1]:
        got = f"{columns.shape} and {right.shape}"
        raise ValueError(f"features and targets: expected shapes (rows, columns) and (rows,), got {got}")
    if columns.dtype not in (jnp.float32, jnp.float64) or right.dtype != columns.dtype:
        got = f"{columns.dtype} and {right.dtype}"
        raise TypeError(f"features and targets: expected both float32 or both float64, got {got}")
    if intercept:
        columns = jnp.concatenate([jnp.ones_like(right)[:, None], columns], axis=1)
    rows, count = columns.shape
    if not rows >= count >= 1:
        raise ValueError(f"features: expected at least one coefficient and as many rows, got {count} and {rows}")
    scale = _power_of_two(jax.lax.stop_gradient(columns))
    scaled = columns * scale[None, :]
    factors, singular, rank = factorise(scaled)
    solution, residuals = _solve(scaled, right, factors)
    if method == "qr":
        solution, residuals = (jnp.where(rank == count, part, jnp.nan) for part in (solution, residuals))
    rss = jnp.sum(residuals**2)
    total = right - jnp.mean(right) if intercept else right
    variance = rss / (rows - count) if rows > count else jnp.full_like(rss, jnp.nan)
    spread = jnp.sqrt(variance) * jnp.linalg.norm(factors.pseudo_root, axis=1)
    return LeastSquares(
        coefficients=solution * scale,
        standard_errors=spread * scale,
        residuals=residuals,
        residual_sum_of_squares=rss,
        r_squared=1 - rss / jnp.sum(total**2),
        rank=rank,
        condition=singular[0] / singular[-1],
        digits=_digits(scaled, right, factors, solution, residuals),
    )


def digits_warning(fit: LeastSquares, wanted: float = 7.0) -> str | None:
    """Say what a fit's accuracy lacks and what to do about it.

    Args:
        fit: one fit, with concrete numbers.
        wanted: decimal digits wanted of every coefficient; the default is one that float32 can never give.

    Returns:
        A sentence, or None where nothing is lacking.

    Example:
        >>> x = jnp.asarray([[1.0], [2.0], [4.0]], jnp.float32)
        >>> print(digits_warning(linear_least_squares(x, x[:, 0])))
        float32 holds about 6.9 of the 7 digits wanted of every coefficient (condition number 1); use float64
    """
    count = fit.coefficients.shape[-1]
    if int(fit.rank) < count:
        return f"only {int(fit.rank)} of {count} columns are independent, others are not determined; drop columns"
    digits = float(fit.digits)
    if digits >= wanted:
        return None
    dtype = fit.coefficients.dtype.name
    remedy = "use float64" if dtype == "float32" else "scale or drop nearly dependent columns"
    held = f"{dtype} holds about {max(digits, 0.0):.1f} of the {wanted:g} digits wanted of every coefficient"
    return f"{held} (condition number {float(fit.condition):.3g}); {remedy}"


def _power_of_two(columns: Array) -> Array:
    """Return for each column a power of two that brings its norm between 1/2 and 2."""
    peak = _without(jnp.max(jnp.abs(columns), axis=0), "fraction")
    peak = jnp.where(peak > 0, peak, 1)
    norm = _without(jnp.linalg.norm(columns / peak[None, :], axis=0), "fraction")
    return 1 / peak / jnp.where(norm > 0, norm, 1)


def _rank(singular: Array, shape: tuple[int, ...]) -> Array:
    threshold = max(shape) * float(np.finfo(singular.dtype).eps)
    return jnp.sum(singular > threshold * singular[0], dtype=jnp.int32)


def _qr(columns: Array) -> tuple[_Factors, Array, Array]:
    basis, corner = jnp.linalg.qr(columns)
    singular = jnp.linalg.svd(corner, compute_uv=False)
    inverse = jax.scipy.linalg.solve_triangular(corner, jnp.eye(columns.shape[1], dtype=columns.dtype))
    return _Factors(basis, inverse), singular, _rank(singular, columns.shape)


def _svd(columns: Array) -> tuple[_Factors, Array, Array]:
    basis, singular, transposed = jnp.linalg.svd(columns, full_matrices=False)
    rank = _rank(singular, columns.shape)
    kept = jnp.arange(len(singular)) < rank
    inverse = jnp.where(kept, 1 / jnp.where(kept, singular, 1), 0)
    return _Factors(jnp.where(kept[None, :], basis, 0), transposed.T * inverse[None, :]), singular, rank


def _augmented(factors: _Factors, upper: Array, lower: Array) -> tuple[Array, Array]:
    """Solve r + A x = upper, A' r = lower by the factors of A."""
    inside = factors.basis.T @ upper - factors.pseudo_root.T @ lower
    return factors.pseudo_root @ inside, upper - factors.basis @ inside


@jax.custom_jvp
def _solve(columns: Array, right: Array, factors: _Factors) -> tuple[Array, Array]:
    def refine(_: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        solution, residuals = pair
        upper = -_accurate_product(columns, solution, residuals, -right)
        lower = -_accurate_product(columns.T, residuals)
        step, change = _augmented(factors, upper, lower)
        return solution + step, residuals + change

    start = _augmented(factors, right, jnp.zeros_like(columns[0]))
    refined: tuple[Array, Array] = jax.lax.fori_loop(0, REFINEMENTS, refine, start)
    return refined


@_solve.defjvp
def _solve_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    # The system itself, differentiated: its solution for other right-hand sides.
    (columns, right, factors), (columns_dot, right_dot, _) = primals, tangents
    solution, residuals = _solve(columns, right, factors)
    moved = _augmented(factors, right_dot - columns_dot @ solution, -columns_dot.T @ residuals)
    return (solution, residuals), moved


def _accurate_product(matrix: Array, vector: Array, *terms: Array) -> Array:
    """Return matrix @ vector + terms, summed in twice the working precision and rounded once."""
    product, error = _two_product(matrix, jnp.broadcast_to(vector[None, :], matrix.shape))
    high = jnp.stack([*terms, *product.T])
    low = jnp.concatenate([jnp.zeros((len(terms), len(matrix)), matrix.dtype), error.T])
    # Fused with the additions, a product may enter them unrounded, and its error would count twice.
    pair = jax.lax.optimization_barrier((high, low))
    zero = jnp.zeros((), matrix.dtype)
    high, low = jax.lax.reduce(pair, (zero, zero), _add_pairs, (0,))
    total: Array = high + low
    return total


def _two_product(left: Array, right: Array) -> tuple[Array, Array]:
    """Return the rounded product and its rounding error, by halves whose products are exact."""
    product = left * right
    left_high, right_high = _without(left, "lower half"), _without(right, "lower half")
    left_low, right_low = left - left_high, right - right_high
    error = left_high * right_high - product
    error = error + left_high * right_low + left_low * right_high
    return product, error + left_low * right_low


def _without(x: Array, part: Literal["fraction", "lower half"]) -> Array:
    """Clear all of the fraction's bits, or its lower half: what is left is a power of two, or has short products."""
    word, masks = _MASKS[x.dtype.name]
    kept = jax.lax.bitcast_convert_type(x, word) & word(masks[part])
    return jax.lax.bitcast_convert_type(kept, x.dtype)


def _add_pairs(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
    total = left[0] + right[0]
    share = total - left[0]
    error = (left[0] - (total - share)) + (right[0] - share) + (left[1] + right[1])
    high = total + error
    return high, error - (high - total)


def _digits(columns: Array, right: Array, factors: _Factors, solution: Array, residuals: Array) -> Array:
    """Bound each coefficient's change when every entry of A and b moves by half a unit in its last place."""
    size, root = jnp.abs(columns), factors.pseudo_root
    by_rows = jnp.abs(root @ factors.basis.T) @ (jnp.abs(right) + size @ jnp.abs(solution))
    by_columns = jnp.abs(root @ root.T) @ (size.T @ jnp.abs(residuals))
    epsilon = float(np.finfo(columns.dtype).eps)
    change = epsilon / 2 * (by_rows + by_columns)
    relative = jnp.max(change / jnp.abs(solution))
    digits = jnp.clip(-jnp.log10(relative), 0, -math.log10(epsilon))
    return jnp.where(jnp.isnan(digits), 0, digits)


_MASKS: dict[str, tuple[Any, dict[str, int]]] = {
    "float32": (np.uint32, {"fraction": 0xFF800000, "lower half": 0xFFFFF000}),
    "float64": (np.uint64, {"fraction": 0xFFF0000000000000, "lower half": 0xFFFFFFFFF8000000}),
}

METHODS: dict[str, Callable[[Array], tuple[_Factors, Array, Array]]] = {"qr": _qr, "svd": _svd}
