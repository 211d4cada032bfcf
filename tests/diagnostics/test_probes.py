import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import diagnostics
from calcdl.nn.activations import ACTIVATIONS
from calcdl.nn.initialisers import INITIALISERS
from calcdl.nn.layers import stack
from calcdl.optim.solver import RUNNING, Info


@pytest.fixture(scope="module")
def seen():
    network = stack(4, 6, 2, ACTIVATIONS["tanh"], INITIALISERS["he_normal"], dtype=jnp.float64)
    key = jax.random.key(1)
    params, x = network.init(key, (3,)), jax.random.normal(key, (5, 3), jnp.float64)

    def loss(params, offsets):
        y, preactivations = network.record(params, x, offsets)
        return jnp.mean(jnp.square(y)), preactivations

    return network, params, x, loss, diagnostics.signals(loss, params, jnp.zeros((4, 5, 6), jnp.float64))


def test_signals_are_the_gradients_by_parameters_and_by_preactivations(seen):
    network, params, x, loss, signals = seen
    gradient = jax.grad(lambda p: jnp.mean(jnp.square(network.apply(p, x))))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), signals.gradient, gradient)
    step = 1e-6
    for place in ((0, 0, 0), (2, 3, 4), (3, 4, 5)):
        bump = jnp.zeros((4, 5, 6), jnp.float64).at[place].set(step)
        difference = (loss(params, bump)[0] - loss(params, -bump)[0]) / (2 * step)
        np.testing.assert_allclose(signals.backpropagated[place], difference, rtol=1e-6, atol=1e-12)


def test_the_weight_gradient_is_activation_times_signal(seen):
    signals = seen[4]
    activations = jnp.tanh(signals.preactivations)
    for layer in range(1, 4):
        expected = activations[layer - 1].T @ signals.backpropagated[layer]
        np.testing.assert_allclose(signals.gradient["hidden"]["weight"][layer - 1], expected, rtol=1e-10)


def test_layer_norms_go_from_first_to_last(seen):
    params = seen[1]
    expected = [np.linalg.norm(params["first"]["weight"])] + [np.linalg.norm(w) for w in params["hidden"]["weight"]]
    np.testing.assert_allclose(diagnostics.layer_norms(params), expected, rtol=1e-12)
    assert diagnostics.layer_norms({"readout": {}}).shape == (0,)


def test_layer_norms_do_not_underflow():
    first, hidden = jnp.full((2, 2), 1e-30, jnp.float32), jnp.full((1, 2, 2), 1e-35, jnp.float32)
    tiny = {"first": {"weight": first}, "hidden": {"weight": hidden}}
    np.testing.assert_allclose(diagnostics.layer_norms(tiny), [2e-30, 2e-35], rtol=1e-6)


def test_dead_and_saturated_units_are_counted_over_all_rows():
    slopes = jnp.array([[[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(diagnostics.dead_units(slopes), [1 / 3, 1.0])
    flat = jnp.array([[[0.01, 0.25, 0.01], [0.012, 0.25, 0.25]]])
    np.testing.assert_allclose(diagnostics.saturated_units(flat, 0.25), [1 / 3])
    np.testing.assert_allclose(diagnostics.saturated_units(flat, 0.25, share=0.5), [2 / 3])
    np.testing.assert_allclose(diagnostics.saturated_units(flat, 0.25, tolerance=0.001), [0.0])


def test_a_network_pushed_far_is_saturated_or_dead():
    far = jnp.full((1, 4, 3), -30.0, jnp.float32)
    assert diagnostics.dead_units(ACTIVATIONS["relu"].derivative(far)).tolist() == [1.0]
    sigmoid = ACTIVATIONS["sigmoid"]
    assert diagnostics.dead_units(sigmoid.derivative(far)).tolist() == [0.0]
    assert diagnostics.saturated_units(sigmoid.derivative(far), sigmoid.lipschitz).tolist() == [1.0]


def test_probes_of_a_loop_read_its_record(seen):
    params = seen[1]
    update = jax.tree.map(lambda leaf: -0.1 * leaf, params)
    info = Info(jnp.float64(0.0), params, update, jnp.int32(RUNNING))
    np.testing.assert_allclose(diagnostics.update_to_weight_ratio(None, params, info), np.full(4, 0.1), rtol=1e-12)
    np.testing.assert_allclose(diagnostics.gradient_by_layer(None, params, info), diagnostics.layer_norms(params))


def test_nothing_updated_is_ratio_zero_even_from_zero_weights():
    zero = {"first": {"weight": jnp.zeros((2, 2))}}
    one = {"first": {"weight": jnp.ones((2, 2))}}
    ratio = diagnostics.update_to_weight_ratio
    assert ratio(None, zero, Info(0.0, zero, zero, RUNNING)).tolist() == [0.0]
    assert ratio(None, zero, Info(0.0, one, one, RUNNING)).tolist() == [float("inf")]
