r"""The contract between a loop and anything that minimises, and the loop that runs to a tolerance.

A solver is two pure functions. What the next step needs travels in *state*; what an observer wants to see
leaves in *info*. One loop therefore runs gradient descent, Newton's method and projected descent alike:

    state = solver.init(params)
    params, state, info = solver.step(objective, params, state)

`minimise` is that loop for one objective, to a tolerance or for a number of steps; `calcdl.train` has the one for
minibatches. How a run ended is data, an index of `STATUSES`, so that thousands may end in different ways under
`jax.vmap`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from calcdl.trees import norm
from calcdl.types import Array, Objective, Params, Scalar

RUNNING = -1
CONVERGED, STEP_LIMIT, DIVERGED, NON_FINITE, LINE_SEARCH_FAILED, STALLED, INFEASIBLE, UNQUALIFIED = range(8)
STATUSES = (
    "converged: the norm of the gradient is within the tolerance",
    "step limit: the tolerance was not reached; allow more steps or a looser tolerance",
    "diverged: the value left that of the start by a factor of 1e10; lower the learning rate, or the objective has no "
    "minimum",
    "not finite: the objective or its gradient is infinite or NaN at the next parameters; these are the last before it",
    "line search failed: no step along the direction lowers the value enough; check the gradient by check_gradient",
    "stalled: what a further step could gain is lost in the rounding of this dtype; use float64 for more digits",
    "infeasible: a point where the constraints are violated and no small change makes the violation less",
    "no qualification: the gradients of the active constraints are dependent here; multipliers may not exist or not be "
    "unique",
)
TRACES = ("value", "gradient_norm", "params")
_FAR = 1e10


class Info(NamedTuple):
    """What a step saw and did.

    Attributes:
        value: the objective at the parameters *before* the step, in the objective's unit.
        gradient: the raw gradient there (before clipping and weight decay), structure and dtypes of the
            parameters. Where there are constraints, what takes its place: it is 0 at a solution.
        update: what was added to the parameters, the same structure.
        status: `RUNNING`, or the index in `STATUSES` of why this solver cannot go on from the parameters before
            the step.
    """

    value: Scalar
    gradient: Params
    update: Params
    status: Int[Array, ""]


class Solver(NamedTuple):
    """A pair of pure functions that minimise an objective step by step.

    Attributes:
        init: `params -> state`, the state of a run that starts at these parameters.
        step: `(objective, params, state) -> (params, state, info)`, one step; the objective may differ from
            step to step (a new minibatch), the structure, shapes and dtypes of parameters and state may not.
    """

    init: Callable[[Params], Any]
    step: Callable[[Objective, Params, Any], tuple[Params, Any, Info]]


class Trace(NamedTuple):
    """What was seen at every step, the start first; what was not asked for is None.

    After the end of a run its last row is repeated: rows 0 to `steps` of the solution are its own.

    Attributes:
        value: the objective.
        gradient_norm: the norm of `Info.gradient`.
        params: the iterates, every leaf with a leading axis of the steps.
    """

    value: Float[Array, " rows"] | None = None
    gradient_norm: Float[Array, " rows"] | None = None
    params: Params | None = None


class Solution(NamedTuple):
    """Where a run ended, and why.

    Attributes:
        params: the last parameters whose value is finite.
        value: the objective there.
        gradient_norm: the norm of `Info.gradient` there.
        status: index in `STATUSES`.
        steps: how many steps were made.
        state: what the solver carries, such as multipliers.
        trace: what was asked for.
    """

    params: Params
    value: Scalar
    gradient_norm: Scalar
    status: Int[Array, ""]
    steps: Int[Array, ""]
    state: Any
    trace: Trace

    @property
    def verdict(self) -> str:
        """How it ended, in a sentence; for one run only, outside `jax.jit`."""
        return STATUSES[int(self.status)]


class _Run(NamedTuple):
    """A run before its next look: where it goes on, and the last finite point seen."""

    params: Params
    state: Any
    seen: Params
    value: Scalar
    gradient_norm: Scalar
    first: Scalar
    status: Int[Array, ""]
    looks: Int[Array, ""]


def minimise(
    objective: Objective,
    params: Params,
    solver: Solver,
    *,
    steps: int,
    tolerance: float | Scalar | None = None,
    trace: Sequence[str] = (),
) -> Solution:
    r"""Run a solver until the gradient is small, for a number of steps at most.

    $$ p_{k+1} = \mathrm{step}(p_k), \quad \text{until } \lVert \nabla f(p_k) \rVert_2 \le \text{tolerance} $$

    Works under `jax.jit` and `jax.vmap`: a lane that has ended keeps its numbers while others go on. Without a trace
    the loop ends with the last lane; with one it always makes all its steps, and can be differentiated backwards.

    Args:
        objective: scalar function of the parameters.
        params: where to start, a pytree of floating-point arrays.
        solver: what takes a step.
        steps: how many steps at most; 0 only looks at the start.
        tolerance: the norm of the gradient that is small enough, in the objective's unit a parameter's; by default the
            square root of the dtype's precision, 1.5e-8 or 3.5e-4. 0 goes on to the end.
        trace: what to keep of every step, any of "value", "gradient_norm", "params".

    Returns:
        Where the run ended and why.

    Raises:
        ValueError: `steps` negative, a negative tolerance, an unknown trace.

    Example:
        >>> from calcdl.optim import descent
        >>> found = minimise(lambda x: x**2, jnp.float32(3.0), descent("sgd", 0.1), steps=3, trace=["value"])
        >>> [round(float(value), 4) for value in found.trace.value]
        [9.0, 5.76, 3.6864, 2.3593]
        >>> found.verdict
        'step limit: the tolerance was not reached; allow more steps or a looser tolerance'
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps: expected a whole number of at least 0, got {steps!r}")
    if not isinstance(tolerance, jax.core.Tracer) and tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance: expected a number of at least 0, got {tolerance}")
    for name in trace:
        if name not in TRACES:
            raise ValueError(f"trace: expected any of {', '.join(TRACES)}, got {name!r}")
    params = jax.tree.map(jnp.asarray, params)
    run = _start(objective, params, solver)
    small = default_tolerance(run.gradient_norm.dtype) if tolerance is None else tolerance
    small = jnp.asarray(small, run.gradient_norm.dtype)

    def look(run: _Run) -> _Run:
        return _look(objective, solver, run, small, steps)

    if not trace:
        run = jax.lax.while_loop(lambda run: run.status == RUNNING, look, run)
        return _solution(run, Trace())

    def traced(run: _Run, _: None) -> tuple[_Run, Trace]:
        run = look(run)
        rows = Trace(run.value, run.gradient_norm, run.seen)
        return run, Trace(*(row if name in trace else None for name, row in zip(TRACES, rows, strict=True)))

    return _solution(*jax.lax.scan(traced, run, length=steps + 1))


def default_tolerance(dtype: Any) -> float:
    """Return the norm of a gradient that counts as small: the square root of a dtype's precision.

    Args:
        dtype: that of the norm.

    Example:
        >>> print(f"{default_tolerance(jnp.float32):.1e}")
        3.5e-04
    """
    return math.sqrt(jnp.finfo(dtype).eps)


def _start(objective: Objective, params: Params, solver: Solver) -> _Run:
    state = solver.init(params)
    info = jax.eval_shape(lambda: solver.step(objective, params, state)[2])
    value = jnp.full((), jnp.nan, info.value.dtype)
    size = jnp.full((), jnp.nan, jax.eval_shape(norm, info.gradient).dtype)
    return _Run(params, state, params, value, size, value, jnp.int32(RUNNING), jnp.int32(0))


def _look(objective: Objective, solver: Solver, run: _Run, tolerance: Scalar, steps: int) -> _Run:
    """See the value and gradient where the run is; go on from there, or end there."""
    moved, state, info = solver.step(objective, run.params, run.state)
    size = norm(info.gradient)
    first = jnp.where(run.looks == 0, info.value, run.first)
    finite = jnp.isfinite(info.value) & jnp.isfinite(size)
    status = jnp.where(run.looks >= steps, jnp.int32(STEP_LIMIT), jnp.int32(RUNNING))
    status = jnp.where(info.status == RUNNING, status, info.status.astype(jnp.int32))
    far = jnp.abs(info.value - first) > _FAR * (1 + jnp.abs(first))
    status = jnp.where(far, jnp.int32(DIVERGED), status)
    status = jnp.where(size <= tolerance, jnp.int32(CONVERGED), status)
    status = jnp.where(finite, status, jnp.int32(NON_FINITE))
    status = jnp.where(run.status == RUNNING, status, run.status)
    # A point is taken as seen in the look at which its value is found finite, also when the run ends there.
    is_new = (run.status == RUNNING) & (finite | (run.looks == 0))
    goes_on = status == RUNNING
    return _Run(
        _choose(goes_on, moved, run.params),
        _choose(goes_on, state, run.state),
        _choose(is_new, run.params, run.seen),
        jnp.where(is_new, info.value, run.value),
        jnp.where(is_new, size, run.gradient_norm),
        first,
        status,
        run.looks + goes_on.astype(jnp.int32),
    )


def _choose(condition: Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _solution(run: _Run, trace: Trace) -> Solution:
    lost = (run.status == NON_FINITE) & (run.looks > 0)
    steps = run.looks - lost.astype(jnp.int32)
    return Solution(run.seen, run.value, run.gradient_norm, run.status, steps, run.state, trace)
