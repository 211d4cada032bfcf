from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from calcdl.diagnostics.inspection import inspect

WIDTH, BATCH = 24, 16


def weights(count, gain=1.0, dtype=np.float32, width=WIDTH, seed=0):
    drawn = np.random.default_rng(seed).normal(size=(count, width, width))
    return (gain * drawn / width**0.5).astype(dtype)


def layers(depth, gain=1.0, dtype=np.float32):
    return {f"layer_{place}": {"weight": weight, "bias": np.zeros(WIDTH, dtype)}
            for place, weight in enumerate(weights(depth, gain, dtype), start=1)}  # fmt: skip


X = weights(1, seed=1, gain=WIDTH**0.5)[0][:BATCH]


def loss(model, x, activation=jnp.tanh, scale=1.0, offset=0.0):
    for place in range(1, len(model) + 1):
        one = model[f"layer_{place}"]
        x = activation(x @ one["weight"] + one["bias"][None] + (offset if place == 1 else 0.0))
    return scale * jnp.mean(jnp.sum(jnp.square(x - 0.3), axis=1))


def verdict(seen, words):
    (found,) = [one for one in seen.verdicts if words in one.claim]
    return found


def test_a_sound_network_is_healthy_and_its_table_is_right():
    model = layers(3)
    seen = inspect(loss, model, X, optimiser=optax.sgd(0.01))
    by_both = jax.value_and_grad(lambda model, offset: loss(model, X, offset=offset), argnums=(0, 1))
    value, (gradient, signal) = jax.jit(by_both)(model, np.zeros_like(X))
    assert seen.healthy
    assert len(seen.verdicts) == 5
    assert seen.loss == pytest.approx(float(value))
    one, (weight, slope) = seen.parameters[0], (tree["layer_1"]["weight"] for tree in (model, gradient))
    norms = [np.linalg.norm(part) for part in (weight, slope, slope, signal, slope)]
    expected = np.array([*norms[:2], norms[2] / WIDTH, 0.0, norms[3], 0.01 * norms[4] / norms[0], 2.0**-23])
    np.testing.assert_allclose(one[2:], expected, rtol=1e-5)
    assert one.shape == (WIDTH, WIDTH)
    assert seen.parameters[1].update_ratio == np.inf  # a bias of zeros
    assert np.isnan(seen.parameters[1].signal_norm)
    lines = str(seen).splitlines()
    assert lines[0].startswith("loss ")
    assert lines[2].split() == ["parameter", "shape", "|signal|", "|weight|", "|gradient|", "rms", "gradient", "zeros",
                                "|update|/|weight|"]  # fmt: skip
    assert lines[3].split()[:2] == ["layer_1.weight", "24x24"]
    assert sum(line.startswith("yes  ") for line in lines) == 5


@pytest.mark.parametrize(
    ("activation", "gain", "scale", "word"),
    [
        (jax.nn.sigmoid, 1.0, 1.0, "vanishes"),
        (jax.nn.sigmoid, 1.0, 1e-25, "vanishes"),
        (lambda h: h, 5.0, 1.0, "explodes"),  # where the gradients by the weights are of one size
    ],
)
def test_depth_is_judged_alike_for_any_unit_of_the_loss(activation, gain, scale, word):
    seen = inspect(partial(loss, activation=activation, scale=scale), layers(5, gain), X)
    found = verdict(seen, "over the depth")
    assert not found.holds
    assert found.evidence.startswith(f"{word}: a weight passes on ")
    # Five sigmoid layers, glorot: theory's factor is 0.236 a layer, and four lie between the first and the last.
    assert found.value**0.25 == pytest.approx(0.236 if word == "vanishes" else 5.0, rel=0.25)
    assert found.threshold == (0.01 if word == "vanishes" else 100)


def test_a_gradient_that_has_vanished_altogether():
    seen = inspect(partial(loss, activation=lambda h: 1e-9 * h + 1), layers(6), X)
    assert verdict(seen, "over the depth").evidence == "vanishes: exactly zero in the first 2 of 6 weights"
    assert verdict(seen, "every parameter").evidence.startswith("exactly zero in layer_1.weight, layer_1.bias, ")


def test_parameters_that_the_loss_forgets_and_units_that_are_dead():
    model = layers(4)
    model["layer_3"]["bias"][:8] = -100

    def forgetful(model, x):
        return loss({name: one for name, one in model.items() if name != "layer_4"}, x, jax.nn.relu)

    seen = inspect(forgetful, model, X)
    found = verdict(seen, "every parameter")
    assert (found.holds, found.value) == (False, 2)
    assert found.evidence == "the loss does not use layer_4.bias, layer_4.weight"
    seen = inspect(forgetful, model, X, trainable=lambda name: name.startswith(("layer_1.w", "layer_3")))
    assert [one.name for one in seen.parameters] == ["layer_1.weight", "layer_3.weight", "layer_3.bias"]
    assert seen.parameters[2].zeros == pytest.approx(8 / WIDTH, abs=0.1)
    assert seen.healthy


def test_steps_too_large_too_small_and_not_finite():
    large = inspect(loss, layers(1), X, optimiser=optax.adam(0.5))
    assert not verdict(large, "more than a tenth").holds
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), layers(1))
    found = verdict(inspect(loss, half, X.astype(jnp.bfloat16), optimiser=optax.sgd(1e-6)), "lost in rounding")
    assert not found.holds
    assert found.value < 0.5
    wrong = inspect(lambda model, x: jnp.sqrt(-loss(model, x)), layers(1), X)
    assert verdict(wrong, "finite").evidence == "the loss is nan; not so in layer_1.weight, layer_1.bias"
    assert not wrong.healthy
    assert not any("step" in one.claim for one in wrong.verdicts)


def scanned(model, x):
    def layer(h, one):
        return jnp.tanh(h @ one["weight"] + one["bias"][None]), None

    h, _ = jax.lax.scan(layer, x @ model["z_first"], model["hidden"])
    return jnp.mean(jnp.square(h @ model["a_readout"] - 1))


def backpropagated(model, x):
    hidden = model["hidden"]["weight"]
    h = [x @ model["z_first"]]
    for weight in hidden:
        h.append(np.tanh(h[-1] @ weight))
    y = h[-1] @ model["a_readout"]
    signals = [2 * (y - 1) / y.size]
    back = signals[0] @ model["a_readout"].T
    for weight, a in zip(hidden[::-1], h[:0:-1], strict=True):
        signals.append(back * (1 - a**2))
        back = signals[-1] @ weight.T
    return [back, *signals[:0:-1], signals[0]]


def test_layers_of_a_scan_are_rows_of_their_own():
    hidden = {"weight": weights(3), "bias": np.zeros((3, WIDTH), np.float32)}
    model = {"a_readout": weights(1)[0], "hidden": hidden, "z_first": weights(1)[0]}
    seen = inspect(scanned, model, X)
    inner = [f"hidden.{leaf}[{layer}]" for layer in range(3) for leaf in ("weight", "bias")]
    assert [one.name for one in seen.parameters] == ["z_first", *inner, "a_readout"]
    np.testing.assert_allclose(seen.parameters[3].weight_norm, np.linalg.norm(hidden["weight"][1]), rtol=1e-6)
    by_hand = backpropagated(model, X)
    found = [one.signal_norm for one in seen.parameters if len(one.shape) == 2]
    np.testing.assert_allclose(found, [np.linalg.norm(signal) for signal in by_hand], rtol=1e-4)
    other = inspect(scanned, model, X, order=["a_readout", "hidden.bias", "hidden[]"])
    inner = [f"hidden.weight[{layer}]" for layer in range(3)]
    assert [one.name for one in other.parameters] == ["a_readout", "hidden.bias", *inner, "z_first"]
    with pytest.raises(ValueError, match="order: 'hid' is the beginning of no parameter's name; got a_readout, hidden"):
        inspect(scanned, model, X, order=["hid"])


def test_haiku_like_names_settings_and_masks():
    model = {"mlp/~/linear_0": {"w": weights(1)[0]}, "mlp/~/linear_1": {"w": weights(1)[0]},
             "rate": 0.5, "activation": jnp.tanh, "table": np.arange(3), "key": jax.random.key(0)}  # fmt: skip

    def apply(model, x):
        assert isinstance(model["rate"], float)
        for name in ("mlp/~/linear_0", "mlp/~/linear_1"):
            x = model["activation"](x @ model[name]["w"])
        return model["rate"] * jnp.mean(jnp.square(x - 1))

    mask = {name: jax.tree.map(lambda _, name=name: name.endswith("1"), leaf) for name, leaf in model.items()}
    frozen = optax.chain(optax.sgd(1e-3), optax.masked(optax.set_to_zero(), mask))
    seen = inspect(apply, model, X, optimiser=frozen)
    assert [one.name for one in seen.parameters] == ["mlp/~/linear_0.w", "mlp/~/linear_1.w"]
    assert seen.parameters[0].update_ratio > 0 == seen.parameters[1].update_ratio


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inspect(loss, {"steps": 3}, X), r"model: expected floating-point arrays .* got none in \['steps'\]"),
        (lambda: inspect(lambda model, x: x @ model["w"], {"w": X.T}, X), "loss: expected it to return one scalar"),
    ],
)
def test_what_cannot_be_inspected_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
