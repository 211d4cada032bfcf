"""Session: one run of an experiment, from its first study to the results on disk."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np

from calcdl import study
from calcdl.lab import store
from calcdl.lab.config import ExperimentConfig, write
from calcdl.lab.environment import describe
from calcdl.lab.flags import Options
from calcdl.lab.progress import Progress

if TYPE_CHECKING:
    import xarray

_RUNS = "runs"
_NOT_RUN = study.STATUSES.index("not_run")


class Counts(NamedTuple):
    """What the lanes of a study have come to.

    Attributes:
        total: all lanes.
        ok: ran to the end.
        diverged: left the numbers in the way that their function announces.
        failed: gave a NaN that their function did not announce.
        not_run: not computed.
    """

    total: int
    ok: int
    diverged: int
    failed: int
    not_run: int


class Session:
    """One run in progress: its directory, and what its studies have come to.

    The directory is made when the first study is planned: a mistake found before leaves nothing behind.
    """

    def __init__(
        self,
        name: str,
        config: ExperimentConfig,
        options: Options,
        *,
        say: Callable[[str], None],
        notice: Callable[[str], None],
        progress: TextIO | None,
    ) -> None:
        """Prepare a run of the experiment `name`; results go to `say`, remarks to `notice`."""
        self.name, self.config, self.options = name, config, options
        self.say, self.notice, self.progress = say, notice, progress
        self.counts: dict[str, Counts] = {}
        self._held: store.Run | None = None
        self._locks = contextlib.ExitStack()

    def __enter__(self) -> "Session":
        """Hold the directory that is to be resumed, if any, before anything is computed."""
        if self.options.resume is not None:
            self._held = self._locks.enter_context(store.hold(self.options.resume, self.options.shard))
        return self

    def __exit__(self, *error: object) -> None:
        """Let the directory go."""
        self._locks.close()

    @property
    def path(self) -> Path | None:
        """The run directory, once there is one."""
        return self._held.path if self._held else None

    def hold(self) -> store.Run:
        """Return the run directory, making one on the first call."""
        if self._held is None:
            make = store.share if self.options.shard else store.create
            path = make(self.options.runs, self.name, write(self.config), {"experiment": self.name, **describe()})
            self._held = self._locks.enter_context(store.hold(path, self.options.shard))
        return self._held

    def run(self, function: study.program.Function, axes: Sequence[study.Axis], **options: Any) -> "xarray.Dataset":
        """Do what `study.run` does, but keep every finished batch, and use those kept by an earlier start.

        Args:
            function: see `study.run`.
            axes: see `study.run`.
            options: see `study.run`; the configuration fills in dtype, strategy, width and workers.

        Returns:
            The labelled results, NaN where another shard computes them.
        """
        plan = planned(self.config, function, axes, options)
        if plan.name in self.counts:
            raise ValueError(f"study {plan.name!r}: expected a name of its own, got one used already")
        results = study.collect(plan, self._execute(plan))
        self.counts[plan.name] = count(results)
        return results

    def _execute(self, plan: study.Plan) -> dict[int, store.Arrays]:
        held = self.hold()
        store.record(held, plan)
        finished, notices = store.finished(held, plan.name)
        for notice in notices:
            self.notice(f"note: {notice}")
        part, parts = self.options.shard or (1, 1)
        mine = tuple(batch for batch in plan.batches if batch.number % parts == part - 1)
        pending = tuple(batch for batch in mine if batch.number not in finished)
        done = sum(batch.lanes for batch in plan.batches if batch.number in finished)
        progress = Progress(plan, done, pending, self.progress)

        def keep(batch: study.Batch, outputs: store.Arrays) -> None:
            store.commit(held, plan.name, batch, outputs)
            progress.advance(batch)

        try:
            return study.execute(plan._replace(batches=mine), finished, keep)
        finally:
            progress.end()


def planned(
    config: ExperimentConfig,
    function: study.program.Function,
    axes: Sequence[study.Axis],
    options: Mapping[str, Any],
) -> study.Plan:
    """Return the plan of one study; what the experiment leaves open the configuration decides."""
    execution = config.execution
    defaults = {
        "dtype": config.precision,
        "strategy": execution.strategy,
        "width": execution.width,
        "workers": execution.workers,
    }
    return study.plan(function, axes, **{**defaults, **options})


def plans(measure: Callable[..., Any], config: ExperimentConfig) -> list[study.Plan]:
    """Return the plans of all studies of an experiment, without running any.

    Every study returns its status alone, all "not run", since the shapes of outputs cost a trace of each branch.
    An experiment that looks at more before its last study gets all outputs, as NaN.

    Args:
        measure: the experiment's function.
        config: its configuration.

    Returns:
        The plans, in order.
    """
    import xarray

    found: list[study.Plan] = []

    def outline(function: study.program.Function, axes: Sequence[study.Axis], **options: Any) -> "xarray.Dataset":
        plan = planned(config, function, axes, options)
        found.append(plan)
        if whole:
            return study.collect(plan, {})
        sizes = [len(one.values) for one in plan.axes]
        status = ([one.name for one in plan.axes], np.full(sizes, _NOT_RUN, np.int8))
        return xarray.Dataset({"status": status}, coords={one.name: list(one.values) for one in plan.axes})

    for whole in (False, True):
        found.clear()
        try:
            measure(config, run=outline)
            break
        except (KeyError, AttributeError):
            if whole:
                raise
    return found


def count(results: "xarray.Dataset") -> Counts:
    """Count the lanes of one study by their status."""
    status = results["status"].values
    return Counts(int(status.size), *(int((status == code).sum()) for code, _ in enumerate(study.STATUSES)))


def with_counts(results: "xarray.Dataset", counts: Mapping[str, Counts]) -> "xarray.Dataset":
    """Return the results with the counts of each study among their attributes."""
    return results.assign_attrs({_RUNS: json.dumps({name: one._asdict() for name, one in counts.items()})})


def counts_of(results: "xarray.Dataset") -> dict[str, Counts]:
    """Return the counts of each study that `with_counts` noted."""
    return {name: Counts(**one) for name, one in json.loads(results.attrs[_RUNS]).items()}
