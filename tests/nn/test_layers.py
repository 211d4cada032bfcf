import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.nn.initialisers import INITIALISERS
from calcdl.nn.layers import PADDINGS, average_pool, convolution, dense, dropout, max_pool

ZEROS = INITIALISERS["zeros"]


def draw(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def by_hand(x, weight, bias, stride, padding):
    """The sum over the kernel, pixel by pixel."""
    sizes, shape = weight.shape[:2], x.shape[1:3]
    start = [0 if padding == "valid" else (size - 1) // 2 for size in sizes]
    reach = [n - size + 1 if padding == "valid" else n for n, size in zip(shape, sizes, strict=True)]
    places = [range(0, n, step) for n, step in zip(reach, stride, strict=True)]
    y = np.zeros((len(x), len(places[0]), len(places[1]), weight.shape[3])) + bias
    for (i, row), (j, column) in itertools.product(enumerate(places[0]), enumerate(places[1])):
        for u, v in itertools.product(range(sizes[0]), range(sizes[1])):
            at = row + u - start[0], column + v - start[1]
            if padding == "circular" or all(0 <= place < n for place, n in zip(at, shape, strict=True)):
                y[:, i, j] += x[:, at[0] % shape[0], at[1] % shape[1]] @ weight[u, v]
    return y


def test_a_dense_layer_is_affine(key):
    layer = dense(4, INITIALISERS["normal"], dtype=jnp.float64)
    params = layer.init(key, (3,))
    x = jnp.ones((2, 3), jnp.float64)
    np.testing.assert_allclose(layer.apply(params, x), x @ params["weight"])
    assert not params["bias"].any()


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_convolution_is_the_sum_over_its_kernel(padding):
    x, cases = draw(2, 5, 4, 3), [((3, 3), (1, 1)), ((2, 3), (2, 1)), ((1, 4), (3, 2))]
    cases += [((12, 7), (1, 1)), ((6, 2), (1, 3))] if padding != "valid" else []
    layers = [convolution(2, ZEROS, kernel=kernel, stride=stride, padding=padding) for kernel, stride in cases]
    params = [{"weight": draw(*kernel, 3, 2, seed=1), "bias": draw(2, seed=2)} for kernel, _ in cases]
    found = jax.jit(lambda given: [layer.apply(own, x) for layer, own in zip(layers, given, strict=True)])(params)
    for y, own, (_, stride) in zip(found, params, cases, strict=True):
        np.testing.assert_allclose(y, by_hand(x, own["weight"], own["bias"], stride, padding), rtol=1e-12, atol=1e-12)


def test_numbers_for_both_sides_and_dtypes_of_a_convolution(key):
    layer = convolution(2, INITIALISERS["he_normal"], 3.0, jnp.bfloat16, kernel=4, stride=2, padding="valid")
    params = jax.eval_shape(partial(layer.init, shape=(8, 8, 3)), key)
    assert params["weight"].shape == (4, 4, 3, 2)
    assert {leaf.dtype for leaf in params.values()} == {np.dtype(jnp.bfloat16)}
    for dtype in (jnp.bfloat16, np.float32):  # images of another dtype are promoted, as in a dense layer
        y = jax.eval_shape(layer.apply, params, jax.ShapeDtypeStruct((1, 8, 8, 3), dtype))
        assert (y.shape, y.dtype) == ((1, 3, 3, 2), dtype)


@pytest.mark.parametrize(("window", "stride"), [(2, None), ((1, 3), None), ((3, 2), (2, 1))])
def test_pools_and_their_gradients(window, stride):
    x = draw(2, 6, 5, 3)
    rows, columns = (window, window) if isinstance(window, int) else window
    down, across = stride or (rows, columns)
    patches = np.lib.stride_tricks.sliding_window_view(x, (rows, columns), (1, 2))[:, ::down, ::across]

    @jax.jit
    def program(x):
        pools = [partial(pool, window=window, stride=stride) for pool in (max_pool, average_pool)]
        slopes = [jax.grad(lambda x: jnp.sum(pool(x) ** 2))(x) for pool in pools]  # noqa: B023
        forward = jax.jvp(jax.grad(lambda x: jnp.sum(pools[0](x) ** 2)), (x,), (x,))[1]
        return [pool(x) for pool in pools], slopes, forward

    (largest, mean), (slope_largest, slope_mean), forward = program(x)
    np.testing.assert_array_equal(largest, patches.max((-1, -2)))
    np.testing.assert_allclose(mean, patches.mean((-1, -2)), rtol=1e-12)
    # Both are homogeneous, so x . grad of the sum of squares is twice that sum, and so is its derivative along x.
    np.testing.assert_allclose(np.sum(x * slope_largest), 2 * np.sum(largest**2), rtol=1e-12)
    np.testing.assert_allclose(np.sum(x * slope_mean), 2 * np.sum(mean**2), rtol=1e-12)
    np.testing.assert_allclose(forward, slope_largest, rtol=1e-12)
    assert np.isin(np.asarray(slope_largest)[~np.isin(x, largest)], 0).all()


def test_pools_keep_dtypes_and_negative_values():
    for dtype in (jnp.bfloat16, np.float32, np.float64):
        x = -np.ones((1, 2, 2, 1), dtype) - np.arange(4, dtype=dtype).reshape(1, 2, 2, 1)
        largest, mean = max_pool(x, 2), average_pool(x, 2)
        assert largest.dtype == mean.dtype == dtype
        assert (float(largest.item()), float(mean.item())) == (-1.0, -2.5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.float64])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(dtype, key):
    x = jnp.full((100, 50), 3, dtype)
    y = np.asarray(jax.jit(dropout)(key, x, np.float64(0.25)), np.float64)
    assert jax.eval_shape(dropout, key, x, 0.25).dtype == dtype
    kept = y != 0
    np.testing.assert_allclose(y[kept], 4.0)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / kept.size)
    # The same key drops the same places of every dtype.
    np.testing.assert_array_equal(kept, dropout(key, np.ones((100, 50), np.float32), 0.25) != 0)
    np.testing.assert_array_equal(dropout(key, x, 0.0), x)


def test_bad_arguments_are_named():
    x = np.ones((1, 3, 4, 1), np.float32)
    params = {"weight": np.ones((4, 1, 1, 1), np.float32), "bias": np.zeros(1, np.float32)}
    with pytest.raises(ValueError, match=r"padding: expected one of same, valid, circular, got 'SAME'"):
        convolution(1, ZEROS, padding="SAME")
    for kernel in (0, (3,), (3, 0), (3, 2.0), True, "3"):
        with pytest.raises(ValueError, match="kernel: expected an integer of at least 1, or a pair"):
            convolution(1, ZEROS, kernel=kernel)
    with pytest.raises(ValueError, match="stride: expected an integer"):
        convolution(1, ZEROS, stride=0)
    with pytest.raises(ValueError, match=r"kernel: expected at most the image's size \(3, 4\), got \(4, 1\)"):
        convolution(1, ZEROS, kernel=(4, 1), padding="valid").apply(params, x)
    for pool in (max_pool, average_pool):
        with pytest.raises(ValueError, match="window: expected at most the image's size"):
            pool(x, 4)
        with pytest.raises(ValueError, match="stride: expected an integer"):
            pool(x, 2, 0)
    for padding in PADDINGS:
        with pytest.raises(ValueError, match=r"x: expected images \[batch, height, width, channels\]"):
            convolution(1, ZEROS, kernel=1, padding=padding).apply(params, x[0])
    for rate in (-0.1, 1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="rate: expected a number from 0 to below 1"):
            dropout(jax.random.key(0), x, rate)
