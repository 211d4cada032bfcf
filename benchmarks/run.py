"""calcdl and its peers, side by side: `python -m benchmarks.run [--workloads W1 ...] [--contestants ours ...]`.

Every contestant of a workload is a process of its own.

- *cold* is the time from the start of a fresh process to its first complete result: imports, data, compilation, run.
- *run* is the median time of the whole study in a process that has run it before. The contestants take turns.
- *memory* is the peak resident memory of the process over one whole cold run.

Peers that take one run after another are timed on fewer seeds where the whole would take minutes, and their times are
multiplied up; such rows say so. Their memory is that of the part. No compilation is read from a cache on disk. Threads
that wait for each other lose most where others want the cores, so run this on a quiet machine.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.contestants import MODULES, TITLES, load, present

# Seeds that stand for all of them, where runs follow one another and the cost is linear in their number.
SAMPLES = {("W1", "torch"): 4, ("W1", "optax"): 4, ("W2t", "torch"): 1, ("W2t", "optax"): 1}
WORKLOADS = ("W1", "W2i", "W2t", "W3", "W4")


def peak_mebibytes():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (20 if sys.platform == "darwin" else 10)


def work_in_turn(name, contestant, scale, seeds):
    """Be one contestant: run once, then once more for every line on standard input; answer each in JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr
    from benchmarks.workloads import workload

    function, work = load(contestant)[name], workload(name, scale)
    fraction = 1.0
    if seeds and seeds < work.seeds:
        fraction = seeds / work.seeds
        work = work._replace(seeds=seeds)
    imported = peak_mebibytes()
    while True:
        begun = time.perf_counter()
        function(work)
        answer = {"seconds": time.perf_counter() - begun, "fraction": fraction}
        print(json.dumps({**answer, "mebibytes": peak_mebibytes(), "imported": imported}), file=answers, flush=True)
        if not sys.stdin.readline():
            return


class Process:
    """One contestant in a process of its own, and the time to its first result."""

    def __init__(self, name, contestant, options):
        seeds = 0 if options.whole else SAMPLES.get((name, contestant), 0)
        command = [sys.executable, "-m", "benchmarks.run", "--as", name, contestant, str(seeds)]
        environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        if options.torch_threads:
            environment["OMP_NUM_THREADS"] = str(options.torch_threads)
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, "--scale", str(options.scale)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.first = self.answer()
        self.cold = time.perf_counter() - begun

    def answer(self):
        """Read the next answer."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"benchmarks: {' '.join(self.process.args)} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def again(self):
        """Run once more; return the seconds."""
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        return self.answer()["seconds"]

    def end(self):
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait()


def race(name, contestants, options):
    """Time one workload: cold starts one by one, then runs in turn."""
    cold = {contestant: [] for contestant in contestants}
    processes = {}
    for turn in range(options.cold):
        for contestant in contestants:
            process = Process(name, contestant, options)
            cold[contestant].append(process.cold)
            if turn == options.cold - 1:
                processes[contestant] = process
            else:
                process.end()
    runs = {contestant: [] for contestant in contestants}
    for _ in range(options.repeats):
        for contestant, process in processes.items():
            runs[contestant].append(process.again())
    rows = []
    for contestant, process in processes.items():
        process.end()
        fraction = process.first["fraction"]
        run = statistics.median(runs[contestant])
        rows.append(
            {
                "workload": name,
                "contestant": contestant,
                "scale": options.scale,
                "timed_fraction": fraction,
                "torch_threads": options.torch_threads,
                "run_seconds": run / fraction,
                "run_seconds_measured": runs[contestant],
                "cold_seconds": statistics.median(cold[contestant]) + run * (1 / fraction - 1),
                "cold_seconds_measured": cold[contestant],
                "peak_mebibytes": process.first["mebibytes"],
                "imported_mebibytes": process.first["imported"],
            }
        )
    return rows


def table(rows):
    """Lines of a table; factors are how many times longer than ours, where ours ran."""
    ours = next((row for row in rows if row["contestant"] == "ours"), None)

    def factor(row, field):
        return f"{row[field] / ours[field]:10.1f}x" if ours else " " * 11

    yield f"{rows[0]['workload']:28}{'run s':>11}{'':11}{'cold s':>10}{'':11}{'memory MiB':>12}"
    for row in rows:
        part = row["timed_fraction"]
        note = f"  from {part:.1%} of the runs" if part < 1 else ""
        yield (
            f"{TITLES[row['contestant']]:28}{row['run_seconds']:11.4g}{factor(row, 'run_seconds')}"
            f"{row['cold_seconds']:10.4g}{factor(row, 'cold_seconds')}{row['peak_mebibytes']:12.0f}{note}"
        )
    yield ""


def versions():
    from importlib import metadata

    found = {}
    for package in ("calcdl", "jax", "jaxlib", "optax", "numpy", "torch"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "cores": os.cpu_count(), **found}


def read_options(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=WORKLOADS, metavar="W")
    parser.add_argument("--contestants", nargs="+", choices=tuple(MODULES), metavar="NAME", help=", ".join(MODULES))
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (5)")
    parser.add_argument("--cold", type=int, default=3, help="cold starts of each (3)")
    parser.add_argument("--scale", type=float, default=1.0, help="below 1 shrinks every study (1.0)")
    parser.add_argument("--whole", action="store_true", help="time the slow peers whole, on all their seeds")
    parser.add_argument("--torch-threads", type=int, default=0, help="threads of PyTorch (its own choice)")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks.jsonl"), help="JSON lines, appended")
    parser.add_argument("--as", nargs=3, dest="role", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.cold < 1 or not (options.scale > 0 and math.isfinite(options.scale)):
        parser.error("--repeats, --cold and --scale: expected positive numbers")
    return options


def main(arguments=None):
    options = read_options(arguments)
    if options.role:
        name, contestant, seeds = options.role
        work_in_turn(name, contestant, options.scale, int(seeds))
        return 0
    contestants = options.contestants or present()
    absent = [TITLES[name] for name in MODULES if name not in contestants]
    if absent and not options.contestants:
        print(f"not installed here, so left out: {', '.join(absent)}\n")
    record = {"when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "versions": versions(), "load": os.getloadavg()[0]}
    print(json.dumps(record["versions"]), "\n")
    if record["load"] > 0.5:
        print(f"the machine is not quiet (load {record['load']:.1f}): do not trust these times\n")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for name in options.workloads:
        rows = race(name, contestants, options)
        print("\n".join(table(rows)), flush=True)
        with options.output.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({**record, **row}) + "\n" for row in rows)
    print(f"medians of {options.repeats} runs and {options.cold} cold starts; every number is in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
