"""Axes: the named coordinates over which a study runs a function."""

import math
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

SEED = "seed"
SEED_LIMIT = 2**32


class Axis(NamedTuple):
    """One named coordinate of a study.

    Attributes:
        name: the argument of the function that the axis fills; ``"seed"`` fills its key instead.
        values: distinct coordinates.
        static: whether a value changes the program (depth, width, a name) rather than being data to it.
    """

    name: str
    values: tuple[Any, ...]
    static: bool

    @property
    def is_code(self) -> bool:
        """Whether it chooses a branch inside a program: static values that are no numbers and so set no shape."""
        return self.static and not any(
            isinstance(value, int | float) and not isinstance(value, bool) for value in self.values
        )


def axis(name: str, values: Iterable[Any], *, static: bool | None = None) -> Axis:
    """Name the values over which a study runs.

    Numbers are data: thousands of them share one compiled program. Texts and truth values are static: they
    choose a branch inside it. Numbers that set the shape of an array (depth, width) need ``static=True``.

    Args:
        name: a Python identifier; ``"seed"`` is the axis that feeds the random key.
        values: at least one value, all distinct; data are finite numbers.
        static: whether values change the program; by default false for numbers and true for everything else.

    Returns:
        The checked axis.

    Raises:
        ValueError: an empty axis, repeated values, a number that is not finite, a seed outside 0..2**32-1.
        TypeError: values that are not all numbers on an axis of data.

    Example:
        >>> axis("learning_rate", [0.1, 0.2])
        Axis(name='learning_rate', values=(0.1, 0.2), static=False)
        >>> axis("activation", ["relu", "tanh"]).static
        True
    """
    values = tuple(value.item() if hasattr(value, "item") else value for value in values)
    if not name.isidentifier():
        raise ValueError(f"axis name: expected a Python identifier, got {name!r}")
    if not values:
        raise ValueError(f"axis {name!r}: expected at least one value, got none")
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if static is None:
        static = not numbers
    repeated = [value for position, value in enumerate(values) if value in values[:position]]
    if repeated:
        raise ValueError(f"axis {name!r}: expected distinct values, got {repeated[0]!r} twice; remove one")
    if not static and not numbers:
        raise TypeError(f"axis {name!r}: expected numbers on an axis of data, got {values!r}; use static=True")
    if not static:
        _check_numbers(name, values)
    return Axis(name, values, static)


def _check_numbers(name: str, values: tuple[Any, ...]) -> None:
    for position, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"axis {name!r}[{position}]: expected a finite number, got {value!r}")
        if name == SEED and not (isinstance(value, int) and 0 <= value < SEED_LIMIT):
            raise ValueError(f"axis 'seed'[{position}]: expected an integer in 0..2**32-1, got {value!r}")


def points(axes: Iterable[Axis]) -> tuple[Mapping[str, Any], ...]:
    """List every combination of the values of some axes, the last axis fastest.

    Args:
        axes: any number of axes; of none, the one empty point.

    Returns:
        One mapping from name to value a combination.

    Example:
        >>> points([axis("depth", [2, 5], static=True)])
        ({'depth': 2}, {'depth': 5})
    """
    axes = tuple(axes)
    names = tuple(one.name for one in axes)
    return tuple(dict(zip(names, values, strict=True)) for values in product(*(one.values for one in axes)))
