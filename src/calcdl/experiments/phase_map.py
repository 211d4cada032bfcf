r"""Which depths can be trained, and does theory know before training?

Question. The variance of the weights decides what a deep network does to its inputs: too small and all of them become
alike, too large and close ones are torn apart. How deep may a network be for a given variance?

Mathematics. In wide random networks :math:`h_{l+1} = W \phi(h_l) + b`, with weights of variance
:math:`\sigma_w^2 / N` and biases of variance :math:`\sigma_b^2`, the correlation of two inputs goes to its fixed point
like :math:`e^{-l / \xi_c}`. With :math:`c^*` that point, :math:`q^*` the variance of h and :math:`x_1, x_2` normal of
that variance and correlation,

    :math:`\xi_c^{-1} = -\log \chi_c`,  :math:`\chi_c = \sigma_w^2 E[\phi'(x_1) \phi'(x_2)]`.

Where the inputs have become indistinguishable, or unrelated, nothing can be learned from them. On the edge of chaos,
:math:`\chi_c = 1`, the scale is infinite. Schoenholz et al. 2017 (arXiv:1611.01232, figure 5) found that networks train
to about :math:`6 \xi_c`. The 6 is no constant of nature: it depends on the steps and the learning rate.

Claim. The depth at which real, short trainings begin to fail follows xi_c over the variances: rank correlation of at
least 0.8. Six times xi_c, without a fit, tells what trains from what does not, better than the more frequent answer
would; and the deepest networks that train are next to the edge of chaos.

Command. python -m calcdl.experiments.phase_map configs/phase_map.toml
"""

from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import nn, study, theory
from calcdl.data import load, minibatches, rows, split, standardise
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, Count, ExperimentConfig, NonNegative, OneOf, Rate, Section, Seeds, refuse
from calcdl.optim import descent
from calcdl.train import Problem, make_run
from calcdl.types import Array, Key, Params, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

# Smooth and bounded: the length has one positive fixed point, and the edge of chaos is a point.
ACTIVATIONS = ("tanh", "erf", "softsign")
PAPERS = 6.0
GATE, NEAR, FEWEST = 0.8, 1.5, 4
RESAMPLES, REACH = 2000, 8
INSIDE, DEEPER, SHALLOWER = range(3)


class Networks(Section):
    """The cells of the map."""

    activation: Annotated[str, OneOf(ACTIVATIONS)] = Field(default="tanh", description="activation")
    width: Count = Field(default=64, description="units a hidden layer")
    bias_variance: NonNegative = Field(default=0.05, description="variance of a bias")
    weight_variances: AxisOf[Rate] = Field(
        default=tuple(round(0.2 * count, 1) for count in range(2, 22)),
        description="variance of a weight times its fan-in, increasing",
    )
    depths: AxisOf[Count] = Field(
        default=(3, 4, 5, 7, 9, 12, 16, 21, 28, 37, 48, 64), description="hidden layers, increasing"
    )


class Training(Section):
    """What every cell is given."""

    learning_rates: AxisOf[Rate] = Field(default=(0.01, 0.03), description="rates of descent; the best counts")
    steps: Count = Field(default=150, description="steps")
    batch: Count = Field(default=32, description="examples a step")
    seeds: Seeds = Field(default=(0,), description="one run a seed, cell and rate")


class Config(ExperimentConfig):
    """What to measure."""

    networks: Networks = Field(default=Networks(), description="the cells of the map")
    training: Training = Field(default=Training(), description="what every cell is given")

    @model_validator(mode="after")
    def _is_a_map(self) -> Self:
        for name, values in (("weight_variances", self.networks.weight_variances), ("depths", self.networks.depths)):
            if len(values) < 2 or list(values) != sorted(values):
                raise refuse(f"networks.{name}", values, "at least two values in increasing order")
        if self.training.batch > 1000:
            raise refuse("training.batch", self.training.batch, "at most 1000, rows of the digits")
        return self


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Train one network in every cell of the map, at every rate."""
    dataset = load("digits", None, "classification", constant="keep", collinear="keep")
    dataset, _ = standardise(split(dataset, validation=0.2, test=0.0), constant="keep")
    x, y = rows(dataset, "train", config.precision)
    networks, training = config.networks, config.training
    found = {
        name: run(
            partial(cell, deepest=max(depths), networks=networks, training=training),
            [
                study.axis("depth", depths),
                study.axis("weight_variance", networks.weight_variances),
                study.axis("learning_rate", training.learning_rates),
                study.axis("seed", training.seeds),
            ],
            name=name,
            shared={"x": x, "y": y},
            dtype=config.precision,
        )
        for name, depths in groups(networks).items()
    }
    results = study.join(**found)
    results.attrs["guess"] = float(np.bincount(y).max() / len(y))
    return results


def groups(networks: Networks) -> dict[str, tuple[int, ...]]:
    """Divide the depths so that none is far below the deepest of its program, of which it costs a part."""
    found: list[list[int]] = []
    for depth in networks.depths:
        if not found or depth > REACH * found[-1][0]:
            found.append([])
        found[-1].append(depth)
    return {f"to_{group[-1]}": tuple(group) for group in found}


def cell(
    key: Key, x: Array, y: Array, *, depth: Array, weight_variance: Array, learning_rate: Array,
    deepest: int, networks: Networks, training: Training,
) -> dict[str, Array]:  # fmt: skip
    """Train one network and say how many of its training rows it then has right."""
    answer = partial(outputs, depth=depth, activation=networks.activation)
    problem = Problem(
        init=partial(initial, inputs=x.shape[1], weight_variance=weight_variance, deepest=deepest, networks=networks),
        loss=lambda params, rows: jnp.mean(nn.softmax_cross_entropy(answer(params, rows[0]), rows[1])),
        batches=minibatches((x, y), training.batch),
    )
    solver, steps = descent("sgd", learning_rate), training.steps
    trace = make_run(problem, solver, steps=steps, record_every=steps)(key)
    guess = jnp.argmax(answer(trace.params, x), axis=-1)
    return {
        "accuracy": jnp.mean(guess == y, dtype=x.dtype),
        "loss": trace.loss[-1],
        "status": trace.status,
        "diverged_at": trace.diverged_at,
    }


def initial(key: Key, *, inputs: int, weight_variance: Array, deepest: int, networks: Networks) -> Params:
    """Draw the parameters of the deepest network, biases too; shallower ones use the first layers."""
    weight_key, *bias_keys = jax.random.split(key, 3)
    unit, draw, dtype = nn.ACTIVATIONS[networks.activation], nn.INITIALISERS["lecun_normal"], weight_variance.dtype
    network = nn.stack(deepest, networks.width, 10, unit, draw, jnp.sqrt(weight_variance), dtype=dtype)
    params = network.init(weight_key, (inputs,))
    for name, bias_key in zip(("first", "hidden"), bias_keys, strict=True):
        normal = jax.random.normal(bias_key, params[name]["bias"].shape, dtype)
        params[name]["bias"] = jnp.sqrt(jnp.asarray(networks.bias_variance, dtype)) * normal
    return params


def outputs(params: Params, x: Array, *, depth: Array, activation: str) -> Array:
    """Apply the first layers of a stack and its read-out: depth is data, so that few programs make the whole map.

    The branch is really taken where lanes follow one another, as they do on a CPU; under `jax.vmap` both sides are
    computed, and every cell costs as much as the deepest.
    """
    unit = nn.ACTIVATIONS[activation].function

    def affine(layer: dict[str, Array], x: Array) -> Array:
        return x @ layer["weight"] + layer["bias"][None]

    @jax.checkpoint  # what a layer keeps for the way back costs more than to compute it again
    def deeper(layer: dict[str, Array], h: Array) -> Array:
        return affine(layer, unit(h))

    def step(h: Array, at: Any) -> tuple[Array, None]:
        number, layer = at
        return jax.lax.cond(number < depth, deeper, lambda layer, h: h, layer, h), None

    numbers = 1 + jnp.arange(len(params["hidden"]["bias"]), dtype=jnp.int32)
    return affine(
        params["readout"], unit(jax.lax.scan(step, affine(params["first"], x), (numbers, params["hidden"]))[0])
    )


class Border(NamedTuple):
    """Where training begins to fail, by weight variance, and the scale that theory gives.

    Attributes:
        depth: hidden layers; the largest or smallest of the map where it is not inside.
        where: `INSIDE`, `DEEPER` than the map or `SHALLOWER`.
        scale: ξ_c, in layers.
        level: the accuracy that tells trained from not.
    """

    depth: np.ndarray
    where: np.ndarray
    scale: np.ndarray
    level: float


def accuracies(config: Config, results: "xarray.Dataset") -> np.ndarray:
    """Return the accuracy at the best rate, mean over the seeds [depth, variance]; a failed run is a guess."""
    accuracy, status = _joined(config, results, "accuracy"), _joined(config, results, "status")
    best = accuracy.where(status == 0, results.attrs["guess"]).mean("seed").max("learning_rate")
    return np.asarray(best.transpose("depth", "weight_variance"), np.float64)


def _joined(config: Config, results: "xarray.Dataset", name: str) -> "xarray.DataArray":
    import xarray

    return xarray.concat([study.part(results, group)[name] for group in groups(config.networks)], "depth")


def border(config: Config, results: "xarray.Dataset") -> Border:
    """Find the largest depth whose accuracy is half-way from a guess to the best, between depths by log depth."""
    accuracy, depths = accuracies(config, results), np.log(config.networks.depths)
    level = (results.attrs["guess"] + accuracy.max()) / 2
    found, where = [], []
    for column in accuracy.T:
        last = int(np.max(np.flatnonzero(column >= level), initial=-1))
        if 0 <= last < len(depths) - 1:
            share = (column[last] - level) / (column[last] - column[last + 1])
            found.append(depths[last] + share * (depths[last + 1] - depths[last]))
        else:
            found.append(depths[last if last > 0 else 0])
        where.append(SHALLOWER if last < 0 else DEEPER if last == len(depths) - 1 else INSIDE)
    scale = scales(config.networks, config.networks.weight_variances)
    return Border(np.exp(found), np.asarray(where), scale, float(level))


@cache
def scales(networks: Networks, weight_variances: tuple[float, ...]) -> np.ndarray:
    """Return the depth scale of correlations for some weight variances."""
    with jax.enable_x64(True):
        return np.array([_scale(networks.activation, one, networks.bias_variance) for one in weight_variances])


@partial(jax.jit, static_argnums=0)
def _scale(activation: str, weights: Array, biases: Array) -> Array:
    return theory.phases.phase(nn.ACTIVATIONS[activation].function, weights, biases).xi_c


@cache
def edge(networks: Networks) -> float:
    """Return the weight variance on the edge of chaos."""
    function = nn.ACTIVATIONS[networks.activation].function
    with jax.enable_x64(True):
        return float(theory.phases.edge_of_chaos(function, networks.bias_variance).weight_variance)


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold the border of training against the depth scale, the map against 6 of them, and its peak against the edge."""
    found = border(config, results)
    return _follows(config, found), _tells(config, results, found), _peaks(config, found)


def _follows(config: Config, found: Border) -> Verdict:
    depth, scale = found.depth[found.where == INSIDE], found.scale[found.where == INSIDE]
    inside, deeper, shallower = (int(np.sum(found.where == kind)) for kind in (INSIDE, DEEPER, SHALLOWER))
    counted = f"borders in the map {inside}, deeper {deeper}, shallower {shallower}"
    claim = "the depth at which training begins to fail follows the depth scale of theory over the variances"
    if len(depth) < FEWEST:
        return Verdict(claim, False, float("nan"), GATE, f"not judged: {counted}; widen networks.depths")
    chosen = np.random.default_rng(0).integers(len(depth), size=(RESAMPLES, len(depth)))
    correlation, resampled = _rank_correlation(depth, scale), _rank_correlation(depth[chosen], scale[chosen])
    lower, upper = np.nanquantile(resampled, (0.025, 0.975))
    evidence = f"rank correlation {correlation:.2f} [{lower:.2f}, {upper:.2f}], 95 % by resampling the variances"
    evidence = f"{evidence}; {counted}; {_factors(config, found)}"
    return Verdict(claim, bool(correlation >= GATE), float(correlation), GATE, evidence)


def _factors(config: Config, found: Border) -> str:
    """Say how many scales the border is at in each phase, where so many scales as the paper found are in the map."""
    is_ordered = np.asarray(config.networks.weight_variances) < edge(config.networks)
    is_short = (found.where == INSIDE) & (PAPERS * found.scale <= config.networks.depths[-1])
    told = []
    for name, side in (("ordered", is_ordered & is_short), ("chaotic", ~is_ordered & is_short)):
        if len(ratio := found.depth[side] / found.scale[side]):
            told.append(f"{np.exp(np.log(ratio).mean()):.1f} ({ratio.min():.1f} to {ratio.max():.1f}) in the {name}")
    factors = " and ".join(told)
    return f"border / xi_c, where {PAPERS:g} xi_c is inside the map, is {factors} phase" if told else "no factor fitted"


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> Any:
    """Return Spearman's correlation along the last axis; NaN where one side is constant."""
    from scipy.stats import rankdata

    first, second = (rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2 for values in (one, other))
    spread = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return (first * second).sum(-1) / np.where(spread > 0, spread, np.nan)


def _tells(config: Config, results: "xarray.Dataset", found: Border) -> Verdict:
    trains = accuracies(config, results) >= found.level
    predicted = np.asarray(config.networks.depths)[:, None] <= PAPERS * found.scale[None]
    right, majority = float(np.mean(trains == predicted)), float(max(trains.mean(), 1 - trains.mean()))
    status = _joined(config, results, "status")
    claim = f"{PAPERS:g} xi_c, without a fit, tells what trains from what does not better than the majority"
    evidence = (
        f"share of the {trains.size} cells told rightly; {int(trains.sum())} train: on the training rows they reach an "
        f"accuracy of {found.level:.2f}, half-way from a guess to the best; {int((status != 0).sum())} of "
        f"{status.size} runs diverged, which counts as a guess"
    )
    return Verdict(claim, right > majority, right, majority, evidence)


def _peaks(config: Config, found: Border) -> Verdict:
    at, variances = edge(config.networks), np.asarray(config.networks.weight_variances)
    deepest = variances[found.depth >= found.depth.max()]
    away = float(np.exp(np.abs(np.log(deepest / at)).max()))
    evidence = (
        f"factor between the edge, weight variance {at:.3f}, and the furthest of those that train deepest: "
        f"{', '.join(f'{variance:g}' for variance in deepest)}, to {found.depth.max():.0f} layers"
        f"{' or more' if found.where[found.depth.argmax()] == DEEPER else ''}"
    )
    return Verdict("the deepest networks that train are next to the edge of chaos", away <= NEAR, away, NEAR, evidence)


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the map, and the border against the scale."""
    return {"phase_map": _draw_map(config, results), "border": _draw_border(config, results)}


def _draw_map(config: Config, results: "xarray.Dataset") -> "Figure":
    import matplotlib.patheffects as effects

    networks = config.networks
    variances, depths = np.asarray(networks.weight_variances), np.asarray(networks.depths)
    figure, panels = plots.figure(
        width=7.4, height=4.8,
        caption=f"Accuracy on the training rows after {config.training.steps} steps of descent: {networks.activation} "
        f"networks of width {networks.width}, {len(variances) * len(depths)} cells. Dashed: {PAPERS:g} depth scales of "
        "theory, known before training. Dotted: the edge of chaos, where the scale is infinite.",
    )  # fmt: skip
    axes, found = panels[0, 0], border(config, results)
    x, y = _edges(variances), np.exp(_edges(np.log(depths)))
    mesh = axes.pcolormesh(x, y, accuracies(config, results), vmin=0.0, vmax=1.0, cmap="magma")
    figure.colorbar(mesh, ax=axes, label="accuracy on the training rows", pad=0.02)
    fine = tuple(np.linspace(max(x[0], 1e-3), x[-1], 61).tolist())
    outline = [effects.withStroke(linewidth=4.0, foreground="black")]
    predicted = np.minimum(PAPERS * scales(networks, fine), 1e6)
    axes.plot(fine, predicted, "--", color="white", linewidth=2.2, path_effects=outline,
              label=rf"theory: ${PAPERS:g}\,\xi_c$")  # fmt: skip
    axes.plot(variances, np.where(found.where == INSIDE, found.depth, np.nan), "o", color="white", markersize=5,
              markeredgecolor="black", label="measured border")  # fmt: skip
    at = edge(networks)
    axes.axvline(at, color="white", linestyle=":", linewidth=1.8, path_effects=outline)
    top, low = y[-1] / 1.2, 1.1 * y[0]
    places = (0.8 * x[0] + 0.2 * at, top), (0.3 * at + 0.7 * x[-1], top), (at, low)
    for (place, height), name in zip(places, ("ordered", "chaotic", " edge of chaos"), strict=True):
        if x[0] < place < x[-1]:
            axes.text(place, height, name, color="white", path_effects=outline)
    axes.set_yscale("log")
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    axes.set_yticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    axes.grid(False)
    plots.finish(axes, x=r"weight variance $\sigma_w^2$", y="depth (hidden layers)", legend="none")
    figure.legend(loc="outside upper center", ncols=2, frameon=True, facecolor="#999999", fontsize="small")
    return figure


def _edges(centres: np.ndarray) -> np.ndarray:
    """Return the borders of cells about some centres."""
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _draw_border(config: Config, results: "xarray.Dataset") -> "Figure":
    networks, found = config.networks, border(config, results)
    figure, panels = plots.figure(
        width=6.4, height=4.4,
        caption=f"The depth at which training begins to fail against the depth scale of theory, one mark a weight "
        f"variance. Dashed: {PAPERS:g} scales, not fitted. Open marks: the border is deeper than the map.",
    )  # fmt: skip
    axes, is_known = panels[0, 0], np.isfinite(found.scale)
    is_ordered = np.asarray(networks.weight_variances) < edge(networks)
    for position, (name, side) in enumerate((("ordered", is_ordered), ("chaotic", ~is_ordered))):
        look = {"color": plots.colour(position), "linestyle": "none", "marker": plots.marker(position)}
        inside, deeper = (is_known & side & (found.where == kind) for kind in (INSIDE, DEEPER))
        axes.plot(found.scale[inside], found.depth[inside], label=f"{name} phase", **look)
        axes.plot(found.scale[deeper], found.depth[deeper], markerfacecolor="none", **look)
    ends = np.array([networks.depths[0], 1.3 * networks.depths[-1]])
    plots.theory(axes, ends / PAPERS, ends, label=rf"${PAPERS:g}\,\xi_c$")
    plots.threshold(axes, networks.depths[-1], "deepest of the map")
    plots.logarithmic(axes, "xy")
    axes.set_yticks(networks.depths, [str(depth) for depth in networks.depths])
    axes.minorticks_off()
    plots.finish(axes, x=r"depth scale $\xi_c$ (layers)", y="border of training (hidden layers)")
    return figure


EXPERIMENT = Experiment("phase_map", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
