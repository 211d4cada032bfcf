import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.roundoff import measure


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cancellation_is_seen_where_values_are_constant(dtype):
    eps = float(jnp.finfo(dtype).eps)
    points = jnp.asarray([1.0, 1e-2, eps, eps**1.2], dtype)
    found = measure(lambda x: (1 - jnp.cos(x)) / x**2, points)
    # The cosine is 1 to the last place; half a unit of it is what the quotient may err by.
    assert np.all(found.noise > 0.1 * eps / points**2)
    assert found.value[2] == found.value[3] == 0
    assert found.value.dtype == dtype


def test_noise_covers_what_is_lost():
    points = jnp.asarray(np.geomspace(1, 1e-6, 40))
    found = measure(lambda x: (jnp.exp(x) - 1) / x, points)
    exact = jnp.expm1(points) / points
    assert np.all(np.abs(found.value - exact) <= found.noise)


def test_undefined_is_told_from_overflow():
    points = jnp.asarray([2.0, 1e3])
    assert measure(lambda x: jnp.sqrt(1 - x), points).undefined.tolist() == [True, True]
    quotient = measure(lambda x: jnp.exp(x) / (1 + jnp.exp(x)), points)
    assert np.isnan(quotient.value[1])
    assert not quotient.undefined[1]
    assert not np.any(measure(lambda x: (x - x) / (x - x), points).undefined)


def test_calls_loops_and_branches_are_followed():
    def function(x):
        y = jax.nn.relu(x) + jax.jit(jnp.sin)(x)
        y = jax.lax.fori_loop(0, 3, lambda _, z: z * 0.5, y)
        return jax.lax.cond(x > 1, lambda z: z, lambda z: -z, y)

    points = jnp.asarray([0.5, 2.0])
    found = measure(function, points)
    np.testing.assert_allclose(found.value, jax.vmap(function)(points), rtol=1e-15)
    assert np.all(found.noise < 1e-14)


def test_a_constant_is_known_to_its_last_place_only():
    assert measure(lambda x: jnp.sin(x) / (x - np.pi), jnp.asarray([np.pi + 1e-12])).noise > 1e-5
    assert measure(lambda x: (x - 2) / 1.5, jnp.asarray([2 + 1e-12])).noise < 1e-14


def test_one_real_number_is_wanted():
    with pytest.raises(ValueError, match="function must return one real number"):
        measure(lambda x: (x, x), jnp.ones(3))
