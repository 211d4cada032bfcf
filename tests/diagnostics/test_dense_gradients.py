import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.diagnostics import by_layer, capture, gradient_coherence, gradient_norms, noise_scale, tap
from calcdl.diagnostics.dense_gradients import layer_coherence, layer_gradient_norms, layer_noise_scale
from calcdl.nn import ACTIVATIONS, INITIALISERS, stack

DEPTH, WIDTH, COUNT = 3, 6, 5


@pytest.fixture(scope="module", params=[1.0, 1e-30], ids=["ordinary", "tiny"])
def seen(request):
    """What taps have seen of a batch, and the same network's loss of one example, in float32."""
    network = stack(DEPTH, WIDTH, 2, ACTIVATIONS["tanh"], INITIALISERS["he_normal"], tap=tap)
    params = network.init(jax.random.key(1), (4,))
    rows = jax.random.normal(jax.random.key(2), (COUNT, 4), jnp.float32)

    def one(hidden, x):
        return request.param * jnp.sum(network.apply({**params, "hidden": hidden}, x[None]) ** 2)

    def batch(hidden):
        return jnp.sum(jax.vmap(lambda x: one(hidden, x))(rows))

    taps = jax.jit(capture(batch))(params["hidden"]).taps
    x, delta = by_layer(taps, "activated").value[:-1], by_layer(taps, "preactivation").cotangent[1:]
    return params["hidden"], one, rows, x.reshape(DEPTH - 1, COUNT, WIDTH), delta.reshape(DEPTH - 1, COUNT, WIDTH)


def of_layer(hidden, one, layer):
    """The loss as a function of one layer's parameters."""
    return lambda own, x: one(jax.tree.map(lambda all_, part: all_.at[layer].set(part), hidden, own), x)


def test_they_are_those_of_any_model(seen):
    hidden, one, rows, x, delta = seen
    layer = DEPTH - 2
    own, loss = jax.tree.map(lambda leaf: leaf[layer], hidden), of_layer(hidden, one, layer)

    @jax.jit
    def written_out(own):
        return gradient_norms(loss, own, rows), gradient_coherence(loss, own, rows), noise_scale(loss, own, rows).scale

    norms, coherence, scale = written_out(own)
    np.testing.assert_allclose(layer_gradient_norms(x, delta)[layer], norms, rtol=1e-5)
    np.testing.assert_allclose(layer_coherence(x, delta)[layer], coherence, rtol=1e-4)
    np.testing.assert_allclose(layer_noise_scale(x, delta)[layer], scale, rtol=1e-3)


def test_examples_without_a_gradient_make_no_pairs():
    x, delta = jnp.ones((1, 3, 2)), jnp.zeros((1, 3, 2)).at[0, 0].set(1.0)
    assert np.isnan(layer_coherence(x, delta)).all()
    assert layer_coherence(x, delta.at[0, 1].set(-2.0)).tolist() == pytest.approx([-1.0])
    with pytest.raises(ValueError, match="at least two examples"):
        layer_noise_scale(x[:, :1], delta[:, :1])
