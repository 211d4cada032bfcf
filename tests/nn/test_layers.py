import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.nn.activations import ACTIVATIONS
from calcdl.nn.initialisers import INITIALISERS
from calcdl.nn.layers import dense, stack


def make(depth, activation="tanh", dtype=jnp.float64, **options):
    return stack(depth, 5, 2, ACTIVATIONS[activation], INITIALISERS["he_normal"], dtype=dtype, **options)


def by_hand(params, x, depth, function):
    layers = [params["first"]] if depth else []
    for position in range(depth - 1):
        layers.append(jax.tree.map(lambda leaf: leaf[position], params["hidden"]))  # noqa: B023
    seen = []
    for layer in layers:
        seen.append(x @ layer["weight"] + layer["bias"][None, :])
        x = function(seen[-1], *([layer["slope"]] if "slope" in layer else []))
    return x @ params["readout"]["weight"] + params["readout"]["bias"][None, :], seen


@pytest.mark.parametrize("depth", [0, 1, 2, 4])
@pytest.mark.parametrize("activation", ["tanh", "prelu"])
def test_a_scanned_stack_is_the_loop_over_its_layers(depth, activation, key):
    network = make(depth, activation)
    params = network.init(key, (3,))
    x = jax.random.normal(key, (7, 3), jnp.float64)
    y, seen = by_hand(params, x, depth, ACTIVATIONS[activation].function)
    np.testing.assert_allclose(network.apply(params, x), y, rtol=1e-12)
    offsets = jnp.zeros((depth, 7, 5), jnp.float64)
    recorded, preactivations = jax.jit(network.record)(params, x, offsets)
    np.testing.assert_allclose(recorded, y, rtol=1e-12)
    assert preactivations.shape == (depth, 7, 5)
    for layer, expected in zip(preactivations, seen, strict=True):
        np.testing.assert_allclose(layer, expected, rtol=1e-12)


def test_the_gradient_by_an_offset_is_the_backpropagated_signal(key):
    network = make(3)
    params, x = network.init(key, (3,)), jax.random.normal(key, (7, 3), jnp.float64)
    zero = jnp.zeros((3, 7, 5), jnp.float64)
    signal = jax.grad(lambda offsets: jnp.sum(network.record(params, x, offsets)[0] ** 2))(zero)
    y, seen = by_hand(params, x, 3, jnp.tanh)
    delta = 2 * y @ params["readout"]["weight"].T * (1 - jnp.tanh(seen[2]) ** 2)
    np.testing.assert_allclose(signal[2], delta, rtol=1e-11)
    for layer in (1, 0):
        delta = delta @ params["hidden"]["weight"][layer].T * (1 - jnp.tanh(seen[layer]) ** 2)
        np.testing.assert_allclose(signal[layer], delta, rtol=1e-11)


def test_the_gain_scales_hidden_weights_alone_and_may_be_traced(key):
    one = make(3).init(key, (3,))
    twice = jax.jit(lambda gain: make(3, gain=gain).init(key, (3,)))(2.0)
    np.testing.assert_allclose(twice["hidden"]["weight"], 2 * one["hidden"]["weight"])
    np.testing.assert_allclose(twice["first"]["weight"], 2 * one["first"]["weight"])
    np.testing.assert_allclose(twice["readout"]["weight"], one["readout"]["weight"])


def test_layers_differ_and_keep_dtype(key):
    params = make(3, dtype=jnp.float32).init(key, (3,))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert not np.allclose(params["hidden"]["weight"][0], params["hidden"]["weight"][1])


def test_the_program_does_not_grow_with_depth(key):
    def size(depth):
        network = make(depth)
        params = network.init(key, (3,))
        return len(str(jax.make_jaxpr(jax.grad(lambda p: jnp.sum(network.apply(p, jnp.ones((1, 3))))))(params)))

    assert size(50) < 1.02 * size(5)


@pytest.mark.parametrize(
    ("field", "value"), [("depth", -1), ("depth", True), ("width", 0), ("outputs", 0), ("depth", 2.0)]
)
def test_bad_sizes_are_refused_by_name(field, value):
    sizes = {"depth": 2, "width": 5, "outputs": 2, field: value}
    with pytest.raises(ValueError, match=f"{field}: expected an integer"):
        stack(**sizes, activation=ACTIVATIONS["tanh"], initialiser=INITIALISERS["zeros"])


def test_a_dense_layer_is_affine(key):
    layer = dense(4, INITIALISERS["normal"], dtype=jnp.float64)
    params = layer.init(key, (3,))
    x = jnp.ones((2, 3), jnp.float64)
    np.testing.assert_allclose(layer.apply(params, x), x @ params["weight"])
    assert not params["bias"].any()
