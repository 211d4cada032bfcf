from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.diagnostics.jacobians import lanczos_singular_values, singular_values


def given(values, rows, columns, dtype=np.float64):
    """A matrix of known singular values."""
    source = np.random.default_rng(0)
    left, right = (np.linalg.qr(source.normal(size=(size, size)))[0] for size in (rows, columns))
    return np.asarray((left[:, : len(values)] * values) @ right[: len(values)], dtype)


@partial(jax.jit, static_argnames="steps")
def both(key, matrix, points, steps):
    """Singular values at points of a function of arrays that are no vectors; its Jacobian at 0 is the matrix."""

    def of_one(x):
        function = lambda x: jnp.tanh(matrix @ x.ravel()).reshape(-1, 1)  # noqa: E731
        return singular_values(function, x), lanczos_singular_values(key, function, x, steps)

    return jax.vmap(of_one)(points)


@pytest.mark.parametrize(("rows", "columns", "dtype"), [(6, 8, np.float32), (8, 6, np.float64)])
def test_both_find_the_singular_values_that_were_put_in(key, rows, columns, dtype):
    values, tolerance = np.array([9.0, 4.0, 2.0, 1.0, 0.5, 0.01]), 3e-6 if dtype == np.float32 else 1e-14
    start = np.zeros((1, columns // 2, 2), dtype)
    exact, found = both(key, given(values, rows, columns, dtype), start, 6)
    np.testing.assert_allclose(exact[0], values, atol=9 * tolerance)
    np.testing.assert_allclose(found.values[0], values, atol=9 * tolerance)
    assert exact.dtype == found.values.dtype == found.errors.dtype == dtype
    assert np.all(found.errors < 30 * tolerance)


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_equal_singular_values_and_zeros_are_counted(key, scale):
    # From one vector a Lanczos method sees each of them once.
    values = np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.0])
    _, found = both(key, given(scale * values, 6, 8, np.float32), np.zeros((1, 4, 2), np.float32), 6)
    np.testing.assert_allclose(found.values[0] / scale, values, atol=3e-6)


def test_few_steps_find_the_largest_at_every_point_and_bound_their_errors(key):
    matrix = given(2.0 ** -np.arange(40), 60, 40)
    points = np.random.default_rng(1).normal(size=(2, 40, 1))
    exact, found = both(key, matrix, points, 12)
    for lane, x in enumerate(points[..., 0]):
        values = np.linalg.svd((1 - np.tanh(matrix @ x) ** 2)[:, None] * matrix)[1]
        np.testing.assert_allclose(exact[lane], values, atol=1e-14)
        nearest = np.abs(np.asarray(found.values[lane])[:, None] - values).min(axis=1)
        assert np.all(nearest <= found.errors[lane] + 1e-14)
        np.testing.assert_allclose(found.values[lane, :5], values[:5], rtol=1e-7)
        assert found.errors[lane, -1] < 1e-2


@pytest.mark.parametrize("steps", [0, 4, 2.0, True])
def test_steps_must_be_possible(key, steps):
    with pytest.raises(ValueError, match="steps: expected a whole number from 1 to 3"):
        lanczos_singular_values(key, lambda x: x * 2.0, np.ones(3), steps)
