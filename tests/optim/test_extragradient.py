import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim import extragradient, minimise
from calcdl.optim.solver import CONVERGED, RUNNING

CURVE = jnp.array([[3.0, 1.0], [1.0, 2.0]])


def bowl(params):
    x = jnp.concatenate([params["a"], params["b"]]) - jnp.array([1.0, -2.0])
    return x @ CURVE.astype(x.dtype) @ x / 2


def test_a_step_goes_along_the_slope_of_the_place_ahead():
    params, h = {"a": jnp.array([2.0]), "b": jnp.array([0.5])}, 0.2
    slope = jax.grad(bowl)
    ahead = jax.tree.map(lambda p, g: p - h * g, params, slope(params))
    wanted = jax.tree.map(lambda p, g: p - h * g, params, slope(ahead))
    moved, state, info = jax.jit(lambda p: extragradient(h).step(bowl, p, ()))(params)
    assert state == ()
    for name in params:
        np.testing.assert_allclose(moved[name], wanted[name], rtol=1e-14)
        np.testing.assert_allclose(info.gradient[name], slope(params)[name], rtol=1e-14)
        np.testing.assert_allclose(info.update[name], wanted[name] - params[name], rtol=1e-13)
    assert (float(info.value), int(info.status)) == (pytest.approx(float(bowl(params))), RUNNING)


def test_it_arrives_at_a_minimum_at_the_pace_of_its_factors():
    start = {"a": jnp.array([2.0]), "b": jnp.array([0.5])}
    rates = jnp.array([0.05, 0.1])
    found = jax.vmap(lambda h: minimise(bowl, start, extragradient(h), steps=400, tolerance=1e-10))(rates)
    assert (found.status == CONVERGED).all()
    np.testing.assert_allclose(found.params["b"][:, 0], -2.0, rtol=1e-9)
    assert int(found.steps[1]) < int(found.steps[0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes_are_kept(dtype):
    params = {"a": jnp.array([2.0], dtype), "b": jnp.array([0.5], dtype)}
    moved, _, info = extragradient(0.1).step(bowl, params, ())
    assert {leaf.dtype for leaf in jax.tree.leaves((moved, info.update, info.gradient))} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_not_positive_is_refused(rate):
    with pytest.raises(ValueError, match="learning_rate"):
        extragradient(rate)
