import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.theory import meanfield
from calcdl.theory.blocks import asymptote, batch_moments, block_trajectory, fluctuation


def test_batch_normalisation_in_closed_form():
    for batch in (4, 5, 17):
        variance, gradient = jax.jit(lambda batch=batch: batch_moments(lambda x: x, batch))()
        assert variance == pytest.approx(batch / (batch - 1), rel=1e-11)
        assert gradient / variance == pytest.approx((batch - 2) / (batch - 3), rel=1e-11)


def test_large_batches_of_any_activation(truths):
    names = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu, "linear": lambda x: x}

    @jax.jit
    def moments(index):
        return batch_moments(lambda x: jax.lax.switch(index, list(names.values()), x), 10**8)

    for record in truths("signal_propagation.json")["gaussian_moments_q1"]:
        variance, gradient = moments(list(names).index(record["phi"]))
        assert variance == pytest.approx(record["var"], rel=1e-6)
        assert gradient == pytest.approx(record["dphi2"], rel=1e-6)
    # In large batches entries are independent: A = Var φ and T = E φ'².
    variance, gradient = moments(list(names).index("relu"))
    assert gradient / variance == pytest.approx(math.pi / (math.pi - 1), rel=1e-7)


def test_plain_networks_are_those_of_mean_field():
    @jax.jit
    def look():
        path = block_trajectory(jnp.tanh, 1.5, 1.5, 0.05, depth=20)
        return path, meanfield.length_trajectory(jnp.tanh, 1.5, 1.5, 0.05, depth=20), asymptote(jnp.tanh, 1.5, 0.05)

    path, expected, limit = look()
    for one, other in zip(path, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)
    assert limit.chi1 == pytest.approx(float(path.chi1[-1]), rel=1e-4)
    assert np.isnan(limit.exponent)


def test_residual_networks():
    @jax.jit
    def look():
        paths = [block_trajectory(jax.nn.relu, 3.0, 2.0, depth=11, residual=scale) for scale in (1.0, 10**-0.5)]
        return *paths, asymptote(jax.nn.relu, 2.0, residual=0.5), asymptote(jnp.tanh, 2.0, residual=1.0)

    # relu, He: a branch adds q to q, and the square of the gradient doubles; scaled by 1/√L, it grows by (1 + 1/L)^L.
    plain, scaled, half, tanh = look()
    np.testing.assert_allclose(plain.q, 3 * 2.0 ** np.arange(11), rtol=1e-13)
    np.testing.assert_allclose(plain.log_gradient_ratio, np.arange(11) * math.log(2), rtol=1e-13, atol=1e-15)
    assert scaled.log_gradient_ratio[-1] == pytest.approx(10 * math.log(1.1), rel=1e-13)
    assert half.chi1 == pytest.approx(1.25, rel=1e-13)
    assert tanh.chi1 == pytest.approx(1, rel=1e-11)


def test_layer_normalisation():
    @jax.jit
    def look():
        plain = block_trajectory(jax.nn.relu, 7.0, 3.0, 0.5, depth=4, normalisation="layer")
        skip = block_trajectory(jax.nn.relu, 2.0, 3.0, 0.5, depth=3000, normalisation="layer", residual=1.0)
        limits = [asymptote(jax.nn.relu, 3.0, 0.5, normalisation="layer", residual=one) for one in (None, 1.0)]
        return plain, limits[0], skip, limits[1]

    # relu: q = σ_w²/2 + σ_b² from the second layer on, whatever the first, and χ = σ_w² / 2 q.
    path, limit, grown, grown_limit = look()
    np.testing.assert_allclose(path.q, [7, 2, 2, 2], rtol=1e-13)
    np.testing.assert_allclose(path.chi1, [1.5 / 7, 0.75, 0.75, 0.75], rtol=1e-13)
    assert limit.chi1 == pytest.approx(0.75, rel=1e-13)
    # With a skip connection q grows by 2 a layer, and log g_l by -exponent log l.
    assert grown_limit == (1, pytest.approx(0.75, rel=1e-13))
    rise = grown.log_gradient_ratio[2999] - grown.log_gradient_ratio[299]
    assert rise / math.log(10) == pytest.approx(float(grown_limit.exponent), rel=1e-3)


SETTINGS = [(kind, residual) for kind in ("none", "layer", "batch") for residual in (None, 1.0)]


def test_wide_networks(key):
    """12 networks of width 256 a setting, by automatic differentiation, against theory in units of standard error."""
    width, depth, batch, networks, weight_variance = 256, 4, 8, 12, 2.0
    functions = {"relu": jax.nn.relu, "tanh": jnp.tanh}

    def normalise(h, kind):
        axis = {"layer": 1, "batch": 0}[kind]
        centred = h - h.mean(axis, keepdims=True)
        return centred / jnp.sqrt(jnp.mean(centred**2, axis, keepdims=True))

    settings = [(function, *setting) for function in functions.values() for setting in SETTINGS]

    def layer(h, weight):
        a = [f(h[i] if kind == "none" else normalise(h[i], kind)) for i, (f, kind, _) in enumerate(settings)]
        skip = jnp.asarray([residual is not None for *_, residual in settings], h.dtype)[:, None, None]
        return skip * h + (jnp.stack(a).reshape(-1, width) @ weight).reshape(h.shape), None

    def measure(key):
        keys = jax.random.split(key, 3)
        signs = jax.random.rademacher(keys[0], (depth - 1, width, width), jnp.float32)
        weights = signs * math.sqrt(weight_variance / width)
        start = jax.random.normal(keys[1], (batch, width), jnp.float32) * math.sqrt(weight_variance)
        signal = jax.random.normal(keys[2], (batch, width), jnp.float32)
        signal = signal - signal.mean(0, keepdims=True)
        start, signals = (jnp.broadcast_to(x[None], (len(settings), *x.shape)) for x in (start, signal))
        end, back = jax.vjp(lambda h: jax.lax.scan(layer, h, weights)[0], start)
        is_batch = jnp.asarray([kind == "batch" for _, kind, _ in settings])
        spread = jnp.where(is_batch, jnp.mean(jnp.var(end, axis=1, ddof=1), axis=1), jnp.mean(end**2, axis=(1, 2)))
        ratio = jnp.sum(back(signals)[0] ** 2, axis=(1, 2)) / jnp.sum(signal**2)
        return jnp.stack([spread, ratio], axis=1)

    measured = np.asarray(jax.lax.map(jax.jit(measure), jax.random.split(key, networks)))
    error = measured.std(0, ddof=1) / math.sqrt(networks)

    @jax.jit
    def predict(index):
        def function(x):
            return jax.lax.switch(index, list(functions.values()), x)

        paths = [
            block_trajectory(
                function, weight_variance, weight_variance, depth=depth, normalisation=kind,
                batch=batch if kind == "batch" else None, residual=residual,
            )
            for kind, residual in SETTINGS
        ]  # fmt: skip
        return jnp.stack([jnp.stack([path.q[-1], jnp.exp(path.log_gradient_ratio[-1])]) for path in paths])

    predicted = np.concatenate([predict(index) for index in range(len(functions))])
    scores = (measured.mean(0) - predicted) / error
    names = [(name, *setting) for name in functions for setting in SETTINGS]
    assert np.all(np.abs(scores) < 3), dict(zip(names, scores.tolist(), strict=True))


def test_fluctuations(key):
    """Variance of one layer's factor over 1,000 networks of width 200, within 4 standard errors of 4.5 % each."""
    width, networks = 200, 1000

    @jax.jit
    def look(key):
        def factors(key):
            h, back, signal = jax.random.normal(key, (3, width), jnp.float64)
            # One layer alone: W^T δ is normal with variance σ_w² |δ|² / N.
            branch = jnp.where(h > 0, back, 0) * math.sqrt(2.0 / width) * jnp.linalg.norm(signal)
            return jnp.stack([jnp.sum(whole**2) / jnp.sum(signal**2) for whole in (branch, signal + 0.7 * branch)])

        found = jax.vmap(factors)(jax.random.split(key, networks))
        expected = [fluctuation(jax.nn.relu, 1.0, 2.0, width=width, residual=residual) for residual in (None, 0.7)]
        measured = jnp.var(found / jnp.mean(found, axis=0, keepdims=True), axis=0)
        return measured, jnp.stack(expected), fluctuation(jax.nn.relu, width=1000)

    measured, expected, wide = look(key)
    np.testing.assert_allclose(measured, expected, rtol=4 * math.sqrt(2 / networks))
    assert wide == pytest.approx(0.005, rel=1e-12)


def test_derivatives_many_at_once_and_float32():
    def end(residual, weight_variance, kind, batch):
        path = block_trajectory(
            jnp.tanh, 1.0, weight_variance, depth=4, normalisation=kind, batch=batch, residual=residual
        )
        return path.log_gradient_ratio[-1]

    for kind, batch in (("layer", None), ("batch", 6)):
        ends = jax.jit(jax.vmap(jax.value_and_grad(end), (0, None, None, None)), static_argnums=(2, 3))
        values, slopes = ends(jnp.asarray([0.5 - 1e-5, 0.5, 0.5 + 1e-5]), 2.0, kind, batch)
        assert slopes[1] == pytest.approx(float(values[2] - values[0]) / 2e-5, rel=1e-6)
    single = block_trajectory(jnp.tanh, jnp.float32(1), 2.0, depth=4, normalisation="batch", batch=6)
    assert {part.dtype for part in single} == {jnp.dtype("float32")}


def test_refusals():
    with pytest.raises(ValueError, match="normalisation must be one of none, batch, layer; got 'group'"):
        block_trajectory(jnp.tanh, 1.0, 1.0, depth=2, normalisation="group")
    with pytest.raises(ValueError, match="batch must be a whole number of at least 4 for batch normalisation, got 3"):
        asymptote(jnp.tanh, 1.0, normalisation="batch", batch=3)
    with pytest.raises(ValueError, match="batch is for batch normalisation, got 8 with normalisation 'layer'"):
        block_trajectory(jnp.tanh, 1.0, 1.0, depth=2, normalisation="layer", batch=8)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        block_trajectory(jnp.tanh, 1.0, 1.0, depth=0)
    with pytest.raises(ValueError, match="residual must be finite and at least 0, got -1"):
        asymptote(jnp.tanh, 1.0, residual=-1.0)
    with pytest.raises(ValueError, match="normalisation must be none or layer, got 'batch'"):
        fluctuation(jnp.tanh, width=10, normalisation="batch")
