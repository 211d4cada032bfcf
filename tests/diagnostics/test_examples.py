from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.diagnostics.examples import gradient_coherence, gradient_norms, noise_scale, per_example_gradients

ROWS = np.random.default_rng(0).normal(size=(11, 3))
TARGETS = 3 + np.random.default_rng(1).normal(size=11)
WEIGHT = np.array([0.3, -1.2, 0.7])
BY = ("parameters", "inputs")


def loss(params, x, y):
    return params["scale"] * 0.5 * jnp.square(x @ params["weight"] + params["bias"] - y)


def by_hand():
    """The gradient of a squared error is residual times (x, 1), or (weight)."""
    residual = ROWS @ WEIGHT + 0.1 - TARGETS
    return residual[:, None] * np.concatenate([ROWS, np.ones((11, 1))], axis=1), residual[:, None] * WEIGHT


def cosine(gradients):
    rows = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    return (rows @ rows.T)[~np.eye(len(rows), dtype=bool)].mean()


@jax.jit
def everything(params, scale, x, y):
    def scaled(params, x, y):
        return loss(params | {"scale": scale}, x, y)

    return {
        "gradients": [per_example_gradients(scaled, params, x, y, by=by) for by in BY],
        "norms": gradient_norms(scaled, params, x, y, chunk=4),
        "coherence": [gradient_coherence(scaled, params, x, y, by=by, chunk=3) for by in BY],
        "noise": noise_scale(scaled, params, x, y, chunk=4),
    }


def test_everything_is_as_by_hand():
    params = {"weight": WEIGHT, "bias": np.float64(0.1)}
    found = everything(params, np.float64(1), ROWS, TARGETS)
    by_params, by_inputs = by_hand()
    near = partial(np.testing.assert_allclose, rtol=1e-12)
    near(np.concatenate([found["gradients"][0]["weight"], found["gradients"][0]["bias"][:, None]], axis=1), by_params)
    near(found["gradients"][1], by_inputs)
    near(found["norms"], np.linalg.norm(by_params, axis=1))
    near(found["coherence"], [cosine(by_params), cosine(by_inputs)])
    noise = by_params.var(axis=0, ddof=1).sum()
    signal = np.sum(by_params.mean(axis=0) ** 2) - noise / 11
    near(found["noise"], [noise / signal, noise, signal])


@jax.jit
def few(params, scale, x, y):
    function = lambda params, x, y: loss(params | {"scale": scale}, x, y)  # noqa: E731
    return noise_scale(function, params, x, y), gradient_coherence(function, params, x, y)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e12])
def test_no_unit_of_the_loss_changes_a_ratio(scale):
    narrow = jax.tree.map(np.float32, ({"weight": WEIGHT, "bias": 0.1}, scale, ROWS, TARGETS))
    noise, coherence = few(*narrow)
    gradients, _ = by_hand()
    spread = gradients.var(axis=0, ddof=1).sum()
    expected = spread / (np.sum(gradients.mean(axis=0) ** 2) - spread / 11)
    np.testing.assert_allclose([noise.scale, coherence], [expected, cosine(gradients)], rtol=3e-5)
    assert {leaf.dtype for leaf in (*noise, coherence)} == {np.dtype(np.float32)}


def test_noise_and_signal_are_unbiased():
    # Gradients 1 + 2 z in each of 5 directions: noise 20, signal 5, from batches of 8 only.
    draws = 1 + 2 * np.random.default_rng(0).normal(size=(4000, 8, 5))
    found = jax.jit(jax.vmap(lambda batch: noise_scale(jnp.vdot, np.zeros(5), batch)))(draws)
    for estimates, truth in ((found.noise, 20.0), (found.signal, 5.0)):
        error = np.std(estimates) / len(estimates) ** 0.5
        assert abs(np.mean(estimates) - truth) < 4 * error
        assert error < 0.02 * truth


def test_examples_that_agree_or_oppose_each_other():
    same, opposed = np.ones((4, 3)), np.array([1.0, -1.0, 0.0, 0.0])[:, None] * np.ones(3)
    batches = np.stack([same, opposed, same * [[0], [0], [1], [1]], same * [[0], [0], [0], [1]], 0 * same])
    gradients = partial(gradient_coherence, jnp.vdot, np.zeros(3)), partial(noise_scale, jnp.vdot, np.zeros(3))
    coherence, noise = jax.jit(jax.vmap(lambda batch: [one(batch) for one in gradients]))(batches)
    np.testing.assert_allclose(coherence, [1, -1, 1, np.nan, np.nan], rtol=1e-14)
    np.testing.assert_allclose(noise.scale[jnp.array([0, 1, 4])], [0, np.inf, np.nan])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_norms(loss, {}, ROWS, by="layers"), "by: expected one of parameters, inputs; got 'layers'"),
        (lambda: gradient_norms(loss, {}, ROWS, chunk=0), "chunk: expected a whole number of at least 1"),
        (lambda: gradient_coherence(loss, {}), "batch: expected at least one array"),
        (lambda: noise_scale(loss, {}), "batch: expected at least one array"),
        (lambda: noise_scale(loss, {}, ROWS[:1]), "batch: expected at least two examples"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
