import io

import pytest

from calcdl import study
from calcdl.lab import progress
from calcdl.lab.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def plan():
    axes = [
        study.axis("depth", [1, 2], static=True),
        study.axis("rate", [0.1, 0.2, 0.3, 0.4]),
    ]
    return study.plan(lambda key, depth, rate: {"y": rate * depth}, axes, name="sums", width=2)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def run(plan, stream, clock, finished=0):
    pending = plan.batches[finished:]
    bar = Progress(plan, sum(batch.lanes for batch in plan.batches[:finished]), pending, stream)
    for batch in pending:
        clock[0] += 1.0
        bar.advance(batch)
    bar.end()
    return stream.getvalue() if stream else ""


def test_a_file_gets_one_line_a_program(plan, clock):
    lines = run(plan, io.StringIO(), clock).splitlines()
    assert lines == ["sums: 4 of 8 lanes, 2/s, 0:02 left", "sums: 8 of 8 lanes, 2/s, 0:04 in all"]


def test_a_terminal_gets_one_moving_line(plan, clock):
    said = run(plan, Terminal(), clock)
    assert said.count("\n") == 1
    assert "[##########..........] sums: 4 of 8 lanes, 2/s, 0:02 left" in said
    assert said.split("\r")[-1].startswith("[####################] sums: 8 of 8 lanes")


def test_a_terminal_is_told_ten_times_a_second_at_most(plan, clock):
    stream = Terminal()
    bar = Progress(plan, 0, plan.batches, stream)
    for batch in plan.batches:
        clock[0] += 0.04
        bar.advance(batch)
    assert stream.getvalue().count("\r") == 2


def test_lanes_of_an_earlier_start_are_there_but_not_in_the_speed(plan, clock):
    assert "sums: 8 of 8 lanes, 2/s, 0:01 in all" in run(plan, io.StringIO(), clock, finished=3)


def test_silence_and_closed_streams_stop_nothing(plan, clock):
    assert run(plan, None, clock) == ""
    stream = Terminal()
    bar = Progress(plan, 0, plan.batches, stream)
    stream.close()
    bar.advance(plan.batches[0])
    bar.end()


def test_the_clock_counts_hours():
    assert [progress._clock(seconds) for seconds in (0.4, 61, 3661)] == ["0:00", "1:01", "1:01:01"]
