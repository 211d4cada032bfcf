import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.nn.normalisation import (
    NORMALISATIONS,
    Statistics,
    batch_norm,
    batch_statistics,
    layer_norm,
    running_statistics,
)

TOLERANCE = {np.float32: 2e-6, np.float64: 1e-13}
NORMS = ["batch", "layer"]


def draw(shape, dtype=np.float64):
    """Features of unequal means and sizes."""
    sizes = np.linspace(0.5, 4, shape[-1])
    return (sizes * (3 + np.random.default_rng(0).normal(size=shape))).astype(dtype)


def with_gradient(layer, params, x, upstream):
    """Value, and the gradient by x of its product with `upstream`, as one program."""

    def program(params, x, upstream):
        y, back = jax.vjp(lambda x: layer.apply(params, x), x)
        return y, back(upstream)[0]

    return map(np.asarray, jax.jit(program)(params, x, upstream))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NORMS)
def test_values_and_gradients_are_the_golden_ones(name, dtype, truths):
    golden = truths("extras.json")["norm_golden"]
    x, upstream, scale, shift = (np.asarray(golden[one], dtype) for one in ("x", "upstream", "gamma", "beta"))
    layer = NORMALISATIONS[name](golden["eps"], dtype)
    y, dx = with_gradient(layer, {"scale": scale, "shift": shift}, x, upstream)
    assert y.dtype == dx.dtype == dtype
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(y, golden[f"{name}norm"]["y"], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(dx, golden[f"{name}norm"]["dx"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "axes"), [("batch", (0, 1, 2)), ("layer", (3,))])
def test_images_are_normalised_over_places_too(name, axes):
    x, layer = draw((4, 3, 2, 5)), NORMALISATIONS[name](1e-3, np.float64)
    params = {"scale": np.arange(1.0, 6.0), "shift": np.linspace(-1.0, 1.0, 5)}
    expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-3)
    expected = expected * params["scale"] + params["shift"]
    np.testing.assert_allclose(layer.apply(params, jnp.asarray(x)), expected, rtol=1e-12, atol=1e-12)
    batched = jax.jit(jax.vmap(layer.apply, in_axes=(None, 0)))(params, np.stack([2 * x + 1, x]))
    np.testing.assert_allclose(batched[1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_the_scale_of_the_input_goes_into_the_gradient_alone(name):
    layer = NORMALISATIONS[name](1e-30, np.float64)
    x, upstream, params = draw((6, 5)), draw((6, 5))[::-1] ** 2, {"scale": np.ones(5), "shift": np.zeros(5)}
    y, dx = with_gradient(layer, params, x, upstream)
    larger, smaller = with_gradient(layer, params, 7 * x + 2, upstream)
    np.testing.assert_allclose(larger, y, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(7 * smaller, dx, rtol=1e-10, atol=1e-11)
    axis = 0 if name == "batch" else 1
    np.testing.assert_allclose(dx.sum(axis), 0, atol=1e-11)
    np.testing.assert_allclose((dx * y).sum(axis), 0, atol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("name", NORMALISATIONS)
def test_it_keeps_dtypes_and_a_constant_input_keeps_it_finite(name, dtype, key):
    layer = NORMALISATIONS[name](dtype=dtype)
    params = layer.init(key, (8,))
    assert set(params) == (set() if name == "none" else {"scale", "shift"})
    assert all(leaf.shape == (8,) and leaf.dtype == dtype for leaf in jax.tree.leaves(params))
    y, dx = with_gradient(layer, params, np.full((16, 8), 3, dtype), np.ones((16, 8), dtype))
    assert y.dtype == dx.dtype == dtype
    assert (y == (3 if name == "none" else 0)).all()
    assert np.isfinite(dx.astype(np.float32)).all()


def test_statistics_of_half_precision_are_single(key):
    # In bfloat16 itself 100 + z has a handful of values, and a sum of 512 of them stops growing.
    x = jnp.asarray(100 + np.random.default_rng(0).normal(size=(512, 3)), jnp.bfloat16)
    exact, layer = np.asarray(x, np.float64), batch_norm(dtype=jnp.bfloat16)
    found, y = jax.jit(lambda x: (batch_statistics(x), layer.apply(layer.init(key, (3,)), x)))(x)
    assert found.mean.dtype == found.variance.dtype == np.float32
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.variance, exact.var(0), rtol=1e-5)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8)


def test_given_statistics_take_the_place_of_the_batch():
    layer, x = batch_norm(dtype=np.float64), jnp.asarray(draw((12, 5)))
    params = {"scale": np.arange(1.0, 6.0), "shift": np.ones(5)}

    @jax.jit
    def program(x):
        known = batch_statistics(x)
        alone = jax.vmap(lambda row: layer.apply(params, row, known))(x)
        return layer.apply(params, x), layer.apply(params, x, known), alone, layer.apply(params, x[3:4], known)

    own, given, alone, fourth = program(x)
    np.testing.assert_allclose(given, own, rtol=1e-13)
    np.testing.assert_allclose(alone, own, rtol=1e-13)
    np.testing.assert_allclose(fourth, own[3:4], rtol=1e-13)
    assert layer_norm().statistics(x) is None


def test_running_statistics_forget_at_the_rate_of_the_momentum():
    zero = {"hidden": Statistics(np.zeros((2, 3), np.float32), np.zeros((2, 3)))}
    one = jax.tree.map(np.ones_like, zero)
    found = zero
    for _ in range(5):
        found = jax.jit(running_statistics)(found, one, np.float64(0.7))
    for leaf, before in zip(jax.tree.leaves(found), jax.tree.leaves(zero), strict=True):
        assert leaf.dtype == before.dtype
        np.testing.assert_allclose(leaf, 1 - 0.7**5, rtol=1e-6)
    assert running_statistics({}, {}) == {}


def test_bad_arguments_are_named():
    params = {"scale": np.ones(3), "shift": np.zeros(3)}
    for shape in ((3,), (1, 3), (1, 1, 1, 3)):
        with pytest.raises(ValueError, match="two values a feature or more"):
            batch_norm().apply(params, np.ones(shape))
    with pytest.raises(ValueError, match="two values a feature or more"):
        jax.vmap(lambda row: batch_norm().apply(params, row))(np.ones((4, 3)))
    for epsilon in (0, -1e-5, float("nan"), float("inf")):
        for make in (batch_norm, layer_norm):
            with pytest.raises(ValueError, match="epsilon: expected a positive number"):
                make(epsilon)
    for momentum in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="momentum: expected a number from 0 to 1"):
            running_statistics({}, {}, momentum)


@pytest.mark.parametrize("name", NORMS)
def test_float32_results_do_not_depend_on_x64(name):
    def found():
        x = draw((6, 5), np.float32)
        return list(with_gradient(NORMALISATIONS[name](), {"scale": x[0], "shift": x[1]}, x, x[::-1]))

    wide = found()
    with jax.enable_x64(False):
        narrow = found()
    for one, other in zip(wide, narrow, strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_array_equal(one, other)
