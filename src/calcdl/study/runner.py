"""Runner: compile the programs of a plan in threads and run its batches as they become ready."""

import queue
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np

from calcdl.study.compiled import Executable, compile_tile
from calcdl.study.program import Arrays, Batch, Plan, coordinates, recipe

OK, DIVERGED, FAILED, NOT_RUN = 0, 1, 2, 3
STATUSES = ("ok", "diverged", "failed", "not_run")
OnBatch = Callable[[Batch, Arrays], None]


def execute(
    plan: Plan,
    finished: Mapping[int, Arrays] | None = None,
    on_batch: OnBatch | None = None,
    executor: Executor | None = None,
) -> dict[int, Arrays]:
    """Run every batch of a plan that is not finished yet.

    Programs compile in threads while the batches of those already compiled run, `workers` batches at once.

    Args:
        plan: what to run.
        finished: outputs of batches already computed, by index.
        on_batch: called in this thread with each batch and its outputs, in the order of completion.
        executor: where to run instead of in threads of this process: one task a program.

    Returns:
        Outputs of every batch, by index.

    Raises:
        Exception: whatever compiling or running raises; batches given to `on_batch` before stay good.

    Example:
        >>> from calcdl.study import axis, plan
        >>> todo = plan(lambda key, x: {"y": 2 * x}, [axis("x", [1.0, 2.0])], workers=1)
        >>> execute(todo)[0]["y"].tolist()
        [[[2.0, 4.0]]]
    """
    outputs: dict[int, Arrays] = dict(finished or {})
    pending = [batch for batch in plan.batches if batch.number not in outputs]
    groups = [[batch for batch in pending if batch.program == number] for number in range(len(plan.programs))]
    groups = [group for group in groups if group]
    done: queue.SimpleQueue[tuple[Batch, Arrays] | BaseException] = queue.SimpleQueue()
    pools = _submit(plan, groups, done, executor)
    try:
        for _ in pending:
            item = done.get()
            if isinstance(item, BaseException):
                raise item
            batch, arrays = item
            outputs[batch.number] = arrays
            if on_batch is not None:
                on_batch(batch, arrays)
    except KeyboardInterrupt:
        _close(pools)
        while not done.empty():  # batches that were under way: nothing already computed is lost
            item = done.get()
            if isinstance(item, tuple) and on_batch is not None:
                on_batch(*item)
        raise
    finally:
        _close(pools)
    return outputs


def _close(pools: Iterable[Executor]) -> None:
    for pool in pools:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(
    plan: Plan, groups: Sequence[Sequence[Batch]], done: Any, executor: Executor | None
) -> tuple[Executor, ...]:
    def deliver(batches: Sequence[Batch], future: Future[Any]) -> None:
        if future.cancelled():
            return
        if (error := future.exception()) is not None:
            done.put(error)
            return
        results = future.result()
        for item in zip(batches, results if isinstance(results, list) else [results], strict=True):
            done.put(item)

    if executor is not None:
        for group in groups:
            executor.submit(run_batches, plan, group).add_done_callback(partial(deliver, group))
        return ()
    workers = max((plan.programs[group[0].program].execution.workers for group in groups), default=1)
    compilers, runners = ThreadPoolExecutor(workers), ThreadPoolExecutor(workers)

    def start(group: Sequence[Batch], future: Future[tuple[Executable, Any]]) -> None:
        if future.cancelled():
            return
        if (error := future.exception()) is not None:
            done.put(error)
            return
        for batch in group:
            try:
                task = runners.submit(run_batch, plan, batch, *future.result())
            except RuntimeError:  # the pool is shutting down: the study was interrupted
                return
            task.add_done_callback(partial(deliver, [batch]))

    for group in groups:
        compilers.submit(prepare, plan, group[0].program).add_done_callback(partial(start, group))
    return compilers, runners


def run_batches(plan: Plan, batches: Iterable[Batch]) -> list[Arrays]:
    """Compile one program and run some of its batches, one after another: a task for any executor."""
    batches = tuple(batches)
    executable, shared = prepare(plan, batches[0].program)
    return [run_batch(plan, batch, executable, shared) for batch in batches]


def prepare(plan: Plan, number: int) -> tuple[Executable, Any]:
    """Compile one program and place what its lanes share."""
    program = plan.programs[number]
    with plan.context.entered():
        return compile_tile(recipe(plan, program), program.execution), jax.device_put(dict(plan.shared))


def run_batch(plan: Plan, batch: Batch, executable: Executable, shared: Any) -> Arrays:
    """Run one batch and drop its padding: outputs and a status, with leading dimensions branch, seed, setting."""
    execution = plan.programs[batch.program].execution
    seeds, settings = coordinates(
        plan, _padded(batch.seeds, execution.seeds), _padded(batch.settings, execution.settings)
    )
    counts = (len(batch.seeds), len(batch.settings))
    with plan.context.entered():
        outputs = executable(batch.branches, counts, seeds, settings, shared)
    tables = [{name: np.asarray(value)[: counts[0], : counts[1]] for name, value in one.items()} for one in outputs]
    tables = [{**table, "status": _status(table, counts)} for table in tables]
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: _stacked([table.get(name) for table in tables], counts) for name in names}


def _status(table: Arrays, counts: tuple[int, int]) -> np.ndarray:
    """Return what the function says of its lanes; a lane that it calls ok but that holds a NaN has failed."""
    broken = np.zeros(counts, bool)
    for values in table.values():
        if np.issubdtype(values.dtype, np.inexact):
            broken |= np.isnan(values).reshape(*counts, -1).any(axis=-1)
    announced = table.get("status", np.zeros(counts)).astype(np.int8)
    return np.where(broken & (announced == OK), np.int8(FAILED), announced)


def _padded(positions: range, width: int) -> list[int]:
    return [*positions, *[positions[-1]] * (width - len(positions))]


def _stacked(tables: Sequence[np.ndarray | None], counts: tuple[int, int]) -> np.ndarray:
    """Stack one output of all branches, filled up with NaN where its sizes differ or a branch does not have it."""
    present = [table for table in tables if table is not None]
    if len(present) == len(tables) and len({table.shape for table in present}) == 1:
        return np.stack(present)
    sizes = tuple(max(sizes) for sizes in zip(*(table.shape[2:] for table in present), strict=True))
    filled = np.full((len(tables), *counts, *sizes), np.nan, np.result_type(np.float32, *present))
    for row, table in zip(filled, tables, strict=True):
        if table is not None:
            row[(..., *(slice(size) for size in table.shape[2:]))] = table
    return filled
