import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.nn.initialisers import INITIALISERS
from calcdl.nn.layers import convolution

NAMES = list(INITIALISERS)
SHAPE = (120, 70)
GAIN = 1.7
# Variance of a weight, and its excess kurtosis, at gain 1; both zero where nothing is drawn.
DRAWN = {
    "normal": (1.0, 0.0),
    "lecun_normal": (1 / 120, 0.0),
    "lecun_uniform": (1 / 120, -1.2),
    "glorot_normal": (2 / 190, 0.0),
    "glorot_uniform": (2 / 190, -1.2),
    "he_normal": (2 / 120, 0.0),
    "he_uniform": (2 / 120, -1.2),
    "orthogonal": (1 / 120, 0.0),
    "delta_orthogonal": (1 / 120, 0.0),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_shape_dtype_modes_and_the_key(name, dtype, key):
    initialiser = INITIALISERS[name]

    def draw(key, gain):
        return initialiser(key, SHAPE, gain, dtype)

    eager = draw(key, GAIN)
    assert eager.shape == SHAPE
    assert eager.dtype == dtype
    np.testing.assert_allclose(jax.jit(draw)(key, GAIN), eager, rtol=2e-5, atol=1e-6)
    keys = jax.random.split(key, 3)
    batch = jax.vmap(draw, in_axes=(0, None))(keys, GAIN)
    np.testing.assert_allclose(batch[1], draw(keys[1], GAIN), rtol=2e-5, atol=1e-6)
    is_drawn = name in DRAWN
    assert bool(jnp.any(batch[0] != batch[1])) == is_drawn


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_proportional_to_a_traced_gain(name, key):
    initialiser = INITIALISERS[name]
    by_gain = jax.jacfwd(lambda gain: initialiser(key, (4, 3), gain, np.float64))(GAIN)
    np.testing.assert_allclose(GAIN * by_gain, initialiser(key, (4, 3), GAIN, np.float64), rtol=1e-14)


@pytest.mark.parametrize("name", DRAWN)
def test_mean_and_variance_within_standard_errors(name, key):
    variance, kurtosis = DRAWN[name][0] * GAIN**2, DRAWN[name][1]
    weights = np.asarray(INITIALISERS[name](key, SHAPE, GAIN), np.float64)
    mean_error = np.sqrt(variance / weights.size)
    variance_error = variance * np.sqrt((kurtosis + 2) / weights.size)
    assert abs(weights.mean()) < 4 * mean_error
    assert abs((weights**2).mean() - variance) < 4 * variance_error
    # Neither truncated (which would have excess -0.63 or so) nor of the other shape.
    fourth = (weights**4).mean() / variance**2 - 3
    assert abs(fourth - kurtosis) < 4 * np.sqrt(24 / weights.size) + 0.05


def test_fans_are_in_the_order_of_the_shape(key):
    wide = INITIALISERS["he_normal"](key, (4, 4000))
    tall = INITIALISERS["he_normal"](key, (4000, 4))
    assert float(jnp.var(wide)) == pytest.approx(0.5, rel=4 * np.sqrt(2 / 16000))
    assert float(jnp.var(tall)) == pytest.approx(0.0005, rel=4 * np.sqrt(2 / 16000))


@pytest.mark.parametrize(("name", "fans"), [("lecun", 9 * 20), ("glorot", 9 * (20 + 30) / 2), ("he", 9 * 20 / 2)])
@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_the_fans_of_a_convolution_count_its_kernel(name, fans, law, key):
    weights = INITIALISERS[f"{name}_{law}"](key, (3, 3, 20, 30), GAIN)
    assert weights.shape == (3, 3, 20, 30)
    assert float(np.var(weights)) == pytest.approx(GAIN**2 / fans, rel=4 * np.sqrt(2 / weights.size))


def test_an_orthogonal_convolution_is_a_matrix_from_all_its_inputs(key):
    tall = np.asarray(INITIALISERS["orthogonal"](key, (3, 2, 2, 4), 2.0, np.float64)).reshape(12, 4)
    np.testing.assert_allclose(tall.T @ tall, 4 * np.eye(4), atol=1e-14)
    wide = np.asarray(INITIALISERS["orthogonal"](key, (2, 1, 9), 2.0, np.float64)).reshape(2, 9)
    np.testing.assert_allclose(wide @ wide.T, 4 * np.eye(2), atol=1e-14)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 2)])
def test_a_delta_orthogonal_convolution_keeps_the_length_of_every_pixel(kernel, key):
    layer = convolution(6, INITIALISERS["delta_orthogonal"], 2.0, np.float64, kernel=kernel, padding="circular")
    params = layer.init(key, (4, 4, 3))
    assert np.count_nonzero(params["weight"]) == 3 * 6
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3))
    y = layer.apply(params, x)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), 2 * np.linalg.norm(x, axis=-1), rtol=1e-13)
    image = np.asarray(x @ params["weight"][tuple((size - 1) // 2 for size in kernel)])
    np.testing.assert_allclose(y, image, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (1, 1), (1, 4)])
def test_orthogonal(shape, dtype, key):
    weights = np.asarray(INITIALISERS["orthogonal"](key, shape, 2.0, dtype), np.float64)
    product = weights.T @ weights if shape[0] >= shape[1] else weights @ weights.T
    tolerance = {jnp.bfloat16: 0.05, np.float32: 1e-5, np.float64: 1e-14}[dtype]
    np.testing.assert_allclose(product, 4 * np.eye(min(shape)), atol=4 * tolerance)


def test_orthogonal_signs_are_even(key):
    # QR alone gives the diagonal of one sign, and a 1 x 1 matrix that is never -1.
    signs = jax.vmap(lambda key: INITIALISERS["orthogonal"](key, (1, 1))[0, 0])(jax.random.split(key, 400))
    assert set(np.asarray(signs).tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / np.sqrt(400)
    rotations = jax.vmap(lambda key: INITIALISERS["orthogonal"](key, (2, 2)))(jax.random.split(key, 400))
    assert abs(float(rotations[:, 0, 0].mean())) < 4 * np.sqrt(0.5 / 400)
    assert abs(float(jnp.linalg.det(rotations).mean())) < 4 / np.sqrt(400)


@pytest.mark.parametrize("name", NAMES)
def test_float32_draws_do_not_depend_on_x64(name, key):
    wide = INITIALISERS[name](key, (6, 5), GAIN)
    with jax.enable_x64(False):
        narrow = INITIALISERS[name](jax.random.key(0), (6, 5), GAIN)
    assert wide.dtype == narrow.dtype == np.float32
    np.testing.assert_array_equal(wide, narrow)


def test_fixed_ones(key):
    np.testing.assert_array_equal(INITIALISERS["zeros"](key, (2, 3), 5.0), np.zeros((2, 3)))
    np.testing.assert_array_equal(INITIALISERS["constant"](key, (4,), 0.5), np.full(4, 0.5))


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_named(name, key):
    initialiser = INITIALISERS[name]
    with pytest.raises(TypeError, match="dtype must be floating point, got int32"):
        initialiser(key, (3, 2), 1.0, jnp.int32)
    with pytest.raises(ValueError, match="shape must"):
        initialiser(key, (3, -2))
    if name not in ("zeros", "constant", "normal"):
        with pytest.raises(ValueError, match=r"shape must be \(fan_in, fan_out\)"):
            initialiser(key, (3,))
        with pytest.raises(ValueError, match=r"shape must be \(fan_in, fan_out\)"):
            initialiser(key, (0, 3))
        with pytest.raises(ValueError, match=r"shape must be \(fan_in, fan_out\), or \(kernel sizes"):
            initialiser(key, (3, 0, 2, 3))
    if name != "zeros":
        with pytest.raises(ValueError, match="gain must be finite"):
            initialiser(key, (3, 2), float("nan"))
