"""The contract between a training loop and anything that minimises.

A solver is two pure functions. What the next step needs travels in *state*; what an observer wants to see
leaves in *info*. One loop therefore runs gradient descent, Newton's method and projected descent alike:

    state = solver.init(params)
    params, state, info = solver.step(objective, params, state)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from calcdl.types import Objective, Params, Scalar


class Info(NamedTuple):
    """What a step saw and did.

    Attributes:
        value: the objective at the parameters *before* the step, in the objective's unit.
        gradient: the raw gradient there (before clipping and weight decay), structure and dtypes of the
            parameters.
        update: what was added to the parameters, the same structure.
    """

    value: Scalar
    gradient: Params
    update: Params


class Solver(NamedTuple):
    """A pair of pure functions that minimise an objective step by step.

    Attributes:
        init: `params -> state`, the state of a run that starts at these parameters.
        step: `(objective, params, state) -> (params, state, info)`, one step; the objective may differ from
            step to step (a new minibatch), the structure, shapes and dtypes of parameters and state may not.
    """

    init: Callable[[Params], Any]
    step: Callable[[Objective, Params, Any], tuple[Params, Any, Info]]
