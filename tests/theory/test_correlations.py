import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.nn.activations import ACTIVATIONS
from calcdl.theory import meanfield
from calcdl.theory.correlations import (
    correlation_fixed_point,
    correlation_map,
    correlation_slope,
    correlation_trajectory,
)

NAMES = tuple(ACTIVATIONS)
BRANCHES = [
    unit.function if unit.learned is None else lambda x, unit=unit: unit.function(x, unit.learned)
    for unit in ACTIVATIONS.values()
]


def zoo(index, branches=tuple(BRANCHES)):
    """Every activation in one program: that of the number `index`."""
    return lambda x: jax.lax.switch(index, branches, x)


def test_finite_depth(truths):
    def follow(index, q, correlation, weights, biases, *, depth):
        function = zoo(index, (jnp.tanh, jax.nn.relu))
        return correlation_trajectory(function, q, correlation, weights, biases, depth=depth)

    follow = jax.jit(follow, static_argnames="depth")
    for record in truths("signal_propagation.json")["finite_depth_trajectories"]:
        weights, biases, moment = record["sw2"], record["sb2"], record["input_second_moment"]
        q = weights * moment + biases
        first = (weights * moment * record["input_corr"] + biases) / q
        depth = max(record["layers"][-1], 50)
        trajectory = follow(("tanh", "relu").index(record["phi"]), q, first, weights, biases, depth=depth)
        layers = np.array(record["layers"]) - 1
        np.testing.assert_allclose(trajectory.q[layers], record["q"], rtol=1e-9)
        np.testing.assert_allclose(trajectory.correlation[layers], record["c"], rtol=1e-9, atol=1e-12)
        expected = record["log_gradsq_ratio_layer1_over_layerL"]
        np.testing.assert_allclose(trajectory.log_gradient_ratio[layers], expected, rtol=1e-9, atol=1e-12)
        expected = record["grad_corr_factor_log"]
        np.testing.assert_allclose(trajectory.log_gradient_correlation[layers], expected, rtol=1e-9, atol=1e-12)


def test_relu_is_the_arc_cosine_kernel():
    mapped = jax.jit(lambda c: correlation_map(jax.nn.relu, c, 0.7, 2.0))
    slope = jax.jit(lambda c: correlation_slope(jax.nn.relu, c, 0.7, 2.0))
    for c in (-1.0, -1 + 1e-9, -0.5, 0.0, 0.9, 1 - 1e-9, 1.0):
        angle = math.pi - math.acos(c)
        assert mapped(c) == pytest.approx((math.sqrt(1 - c * c) + c * angle) / math.pi, abs=1e-12)
        assert slope(c) == pytest.approx(angle / math.pi, abs=2e-12)
    # 1 - C(c) = (1 - c) (1 - (2/3) √2/π √(1 - c) + ...), to the last digits that 1 - c itself has.
    assert 1 - mapped(1 - 1e-10) == pytest.approx(1e-10 * (1 - 2e-5 * math.sqrt(2) / 3 / math.pi), rel=1e-5)


def test_one_stays_one_and_is_differentiable():
    def mapped(c, q):
        return correlation_map(jnp.tanh, c, q, 2.0, 0.05)

    value, (by_correlation, by_length) = jax.jit(jax.value_and_grad(mapped, argnums=(0, 1)))(1.0, 0.7)
    assert value == 1
    length = meanfield.length_map(jnp.tanh, 0.7, 2.0, 0.05)
    assert by_correlation == pytest.approx(float(meanfield.chi1(jnp.tanh, 0.7, 2.0) * 0.7 / length), rel=1e-7)
    assert by_length == pytest.approx(0, abs=1e-12)


def test_the_fixed_point_attracts_from_below():
    @jax.jit
    def residuals(index, weight_variance, bias_variance):
        function = zoo(index, [ACTIVATIONS[name].function for name in cases])
        q = meanfield.length_fixed_point(function, weight_variance, bias_variance).q
        found = correlation_fixed_point(function, q, weight_variance, bias_variance)
        at = jnp.stack([found, found / 2])
        mapped = jax.vmap(lambda c: correlation_map(function, c, q, weight_variance, bias_variance))(at)
        return mapped - at, found

    cases = {"tanh": (3.0, 0.02), "softsign": (6.0, 0.1), "sigmoid": (150.0, 0.1), "elu": (1.2, 0.1)}
    for name, (weight_variance, bias_variance) in cases.items():
        (at, below), found = residuals(list(cases).index(name), weight_variance, bias_variance)
        assert at == pytest.approx(0, abs=1e-13), name
        assert below > 0.001, name
        assert (found == 1) == (name == "elu"), name


def test_derivative_of_the_fixed_point():
    @jax.jit
    def found(weight_variance):
        return jax.jvp(lambda w: correlation_fixed_point(jnp.tanh, 1.0, w, 0.05), (weight_variance,), (1.0,))

    step = 1e-4
    difference = (found(2.5 + step)[0] - found(2.5 - step)[0]) / (2 * step)
    assert found(2.5)[1] == pytest.approx(float(difference), rel=1e-6)
    assert found(0.5) == (1, 0)


def test_wide_networks(key):
    """12 networks of width 1000 for every activation, the same weights for all: lengths, correlations, gradients."""
    width, depth, networks, first = 1000, 3, 12, 0.3
    weight_variance = 1.5

    def measure(key):
        def step(h, key):
            # Only the variance of a weight counts in wide networks, and signs are drawn quickest.
            signs = jax.random.rademacher(key, (width, width), jnp.float32)
            weight = signs * math.sqrt(weight_variance / width)
            a = jnp.stack([branch(h[i]) for i, branch in enumerate(BRANCHES)])
            return (a.reshape(-1, width) @ weight).reshape(a.shape), (h, weight)

        def back(delta, at):
            h, weight = at
            slope = jnp.stack([jax.vmap(jax.vmap(jax.grad(branch)))(h[i]) for i, branch in enumerate(BRANCHES)])
            following = slope * (delta.reshape(-1, width) @ weight.T).reshape(delta.shape)
            return following, None

        keys = jax.random.split(key, depth + 1)
        z = jax.random.normal(keys[0], (3, width), jnp.float32)
        pair = jnp.stack([z[0], first * z[0] + math.sqrt(1 - first**2) * z[1]])
        start = jnp.broadcast_to(math.sqrt(weight_variance) * pair[None], (len(BRANCHES), 2, width))
        last, seen = jax.lax.scan(step, start, keys[2:])
        signal = jnp.broadcast_to(z[2][None, None], start.shape)
        delta, _ = jax.lax.scan(back, signal, seen, reverse=True)

        def moments(x):
            return jnp.mean(jnp.sum(x**2, -1), -1) / width, jnp.sum(x[:, 0] * x[:, 1], -1) / width

        return jnp.stack([*moments(last), *(part / jnp.mean(z[2] ** 2) for part in moments(delta))])

    measured = np.asarray(jax.lax.map(jax.jit(measure), jax.random.split(key, networks)))
    average, error = measured.mean(0), measured.std(0, ddof=1) / math.sqrt(networks)

    @jax.jit
    def predict(index):
        path = meanfield.length_trajectory(zoo(index), weight_variance, weight_variance, depth=depth)
        return jnp.stack([path.q[-1], jnp.exp(path.log_gradient_ratio[-1])])

    @jax.jit
    def predict_alike(index):
        function = zoo(index, [BRANCHES[NAMES.index(name)] for name in pairs])
        path = correlation_trajectory(function, weight_variance, first, weight_variance, depth=depth)
        gradient = jnp.exp(path.log_gradient_ratio[-1] + path.log_gradient_correlation[-1])
        return jnp.stack([path.q[-1] * path.correlation[-1], gradient])

    pairs = ("tanh", "relu", "gelu", "hard_sigmoid")
    predicted = np.stack([predict(index) for index in range(len(BRANCHES))], axis=1)
    scores = (average[[0, 2]] - predicted) / error[[0, 2]]
    assert np.all(np.abs(scores) < 3), dict(zip(NAMES, scores.T, strict=True))
    which = [NAMES.index(name) for name in pairs]
    alike = np.stack([predict_alike(index) for index in range(len(pairs))], axis=1)
    scores = (average[[1, 3]][:, which] - alike) / error[[1, 3]][:, which]
    assert np.all(np.abs(scores) < 3), dict(zip(pairs, scores.T, strict=True))


def test_float32():
    single = correlation_map(jnp.tanh, jnp.float32(0.2), 1.0, 2.0)
    assert single.dtype == jnp.float32
    assert single == pytest.approx(float(correlation_map(jnp.tanh, 0.2, 1.0, 2.0)), rel=2e-6)
    found = correlation_fixed_point(jnp.tanh, jnp.float32(0.7217618), 2.0, 0.05)
    assert found.dtype == jnp.float32
    assert found == pytest.approx(0.744082419501, rel=1e-4)


def test_refusals():
    with pytest.raises(ValueError, match=r"correlation must be between -1 and 1, got 1\.5"):
        correlation_map(jnp.tanh, 1.5, 1.0, 1.0)
    with pytest.raises(ValueError, match="weight_variance must be finite and at least 0, got -1"):
        correlation_slope(jnp.tanh, 0.5, 1.0, -1.0)
    with pytest.raises(ValueError, match="q must be finite and at least 0, got nan"):
        correlation_fixed_point(jnp.tanh, math.nan, 1.0)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        correlation_trajectory(jnp.tanh, 1.0, 0.5, 1.0, depth=0)
