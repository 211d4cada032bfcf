import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import rosenbrock

from calcdl.optim.quasi_newton import bfgs
from calcdl.optim.solver import CONVERGED, STALLED, minimise


def valley(x):
    return jnp.sum(rosenbrock(x) ** 2)


# Optimistix leaves a change out where s'y <= 2e-16; the run must not depend on the unit of the objective.
def test_the_unit_of_the_objective_does_not_matter():
    def run(unit):
        return minimise(lambda x: unit * valley(x), jnp.array([-1.2, 1.0]), bfgs(), steps=200, tolerance=1e-7 * unit)

    found = jax.jit(jax.vmap(run))(jnp.array([1.0, 2.0**-60, 2.0**40]))
    assert np.asarray(found.status).tolist() == [CONVERGED] * 3
    np.testing.assert_allclose(found.params, 1, rtol=1e-6)
    assert np.ptp(np.asarray(found.steps)) <= 20


def test_the_matrix_learned_is_the_inverse_hessian():
    matrix = jnp.array([[4.0, 1.0], [1.0, 3.0]])
    found = jax.jit(lambda x: minimise(lambda x: x @ matrix @ x / 2, x, bfgs(), steps=60))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(found.state.inverse, jnp.linalg.inv(matrix), rtol=0.02)


def test_where_the_objective_bends_downwards_the_steps_grow():
    found = jax.jit(lambda x: minimise(lambda x: -jnp.exp(-(x**2) / 2), x, bfgs(), steps=100))(jnp.float64(4.0))
    assert abs(float(found.params)) < 1e-7
    assert int(found.steps) < 30


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_trees_keep_structure_and_dtype(dtype):
    def bowl(p):
        return jnp.sum((p["a"] - 3) ** 2 * jnp.array([1, 9], p["a"].dtype)) + (p["b"] + 1) ** 2

    start = {"a": jnp.zeros(2, dtype), "b": jnp.zeros((), dtype)}
    found = jax.jit(lambda start: minimise(bowl, start, bfgs(), steps=40))(start)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype(dtype)}
    assert int(found.status) in (CONVERGED, STALLED)
    np.testing.assert_allclose(found.params["a"].astype(float), 3, rtol=2e-2 if dtype == jnp.bfloat16 else 1e-3)
