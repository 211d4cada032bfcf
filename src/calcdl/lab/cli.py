"""Command line: an experiment from its arguments to an exit code.

    python -m calcdl.experiments.NAME [CONFIG.toml] [--flag value ...]

| code | meaning |
|---|---|
| 0 | done, and the claims hold |
| 1 | done, a claim does not hold |
| 2 | bad configuration or usage |
| 3 | bad data |
| 4 | storage |
| 5 | done, some runs failed |
| 6 | run directory busy or incompatible |
| 70 | a defect of the program |
| 75 | interrupted; what is finished is kept and can be resumed |

An error is one line, `calcdl: error: <where>: <what>; <what to do>`; `--debug` adds the traceback.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from calcdl.lab import environment, flags, store
from calcdl.lab.config import ConfigError, ExperimentConfig, values
from calcdl.lab.files import StorageError, storage, to_json, write
from calcdl.lab.flags import Command, Options
from calcdl.lab.session import Counts, Session, counts_of, plans, with_counts
from calcdl.lab.store import RunDirectoryError
from calcdl.lab.toml import show as show_value
from calcdl.types import DataError, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

DONE, NOT_HELD, USAGE, DATA, STORAGE, FAILED, DIRECTORY, DEFECT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 70, 75
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, USAGE),
    (DataError, DATA),
    (RunDirectoryError, DIRECTORY),
    (StorageError, STORAGE),
)


class Experiment(NamedTuple):
    """One claim of the subject, and how it is measured.

    Attributes:
        name: the same for module, configuration, notebook folder and test.
        doc: the question on its first line; then the mathematics, the claim and the command.
        config: a class derived from `lab.config.ExperimentConfig`.
        measure: `(config, run) -> xarray.Dataset`, where `run` does what `study.run` does.
        check: `(config, results) -> tuple[Verdict, ...]`.
        show: `(config, results) -> dict[str, Figure]`.
    """

    name: str
    doc: str
    config: type[Any]
    measure: Callable[..., "xarray.Dataset"]
    check: Callable[[Any, "xarray.Dataset"], tuple[Verdict, ...]]
    show: Callable[[Any, "xarray.Dataset"], "Mapping[str, Figure]"]


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> int:
    """Run an experiment as its command line says.

    Args:
        experiment: what to run.
        arguments: the command line after the program's name; by default the process's own.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return guarded(lambda: _main(experiment, arguments), experiment.name, debug="--debug" in arguments)


def guarded(action: Callable[[], int], name: str, *, debug: bool = False) -> int:
    """Do something and turn whatever goes wrong into one line and an exit code.

    Args:
        action: what to do; returns an exit code.
        name: who is at work, for errors that do not say.
        debug: print the traceback too.

    Returns:
        The exit code.
    """
    try:
        with _terminable():
            code = action()
    except KeyboardInterrupt as interrupt:
        complain(str(interrupt) or "interrupted; nothing was lost, start again")
        code = INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, message = _explain(error, name)
        complain(f"error: {message}")
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    return code


def _explain(error: Exception, name: str) -> tuple[int, str]:
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code, f"{name}: {error}" if kind is DataError else str(error)
    if isinstance(error, _Stage):
        return DEFECT, f"{name}: {error}"
    if isinstance(error, ValueError | TypeError):
        return USAGE, f"{name}: {error}"
    if isinstance(error, OSError):
        return STORAGE, f"{error.filename or name}: {error.strerror or error}; check the path and its rights"
    return DEFECT, f"{name}: {type(error).__name__}: {error}; --debug shows where"


class _Stage(Exception):
    """A step after the measurement went wrong; the results are safe."""


def _main(experiment: Experiment, arguments: Sequence[str]) -> int:
    program = f"python -m calcdl.experiments.{experiment.name}"
    command = flags.parse(experiment.config, arguments, program=program, doc=experiment.doc)
    if command.helped:
        return DONE
    options = command.options
    config = _configuration(experiment, command)
    if options.publish:
        from calcdl.lab import publish

        publish.folder(experiment.name)
    with environment.settings(config.precision):
        if options.report is not None:
            with store.hold(options.report) as held:
                return _conclude(experiment, config, options, held.path)
        return _run(experiment, config, options)


def _configuration(experiment: Experiment, command: Command) -> Any:
    """Return what to run; with --resume or --report that is what the directory holds, and nothing else will do."""
    folder = command.options.resume or command.options.report
    if folder is None:
        return flags.configure(experiment.config, command.file, command.flags)
    store.check(folder)
    held = store.environment(folder).get("experiment")
    if held != experiment.name:
        raise RunDirectoryError(f"{folder}: holds a run of {held}, not of {experiment.name}; give that name")
    try:
        stored: ExperimentConfig = flags.configure(experiment.config, folder / "config.toml", {})
    except ConfigError as error:
        raise RunDirectoryError(f"{error}; it was written by another version, start a new run") from error
    if command.file is not None or command.flags:
        base = command.file or folder / "config.toml"
        asked = flags.configure(experiment.config, base, command.flags)
        ran, asks = values(stored), values(asked)
        asks["execution.workers"] = ran["execution.workers"]  # changes no bit
        if found := store.difference(ran, asks):
            path, there, here = found[0], show_value(found[1]), show_value(found[2])
            message = f"{folder}: ran with {path} = {there}, this start asks for {here}"
            raise RunDirectoryError(f"{message}; leave configuration and flags out, or start a new run")
        return asked
    return stored


def _run(experiment: Experiment, config: ExperimentConfig, options: Options) -> int:
    if options.dry_run:
        for plan in plans(experiment.measure, config):
            for line in plan.summary():
                say(line)
        return DONE
    progress = None if options.quiet else sys.stderr
    session = Session(experiment.name, config, options, say=say, notice=complain, progress=progress)
    resume = f"python -m calcdl.experiments.{experiment.name} --resume"
    with session:
        try:
            results = experiment.measure(config, run=session.run)
            path = session.hold().path
            if options.shard:
                part, parts = options.shard
                say(f"part {part} of {parts} is done; after all parts: {resume} {path}")
                return FAILED if any(count.failed for count in session.counts.values()) else DONE
            store.save_results(path, with_counts(results, session.counts))
            return _conclude(experiment, config, options, path)
        except KeyboardInterrupt:
            if session.path is None:
                raise
            kept = f"interrupted; {store.kept(session.hold())} finished batches are kept"
            raise KeyboardInterrupt(f"{kept}, go on with: {resume} {session.path}") from None


def _conclude(
    experiment: Experiment,
    config: ExperimentConfig,
    options: Options,
    path: Path,
) -> int:
    """Hold the stored results against the claims, and write verdicts, figures and page."""
    from calcdl.lab import plots, report

    results = store.load_results(path)
    counts = counts_of(results)
    with _stage("check", path):
        verdicts = tuple(_checked(verdict) for verdict in experiment.check(config, results))
    code = _code(verdicts, counts)
    with _stage("show", path):
        figures = {name: plots.render(name, figure) for name, figure in experiment.show(config, results).items()}
        text = report.page(experiment.name, experiment.doc, config, verdicts=verdicts, counts=counts,
                           figures=figures, environment=store.environment(path))  # fmt: skip
    with storage(path, f"results are kept; free some space, then --report {path}"):
        for name, drawing in figures.items():
            write(path / "figures" / f"{name}.svg", drawing.svg)
            write(path / "figures" / f"{name}.png", drawing.png)
        summary = {
            "experiment": experiment.name,
            "exit_code": code,
            "verdicts": [verdict._asdict() for verdict in verdicts],
            "studies": {name: count._asdict() for name, count in counts.items()},
        }
        write(path / "verdicts.json", to_json(summary))
        write(path / "report.html", text.encode())
    _tell(verdicts, counts)
    if options.publish:
        from calcdl.lab import publish

        place, remark = publish.publish(experiment.name, verdicts, figures)
        say(f"published: {place}")
        if remark:
            complain(f"note: {remark}")
    say(f"report: {path / 'report.html'}")
    return code


@contextlib.contextmanager
def _stage(step: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        message = f"{step} failed with {type(error).__name__}: {error}"
        raise _Stage(f"{message}; results are kept, --debug shows where, --report {path} tries again") from error


def _checked(verdict: Verdict) -> Verdict:
    """Return a verdict of plain values; what could not be measured cannot support a claim."""
    value = float(verdict.value)
    holds = bool(verdict.holds) and not math.isnan(value)
    return Verdict(str(verdict.claim), holds, value, float(verdict.threshold), str(verdict.evidence))


def _code(verdicts: Sequence[Verdict], counts: Mapping[str, Counts]) -> int:
    if any(count.failed or count.not_run for count in counts.values()):
        return FAILED
    return DONE if all(verdict.holds for verdict in verdicts) else NOT_HELD


def _tell(verdicts: Sequence[Verdict], counts: Mapping[str, Counts]) -> None:
    from calcdl.lab.report import number

    for one in verdicts:
        word = "holds" if one.holds else "does not hold"
        say(f"{word + ':':<15} {one.claim} (measured {number(one.value)}, bound {number(one.threshold)})")
    for name, count in counts.items():
        lost = [f"{n:,} {word}" for word, n in zip(Counts._fields[2:], count[2:], strict=True) if n]
        say(f"runs of {name}: " + ", ".join([f"{count.ok:,} of {count.total:,} ok", *lost]).replace("_", " "))


def say(line: str) -> None:
    """Print a line; a reader who has left does not stop the run."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        _silence(sys.stdout)


def complain(line: str) -> None:
    """Print one line on the error stream, whatever line breaks it came with."""
    try:
        print("calcdl:", " ".join(line.split()), file=sys.stderr, flush=True)
    except BrokenPipeError:
        _silence(sys.stderr)


def _silence(stream: Any) -> None:
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let a polite request to end (SIGTERM) do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
