from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import diagnostics
from calcdl.diagnostics.taps import Tap
from calcdl.nn import stack
from calcdl.nn.activations import ACTIVATIONS
from calcdl.nn.initialisers import INITIALISERS
from calcdl.optim.solver import RUNNING, Info


@pytest.fixture(scope="module")
def seen():
    initialise = INITIALISERS["he_normal"]
    network = stack(4, 6, 2, ACTIVATIONS["tanh"], initialise, dtype=jnp.float64, tap=diagnostics.tap)
    key = jax.random.key(1)
    params, x = network.init(key, (3,)), jax.random.normal(key, (5, 3), jnp.float64)

    captured = diagnostics.capture(lambda params: jnp.mean(jnp.square(network.apply(params, x))))(params)
    return params, captured.gradient, diagnostics.by_layer(captured.taps, "preactivation")


def test_the_weight_gradient_is_activation_times_signal(seen):
    _, gradient, stream = seen
    activations = jnp.tanh(stream.value)
    for layer in range(1, 4):
        expected = activations[layer - 1].T @ stream.cotangent[layer]
        np.testing.assert_allclose(gradient["hidden"]["weight"][layer - 1], expected, rtol=1e-10)


def test_layer_norms_go_from_first_to_last(seen):
    params = seen[0]
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
    params = seen[0]
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


def test_layers_of_a_scan_follow_the_first_one():
    first, hidden = np.ones((5, 6)), np.arange(90.0).reshape(3, 5, 6)
    taps = {"first.x": Tap(first, 2 * first), "hidden.x": Tap(hidden, 2 * hidden), "hidden.y": Tap(hidden, None)}
    joined = diagnostics.probes.by_layer(taps, "x")
    np.testing.assert_array_equal(joined.value, np.concatenate([first[None], hidden]))
    np.testing.assert_array_equal(joined.cotangent, 2 * np.asarray(joined.value))
    assert diagnostics.probes.by_layer(taps, "y").cotangent is None
    alone = diagnostics.probes.by_layer({"first.x": taps["first.x"]}, "x")
    assert alone.value.shape == alone.cotangent.shape == (1, 5, 6)
    with pytest.raises(ValueError, match=r"expected a tap 'first.z' or 'hidden.z', got \['first.x', 'hidden.x'"):
        diagnostics.probes.by_layer(taps, "z")


correlations = jax.jit(diagnostics.probes.correlations)


@pytest.mark.parametrize(("dtype", "scale"), [(np.float64, 1.0), (np.float32, 1.0), (np.float32, 1e-30)])
def test_correlations_are_the_mean_cosine_of_pairs(dtype, scale):
    signal = 1 + np.random.default_rng(0).normal(size=(2, 4, 3, 2))
    flat = signal.reshape(2, 4, -1)
    rows = flat / np.linalg.norm(flat, axis=2, keepdims=True)
    pairs = np.einsum("lif,ljf->lij", rows, rows)[:, ~np.eye(4, dtype=bool)].mean(1)
    found = correlations((scale * signal).astype(dtype))
    np.testing.assert_allclose(found, pairs, rtol=1e-5 if dtype == np.float32 else 1e-13)
    assert found.dtype == dtype


def test_correlations_near_one_keep_their_digits_and_leave_zeros_out():
    angle = 1e-6
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [np.cos(angle), np.sin(angle)]])
    few = rows * [[0], [0], [1]]
    found, slope = jax.jit(jax.value_and_grad(lambda x: correlations(x)[0]))(np.stack([rows, few]))
    np.testing.assert_allclose(1 - found, angle**2 / 2, rtol=1e-3)
    assert np.all(np.isfinite(slope))
    assert np.isnan(correlations(np.stack([rows, few]))[1])


def test_signals_of_images_are_reduced_over_all_places():
    image = np.zeros((1, 2, 3, 3, 2))
    image[0, 1, 2, 2, 1] = 4
    room = diagnostics.probes
    several = [room.signal_norms, room.second_moments, room.dead_units, partial(room.saturated_units, share=1.0)]
    found = jax.jit(lambda x: [one(x, 4.0) if one is several[3] else one(x) for one in several])(image)
    np.testing.assert_allclose(np.concatenate(found), [4, 16 / 36, 0.5, 0.5])
