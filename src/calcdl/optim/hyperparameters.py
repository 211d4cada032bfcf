"""Hyperparameters by field: a default, an interval, and a check that speaks before anything is compiled."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calcdl.types import Array

Number = Array | np.ndarray | float


class Hyperparameter(NamedTuple):
    """What a hyperparameter may be.

    Attributes:
        default: its value where none is given; None where one must be given.
        bounds: the interval it lies in, in the usual notation: "(0, inf)", "[0, 1)".
    """

    default: float | None
    bounds: str


def check_value(name: str, value: Any, bounds: str) -> None:
    """Refuse what is no finite number in the interval; a traced value passes, its number is not known yet.

    Args:
        name: what the message calls it.
        value: a number, an array of numbers (all are checked), or a tuple of numbers.
        bounds: the interval, like "[0, 1)"; an infinite end is open.

    Raises:
        TypeError: no number at all (None, a boolean, text).
        ValueError: a number outside the interval, infinite, or NaN.

    Example:
        >>> check_value("b2", 0.999, "[0, 1)")
        >>> check_value("b2", 1.0, "[0, 1)")
        Traceback (most recent call last):
        ValueError: b2: expected a finite number in [0, 1), got 1.0
    """
    if isinstance(value, jax.core.Tracer):
        return
    if isinstance(value, tuple | list):
        for entry in value:
            check_value(name, entry, bounds)
        return
    plain = np.dtype(type(value)) if isinstance(value, bool | float | int) else None
    kind = value.dtype if hasattr(value, "dtype") else plain
    if kind is None or not (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)):
        raise TypeError(f"{name}: expected a finite number in {bounds}, got {value!r}")
    lower, upper = (float(end) for end in bounds[1:-1].split(","))
    numbers = np.asarray(value, np.float64).ravel().tolist()
    for number in numbers or [float("nan")]:
        above = number >= lower if bounds[0] == "[" else number > lower
        below = number <= upper if bounds[-1] == "]" else number < upper
        if not (above and below):
            raise ValueError(f"{name}: expected a finite number in {bounds}, got {number}")


def check_names(owner: str, values: Mapping[str, Any], valid: Mapping[str, Any]) -> None:
    """Refuse a name that the owner does not have.

    Args:
        owner: what the message speaks of, like "optimiser adam".
        values: what was given, by name.
        valid: what there is, by name.

    Raises:
        ValueError: an unknown name, with the valid ones and the nearest.

    Example:
        >>> check_names("optimiser adam", {"beta1": 0.9}, {"b1": 0.9, "b2": 0.999})
        Traceback (most recent call last):
        ValueError: optimiser adam: no hyperparameter 'beta1'; expected one of b1, b2; did you mean 'b1'?
    """
    for name in values:
        if name not in valid:
            near = get_close_matches(name, valid, n=1, cutoff=0.4)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            known = f"expected one of {', '.join(valid)}" if valid else "it has none"
            raise ValueError(f"{owner}: no hyperparameter {name!r}; {known}{meant}")


def choose(what: str, name: Any, choices: Mapping[str, Any]) -> Any:
    """Look a name up in a literal dict.

    Args:
        what: what the message calls it, like "optimiser".
        name: the name to look up.
        choices: the valid names and what they stand for.

    Returns:
        What the name stands for.

    Raises:
        ValueError: an unknown name, with the valid ones and the nearest.

    Example:
        >>> choose("optimiser", "adm", {"sgd": 1, "adam": 2})
        Traceback (most recent call last):
        ValueError: optimiser: expected one of sgd, adam, got 'adm'; did you mean 'adam'?
    """
    if isinstance(name, str) and name in choices:
        return choices[name]
    near = get_close_matches(str(name).lower(), choices, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what}: expected one of {', '.join(choices)}, got {name!r}{meant}")
