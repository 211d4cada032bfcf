import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from calcdl.theory.one_unit import identity_limit, identity_loss, least_loss

RANGES = [(0.0, 1.0), (-1.0, 1.0), (0.0, math.inf), (-math.inf, 0.5), (-math.inf, math.inf), (-30.0, 30.0)]
LINES = [(2.0, 1.0), (-0.5, 3.0), (1.0, 0.0)]


def by_quadrature(least, greatest, slope, intercept):
    def integrand(z):
        target = slope * z + intercept
        return (target - np.clip(target, least, greatest)) ** 2 * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    ends = [(end - intercept) / slope for end in (least, greatest) if math.isfinite(end)]
    return quad(integrand, -14, 14, points=[end for end in ends if abs(end) < 14] or None, epsabs=1e-13)[0]


@pytest.mark.parametrize(("least", "greatest"), RANGES)
@pytest.mark.parametrize(("slope", "intercept"), LINES)
def test_least_loss_is_the_integral(least, greatest, slope, intercept):
    wanted = by_quadrature(least, greatest, slope, intercept)
    assert float(least_loss(least, greatest, slope, intercept)) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_least_loss_is_reached_by_the_line_cut_off(key):
    target = 2 * jax.random.normal(key, (400_000,), jnp.float64) + 1
    loss = jnp.mean((jnp.clip(target, -1, 1) - target) ** 2)
    assert float(loss) == pytest.approx(float(least_loss(-1.0, 1.0, 2.0, 1.0)), rel=0.01)


def test_least_loss_differentiates_also_where_a_range_has_no_end():
    slopes = jax.grad(least_loss, argnums=(0, 1, 2, 3))(0.0, math.inf, 2.0, 1.0)
    assert all(np.isfinite(slope) for slope in slopes)
    h = 1e-6
    difference = (least_loss(h, math.inf, 2.0, 1.0) - least_loss(-h, math.inf, 2.0, 1.0)) / (2 * h)
    assert float(slopes[0]) == pytest.approx(float(difference), rel=1e-7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_predictions_keep_their_dtype_under_transformations(dtype):
    lows = jnp.asarray([-1.0, 0.0], dtype)
    mapped = jax.jit(jax.vmap(lambda low: least_loss(low, math.inf, 2.0, 1.0)))(lows)
    assert mapped.dtype == dtype
    assert np.asarray(mapped) == pytest.approx(
        [float(least_loss(float(low), math.inf, 2.0, 1.0)) for low in lows], rel=1e-5
    )
    rates = jnp.asarray([0.1, 0.2], dtype)
    curves = jax.jit(jax.vmap(lambda rate: identity_loss(rate, 5, 10, 2.0, 1.0, 0.5)))(rates)
    assert curves.dtype == dtype
    assert curves.shape == (2, 5)
    assert np.asarray(curves[1]) == pytest.approx(np.asarray(identity_loss(0.2, 5, 10, 2.0, 1.0, 0.5)), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_identity_loss_is_the_mean_of_simulated_runs(batch):
    # Plain NumPy, shared with nothing: errors of weight and bias of many runs, each with inputs of its own.
    runs, steps, rate = 400_000, 6, 0.15
    generator = np.random.default_rng(batch)
    errors = generator.uniform(-1, 1, (2, runs)) - np.array([[2.0], [1.0]])
    seen = []
    for _ in range(steps):
        x = generator.normal(size=(batch, runs))
        off = errors[0] * x + errors[1]
        seen.append(np.mean(off**2, axis=0))
        errors -= 2 * rate * np.stack([np.mean(off * x, axis=0), np.mean(off, axis=0)])
    wanted = np.asarray(identity_loss(rate, steps, batch, 2.0, 1.0, 1 / 3))
    seen = np.array(seen)
    assert np.all(np.abs(seen.mean(axis=1) - wanted) < 5 * seen.std(axis=1) / math.sqrt(runs))


@pytest.mark.parametrize("batch", [1, 2, 10, 1000])
def test_the_limit_divides_shrinking_from_growing(batch):
    limit = identity_limit(batch)
    below, above = (identity_loss(limit * share, 4000, batch, 2.0, 1.0, 1.0) for share in (0.99, 1.01))
    assert below[-1] < below[2000] < below[100]
    assert above[-1] > above[2000] > above[100]
    steady = identity_loss(limit, 4000, batch, 2.0, 1.0, 1.0)
    assert float(steady[-1]) == pytest.approx(float(steady[2000]), rel=1e-6)


def test_large_batches_descend_without_noise():
    assert identity_limit(10**9) == pytest.approx(1.0, rel=1e-8)
    losses = np.asarray(identity_loss(0.1, 20, 10**9, 2.0, 1.0, 0.0))
    assert losses == pytest.approx(5 * 0.8 ** (2 * np.arange(20)), rel=1e-6)
