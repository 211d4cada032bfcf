"""TOML: reading a file with errors in one line, and writing what `tomllib` only reads."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A configuration or a command line that cannot be run, in one line: where, got, expected."""


def read_table(path: Path | str) -> dict[str, Any]:
    """Read a TOML file as a dict of tuples, numbers and strings, unchecked.

    Raises:
        ConfigError: the file cannot be read, is empty or is not TOML.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        table = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML configuration") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a directory; give the path of a TOML configuration") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}; mend that line") from None
    if not text.strip():
        raise ConfigError(f"{path}: empty; write at least one `key = value`, or leave the file out for the defaults")
    return {name: _as_tuples(value) for name, value in table.items()}


def to_toml(value: object) -> str:
    """Return one TOML value.

    Args:
        value: bool, int, float, str, or a tuple, list or mapping of these.

    Returns:
        Text that `tomllib` reads back as the same value (a tuple as a list).

    Raises:
        TypeError: TOML cannot write it.

    >>> to_toml({"rates": (0.1, float("inf")), "name": "tanh"})
    '{rates = [0.1, inf], name = "tanh"}'
    """
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case tuple() | list():
            return "[" + ", ".join(to_toml(item) for item in value) + "]"
        case Mapping():
            return "{" + ", ".join(f"{_key(name)} = {to_toml(item)}" for name, item in value.items()) + "}"
    raise TypeError(f"TOML has no way to write {value!r}")


def show(value: object) -> str:
    """Return a value as TOML would write it, in one short line.

    >>> show((True, 0.1, "a"))
    '[true, 0.1, "a"]'
    """
    try:
        text = to_toml(value)
    except TypeError:
        text = repr(value)
    return text if len(text) <= 80 else text[:70] + " ..."


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else to_toml(name)


def _as_tuples(value: Any) -> Any:
    match value:
        case list():
            return tuple(_as_tuples(item) for item in value)
        case dict():
            return {name: _as_tuples(item) for name, item in value.items()}
    return value
