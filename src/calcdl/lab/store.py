"""The run directory: what a run has finished, kept so that a crash at any moment loses none of it.

    runs/<name>/<stamp>-<hash>/
        config.toml  environment.json      what ran, on what
        batches/<study>-<index>.npz        finished batches, named in batches/journal.jsonl with their SHA-256
        study.nc  verdicts.json  figures/  report.html

A file is written under another name, forced to disk and renamed; a batch counts once its journal line is on
disk too. A batch whose bytes do not match its line is computed again, and so is that of a torn line.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from calcdl.lab.files import StorageError, append, replacing, storage, to_json, write
from calcdl.study import Batch, Plan

if TYPE_CHECKING:
    import xarray

Arrays = dict[str, np.ndarray]


class RunDirectoryError(Exception):
    """A run directory is in use, or holds another run, in one line."""


class Run(NamedTuple):
    """A run directory held for writing.

    Attributes:
        path: the directory.
        journal: the file, within batches/, that this process appends to.
    """

    path: Path
    journal: str


def create(runs: Path, name: str, config: str, environment: Mapping[str, Any]) -> Path:
    """Make a new run directory.

    Args:
        runs: where run directories are made.
        name: the experiment.
        config: its configuration as TOML.
        environment: what it runs on.

    Returns:
        The new directory, no other run's even within the same second.

    Raises:
        StorageError: it cannot be made.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    stem = f"{stamp}-{_digest(config.encode())[:8]}"
    with storage(runs, "choose a writable place with --runs DIR"):
        (runs / name).mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            path = runs / name / (stem if attempt == 1 else f"{stem}-{attempt}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            _furnish(path, config, environment)
            return path
    raise StorageError(f"{runs / name / stem}: exists 999 times; choose another place with --runs DIR")


def share(runs: Path, name: str, config: str, environment: Mapping[str, Any]) -> Path:
    """Make, or find, the run directory that all parts of a sharded run share.

    Args:
        runs: where run directories are made, on a file system that all parts see.
        name: the experiment.
        config: its configuration as TOML, the same for every part.
        environment: what it runs on.

    Returns:
        The directory, which depends on the configuration alone.

    Raises:
        StorageError: it cannot be made.
    """
    path = runs / name / f"shared-{_digest(config.encode())[:8]}"
    with storage(runs, "choose a writable place with --runs DIR"):
        path.mkdir(parents=True, exist_ok=True)
        with _locked(path / "lock.setup", fcntl.LOCK_EX):
            if not (path / "config.toml").exists():
                _furnish(path, config, environment)
    return path


def _furnish(path: Path, config: str, environment: Mapping[str, Any]) -> None:
    (path / "batches").mkdir(exist_ok=True)
    (path / "figures").mkdir(exist_ok=True)
    write(path / "environment.json", to_json(environment))
    write(path / "config.toml", config.encode())


@contextlib.contextmanager
def hold(path: Path, shard: tuple[int, int] | None = None) -> Iterator[Run]:
    """Hold a run directory while a run writes into it; a crash releases it.

    Args:
        path: the directory.
        shard: the part that writes: a part excludes the whole and itself, no other part.

    Yields:
        The held directory.

    Raises:
        RunDirectoryError: not a run directory, or another process holds it.
        StorageError: it cannot be written to.
    """
    check(path)
    part = f"{shard[0]}-{shard[1]}" if shard else ""
    mode = fcntl.LOCK_SH if shard else fcntl.LOCK_EX
    with contextlib.ExitStack() as locks:
        with storage(path, "make the directory writable, or start a new run"):
            try:
                locks.enter_context(_locked(path / "lock", mode | fcntl.LOCK_NB))
                if shard:
                    locks.enter_context(_locked(path / f"lock.{part}", fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                message = f"{path}: in use by another process; wait for it, or start a new run"
                raise RunDirectoryError(message) from None
            for name in ("batches", "figures"):
                (path / name).mkdir(exist_ok=True)
                write(path / name / ".writable", b"")
                (path / name / ".writable").unlink()
        yield Run(path, f"journal.{part}.jsonl" if shard else "journal.jsonl")


def check(path: Path) -> None:
    """Refuse a path that is no run directory.

    Raises:
        RunDirectoryError: it is not there, or lacks the files every run directory has.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: no such run directory; give one from runs/<name>/")
    for name in ("config.toml", "environment.json"):
        if not (path / name).is_file():
            raise RunDirectoryError(f"{path}: lacks {name}, so it is no run directory; start a new run")


@contextlib.contextmanager
def _locked(path: Path, mode: int) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, mode)
        yield
    finally:
        os.close(handle)


def environment(path: Path) -> dict[str, Any]:
    """Read what a run ran on.

    Raises:
        RunDirectoryError: its environment.json is damaged.
    """
    try:
        stored = json.loads((path / "environment.json").read_bytes())
        if isinstance(stored, dict):
            return stored
    except ValueError:
        pass
    raise RunDirectoryError(f"{path}/environment.json: damaged; start a new run")


def record(run: Run, plan: Plan) -> None:
    """Note what the bits of a study depend on, or refuse to mix them with those of another start.

    Args:
        run: the run directory.
        plan: the whole study.

    Raises:
        RunDirectoryError: the study began otherwise; names the first difference.
        StorageError: the note cannot be written.
    """
    if not re.fullmatch(r"[\w.+-]+", plan.name):
        raise ValueError(f"study {plan.name!r}: expected a name of letters, digits, '_', '.', '+' and '-'")
    layout = _digest(to_json([list(batch) for batch in plan.batches]))
    mark = json.loads(to_json({**plan.fingerprint(), "batches": layout}))
    remedy = "free some space or mend its rights, then go on with --resume"
    with storage(run.path, remedy), _locked(run.path / "lock.setup", fcntl.LOCK_EX):
        stored = environment(run.path)
        studies = stored.setdefault("studies", {})
        if plan.name not in studies:
            studies[plan.name] = mark
            write(run.path / "environment.json", to_json(stored))
        elif found := difference(studies[plan.name], mark):
            key, there, here = found
            message = f"{run.path}: study {plan.name} began with {key} = {there}, this start has {here}"
            raise RunDirectoryError(f"{message}; go on where and how it began, or start a new run")


def difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return the first place where two trees of plain data differ, with both values.

    >>> difference({"a": [1, 2]}, {"a": [1, 3]})
    ('a[1]', 2, 3)
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*old, *(key for key in new if key not in old)):
            inner = f"{path}.{key}" if path else str(key)
            if found := difference(old.get(key), new.get(key), inner):
                return found
        return None
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return next((found for n, pair in pairs if (found := difference(*pair, f"{path}[{n}]"))), None)
    return None if old == new else (path, old, new)


def commit(run: Run, study: str, batch: Batch, outputs: Arrays) -> None:
    """Keep a finished batch: its file first, then the line that makes it count.

    Args:
        run: the run directory.
        study: the study's name.
        batch: which batch.
        outputs: its arrays.

    Raises:
        StorageError: it cannot be kept; those before are.
        TypeError: an array of a type that files cannot hold.
    """
    for name, array in outputs.items():
        if array.dtype.kind in "VO":
            raise TypeError(f"study {study}: {name} is {array.dtype}, which files cannot hold; cast it")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # not np.savez: an output may be called "file", and equal arrays must give equal bytes
        for name, array in outputs.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    folder, name = run.path / "batches", f"{study}-{batch.number:06d}.npz"
    digest = _digest(buffer.getvalue())
    line = json.dumps({"study": study, "index": batch.number, "file": name, "sha256": digest})
    with storage(folder, f"what is finished is kept; free some space, then --resume {run.path}"):
        write(folder / name, buffer.getvalue())
        append(folder / run.journal, line.encode() + b"\n")


def finished(run: Run, study: str) -> tuple[dict[int, Arrays], list[str]]:
    """Read the batches of a study that are whole.

    Args:
        run: the run directory.
        study: the study's name.

    Returns:
        Outputs by index, and one line for each thing found damaged.

    Raises:
        StorageError: the directory cannot be read.
    """
    folder = run.path / "batches"
    outputs: dict[int, Arrays] = {}
    with storage(folder, "mend its rights, then go on with --resume"):
        digests, notices = _journalled(folder)
        for (owner, index), known in sorted(digests.items()):
            if owner != study:
                continue
            file = folder / f"{study}-{index:06d}.npz"
            data = file.read_bytes() if file.is_file() else b""
            if _digest(data) not in known:
                notices.append(f"{file}: damaged or missing; the batch is computed again")
                continue
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                outputs[index] = dict(arrays)
    return outputs, notices


def kept(run: Run) -> int:
    """Return how many batches of all studies the journals name."""
    return len(_journalled(run.path / "batches")[0])


def _journalled(folder: Path) -> tuple[dict[tuple[str, int], set[str]], list[str]]:
    """Read the journals of all parts: digests by study and index, and one remark for each torn line."""
    digests: dict[tuple[str, int], set[str]] = {}
    torn = []
    for journal in sorted(folder.glob("journal*.jsonl")):
        for line in filter(None, journal.read_bytes().split(b"\n")):
            try:
                entry = json.loads(line)
                digests.setdefault((entry["study"], int(entry["index"])), set()).add(entry["sha256"])
            except (ValueError, KeyError, TypeError):
                torn.append(f"{journal}: a torn line; its batch is computed again")
    return digests, torn


def save_results(path: Path, results: "xarray.Dataset") -> None:
    """Write `study.nc`, whole or not at all.

    Args:
        path: the run directory.
        results: the labelled array.

    Raises:
        StorageError: it cannot be written; the finished batches are kept.
    """
    results = results.copy(deep=True)
    for attributes in (results.attrs, *(variable.attrs for variable in results.variables.values())):
        attributes.update({name: _attribute(value) for name, value in attributes.items()})
    remedy = f"what is finished is kept; free some space, then --resume {path}"
    with storage(path, remedy), replacing(path / "study.nc") as temporary:
        results.to_netcdf(temporary, engine="h5netcdf")


def load_results(path: Path) -> "xarray.Dataset":
    """Read `study.nc` into memory.

    Raises:
        RunDirectoryError: the run has not finished, or the file is damaged.
    """
    import xarray

    remedy = f"finish or mend the run with --resume {path}"
    if not (path / "study.nc").is_file():
        raise RunDirectoryError(f"{path}: has no study.nc yet; {remedy}")
    try:
        return xarray.load_dataset(path / "study.nc", engine="h5netcdf")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise RunDirectoryError(f"{path}/study.nc: damaged ({type(error).__name__}); {remedy}") from error


def _attribute(value: Any) -> Any:
    """Return an attribute that NetCDF can hold: it has no truth values, nothing and no nesting."""
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, str | int | float | np.ndarray | np.generic):
        return value
    return "" if value is None else to_json(value).decode().strip()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
