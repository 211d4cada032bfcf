"""Optax as its examples use it: one jitted step, called from a Python loop, run after run.

The step of a study is compiled once for each shape and activation; learning rates are arguments, so that no run
compiles anew.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers_jax import (
    accuracy,
    layer_norms,
    line_init,
    line_loss,
    network_apply,
    network_init,
    network_loss,
    padded,
    stack_apply,
    stack_init,
    stack_loss,
    statistics,
)
from benchmarks.workloads import CLASSES, Ensemble, Initialisation, Line, Regression, Training, deviation


def batches(generator, rows, batch, steps):
    """Yield the rows of shuffled batches, epoch after epoch."""
    while True:
        order = generator.permutation(rows)
        for start in range(0, rows - batch + 1, batch):
            if steps == 0:
                return
            yield order[start : start + batch]
            steps -= 1


line_start = jax.jit(line_init)


@partial(jax.jit, static_argnames=("activation", "batch"))
def line_step(params, state, key, rate, activation, batch):
    key, draw = jax.random.split(key)
    x = jax.random.normal(draw, (batch, 1))
    loss, gradient = jax.value_and_grad(line_loss)(params, x, activation)
    updates, state = optax.sgd(rate).update(gradient, state, params)
    return optax.apply_updates(params, updates), state, key, loss


def w1(work: Line) -> dict[str, np.ndarray]:
    result = np.empty((len(work.activations), len(work.rates), work.seeds, work.steps), np.float32)
    for i, activation in enumerate(work.activations):
        for j, rate in enumerate(work.rates):
            for seed in range(work.seeds):
                key = jax.random.key(seed)
                params = line_start(key)
                state = optax.sgd(rate).init(params)
                losses = []
                for _ in range(work.steps):
                    params, state, key, loss = line_step(params, state, key, rate, activation, work.batch)
                    losses.append(loss)
                result[i, j, seed] = jax.device_get(losses)
    return {"loss": result}


stack_start = jax.jit(stack_init, static_argnums=(1, 2))
measure = jax.jit(statistics, static_argnames="activation")


def w2i(work: Initialisation) -> dict[str, np.ndarray]:
    width = work.features.shape[1]
    x, labels = jax.device_put((work.features, work.labels))
    found = {}
    for depth in work.depths:
        for activation in work.activations:
            runs = []
            for name in work.initialisers:
                hidden, readout = deviation(name, width, width), deviation(name, width, CLASSES)
                for seed in range(work.seeds):
                    params = stack_start(jax.random.key(seed), depth, width, hidden, readout)
                    runs.append(measure(params, x, labels, activation))
            stacked = jax.tree.map(lambda *parts: np.stack(parts), *jax.device_get(runs))
            shape = (len(work.initialisers), work.seeds, depth + 1)
            found[depth, activation] = {name: value.reshape(shape) for name, value in stacked.items()}
    return padded(found, work)


@partial(jax.jit, static_argnames="activation")
def stack_step(params, state, x, labels, rate, activation):
    loss, gradient = jax.value_and_grad(stack_loss)(params, x, labels, activation)
    updates, state = optax.sgd(rate).update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


@partial(jax.jit, static_argnames="activation")
def stack_norms(params, x, labels, activation):
    gradient = jax.grad(stack_loss)(params, x, labels, activation)
    return layer_norms(gradient["hidden"], gradient["readout"])


@partial(jax.jit, static_argnames="activation")
def stack_accuracy(params, x, labels, activation):
    return accuracy(stack_apply(params, x, activation), labels)


def train_stack(work: Training, activation, rate, seed):
    data, width = work.data, work.data.features.shape[1]
    hidden, readout = deviation(work.initialiser, width, width), deviation(work.initialiser, width, CLASSES)
    params = stack_start(jax.random.key(seed), work.depth, width, hidden, readout)
    state = optax.sgd(rate).init(params)
    losses, norms = [], []
    generator = np.random.default_rng(seed)
    for step, rows in enumerate(batches(generator, len(data.features), work.batch, work.steps)):
        x, labels = data.features[rows], data.labels[rows]
        if (step + 1) % work.gradient_every == 0:
            norms.append(stack_norms(params, x, labels, activation))
        params, state, loss = stack_step(params, state, x, labels, rate, activation)
        if (step + 1) % work.loss_every == 0:
            losses.append(loss)
    reached = stack_accuracy(params, data.test_features, data.test_labels, activation)
    return jax.device_get({"loss": losses, "weight_gradient": norms, "accuracy": reached})


def w2t(work: Training) -> dict[str, np.ndarray]:
    runs = [
        [[train_stack(work, name, rate, seed) for seed in range(work.seeds)] for rate in work.rates]
        for name in work.activations
    ]
    names = ("loss", "weight_gradient", "accuracy")
    return {name: np.array([[[run[name] for run in line] for line in page] for page in runs]) for name in names}


@jax.jit
def regression_step(weights, state, rate, features, targets):
    loss, gradient = jax.value_and_grad(lambda w: jnp.mean((features @ w - targets) ** 2))(weights)
    updates, state = optax.sgd(rate).update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state, loss


def w3(work: Regression) -> dict[str, np.ndarray]:
    features, targets = jax.device_put((work.features, work.targets))
    losses, finals = [], []
    for rate in work.rates:
        weights = jnp.zeros(features.shape[1])
        state = optax.sgd(rate).init(weights)
        history = []
        for _ in range(work.steps):
            weights, state, loss = regression_step(weights, state, rate, features, targets)
            history.append(loss)
        losses.append(jax.device_get(history))
        finals.append(jax.device_get(weights))
    return {"loss": np.array(losses), "weights": np.array(finals)}


network_start = jax.jit(network_init, static_argnums=(1, 2, 3))
network_accuracy = jax.jit(lambda params, x, labels: accuracy(network_apply(params, x), labels))


@partial(jax.jit, static_argnames="rate")
def network_step(params, state, x, labels, rate):
    loss, gradient = jax.value_and_grad(network_loss)(params, x, labels)
    updates, state = optax.adam(rate).update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


def w4(work: Ensemble) -> dict[str, np.ndarray]:
    data = work.data
    rows_count = len(data.features)
    steps = work.epochs * (rows_count // work.batch)
    losses, reached = [], []
    for seed in range(work.seeds):
        params = network_start(jax.random.key(seed), data.features.shape[1], work.width, work.initialiser)
        state = optax.adam(work.rate).init(params)
        history = []
        for rows in batches(np.random.default_rng(seed), rows_count, work.batch, steps):
            x, labels = data.features[rows], data.labels[rows]
            params, state, loss = network_step(params, state, x, labels, work.rate)
            history.append(loss)
        losses.append(jax.device_get(history))
        reached.append(float(network_accuracy(params, data.test_features, data.test_labels)))
    return {"loss": np.array(losses), "accuracy": np.array(reached)}


WORKLOADS = {"W1": w1, "W2i": w2i, "W2t": w2t, "W3": w3, "W4": w4}
