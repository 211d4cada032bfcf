"""L-BFGS and Levenberg-Marquardt beside SciPy, Optimistix and PyTorch: `python -m benchmarks.optimisation`.

A batch is 1,000 starts of one problem of More, Garbow and Hillstrom, spread about the standard start: calcdl takes it
through `jit(vmap(...))`, SciPy in a Python loop, timed on part of the batch and multiplied up. A single solve is a
compiled call of calcdl and of Optimistix; SciPy gets values and gradients from a compiled JAX function, PyTorch from
its own autograd. All in float64, in this one process and in turn; medians of 5. Compiling is not in the times, but
printed. All end at a gradient of 1e-6 or where they stall; "solved" is the share of starts that end within 1e-6 (1 + f)
of the best value that anybody found from the same start.
"""

import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from tests.problems import RESIDUALS

from benchmarks.clock import TURNS, median
from calcdl import optim

STARTS = {
    "rosenbrock": [-1.2, 1.0],
    "helical_valley": [-1.0, 0.1, 0.1],
    "wood": [-3.0, -1.0, -3.0, -1.0],
    "brown_dennis": [25.0, 5.0, -5.0, -1.0],
    "broyden_tridiagonal_10": [-1.0] * 10,
    "chebyquad_8": [place / 9 for place in range(1, 9)],
}
BATCH, PART, STEPS, TOLERANCE = 1_000, 20, 500, 1e-6


def spread(start):
    """Return starts about the standard one, a tenth away in each coordinate."""
    start = np.asarray(start)
    noise = np.random.default_rng(0).normal(size=(BATCH, len(start)))
    return start[None, :] + 0.1 * noise * np.maximum(np.abs(start), 0.1)[None, :]


def half_square(residuals):
    return lambda x: jnp.sum(residuals(x) ** 2) / 2


def contestants(name):
    """Return for both methods ours, as a function of a start to value and status, and the peers, to a value."""
    import optimistix
    import scipy.optimize
    import torch

    residuals = RESIDUALS[name]
    objective = half_square(residuals)
    both, rows = jax.jit(jax.value_and_grad(objective)), jax.jit(residuals)
    slopes = jax.jit(jax.jacfwd(residuals))

    def scipy_lbfgs(x):
        options = {"maxiter": STEPS, "gtol": TOLERANCE, "ftol": 1e-15}
        answer = scipy.optimize.minimize(lambda at: [np.asarray(part) for part in both(at)], x, jac=True,
                                         method="L-BFGS-B", options=options)  # fmt: skip
        return float(answer.fun)

    def scipy_lm(x):
        answer = scipy.optimize.least_squares(lambda at: np.asarray(rows(at)), x, lambda at: np.asarray(slopes(at)),
                                              method="lm", xtol=1e-12, ftol=1e-12, gtol=1e-12)  # fmt: skip
        return float(answer.cost)

    def library(problem, solver, value):
        run = jax.jit(lambda x: value(problem(x, solver).value))
        return lambda x: float(run(x))

    def minimiser(x, solver):
        return optimistix.minimise(lambda y, _: objective(y), solver, x, max_steps=2000, throw=False)

    def fit(x, solver):
        return optimistix.least_squares(lambda y, _: residuals(y), solver, x, max_steps=2000, throw=False)

    peers = {
        "lbfgs": {
            "scipy L-BFGS-B": scipy_lbfgs,
            "optimistix LBFGS": library(minimiser, optimistix.LBFGS(1e-9, 1e-12), objective),
        },
        "levenberg_marquardt": {
            "scipy leastsq": scipy_lm,
            "optimistix LM": library(fit, optimistix.LevenbergMarquardt(1e-9, 1e-12), objective),
        },
    }
    if name == "rosenbrock":

        def by_torch(x):
            at = torch.tensor(x, requires_grad=True)
            rule = torch.optim.LBFGS([at], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe",
                                     tolerance_grad=TOLERANCE, tolerance_change=0.0)  # fmt: skip

            def closure():
                rule.zero_grad()
                value = (100 * (at[1] - at[0] ** 2) ** 2 + (1 - at[0]) ** 2) / 2
                value.backward()
                return value

            rule.step(closure)
            return closure().item()

        peers["lbfgs"]["torch LBFGS"] = by_torch

    def ours(method):
        def solve(x):
            if method == "lbfgs":
                found = optim.minimise(objective, x, optim.lbfgs(), steps=STEPS, tolerance=TOLERANCE)
            else:
                found = optim.least_squares(residuals, x, steps=STEPS, tolerance=TOLERANCE)
            return found.value, found.steps

        return solve

    return {method: (ours(method), calls) for method, calls in peers.items()}


def solved(values, best):
    return np.mean(values <= best + 1e-6 * (1 + np.abs(best)))


def main():
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    print(f"{BATCH:,} starts a batch, medians of {TURNS}; a ratio above 1: calcdl is faster")
    for name, start in STARTS.items():
        starts = spread(start)
        part = starts[:: BATCH // PART]
        for method, (solve, peers) in contestants(name).items():
            begun = time.perf_counter()
            batch, one = jax.jit(jax.vmap(solve)), jax.jit(solve)
            every, first = jnp.asarray(starts), jnp.asarray(starts[0])
            values, steps = jax.block_until_ready(batch(every))
            jax.block_until_ready(one(first))
            compiling = time.perf_counter() - begun
            here = median(lambda batch=batch, every=every: jax.block_until_ready(batch(every)))
            alone = median(lambda one=one, first=first: jax.block_until_ready(one(first)))
            theirs = {peer: np.array([call(x) for x in part]) for peer, call in peers.items()}
            mine = np.asarray(values)[:: BATCH // PART]
            best = np.nanmin([mine, *theirs.values()], axis=0)
            print(f"\n{name}, {method}: calcdl {1e3 * here:.1f} ms a batch, {1e3 * alone:.3f} ms a solve,")
            print(f"  at most {int(steps.max())} steps, solved {solved(mine, best):.0%}; compiled in {compiling:.1f} s")
            for peer, call in peers.items():
                loop = median(lambda call=call, part=part: [call(x) for x in part]) / PART
                single = median(lambda call=call, x=starts[0]: call(x))
                print(f"  {peer:<18} loop {1e3 * BATCH * loop:9.0f} ms a batch, ratio {BATCH * loop / here:8.1f}; "
                      f"{1e3 * single:8.3f} ms a solve, ratio {single / alone:6.2f}; "
                      f"solved {solved(theirs[peer], best):.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
