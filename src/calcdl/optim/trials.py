"""Optimistix's descents and searches, driven until a trial is accepted: what one step of a solver consists of.

Optimistix separates what is proposed (a *descent*: a size makes a step) from what is accepted (a *search*: a
trial makes the next size). A step of a solver here asks the one and the other by turns from where it stands, so that
the state between steps is a size alone, and a step ends where the objective is lower.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from calcdl.optim.solver import LINE_SEARCH_FAILED, RUNNING, STALLED
from calcdl.trees import norm
from calcdl.types import Array, Params, Scalar

MOST_TRIALS = 100
ROUNDING = 8  # in units of the value's last place: what is lower by less is not lower for certain
FALLING = 0.25  # a promise below this share of the last one is no noise


class Trial(NamedTuple):
    """The last trial of a step.

    Attributes:
        step: what was tried.
        search_state: with which the next step begins.
        accepted: whether it is accepted.
        first: what was tried first.
        promise: -<g, s>, what the slope promises of the first trial s.
        noise: the largest change of the value that was seen where the slope promises less than a rounding.
    """

    step: Float[Array, " n"]
    search_state: Any
    accepted: Bool[Array, ""]
    first: Float[Array, " n"]
    promise: Scalar
    noise: Scalar


class _Loop(NamedTuple):
    trial: Trial
    size: Scalar
    tried: Array
    moves: Array


def first_accepted(
    descent: Any,
    search: Any,
    here: Any,
    search_state: Any,
    size: Scalar,
    evaluate: Callable[[Array], tuple[Any, Array]],
    like: Array,
) -> Trial:
    """Try smaller and smaller steps until one is accepted, or none moves any more.

    `size -> descent.step(size) = s -> search.step(f(x + s)) -> accepted, next size`

    Args:
        descent: Optimistix's, which proposes.
        search: Optimistix's, which accepts.
        here: Optimistix's `FunctionInfo` at x, with derivatives.
        search_state: the search's state.
        size: with which to begin.
        evaluate: s -> (the `FunctionInfo` at x + s, whether x + s differs from x).
        like: an array of the shape and dtype of s.

    Returns:
        The last trial.
    """
    origin, value = jnp.zeros_like(like), here.as_min()
    proposals = descent.query(origin, here, descent.init(origin, here))

    def attempt(loop: _Loop) -> _Loop:
        step, _ = descent.step(loop.size, proposals)
        there, moves = evaluate(step)
        wanted, accepted, _, state = search.step(jnp.array(False), origin, step, here, there, loop.trial.search_state)
        promise, change = -here.compute_grad_dot(step), jnp.abs(there.as_min() - value)
        silent = (jnp.abs(promise) < _rounding(value)) & (change < jnp.finfo(value.dtype).eps ** 0.5 * jnp.abs(value))
        noise = jnp.maximum(loop.trial.noise, jnp.where(silent, change, 0))
        first = jnp.where(loop.tried == 0, step, loop.trial.first)
        promise = jnp.where(loop.tried == 0, promise, loop.trial.promise)
        trial = Trial(step, state, accepted & moves, first, promise, noise)
        return _Loop(trial, wanted.astype(size.dtype), loop.tried + 1, moves)

    def goes_on(loop: _Loop) -> Array:
        return ~loop.trial.accepted & loop.moves & (loop.tried < MOST_TRIALS)

    no, yes, zero = jnp.zeros((), bool), jnp.ones((), bool), jnp.zeros((), like.dtype)
    start = _Loop(Trial(origin, search_state, no, origin, zero, zero), size, jnp.int32(0), yes)
    return jax.lax.while_loop(goes_on, attempt, start).trial


def outcome(
    goes_on: Array,
    promise: Scalar,
    value: Scalar,
    noise: Scalar | float = 0.0,
    *,
    moves: Params,
    x: Params,
    tries_on: Array | bool = True,
) -> Array:
    """Say whether a solver can go on, and if not, whether rounding or the direction is to blame.

    Args:
        goes_on: whether a step was accepted and changes the parameters.
        promise: what the slope promises of a whole step.
        value: the objective before the step.
        noise: what has been seen of the rounding of the value, beside what its size says.
        moves: a whole step.
        x: the parameters, as `moves`.
        tries_on: whether an accepted step counts also where its promise is lost in rounding.

    Returns:
        `RUNNING`, `STALLED` or `LINE_SEARCH_FAILED`.
    """
    tiny = norm(moves) <= ROUNDING * jnp.finfo(value.dtype).eps * norm(x)
    lost = tiny | (jnp.abs(promise) <= jnp.maximum(_rounding(value), ROUNDING * noise))
    ended = jnp.where(lost, jnp.int32(STALLED), jnp.int32(LINE_SEARCH_FAILED))
    return jnp.where(goes_on & (tries_on | ~lost), jnp.int32(RUNNING), ended)


def _rounding(value: Scalar) -> Array:
    return ROUNDING * jnp.finfo(value.dtype).eps * jnp.abs(value)
