"""One table for all that minimises: it arrives, keeps dtypes and structure, compiles once, batches, and refuses."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim import (
    OPTIMISERS,
    SumOfSquares,
    alternating,
    augmented_lagrangian,
    averaged,
    bfgs,
    descent,
    dogleg,
    extragradient,
    frozen,
    gauss_newton,
    lbfgs,
    levenberg_marquardt,
    minimise,
    newton,
    projected,
    projection,
    proximal_descent,
    proximal_l1,
    steepest_descent,
)
from calcdl.optim.solver import CONVERGED, RUNNING, STALLED, STATUSES

BEST = {"weight": np.array([1.0, -2.0]), "bias": np.array([0.5])}
VALLEY = {"weight": np.array([1.0, 1.0]), "bias": np.array([0.5])}
RATES = (1e-4, 1e-3, 2e-3, 3e-3, 1e-2, 1e-1, 1.0)


def bowl_residuals(p):
    """A quadratic, shifted and asymmetric: curvatures 3.3, 1 and 4 about (1, -2, 1/2), correlated."""
    across = p["weight"] - jnp.asarray(BEST["weight"], p["weight"].dtype)
    return jnp.stack([3**0.5 * across[0], across[1] + 0.5 * across[0], 2 * (p["bias"][0] - 0.5)])


def valley_residuals(p):
    """Rosenbrock's valley."""
    x, y = p["weight"]
    return jnp.stack([10 * (y - x**2), 1 - x, p["bias"][0] - 0.5])


def start(dtype):
    return {"weight": jnp.array([-1.2, 1.0], dtype), "bias": jnp.array([2.0], dtype)}


class Entry(NamedTuple):
    """A solver under contract: how it is made, how long it takes, and how near it comes."""

    make: Callable  # (residuals, rate) -> solver
    steps: int = 100
    bowl: float = 1e-12
    valley: float = 1e-12
    refuses: tuple = ()  # (call, words)


def first_order(name):
    near = {"sign_sgd": 0.1, "fromage": 0.1, "optimistic_gradient_descent": 0.1, "adafactor": 0.05, "lamb": 0.05,
            "adadelta": 0.03} | dict.fromkeys(("radam", "lion", "lars", "rmsprop", "sgd"), 0.01)  # fmt: skip
    refuses = ((partial(descent, name, -1.0), "learning_rate"), (partial(descent, name, 0.1, b7=1.0), "b7"))
    return Entry(lambda _, rate: descent(name, rate), 5000, 1e-3, near.get(name, 1e-3), refuses)


SOLVERS = {name: first_order(name) for name in OPTIMISERS} | {
    "averaged": Entry(lambda _, rate: averaged(descent("momentum", rate), 0.9), 5000, 1e-6, 1e-6,
                      ((lambda: averaged(descent("sgd", 0.1), 1.5), "decay"),)),
    "steepest_descent": Entry(lambda *_: steepest_descent(), 2000, 1e-12, 1e-2,
                              ((lambda: steepest_descent(line_search="exact"), "line_search"),)),
    "steepest_descent_backtracking": Entry(lambda *_: steepest_descent(line_search="backtracking"), 2000, 1e-12, 1e-2),
    "lbfgs": Entry(lambda *_: lbfgs(), refuses=((lambda: lbfgs(memory_size=0), "memory_size"),)),
    "lbfgs_backtracking": Entry(lambda *_: lbfgs(line_search="backtracking")),
    "newton": Entry(lambda *_: newton(), refuses=((lambda: newton(damping=-1.0), "damping"),
                                                  (lambda: newton(curvature="none"), "curvature"))),
    "newton_absolute": Entry(lambda *_: newton(curvature="absolute")),
    "newton_raw": Entry(lambda *_: newton(curvature="raw")),
    "newton_cg": Entry(lambda *_: newton(solve="cg"), refuses=((lambda: newton(solve="gmres"), "solve"),)),
    "bfgs": Entry(lambda *_: bfgs()),
    "gauss_newton": Entry(lambda residuals, _: gauss_newton(residuals)),
    "levenberg_marquardt": Entry(lambda residuals, _: levenberg_marquardt(residuals)),
    "dogleg": Entry(lambda residuals, _: dogleg(residuals)),
    "projected": Entry(lambda _, rate: projected(descent("momentum", rate), projection("l2_ball", scale=9.0)),
                       5000, 1e-6, 1e-6, ((lambda: projection("l2_ball", scale=-1.0), "scale"),)),
    "proximal_descent": Entry(lambda _, rate: proximal_descent(rate, proximal_l1(0.0), accelerated=True),
                              5000, 1e-6, 1e-6, ((lambda: proximal_descent(-1.0, proximal_l1(0.0)), "learning_rate"),
                                                 (lambda: proximal_l1(-1.0), "strength"))),
    "extragradient": Entry(lambda _, rate: extragradient(rate), 5000, 1e-3, 0.01,
                           ((lambda: extragradient(0.0), "learning_rate"),)),
    "frozen, alternating": Entry(lambda *_: alternating(frozen(newton(), ["bias"]), frozen(newton(), ["weight"])),
                                 refuses=((alternating, "solvers"), (lambda: frozen(newton(), []), "patterns"))),
    "augmented_lagrangian": Entry(lambda *_: augmented_lagrangian(lambda p: p["bias"] - 0.5), 30, 1e-12, 1e-12,
                                  ((lambda: augmented_lagrangian(penalty=0.0), "penalty"),)),
}  # fmt: skip


@pytest.mark.parametrize("name", SOLVERS)
def test_it_arrives_in_one_program_for_all_rates_and_compiles_once(name):
    entry, traced = SOLVERS[name], []

    @jax.jit
    def program(rates):
        traced.append(name)

        def ends(rate, in_valley):
            def residuals(p):
                return jnp.where(in_valley, valley_residuals(p), bowl_residuals(p))

            return minimise(SumOfSquares(residuals), start(jnp.float64), entry.make(residuals, rate),
                            steps=entry.steps)  # fmt: skip

        return jax.vmap(lambda in_valley: jax.vmap(partial(ends, in_valley=in_valley))(rates))(jnp.array([False, True]))

    rates = jnp.asarray(RATES)
    both = program(rates)
    for lane, (least, place) in enumerate(((entry.bowl, BEST), (entry.valley, VALLEY))):
        found = jax.tree.map(lambda leaf, lane=lane: np.asarray(leaf[lane]), both)
        best = np.nanargmin(found.value)
        assert found.value[best] <= least
        assert int(found.status[best]) in range(len(STATUSES))
        for leaf, expected in zip(jax.tree.leaves(found.params), jax.tree.leaves(place), strict=True):
            np.testing.assert_allclose(leaf[best], expected, atol=10 * least**0.5)
        if least <= 1e-12:
            assert int(found.status[best]) in (CONVERGED, STALLED)
    program(rates[::-1])
    assert traced == [name]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_scan_of_its_steps_keeps_dtypes_and_structure(name, dtype):
    # A scan accepts only a step that hands on what it takes, down to weak types; nothing is compiled here.
    def scanned(params, rate):
        solver = SOLVERS[name].make(bowl_residuals, rate)
        objective = SumOfSquares(bowl_residuals)

        def advance(carry, _):
            params, state, info = solver.step(objective, *carry)
            return (params, state), info

        return jax.lax.scan(advance, (params, solver.init(params)), length=2)

    params = start(dtype)
    (moved, _), info = jax.eval_shape(scanned, params, jax.ShapeDtypeStruct((), jnp.float32))
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), moved) == described
    constrained = name == "augmented_lagrangian"  # there the residuals of the conditions take the gradient's place
    for tree in (info.update,) if constrained else (info.gradient, info.update):
        assert jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), tree) == described
    assert (info.value.shape, info.status.shape, info.status.dtype) == ((2,), (2,), jnp.int32)
    assert info.value.dtype == jax.eval_shape(SumOfSquares(bowl_residuals), params).dtype


@pytest.mark.parametrize("name", [name for name, entry in SOLVERS.items() if entry.refuses])
def test_it_refuses_bad_hyperparameters_by_name(name):
    for call, word in SOLVERS[name].refuses:
        with pytest.raises(ValueError, match=word):
            call()


def test_info_tells_of_the_parameters_before_the_step():
    for name in ("sgd", "steepest_descent_backtracking", "averaged"):
        solver, params = SOLVERS[name].make(bowl_residuals, 0.1), start(jnp.float64)
        objective = SumOfSquares(bowl_residuals)
        moved, _, info = jax.jit(partial(solver.step, objective))(params, solver.init(params))
        np.testing.assert_allclose(info.value, objective(params), rtol=1e-14)
        assert int(info.status) == RUNNING
        for before, after, update in zip(*map(jax.tree.leaves, (params, moved, info.update)), strict=True):
            np.testing.assert_allclose(before + update, after, rtol=1e-14)
