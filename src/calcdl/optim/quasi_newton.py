r"""Quasi-Newton: the inverse Hessian is learned from how the gradient changes from step to step.

    p' = p - t H g,    H chosen anew after each step so that H (g' - g) = p' - p

Update, direction and backtracking search are Optimistix's. Two things are done before they are called, without which
its rule depends on the units of the objective: a change of parameters and gradient is scaled until their product is 1
(its update leaves out what is below 2e-16, which is every change near a minimum of a small objective), and the first
estimate of H is the measured curvature along the first step instead of 1.

Prefer `line_search.lbfgs` where there are more than some hundred parameters: the matrix here has their square.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from calcdl.optim.solver import Info, Solver
from calcdl.optim.trials import first_accepted, outcome
from calcdl.optim.vectors import flatten
from calcdl.trees import array_norm
from calcdl.types import Array, Objective, Params

_LONGEST = 1e6


class _State(NamedTuple):
    params: Array
    gradient: Array
    inverse: Array
    changes: Array  # how many changes H was made of; -1 before the first step
    size: Array  # t of the first trial


def bfgs() -> Solver:
    r"""Make the method of Broyden, Fletcher, Goldfarb and Shanno.

    $$ p_{k+1} = p_k - t_k H_k \nabla f(p_k), \quad H_{k+1} y = s, \quad s = p_{k+1} - p_k, \ y = g_{k+1} - g_k $$

    A change with s'y <= 0, which no convex function has, teaches nothing and is left out; along such a way the
    objective bends downwards, so the next step begins with twice the length.

    Returns:
        A solver; its objective must be the same at every step.

    Example:
        >>> from calcdl.optim.solver import minimise
        >>> valley = lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
        >>> found = minimise(valley, jnp.array([-1.2, 1.0]), bfgs(), steps=100)
        >>> [round(float(entry), 2) for entry in found.params]
        [1.0, 1.0]

    Reference:
        Nocedal and Wright, Numerical Optimization (2006), section 6.1, equations 6.17 and 6.20.
    """
    import optimistix

    rule: Any = optimistix.BFGS(0.0, 0.0)

    def init(params: Params) -> _State:
        x = flatten(params).entries
        return _State(x, jnp.zeros_like(x), jnp.eye(len(x), dtype=x.dtype), jnp.int32(-1), jnp.ones((), x.dtype))

    def step(objective: Objective, params: Params, state: _State) -> tuple[Params, _State, Info]:
        vector = flatten(params)
        x = vector.entries
        value, gradient = jax.value_and_grad(lambda entries: objective(vector.wide(entries)))(x)
        level = value.astype(x.dtype)
        here, changes, size = _updated(rule, state, x, level, gradient)

        def evaluate(step: Array) -> tuple[Any, Array]:
            trial = vector.round(x + step)
            there = jnp.asarray(objective(vector.wide(trial)), x.dtype)
            return optimistix.FunctionInfo.Eval(there), jnp.any(trial != x)

        search_state = jax.tree.map(lambda _: size, rule.search.init(x, here))
        trial = first_accepted(rule.descent, rule.search, here, search_state, size, evaluate, x)
        moved = jnp.where(trial.accepted, vector.round(x + trial.step), x)
        status = outcome(trial.accepted, trial.promise, level, trial.noise, moves=trial.first, x=x)
        info = Info(value, vector.rounded(gradient), vector.rounded(moved - x), status)
        return vector.rounded(moved), _State(x, gradient, here.hessian_inv.as_matrix(), changes, size), info

    return Solver(init, step)


def _updated(rule: Any, state: _State, x: Array, value: Array, gradient: Array) -> tuple[Any, Array, Array]:
    """Return Optimistix's description of the objective here with H, of how many changes it is, and where to begin."""
    import lineax
    import optimistix

    s, y = x - state.params, gradient - state.gradient
    product = s @ y
    tiny = jnp.finfo(x.dtype).eps
    usable = (state.changes >= 0) & (product > tiny * array_norm(s) * array_norm(y))
    factor = jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, product, 1)), 0)
    s, y = factor * s, factor * y
    # Before anything is known of the curvature the first trial moves by one at most.
    start = 1 / jnp.maximum(array_norm(gradient), 1)
    along = 1 / jnp.where(usable, y @ y, 1)
    unit = jnp.eye(len(x), dtype=x.dtype)
    inverse = jnp.where(state.changes < 0, start * unit, state.inverse)
    inverse = jnp.where(usable & (state.changes == 0), along * unit, inverse)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    operator = lineax.PyTreeLinearOperator(inverse, shape, lineax.positive_semidefinite_tag)
    before = optimistix.FunctionInfo.EvalGradHessianInv(value, jnp.zeros_like(y), operator)
    after = optimistix.FunctionInfo.EvalGrad(value, y)
    learned, _ = rule.update_hessian(jnp.zeros_like(s), s, before, after, None)
    here = optimistix.FunctionInfo.EvalGradHessianInv(value, gradient, learned.hessian_inv)
    size = jnp.where(usable | (state.changes < 0), 1, jnp.minimum(2 * state.size, _LONGEST))
    return here, jnp.maximum(state.changes, 0) + usable.astype(jnp.int32), size
