r"""Learning-rate schedules, as multipliers of a learning rate that may itself be traced.

A schedule is a function of the step k = 0, 1, 2, ... (a floating scalar) and returns the multiplier m(k) in
the step's dtype, so that the rate of step k is $\eta\, m(k)$. All of them follow one plan: a rise, a plateau,
and a decay to a floor `final`.

- `constant` is the baseline, `warmup` its form for adaptive rules, whose first second moments rest on few
  gradients;
- `cosine` and `linear` need the number of steps and end low: prefer them where the last value counts;
- `warmup_cosine` is the usual choice for deep networks;
- `exponential`, `step`, `piecewise` and `inverse_sqrt` need no end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from calcdl.optim.hyperparameters import Hyperparameter, Number, check_names, check_value, choose
from calcdl.types import Array, Scalar

Schedule = Callable[[Array], Scalar]


class Rule(NamedTuple):
    """A family of schedules.

    Attributes:
        multiplier: `(step, **options) -> multiplier`, all scalars of the step's dtype.
        options: what it takes, by name.
    """

    multiplier: Callable[..., Scalar]
    options: dict[str, Hyperparameter]


def schedule(name: str, **options: Number | tuple[float, ...]) -> Schedule:
    """Make a schedule by name.

    Args:
        name: a key of `SCHEDULES`.
        **options: what that family takes; steps count from 0, factors and `final` are fractions of the
            learning rate. All of them may be traced.

    Returns:
        A function from the step (a floating scalar) to the multiplier, in the step's dtype.

    Raises:
        ValueError: an unknown name, an unknown or missing option, or an option outside its interval.
        TypeError: an option that is no number.

    Example:
        >>> halved = schedule("step", every=10, factor=0.5)
        >>> [float(halved(jnp.float32(k))) for k in (0, 9, 10, 25)]
        [1.0, 1.0, 0.5, 0.25]
    """
    rule: Rule = choose("schedule", name, SCHEDULES)
    check_names(f"schedule {name}", options, rule.options)
    values: dict[str, Any] = {option: field.default for option, field in rule.options.items()} | options
    for option, value in values.items():
        if value is None:
            raise ValueError(f"schedule {name}: {option}: expected a number in {rule.options[option].bounds}, got none")
        check_value(f"schedule {name}: {option}", value, rule.options[option].bounds)
    if name == "piecewise" and np.shape(values["boundaries"]) != np.shape(values["factors"]):
        raise ValueError("schedule piecewise: expected as many factors as boundaries")

    def multiplier(step: Array) -> Scalar:
        return rule.multiplier(step, **{option: jnp.asarray(value, step.dtype) for option, value in values.items()})

    return multiplier


def _progress(step: Array, steps: Array) -> Array:
    return jnp.clip(step / steps, 0, 1)


def _constant(step: Array) -> Scalar:
    return jnp.ones_like(step)


def _warmup(step: Array, warmup_steps: Array) -> Scalar:
    # The first step counts as 1: a step of rate 0 would be wasted.
    return jnp.minimum((step + 1) / warmup_steps, 1)


def _linear(step: Array, steps: Array, final: Array) -> Scalar:
    return 1 - (1 - final) * _progress(step, steps)


def _cosine(step: Array, steps: Array, final: Array) -> Scalar:
    return final + (1 - final) * (1 + jnp.cos(jnp.pi * _progress(step, steps))) / 2


def _warmup_cosine(step: Array, steps: Array, warmup_steps: Array, final: Array) -> Scalar:
    decay = _cosine(step - warmup_steps, jnp.maximum(steps - warmup_steps, 1), final)
    return jnp.where(step < warmup_steps, _warmup(step, warmup_steps), decay)


def _exponential(step: Array, steps: Array, factor: Array) -> Scalar:
    return factor ** (step / steps)


def _step(step: Array, every: Array, factor: Array) -> Scalar:
    return factor ** jnp.floor(step / every)


def _piecewise(step: Array, boundaries: Array, factors: Array) -> Scalar:
    return jnp.prod(jnp.where(step >= boundaries, factors, jnp.ones_like(factors)))


def _inverse_sqrt(step: Array, steps: Array) -> Scalar:
    return 1 / jnp.sqrt(jnp.maximum(step / steps, 1))


_STEPS = Hyperparameter(None, "[1, inf)")
_FINAL = Hyperparameter(0.0, "[0, 1]")
_FACTOR = Hyperparameter(None, "(0, inf)")

SCHEDULES: dict[str, Rule] = {
    "constant": Rule(_constant, {}),
    "warmup": Rule(_warmup, {"warmup_steps": _STEPS}),
    "linear": Rule(_linear, {"steps": _STEPS, "final": _FINAL}),
    "cosine": Rule(_cosine, {"steps": _STEPS, "final": _FINAL}),
    "warmup_cosine": Rule(_warmup_cosine, {"steps": _STEPS, "warmup_steps": _STEPS, "final": _FINAL}),
    "exponential": Rule(_exponential, {"steps": _STEPS, "factor": _FACTOR}),
    "step": Rule(_step, {"every": _STEPS, "factor": _FACTOR}),
    "piecewise": Rule(_piecewise, {"boundaries": _STEPS, "factors": _FACTOR}),
    "inverse_sqrt": Rule(_inverse_sqrt, {"steps": _STEPS}),
}
