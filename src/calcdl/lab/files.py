"""Files: written whole or not at all, with the operating system's errors told in one line."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class StorageError(Exception):
    """The disk does not take or give what it should, in one line."""


@contextlib.contextmanager
def storage(path: Path, remedy: str) -> Iterator[None]:
    """Turn an error of the operating system into one line that names the path and what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise StorageError(f"{where}: {error.strerror or error}; {remedy}") from error


def write(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all: under another name, forced to disk, renamed.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give another name to write under; put it in place of `path`, forced to disk, when all went well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _force(temporary)
        os.replace(temporary, path)
        _force(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def append(path: Path, line: bytes) -> None:
    """Append a line and force it to disk; a torn line before it is closed first.

    Raises:
        OSError: it cannot be written.
    """
    fresh = not path.exists()
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if fresh:
        _force(path.parent)


def to_json(value: Any) -> bytes:
    r"""Return plain data as JSON; numbers that JSON lacks become their names as text.

    >>> to_json({"value": float("nan")})
    b'{\n "value": "nan"\n}\n'
    """
    return (json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, bool | int | str | None) else str(value)


def _force(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
