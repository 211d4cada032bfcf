from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.diagnostics.attribution import attribute
from calcdl.diagnostics.taps import capture, tap

DEPTH, WIDTH, BATCH = 6, 5, 4
SETTINGS = [(0.0, 1.0, 0.0), (0.0, 1.0, 1.0), (1.0, 0.3, 0.0), (1.0, 0.3, 1.0)]  # s, α, whether normalised


def normalise(h, share):
    centred = h - h.mean(1, keepdims=True)
    return share * centred / jnp.sqrt(jnp.mean(centred**2, axis=1, keepdims=True)) + (1 - share) * h


def activated(where, h, share):
    h = tap(h, f"{where}.preactivation")
    branch = tap(h, f"{where}.branch")
    normalised = tap(normalise(branch, share), f"{where}.normalised")
    return h, tap(jnp.tanh(normalised), f"{where}.activated")


def loss(params, x, skip, scale, share):
    """`h_l = s h_{l-1} + α a_{l-1} W_l`, `a_l = tanh(N(h_l))`, `L = mean (a_L w)²`."""
    h, a = activated("first", x @ params["first"], share)

    def layer(carry, weight):
        h, a = carry
        return activated("hidden", skip * h + scale * (a @ weight), share), None

    (_, a), _ = jax.lax.scan(layer, (h, a), params["hidden"])
    return jnp.mean(jnp.square(a @ params["readout"]))


def problem(dtype, gain=1.0):
    source = np.random.default_rng(0)
    params = {"first": source.normal(size=(3, WIDTH)), "readout": source.normal(size=(WIDTH, 1)),
              "hidden": gain * source.normal(size=(DEPTH - 1, WIDTH, WIDTH)) / WIDTH**0.5}  # fmt: skip
    return jax.tree.map(lambda leaf: leaf.astype(dtype), (params, source.normal(size=(BATCH, 3))))


@jax.jit
def run(params, x, settings):
    def one(skip, scale, share):
        seen = capture(loss)(params, x, skip, scale, share)
        return seen.taps, attribute(seen.taps)

    return jax.vmap(one)(*settings)


@pytest.fixture(scope="module")
def seen():
    return jax.tree.map(np.asarray, run(*problem(np.float64), tuple(np.array(SETTINGS).T)))


def by_hand(h, v, share):
    """Back through the layer normalisation."""
    if not share:
        return v
    deviation = h.std(1, keepdims=True)
    y = (h - h.mean(1, keepdims=True)) / deviation
    return (v - v.mean(1, keepdims=True) - y * (v * y).mean(1, keepdims=True)) / deviation


@pytest.mark.parametrize("lane", range(4))
def test_the_parts_are_those_of_a_backward_pass_by_hand(seen, lane):
    taps, found = jax.tree.map(lambda leaf: leaf[lane], seen)
    (skip, scale, share), weights = SETTINGS[lane], problem(np.float64)[0]["hidden"]
    stream, delta = taps["hidden.preactivation"]
    for layer in range(DEPTH - 2):
        u = scale * delta[layer + 1] @ weights[layer + 1].T
        v = u * (1 - taps["hidden.activated"].value[layer] ** 2)
        w = by_hand(stream[layer], v, share)
        logs = [np.log(np.linalg.norm(part)) for part in (delta[layer + 1], u, v, w, skip * delta[layer + 1] + w)]
        parts = [float(part[layer + 1]) for part in found]
        np.testing.assert_allclose(parts, [*np.diff(logs), logs[-1] - logs[0]], atol=1e-10)
    np.testing.assert_allclose(sum(found[:4]), found.total, atol=1e-12)
    assert bool(np.any(found.skip != 0)) == bool(skip)
    assert bool(np.any(found.normalisation != 0)) == bool(share)


def test_the_parts_sum_to_the_total_where_squares_would_vanish():
    _, found = run(*problem(np.float32, gain=1e-2), tuple(np.array(SETTINGS[:1], np.float32).T))
    assert all(part.shape == (1, DEPTH - 1) and part.dtype == jnp.float32 for part in found)
    assert np.sum(found.total) < -20
    np.testing.assert_allclose(np.sum(np.stack(found[:4]), axis=0), found.total, atol=1e-5)


def test_parts_without_a_tap_are_zero(seen):
    taps, expected = jax.tree.map(lambda leaf: leaf[0], seen)
    few = {name: one for name, one in taps.items() if name.split(".")[1] in ("preactivation", "activated")}
    np.testing.assert_allclose(np.stack(jax.jit(attribute)(few)), np.stack(expected), atol=1e-12)


def test_what_cannot_be_followed_is_refused(seen):
    taps, _ = jax.tree.map(lambda leaf: leaf[0], seen)
    whole = {name: one._replace(cotangent=None) if name.endswith("activated") else one for name, one in taps.items()}
    few = [name for name in taps if name.endswith("preactivation")]
    first = [name for name in taps if name.startswith("first")]
    trace = partial(jax.eval_shape, attribute)
    with pytest.raises(ValueError, match="at least two layers between which a gradient flows, got 1"):
        trace({name: taps[name] for name in first})
    with pytest.raises(ValueError, match=r"expected a tap 'first\.activated'"):
        trace({name: taps[name] for name in few})
    with pytest.raises(ValueError, match="expected floating-point values at 'activated'"):
        trace(whole)
