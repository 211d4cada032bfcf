r"""Gradient descent by any first-order rule of Optax, as a solver.

    p' = p + u,    u = -learning rate * schedule * (rule(clip(gradient)) + weight decay * p)

The rule's arithmetic runs in float32, or in float64 where a parameter is float64; parameters in bfloat16 or
float16 are updated in float32 and rounded once, so that b2 = 0.999 does not become 1. Hyperparameters are
cast to that dtype, so turning x64 on changes no float32 step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from calcdl.optim.hyperparameters import Number, choose
from calcdl.optim.optimisers import OPTIMISERS, Optimiser, check_hyperparameters
from calcdl.optim.schedules import Schedule
from calcdl.optim.solver import RUNNING, Info, Solver
from calcdl.trees import widen, widest
from calcdl.types import Array, Objective, Params


def descent(
    optimiser: str,
    learning_rate: Number,
    *,
    schedule: Schedule | None = None,
    clip_value: Number | None = None,
    clip_norm: Number | None = None,
    weight_decay: Number | None = None,
    **hyperparameters: Number,
) -> Solver:
    r"""Make a solver from an optimiser's name and its hyperparameters.

    $$ p_{k+1} = p_k + u_k(g_k), \quad g_k = \nabla f(p_k) $$

    Args:
        optimiser: a key of `OPTIMISERS`.
        learning_rate: positive scalar. Like every other number here it may be traced, as under `vmap`; what
            is traced is not checked.
        schedule: multiplier of the learning rate by step, from `calcdl.optim.schedule`.
        clip_value: clips each entry of the gradient to [-clip_value, clip_value].
        clip_norm: scales the gradient down to this global norm where it exceeds it, after `clip_value`.
        weight_decay: the optimiser's own where it has one (adamw, lion, ...; `OPTIMISERS` tells), else
            decoupled: the parameters shrink by learning rate times weight decay beside the step.
        **hyperparameters: the optimiser's own; the defaults are Optax's.

    Returns:
        A solver whose info holds the value before the step, the raw gradient, and the update.

    Raises:
        ValueError: an unknown optimiser or hyperparameter, or a number outside its interval; a schedule for
            an optimiser that sets its own rate.
        TypeError: a hyperparameter that is no number.

    Example:
        >>> solver = descent("sgd", 0.25)
        >>> params = jnp.float32(2.0)
        >>> params, _, info = solver.step(lambda p: (p - 1) ** 2, params, solver.init(params))
        >>> float(params), float(info.value), float(info.gradient)
        (1.5, 1.0, 2.0)
    """
    rule: Optimiser = choose("optimiser", optimiser, OPTIMISERS)
    common = {"weight_decay": weight_decay, "clip_value": clip_value, "clip_norm": clip_norm}
    given = {name: value for name, value in common.items() if value is not None} | hyperparameters
    own = {name: field.default for name, field in rule.hyperparameters.items()}
    values: dict[str, Any] = {"learning_rate": learning_rate} | own | given
    check_hyperparameters(optimiser, values)
    for name, value in values.items():
        if np.ndim(value):
            raise ValueError(f"{name}: expected a scalar, got shape {np.shape(value)}; map over it by jax.vmap")
    if schedule is not None and not rule.scheduled:
        raise ValueError(f"schedule: {optimiser} sets its own rate; leave the schedule out")

    def transformation(params: Params) -> optax.GradientTransformationExtraArgs:
        scalars = {name: _scalar(optimiser, name, value, widest(params)) for name, value in values.items()}
        return _chain(rule, scalars, schedule, widest(params))

    def init(params: Params) -> Any:
        wide = widen(params)
        state = transformation(params).init(wide)
        return jax.tree.map(lambda leaf: _narrow(jnp.asarray(leaf), widest(params)), state)

    def step(objective: Objective, params: Params, state: Any) -> tuple[Params, Any, Info]:
        value, gradient = jax.value_and_grad(objective)(params)
        wide, slope = widen(params), widen(gradient)
        updates, new = transformation(params).update(
            slope, state, wide, value=value.astype(widest(params)), grad=slope, value_fn=objective
        )
        moved = jax.tree.map(lambda p, w, u: (w + u).astype(p.dtype), params, wide, updates)
        updates = jax.tree.map(lambda p, u: u.astype(p.dtype), params, updates)
        state = jax.tree.map(lambda old, leaf: jnp.asarray(leaf, old.dtype), state, new)
        return moved, state, Info(value, gradient, updates, jnp.int32(RUNNING))

    return Solver(init, step)


def _chain(
    rule: Optimiser, values: dict[str, Any], schedule: Schedule | None, dtype: Any
) -> optax.GradientTransformationExtraArgs:
    own = {name: value for name, value in values.items() if name in rule.hyperparameters}

    def scheduled(rate: Any) -> Any:
        return rate if schedule is None else lambda count: rate * schedule(jnp.asarray(count, dtype))

    parts = []
    if "clip_value" in values:
        parts.append(optax.clip(values["clip_value"]))
    if "clip_norm" in values:
        parts.append(_clip_norm(values["clip_norm"]))
    parts.append(rule.build(scheduled(values["learning_rate"]), **own))
    if "weight_decay" in values and "weight_decay" not in own:
        parts.append(optax.add_decayed_weights(scheduled(-values["learning_rate"] * values["weight_decay"])))
    return optax.with_extra_args_support(optax.chain(*parts))


def _clip_norm(largest: Number) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves = jax.tree.leaves(updates)
        # Squares of an exploding gradient overflow long before the gradient does.
        peak = jax.lax.stop_gradient(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]).max())
        peak = jnp.where(peak > 0, peak, 1)
        square = sum(jnp.sum((leaf / peak) ** 2) for leaf in leaves)
        # The root's derivative is infinite at 0: choose before the root, so that hypergradients stay finite.
        exceeds = jnp.sqrt(square) * peak > largest
        norm = jnp.sqrt(jnp.where(exceeds, square, 1)) * peak
        factor = jnp.where(exceeds, largest / norm, 1)
        return jax.tree.map(lambda leaf: leaf * factor, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _narrow(leaf: Array, dtype: Any) -> Array:
    wider = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.promote_types(leaf.dtype, dtype) != dtype
    return leaf.astype(dtype) if wider else leaf


def _scalar(optimiser: str, name: str, value: Any, dtype: Any) -> Any:
    if isinstance(value, jax.core.Tracer):
        return value.astype(dtype)
    # A NumPy scalar keeps its dtype where a Python float would follow the global default. Rounding to float32
    # can carry a value to the excluded end of its interval (b2 = 1 - 1e-9), so it is checked again.
    scalar = np.dtype(dtype).type(value)
    check_hyperparameters(optimiser, {name: scalar})
    return scalar
