"""The least that JAX can cost: each study by hand as `jit(vmap(scan))`, and no engine."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.workloads import (
    CLASSES,
    Ensemble,
    Initialisation,
    Line,
    Regression,
    Training,
    deviation,
)

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "relu": jax.nn.relu}


def line_init(key):
    return {"weight": jax.random.normal(key, (1, 1)), "bias": jnp.zeros(1)}


def line_loss(params, x, activation):
    prediction = ACTIVATIONS[activation](x @ params["weight"] + params["bias"])
    return jnp.mean((prediction - (2 * x + 1)) ** 2)


def stack_init(key, depth, width, hidden_deviation, readout_deviation):
    hidden_key, readout_key = jax.random.split(key)
    return {
        "hidden": hidden_deviation * jax.random.normal(hidden_key, (depth, width, width)),
        "bias": jnp.zeros((depth, width)),
        "readout": readout_deviation * jax.random.normal(readout_key, (width, CLASSES)),
        "readout_bias": jnp.zeros(CLASSES),
    }


def stack_apply(params, x, activation):
    def layer(h, weights):
        weight, bias = weights
        return ACTIVATIONS[activation](h @ weight + bias), None

    h, _ = jax.lax.scan(layer, x, (params["hidden"], params["bias"]))
    return h @ params["readout"] + params["readout_bias"]


def stack_apply_with_offsets(params, offsets, x, activation):
    """Return logits and the second moment of each layer's output; the gradient by an offset is the signal."""

    def layer(h, weights):
        weight, bias, offset = weights
        h = ACTIVATIONS[activation](h @ weight + bias + offset)
        return h, jnp.mean(h**2)

    h, moments = jax.lax.scan(layer, x, (params["hidden"], params["bias"], offsets["hidden"]))
    logits = h @ params["readout"] + params["readout_bias"] + offsets["readout"]
    return logits, jnp.append(moments, jnp.mean(logits**2))


def stack_loss(params, x, labels, activation):
    logits = stack_apply(params, x, activation)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def layer_norms(hidden, readout):
    return jnp.append(jnp.sqrt(jnp.sum(hidden**2, axis=(1, 2))), jnp.linalg.norm(readout))


def statistics(params, x, labels, activation):
    """Gradient norm, signal norm and second moment of every layer."""
    depth, width = params["bias"].shape
    offsets = {"hidden": jnp.zeros((depth, len(x), width)), "readout": jnp.zeros((len(x), CLASSES))}

    def loss(params, offsets):
        logits, moments = stack_apply_with_offsets(params, offsets, x, activation)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), moments

    (by_params, by_offsets), moments = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, offsets)
    return {
        "weight_gradient": layer_norms(by_params["hidden"], by_params["readout"]),
        "signal": layer_norms(by_offsets["hidden"], by_offsets["readout"]),
        "second_moment": moments,
    }


def network_init(key, inputs, width, initialiser):
    first, second = jax.random.split(key)
    return {
        "hidden": deviation(initialiser, inputs, width) * jax.random.normal(first, (inputs, width)),
        "bias": jnp.zeros(width),
        "readout": deviation(initialiser, width, CLASSES) * jax.random.normal(second, (width, CLASSES)),
        "readout_bias": jnp.zeros(CLASSES),
    }


def network_apply(params, x):
    h = jax.nn.relu(x @ params["hidden"] + params["bias"])
    return h @ params["readout"] + params["readout_bias"]


def network_loss(params, x, labels):
    return optax.softmax_cross_entropy_with_integer_labels(network_apply(params, x), labels).mean()


def accuracy(logits, labels):
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def seeds_to_keys(seeds):
    return jax.vmap(jax.random.key)(np.arange(seeds))


@partial(jax.jit, static_argnames=("activation", "steps", "batch"))
def line_study(rates, keys, activation, steps, batch):
    def run(rate, key):
        optimiser = optax.sgd(rate)
        init_key, key = jax.random.split(key)
        params = line_init(init_key)

        def step(carry, _):
            params, state, key = carry
            key, draw = jax.random.split(key)
            x = jax.random.normal(draw, (batch, 1))
            loss, gradient = jax.value_and_grad(line_loss)(params, x, activation)
            updates, state = optimiser.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state, key), loss

        return jax.lax.scan(step, (params, optimiser.init(params), key), None, length=steps)[1]

    return jax.vmap(jax.vmap(run, in_axes=(None, 0)), in_axes=(0, None))(rates, keys)


def w1(work: Line) -> dict[str, np.ndarray]:
    rates, keys = np.float32(work.rates), seeds_to_keys(work.seeds)
    losses = [line_study(rates, keys, name, work.steps, work.batch) for name in work.activations]
    return {"loss": np.stack(jax.device_get(losses))}


@partial(jax.jit, static_argnames=("depth", "activation"))
def initialisation_study(deviations, keys, x, labels, depth, activation):
    def run(pair, key):
        params = stack_init(key, depth, x.shape[1], pair[0], pair[1])
        return statistics(params, x, labels, activation)

    return jax.vmap(jax.vmap(run, in_axes=(None, 0)), in_axes=(0, None))(deviations, keys)


def w2i(work: Initialisation) -> dict[str, np.ndarray]:
    width, keys = work.features.shape[1], seeds_to_keys(work.seeds)
    pairs = [(deviation(name, width, width), deviation(name, width, CLASSES)) for name in work.initialisers]
    x, labels = jax.device_put((work.features, work.labels))
    found = {
        (depth, name): initialisation_study(np.float32(pairs), keys, x, labels, depth, name)
        for depth in work.depths
        for name in work.activations
    }
    return padded(jax.device_get(found), work)


def padded(found: dict[tuple[int, str], dict[str, Any]], work: Initialisation) -> dict[str, np.ndarray]:
    """Put results by depth and activation into arrays whose missing layers are NaN."""
    shape = (len(work.depths), len(work.activations), len(work.initialisers), work.seeds, max(work.depths) + 1)
    arrays = {name: np.full(shape, np.nan, np.float32) for name in ("weight_gradient", "signal", "second_moment")}
    for i, depth in enumerate(work.depths):
        for j, activation in enumerate(work.activations):
            for name, values in found[depth, activation].items():
                arrays[name][i, j, :, :, : depth + 1] = values
    return arrays


def shuffled(key, rows, batch):
    order = jax.random.permutation(key, rows)
    return order[: rows // batch * batch].reshape(-1, batch)


@partial(jax.jit, static_argnames=("work", "activation"))
def training_study(rates, keys, data, work, activation):
    def run(rate, key):
        optimiser = optax.sgd(rate)
        init_key, order_key = jax.random.split(key)
        width = data.features.shape[1]
        hidden, readout = deviation(work.initialiser, width, width), deviation(work.initialiser, width, CLASSES)
        params = stack_init(init_key, work.depth, width, hidden, readout)
        per_epoch = len(data.features) // work.batch
        epochs = jax.random.split(order_key, -(-work.steps // per_epoch))
        order = jax.vmap(lambda one: shuffled(one, len(data.features), work.batch))(epochs)
        order = order.reshape(-1, work.batch)[: work.steps]

        def step(carry, rows):
            params, state = carry
            x, labels = data.features[rows], data.labels[rows]
            loss, gradient = jax.value_and_grad(stack_loss)(params, x, labels, activation)
            updates, state = optimiser.update(gradient, state, params)
            norms = layer_norms(gradient["hidden"], gradient["readout"])
            return (optax.apply_updates(params, updates), state), (loss, norms)

        (params, _), (losses, norms) = jax.lax.scan(step, (params, optimiser.init(params)), order)
        logits = stack_apply(params, data.test_features, activation)
        return {
            "loss": losses[work.loss_every - 1 :: work.loss_every],
            "weight_gradient": norms[work.gradient_every - 1 :: work.gradient_every],
            "accuracy": accuracy(logits, data.test_labels),
        }

    return jax.vmap(jax.vmap(run, in_axes=(None, 0)), in_axes=(0, None))(rates, keys)


def w2t(work: Training) -> dict[str, np.ndarray]:
    data, keys = jax.device_put(work.data), seeds_to_keys(work.seeds)
    sizes = work._replace(data=None)
    found = [training_study(np.float32(work.rates), keys, data, sizes, name) for name in work.activations]
    return jax.tree.map(lambda *parts: np.stack(parts), *jax.device_get(found))


@partial(jax.jit, static_argnames="steps")
def regression_study(rates, features, targets, steps):
    def run(rate):
        optimiser = optax.sgd(rate)
        weights = jnp.zeros(features.shape[1])

        def step(carry, _):
            weights, state = carry
            loss, gradient = jax.value_and_grad(lambda w: jnp.mean((features @ w - targets) ** 2))(weights)
            updates, state = optimiser.update(gradient, state, weights)
            return (optax.apply_updates(weights, updates), state), loss

        (weights, _), losses = jax.lax.scan(step, (weights, optimiser.init(weights)), None, length=steps)
        return {"loss": losses, "weights": weights}

    return jax.vmap(run)(rates)


def w3(work: Regression) -> dict[str, np.ndarray]:
    return jax.device_get(regression_study(np.float32(work.rates), work.features, work.targets, work.steps))


@partial(jax.jit, static_argnames="work")
def ensemble_study(keys, data, work):
    optimiser = optax.adam(work.rate)

    def run(key):
        init_key, order_key = jax.random.split(key)
        params = network_init(init_key, data.features.shape[1], work.width, work.initialiser)

        def step(carry, rows):
            params, state = carry
            loss, gradient = jax.value_and_grad(network_loss)(params, data.features[rows], data.labels[rows])
            updates, state = optimiser.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), loss

        def epoch(carry, key):
            return jax.lax.scan(step, carry, shuffled(key, len(data.features), work.batch))

        keys = jax.random.split(order_key, work.epochs)
        (params, _), losses = jax.lax.scan(epoch, (params, optimiser.init(params)), keys)
        logits = network_apply(params, data.test_features)
        return {"loss": losses.reshape(-1), "accuracy": accuracy(logits, data.test_labels)}

    return jax.vmap(run)(keys)


def w4(work: Ensemble) -> dict[str, np.ndarray]:
    data, sizes = jax.device_put(work.data), work._replace(data=None)
    return jax.device_get(ensemble_study(seeds_to_keys(work.seeds), data, sizes))


WORKLOADS = {"W1": w1, "W2i": w2i, "W2t": w2t, "W3": w3, "W4": w4}
