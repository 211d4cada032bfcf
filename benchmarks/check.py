"""Do the contestants compute the same thing? `python -m benchmarks.check [CONTESTANT ...]`, at small sizes.

What has no randomness must agree number by number; the rest has its own random draws and must agree in the mean,
within five standard errors of the difference.
"""

import os
import sys

import numpy as np

from benchmarks.contestants import load, present
from benchmarks.workloads import RESULTS, workload

STANDARD_ERRORS = 5.0


def smallest(name):
    """Sizes at which a mean over seeds says something and the whole check ends in a few minutes."""
    work = workload(name, 0.05)
    seeds = {"W1": 64, "W2i": 16, "W2t": 8, "W4": 8}
    return work._replace(seeds=seeds[name]) if name in seeds else work


def compared(name, results):
    """Arrays of `[numbers, seeds]` that two contestants must agree on, in a scale where their spread is even."""
    axes = RESULTS[name]
    for variable, names in axes.items():
        values = np.moveaxis(np.asarray(results[variable], np.float64), names.index("seed"), -1)
        if variable != "accuracy":
            values = np.log(np.maximum(values, 1e-30))
        yield variable, values.reshape(-1, values.shape[-1])


def differences(name, results, reference):
    """Sentences on what differs from the reference, none where all is well."""
    wrong = []
    for variable, axes in RESULTS[name].items():
        if variable not in results:
            return [f"{variable} is missing"]
        if np.shape(results[variable]) != np.shape(reference[variable]):
            return [f"{variable} has shape {np.shape(results[variable])}, not {np.shape(reference[variable])}: {axes}"]
    if name == "W3":
        for variable in RESULTS[name]:
            ours, theirs = np.asarray(results[variable]), np.asarray(reference[variable])
            bounded = np.isfinite(theirs) & (np.abs(theirs) < 1e6)
            error = np.abs(ours[bounded] - theirs[bounded]) / (1 + np.abs(theirs[bounded]))
            if not error.max() < 1e-4:
                wrong.append(f"{variable} differs by {error.max():.1e}")
        return wrong
    for (variable, ours), (_, theirs) in zip(compared(name, results), compared(name, reference), strict=True):
        if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
            wrong.append(f"{variable} is missing in other places")
            continue
        kept = ~np.isnan(theirs).any(axis=1)
        gap = ours[kept].mean(axis=1) - theirs[kept].mean(axis=1)
        variance = (ours[kept].var(axis=1, ddof=1) + theirs[kept].var(axis=1, ddof=1)) / ours.shape[1]
        score = np.abs(gap) / np.sqrt(variance + 1e-6)
        if not score.max() < STANDARD_ERRORS:
            wrong.append(f"{variable} differs by {score.max():.1f} standard errors")
    return wrong


def main(names):
    contestants = names or [name for name in present() if name != "jax"]
    os.environ["OMP_NUM_THREADS"] = "1"  # what is not timed need not suffer where others want the cores
    failed = False
    for name in RESULTS:
        work = smallest(name)
        reference = load("jax")[name](work)
        for contestant in contestants:
            wrong = differences(name, load(contestant)[name](work), reference)
            failed |= bool(wrong)
            print(f"{name:4} {contestant:12} {'; '.join(wrong) or 'agrees with jax'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
