r"""What do normalisation and skip connections do to the gradient, and which part of a layer loses it?

Question. A deep network can normalise its pre-activations and can pass its input round each layer. Which of the two
keeps the gradient, for which activation, and where in the layer was it lost?

Mathematics. With :math:`h_{l+1} = s h_l + \alpha W_{l+1} \phi(N(h_l))` the signal :math:`\delta_l = \partial L/\partial
h_l` passes four parts on its way through a layer: the weights, the slopes of the activation, the normalisation and the
skip connection. The logarithms of their gains add up to :math:`\log |\delta_l| - \log |\delta_{l+1}|`. In wide random
networks all of it follows from Gaussian expectations. In the square, a layer without skip connection passes on
:math:`\sigma_w^2 E[\phi'(\sqrt q z)^2]`, with layer normalisation :math:`E[\phi'^2] / E[\phi^2]`, with batch
normalisation over a large batch :math:`E[\phi'^2] / Var[\phi]`; the last is :math:`\pi / (\pi - 1) > 1` for relu
(Yang et al. 2019, arXiv:1902.08129).

Claim. Every measured factor of a layer is within 3 % of theory at width 512; batch normalisation makes the gradient of
a plain relu network explode; the parts add up to 1e-5.

Command. python -m calcdl.experiments.blocks configs/blocks.toml
"""

import math
from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import data, diagnostics, nn, study, theory
from calcdl.diagnostics.health import Decay, decay, in_words, settled_layers
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, Count, ExperimentConfig, OneOf, Section, Seeds, refuse
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

RESIDUALS = ("none", "plain", "scaled")
PARTS = ("weight", "activation", "normalisation", "skip")
WEIGHT_VARIANCE = 2.0  # of He's initialisation, times fan-in
GATE, GATE_WIDTH, GATE_SUM = 0.03, 512, 1e-5

ActivationName = Annotated[str, OneOf(nn.ACTIVATIONS)]
NormalisationName = Annotated[str, OneOf(nn.NORMALISATIONS)]
ResidualName = Annotated[str, OneOf(RESIDUALS)]


class Dense(Section):
    """Fully connected networks that have not been trained."""

    depth: Annotated[int, Field(ge=5)] = Field(default=50, description="hidden layers, at least 5")
    width: Count = Field(default=512, description="units of a hidden layer")
    activations: AxisOf[ActivationName] = Field(default=("sigmoid", "tanh", "relu"), description="activations")
    normalisations: AxisOf[NormalisationName] = Field(
        default=("none", "layer", "batch"), description="what normalises the pre-activations"
    )
    residuals: AxisOf[ResidualName] = Field(
        default=RESIDUALS, description="skip connections: none, plain, or with a branch scaled by 1/sqrt(depth)"
    )
    seeds: Seeds = Field(default=tuple(range(6)), description="one network a seed")
    batch: Annotated[int, Field(ge=4)] = Field(
        default=32, description="examples whose mean loss is differentiated, at least 4"
    )


class Convolutional(Dense):
    """Networks of circular 3 x 3 convolutions."""

    depth: Annotated[int, Field(ge=5)] = Field(default=20, description="hidden layers, at least 5")
    width: Count = Field(default=64, description="channels of a hidden layer")
    residuals: AxisOf[ResidualName] = Field(default=("none", "plain"), description="skip connections, as above")
    seeds: Seeds = Field(default=tuple(range(4)), description="one network a seed")
    batch: Annotated[int, Field(ge=4)] = Field(
        default=8, description="images whose mean loss is differentiated, at least 4"
    )


class Config(ExperimentConfig):
    """What to measure."""

    dense: Dense = Field(default=Dense(), description="fully connected networks")
    convolutional: Convolutional = Field(default=Convolutional(), description="convolutional networks")

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        for path, networks in (("dense.batch", self.dense), ("convolutional.batch", self.convolutional)):
            if networks.batch > 1000:
                raise refuse(path, networks.batch, "at most 1000, rows of the digits")
        return self


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Measure the gradient of every layer and of its parts, in networks that have not been trained."""
    features, labels, inputs = images(config)
    found = {}
    for name, networks in (("dense", config.dense), ("convolutional", config.convolutional)):
        rows = features[: networks.batch]
        found[name] = run(
            partial(signals, kind=name, depth=networks.depth, width=networks.width),
            [
                study.axis("normalisation", networks.normalisations),
                study.axis("residual", networks.residuals),
                study.axis("activation", networks.activations),
                study.axis("seed", networks.seeds),
            ],
            name=name,
            shared={"x": rows if name == "convolutional" else rows.reshape(len(rows), -1), "y": labels[: len(rows)]},
            dimensions={"signal": ("layer",), **{f"{part}_gain": ("step",) for part in (*PARTS, "total")}},
            dtype=config.precision,
        )
    results = study.join(**found)
    results.attrs.update(inputs)
    return results


def images(config: Config) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Return standardised images, their labels, and the second moments that the theory starts from."""
    dataset = data.load("digits", None, "classification", constant="keep", collinear="keep")
    dataset, _ = data.standardise(data.split(dataset, validation=0.2, test=0.0), constant="keep")
    images, labels = data.rows(dataset, "train", config.precision)
    moments = {}
    for name, networks in (("dense", config.dense), ("convolutional", config.convolutional)):
        batch = images[: networks.batch]
        moments[f"{name}_second_moment"] = float(np.mean(batch**2))
        moments[f"{name}_variance"] = float(np.mean(batch.var(axis=0, ddof=1)))
    return images.reshape(-1, 8, 8, 1), labels, moments


def signals(
    key: Key, x: Array, y: Array, *, kind: str, depth: int, width: int,
    activation: str, normalisation: str, residual: str,
) -> dict[str, Array]:  # fmt: skip
    """Measure every layer of one random network on one batch."""
    make = nn.stack if kind == "dense" else nn.convolutional_stack
    network = make(
        depth, width, 10, nn.ACTIVATIONS[activation], nn.INITIALISERS["he_normal"], dtype=x.dtype,
        normalisation=nn.NORMALISATIONS[normalisation], residual=scale(residual, depth), tap=diagnostics.tap,
    )  # fmt: skip

    def loss(params: Any) -> Array:
        return jnp.mean(nn.softmax_cross_entropy(network.apply(params, x), y))

    taps = diagnostics.capture(loss)(network.init(key, x.shape[1:])).taps
    gains = diagnostics.attribute(taps)
    signal = diagnostics.by_layer(taps, "preactivation").cotangent
    return {
        "signal": diagnostics.signal_norms(signal),
        **{f"{part}_gain": gain for part, gain in gains._asdict().items()},
    }


def scale(residual: str, depth: int) -> float | None:
    """Return the scale of the branch, None without a skip connection."""
    return {"none": None, "plain": 1.0, "scaled": 1 / math.sqrt(depth)}[residual]


class Setting(NamedTuple):
    """One kind of block: what a layer passes on, measured and predicted."""

    kind: str
    normalisation: str
    residual: str
    activation: str
    measured: Decay
    predicted: float

    @property
    def departure(self) -> float:
        """Measured over predicted factor, less 1."""
        return self.measured.factor / self.predicted - 1

    @property
    def in_errors(self) -> float:
        """Measured less predicted logarithm, in standard errors over the seeds."""
        return math.log(self.measured.factor / self.predicted) / self.measured.error


def settings(config: Config, results: "xarray.Dataset") -> Iterator[Setting]:
    """Fit what a layer passes on in every setting, and predict it in the same way."""
    for kind, networks in (("dense", config.dense), ("convolutional", config.convolutional)):
        signal = study.part(results, kind).signal
        for names in product(networks.normalisations, networks.residuals, networks.activations):
            chosen = dict(zip(("normalisation", "residual", "activation"), names, strict=True))
            path = predict(kind, *names, networks, results)
            predicted = math.nan if path is None else decay(path[None]).factor
            yield Setting(kind, *names, decay(signal.sel(chosen).values), predicted)


def predict(
    kind: str, normalisation: str, residual: str, activation: str, networks: Dense, results: "xarray.Dataset"
) -> np.ndarray | None:
    """Predict the signal by layer, relative to the first; None where there is no theory.

    Batch normalisation of images mixes places that resemble each other, which no theory here covers.
    """
    if kind == "convolutional" and normalisation == "batch":
        return None
    start = results.attrs[f"{kind}_variance" if normalisation == "batch" else f"{kind}_second_moment"]
    batch = networks.batch if normalisation == "batch" else None
    return _path(activation, normalisation, scale(residual, networks.depth), networks.depth, start, batch)


@cache
def _path(
    activation: str, normalisation: str, residual: float | None, depth: int, start: float, batch: int | None
) -> np.ndarray:
    unit = nn.ACTIVATIONS[activation]
    function = unit.function if unit.learned is None else lambda x: unit.function(x, unit.learned)
    with jax.enable_x64(True):
        path = theory.blocks.block_trajectory(
            function, WEIGHT_VARIANCE * start, WEIGHT_VARIANCE, depth=depth, normalisation=normalisation, batch=batch,
            residual=residual,
        )  # fmt: skip
        return np.exp(-np.asarray(path.log_gradient_ratio) / 2)


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold every predicted factor against the measured one, and the sum of the parts against the whole."""
    found = [one for one in settings(config, results) if not math.isnan(one.predicted)]
    groups = list(dict.fromkeys((one.kind, one.normalisation, one.residual) for one in found))
    verdicts = [_factors([one for one in found if one[:3] == group], config) for group in groups]
    explosions = [one for one in found if one[:4] == ("dense", "batch", "none", "relu")]
    return (*verdicts, *map(_explosion, explosions), _sum(results))


def _factors(group: list[Setting], config: Config) -> Verdict:
    worst = max(group, key=lambda one: abs(one.departure))
    width = (config.dense if worst.kind == "dense" else config.convolutional).width
    gate = GATE * max(1.0, GATE_WIDTH / width)
    words = [
        f"{one.activation} {one.measured.factor:.4f}, predicted {one.predicted:.4f} ({one.in_errors:+.1f} errors)"
        for one in group
    ]
    name = {"none": "no normalisation"}.get(worst.normalisation, f"{worst.normalisation} normalisation")
    skip = {"none": "no skip connection"}.get(worst.residual, f"{worst.residual} skip connection")
    return Verdict(
        claim=f"{worst.kind} networks, {name}, {skip}: a layer's factor is that of theory",
        holds=abs(worst.departure) <= gate,
        value=abs(worst.departure),
        threshold=gate,
        evidence="; ".join(words),
    )


def _explosion(setting: Setting) -> Verdict:
    return Verdict(
        claim="batch normalisation makes the gradient of a relu network without skip connections explode",
        holds=setting.measured.lower > 1,
        value=setting.measured.factor,
        threshold=1.0,
        evidence=f"the gradient {in_words(setting.measured)}; in the square {setting.measured.factor**2:.3f} a layer, "
        f"predicted {setting.predicted**2:.3f}, in large batches pi/(pi - 1) = {math.pi / (math.pi - 1):.3f}",
    )


def _sum(results: "xarray.Dataset") -> Verdict:
    rest = 0.0
    for kind in ("dense", "convolutional"):
        found = study.part(results, kind)
        parts = sum(np.asarray(found[f"{part}_gain"], np.float64) for part in PARTS)
        rest = max(rest, float(np.nanmax(np.abs(parts - found.total_gain.values))))
    return Verdict(
        claim="the gains of a layer's parts add up to the gain of the layer",
        holds=rest <= GATE_SUM,
        value=rest,
        threshold=GATE_SUM,
        evidence="largest difference of logarithms over all layers, networks and settings",
    )


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw signals, parts, and departures from theory."""
    return {
        "signal_by_layer": _draw_signals(config, results, "dense", config.dense),
        "attribution": _draw_parts(config, results),
        "convolutional": _draw_signals(config, results, "convolutional", config.convolutional),
        "departures": _draw_departures(config, results),
    }


def _titles(normalisation: str, residual: str) -> str:
    first = "no normalisation" if normalisation == "none" else f"{normalisation} norm"
    return f"{first}, {'no skip' if residual == 'none' else f'{residual} skip'}"


def _draw_signals(config: Config, results: "xarray.Dataset", kind: str, networks: Dense) -> "Figure":
    rows, columns, layers = networks.residuals, networks.normalisations, np.arange(1, networks.depth + 1)
    figure, panels = plots.figure(
        len(rows), len(columns), share_x=True, width=1.0 + 2.8 * len(columns), height=0.8 + 2.2 * len(rows),
        caption=f"Gradient by layer in {networks.depth} {kind} layers of {networks.width}, divided by the last "
        f"layer's: median and quartiles over {len(networks.seeds)} random networks. Dashed: theory.",
    )  # fmt: skip
    signal = study.part(results, kind).signal
    for (row, residual), (column, normalisation) in product(enumerate(rows), enumerate(columns)):
        axes = panels[row, column]
        for position, activation in enumerate(networks.activations):
            chosen = {"normalisation": normalisation, "residual": residual, "activation": activation}
            measured = signal.sel(chosen).values
            plots.band(axes, layers, measured / measured[:, -1:], over=0, label=activation, position=position)
            path = predict(kind, normalisation, residual, activation, networks, results)
            if path is not None:
                middle = networks.depth // 2
                anchor = np.nanmedian(measured[:, middle] / measured[:, -1]) / path[middle]
                plots.theory(
                    axes, layers, anchor * path, label="theory" if activation == networks.activations[-1] else ""
                )
        plots.logarithmic(axes)
        plots.finish(
            axes, x="layer" if row == len(rows) - 1 else "", y="gradient / last layer's" if column == 0 else "",
            title=_titles(normalisation, residual), legend="inside" if row == column == 0 else "none",
        )  # fmt: skip
    return figure


def _draw_parts(config: Config, results: "xarray.Dataset") -> "Figure":
    networks, found = config.dense, study.part(results, "dense")
    settled = settled_layers(networks.depth)
    pairs = list(product(networks.normalisations, networks.residuals))
    figure, panels = plots.figure(
        1, len(networks.activations), share_x=True, share_y=True, width=2.6 + 2.6 * len(networks.activations),
        height=1.4 + 0.32 * len(pairs),
        caption="Where a layer gains (right of 0) and loses (left) gradient: mean logarithm of the gain of each part "
        "over the settled layers and the networks. The black mark is their sum: what the layer passes on.",
    )  # fmt: skip
    for axes, activation in zip(panels[0], networks.activations, strict=True):
        for row, (normalisation, residual) in enumerate(reversed(pairs)):
            chosen = {"normalisation": normalisation, "residual": residual, "activation": activation}
            inside = found.sel(chosen).isel(step=slice(settled.start, settled.stop - 1))
            ends = {True: 0.0, False: 0.0}
            for position, part in enumerate(PARTS):
                gain = float(inside[f"{part}_gain"].mean())
                label = part if row == 0 else None
                axes.barh(row, gain, left=ends[gain > 0], color=plots.colour(position), height=0.7, label=label)
                ends[gain > 0] += gain
            total = float(inside.total_gain.mean())
            axes.plot([total] * 2, [row - 0.45, row + 0.45], color="#000000", linewidth=2.5)
        axes.set_yticks(range(len(pairs)), [_titles(*pair) for pair in reversed(pairs)])
        plots.threshold(axes, 0.0, along="x")
        last = activation == networks.activations[-1]
        plots.finish(axes, x="log gain a layer", y="", title=activation, legend="right" if last else "none")
    return figure


def _draw_departures(config: Config, results: "xarray.Dataset") -> "Figure":
    found = [one for one in settings(config, results) if not math.isnan(one.predicted)]
    rows = list(dict.fromkeys((one.kind, one.normalisation, one.residual) for one in found))
    names = list(dict.fromkeys(one.activation for one in found))
    figure, panels = plots.figure(
        1, 2, share_y=True, width=9.0, height=1.2 + 0.3 * len(rows),
        caption="Measured factor of a layer against theory: in percent (left; dotted: the bound at width 512) and in "
        "standard errors over the networks (right; dotted: 3), which the finite width fills.",
    )  # fmt: skip
    for axes, name in zip(panels[0], ("departure", "in_errors"), strict=True):
        for position, activation in enumerate(names):
            chosen = [one for one in found if one.activation == activation]
            values = [100 * one.departure if name == "departure" else one.in_errors for one in chosen]
            places = [len(rows) - 1 - rows.index(one[:3]) for one in chosen]
            axes.plot(values, places, plots.marker(position), color=plots.colour(position), label=activation)
        for bound in (100 * GATE, -100 * GATE) if name == "departure" else (3.0, -3.0):
            plots.threshold(axes, bound, along="x")
        axes.set_yticks(range(len(rows)), [f"{kind}: {_titles(*rest)}" for kind, *rest in reversed(rows)])
        label = "measured / predicted - 1 (%)" if name == "departure" else "standard errors"
        plots.finish(axes, x=label, y="", legend="none" if name == "departure" else "right")
    return figure


EXPERIMENT = Experiment("blocks", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
