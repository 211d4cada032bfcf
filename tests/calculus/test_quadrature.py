import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.quadrature import (
    RULES,
    gauss_hermite,
    gauss_legendre,
    gaussian_expectation,
    riemann,
    simpson,
    trapezoid,
)


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
    for scale, dtype in ((jnp.bfloat16(1), np.float32), (2, np.float64)):
        assert jax.eval_shape(lambda scale=scale: gaussian_expectation(function, scale=scale)).dtype == dtype


def test_float32_does_not_depend_on_x64():
    mean = jax.jit(lambda scale: gaussian_expectation(jnp.tanh, scale=scale, mean=0.4))
    wide = mean(np.float32(0.7))
    with jax.enable_x64(False):
        assert mean(np.float32(0.7)) == wide


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
    slope = jax.grad(lambda mean: gaussian_expectation(CASES["step"][0], mean=mean, breakpoints=breakpoints))
    means = np.array([-1.0, 0.0, 1.0])
    np.testing.assert_allclose(jax.jit(jax.vmap(slope))(means), [density(mean) for mean in means], rtol=1e-13)


def test_a_distribution_of_no_width_is_a_point():
    run = jax.value_and_grad(lambda scale, mean: gaussian_expectation(jnp.cos, scale=scale, mean=mean), (0, 1))
    value, (by_scale, by_mean) = jax.jit(run)(0.0, 0.7)
    assert value == pytest.approx(math.cos(0.7), rel=1e-14)
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


@pytest.mark.parametrize("nodes", [1, 2, 4, 5, 9])
def test_gauss_rules_are_exact_to_degree_2n_minus_1_and_not_beyond(nodes):
    degrees = np.arange(2 * nodes + 1)
    legendre = gauss_legendre(lambda x: (x + 1) ** degrees, -1.0, 1.0, nodes=nodes)
    powers = 2.0 ** (degrees + 1) / (degrees + 1)
    np.testing.assert_allclose(legendre[:-1], powers[:-1], rtol=1e-13)
    assert legendre[-1] != pytest.approx(powers[-1], rel=1e-13)

    hermite = gauss_hermite(lambda x: x**degrees, nodes, scale=2.0)
    moments = np.array([0 if n % 2 else 2.0**n * math.prod(range(1, n, 2)) for n in degrees])
    assert np.all(abs(hermite - moments)[:-1] <= 1e-13 * np.maximum(moments, 4.0**degrees)[:-1])
    assert hermite[-1] != pytest.approx(moments[-1], rel=1e-6)


def test_the_errors_of_the_composite_rules(truths):
    orders = truths("extras.json")["orders"]
    for row in orders["quad_exp01"]:
        for rule in ("trapezoid", "simpson"):
            error = RULES[rule](jnp.exp, 0.0, 1.0, row["n"]) - math.expm1(1)
            assert error == pytest.approx(row[f"{rule}_error"], abs=2e-15)
    assert gauss_legendre(lambda x: x**8, -1.0, 1.0, nodes=5) == pytest.approx(2 / 9, rel=1e-14)
    assert gauss_legendre(lambda x: x**8, -1.0, 1.0, nodes=4) == pytest.approx(0.210612244897959, rel=1e-14)


@pytest.mark.parametrize(
    ("name", "order"), [("left", 1), ("right", 1), ("midpoint", 2), ("trapezoid", 2), ("simpson", 4)]
)
def test_orders_of_convergence(name, order):
    errors = [abs(float(RULES[name](jnp.exp, 0.5, 2.0, panels)) - math.exp(2) + math.exp(0.5)) for panels in (16, 32)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize("name", list(RULES))
def test_rules_transform_and_keep_their_dtype(name):
    def integrate(upper, power):
        return RULES[name](lambda x: {"power": x**power, "pair": jnp.stack([x, 1 + 0 * x])}, 0.25, upper, 64)

    uppers = jnp.array([1.0, 2.0], jnp.float32)
    batch = jax.jit(jax.vmap(integrate, in_axes=(0, None)))(uppers, 2.0)
    assert batch["power"].dtype == jnp.float32
    np.testing.assert_allclose(batch["power"], (uppers**3 - 0.25**3) / 3, rtol=0.05)
    np.testing.assert_allclose(batch["pair"][:, 1], uppers - 0.25, rtol=1e-5)
    value, slope = jax.jit(jax.value_and_grad(lambda upper: integrate(upper, 3.0)["power"]))(2.0)
    assert slope == pytest.approx(8, rel=0.05)
    assert value.dtype == jnp.float64


def test_bad_rules_are_named():
    with pytest.raises(ValueError, match="rule must be one of left, midpoint, right, got 'upper'"):
        riemann(jnp.exp, 0.0, 1.0, 4, rule="upper")
    with pytest.raises(ValueError, match="panels must be even, got 3"):
        simpson(jnp.exp, 0.0, 1.0, 3)
    with pytest.raises(ValueError, match="panels must be at least 1, got 0"):
        trapezoid(jnp.exp, 0.0, 1.0, 0)
    with pytest.raises(ValueError, match="nodes must be at least 1, got 0"):
        gauss_hermite(jnp.exp, 0)
