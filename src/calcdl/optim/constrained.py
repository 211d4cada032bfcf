r"""Minimisation under equality and inequality constraints, with the multipliers, and with a word on what has none.

`minimise_constrained` runs the rounds of the augmented Lagrangian, then Newton's method on the conditions of a
solution,

    grad f(x) - sum_i lambda_i grad c_i(x) = 0,    c_i(x) = 0 where active,    lambda_i = 0 elsewhere

which doubles the digits a step, and differentiates the solution through the same equations: for c(x) = b, the
multipliers are the derivative of the minimum by b.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int

from calcdl.optim.augmented_lagrangian import Pair, as_tolerance, rounds
from calcdl.optim.kkt import (
    KKT,
    Bound,
    Constraint,
    Multipliers,
    System,
    held,
    is_qualified,
    kkt,
    lagrangian_gradient,
    size,
    system,
)
from calcdl.optim.solver import (
    CONVERGED,
    DIVERGED,
    INFEASIBLE,
    NON_FINITE,
    STATUSES,
    UNQUALIFIED,
    Solver,
    Trace,
    minimise,
)
from calcdl.trees import cast_like
from calcdl.types import Array, Objective, Params, Scalar

TRACES = ("value", "kkt", "multipliers", "params")
_NEWTON_STEPS = 10


class ConstrainedTrace(NamedTuple):
    """What was seen round by round, the start first; what was not asked for is None; the last row repeats.

    Attributes:
        value: the objective.
        kkt: the four residuals.
        multipliers: the estimates.
        params: the iterates.
    """

    value: Array | None = None
    kkt: KKT | None = None
    multipliers: Multipliers | None = None
    params: Params | None = None


class ConstrainedSolution(NamedTuple):
    """Where a constrained run ended, and why.

    Attributes:
        params: the last parameters; where the problem is infeasible, those that violate it least nearby.
        value: the objective there.
        multipliers: of all constraints: the objective's change by a unit of each constraint's right-hand side.
        kkt: how far this is from a solution.
        status: index in `STATUSES`.
        steps: rounds of the augmented Lagrangian.
        trace: what was asked for.
    """

    params: Params
    value: Scalar
    multipliers: Multipliers
    kkt: KKT
    status: Int[Array, ""]
    steps: Int[Array, ""]
    trace: ConstrainedTrace

    @property
    def verdict(self) -> str:
        """How it ended, in a sentence; for one run only, outside `jax.jit`."""
        return STATUSES[int(self.status)]


def minimise_constrained(
    objective: Objective,
    params: Params,
    *,
    equality: Constraint | None = None,
    inequality: Constraint | None = None,
    lower: Bound = None,
    upper: Bound = None,
    steps: int = 50,
    tolerance: float | Scalar | None = None,
    penalty: float | Scalar = 10.0,
    inner: Solver | None = None,
    inner_steps: int = 100,
    trace: Sequence[str] = (),
) -> ConstrainedSolution:
    r"""Minimise under constraints, with the multipliers and the proof: the residuals of the conditions.

    $$ \min f(x) \;\text{with}\; c(x) = 0,\; d(x) \ge 0,\; l \le x \le u: \quad
       \nabla f = \textstyle\sum_i \lambda_i \nabla c_i,\; \lambda \ge 0 \text{ for inequalities} $$

    Finds a local minimum near the start, which need not be feasible. Works under `jax.jit` and `jax.vmap`, with a
    status a lane. Parameters and multipliers can be differentiated, forwards and backwards, by all that objective and
    constraints close over, through the conditions of the active constraints; where no inequality has both value and
    multiplier 0, that is the derivative of the solution. Solves dense systems of the number of parameters
    and constraints.

    Args:
        objective: f, scalar function of the parameters.
        params: where to start, a pytree of floating-point arrays.
        equality: c(params) = 0, a function that returns an array or a pytree of arrays.
        inequality: d(params) >= 0, likewise.
        lower: least values: a number for all or a tree like the parameters; -inf for no bound.
        upper: largest values, inf for no bound.
        steps: rounds of the augmented Lagrangian at most.
        tolerance: the norm of the residual (gradient of the Lagrangian, equalities, min(inequality, multiplier)) that
            is small enough; by default the square root of the dtype's precision.
        penalty: rho at the start.
        inner: what minimises the augmented Lagrangian; `newton()` by default.
        inner_steps: its steps at most, a round.
        trace: what to keep of every round, any of "value", "kkt", "multipliers", "params".

    Returns:
        The solution, its multipliers, its residuals, and how it ended: infeasible and unqualified problems say so.

    Raises:
        TypeError: parameters or constraints that are not floating point, a penalty that is no number.
        ValueError: bounds of another structure, an unknown trace, a penalty or tolerance outside its interval.

    Example:
        >>> found = minimise_constrained(lambda x: x @ x, jnp.array([2.0, 0.0]), equality=lambda x: x[0] + x[1] - 1)
        >>> found.params.round(4).tolist(), round(float(found.multipliers.equality), 4)
        ([0.5, 0.5], 1.0)

    Reference:
        Nocedal and Wright (2006), Numerical Optimization, Algorithm 17.4 and section 18.1.
    """
    for name in trace:
        if name not in TRACES:
            raise ValueError(f"trace: expected any of {', '.join(TRACES)}, got {name!r}")
    params = jax.tree.map(jnp.asarray, params)
    problem = system(objective, params, equality, inequality, lower, upper)
    small = as_tolerance(tolerance, problem.ravel(params).dtype)
    solver = rounds(problem, small, penalty, inner, inner_steps)
    start = Pair(problem.ravel(params), problem.pack(Multipliers()))
    kept = ("value", "params") if trace else ()

    def solve(_: Any, start: Pair) -> tuple[Pair, Any]:
        run = minimise(lambda pair: problem.objective(pair.x), start, solver, steps=steps, tolerance=small, trace=kept)
        # What leaves beside the root has to be floating point where the root is differentiated.
        how = jnp.stack([run.status, run.steps]).astype(jnp.float32)
        return _polish(problem, run.params, run.status), (how, run.trace)

    pair, (how, rows) = jax.lax.custom_root(_residual(problem), start, solve, _solve_dense, has_aux=True)
    status, rounds_made = how.astype(jnp.int32)
    found = cast_like(problem.unravel(pair.x), params)
    slope, c = lagrangian_gradient(problem, *pair), problem.constraints(pair.x)
    return ConstrainedSolution(
        found,
        jnp.asarray(objective(found)),
        problem.unpack(pair.multipliers),
        kkt(problem, slope, c, pair.multipliers),
        _verdict(problem, pair, slope, c, status, small),
        rounds_made,
        _trace(problem, rows, trace),
    )


def _residual(problem: System) -> Callable[[Pair], Pair]:
    def residual(pair: Pair) -> Pair:
        c = problem.constraints(pair.x)
        return Pair(lagrangian_gradient(problem, *pair), held(problem, c, pair.multipliers))

    return residual


def _polish(problem: System, pair: Pair, status: Int[Array, ""]) -> Pair:
    """Newton's method on the conditions, as long as it lowers the residual."""

    def improve(carry: tuple[Pair, Pair, Scalar, Array, Array]) -> tuple[Pair, Pair, Scalar, Array, Array]:
        pair, best, least, _, count = carry
        value, slope = jax.linearize(_residual(problem), pair)
        here = size(*value)
        better = here < least
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), pair, best)
        moved = jax.tree.map(jnp.subtract, pair, _solve_dense(slope, value))
        return moved, best, jnp.where(better, here, least), better, count + 1

    goes = (status != INFEASIBLE) & (status != DIVERGED) & (status != NON_FINITE)
    start = (pair, pair, jnp.full((), jnp.inf, pair.x.dtype), goes, jnp.int32(0))
    done = jax.lax.while_loop(lambda carry: carry[3] & (carry[4] <= _NEWTON_STEPS), improve, start)
    return done[1]


def _solve_dense(product: Any, right: Pair) -> Pair:
    """Solve a linear system on pairs, given by its product, by its matrix."""
    n = right.x.size
    vector = jnp.concatenate(right)

    def column(direction: Array) -> Array:
        return jnp.concatenate(product(Pair(direction[:n], direction[n:])))

    matrix = jax.vmap(column, out_axes=1)(jnp.eye(vector.size, dtype=vector.dtype))
    found = jnp.linalg.solve(matrix, vector)
    return Pair(found[:n], found[n:])


def _verdict(
    problem: System, pair: Pair, slope: Array, c: Array, status: Int[Array, ""], small: Scalar
) -> Int[Array, ""]:
    """How it ended, seen from the polished point."""
    pair, slope, c = jax.lax.stop_gradient((pair, slope, c))
    converged = size(slope, held(problem, c, pair.multipliers)) <= small
    qualified = is_qualified(problem, pair.x, c, pair.multipliers, small)
    reached = jnp.where(qualified, jnp.int32(CONVERGED), jnp.int32(UNQUALIFIED))
    return jnp.where(converged & (status != INFEASIBLE), reached, status)


def _trace(problem: System, seen: Trace, wanted: Sequence[str]) -> ConstrainedTrace:
    if not wanted:
        return ConstrainedTrace()
    pairs: Any = seen.params

    def measure(pair: Pair) -> KKT:
        slope, c = lagrangian_gradient(problem, *pair), problem.constraints(pair.x)
        return kkt(problem, slope, c, pair.multipliers)

    rows: dict[str, Callable[[], Any]] = {
        "value": lambda: seen.value,
        "kkt": lambda: jax.vmap(measure)(pairs),
        "multipliers": lambda: jax.vmap(problem.unpack)(pairs.multipliers),
        "params": lambda: jax.vmap(problem.unravel)(pairs.x),
    }
    return ConstrainedTrace(*(rows[name]() if name in wanted else None for name in TRACES))
