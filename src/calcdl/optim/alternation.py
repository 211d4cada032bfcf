r"""Several solvers in turn: block coordinate descent, and the moves of a game.

With `frozen`, each solver moves its own parameters and finds the others as the last one left them. Where the objective
hides from each player what it may not differentiate (`jax.lax.stop_gradient`), the same loop plays a game of two
losses; one solver of all parameters makes the moves at once.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from calcdl.optim.solver import RUNNING, Info, Solver
from calcdl.types import Objective, Params


def alternating(*solvers: Solver) -> Solver:
    r"""Make a solver whose step is a step of each of several, one after the other.

    $$ p_k^{(i)} = \mathrm{step}_i(p_k^{(i-1)}), \quad p_k^{(0)} = p_k, \quad p_{k+1} = p_k^{(n)} $$

    Args:
        *solvers: at least one, in the order of their steps; the same one may come more than once and keeps a state for
            each place.

    Returns:
        A solver whose state is that of all. In its info, the value is the first one's, gradient and update are sums,
        and it cannot go on once none of them can.

    Raises:
        ValueError: no solver.

    Example:
        >>> from calcdl.optim.descent import descent
        >>> from calcdl.optim.freezing import frozen
        >>> from calcdl.optim.solver import minimise
        >>> turns = alternating(frozen(descent("sgd", 0.5), ["b"]), frozen(descent("sgd", 0.5), ["a"]))
        >>> start = {"a": jnp.float32(1.0), "b": jnp.float32(2.0)}
        >>> found = minimise(lambda p: (p["a"] - p["b"]) ** 2 + p["b"] ** 2, start, turns, steps=1)
        >>> {name: float(value) for name, value in found.params.items()}
        {'a': 2.0, 'b': 0.0}

    Reference:
        Bertsekas (2016), Nonlinear Programming, section 3.7, for block coordinate descent.
    """
    if not solvers:
        raise ValueError("solvers: expected at least one, got none")

    def init(params: Params) -> Any:
        return tuple(solver.init(params) for solver in solvers)

    def step(objective: Objective, params: Params, state: Any) -> tuple[Params, Any, Info]:
        states, infos = [], []
        for solver, own in zip(solvers, state, strict=True):
            params, own, info = solver.step(objective, params, own)
            states.append(own)
            infos.append(info)
        gradient, update = (
            reduce(lambda total, one: jax.tree.map(jnp.add, total, one), trees)
            for trees in ([info.gradient for info in infos], [info.update for info in infos])
        )
        status = reduce(lambda held, one: jnp.where(held == RUNNING, held, one), [info.status for info in infos])
        return params, tuple(states), Info(infos[0].value, gradient, update, status)

    return Solver(init, step)
