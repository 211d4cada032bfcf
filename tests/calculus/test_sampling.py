import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.sampling import monte_carlo, quasi_monte_carlo

METHODS = {"monte_carlo": monte_carlo, "quasi_monte_carlo": quasi_monte_carlo}


def decay(x):
    return jnp.exp(-jnp.sum(x))


def errors(method, key, dimension, samples, repeats):
    lower, upper = jnp.full(dimension, 0.5), jnp.full(dimension, 2.0)
    expected = (math.exp(-0.5) - math.exp(-2.0)) ** dimension
    run = jax.jit(jax.vmap(lambda key: METHODS[method](key, decay, lower, upper, samples)))
    value, standard_error = run(jax.random.split(key, repeats))
    return np.asarray(value) - expected, np.asarray(standard_error)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("dimension", [1, 3])
def test_errors_in_units_of_the_standard_error(method, dimension, key):
    error, standard_error = errors(method, key, dimension, 256, 200)
    scores = error / standard_error
    assert abs(np.mean(scores)) < 4 / math.sqrt(200) * 1.2
    assert 0.8 < np.sqrt(np.mean(scores**2)) < 1.25
    assert np.mean(abs(scores) < 2) > 0.9


@pytest.mark.parametrize(("method", "low", "high"), [("monte_carlo", -0.6, -0.4), ("quasi_monte_carlo", -2.5, -0.8)])
def test_orders(method, low, high, key):
    sizes = np.array([128, 1024])
    rms = [np.sqrt(np.mean(errors(method, key, 3, int(size), 50)[0] ** 2)) for size in sizes]
    assert low < np.polyfit(np.log(sizes), np.log(rms), 1)[0] < high


@pytest.mark.parametrize("method", list(METHODS))
def test_dtype_and_derivative(method, key):
    estimate = METHODS[method](key, jnp.sum, np.zeros(2, np.float32), np.ones(2, np.float32), 4096)
    assert estimate.value.dtype == estimate.standard_error.dtype == jnp.float32
    assert estimate.value == pytest.approx(1, abs=5 * float(estimate.standard_error))
    slope = jax.jit(jax.grad(lambda rate: METHODS[method](key, lambda x: rate * jnp.sum(x), [0.0], [1.0], 4096).value))
    assert slope(3.0) == pytest.approx(0.5, abs=0.02)
    with jax.enable_x64(False):
        narrow = METHODS[method](key, jnp.sum, np.zeros(2, np.float32), np.ones(2, np.float32), 4096)
    assert narrow.value == estimate.value


def test_bad_samples_are_named(key):
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        monte_carlo(key, decay, [0.0], [1.0], 1)
    with pytest.raises(ValueError, match="replicates at least 2, got 8 and 1"):
        quasi_monte_carlo(key, decay, [0.0], [1.0], 8, replicates=1)
    with pytest.raises(ValueError, match="lower and upper must be vectors of one length"):
        monte_carlo(key, decay, [0.0], [1.0, 2.0], 8)
