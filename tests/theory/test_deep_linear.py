import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.derivatives import hessian
from calcdl.optim import descent
from calcdl.theory.deep_linear import balancedness, critical_points, half_rise_time, mode_strength


def test_modes_of_the_truths(truths):
    for row in truths("dl_theory.json")["saxe"]["rows"]:
        found = mode_strength(jnp.array(row["t"], jnp.float64) / row["tau"], row["s"], row["u0"])
        assert np.asarray(found) == pytest.approx(row["u"], rel=1e-9)
        half = float(half_rise_time(row["s"], row["u0"])) * row["tau"]
        assert half == pytest.approx(row["t_half"], rel=1e-9)
        assert float(mode_strength(half / row["tau"], row["s"], row["u0"])) == pytest.approx(row["s"] / 2, rel=1e-9)


def test_two_layers_learn_each_mode_as_predicted_and_stay_balanced(key):
    # The real thing: a 2 x 2 network on white inputs, small steps of the solver, from a balanced aligned start.
    target = jnp.diag(jnp.array([3.0, 1.0]))
    start = jnp.sqrt(jnp.array([0.01, 0.02]))
    turn = jnp.linalg.qr(jax.random.normal(key, (2, 2), jnp.float64))[0]
    params = (turn @ jnp.diag(start), jnp.diag(start) @ turn.T)
    rate, steps = 1e-3, 2000
    solver = descent("sgd", rate)

    @jax.jit
    def train(params):
        def step(carry, _):
            moved, state, _ = solver.step(lambda w: jnp.sum((w[1] @ w[0] - target) ** 2) / 2, *carry)
            return (moved, state), jnp.diag(moved[1] @ moved[0])

        return jax.lax.scan(step, (params, solver.init(params)), length=steps)

    (end, _), seen = train(params)
    times = rate * jnp.arange(1, steps + 1)
    for index in range(2):
        wanted = mode_strength(times, target[index, index], start[index] ** 2)
        assert np.asarray(seen[:, index]) == pytest.approx(np.asarray(wanted), rel=0.01)
    assert float(jnp.max(jnp.abs(balancedness(*end)))) < 10 * rate
    assert balancedness(jnp.ones((3, 2)), jnp.ones((4, 3))).shape == (3, 3)


def test_critical_points_are_critical_and_all_but_the_minima_are_saddles():
    strengths = jnp.array([2.0, 1.5, 0.5])

    def loss(weights):
        return jnp.sum((weights[3:].reshape(3, 1) @ weights[:3].reshape(1, 3) - jnp.diag(strengths)) ** 2) / 2

    points = critical_points(strengths, width=1)
    assert points.loss.shape == (4,)

    @jax.jit
    @jax.vmap
    def look(learned):
        weights = jnp.tile(jnp.sqrt(jnp.where(learned, strengths, 0)), 2)
        return loss(weights), jax.grad(loss)(weights), hessian(loss)(weights)

    values, gradients, curvatures = look(points.learned)
    assert np.asarray(values) == pytest.approx(np.asarray(points.loss), rel=1e-12)
    assert np.asarray(gradients) == pytest.approx(np.zeros((4, 6)), abs=1e-12)
    lowest = np.linalg.eigvalsh(np.asarray(curvatures))[:, 0]
    assert (lowest > -1e-12).tolist() == (values == values.min()).tolist()


def test_critical_losses_are_all_partial_sums():
    strengths = np.array([3.0, 2.0, 1.0, 0.5])
    found = critical_points(jnp.asarray(strengths))
    sums = [np.sum(np.array(c) ** 2) / 2 for n in range(5) for c in itertools.combinations(strengths, n)]
    assert sorted(found.loss.tolist()) == pytest.approx(sorted(sums))
    with pytest.raises(ValueError, match="at most 16"):
        critical_points(jnp.ones(17))


def test_numbers_keep_float32_and_map():
    times = jnp.linspace(0, 5, 4, dtype=jnp.float32)
    found = jax.jit(jax.vmap(lambda s: mode_strength(times, s, jnp.float32(0.01))))(jnp.array([1, 2], jnp.float32))
    assert (found.shape, found.dtype) == ((2, 4), jnp.float32)
    assert np.isfinite(np.asarray(mode_strength(jnp.float32(1e6), 3.0, jnp.float32(1e-30))))
    slope = jax.grad(mode_strength)(0.7, 2.0, 0.05)
    u = mode_strength(0.7, 2.0, 0.05)
    assert float(slope) == pytest.approx(float(2 * u * (2 - u)), rel=1e-12)
    assert half_rise_time(jnp.float32(1), jnp.float32(0.1)).dtype == jnp.float32
