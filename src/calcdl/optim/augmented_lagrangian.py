r"""The augmented Lagrangian: a constrained problem as a few smooth ones, between which multipliers are learned.

For constraints c >= 0, or = 0:

    L(x) = f(x) + (1/2 rho) sum_i [s_i(x)^2 - lambda_i^2],    s = lambda - rho c(x), and max(s, 0) for inequalities
    x  <-  argmin L,    lambda  <-  s(x),    rho  <-  10 rho where the violation did not fall to a quarter

Since grad L = grad f - sum_i s_i grad c_i, every round ends stationary, and the rounds bring feasibility: the error
falls by a factor of the order of 1 / rho a round. Where no rho brings it, one round leaves the objective out and looks
for the least violation: what is left there is infeasible, or has dependent gradients, or is a new start.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from calcdl.optim.hyperparameters import check_value
from calcdl.optim.kkt import (
    Bound,
    Constraint,
    Multipliers,
    System,
    held,
    is_qualified,
    lagrangian_gradient,
    size,
    system,
    violation,
)
from calcdl.optim.second_order import newton
from calcdl.optim.solver import (
    DIVERGED,
    INFEASIBLE,
    NON_FINITE,
    RUNNING,
    STALLED,
    UNQUALIFIED,
    Info,
    Solution,
    Solver,
    minimise,
)
from calcdl.trees import cast_like
from calcdl.types import Array, Objective, Params, Scalar

_GROWTH = 10.0
_ENOUGH = 0.25


class Residual(NamedTuple):
    """What is 0 at a solution and nowhere else; it takes the place of the gradient in `Info`.

    Attributes:
        stationarity: gradient of the Lagrangian, a vector of the parameters.
        constraints: c for equalities, min(c, multiplier) for inequalities.
        dependence: [1] where all that is 0 but the gradients of the active constraints are dependent, else [0].
    """

    stationarity: Array
    constraints: Array
    dependence: Array


class AugmentedLagrangianState(NamedTuple):
    """What the next round needs.

    Attributes:
        multipliers: the present estimate.
        penalty: rho, in the objective's unit a squared constraint's.
        violation: the largest one when the last round ended, with what complementarity lacks.
        weight: 1, or 0 where the next point is the least violation: the objective was left out.
        restored: whether that has been done.
        failure: `RUNNING`, or the status in which the next round ends.
    """

    multipliers: Multipliers | None
    penalty: Scalar
    violation: Scalar
    weight: Scalar
    restored: Bool[Array, ""]
    failure: Int[Array, ""]


class Pair(NamedTuple):
    """Parameters and multipliers, a vector each: what the rounds on vectors move."""

    x: Array
    multipliers: Array


def augmented_lagrangian(
    equality: Constraint | None = None,
    inequality: Constraint | None = None,
    *,
    lower: Bound = None,
    upper: Bound = None,
    tolerance: float | Scalar | None = None,
    penalty: float | Scalar = 10.0,
    inner: Solver | None = None,
    inner_steps: int = 100,
) -> Solver:
    r"""Make a solver whose step is one round of the augmented Lagrangian: a minimisation, then new multipliers.

    $$ x_{k+1} = \arg\min_x L(x, \lambda_k, \rho_k), \quad \lambda_{k+1} = \lambda_k - \rho_k c(x_{k+1}) $$

    Its state holds the multipliers; `Info.gradient` is a `Residual`, 0 at a solution. `minimise_constrained` prefers
    this and polishes what it finds.

    Args:
        equality: c(params) = 0, a function that returns an array or a pytree of arrays.
        inequality: d(params) >= 0, likewise.
        lower: least values: a number for all or a tree like the parameters; -inf for no bound.
        upper: largest values, inf for no bound.
        tolerance: the residual at which constraints are tested for dependent gradients, ten times what the inner
            minimisation goes to; by default the square root of the dtype's precision, as in `minimise`.
        penalty: rho at the start.
        inner: what minimises the augmented Lagrangian; `newton()` by default.
        inner_steps: its steps at most, a round.

    Returns:
        A solver.

    Raises:
        TypeError: a penalty that is no number.
        ValueError: a penalty or a tolerance outside its interval.

    Example:
        >>> solver = augmented_lagrangian(equality=lambda x: x[0] + x[1] - 1)
        >>> found = minimise(lambda x: x @ x, jnp.array([2.0, 0.0]), solver, steps=20)
        >>> found.params.round(3).tolist(), round(float(found.state.multipliers.equality), 3)
        ([0.5, 0.5], 1.0)

    Reference:
        Hestenes (1969), Multiplier and gradient methods, J. Optimization Theory and Applications 4; Powell (1969).
    """
    check_value("penalty", penalty, "(0, inf)")

    def build(objective: Objective, params: Params) -> tuple[System, Solver]:
        problem = system(objective, params, equality, inequality, lower, upper)
        small = as_tolerance(tolerance, problem.ravel(params).dtype)
        return problem, rounds(problem, small, penalty, inner, inner_steps)

    def init(params: Params) -> AugmentedLagrangianState:
        problem, solver = build(lambda _: jnp.zeros(()), params)
        start = Pair(problem.ravel(params), problem.pack(Multipliers()))
        first: AugmentedLagrangianState = solver.init(start)
        return first._replace(multipliers=problem.unpack(start.multipliers))

    def step(
        objective: Objective, params: Params, state: AugmentedLagrangianState
    ) -> tuple[Params, AugmentedLagrangianState, Info]:
        problem, solver = build(objective, params)
        pair = Pair(problem.ravel(params), problem.pack(state.multipliers or Multipliers()))
        moved, after, info = solver.step(objective, pair, state._replace(multipliers=None))
        found = cast_like(problem.unravel(moved.x), params)
        info = info._replace(
            gradient=Residual(*jnp.split(info.gradient, [len(pair.x), len(info.gradient) - 1])),
            update=cast_like(problem.unravel(info.update.x), params),
        )
        return found, after._replace(multipliers=problem.unpack(moved.multipliers)), info

    return Solver(init, step)


def rounds(problem: System, small: Scalar, penalty: Any, inner: Solver | None, inner_steps: int) -> Solver:
    """Make the solver on vectors, whose parameters are x and the multipliers together."""
    check_value("penalty", penalty, "(0, inf)")
    dtype = small.dtype
    root = float(jnp.finfo(dtype).eps) ** 0.5
    first, largest = jnp.asarray(penalty, dtype), jnp.asarray(1 / root, dtype)
    # Where no constraint is felt and the objective is linear there is no curvature at all: then a long step.
    method = newton(damping=root) if inner is None else inner

    def init(pair: Pair) -> AugmentedLagrangianState:
        one, far = jnp.ones((), dtype), jnp.full((), jnp.inf, dtype)
        return AugmentedLagrangianState(None, first, far, one, jnp.asarray(False), jnp.int32(RUNNING))

    # Compiled, so that it is traced once though the loop around it traces a step twice.
    @jax.jit
    def minimise_augmented(x: Array, prices: Array, rho: Scalar, weight: Scalar, enough: Scalar) -> Solution:
        return minimise(
            lambda x: _augmented(problem, x, prices, rho, weight), x, method, steps=inner_steps, tolerance=enough
        )

    def step(_: Objective, pair: Pair, state: AugmentedLagrangianState) -> tuple[Pair, Any, Info]:
        x, multipliers = pair
        residual, status = _judge(problem, pair, state, small)
        gives_up = (state.penalty >= largest) & ~state.restored
        weight = jnp.where(gives_up & (state.weight > 0), 0, 1).astype(dtype)
        prices = jnp.where(weight > 0, multipliers, 0)
        rho = jnp.where(weight > 0, jnp.where(state.weight > 0, state.penalty, first), 1)
        enough = jnp.where(weight > 0, small / 10, 0)
        found = minimise_augmented(x, prices, rho, weight, enough)
        is_lost = (found.status == DIVERGED) | (found.status == NON_FINITE)
        moved = jnp.where(is_lost, x, found.params)
        c = problem.constraints(moved)
        shifted = prices - rho * c
        shifted = jnp.where(problem.is_equality, shifted, jnp.maximum(shifted, 0))
        updated = jnp.where(is_lost | (weight == 0), prices, jnp.clip(shifted, -largest, largest))
        missed = _missed(problem, c, prices, rho)
        # What is lost in rounding is no lack of progress, whatever the tolerance.
        least = jnp.maximum(small / 10, 10 * root**2)
        improves = ~is_lost & (missed <= jnp.maximum(_ENOUGH * state.violation, least))
        grown = jnp.where(improves | (weight == 0), rho, jnp.minimum(rho * _GROWTH, largest))
        after = AugmentedLagrangianState(
            None,
            jnp.where(weight > 0, grown, first),
            jnp.where(is_lost, state.violation, missed),
            weight,
            state.restored | (weight == 0),
            jnp.where(is_lost & (rho >= largest), found.status, jnp.int32(RUNNING)),
        )
        new = Pair(moved, updated)
        return new, after, Info(problem.objective(x), residual, jax.tree.map(jnp.subtract, new, pair), status)

    return Solver(init, step)


def _augmented(problem: System, x: Array, multipliers: Array, rho: Scalar, weight: Scalar) -> Scalar:
    """Evaluate the augmented Lagrangian, without the difference of squares that would lose its digits."""
    c = problem.constraints(x)
    felt = problem.is_equality | (rho * c <= multipliers)
    terms = jnp.where(felt, c * (rho * c / 2 - multipliers), -(multipliers**2) / (2 * rho))
    value = problem.objective(x)
    return jnp.where(weight > 0, value, 0) + jnp.sum(terms)


def _missed(problem: System, c: Array, multipliers: Array, rho: Scalar) -> Scalar:
    """Return the largest of |c_E| and |min(c_I, multiplier / rho)|."""
    return jnp.max(jnp.abs(jnp.where(problem.is_equality, c, jnp.minimum(c, multipliers / rho))), initial=0)


def _judge(problem: System, pair: Pair, state: AugmentedLagrangianState, small: Scalar) -> tuple[Array, Int[Array, ""]]:
    """Return the residual at the present point as a vector, and whether a round from here makes sense."""
    c, slope = problem.constraints(pair.x), lagrangian_gradient(problem, pair.x, pair.multipliers)
    rest = held(problem, c, pair.multipliers)
    violated = jnp.max(jnp.abs(violation(problem, c)), initial=0) > small
    is_least = state.weight == 0
    depends = ~is_qualified(problem, pair.x, c, pair.multipliers, small)
    dependent = depends & ((size(slope, rest) <= small) | (is_least & ~violated))
    stuck = (state.penalty >= jnp.finfo(small.dtype).eps ** -0.5) & state.restored
    status = jnp.where(stuck, jnp.int32(STALLED), jnp.int32(RUNNING))
    status = jnp.where(state.failure == RUNNING, status, state.failure)
    status = jnp.where(dependent, jnp.int32(UNQUALIFIED), status)
    status = jnp.where(is_least & violated, jnp.int32(INFEASIBLE), status)
    return jnp.concatenate([slope, rest, dependent.astype(small.dtype)[None]]), status


def as_tolerance(tolerance: float | Scalar | None, dtype: Any) -> Any:
    """Tolerance in the dtype of the problem; by default the square root of its precision."""
    if isinstance(tolerance, jax.core.Tracer):
        return tolerance.astype(dtype)
    check_value("tolerance", 0.0 if tolerance is None else tolerance, "[0, inf)")
    # What is known before anything runs stays a number, which also holds where a function is being traced.
    return np.dtype(dtype).type(jnp.finfo(dtype).eps ** 0.5 if tolerance is None else tolerance)
