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


DEPTH = 30
FOLLOWED = ("tanh", "relu", "gelu", "hard_sigmoid")


@pytest.fixture(scope="module")
def follow():
    """The trajectory of four activations, in one program."""
    branches = [ACTIVATIONS[name].function for name in FOLLOWED]

    @jax.jit
    def follow(index, q, correlation, weights, biases):
        return correlation_trajectory(zoo(index, branches), q, correlation, weights, biases, depth=DEPTH)

    return lambda name, *numbers: follow(FOLLOWED.index(name), *map(float, numbers))


def test_finite_depth(truths, follow):
    for record in truths("signal_propagation.json")["finite_depth_trajectories"]:
        weights, biases, moment = record["sw2"], record["sb2"], record["input_second_moment"]
        q = weights * moment + biases
        first = (weights * moment * record["input_corr"] + biases) / q
        trajectory = jax.tree.map(np.asarray, follow(record["phi"], q, first, weights, biases))
        layers = np.array([layer for layer in record["layers"] if layer <= DEPTH])
        for name, field, tolerance in (
            ("q", "q", 0),
            ("correlation", "c", 1e-12),
            ("log_gradient_ratio", "log_gradsq_ratio_layer1_over_layerL", 1e-12),
            ("log_gradient_correlation", "grad_corr_factor_log", 1e-12),
        ):
            found = getattr(trajectory, name)[layers - 1]
            np.testing.assert_allclose(found, record[field][: len(layers)], rtol=1e-9, atol=tolerance)


def test_relu_is_the_arc_cosine_kernel():
    @jax.jit
    def look(c):
        return correlation_map(jax.nn.relu, c, 0.7, 2.0), correlation_slope(jax.nn.relu, c, 0.7, 2.0)

    for c in (-1.0, -1 + 1e-9, -0.5, 0.0, 0.9, 1 - 1e-9, 1.0):
        angle = math.pi - math.acos(c)
        mapped, slope = look(c)
        assert mapped == pytest.approx((math.sqrt(1 - c * c) + c * angle) / math.pi, abs=1e-12)
        assert slope == pytest.approx(angle / math.pi, abs=2e-12)
    # 1 - C(c) = (1 - c) (1 - (2/3) √2/π √(1 - c) + ...), to the last digits that 1 - c itself has.
    mapped = look(1 - 1e-10)[0]
    assert 1 - mapped == pytest.approx(1e-10 * (1 - 2e-5 * math.sqrt(2) / 3 / math.pi), rel=1e-5)


def test_one_stays_one_and_is_differentiable():
    def mapped(c, q):
        return correlation_map(jnp.tanh, c, q, 2.0, 0.05)

    @jax.jit
    def look(c, q):
        length = meanfield.length_map(jnp.tanh, q, 2.0, 0.05)
        return *jax.value_and_grad(mapped, argnums=(0, 1))(c, q), meanfield.chi1(jnp.tanh, q, 2.0) * q / length

    value, (by_correlation, by_length), expected = look(1.0, 0.7)
    assert value == 1
    assert by_correlation == pytest.approx(float(expected), rel=1e-7)
    assert by_length == pytest.approx(0, abs=1e-12)


def test_the_fixed_point_attracts_from_below_and_is_differentiable():
    """At lengths near those to which the layers lead; the derivative by difference quotients."""
    cases = {
        "tanh": (1.2, 3.0, 0.02),
        "sigmoid": (70.0, 150.0, 0.1),
        "elu": (1.0, 1.2, 0.1),
    }

    @jax.jit
    def look(index, q, weight_variance, bias_variance):
        function = zoo(index, [ACTIVATIONS[name].function for name in cases])

        def fixed_point(weight_variance):
            return correlation_fixed_point(function, q, weight_variance, bias_variance)

        found, slope = jax.jvp(fixed_point, (weight_variance,), (1.0,))
        at = jnp.stack([found, found / 2])
        mapped = jax.lax.map(lambda c: correlation_map(function, c, q, weight_variance, bias_variance), at)
        return mapped - at, found, slope

    for index, (name, (q, weight_variance, bias_variance)) in enumerate(cases.items()):
        (at, below), found, slope = look(index, q, weight_variance, bias_variance)
        assert at == pytest.approx(0, abs=1e-13), name
        assert below > 0.001, name
        assert (found == 1) == (name == "elu"), name
        step = 4e-5 * weight_variance
        ends = [look(index, q, weight_variance + move, bias_variance)[1] for move in (-step, step)]
        assert slope == pytest.approx(float(ends[1] - ends[0]) / (2 * step), rel=1e-6), name


def test_wide_networks(key, follow):
    """12 networks of width 1000 for every activation, the same weights for all: lengths, correlations, gradients."""
    width, depth, networks, first = 1000, 3, 12, 0.3
    weight_variance = 1.5

    def measure(key):
        def step(h, key):
            # Only the variance of a weight counts in wide networks, and signs are drawn quickest.
            bits = jax.random.bits(key, (width * width // 8, 1), jnp.uint8) >> jnp.arange(8, dtype=jnp.uint8)[None]
            signs = 1 - 2 * (bits & 1).astype(jnp.float32).reshape(width, width)
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

    def predict_alike(name):
        path = follow(name, weight_variance, first, weight_variance, 0)
        gradient = jnp.exp(path.log_gradient_ratio[depth - 1] + path.log_gradient_correlation[depth - 1])
        return jnp.stack([path.q[depth - 1] * path.correlation[depth - 1], gradient])

    predicted = np.stack([predict(index) for index in range(len(BRANCHES))], axis=1)
    scores = (average[[0, 2]] - predicted) / error[[0, 2]]
    assert np.all(np.abs(scores) < 3), dict(zip(NAMES, scores.T, strict=True))
    which = [NAMES.index(name) for name in FOLLOWED]
    alike = np.stack([predict_alike(name) for name in FOLLOWED], axis=1)
    scores = (average[[1, 3]][:, which] - alike) / error[[1, 3]][:, which]
    assert np.all(np.abs(scores) < 3), dict(zip(FOLLOWED, scores.T, strict=True))


def test_float32():
    @jax.jit
    def look(c, q):
        return correlation_map(jnp.tanh, c, 1.0, 2.0), correlation_fixed_point(jnp.tanh, q, 2.0, 0.05)

    mapped, found = look(jnp.float32(0), jnp.float32(0.7217618))
    assert {mapped.dtype, found.dtype} == {jnp.dtype("float32")}
    assert mapped == pytest.approx(0, abs=2e-6)  # tanh is odd
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
