"""Integrals, derivatives and gradient checks beside SciPy, numdifftools and PyTorch: `python -m benchmarks.calculus`.

A batch is 10,000 problems that differ in a parameter: calcdl takes it through `jit(vmap(...))`, a peer in a Python
loop, or at once where it can (`scipy.differentiate` works on arrays). All in float64, in this one process and in turn;
medians of 5. Peers that loop are timed on part of the batch and multiplied up, as their cost is linear. Compiling is
not in the times, but printed. A single call is a compiled call of calcdl, one number in and one out, waited for.
"""

import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.clock import TURNS, median
from calcdl import calculus
from calcdl.calculus.gradient_check import compare_gradient

BATCH, PART = 10_000, 200
PARAMETERS = np.linspace(0.5, 2.0, BATCH)


def smooth(x, p, lib):
    return lib.exp(-p * x) * lib.cos(x)


def singular(x, p, lib):
    return lib.sqrt(x) ** (p - 1)


def waved(x, p, lib):
    return lib.sin(p * x) * lib.exp(-x)


def bowl(x, p, lib):
    return p * lib.sum(lib.tanh(x) ** 2)


def ours(function):
    """Compile for a batch and for one; return both calls, the values of the batch and the seconds of compiling."""
    begun = time.perf_counter()
    batch, one = jax.jit(jax.vmap(function)), jax.jit(function)
    every, first = jnp.asarray(PARAMETERS), jnp.asarray(PARAMETERS[0])
    values = np.asarray(jax.block_until_ready(batch(every)))
    jax.block_until_ready(one(first))
    compiling = time.perf_counter() - begun
    return (lambda: jax.block_until_ready(batch(every))), (lambda: jax.block_until_ready(one(first))), values, compiling


def peers():
    """Return for each workload ours and each peer's call on one parameter; some peers also take the whole batch."""
    import numdifftools
    import torch
    from scipy.differentiate import derivative
    from scipy.integrate import quad

    at = 0.7
    start = np.array([0.3, -0.8, 1.1])
    tensor = torch.tensor(start, requires_grad=True)

    def by_torch(p):
        x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(waved(x, p, torch), x)[0].item()

    def checked_by_torch(p):
        return float(torch.autograd.gradcheck(lambda x: bowl(x, p, torch), (tensor,)))

    def checked(p):
        return jnp.max(compare_gradient(lambda x: bowl(x, p, jnp), jnp.asarray(start)).status) == 0

    integral = lambda f: lambda p: calculus.integrate(lambda x: f(x, p, jnp), 0.0, 1.0).value  # noqa: E731
    return {
        "integral, smooth": (integral(smooth), {"scipy.integrate.quad": lambda p: quad(smooth, 0, 1, (p, np))[0]}, {}),
        "integral, singular end": (
            integral(singular),
            {"scipy.integrate.quad": lambda p: quad(singular, 0, 1, (p, np))[0]},
            {},
        ),
        "derivative, automatic": (
            lambda p: calculus.derivative(lambda x: waved(x, p, jnp))(at),
            {"torch.autograd": by_torch},
            {},
        ),
        "derivative, by differences": (
            lambda p: calculus.finite_difference(lambda x: waved(x, p, jnp), at).value,
            {
                "numdifftools.Derivative": lambda p: float(numdifftools.Derivative(lambda x: waved(x, p, np))(at)),
                "scipy.differentiate": lambda p: float(derivative(lambda x, p: waved(x, p, np), at, args=(p,)).df),
            },
            {"scipy.differentiate": lambda: derivative(lambda x, p: waved(x, p, np), at, args=(PARAMETERS,)).df},
        ),
        "gradient check, 3 entries": (checked, {"torch.autograd.gradcheck": checked_by_torch}, {}),
    }


def main():
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    print(f"{BATCH:,} problems a batch, medians of {TURNS}; a ratio above 1: calcdl is faster")
    for name, (function, one_by_one, at_once) in peers().items():
        batch, one, values, compiling = ours(function)
        here, alone = median(batch), median(lambda one=one: [one() for _ in range(20)]) / 20
        print(f"\n{name}: calcdl {1e3 * here:.1f} ms a batch, {1e6 * alone:.0f} us a call")
        print(f"  (compiled for both in {compiling:.1f} s)")
        for peer, call in one_by_one.items():
            part = np.linspace(0, BATCH - 1, PART).astype(int)
            single = median(lambda call=call, part=part: [call(PARAMETERS[i]) for i in part]) / PART
            if peer in at_once:
                whole, way = median(at_once[peer]), "at once"
            else:
                whole, way = single * BATCH, f"loop, from {PART}"
            off = np.max(np.abs(values[part] - [call(PARAMETERS[i]) for i in part]))
            print(f"  {peer:<26}{1e3 * whole:9.1f} ms a batch ({way}), ratio {whole / here:8.1f}")
            print(f"  {'':<26}{1e6 * single:9.0f} us a call, ratio {single / alone:8.2f}; they differ by {off:.0e}")


if __name__ == "__main__":
    main()
