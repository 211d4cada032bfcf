import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.nn.activations import ACTIVATIONS, SELU_ALPHA, SELU_SCALE, prelu

NAMES = list(ACTIVATIONS)
GRID = ["sigmoid", "tanh", "softplus", "gelu", "silu", "mish", "gelu_tanh"]
GRID_X = [-20, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 20]
# No point is a kink, and none mirrors another.
POINTS = [-40.3, -12.7, -4.1, -2.2, -0.9, -0.31, -0.017, 0.023, 0.4, 0.77, 1.9, 2.6, 5.3, 11.9, 37.1]
TAILS = [-60, -30, -18, 18, 30, 60]
KINKS = [-3, 0, 3]


def ends(dtype):
    largest = float(jnp.finfo(dtype).max)
    sizes = [largest / 1.06, largest / 1e3, 1e30, 1e19, 1e10, 1e4, 800.0, 100.0, 17.0, 1e-30, 1e-37]
    return [*(-size for size in sizes), *sizes]


def fixed_slope(name):
    activation = ACTIVATIONS[name]
    if activation.learned is None:
        return activation.function, activation.derivative
    slope = activation.learned
    return (lambda x: activation.function(x, slope)), (lambda x: activation.derivative(x, slope))


def compute(name, x):
    function, _ = fixed_slope(name)
    slope = jax.grad(function)
    return jax.jit(jax.vmap(lambda x: (function(x), slope(x), jax.grad(slope)(x))))(x)


@functools.cache
def table(name, dtype):
    """All that the tests look at, from one program: value, first and second derivative by x."""
    x = jnp.asarray([*GRID_X, *POINTS, *TAILS, *KINKS, *ends(dtype)], dtype)
    return dict(zip(np.asarray(x).tolist(), zip(*map(np.asarray, compute(name, x)), strict=True), strict=True))


def orders(name, points, dtype):
    """Return the values and the first and second derivatives at points that the table holds."""
    rows = table(name, dtype)
    keys = np.asarray(jnp.asarray(points, dtype)).tolist()
    return [np.array(column) for column in zip(*(rows[key] for key in keys), strict=True)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", GRID)
def test_values_and_derivatives_are_those_of_the_grid(name, dtype, truths):
    grid = truths("extras.json")["activation_grid"]
    assert grid["x"] == GRID_X
    # The grid gives 12 digits of the second derivative, and loses more of gelu's at x = 20, where it is 2e-85.
    tolerances = (1e-13, 1e-13, 1e-11) if dtype == np.float64 else (2e-6, 2e-6, 2e-5)
    for part, key, tolerance in zip(orders(name, GRID_X, dtype), ("f", "df", "d2f"), tolerances, strict=True):
        expected = np.array([float(text) for text in grid[name][key]])
        np.testing.assert_allclose(part, expected, rtol=tolerance, atol=1e-30 if dtype == np.float32 else 1e-84)


def test_softplus_is_minus_log_sigmoid_of_minus_x(truths):
    grid = truths("extras.json")["activation_grid"]
    expected = [-float(text) for text in grid["log_sigmoid"]["f"]]
    np.testing.assert_allclose(ACTIVATIONS["softplus"].function(-jnp.array(grid["x"], float)), expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_two_orders_are_finite_up_to_the_largest_numbers(name, dtype):
    x = [*ends(dtype), 0.0]
    derivative = fixed_slope(name)[1](jnp.asarray(x, dtype))
    for part in (*orders(name, x, dtype), np.asarray(derivative)):
        assert part.dtype == dtype
        assert np.all(np.isfinite(part.astype(np.float64)))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_agrees_with_float32(name):
    x = [-20, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 20, 18, 30]
    for half, single in zip(orders(name, x, jnp.bfloat16), orders(name, x, np.float32), strict=True):
        np.testing.assert_allclose(half.astype(np.float32), single, rtol=0.06, atol=0.04)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_grad_is_the_closed_form(name, dtype):
    # Far out a difference of nearly equal terms would show.
    x = [*POINTS, *KINKS, -1e4, 1e4, 1e10]
    closed = fixed_slope(name)[1](jnp.asarray(x, dtype))
    assert closed.dtype == dtype
    rtol, atol = (1e-13, 1e-200) if dtype == np.float64 else (5e-6, 1e-30)
    np.testing.assert_allclose(orders(name, x, dtype)[1], closed, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_central_differences(name):
    function, derivative = fixed_slope(name)
    x = np.array(POINTS[1:-1])
    _, first, second = orders(name, x, np.float64)
    step = 1e-5
    np.testing.assert_allclose(first, (function(x + step) - function(x - step)) / (2 * step), rtol=0, atol=1e-9)
    np.testing.assert_allclose(second, (derivative(x + step) - derivative(x - step)) / (2 * step), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_lipschitz_is_the_supremum_of_the_slope(name):
    _, derivative = fixed_slope(name)
    slopes = np.abs(derivative(jnp.concatenate([jnp.linspace(-30, 30, 600_001), jnp.array([-1e-9, 1e-9])])))
    assert slopes.max() == pytest.approx(ACTIVATIONS[name].lipschitz, rel=1e-8)


def test_extremes_are_those_of_the_literature(truths):
    known = truths("dl_theory.json")["activations"]
    for name in ("gelu", "silu", "mish"):
        lowest, steepest = float(known[name]["argmin"]), float(known[name]["max_slope_at"])
        values, slopes, curvatures = compute(name, np.array([lowest, steepest]))
        assert values[0] == pytest.approx(float(known[name]["min"]), rel=1e-12)
        assert slopes[0] == pytest.approx(0, abs=1e-12)
        assert slopes[1] == pytest.approx(float(known[name]["lipschitz"]), rel=1e-12)
        assert curvatures[1] == pytest.approx(0, abs=1e-12)
        assert ACTIVATIONS[name].lipschitz == pytest.approx(float(known[name]["lipschitz"]), rel=1e-13)
    for name in ("sigmoid", "tanh", "softplus"):
        assert ACTIVATIONS[name].lipschitz == known[name]["lipschitz"]
    assert float(known["selu"]["scale"]) == SELU_SCALE
    assert float(known["selu"]["alpha"]) == SELU_ALPHA
    at = np.array([known["gelu_tanh_approx"]["at"]])
    error = abs(ACTIVATIONS["gelu_tanh"].function(at) - ACTIVATIONS["gelu"].function(at))
    assert error == pytest.approx(known["gelu_tanh_approx"]["max_abs_err_vs_exact"], rel=1e-6)
    assert ACTIVATIONS["elu"].function(-1e3) == known["elu"]["inf"]
    assert ACTIVATIONS["tanh"].function(0.7) == pytest.approx(math.tanh(0.7), rel=1e-15)


def test_saturated_slopes_are_relatively_accurate_in_float32():
    decay = np.exp(-np.abs(np.array(TAILS, np.float64)))
    np.testing.assert_allclose(orders("sigmoid", TAILS, np.float32)[1], decay / (1 + decay) ** 2, rtol=1e-5)
    # At 60 the slope of tanh, 4 exp(-120), is below the smallest normal number.
    decay, slope = decay[1:-1] ** 2, orders("tanh", TAILS[1:-1], np.float32)[1]
    np.testing.assert_allclose(slope, 4 * decay / (1 + decay) ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "at", "expected"),
    [
        ("relu", 0.0, 0.0),
        ("leaky_relu", 0.0, 0.01),
        ("prelu", 0.0, 0.25),
        ("elu", 0.0, 1.0),
        ("selu", 0.0, SELU_SCALE * SELU_ALPHA),
        ("hard_sigmoid", -3.0, 0.0),
        ("hard_sigmoid", 3.0, 0.0),
        ("softsign", 0.0, 1.0),
    ],
)
def test_subgradients_at_kinks(name, at, expected):
    function, derivative = fixed_slope(name)
    assert jax.grad(function)(at) == pytest.approx(expected, rel=1e-15)
    assert derivative(jnp.asarray(at)) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_modes_and_not_a_number(name):
    function, _ = fixed_slope(name)
    x = jnp.array([[-1.7, 0.3, 2.0], [0.0, -0.2, 5.0]], jnp.float32)
    eager = function(x)
    assert eager.shape == x.shape
    for other in (jax.jit(function)(x), jax.vmap(jax.vmap(function))(x)):
        np.testing.assert_allclose(other, eager, rtol=1e-6)
    assert function(jnp.zeros((0, 3), jnp.float32)).shape == (0, 3)
    assert np.isnan(function(jnp.array([jnp.nan, 1.0]))[0])


@pytest.mark.parametrize("name", NAMES)
def test_float32_results_do_not_depend_on_x64(name):
    with jax.enable_x64(False):
        narrow = table.__wrapped__(name, np.float32)
    assert narrow == table(name, np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_integers_are_refused(name):
    function, _ = fixed_slope(name)
    with pytest.raises(TypeError, match="x must be floating point, got int"):
        function(jnp.array([1, 2]))


def test_prelu_slope_is_learned():
    x = jnp.array([-2.0, 0.0, 3.0, np.inf])
    by_slope = jax.vmap(jax.grad(prelu, argnums=1), in_axes=(0, None))(x, 0.0)
    np.testing.assert_array_equal(by_slope, [-2.0, 0.0, 0.0, 0.0])
    per_channel = prelu(jnp.full((2, 3), -1.0), jnp.array([[0.1, 0.2, 0.3]]))
    np.testing.assert_allclose(per_channel, [[-0.1, -0.2, -0.3]] * 2)
    assert prelu(jnp.ones(2, jnp.float32), jnp.asarray(0.25, jnp.float64)).dtype == jnp.float32
    assert [name for name in NAMES if ACTIVATIONS[name].learned is not None] == ["prelu"]
