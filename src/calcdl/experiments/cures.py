r"""A deep sigmoid network does not learn: what helps, and by how much?

Question. Twenty layers of sigmoid units under plain gradient descent stay at the loss of a guess. Which of the usual
cures makes them learn, alone or with others, and is their order more than luck?

Mathematics. A layer passes the gradient on by a factor, and so nearly the differences between inputs, on their way
forwards: after 19 layers its 19th power is left. The logarithm of the factor is the sum of its parts,

    log(factor) = weights + slopes of the activation + normalisation + skip connection,

and a cure works where it gives back what the slopes, at most 1/4, take away. Clipping, normalised gradients and another
rate change the length of a step only: they cure what explodes.

The effect of a cure is the held-out accuracy that it gains over the network without it, of the same random numbers. The
rate of each is the best on one set of seeds, its effect that on the other, and the other way round: luck in the choice
counts as no effect, and two rankings come from disjoint runs.

Cures without an effect are tied, and what order ties show is luck. A set tells a pair apart where the 95 % intervals
leave more than 0.01 between them, more than the choice of the one digit that a network always names can gain. Only
pairs that a set tells apart enter the gate. Two sets tell a tied pair apart in opposite ways with a chance of at most
2 x 0.025^2, one in 800.

Claim. Of the pairs that one set of seeds tells apart the other one orders at least 95 % alike (Kendall's tau of 0.9),
and tells none apart the other way round. Without a cure the network stays at a guess; one alone is enough for 80 %.

Command. python -m calcdl.experiments.cures configs/cures.toml
"""

import math
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap
from pydantic import Field, model_validator

from calcdl import data, diagnostics, nn, optim, study
from calcdl.diagnostics.health import settled_layers
from calcdl.lab import panels, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, OneOf, Rate, Seeds, refuse
from calcdl.optim.solver import RUNNING, Info, Solver
from calcdl.train import Problem, make_run
from calcdl.trees import norm
from calcdl.types import Array, Key, Objective, Params, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

CLASSES, STATISTICS_ROWS, WARMUP = 10, 256, 0.3  # rows for batch normalisation, share of the steps
MARGIN, GATE, GUESS, ENOUGH, SHOWN = 0.01, 0.9, 0.02, 0.8, 5
PARTS = {"weight": "weights", "activation": "slopes", "normalisation": "normalisation", "skip": "skip connection"}


class Cure(NamedTuple):
    """What a network is made of, and how it is trained; the defaults are the network that does not learn."""

    activation: str = "sigmoid"
    initialiser: str = "glorot_normal"
    normalisation: str = "none"
    residual: float | None = None
    clip_norm: float | None = None
    normalised: bool = False
    rate: float = 1.0
    warmup: float = 0.0


NONE = "no cure"
ALONE = {
    "relu": Cure(activation="relu"),
    "leaky relu": Cure(activation="leaky_relu"),
    "he": Cure(initialiser="he_normal"),
    "orthogonal": Cure(initialiser="orthogonal"),
    "batch norm": Cure(normalisation="batch"),
    "layer norm": Cure(normalisation="layer"),
    "residual": Cure(residual=1.0),
    "clipped gradient": Cure(clip_norm=1.0),
    "normalised gradient": Cure(normalised=True),
    "low, warmed-up rate": Cure(rate=0.1, warmup=WARMUP),
}
JOINT = {
    "relu + he": Cure("relu", "he_normal"),
    "relu + he + clipping": Cure("relu", "he_normal", clip_norm=1.0),
    "relu + he + batch norm": Cure("relu", "he_normal", "batch"),
    "layer norm + residual": Cure(normalisation="layer", residual=1.0),
    "all together": Cure("relu", "he_normal", "batch", 1.0, clip_norm=1.0, warmup=WARMUP),
}
CURES = {NONE: Cure(), **ALONE, **JOINT}
ThreeSeeds = Annotated[Seeds, Field(min_length=3)]


class Config(ExperimentConfig):
    """What to measure."""

    cures: AxisOf[Annotated[str, OneOf([*ALONE, *JOINT])]] = Field(
        default=(*ALONE, *JOINT), description="what is tried against the network without a cure"
    )
    learning_rates: AxisOf[Rate] = Field(default=(0.03, 0.2, 1.0), description="rates, of which each gets its best")
    first_seeds: ThreeSeeds = Field(default=tuple(range(6)), description="the first set of seeds, at least three")
    second_seeds: ThreeSeeds = Field(default=tuple(range(6, 12)), description="the second set, at least three others")
    depth: Annotated[int, Field(ge=5)] = Field(default=20, description="hidden layers, at least 5")
    width: Count = Field(default=48, description="units a hidden layer")
    steps: Count = Field(default=100, description="steps, a multiple of record_every")
    record_every: Count = Field(default=10, description="steps between measurements on the held-out rows")
    batch: Annotated[int, Field(ge=2)] = Field(default=64, description="examples a step, at least two")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.steps % self.record_every:
            raise refuse("steps", self.steps, f"a multiple of record_every = {self.record_every}")
        for place, seed in enumerate(self.second_seeds):
            if seed in self.first_seeds:
                raise refuse(f"second_seeds[{place}]", seed, "a seed that is not among first_seeds")
        return self


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Look at every network before training, and train it."""
    sizes = config.model_dump(include={"depth", "width", "steps", "record_every", "batch"})
    dimensions = {"held_out_loss": ("step",), "accuracy": ("step",)}
    results: xarray.Dataset = run(
        partial(train, **sizes),
        [study.axis("cure", (NONE, *config.cures)), study.axis("learning_rate", config.learning_rates),
         study.axis("seed", config.first_seeds + config.second_seeds)],
        name="cures", shared=rows(config), dtype=config.precision,
        dimensions=dimensions | dict.fromkeys(PARTS, ("place",)),
    )  # fmt: skip
    return results.assign_coords(step=np.arange(config.record_every, config.steps + 1, config.record_every))


def rows(config: Config) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return digits and their labels, to train on and held out, standardised by the former."""
    dataset = data.load("digits", constant="keep", collinear="keep")
    dataset, _ = data.standardise(data.split(dataset, validation=0.2, test=0.0), constant="keep")
    if config.batch > len(dataset.train):
        raise ConfigError(f"batch: got {config.batch}; expected at most the {len(dataset.train)} training rows")
    known, held_out = (data.rows(dataset, part, config.precision) for part in ("train", "validation"))
    return {"known": known, "held_out": held_out}


def train(
    key: Key, known: tuple[Array, Array], held_out: tuple[Array, Array], *, cure: str, learning_rate: Array,
    depth: int, width: int, steps: int, record_every: int, batch: int,
) -> dict[str, Array]:  # fmt: skip
    """Look at one network before training, and train it."""
    chosen, (x, labels) = CURES[cure], held_out
    initialiser = orthogonal if chosen.initialiser == "orthogonal" else nn.INITIALISERS[chosen.initialiser]
    network = nn.stack(
        depth, width, CLASSES, nn.ACTIVATIONS[chosen.activation], initialiser, dtype=x.dtype,
        normalisation=nn.NORMALISATIONS[chosen.normalisation], residual=chosen.residual, tap=diagnostics.tap,
    )  # fmt: skip

    def loss(params: Params, batch: tuple[Array, Array]) -> Array:
        return jnp.mean(nn.softmax_cross_entropy(network.apply(params, batch[0]), batch[1]))

    def look(objective: Objective, params: Params, info: Info) -> dict[str, Array]:
        logits = network.apply(params, x, network.statistics(params, known[0][:STATISTICS_ROWS]))
        found = jnp.mean(nn.softmax_cross_entropy(logits, labels))
        right = jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=x.dtype)
        return {"held_out_loss": jnp.where(jnp.isnan(found), jnp.inf, found), "accuracy": right}

    problem = Problem(lambda key: network.init(key, x.shape[1:]), loss, data.minibatches(known, batch))
    descent = solver(chosen, learning_rate, steps)
    trace = make_run(problem, descent, steps=steps, record_every=record_every, probes={"look": look})(key)
    # A run makes its parameters from the first half of its key: what is looked at is what is trained.
    first = problem.init(jax.random.split(key)[0])
    taps = diagnostics.capture(loss)(first, jax.tree.map(lambda leaf: leaf[:batch], known)).taps
    gains = {part: gain for part, gain in diagnostics.attribute(taps)._asdict().items() if part in PARTS}
    return {**gains, **trace.probes["look"], "status": trace.status, "diverged_at": trace.diverged_at}


def orthogonal(key: Key, shape: tuple[int, ...], gain: Any = 1.0, dtype: Any = jnp.float32) -> Array:
    """Draw orthogonal weights, layers one after another: of batches of matrices the CPU factorises one at a time."""
    drawn: Array = sequential_vmap(lambda key: nn.INITIALISERS["orthogonal"](key, shape, gain, dtype))(key)
    return drawn


def solver(cure: Cure, learning_rate: Array, steps: int) -> Solver:
    """Return plain gradient descent, or what the cure changes in it."""
    rate = cure.rate * learning_rate
    if cure.normalised:
        return normalised_descent(rate)
    warm = optim.schedule("warmup", warmup_steps=max(1.0, cure.warmup * steps))
    return optim.descent("sgd", rate, schedule=warm, clip_norm=cure.clip_norm)


def normalised_descent(learning_rate: Array) -> Solver:
    """Let every layer go a step of one length, `w - η g / |g|` with the norm of the layer's own gradient."""

    def down(gradient: Params) -> Params:
        length = norm(gradient)
        return jax.tree.map(lambda leaf: -learning_rate * leaf / jnp.where(length > 0, length, 1), gradient)

    def step(objective: Objective, params: Params, state: Any) -> tuple[Params, Any, Info]:
        value, gradient = jax.value_and_grad(objective)(params)
        update = {where: (jax.vmap(down) if where == "hidden" else down)(of) for where, of in gradient.items()}
        return jax.tree.map(jnp.add, params, update), state, Info(value, gradient, update, jnp.int32(RUNNING))

    return Solver(lambda params: (), step)


class Effect(NamedTuple):
    """What a cure gains in one set of seeds, with its 95 % interval, and the accuracy that it reaches."""

    gain: float
    lower: float
    upper: float
    accuracy: float


Effects = dict[str, Effect]


def effects(config: Config, results: "xarray.Dataset") -> tuple[Effects, Effects]:
    """Measure what each cure gains in either set of seeds, at the rate that was best in the other set."""
    accuracy, sets, found = worth(results), (config.first_seeds, config.second_seeds), []
    for own, other in (sets, sets[::-1]):
        best = accuracy.sel(seed=list(other)).mean("seed").idxmax("learning_rate")
        runs = accuracy.sel(seed=list(own), learning_rate=best)
        gains = runs - runs.sel(cure=NONE)
        mean, half = study.interval(gains)
        numbers = [one.to_series() for one in (mean, mean - half, mean + half, runs.mean("seed"))]
        found.append({cure: Effect(*(float(one[cure]) for one in numbers)) for cure in config.cures})
    return found[0], found[1]


def worth(results: "xarray.Dataset") -> "xarray.DataArray":
    """Return the last accuracy of every run; a run that was lost is worth a guess."""
    last: xarray.DataArray = results.accuracy.isel(step=-1, drop=True)
    return last.where(results.status == 0, 1 / CLASSES)


def agreement(first: Effects, second: Effects) -> tuple[int, int, int]:
    """Count the pairs that a set tells apart, those of them that both order alike, and those told apart oppositely."""
    decided, alike, opposite = 0, 0, 0
    for one, other in combinations(first, 2):
        signs = told_apart(first[one], first[other]), told_apart(second[one], second[other])
        order = (first[one].gain - first[other].gain) * (second[one].gain - second[other].gain)
        decided += signs != (0, 0)
        alike += signs != (0, 0) and order > 0
        opposite += signs[0] * signs[1] < 0
    return decided, alike, opposite


def told_apart(one: Effect, other: Effect) -> int:
    """Return 1 or -1 where one effect is surely more or less than the other, 0 where they are tied."""
    return (one.lower > other.upper + MARGIN) - (other.lower > one.upper + MARGIN)


def ranked(found: tuple[Effects, Effects]) -> dict[str, float]:
    """Return the mean effect of each cure over the two sets, the greatest first."""
    gained = {cure: (one.gain + found[1][cure].gain) / 2 for cure, one in found[0].items()}
    return dict(sorted(gained.items(), key=lambda pair: -pair[1]))


def factors(results: "xarray.Dataset") -> dict[str, float]:
    """Return what a layer of each network passes on of the gradient before training."""
    return {str(cure): math.exp(sum(parts(results, cure).values())) for cure in results.cure.values}


def parts(results: "xarray.Dataset", cure: str) -> dict[str, float]:
    """Return the mean logarithm of the gain of each part of a settled layer before training."""
    settled = settled_layers(results.sizes["place"] + 1)
    inside = results.sel(cure=cure).isel(learning_rate=0, place=slice(settled.start, settled.stop - 1))
    return {part: float(inside[part].mean()) for part in PARTS}


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold the two rankings against each other, and the cures against a guess."""
    found = effects(config, results)
    alone = {cure: min(effect[cure].accuracy for effect in found) for cure in config.cures if cure in ALONE}
    ranking = _ranking(found, results) if len(config.cures) > 1 else ()
    return (*ranking, _failing(results), *([_enough(results, ranked(found), alone)] if alone else []))


def _ranking(found: tuple[Effects, Effects], results: "xarray.Dataset") -> tuple[Verdict, Verdict]:
    from scipy.stats import kendalltau

    decided, alike, opposite = agreement(*found)
    tau = 2 * alike / decided - 1 if decided else math.nan
    plain = kendalltau(*([one.gain for one in effect.values()] for effect in found)).statistic
    gains = ", ".join(f"{cure} {found[0][cure].gain:+.3f} / {found[1][cure].gain:+.3f}" for cure in ranked(found))
    counted, lost = f"{decided} of {math.comb(len(found[0]), 2)} pairs are told apart", int((results.status != 0).sum())
    runs = f"{lost} of {results.status.size} runs were lost and count as a guess"
    same = "two disjoint sets of seeds rank the cures alike: Kendall's tau of the pairs that a set tells apart"
    why = f"{counted}; of all pairs, ties included, tau-b is {plain:.2f}; {runs}; accuracy gained: {gains}"
    never = "no pair of cures is told apart one way by one set and the other way by the other"
    wide = f"{counted}: their 95 % intervals leave more than {MARGIN:g} of accuracy between them"
    return Verdict(same, tau >= GATE, tau, GATE, why), Verdict(never, opposite == 0, float(opposite), 0.0, wide)


def _failing(results: "xarray.Dataset") -> Verdict:
    bare, lost, guess = results.sel(cure=NONE).isel(step=-1), parts(results, NONE), math.log(CLASSES)
    losses = bare.held_out_loss.where(bare.status == 0, guess).mean("seed")
    least, accuracy = float(losses.min()), float(bare.accuracy.mean("seed").max())
    claim = "without a cure the network stays at the loss of a guess, whatever the rate (nats)"
    passed = [factors(results)[NONE], *(math.exp(lost[part]) for part in ("activation", "weight"))]
    evidence = (
        f"least mean held-out loss of {losses.size} rates, a guess has {guess:.3f}; best mean accuracy {accuracy:.3f}; "
        "a layer passes on {:.3f} of the gradient: its slopes {:.3f}, its weights {:.3f}".format(*passed)
    )
    return Verdict(claim, least >= guess - GUESS, least, guess - GUESS, evidence)


def _enough(results: "xarray.Dataset", gained: dict[str, float], alone: dict[str, float]) -> Verdict:
    from scipy.stats import spearmanr

    best, passed = max(alone, key=lambda cure: alone[cure]), factors(results)
    mended = {part: gain - parts(results, NONE)[part] for part, gain in parts(results, best).items()}
    part = max(mended, key=lambda part: mended[part])
    evidence = (
        f"{best}: a layer passes on {passed[best]:.3f} of the gradient, without a cure {passed[NONE]:.3f}; most comes "
        f"back by the {PARTS[part]}, a factor of {math.exp(mended[part]):.2f}"
    )
    if len(gained) > 2:  # gains are rounded, so that cures without an effect are tied
        table = [[-abs(math.log(passed[cure])), round(gain, 2)] for cure, gain in gained.items()]
        evidence += f"; rank correlation of gain and nearness of the factor to 1: {spearmanr(table).statistic:.2f}"
    claim = "a single cure is enough for four digits in five"
    return Verdict(claim, alone[best] >= ENOUGH, alone[best], ENOUGH, evidence)


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the ranking beside what each part of a layer does, its factor against the gain, and training."""
    gained = ranked(found := effects(config, results))
    return {
        "ranking": _draw_ranking(results, found, [NONE, *reversed(gained)]),
        "factor": _draw_factors(factors(results), gained),
        "training": _draw_training(results, [NONE, *list(gained)[:SHOWN]]),
    }


def _draw_ranking(results: "xarray.Dataset", found: tuple[Effects, Effects], names: list[str]) -> "Figure":
    caption = (
        f"Left: held-out accuracy gained in {int(results.step[-1])} steps, mean and 95 % interval in two seed sets, "
        "at the other's best rate. Right: what parts of a layer do to the gradient before training; black: their sum."
    )
    figure, ((left, right),) = plots.figure(1, 2, share_y=True, width=11, height=2 + len(names) / 3, caption=caption)
    for position, (effect, label) in enumerate(zip(found, ("first set of seeds", "second set"), strict=True)):
        gain, lower, upper, _ = np.array([effect[cure] for cure in names[1:]]).T
        look = panels.look(position) | {"linestyle": "", "markersize": 4.5, "capsize": 2.5, "label": label}
        places = np.arange(1, len(names)) + 0.14 - 0.28 * position
        left.errorbar(gain, places, xerr=[gain - lower, upper - gain], **look)
    left.plot([0.0], [0], "x", color="#000000", markersize=8, markeredgewidth=2)
    for row, cure in enumerate(names):
        gains, ends = parts(results, cure), {True: 0.0, False: 0.0}
        for position, (part, gain) in enumerate(gains.items(), start=2):
            look = {"color": plots.colour(position), "label": PARTS[part] if row == 0 else None}
            right.barh(row, gain, left=ends[gain > 0], height=0.7, **look)
            ends[gain > 0] += gain
        right.plot([sum(gains.values())] * 2, [row - 0.4, row + 0.4], color="#000000", linewidth=2.5)
    left.set_yticks(range(len(names)), names)
    for axes in (left, right):
        plots.threshold(axes, 0.0, along="x")
    plots.finish(left, x="accuracy gained", y="")
    plots.finish(right, x="logarithm of the gain of a layer", y="", legend="right")
    return figure


def _draw_factors(passed: dict[str, float], gained: dict[str, float]) -> "Figure":
    caption = (
        "What a layer passes on of the gradient before training, against the accuracy gained by training. Left of the "
        "dotted line gradients vanish, right of it they explode. Best cures first."
    )
    figure, ((axes,),) = plots.figure(width=8.6, height=4.8, caption=caption)
    for position, (cure, gain) in enumerate(gained.items()):
        axes.plot([passed[cure]], [gain], linestyle="", markersize=8, alpha=0.8, label=cure, **panels.look(position))
    axes.plot([passed[NONE]], [0.0], "x", color="#000000", markersize=8, markeredgewidth=2, label=NONE)
    plots.threshold(axes, 1.0, along="x")
    plots.finish(axes, x="factor of a layer before training", y="accuracy gained", legend="right")
    return figure


def _draw_training(results: "xarray.Dataset", names: list[str]) -> "Figure":
    caption = (
        f"Held-out loss without a cure and with the best {len(names) - 1}, each at the rate of its best mean accuracy: "
        "median and quartiles over all seeds. Dotted: a guess."
    )
    figure, ((axes,),) = plots.figure(width=8.2, caption=caption)
    rates = worth(results).mean("seed").idxmax("learning_rate")
    for position, cure in enumerate(names):
        chosen = results.sel(cure=cure, learning_rate=rates.sel(cure=cure))
        losses, label = chosen.held_out_loss.where(chosen.status == 0), f"{cure}, rate {float(chosen.learning_rate):g}"
        plots.band(axes, results.step, losses, over="seed", label=label, position=position, markers=True)
    plots.threshold(axes, math.log(CLASSES))
    plots.logarithmic(axes)
    plots.finish(axes, x="step", y="held-out loss (nats)", legend="right")
    return figure


EXPERIMENT = Experiment("cures", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
