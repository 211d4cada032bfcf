import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.diagnostics.calibration import reliability


def test_sums_by_bin_are_those_of_a_loop(key):
    p = np.array(jax.random.uniform(key, (50, 2), jnp.float64))
    happened = np.array(jax.random.bernoulli(jax.random.fold_in(key, 1), 0.4, (50, 2)))
    weight = np.arange(100.0).reshape(50, 2)
    found = reliability(p, happened, weight, bins=7)
    bins = np.minimum((p * 7).astype(int), 6)
    total = 0.0
    for number in range(7):
        inside = bins == number
        sums = [float((weight * one)[inside].sum()) for one in (np.ones_like(p), p, happened)]
        np.testing.assert_allclose([found.events[number], found.expected[number], found.happened[number]], sums)
        total += abs(sums[1] - sums[2])
    np.testing.assert_allclose(found.error, total / weight.sum())


def test_both_ends_are_inside_and_sure_mistakes_cost_all():
    p = jnp.array([0.0, 1.0, 1.0])
    found = reliability(p, jnp.array([False, True, True]))
    assert found.events.tolist() == [1.0, *[0.0] * 8, 2.0]
    assert float(found.error) == 0.0
    assert float(reliability(p, jnp.array([1.0, 0.0, 0.0])).error) == 1.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_true_probabilities_have_the_error_of_chance(key, dtype):
    p = jax.random.uniform(key, (4000,), dtype)
    drawn = jax.random.uniform(jax.random.fold_in(key, 1), (20, 4000), dtype) < p[None, :]
    errors = jax.jit(jax.vmap(lambda happened: reliability(p, happened).error))(drawn)
    assert errors.dtype == dtype
    # Each bin of 400 is off by sqrt(2 / pi) of its standard deviation, sqrt(p (1 - p) / 400), on average.
    middle = (jnp.arange(10) + 0.5) / 10
    expected = float(jnp.mean(jnp.sqrt(2 / jnp.pi * middle * (1 - middle) / 400)))
    assert float(errors.mean()) == pytest.approx(expected, rel=0.15)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"expected one shape, got \(3,\), \(2,\), \(3,\)"):
        reliability(jnp.zeros(3), jnp.zeros(2))
    with pytest.raises(ValueError, match="bins: expected a positive integer, got 0"):
        reliability(jnp.zeros(3), jnp.zeros(3), bins=0)
