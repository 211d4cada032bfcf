"""Progress: one moving line on a terminal, one line a program elsewhere."""

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from calcdl.study import Batch, Plan

_INTERVAL = 0.1


class Progress:
    """How far a study has come, told on a stream.

    Lanes of a deep program take longer than those of a shallow one, so the time left is judged by the
    operations that the plan counts, not by lanes.
    """

    def __init__(self, plan: Plan, finished: int, pending: Sequence[Batch], stream: TextIO | None) -> None:
        """Begin with some lanes finished earlier and some batches to come; a stream of None is silent."""
        self._plan, self._stream = plan, stream
        self._lanes, self._kept = finished, finished
        self._start, self._told = time.monotonic(), 0.0
        self._work, self._all_work = 0.0, sum(map(self._weigh, pending))
        self._remaining = Counter(batch.program for batch in pending)
        self._terminal = stream is not None and stream.isatty()
        if self._terminal and pending:
            self._tell(self._line(), moving=True)

    def advance(self, batch: Batch) -> None:
        """Note a finished batch."""
        self._lanes += batch.lanes
        self._work += self._weigh(batch)
        self._remaining[batch.program] -= 1
        now = time.monotonic()
        if self._terminal and now - self._told >= _INTERVAL:
            self._told = now
            self._tell(self._line(), moving=True)
        elif not self._terminal and not self._remaining[batch.program]:
            self._tell(self._line())

    def end(self) -> None:
        """Leave the last state of the moving line on the terminal."""
        if self._terminal:
            self._tell("\r" + self._line() + "\x1b[K")

    def _weigh(self, batch: Batch) -> float:
        return batch.lanes * max(1.0, float(self._plan.programs[batch.program].cost.operations))

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        share = self._lanes / max(1, self._plan.lanes)
        rate = (self._lanes - self._kept) / seconds
        parts = [f"{self._plan.name}: {self._lanes:,} of {self._plan.lanes:,} lanes", f"{rate:,.0f}/s"]
        if self._lanes >= self._plan.lanes:
            parts.append(f"{_clock(seconds)} in all")
        elif self._work:
            parts.append(f"{_clock(seconds * (self._all_work / self._work - 1))} left")
        filled = int(20 * share)
        bar = f"[{'#' * filled}{'.' * (20 - filled)}] " if self._terminal else ""
        return bar + ", ".join(parts)

    def _tell(self, text: str, moving: bool = False) -> None:
        if self._stream is None:
            return
        with contextlib.suppress(OSError, ValueError):  # a closed stream ends the telling, not the run
            if moving:
                text = "\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K"
            self._stream.write(text if moving else text + "\n")
            self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
