"""The clock of the benchmarks that run in one process: a first call that is not counted, then the median of a few."""

import statistics
import time

TURNS = 5


def median(call):
    """Return the median seconds of a call."""
    call()
    times = []
    for _ in range(TURNS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)
