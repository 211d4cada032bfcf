r"""Extragradient: look a step ahead, come back, and go along the slope that was seen there.

On one objective it is a costly gradient descent. In a game, where descent on two losses turns about the equilibrium and
is driven outwards, the slope a step ahead points inwards: the step is the first two terms of an implicit one.
"""

import jax
import jax.numpy as jnp

from calcdl.optim.hyperparameters import Number, check_value
from calcdl.optim.projections import descended
from calcdl.optim.solver import RUNNING, Info, Solver
from calcdl.trees import cast_like, widen
from calcdl.types import Objective, Params


def extragradient(learning_rate: Number) -> Solver:
    r"""Make a solver that takes every step with the gradient of the place where it would lead.

    $$ p_{k+1} = p_k - \eta \nabla f(p_k - \eta \nabla f(p_k)) $$

    Args:
        learning_rate: η, positive, of both steps; may be traced.

    Returns:
        A solver without state, at the price of two gradients a step. Its info holds the gradient before the step.

    Raises:
        ValueError: a learning rate that is not positive.

    Example:
        >>> solver = extragradient(0.5)
        >>> params, _, info = solver.step(lambda p: p**2 / 2, jnp.float32(4.0), ())
        >>> float(params), float(info.gradient), float(info.update)
        (3.0, 4.0, -1.0)

    Reference:
        Korpelevich (1976), The extragradient method for finding saddle points and other problems, Matecon 12, 747.
    """
    check_value("learning_rate", learning_rate, "(0, inf)")

    def step(objective: Objective, params: Params, state: tuple[()]) -> tuple[Params, tuple[()], Info]:
        value, gradient = jax.value_and_grad(objective)(params)
        wide = widen(params)
        ahead = cast_like(descended(wide, gradient, learning_rate), params)
        moved = cast_like(descended(wide, jax.grad(objective)(ahead), learning_rate), params)
        update = jax.tree.map(jnp.subtract, moved, params)
        return moved, state, Info(value, gradient, update, jnp.int32(RUNNING))

    return Solver(lambda params: (), step)
