"""calcdl through its public functions: `study.run` over runs made by `train.make_run`, Optax in every step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workloads import CLASSES, Ensemble, Initialisation, Line, Regression, Training
from calcdl import diagnostics, study
from calcdl.data import fresh, full_batch, minibatches
from calcdl.nn.activations import ACTIVATIONS
from calcdl.nn.initialisers import INITIALISERS
from calcdl.nn.losses import softmax_cross_entropy, squared_error
from calcdl.nn.networks import stack
from calcdl.optim import descent
from calcdl.train import Problem, make_run
from calcdl.trees import array_norm


def inputs(key, count, *, batch):
    return jax.random.normal(key, (count, batch), jnp.float32)


def line(key, *, activation, rate, steps, batch):
    unit = ACTIVATIONS[activation].function
    problem = Problem(
        init=lambda key: {"weight": jax.random.normal(key, (), jnp.float32), "bias": jnp.float32(0)},
        loss=lambda p, x: jnp.mean(squared_error(unit(p["weight"] * x + p["bias"]), 2 * x + 1)),
        batches=fresh(partial(inputs, batch=batch)),
    )
    return {"loss": make_run(problem, descent("sgd", rate), steps=steps)(key).loss}


def w1(work: Line) -> dict[str, np.ndarray]:
    table = study.run(
        partial(line, steps=work.steps, batch=work.batch),
        [
            study.axis("activation", work.activations),
            study.axis("rate", work.rates),
            study.axis("seed", range(work.seeds)),
        ],
        name="W1",
    )
    return {"loss": table.loss.values}


def initialisation(key, *, x, labels, depth, activation, initialiser):
    unit, initialise = ACTIVATIONS[activation], INITIALISERS[initialiser]
    network = stack(depth, x.shape[1], CLASSES, unit, initialise, tap=diagnostics.tap)

    def loss(params):
        logits = diagnostics.tap(network.apply(params, x), "logits")
        return jnp.mean(softmax_cross_entropy(logits, labels))

    look = diagnostics.capture(loss, ("*.preactivation", "logits"))
    seen = look(network.init(key, x.shape[1:]))
    hidden, logits = diagnostics.by_layer(seen.taps, "preactivation"), seen.taps["logits"]
    moments = diagnostics.second_moments(unit.function(hidden.value))
    return {
        "weight_gradient": jnp.append(
            diagnostics.layer_norms(seen.gradient), array_norm(seen.gradient["readout"]["weight"])
        ),
        "signal": jnp.append(diagnostics.signal_norms(hidden.cotangent), array_norm(logits.cotangent)),
        "second_moment": jnp.append(moments, jnp.mean(jnp.square(logits.value))),
    }


def w2i(work: Initialisation) -> dict[str, np.ndarray]:
    names = ("weight_gradient", "signal", "second_moment")
    table = study.run(
        initialisation,
        [
            study.axis("depth", work.depths, static=True),
            study.axis("activation", work.activations),
            study.axis("initialiser", work.initialisers),
            study.axis("seed", range(work.seeds)),
        ],
        name="W2i",
        shared={"x": work.features, "labels": work.labels},
        dimensions=dict.fromkeys(names, ("layer",)),
    )
    return {name: table[name].values for name in names}


def all_weight_gradients(objective, params, info):
    return jnp.append(diagnostics.layer_norms(info.gradient), array_norm(info.gradient["readout"]["weight"]))


def training(key, *, data, activation, rate, depth, initialiser, steps, batch, loss_every, gradient_every):
    network = stack(depth, data["x"].shape[1], CLASSES, ACTIVATIONS[activation], INITIALISERS[initialiser])
    problem = Problem(
        init=lambda key: network.init(key, data["x"].shape[1:]),
        loss=lambda params, rows: jnp.mean(softmax_cross_entropy(network.apply(params, rows[0]), rows[1])),
        batches=minibatches((data["x"], data["labels"]), batch),
    )
    probes = {"loss": lambda objective, params, info: info.value, "weight_gradient": all_weight_gradients}
    trace = make_run(problem, descent("sgd", rate), steps=steps, record_every=loss_every, probes=probes)(key)
    guess = jnp.argmax(network.apply(trace.params, data["test_x"]), axis=-1)
    return {
        "loss": trace.probes["loss"],
        "weight_gradient": trace.probes["weight_gradient"][
            gradient_every // loss_every - 1 :: gradient_every // loss_every
        ],
        "accuracy": jnp.mean(guess == data["test_labels"], dtype=jnp.float32),
    }


def arrays(data):
    return dict(zip(("x", "labels", "test_x", "test_labels"), data, strict=True))


def w2t(work: Training) -> dict[str, np.ndarray]:
    sizes = {name: getattr(work, name) for name in ("depth", "initialiser", "steps", "batch", "loss_every")}
    table = study.run(
        partial(training, **sizes, gradient_every=work.gradient_every),
        [
            study.axis("activation", work.activations),
            study.axis("rate", work.rates),
            study.axis("seed", range(work.seeds)),
        ],
        name="W2t",
        shared={"data": arrays(work.data)},
    )
    return {name: table[name].values for name in ("loss", "weight_gradient", "accuracy")}


def regression(key, *, features, targets, rate, steps):
    problem = Problem(
        init=lambda key: jnp.zeros(features.shape[1], jnp.float32),
        loss=lambda weights, rows: jnp.mean(squared_error(rows[0] @ weights, rows[1])),
        batches=full_batch((features, targets)),
    )
    trace = make_run(problem, descent("sgd", rate), steps=steps)(key)
    return {"loss": trace.loss, "weights": trace.params, "status": trace.status}


def w3(work: Regression) -> dict[str, np.ndarray]:
    table = study.run(
        partial(regression, steps=work.steps),
        [study.axis("rate", work.rates)],
        name="W3",
        shared={"features": work.features, "targets": work.targets},
    )
    return {name: table[name].values for name in ("loss", "weights")}


def network(key, *, data, width, initialiser, rate, epochs, batch):
    model = stack(1, width, CLASSES, ACTIVATIONS["relu"], INITIALISERS[initialiser])
    problem = Problem(
        init=lambda key: model.init(key, data["x"].shape[1:]),
        loss=lambda params, rows: jnp.mean(softmax_cross_entropy(model.apply(params, rows[0]), rows[1])),
        batches=minibatches((data["x"], data["labels"]), batch),
    )
    trace = make_run(problem, descent("adam", rate), steps=epochs * problem.batches.epoch)(key)
    guess = jnp.argmax(model.apply(trace.params, data["test_x"]), axis=-1)
    return {"loss": trace.loss, "accuracy": jnp.mean(guess == data["test_labels"], dtype=jnp.float32)}


def w4(work: Ensemble) -> dict[str, np.ndarray]:
    sizes = {name: getattr(work, name) for name in ("width", "initialiser", "rate", "epochs", "batch")}
    table = study.run(
        partial(network, **sizes),
        [study.axis("seed", range(work.seeds))],
        name="W4",
        shared={"data": arrays(work.data)},
    )
    return {name: table[name].values for name in ("loss", "accuracy")}


WORKLOADS = {"W1": w1, "W2i": w2i, "W2t": w2t, "W3": w3, "W4": w4}
