"""Refusals: what is wrong with a value, and what would do, in words."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic_core import ErrorDetails, PydanticCustomError

from calcdl.lab.toml import show

_EXPECTED = {
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "greater_than": "a number > {gt}",
    "greater_than_equal": "a number >= {ge}",
    "less_than": "a number < {lt}",
    "less_than_equal": "a number <= {le}",
    "too_short": "at least {min_length} value(s)",
    "too_long": "at most {max_length} value(s)",
    "none_required": "nothing",
    "missing": "a value",
    "refused": "{expected}",
}


def refuse(path: str, got: object, expected: str) -> PydanticCustomError:
    """Return the error to raise in a validator, so that it names the very value at fault.

    Args:
        path: where, below the model being validated: `"batch_sizes[2]"`.
        got: the offending value.
        expected: what would do, and if need be the remedy.

    Returns:
        An exception to raise.

    >>> str(refuse("batch_sizes[2]", 128, "at most rows = 100"))
    'got 128, expected at most rows = 100'
    """
    context = {"path": path, "shown": show(got), "expected": expected}
    return PydanticCustomError("refused", "got {shown}, expected {expected}", context)


def expected(error: ErrorDetails) -> str:
    """Return what pydantic would have accepted, in a few words."""
    context = error.get("ctx", {})
    if error["type"] == "literal_error":
        return choices(str(error["input"]), tuple(re.findall(r"'([^']*)'", context["expected"])))
    if error["type"] in _EXPECTED:
        whole = {name: int(x) if isinstance(x, float) and x.is_integer() else x for name, x in context.items()}
        return _EXPECTED[error["type"]].format(**whole)
    # pydantic's own sentence starts with the subject, which the path has named already
    return error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def dotted(location: tuple[int | str, ...], table: Any) -> str:
    """Return pydantic's location of an error in `table` as `training.rates[3]`."""
    path = ""
    for part in location:
        try:
            table = table[part]
        except (KeyError, IndexError):
            table = {}  # a missing key, named all the same
        except TypeError:
            break  # pydantic's label for a member of a union, not a key
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def choices(name: str, names: tuple[str, ...]) -> str:
    """Return the names that would do, and the one that was probably meant."""
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"one of {', '.join(names)}{hint}"


def nearest(path: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a sentence that leads from an unknown dotted path to the right one.

    >>> nearest("training.step", ["training.steps", "seeds"])
    "did you mean 'training.steps'?"
    """
    known = tuple(known)
    leaf = path.rpartition(".")[2]
    moved = [name for name in known if name.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.6) or difflib.get_close_matches(
        leaf, [name.rpartition(".")[2] for name in known], n=1
    )
    found = moved[:1] or [name for name in known if close and name.endswith(close[0])]
    if found:
        return f"did you mean '{prefix}{found[0]}'?"
    siblings = [name for name in known if name.rpartition(".")[0] == path.rpartition(".")[0]]
    return "expected one of " + ", ".join(prefix + name for name in siblings or known)
