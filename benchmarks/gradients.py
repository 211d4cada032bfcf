"""What it costs to look inside a network, and what depth costs to compile: `python -m benchmarks.gradients`.

Four figures, all on digits-sized data in float32, in this one process and in turn; medians of 5, compiling apart.

- probes: a training run that measures every layer's gradients, update ratios, signals, moments, units, correlations,
  parts, and its examples' gradient norms, coherence and noise scale every 50 steps, over the same run without any;
- capture: all taps of a deep network with their cotangents, over one `jax.value_and_grad` of the network without taps;
- signals: the same with the pre-activations' taps alone;
- depth: seconds to compile `value_and_grad` of 200 layers over those of 20, with normalisation and skip connections.
"""

import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.clock import TURNS, median
from calcdl import diagnostics, nn
from calcdl.data import minibatches
from calcdl.optim import descent
from calcdl.train import Problem, make_run

STEPS, EVERY, BATCH, DEPTH, WIDTH = 400, 50, 32, 20, 64
NETWORKS = {"plain": {}, "layer norm, skip": {"normalisation": nn.NORMALISATIONS["layer"], "residual": 1.0}}


def network(depth, width, tap=nn.networks.untapped, **blocks):
    """Return a deep relu network."""
    return nn.stack(depth, width, 10, nn.ACTIVATIONS["relu"], nn.INITIALISERS["he_normal"], tap=tap, **blocks)


def loss(net, params, rows):
    """Return the mean cross-entropy."""
    return jnp.mean(nn.softmax_cross_entropy(net.apply(params, rows[0]), rows[1]))


def data(count):
    """Return random rows of the size of digits, and labels."""
    return jax.random.normal(jax.random.key(1), (count, 64), jnp.float32), jnp.arange(count, dtype=jnp.int32) % 10


def probes(**blocks):
    """Return every probe of the room."""
    net = network(DEPTH, WIDTH, diagnostics.tap, **blocks)
    rows = data(BATCH)

    def look(objective, params, info):
        taps = diagnostics.capture(partial(loss, net))(params, rows).taps
        stream = diagnostics.by_layer(taps, "preactivation")
        slopes = nn.ACTIVATIONS["relu"].derivative(diagnostics.by_layer(taps, "normalised").value)
        inputs, cotangents = diagnostics.by_layer(taps, "activated").value[:-1], stream.cotangent[1:]
        return {
            "signal": diagnostics.signal_norms(stream.cotangent),
            "second_moment": diagnostics.second_moments(stream.value),
            "correlation": diagnostics.correlations(stream.value),
            "dead": diagnostics.dead_units(slopes),
            "saturated": diagnostics.saturated_units(slopes, 1.0),
            "parts": diagnostics.attribute(taps),
            "norms": diagnostics.layer_gradient_norms(inputs, cotangents),
            "coherence": diagnostics.layer_coherence(inputs, cotangents),
            "noise": diagnostics.layer_noise_scale(inputs, cotangents),
        }

    cheap = {"gradient": diagnostics.gradient_by_layer, "ratio": diagnostics.update_to_weight_ratio}
    return {**cheap, "look": look}


def training(measured, **blocks):
    """Return a compiled training run."""
    net = network(DEPTH, WIDTH, **blocks)
    problem = Problem(lambda key: net.init(key, (64,)), partial(loss, net), minibatches(data(1000), BATCH))
    run = make_run(problem, descent("sgd", 0.01), steps=STEPS, record_every=EVERY, probes=measured)
    compiled = jax.jit(run).lower(jax.random.key(0)).compile()
    return lambda: jax.block_until_ready(compiled(jax.random.key(0)))


def look(names, **blocks):
    """Return a compiled capture, and a compiled value_and_grad of the same network without taps."""
    net, bare, rows = network(50, 256, diagnostics.tap, **blocks), network(50, 256, **blocks), data(64)
    params = net.init(jax.random.key(0), (64,))
    calls = diagnostics.capture(partial(loss, net), names), jax.value_and_grad(partial(loss, bare))
    compiled = [jax.jit(call).lower(params, rows).compile() for call in calls]
    return [lambda call=call: jax.block_until_ready(call(params, rows)) for call in compiled]


def compiling(depth, blocks):
    """Return the seconds that compiling takes: the median of a few."""
    net, times = network(depth, 32, **blocks), []
    params, rows = jax.eval_shape(lambda: net.init(jax.random.key(0), (64,))), data(8)
    for _ in range(TURNS):
        jax.clear_caches()
        begun = time.perf_counter()
        jax.jit(jax.value_and_grad(partial(loss, net))).lower(params, rows).compile()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def main():
    """Measure and print."""
    signals = ("*.preactivation",)
    print(f"{'':24}{'plain':>18}{'layer norm, skip':>18}")
    lines = {"probes / training": [], "capture / gradient": [], "signals / gradient": [], "compile 200 / 20": []}
    for blocks in NETWORKS.values():
        watched, unwatched = training(probes(**blocks), **blocks), training({}, **blocks)
        lines["probes / training"].append(median(watched) / median(unwatched))
        for title, names in (("capture / gradient", None), ("signals / gradient", signals)):
            captured, gradient = look(names, **blocks)
            lines[title].append(median(captured) / median(gradient))
        lines["compile 200 / 20"].append(compiling(200, blocks) / compiling(20, blocks))
    for title, ratios in lines.items():
        print(f"{title:24}" + "".join(f"{ratio:18.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
