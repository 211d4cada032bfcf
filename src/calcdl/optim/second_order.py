r"""Newton's method: to the minimum of the parabola that touches the objective.

    p' = p + t d,    ∇²f(p) d = -∇f(p)

Where the Hessian is not positive definite, the touching parabola has no minimum and the pure step leads to wherever the
gradient is 0: a saddle or a maximum as readily as a minimum. What is done about it is `curvature`:

| curvature | d | where it goes |
|---|---|---|
| "shift" | -(H + τ I)⁻¹ g, τ the first of a growing row for which Cholesky's factorisation exists | downhill |
| "absolute" | -Q \|Λ\|⁻¹ Qᵀ g, H = Q Λ Qᵀ | downhill, and away from saddles |
| "raw" | -H⁻¹ g by LU | to the next critical point, of any kind |

`solve="cholesky"` makes the matrix, by one Hessian-vector product a parameter; "cg" never does: conjugate gradients on
products stop at a direction of negative curvature, or when the system is solved well enough. Prefer it from some
hundred parameters on.

Reference: Nocedal and Wright, Numerical Optimization (2006), algorithms 3.3 (shift) and 7.1 (truncated conjugate
gradients); Dauphin et al., Identifying and attacking the saddle point problem, NeurIPS 2014 ("absolute").
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from calcdl.calculus.derivatives import hessian_vector_product
from calcdl.optim.hyperparameters import Number, check_value, choose
from calcdl.optim.solver import Info, Solver
from calcdl.optim.trials import FALLING, ROUNDING, outcome
from calcdl.optim.vectors import Vector, flatten
from calcdl.trees import array_norm
from calcdl.types import Array, Objective, Params

Product = Callable[[Array], Array]
_MOST_SHIFTS = 60
_MOST_HALVINGS = 60


def newton(
    *,
    solve: str = "cholesky",
    curvature: str = "shift",
    damping: Number = 0.0,
    line_search: bool | None = None,
    cg_steps: int | None = None,
) -> Solver:
    r"""Make Newton's method, with or without what keeps it from going uphill.

    $$ p_{k+1} = p_k - t_k (\nabla^2 f(p_k) + \text{damping} \, I)^{-1} \nabla f(p_k) $$

    Args:
        solve: a key of `SOLVES`: "cholesky" (of the matrix, or what `curvature` says) or "cg" (without a matrix).
        curvature: a key of `CURVATURES`, what is done about a Hessian that is not positive definite; "cg" has its own
            way, which is a "shift" to it.
        damping: added to the diagonal, at least 0.
        line_search: whether t is halved from 1 until the objective falls enough; else t = 1. By default True, but
            False for "raw", whose direction may lead uphill.
        cg_steps: the most products a step of "cg"; by default twice the number of parameters, 200 at most.

    Returns:
        A solver; its state is what the last step promised.

    Raises:
        ValueError: an unknown name, a negative damping, or choices that exclude each other.

    Example:
        >>> from calcdl.optim.solver import minimise
        >>> valley = lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
        >>> found = minimise(valley, jnp.array([-1.2, 1.0]), newton(), steps=30)
        >>> [round(float(entry), 3) for entry in found.params]
        [1.0, 1.0]
    """
    find, step_by_matrix = choose("solve", solve, SOLVES), choose("curvature", curvature, CURVATURES)
    check_value("damping", damping, "[0, inf)")
    if solve == "cg" and curvature != "shift":
        raise ValueError(f"curvature: expected shift where solve is cg, got {curvature!r}; use solve='cholesky'")
    if curvature == "raw" and line_search:
        raise ValueError("line_search: expected False where curvature is raw, got True; its direction may lead uphill")
    if cg_steps is not None and (isinstance(cg_steps, bool) or not isinstance(cg_steps, int) or cg_steps < 1):
        raise ValueError(f"cg_steps: expected a whole number of at least 1, got {cg_steps!r}")
    searched = curvature != "raw" if line_search is None else line_search

    def init(params: Params) -> Array:
        return jnp.full((), jnp.inf, flatten(params).entries.dtype)

    def step(objective: Objective, params: Params, state: Array) -> tuple[Params, Array, Info]:
        vector = flatten(params)
        x = vector.entries

        def smooth(entries: Array) -> Array:
            return jnp.asarray(objective(vector.wide(entries)))

        value, gradient = jax.value_and_grad(smooth)(x)
        product = _damped(hessian_vector_product(smooth, x), jnp.asarray(damping, x.dtype))
        direction = find(product, gradient, step_by_matrix, cg_steps)
        slope, level = direction @ gradient, value.astype(x.dtype)
        update, found = _search(smooth, vector, level, gradient, direction) if searched else (direction, True)
        moved = jnp.where(found, vector.round(x + update), x)
        # Where rounding hides the gain, the gradient may still tell a better point: as long as the promises fall.
        falls = jnp.abs(slope) < FALLING * state
        status = outcome(jnp.any(moved != x), slope, level, moves=direction, x=x, tries_on=falls)
        info = Info(value, vector.rounded(gradient), vector.rounded(moved - x), status)
        return vector.rounded(moved), jnp.abs(slope), info

    return Solver(init, step)


def _damped(product: Product, damping: Array) -> Product:
    return lambda v: product(v) + damping * v


def _search(
    smooth: Callable[[Array], Array], vector: Vector, value: Array, gradient: Array, direction: Array
) -> tuple[Array, Array]:
    """Halve the step until the objective falls enough, by Optax; return it and whether it was found."""
    # Where rounding alone may hide what the slope promises, it is no reason to reject a step.
    rounding = ROUNDING * jnp.finfo(value.dtype).eps * jnp.abs(value)
    allowed = jnp.where(jnp.abs(direction @ gradient) <= ROUNDING * rounding, rounding, 0)
    search = optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=_MOST_HALVINGS,
        decrease_factor=0.5,
        increase_factor=jnp.inf,
        max_learning_rate=1.0,
        atol=allowed,
    )

    def value_fn(entries: Array) -> Array:
        return smooth(vector.round(entries)).astype(value.dtype)

    x = vector.entries
    update, state = search.update(direction, search.init(x), x, value=value, grad=gradient, value_fn=value_fn)
    error = optax.tree.get(state, "decrease_error")
    return jnp.where(jnp.isfinite(update), update, 0), error <= allowed


def _by_matrix(product: Product, gradient: Array, step: Callable[[Array, Array], Array], cg_steps: int | None) -> Array:
    matrix = jax.vmap(product)(jnp.eye(len(gradient), dtype=gradient.dtype))
    return step((matrix + matrix.T) / 2, gradient)


def _shifted(matrix: Array, gradient: Array) -> Array:
    """Return -(H + τ I)⁻¹ g with the least τ of the row 0, s, 4 s, 16 s, ... for which Cholesky's factors exist."""
    unit = jnp.eye(len(gradient), dtype=gradient.dtype)
    least = 1e-3 * array_norm(matrix)

    def factor(shift: Array) -> Array:
        factors: Array = jnp.linalg.cholesky(matrix + shift * unit)
        return factors

    def fails(carry: tuple[Array, Array, Array]) -> Array:
        _, factors, count = carry
        return ~jnp.all(jnp.isfinite(factors)) & (count < _MOST_SHIFTS)

    def grow(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        shift, _, count = carry
        shift = jnp.maximum(4 * shift, jnp.maximum(least, least - jnp.min(jnp.diag(matrix))))
        return shift, factor(shift), count + 1

    zero = jnp.zeros((), gradient.dtype)
    _, factors, _ = jax.lax.while_loop(fails, grow, (zero, factor(zero), jnp.int32(0)))
    solved: Array = jax.scipy.linalg.cho_solve((factors, True), gradient)
    return -solved


def _absolute(matrix: Array, gradient: Array) -> Array:
    values, vectors = jnp.linalg.eigh(matrix)
    size = jnp.abs(values)
    floor = jnp.finfo(gradient.dtype).eps ** (2 / 3) * jnp.max(size)
    inverse = 1 / jnp.where(floor > 0, jnp.maximum(size, floor), 1)
    solved: Array = vectors @ (inverse * (vectors.T @ gradient))
    return -solved


def _raw(matrix: Array, gradient: Array) -> Array:
    solved: Array = jnp.linalg.solve(matrix, gradient)
    return -solved


class _Iteration(NamedTuple):
    direction: Array
    residual: Array
    search: Array
    square: Array
    tried: Array
    goes_on: Array


def _by_products(product: Product, gradient: Array, _: Any, cg_steps: int | None) -> Array:
    """Solve H d = -g by conjugate gradients, as far as is worth it, and not beyond negative curvature."""
    most = min(2 * len(gradient), 200) if cg_steps is None else cg_steps
    size = array_norm(gradient)
    # Accurate where the gradient is small, so that the convergence is faster than linear.
    enough = jnp.minimum(0.5, jnp.sqrt(size)) * size
    scale = jnp.where(size > 0, size, 1)

    def iterate(at: _Iteration) -> _Iteration:
        curved = product(at.search / scale) * scale
        bend = at.search @ curved
        positive = bend > 0
        length = at.square / jnp.where(bend == 0, 1, jnp.abs(bend))
        residual = at.residual + length * curved
        square = residual @ residual
        search = -residual + square / jnp.where(at.square > 0, at.square, 1) * at.search
        # Downhill all the same: along the first search direction, as far as the size of its curvature says.
        first = at.tried == 0
        direction = jnp.where(positive | first, at.direction + length * at.search, at.direction)
        goes_on = positive & (jnp.sqrt(square) > enough) & (at.tried + 1 < most)
        return _Iteration(direction, residual, search, square, at.tried + 1, goes_on)

    start = _Iteration(
        jnp.zeros_like(gradient),
        gradient,
        -gradient,
        gradient @ gradient,
        jnp.int32(0),
        jnp.isfinite(size) & (size > 0),
    )
    ended: _Iteration = jax.lax.while_loop(lambda at: at.goes_on, iterate, start)
    return ended.direction


CURVATURES: dict[str, Callable[[Array, Array], Array]] = {"shift": _shifted, "absolute": _absolute, "raw": _raw}
SOLVES: dict[str, Callable[..., Array]] = {"cholesky": _by_matrix, "cg": _by_products}
