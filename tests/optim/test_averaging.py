import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim import averaged, descent, minimise
from calcdl.optim.solver import Info, Solver


def walking(step=0.25):
    """A solver that walks to the right whatever the objective says."""

    def move(objective, params, state):
        return params + params.dtype.type(step), state, Info(objective(params), params, params, jnp.int32(-1))

    return Solver(lambda _: (), move)


@pytest.mark.parametrize("decay", [None, 0.0, 0.7])
def test_the_mean_is_that_of_the_iterates_after_the_start(decay):
    found = minimise(lambda x: x, jnp.float64(2.0), averaged(walking(), decay), steps=6, trace=["params", "value"])
    positions = 2 + 0.25 * np.arange(1, 7)
    means = [2.0]
    for count in range(1, 7):
        weights = np.ones(count) if decay is None else decay ** np.arange(count)[::-1]
        means.append(np.sum(weights * positions[:count]) / np.sum(weights))
    np.testing.assert_allclose(found.trace.params, means, rtol=1e-14)
    np.testing.assert_allclose(found.trace.value, means, rtol=1e-14)
    assert float(found.state.iterate) == positions[-1]


def test_half_precision_is_averaged_in_float32():
    found = minimise(lambda x: x, jnp.bfloat16(0.0), averaged(walking()), steps=60, tolerance=0.0)
    assert (found.params.dtype, found.state.average.dtype) == (jnp.bfloat16, jnp.float32)
    assert float(found.state.average) == pytest.approx(0.25 * 61 / 2, rel=1e-6)


def test_the_mean_of_a_zig_zag_is_nearer():
    # A zig-zag of the largest stable rate: its mean is the minimum.
    plain = minimise(lambda x: (x - 1) ** 2, jnp.float64(3.0), descent("sgd", 0.999), steps=101)
    mean = minimise(lambda x: (x - 1) ** 2, jnp.float64(3.0), averaged(descent("sgd", 0.999)), steps=101)
    assert float(mean.value) < 1e-3 * float(plain.value)
