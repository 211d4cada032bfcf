import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.integrals import gaussian_expectation


def cdf(t):
    return math.erfc(-t / math.sqrt(2)) / 2


def density(t):
    return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)


# Function, expectation, derivative by scale, derivative by mean.
CASES = {
    "square": (lambda x: x**2, lambda s, m: m * m + s * s, lambda s, m: 2 * s, lambda s, m: 2 * m),
    "relu": (
        lambda x: jnp.maximum(x, 0),
        lambda s, m: m * cdf(m / s) + s * density(m / s),
        lambda s, m: density(m / s),
        lambda s, m: cdf(m / s),
    ),
    "step": (
        lambda x: jnp.where(x > 0, 1.0, 0.0),
        lambda s, m: cdf(m / s),
        lambda s, m: -m / s**2 * density(m / s),
        lambda s, m: density(m / s) / s,
    ),
    "probit": (
        lambda x: jax.lax.erfc(-x / math.sqrt(2)) / 2,
        lambda s, m: cdf(m / math.sqrt(1 + s * s)),
        lambda s, m: -m * s / (1 + s * s) ** 1.5 * density(m / math.sqrt(1 + s * s)),
        lambda s, m: density(m / math.sqrt(1 + s * s)) / math.sqrt(1 + s * s),
    ),
    "exp": (
        jnp.exp,
        lambda s, m: math.exp(m + s * s / 2),
        lambda s, m: s * math.exp(m + s * s / 2),
        lambda s, m: math.exp(m + s * s / 2),
    ),
}
SETTINGS = [(1e-6, 0.0), (1e-3, 0.1), (0.3, -0.2), (1.0, 0.7), (5.0, -3.0), (40.0, 9.0), (1e3, 10.0)]
SETTINGS_OF = {name: SETTINGS[:5] if name == "exp" else SETTINGS for name in CASES}


@functools.cache
def compiled(name):
    def integrate(scale, mean):
        return gaussian_expectation(CASES[name][0], scale=scale, mean=mean)

    both = jax.value_and_grad(integrate, argnums=(0, 1))
    return jax.jit(jax.vmap(both))


@pytest.mark.parametrize("name", list(CASES))
def test_closed_forms_and_their_derivatives(name):
    scales, means = np.array(SETTINGS_OF[name]).T
    value, by = compiled(name)(scales, means)
    # What a moving edge takes from one panel and gives to the next is of size f / scale.
    for result, expected, moved in zip((value, *by), CASES[name][1:], (0, 1, 1), strict=True):
        reference = np.array([expected(*setting) for setting in SETTINGS_OF[name]])
        error = np.abs(np.asarray(result) - reference)
        assert np.all(error <= 2e-13 * np.abs(reference) + 2e-14 + moved * 1e-16 * np.abs(value) / scales)


@pytest.mark.parametrize("name", list(CASES))
def test_eager_and_float32(name):
    function, expected, *_ = CASES[name]
    assert gaussian_expectation(function, scale=1.3, mean=0.4) == pytest.approx(expected(1.3, 0.4), rel=1e-13)
    single = gaussian_expectation(function, scale=np.float32(1.3), mean=0.4)
    assert single.dtype == np.float32
    assert single == pytest.approx(expected(1.3, 0.4), rel=3e-6)
    assert gaussian_expectation(function, scale=jnp.bfloat16(1)).dtype == np.float32
    assert gaussian_expectation(function, scale=2).dtype == np.float64


def test_float32_does_not_depend_on_x64():
    wide = gaussian_expectation(jnp.tanh, scale=np.float32(0.7), mean=0.4)
    with jax.enable_x64(False):
        assert gaussian_expectation(jnp.tanh, scale=np.float32(0.7), mean=0.4) == wide


@pytest.mark.parametrize("phi", ["tanh", "sigmoid", "relu", "linear"])
def test_moments_of_activations(phi, truths):
    function = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "relu": lambda x: jnp.maximum(x, 0), "linear": lambda x: x}
    (record,) = [row for row in truths("signal_propagation.json")["gaussian_moments_q1"] if row["phi"] == phi]

    def powers(x):
        value, slope = jax.value_and_grad(function[phi])(x)
        return {"mean": value, "second": value**2, "dphi2": slope**2, "dphi4": slope**4, "mean_dphi": slope}

    for key, moment in gaussian_expectation(powers).items():
        assert moment == pytest.approx(record[key], rel=1e-11, abs=1e-15)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 10.0, 1e3])
def test_products_of_error_functions(scale):
    # Williams 1997, eq. 11: E[erf(a z)²] = 2/π arcsin(2 a² / (1 + 2 a²)).
    expected = 2 / math.pi * math.asin(2 * scale**2 / (1 + 2 * scale**2))
    assert gaussian_expectation(lambda x: jax.lax.erf(x) ** 2, scale=scale) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("scale", "mean"), [(0.5, 2.0), (2.0, 0.3), (30.0, -4.0)])
def test_the_kinks_of_a_hard_sigmoid_are_edges(scale, mean):
    def ramp(t):
        # E[max(x - t, 0)], whose second difference is that of the hard sigmoid.
        return (mean - t) * cdf((mean - t) / scale) + scale * density((mean - t) / scale)

    value = gaussian_expectation(jax.nn.hard_sigmoid, scale=scale, mean=mean)
    assert value == pytest.approx((ramp(-3) - ramp(3)) / 6, rel=1e-13)
    elsewhere = gaussian_expectation(lambda x: jnp.maximum(x - 7, 0), scale=30.0, mean=0.0, breakpoints=(7.0,))
    assert elsewhere == pytest.approx(30 * density(7 / 30) - 7 * cdf(-7 / 30), rel=1e-13)


def test_features_as_fine_as_a_thirtieth_at_a_breakpoint():
    # E[1 / (1 + (x/h)²)] is a scaled complementary error function: sqrt(π/2) a exp(a²/2) erfc(a/√2), a = h / scale.
    a = 1 / 30 / 2.0
    expected = math.sqrt(math.pi / 2) * a * math.exp(a * a / 2) * math.erfc(a / math.sqrt(2))
    value = gaussian_expectation(lambda x: 1 / (1 + (30 * x) ** 2), scale=2.0)
    assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("breakpoints", [(0.0, 1.0), (0.0, 2.0), (1.0, 0.0), (-1.0, 0.0, 1.0)])
def test_a_jump_on_a_whole_number_keeps_its_derivative(breakpoints):
    # Mean and scale put the jump at z = -1, 0 and 1, where a fixed edge would hide it.
    for mean in (-1.0, 0.0, 1.0):
        by_mean = jax.grad(lambda m: gaussian_expectation(CASES["step"][0], mean=m, breakpoints=breakpoints))(mean)
        assert by_mean == pytest.approx(density(mean), rel=1e-13)


def test_a_distribution_of_no_width_is_a_point():
    assert gaussian_expectation(jnp.cos, scale=0.0, mean=0.7) == pytest.approx(math.cos(0.7), rel=1e-14)
    by_scale, by_mean = jax.grad(lambda s, m: gaussian_expectation(jnp.cos, scale=s, mean=m), (0, 1))(0.0, 0.7)
    assert by_scale == pytest.approx(0, abs=1e-14)
    assert by_mean == pytest.approx(-math.sin(0.7), rel=1e-13)


def test_any_structure_comes_back():
    def parts(x):
        return {"vector": jnp.stack([x, x**2, x**3]), "matrix": x**2 * jnp.eye(2)}

    result = gaussian_expectation(parts, scale=2.0, mean=1.0)
    np.testing.assert_allclose(result["vector"], [1, 5, 13], rtol=1e-14)
    np.testing.assert_allclose(result["matrix"], 5 * np.eye(2), rtol=1e-14)


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="scale must be a standard deviation, at least 0, got -1"):
        gaussian_expectation(jnp.cos, scale=-1.0)
    for name in ("scale", "mean"):
        with pytest.raises(ValueError, match=f"{name} must be finite, got nan"):
            gaussian_expectation(jnp.cos, **{name: math.nan})
    with pytest.raises(ValueError, match="breakpoints must be finite, got inf"):
        gaussian_expectation(jnp.cos, breakpoints=(0.0, math.inf))
