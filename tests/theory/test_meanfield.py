import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.theory import meanfield
from calcdl.theory.meanfield import ANY, DECAYS, FIXED, GROWS, KINDS

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934, 1.6732632423543772848
FUNCTIONS = {
    "linear": lambda x: x,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": lambda x: x * jax.lax.erfc(-x / math.sqrt(2)) / 2,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "selu": lambda x: SELU_SCALE * jax.nn.elu(x, SELU_ALPHA),
    "softplus": jax.nn.softplus,
}


def test_points_of_the_phase_diagram(truths):
    for point in truths("signal_propagation.json")["points"]:
        limit = meanfield.length_fixed_point(FUNCTIONS[point["phi"]], float(point["sw2"]), float(point["sb2"]))
        assert limit.chi1 == pytest.approx(point["chi1"], rel=1e-9), point
        assert jnp.sqrt(limit.chi1) == pytest.approx(point["grad_norm_factor_per_layer"], rel=1e-9), point
        if point["q_star"] == "any":
            assert (limit.kind, limit.q, limit.growth) == (ANY, 1.0, 1.0)
        elif point["q_star"] is None:
            assert (limit.kind, limit.q) == (GROWS, math.inf)
            assert limit.growth == pytest.approx(math.exp(-1 / point["xi_q"]), rel=1e-9)
        elif point["q_star"] == 0:
            assert (limit.kind, limit.q) == (DECAYS, 0.0)
            assert limit.growth == pytest.approx(point["chi_q"], rel=1e-9)
        else:
            assert limit.kind == FIXED
            assert limit.growth == 1
            assert limit.q == pytest.approx(point["q_star"], rel=1e-9)


def test_the_table_of_initialisations(truths):
    table = truths("dl_theory.json")["init_table"]
    variances = {"LeCun/Glorot (sw2=1)": 1.0, "He (sw2=2)": 2.0}
    # The table has no q for maps that are multiples of the identity, nor where the length grows.
    kinds = {("linear", 1.0): ANY, ("relu", 2.0): ANY, ("relu", 1.0): DECAYS}
    for row in table:
        weight_variance = variances[row["init"]]
        limit = meanfield.length_fixed_point(FUNCTIONS[row["phi"]], weight_variance)
        assert limit.chi1 == pytest.approx(row["chi1"], rel=1e-9), row
        factor = meanfield.gradient_factor(FUNCTIONS[row["phi"]], weight_variance)
        assert factor == pytest.approx(row["grad_norm_factor"], rel=1e-9), row
        if row["layers_to_lose_1e6"] is not None:
            assert math.log(1e6) / -math.log(factor) == pytest.approx(row["layers_to_lose_1e6"], rel=1e-9), row
        if row["q_star"] is None:
            assert limit.kind == kinds.get((row["phi"], weight_variance), GROWS), row
        else:
            assert limit.kind == (DECAYS if row["q_star"] == 0 else FIXED), row
            assert limit.q == pytest.approx(row["q_star"], rel=1e-9, abs=1e-12), row


def test_edge_of_chaos(truths):
    for value in truths("signal_propagation.json")["edge_of_chaos"]["values"]:
        function = {"tanh": jnp.tanh, "erf": jax.lax.erf}[value["phi"]]
        limit = meanfield.length_fixed_point(function, value["sw2"], float(value["sb2"]))
        # The record gives 12 digits; at length 0 the rest of them decides whether the length is 0 or merely tiny.
        assert limit.q == pytest.approx(value["q_star"], rel=1e-9, abs=1e-11)
        assert limit.chi1 == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("phi", ["linear", "tanh", "sigmoid", "relu"])
def test_gains(phi, truths):
    (record,) = [row for row in truths("signal_propagation.json")["gaussian_moments_q1"] if row["phi"] == phi]
    function = FUNCTIONS[phi]
    expected = {
        "second_moment": record["gain_second_moment"],
        "variance": record["gain_variance"],
        "gradient": record["dphi2"] ** -0.5,
    }
    for preserve, value in expected.items():
        assert meanfield.gain(function, preserve) == pytest.approx(value, rel=1e-9)
    weight_variance = meanfield.gain(function) ** 2
    assert meanfield.length_map(function, 1.0, weight_variance) == pytest.approx(1, rel=1e-14)
    weight_variance = meanfield.gain(function, "gradient") ** 2
    assert meanfield.chi1(function, 1.0, weight_variance) == pytest.approx(1, rel=1e-14)


def test_finite_depth(truths):
    for record in truths("signal_propagation.json")["finite_depth_trajectories"]:
        weight_variance, bias_variance = record["sw2"], record["sb2"]
        first = weight_variance * record["input_second_moment"] + bias_variance
        trajectory = meanfield.length_trajectory(
            FUNCTIONS[record["phi"]], first, weight_variance, bias_variance, depth=record["layers"][-1]
        )
        layers = np.array(record["layers"]) - 1
        np.testing.assert_allclose(trajectory.q[layers], record["q"], rtol=1e-9)
        expected = record["log_gradsq_ratio_layer1_over_layerL"]
        np.testing.assert_allclose(trajectory.log_gradient_ratio[layers], expected, rtol=1e-9, atol=1e-12)


def test_a_critical_length_creeps_and_its_limit_is_found_at_once():
    # q - 2 q² + 17/3 q³ - ...: after l layers 1/q is near 2 l - (17/6 - 2) log l.
    trajectory = meanfield.length_trajectory(jnp.tanh, 1.0, 1.0, depth=2000)
    assert trajectory.q[-1] == pytest.approx(1 / 4000, rel=0.01)
    assert jnp.sqrt(trajectory.chi1[-1]) == pytest.approx(1 - 1 / 4000, rel=1e-5)
    limit = meanfield.length_fixed_point(jnp.tanh, 1.0)
    assert (limit.kind, limit.q) == (DECAYS, 0)
    assert limit.growth == pytest.approx(1, abs=1e-14)
    assert limit.chi1 == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("start", [1e-3, 0.617964769769, 1.0, 8.0, 1e4])
def test_an_attracting_fixed_point_is_reached_from_everywhere(start):
    limit = meanfield.length_fixed_point(jnp.tanh, 2.0, start=start)
    assert limit.kind == FIXED
    assert limit.q == pytest.approx(0.617964769769, rel=1e-11)


@pytest.mark.parametrize("start", [0.25, 0.5, 1.0, 2.0, 32.0, 3.7])
def test_a_fixed_point_on_the_grid_is_not_lost(start):
    limit = meanfield.length_fixed_point(FUNCTIONS["selu"], 1.0, start=start)
    assert limit.kind == FIXED
    assert limit.q == pytest.approx(1, rel=1e-13)


def test_where_a_start_decides():
    # V(q)/q rises with q for x² / (1 + |x|): short lengths decay, long ones grow.
    def function(x):
        return x * x / (1 + jnp.abs(x))

    assert meanfield.length_fixed_point(function, 1.5, start=1e-2).kind == DECAYS
    above = meanfield.length_fixed_point(function, 1.5, start=1e4)
    assert above.kind == GROWS
    assert above.growth == pytest.approx(1.5, rel=1e-9)
    # Between them lies a fixed point that repels, and holds only what starts on it.
    repelling = 10.40564434485006
    assert meanfield.length_fixed_point(function, 1.5, start=0.999 * repelling).kind == DECAYS
    assert meanfield.length_fixed_point(function, 1.5, start=1.001 * repelling).kind == GROWS
    held = meanfield.length_fixed_point(function, 1.5, start=repelling)
    assert held.kind == FIXED
    assert held.q == pytest.approx(repelling, rel=1e-12)


def test_the_limit_is_that_of_the_iteration():
    for phi, weight_variance, bias_variance in (("gelu", 1.5, 0.3), ("softplus", 0.7, 0.2), ("elu", 1.3, 0.1)):
        limit = meanfield.length_fixed_point(FUNCTIONS[phi], weight_variance, bias_variance)
        followed = meanfield.length_trajectory(FUNCTIONS[phi], 1.0, weight_variance, bias_variance, depth=400)
        assert limit.q == pytest.approx(float(followed.q[-1]), rel=1e-9)
        assert limit.chi1 == pytest.approx(float(followed.chi1[-1]), rel=1e-9)


def test_derivatives_by_the_variances():
    def limit(weight_variance, bias_variance):
        point = meanfield.length_fixed_point(jnp.tanh, weight_variance, bias_variance)
        return jnp.stack([point.q, point.chi1])

    at, step = (1.5, 0.05), 1e-5
    by = jax.jit(jax.jacrev(limit, argnums=(0, 1)))
    by_weights, by_biases = by(*at)
    difference = (limit(at[0] + step, at[1]) - limit(at[0] - step, at[1])) / (2 * step)
    np.testing.assert_allclose(by_weights, difference, rtol=1e-8)
    difference = (limit(at[0], at[1] + step) - limit(at[0], at[1] - step)) / (2 * step)
    np.testing.assert_allclose(by_biases, difference, rtol=1e-8)
    second = jax.jacfwd(lambda weight_variance: by(weight_variance, at[1])[0][0])(at[0])
    difference = (by(at[0] + step, at[1])[0][0] - by(at[0] - step, at[1])[0][0]) / (2 * step)
    assert second == pytest.approx(float(difference), rel=1e-7)


def test_limits_without_a_fixed_point_are_differentiable():
    def squared_factor(weight_variance):
        return meanfield.length_fixed_point(jax.nn.relu, weight_variance).chi1

    by = jax.vmap(jax.grad(squared_factor))(jnp.array([0.7, 2.0, 3.0]))
    np.testing.assert_allclose(by, 0.5, rtol=1e-13)


def test_a_learned_slope_may_be_traced():
    def factor(slope):
        return meanfield.gradient_factor(lambda x: jnp.where(x > 0, x, slope * x), 2.0)

    value, by_slope = jax.jit(jax.value_and_grad(factor))(0.25)
    assert value == pytest.approx(math.sqrt(1 + 0.25**2), rel=1e-13)
    assert by_slope == pytest.approx(0.25 / math.sqrt(1 + 0.25**2), rel=1e-12)


def test_many_variances_at_once():
    variances = jnp.array([0.5, 1.0, 2.0, 2.5])
    limits = jax.jit(jax.vmap(lambda w: meanfield.length_fixed_point(jnp.tanh, w, 0.05)))(variances)
    for index, variance in enumerate(variances):
        alone = meanfield.length_fixed_point(jnp.tanh, variance, 0.05)
        assert limits.q[index] == pytest.approx(float(alone.q), rel=1e-13)
    factors = jax.vmap(lambda w: meanfield.length_trajectory(jnp.tanh, 1.0, w, depth=3).chi1)(variances)
    assert factors.shape == (4, 3)


def test_float32():
    cases = (("tanh", 2, FIXED), ("relu", 2, ANY), ("softplus", 2, GROWS), ("tanh", 1, DECAYS))
    for phi, weight_variance, kind in cases:
        single = meanfield.length_fixed_point(FUNCTIONS[phi], np.float32(weight_variance))
        double = meanfield.length_fixed_point(FUNCTIONS[phi], weight_variance)
        assert single.kind == double.kind == kind
        assert single.q.dtype == single.chi1.dtype == single.growth.dtype == np.float32
        assert single.chi1 == pytest.approx(float(double.chi1), rel=1e-5)
        assert single.q == pytest.approx(float(double.q), rel=1e-5)
    trajectory = meanfield.length_trajectory(jax.nn.relu, np.float32(1), 1.0, depth=200)
    assert trajectory.q.dtype == np.float32
    # Beyond 126 layers the length underflows; what is left to say is the limit.
    np.testing.assert_allclose(trajectory.chi1, 0.5, rtol=1e-5)


def test_the_length_map_at_zero_and_its_slope():
    assert meanfield.length_map(jax.nn.sigmoid, 0.0, 2.0, 0.1) == pytest.approx(0.6, rel=1e-14)
    assert meanfield.chi1(jax.nn.relu, 0.0, 2.0) == pytest.approx(1, rel=1e-13)
    slope = jax.grad(lambda q: meanfield.length_map(jnp.tanh, q, 2.0))(0.617964769769)
    assert slope == pytest.approx(0.552516000855, rel=1e-9)


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="weight_variance must be finite and at least 0, got -1"):
        meanfield.length_map(jnp.tanh, 1.0, -1.0)
    with pytest.raises(ValueError, match="q must be finite and at least 0, got nan"):
        meanfield.chi1(jnp.tanh, math.nan, 1.0)
    with pytest.raises(ValueError, match="bias_variance must be finite and at least 0, got inf"):
        meanfield.gradient_factor(jnp.tanh, 1.0, math.inf)
    with pytest.raises(ValueError, match="start must be positive, got 0"):
        meanfield.length_fixed_point(jnp.tanh, 1.0, start=0.0)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        meanfield.length_trajectory(jnp.tanh, 1.0, 1.0, depth=0)
    with pytest.raises(ValueError, match="preserve must be one of second_moment, variance, gradient; got 'mean'"):
        meanfield.gain(jnp.tanh, "mean")
    assert len(KINDS) == 4
