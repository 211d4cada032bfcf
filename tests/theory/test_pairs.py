import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.nn.activations import ACTIVATIONS
from calcdl.theory.pairs import batch_pair_expectation, pair_expectation

CORRELATIONS = (-1.0, -0.999999, -0.5, 0.0, 0.3, 0.9999, 1 - 1e-12, 1.0)


def test_kernels_in_closed_form():
    """Two arc-cosine kernels, two arcsine kernels and a product of exponentials."""

    def terms(x, y):
        step = jnp.where(x > 0, 1.0, 0.0) * jnp.where(y > 0, 1.0, 0.0)
        slopes = jnp.exp(-(x**2) - y**2)
        return step * x * y, step, jax.lax.erf(x) * jax.lax.erf(y), slopes, jnp.exp((x + y) / 3)

    integrate = jax.jit(lambda c, scale: pair_expectation(terms, c, scale=scale))
    for scale in (1e-3, 1.0, 4.0):
        for c in CORRELATIONS:
            found, q, angle = integrate(c, scale), scale**2, math.pi - math.acos(c)
            relu = q * (math.sqrt(1 - c * c) + c * angle) / (2 * math.pi)
            erf = 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q))
            gauss = 1 / math.sqrt((1 + 2 * q) ** 2 - (2 * q * c) ** 2)
            expected = relu, angle / (2 * math.pi), erf, gauss, math.exp(q * (1 + c) / 9)
            error = np.abs(np.subtract(found, expected)) / np.maximum(expected, [q, 1, min(q, 1), 1, 1])
            assert np.all(error < 1e-12), (scale, c, error)


def test_kinks_off_the_middle():
    """Four probabilities of a quadrant and of bands at ±3, by SciPy's binormal distribution."""
    from scipy.stats import multivariate_normal

    def above(x, y):
        return jnp.where(x > 3, 1.0, 0.0) * jnp.where(y > 3, 1.0, 0.0), jnp.where((x > 3) ^ (y > 3), 1.0, 0.0)

    integrate = jax.jit(lambda c, scale: pair_expectation(above, c, scale=scale))
    for scale in (1.0, 5.0):
        for c in (-0.5, 0.0, 0.8, 0.999):
            both = multivariate_normal([0, 0], [[1, c], [c, 1]]).cdf([-3 / scale, -3 / scale])
            tail = math.erfc(3 / scale / math.sqrt(2)) / 2
            np.testing.assert_allclose(integrate(c, scale), (both, 2 * (tail - both)), rtol=1e-9, atol=1e-12)


def test_slopes_are_prices_theorem():
    functions = [ACTIVATIONS[name].function for name in ("tanh", "hard_sigmoid", "relu")]

    def products(of, c, scale):
        return pair_expectation(lambda x, y: jnp.stack([f(x) * f(y) for f in of]), c, scale=scale)

    derivative = jax.jit(lambda c: jax.jacfwd(lambda c: products(functions, c, 2.0))(c))
    slopes = jax.jit(lambda c: 2.0**2 * products([jax.grad(f) for f in functions], c, 2.0))
    for c in (-0.9, 0.0, 0.5, 0.999):
        np.testing.assert_allclose(derivative(c), slopes(c), rtol=1e-11)


@pytest.mark.parametrize("batch", [4, 5, 8, 30, 10_000])
def test_moments_of_a_normalised_batch(batch):
    """The sphere in n dimensions: x_i² / B is Beta(1/2, (n - 1)/2) distributed, times 1 - 1/B, with n = B - 1."""
    n = batch - 1

    def terms(x, y):
        kink = jnp.where(x > 0, 1.0, 0.0)
        return 1.0, x * y, (x**2 + y**2) / 2, (x**4 + y**4) / 2, (kink + jnp.where(y > 0, 1.0, 0.0)) / 2, x**2 * y**2

    found = jax.jit(lambda: batch_pair_expectation(terms, batch))()
    fourth = 3 * n / (n + 2)
    # From (Σ x)² = 0 and Σ x² = B: E[x_1² x_2²] = (B² - B E[x⁴]) / (B (B - 1)).
    expected = 1.0, -1 / (batch - 1), 1.0, fourth, 0.5, (batch - fourth) / (batch - 1)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_float32_and_many_at_once():
    def product(c, scale):
        return pair_expectation(lambda x, y: jnp.tanh(x) * jnp.tanh(y), c, scale=scale)

    correlations = jnp.asarray([-1.0, 0.2, 1.0], jnp.float32)
    single = jax.jit(jax.vmap(product, (0, None)))(correlations, jnp.float32(2))
    assert single.dtype == jnp.float32
    double = jax.jit(jax.vmap(product, (0, None)))(correlations.astype(jnp.float64), 2.0)
    np.testing.assert_allclose(single, double, rtol=2e-6)


def test_refusals():
    with pytest.raises(ValueError, match=r"correlation must be between -1 and 1, got 1\.5"):
        pair_expectation(jnp.multiply, 1.5)
    with pytest.raises(ValueError, match="scale must be a standard deviation, at least 0 and finite, got -1"):
        pair_expectation(jnp.multiply, 0.5, scale=-1.0)
    with pytest.raises(ValueError, match="batch must be a whole number of at least 4, got 3"):
        batch_pair_expectation(jnp.multiply, 3)
