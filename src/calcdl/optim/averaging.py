r"""Averaged iterates: the mean of where a solver has been is often a better answer than where it is.

Noise of minibatches makes iterates wander about a minimum; their mean wanders less, by the number of independent
positions in it (Polyak and Ruppert), without a smaller rate.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int

from calcdl.optim.hyperparameters import Number, check_value
from calcdl.optim.solver import Info, Solver
from calcdl.trees import cast_like, widen
from calcdl.types import Array, Objective, Params


class Averaged(NamedTuple):
    """What an averaged solver carries.

    Attributes:
        iterate: where the solver is, whose mean are the parameters.
        average: that mean, in float32 at least.
        state: the solver's own.
        iterates: how many iterates are in the mean.
    """

    iterate: Params
    average: Params
    state: Any
    iterates: Int[Array, ""]


def averaged(solver: Solver, decay: Number | None = None) -> Solver:
    r"""Make a solver whose parameters are the mean of another solver's iterates.

    $$ \bar p_k = \bar p_{k-1} + w_k (p_k - \bar p_{k-1}), \quad w_k = \frac{1}{k} \text{ or }
       \frac{1 - d}{1 - d^k} $$

    Args:
        solver: what moves.
        decay: d in [0, 1) of a running mean that forgets, without bias at the start; None for the mean of all iterates
            after the start.

    Returns:
        A solver. Its info tells of the mean, at the price of one more gradient where it is looked at.

    Raises:
        ValueError: a decay outside [0, 1).

    Example:
        >>> from calcdl.optim.descent import descent
        >>> from calcdl.optim.solver import minimise
        >>> bounces = descent("sgd", 1.0)  # between 1 and -1 on x^2, for ever
        >>> float(minimise(lambda x: x**2, jnp.float32(1.0), averaged(bounces), steps=10).params)
        0.0

    Reference:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging, SIAM J. Control Optim. 30 (1992).
    """
    if decay is not None:
        check_value("decay", decay, "[0, 1)")

    def init(params: Params) -> Averaged:
        return Averaged(params, widen(params), solver.init(params), jnp.int32(0))

    def step(objective: Objective, params: Params, state: Averaged) -> tuple[Params, Averaged, Info]:
        value, gradient = jax.value_and_grad(objective)(params)
        iterate, inner, inner_info = solver.step(objective, state.iterate, state.state)
        count = state.iterates + 1

        def mean(old: Array, new: Array) -> Array:
            share = jnp.asarray(1 if decay is None else decay, old.dtype)
            number = count.astype(old.dtype)
            weight = 1 / number if decay is None else (1 - share) / (1 - share**number)
            return old + weight * (new.astype(old.dtype) - old)

        average = jax.tree.map(mean, state.average, iterate)
        moved = cast_like(average, params)
        update = jax.tree.map(jnp.subtract, moved, params)
        info = Info(value, gradient, update, inner_info.status)
        return moved, Averaged(iterate, average, inner, count), info

    return Solver(init, step)
