r"""How does depth make gradients vanish, and who still learns?

Question. A network of L equal layers passes the gradient back through L factors. What is the factor of one layer, how
does it follow from activation and initialisation, and can a network of that depth be trained?

Mathematics. With pre-activations :math:`h_l = W_l \phi(h_{l-1}) + b_l` the back-propagated signal
:math:`\delta_l = \partial L / \partial h_l` obeys :math:`\delta_l = \phi'(h_l) \odot W_{l+1}^T \delta_{l+1}`. In wide
random networks its length changes by :math:`\sqrt{\chi_1}` a layer, where
:math:`\chi_1 = \sigma_w^2 E[\phi'(\sqrt{q^*} z)^2]`, :math:`q^*` is the fixed point of
:math:`q \to \sigma_w^2 E[\phi(\sqrt q z)^2]`, and z is standard normal (Schoenholz et al. 2017, arXiv:1611.01232).

Claim. The measured factor, the slope of log |delta_l| in l, is within 3 % of :math:`\sqrt{\chi_1}` at width 256. It is
a ratio of signals in one network: no scale of the loss and no number of examples enters.

Command. python -m calcdl.experiments.gradient_vanishing configs/gradient_vanishing.toml
"""

from functools import cache, partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import diagnostics, study
from calcdl.data import Dataset, load, minibatches, rows, split, standardise
from calcdl.diagnostics.health import Decay, decay, in_words, settled_layers
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, OneOf, Rate, Section, Seeds, refuse
from calcdl.nn import ACTIVATIONS, INITIALISERS, softmax_cross_entropy, stack
from calcdl.optim import descent
from calcdl.theory import meanfield
from calcdl.train import Problem, make_run
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

ActivationName = Annotated[str, OneOf(ACTIVATIONS)]
InitialiserName = Annotated[str, OneOf(INITIALISERS)]

# Variance of a weight times its fan-in, where fan-in and fan-out are equal.
WEIGHT_VARIANCE = {"lecun": 1.0, "glorot": 1.0, "he": 2.0, "orthogonal": 1.0}
GATE, GATE_WIDTH = 0.03, 256
SEEN = ("*.preactivation",)


class Initialisation(Section):
    """The study of networks that have not been trained."""

    depths: AxisOf[Count] = Field(default=(2, 5, 10, 20, 50), description="hidden layers")
    widths: AxisOf[Count] = Field(default=(64, 256), description="units a hidden layer")
    activations: AxisOf[ActivationName] = Field(default=("sigmoid", "tanh", "relu"), description="activations")
    initialisers: AxisOf[InitialiserName] = Field(
        default=("glorot_normal", "he_normal"), description="how the weights are drawn"
    )
    seeds: Seeds = Field(default=tuple(range(32)), description="one network a seed")
    batch: Count = Field(default=64, description="examples whose mean loss is differentiated")


class Training(Section):
    """The study of who learns."""

    depth: Count = Field(default=20, description="hidden layers")
    width: Count = Field(default=64, description="units a hidden layer")
    activations: AxisOf[ActivationName] = Field(default=("sigmoid", "tanh", "relu"), description="activations")
    initialiser: InitialiserName = Field(default="he_normal", description="how the weights are drawn")
    learning_rates: AxisOf[Rate] = Field(default=(0.003, 0.01, 0.03, 0.1), description="rates of gradient descent")
    seeds: Seeds = Field(default=tuple(range(4)), description="one run a seed and setting")
    steps: Count = Field(default=400, description="steps, a multiple of record_every")
    record_every: Count = Field(default=20, description="steps between measurements")
    batch: Count = Field(default=32, description="examples a step")


class Config(ExperimentConfig):
    """What to measure."""

    data: str = Field(default="digits", description="a bundled classification set, or the path of a CSV or NPZ file")
    target: str = Field(default="", description="the column to predict, for a file; empty for a column named target")
    initialisation: Initialisation = Field(default=Initialisation(), description="gradients before training")
    training: Training = Field(default=Training(), description="who learns")

    @model_validator(mode="after")
    def _records_fit(self) -> Self:
        if self.training.steps % self.training.record_every:
            expected = f"a multiple of training.record_every = {self.training.record_every}"
            raise refuse("training.steps", self.training.steps, expected)
        return self


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Measure the signal of every layer before training, then train."""
    dataset = prepare(config)
    first, second = config.initialisation, config.training
    (x, y), held_out = (rows(dataset, part, config.precision) for part in ("train", "validation"))
    by_layer = dict.fromkeys(("signal", "weight_gradient", "second_moment", "dead", "saturated"), ("layer",))
    before = run(
        partial(initial_signals, classes=len(dataset.classes)),
        [
            study.axis("depth", first.depths, static=True),
            study.axis("width", first.widths, static=True),
            study.axis("activation", first.activations),
            study.axis("initialiser", first.initialisers),
            study.axis("seed", first.seeds),
        ],
        name="initialisation",
        shared={"x": x[: first.batch], "y": y[: first.batch]},
        dimensions=by_layer,
        dtype=config.precision,
    )
    after = run(
        partial(training_run, classes=len(dataset.classes), sizes=second),
        [
            study.axis("activation", second.activations),
            study.axis("learning_rate", second.learning_rates),
            study.axis("seed", second.seeds),
        ],
        name="training",
        shared={"x": x, "y": y, "held_out": held_out},
        dimensions={"loss": ("record",), "gradient": ("record", "layer")},
        dtype=config.precision,
    )
    results = study.join(initialisation=before, training=after)
    results.attrs["loss_of_a_guess"] = float(np.log(len(dataset.classes)))
    return results


def prepare(config: Config) -> Dataset:
    """Load, split and standardise the data; refuse batches that they cannot fill."""
    dataset = load(config.data, config.target or None, "classification", constant="keep", collinear="keep")
    dataset, _ = standardise(split(dataset, validation=0.2, test=0.0), constant="keep")
    for path, batch in (
        ("initialisation.batch", config.initialisation.batch),
        ("training.batch", config.training.batch),
    ):
        if batch > len(dataset.train):
            raise ConfigError(
                f"{path}: got {batch}; expected at most the {len(dataset.train)} training rows of the data"
            )
    return dataset


def initial_signals(
    key: Key, x: Array, y: Array, *, depth: int, width: int, activation: str, initialiser: str, classes: int
) -> dict[str, Array]:
    """Measure every layer of one random network on one batch."""
    unit, initialise = ACTIVATIONS[activation], INITIALISERS[initialiser]
    network = stack(depth, width, classes, unit, initialise, dtype=x.dtype, tap=diagnostics.tap)

    def loss(params: Any) -> Array:
        return jnp.mean(softmax_cross_entropy(network.apply(params, x), y))

    seen = diagnostics.capture(loss, SEEN)(network.init(key, x.shape[1:]))
    preactivations = diagnostics.by_layer(seen.taps, "preactivation")
    slope = () if unit.learned is None else (jnp.asarray(unit.learned, x.dtype),)
    slopes = unit.derivative(preactivations.value, *slope)
    return {
        "signal": diagnostics.signal_norms(preactivations.cotangent),
        "weight_gradient": diagnostics.layer_norms(seen.gradient),
        "second_moment": diagnostics.second_moments(unit.function(preactivations.value, *slope)),
        "dead": diagnostics.dead_units(slopes),
        "saturated": diagnostics.saturated_units(slopes, unit.lipschitz),
    }


def training_run(
    key: Key, x: Array, y: Array, held_out: Any, *, learning_rate: Array, activation: str, sizes: Training, classes: int
) -> dict[str, Array]:
    """Train one deep network by stochastic gradient descent."""
    initialiser = INITIALISERS[sizes.initialiser]
    network = stack(sizes.depth, sizes.width, classes, ACTIVATIONS[activation], initialiser, dtype=x.dtype)
    problem = Problem(
        init=lambda key: network.init(key, x.shape[1:]),
        loss=lambda params, rows: jnp.mean(softmax_cross_entropy(network.apply(params, rows[0]), rows[1])),
        batches=minibatches((x, y), sizes.batch),
    )
    solver, probes = descent("sgd", learning_rate), {"gradient": diagnostics.gradient_by_layer}
    trace = make_run(problem, solver, steps=sizes.steps, record_every=sizes.record_every, probes=probes)(key)
    guess = jnp.argmax(network.apply(trace.params, held_out[0]), axis=-1)
    return {
        "loss": trace.loss,
        "gradient": trace.probes["gradient"],
        "accuracy": jnp.mean(guess == held_out[1], dtype=x.dtype),
        "status": trace.status,
        "diverged_at": trace.diverged_at,
    }


class Setting(NamedTuple):
    """One setting of the first study at its greatest depth."""

    width: int
    activation: str
    initialiser: str
    measured: Decay
    asymptotic: float
    predicted: float


def settings(config: Config, results: "xarray.Dataset") -> list[Setting]:
    """Fit the decay of every setting at the greatest depth, and predict it."""
    first, depth = config.initialisation, max(config.initialisation.depths)
    signals = study.part(results, "initialisation").signal
    found = []
    for width, activation, initialiser in product(first.widths, first.activations, first.initialisers):
        chosen = {"depth": depth, "width": width, "activation": activation, "initialiser": initialiser}
        measured = decay(signals.sel(chosen).values[:, :depth])
        found.append(Setting(width, activation, initialiser, measured, *predict(activation, initialiser, depth)))
    return found


def predict(activation: str, initialiser: str, depth: int) -> tuple[float, float]:
    """Predict the factor of a layer in a network without end, and over the layers of one of this depth."""
    variance = WEIGHT_VARIANCE.get(initialiser.split("_")[0])
    return (np.nan, np.nan) if variance is None else _factors(activation, variance, depth)


@cache
def _factors(activation: str, variance: float, depth: int) -> tuple[float, float]:
    unit = ACTIVATIONS[activation]
    function = unit.function if unit.learned is None else lambda x: unit.function(x, unit.learned)
    with jax.enable_x64(True):
        asymptotic = float(meanfield.gradient_factor(function, variance))
        path = meanfield.length_trajectory(function, variance, variance, depth=depth)
        settled = settled_layers(depth)
        log_shares = np.asarray(path.log_gradient_ratio)[[settled.start, settled.stop - 1]]
    return asymptotic, float(np.exp((log_shares[1] - log_shares[0]) / (2 * (len(settled) - 1))))


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold every predicted factor against the measured one, and training against both."""
    deep_enough = max(config.initialisation.depths) >= 5
    known = [one for one in settings(config, results) if deep_enough and not np.isnan(one.predicted)]
    return (*map(_factor_verdict, known), *_training_verdict(config, results))


def _factor_verdict(setting: Setting) -> Verdict:
    unsettled = abs(setting.predicted / setting.asymptotic - 1) > GATE / 2
    departure = np.log(setting.measured.factor / setting.predicted) / setting.measured.error
    origin = "mean field at this depth" if unsettled else "sqrt(chi1)"
    pace = (
        "like 1/depth" if setting.activation == "tanh" and round(setting.asymptotic, 9) == 1 else "in deeper networks"
    )
    remark = f"; the limit {setting.asymptotic:.4f} is neared only {pace}" if unsettled else ""
    return Verdict(
        claim=f"{setting.activation}, {setting.initialiser}, width {setting.width}: a layer's factor is that of theory",
        holds=abs(setting.measured.factor / setting.predicted - 1) <= _gate(setting.width),
        value=setting.measured.factor / setting.predicted - 1,
        threshold=_gate(setting.width),
        evidence=f"the gradient {in_words(setting.measured)}; predicted {setting.predicted:.4f} by {origin}, "
        f"{departure:+.1f} standard errors away{remark}",
    )


def _gate(width: int) -> float:
    """Return the gate: fluctuations of a finite layer bias the factor like 1/width."""
    return GATE * max(1.0, GATE_WIDTH / width)


def _training_verdict(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    second = config.training
    loss = {name: abs(np.log(predict(name, second.initialiser, second.depth)[1])) for name in second.activations}
    if len(loss) < 2 or any(np.isnan(list(loss.values()))):
        return ()
    trained = study.part(results, "training")
    keeps, loses = min(loss, key=loss.__getitem__), max(loss, key=loss.__getitem__)
    (good, good_runs), (poor, poor_runs) = _best(trained, keeps), _best(trained, loses)
    evidence = f"{keeps} {good:.3f} ({good_runs}), {loses} {poor:.3f} ({poor_runs})"
    return (
        Verdict(
            claim=f"at depth {second.depth} the network that keeps its gradient learns more",
            holds=bool(good > poor),
            value=good - poor,
            threshold=0.0,
            evidence=f"median accuracy on held-out rows at the best rate: {evidence}",
        ),
    )


def _best(trained: "xarray.Dataset", activation: str) -> tuple[float, str]:
    """Return the median accuracy at the best rate; a run that diverged counts as having learned nothing."""
    accuracy, ok = _accuracy(trained.sel(activation=activation))
    rate = accuracy.idxmax("learning_rate")
    counted = f"{int(ok.sel(learning_rate=rate))} of {trained.sizes['seed']} runs ok"
    return float(accuracy.max()), f"{counted} at rate {float(rate):g}"


def _accuracy(trained: "xarray.Dataset") -> tuple["xarray.DataArray", "xarray.DataArray"]:
    ok = trained.status == 0
    return trained.accuracy.where(ok, 0.0).median("seed"), ok.sum("seed")


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the signal by layer, the factors against theory, and training."""
    return {
        "signal_by_layer": _draw_signal(config, results),
        "factors": _draw_factors(config, results),
        "training": _draw_training(config, results),
        "gradient_over_time": _draw_gradient(config, results),
    }


def _row(names: tuple[str, ...], caption: str) -> tuple["Figure", Any]:
    return plots.figure(1, len(names), width=1.2 + 3.0 * len(names), height=3.6, share_y=True, caption=caption)


def _draw_signal(config: Config, results: "xarray.Dataset") -> "Figure":
    first, depth, width = config.initialisation, max(config.initialisation.depths), max(config.initialisation.widths)
    figure, panels = _row(
        first.activations,
        f"Back-propagated signal in {depth} layers of width {width}, divided by that of the last layer: median and "
        f"quartiles over {len(first.seeds)} networks. Dashed: theory.",
    )
    layers = np.arange(1, depth + 1)
    signals = study.part(results, "initialisation").signal
    for axes, activation in zip(panels[0], first.activations, strict=True):
        for position, initialiser in enumerate(first.initialisers):
            chosen = {"depth": depth, "width": width, "activation": activation, "initialiser": initialiser}
            signal = signals.sel(chosen).values[:, :depth]
            plots.band(axes, layers, signal / signal[:, -1:], over=0, label=initialiser, position=position)
            factor = predict(activation, initialiser, depth)[1]
            anchor = np.nanmedian(signal[:, depth // 2] / signal[:, -1])
            label = "theory" if position == len(first.initialisers) - 1 else ""
            plots.theory(axes, layers, anchor * factor ** (depth // 2 + 1.0 - layers), label=label)
        plots.logarithmic(axes)
        plots.finish(axes, x="layer", y="signal / last layer's" if axes is panels[0][0] else "", title=activation)
    return figure


def _draw_factors(config: Config, results: "xarray.Dataset") -> "Figure":
    found = settings(config, results)
    figure, panels = plots.figure(
        height=0.9 + 0.28 * len(found),
        caption="What one layer passes on: measured with 95 % interval over seeds (dots), and predicted (bars). "
        "Left of 1 the gradient vanishes, right of it it explodes.",
    )
    axes = panels[0, 0]
    for row, one in enumerate(reversed(found)):
        shade = plots.colour(config.initialisation.activations.index(one.activation))
        reach = [[one.measured.factor - one.measured.lower], [one.measured.upper - one.measured.factor]]
        axes.errorbar([one.measured.factor], [row], xerr=reach, fmt="o", color=shade, capsize=3)
        axes.plot([one.predicted] * 2, [row - 0.4, row + 0.4], color="#000000", zorder=1)
    axes.set_yticks(range(len(found)), [f"{one.activation}, {one.initialiser}, {one.width}" for one in reversed(found)])
    plots.threshold(axes, 1.0, along="x")
    plots.finish(axes, x="factor of one layer", y="activation, initialiser, width")
    return figure


def _steps(training: Training) -> np.ndarray:
    return np.arange(training.record_every, training.steps + 1, training.record_every)


def _draw_training(config: Config, results: "xarray.Dataset") -> "Figure":
    second = config.training
    caption = f"Loss in training {second.depth} layers: quartiles over {len(second.seeds)} seeds; dotted: a guess."
    figure, panels = _row(second.activations, caption)
    trained, steps = study.part(results, "training"), _steps(second)
    for axes, activation in zip(panels[0], second.activations, strict=True):
        for position, rate in enumerate(second.learning_rates):
            chosen = trained.sel(activation=activation, learning_rate=rate)
            label = f"rate {rate:g}: accuracy {float(_accuracy(chosen)[0]):.2f}"
            plots.band(axes, steps, chosen.loss, over="seed", label=label, position=position)
        plots.threshold(axes, results.attrs["loss_of_a_guess"])
        plots.finish(axes, x="step", y="cross-entropy (nats)" if axes is panels[0][0] else "", title=activation)
    return figure


def _draw_gradient(config: Config, results: "xarray.Dataset") -> "Figure":
    second = config.training
    shown = sorted({0, second.depth // 2, second.depth - 1})
    caption = "Weight gradient of three layers in training, at the most accurate rate: quartiles over seeds."
    figure, panels = _row(second.activations, caption)
    trained, steps = study.part(results, "training"), _steps(second)
    for axes, activation in zip(panels[0], second.activations, strict=True):
        chosen = trained.sel(activation=activation)
        chosen = chosen.sel(learning_rate=_accuracy(chosen)[0].idxmax("learning_rate"))
        for position, layer in enumerate(shown):
            gradient = chosen.gradient.isel(layer=layer)
            plots.band(axes, steps, gradient, over="seed", label=f"layer {layer + 1}", position=position)
        plots.logarithmic(axes)
        label = "norm of the weight gradient" if axes is panels[0][0] else ""
        plots.finish(axes, x="step", y=label, title=f"{activation}, rate {float(chosen.learning_rate):g}")
    return figure


EXPERIMENT = Experiment("gradient_vanishing", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
