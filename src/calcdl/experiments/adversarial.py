r"""What becomes of a generator that learns from a discriminator alone, and which game teaches it all of the data?

Question. Two networks play: a generator turns noise into samples, a discriminator tells them from data. Does the
generator find all modes of a distribution, how much depends on the game, and does it make digits, or copy them?

Mathematics. The pairs of losses are those of `calcdl.nn.adversarial`. Against the best discriminator for its present
density q, with p that of the data, what the generator descends on has the gradient of

    saturating:      2 JSD(p, q)                         (symmetric)
    non-saturating:  KL(q || p) - 2 JSD(p, q)            (dear where q > 0 = p, cheap where p > 0 = q: modes may go)
    Wasserstein:     W(p, q)                             (the cost of transport; the critic's slope must be bounded)

and no discriminator is the best for long. A penalty on its slope keeps the game from turning:

    R1:  γ mean |∇_x a|² at real x,        gradient penalty:  λ mean (|∇_x a| - 1)² between real and generated x,

whose own gradient is that of a gradient. Three numbers need no eye: the share of modes that get at least a fifth of
their due within 3 standard deviations; the share of samples so near to a mode; the sliced Wasserstein distance from
data, mean over directions of the cost of transport along a line, which is that of sorted values. A digit is named after
its nearest neighbour in the data; digits are counted as exp(entropy) of the names. Copies would lie nearer to the data.

Claim. On the mixture, over the second half of training and all rates, games with a penalty cover more modes than the
plain non-saturating one, and lie nearer to the data: the 95 % interval of the paired difference over seeds excludes 0.
Every game makes at least 7 digits in effect, within 4 times the distance of two samples of the data, and no copies.

Command. python -m calcdl.experiments.adversarial configs/adversarial.toml

Reference: Goodfellow et al. 2014, arXiv:1406.2661; Arjovsky and Bottou 2017, arXiv:1701.04862, theorem 2.5; Gulrajani
et al. 2017, arXiv:1704.00028; Mescheder et al. 2018, arXiv:1801.04406.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import data, nn, optim, study
from calcdl.data.synthetic import LAYOUTS, centres, mixture
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, Count, ExperimentConfig, OneOf, Rate, Section, Seeds, refuse
from calcdl.nn.adversarial import GAMES, PENALTIES, sliced_wasserstein
from calcdl.nn.adversarial import game as losses_of
from calcdl.train import Problem, make_run
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

PLAIN = "non-saturating"
PLAYS = {
    "saturating": ("saturating", "none"),
    PLAIN: ("non_saturating", "none"),
    "non-saturating, R1": ("non_saturating", "r1"),
    "Wasserstein": ("wasserstein", "gradient_penalty"),
}
PENALISED = {name for name, (_, penalty) in PLAYS.items() if penalty != "none"}
DIRECTIONS, POINTS, TILES, STAGES, FAIR, NEAR = 32, 256, 16, 4, 0.2, 3.0
GATE_DIGITS, GATE_DISTANCE, GATE_COPY = 7.0, 4.0, 0.8
Games = AxisOf[Annotated[str, OneOf(PLAYS)]]
ManySeeds = Annotated[Seeds, Field(min_length=2)]


class Players(Section):
    """Two networks and their training."""

    games: Games = Field(default=tuple(PLAYS), description="games")
    learning_rates: AxisOf[Rate] = Field(default=(0.003, 0.01), description="rates of Adam, of both players")
    seeds: ManySeeds = Field(default=(0, 1, 2, 3, 4, 5), description="one pair of players a seed")
    depth: Count = Field(default=2, description="hidden layers of each player")
    width: Count = Field(default=64, description="units of each")
    latents: Count = Field(default=2, description="numbers of noise that make a sample")
    batch: Count = Field(default=64, description="real rows a step, and as many generated")
    steps: Count = Field(default=2000, description="steps of each player, a multiple of records")
    records: Annotated[int, Field(ge=STAGES, le=1000)] = Field(default=10, description="measurements on the way")
    samples: Annotated[int, Field(ge=POINTS)] = Field(default=1024, description="samples to measure")
    r1: Rate = Field(default=0.1, description="weight of |slope|² at real rows")
    gradient_penalty: Rate = Field(default=0.3, description="weight of (|slope| - 1)² between real and generated")

    @model_validator(mode="after")
    def _records_fit(self) -> Self:
        if self.steps % self.records:
            raise refuse("records", self.records, f"a divisor of steps = {self.steps}")
        return self


class Mixture(Players):
    """Normal distributions in the plane."""

    layout: Annotated[str, OneOf(LAYOUTS)] = Field(default="ring", description="where the modes lie")
    modes: Annotated[int, Field(ge=2, le=400)] = Field(default=8, description="how many they are")
    radius: Rate = Field(default=2.0, description="of the ring, or half a side of the grid")
    deviation: Rate = Field(default=0.1, description="standard deviation of a mode")

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if PLAIN not in self.games or not PENALISED & set(self.games):
            raise refuse("games", list(self.games), f"{PLAIN!r}, to compare with, and a game with a penalty")
        if self.layout == "grid" and math.isqrt(self.modes) ** 2 != self.modes:
            raise refuse("modes", self.modes, "a square number for a grid")
        return self


class Digits(Players):
    """Handwritten digits."""

    games: Games = Field(default=tuple(PLAYS)[:3], description="games")
    learning_rates: AxisOf[Rate] = Field(default=(0.001,), description="rates of Adam, of both players")
    seeds: ManySeeds = Field(default=(0, 1, 2, 3), description="one pair of players a seed")
    width: Count = Field(default=128, description="units of each")
    latents: Count = Field(default=16, description="numbers of noise that make a sample")
    steps: Count = Field(default=3000, description="steps of each player, a multiple of records")
    batch: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=64, description="real rows a step, and as many generated"
    )
    samples: Annotated[int, Field(ge=POINTS, le=350)] = Field(default=320, description="as many as held-out digits")


class Config(ExperimentConfig):
    """What to measure."""

    mixture: Mixture = Field(default=Mixture(), description="normal distributions in the plane")
    digits: Digits = Field(default=Digits(), description="handwritten digits")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Train players on a mixture and on digits."""
    dataset, common = digits(config), {"dtype": config.precision}
    known, held_out = dataset.features[dataset.train], dataset.features[dataset.validation]
    over_time = dict.fromkeys(("modes", "good", "distance", "nearest"), ("record",))
    plane = run(
        partial(on_mixture, sizes=config.mixture), _axes(config.mixture), name="mixture", **common,
        dimensions={**over_time, "samples": ("record", "sample", "axis"), "points": ("sample", "axis")},
    )  # fmt: skip
    images = run(
        partial(on_digits, sizes=config.digits), _axes(config.digits), name="digits", **common,
        shared={"known": known, "held_out": held_out, "labels": dataset.targets[dataset.train],
                "answers": dataset.targets[dataset.validation]},
        dimensions={**over_time, "shares": ("record", "digit"), "samples": ("record", "sample", "pixel")},
    )  # fmt: skip
    return study.join(mixture=plane, digits=images.assign(data=(("sample", "pixel"), held_out[:TILES])))


def _axes(sizes: Players) -> list[Any]:
    return [study.axis("game", sizes.games), study.axis("rate", sizes.learning_rates), study.axis("seed", sizes.seeds)]


def digits(config: Config) -> data.Dataset:
    """Return the digits, with pixels from 0 to 1."""
    dataset = data.split(data.load("digits", constant="keep", collinear="keep"), validation=0.2, test=0.0)
    return dataset._replace(features=dataset.features.astype(config.precision))


def duel(
    key: Key, rows: data.Batches, columns: int, squash: Callable[[Array], Array], look: Callable[[Array], Any],
    *, game: str, rate: Array, sizes: Players,
) -> dict[str, Array]:  # fmt: skip
    """Train a discriminator and a generator of rows in turn; `look` measures samples of the same noise on the way."""
    make = partial(nn.stack, sizes.depth, sizes.width, activation=nn.ACTIVATIONS["relu"],
                   initialiser=nn.INITIALISERS["he_normal"], dtype=rate.dtype)  # fmt: skip
    rules, penalty = PLAYS[game]
    weight = {"none": 0.0, "r1": sizes.r1, "gradient_penalty": sizes.gradient_penalty}[penalty]
    generator, discriminator = make(outputs=columns), make(outputs=1)

    def init(key: Key) -> Any:
        keys = jax.random.split(key)
        return {"discriminator": discriminator.init(keys[0], (columns,)),
                "generator": generator.init(keys[1], (sizes.latents,))}  # fmt: skip

    def judge(params: Any, x: Array) -> Array:
        return discriminator.apply(params, x)[:, 0]

    def sample(params: Any, z: Array) -> Array:
        return squash(generator.apply(params, z))

    def loss(params: Any, given: Any) -> Array:
        x, z, share = given
        total = losses_of(GAMES[rules], judge, sample, params, x, z)
        made = jax.lax.stop_gradient(sample(params["generator"], z))
        return total + weight * PENALTIES[penalty](partial(judge, params["discriminator"]), x, made, share)

    def fresh(draw: Any, *shape: int) -> data.Batches:
        return data.fresh(lambda key, count: draw(key, (count, sizes.batch, *shape), rate.dtype))

    run_key, noise_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (sizes.samples, sizes.latents), rate.dtype)
    batches = data.together(rows, fresh(jax.random.normal, sizes.latents), fresh(jax.random.uniform))
    adam = optim.descent("adam", rate, b1=0.5, b2=0.9)
    turns = optim.alternating(optim.frozen(adam, ["generator.*"]), optim.frozen(adam, ["discriminator.*"]))
    trace = make_run(
        Problem(init, loss, batches), turns, steps=sizes.steps, record_every=sizes.steps // sizes.records,
        probes={"seen": lambda objective, params, info: look(sample(params["generator"], noise))},
    )(run_key)  # fmt: skip
    return {**trace.probes["seen"], "status": trace.status, "diverged_at": trace.diverged_at}


def on_mixture(key: Key, *, game: str, rate: Array, sizes: Mixture) -> dict[str, Array]:
    """Train on a mixture of normal distributions, drawn anew for every step."""
    draw = partial(mixture, layout=sizes.layout, modes=sizes.modes, radius=sizes.radius, noise=sizes.deviation,
                   dtype=rate.dtype)  # fmt: skip
    places = centres(sizes.layout, sizes.modes, sizes.radius, rate.dtype)
    run_key, *keys = jax.random.split(key, 3)
    held_out, other = (draw(own, sizes.samples)[0] for own in keys)
    angle = jnp.pi * jnp.arange(DIRECTIONS, dtype=rate.dtype) / DIRECTIONS
    directions = jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def look(x: Array) -> dict[str, Array]:
        hit = jnp.linalg.norm(x[:, None] - places[None], axis=-1) < NEAR * sizes.deviation
        covered = hit.sum(axis=0) >= FAIR * sizes.samples / sizes.modes
        return {"modes": covered.mean(dtype=x.dtype), "good": hit.any(axis=1).mean(dtype=x.dtype),
                "distance": sliced_wasserstein(x, held_out, directions), "samples": x[:POINTS]}  # fmt: skip

    rows = data.fresh(lambda key, count: draw(key, count * sizes.batch)[0].reshape(count, sizes.batch, 2))
    found = duel(run_key, rows, 2, lambda x: x, look, game=game, rate=rate, sizes=sizes)
    return {**found, "floor": sliced_wasserstein(held_out, other, directions), "points": held_out[:POINTS]}


def on_digits(
    key: Key, known: Array, held_out: Array, labels: Array, answers: Array, *, game: str, rate: Array, sizes: Digits
) -> dict[str, Array]:
    """Train on handwritten digits, and let each sample's nearest training digit say which one it is."""
    run_key, direction_key = jax.random.split(key)
    directions = jax.random.normal(direction_key, (known.shape[1], DIRECTIONS), known.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=0, keepdims=True)
    real, other = held_out[: sizes.samples], known[:: len(known) // sizes.samples][: sizes.samples]

    def nearest(x: Array) -> tuple[Array, Array]:
        square = jnp.sum(x**2, axis=1)[:, None] - 2 * x @ known.T + jnp.sum(known**2, axis=1)[None, :]
        return jnp.median(jnp.sqrt(jnp.maximum(square.min(axis=1), 0))), labels[square.argmin(axis=1)]

    usual, named = nearest(held_out)

    def look(x: Array) -> dict[str, Array]:
        away, made = nearest(x)
        return {"shares": jax.nn.one_hot(made, 10, dtype=x.dtype).mean(axis=0), "nearest": away / usual,
                "distance": sliced_wasserstein(x, real, directions), "samples": x[:TILES]}  # fmt: skip

    rows = data.minibatches(known, sizes.batch)
    found = duel(run_key, rows, known.shape[1], jax.nn.sigmoid, look, game=game, rate=rate, sizes=sizes)
    return {**found, "floor": sliced_wasserstein(other, real, directions), "accuracy": jnp.mean(named == answers)}


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Compare the games on the mixture, and judge the digits."""
    plane, images = (study.part(results, name) for name in ("mixture", "digits"))
    return (*_mixture_verdicts(plane), *_digit_verdicts(images))


def late(found: "xarray.Dataset", name: str) -> "xarray.DataArray":
    """Return the mean over the second half of training and all rates, by game and seed; NaN where a run diverged."""
    values = found[name].where(found.status == 0).isel(record=slice(found.sizes["record"] // 2, None))
    means: xarray.DataArray = values.mean(["record", "rate"], skipna=False)
    return means


def _mixture_verdicts(plane: "xarray.Dataset") -> tuple[Verdict, Verdict]:
    verdicts = []
    for name, sign, claim, what in (
        ("modes", 1, "cover more modes than", "share of modes"),
        ("distance", -1, "lie nearer to the data than", "sliced Wasserstein distance"),
    ):
        values = late(plane, name)
        others = values.sel(game=[one for one in values.game.values if one in PENALISED])
        gained = study.interval(sign * (others - values.sel(game=PLAIN)))
        least = float((gained.mean - gained.half).values.min())
        told = ", ".join(f"{one} {float(values.sel(game=one).mean()):.3f}" for one in values.game.values)
        verdicts.append(Verdict(
            f"on the mixture the penalised games {claim} the plain non-saturating one", least > 0, least, 0.0,
            f"least lower end of the 95 % intervals of paired differences over {values.sizes['seed']} seeds; {what}: "
            f"{told}"))  # fmt: skip
    return verdicts[0], verdicts[1]


def effective(shares: "xarray.DataArray") -> "xarray.DataArray":
    """Return exp(entropy) of the classes: 10 where all are made alike, 1 where one is."""
    entropy = -(shares * np.log(shares.where(shares > 0, 1.0))).sum("digit", skipna=False)
    return entropy.copy(data=np.exp(entropy.values))


def _digit_verdicts(images: "xarray.Dataset") -> tuple[Verdict, Verdict, Verdict]:
    last = images[["shares", "distance", "nearest", "floor"]].where(images.status == 0).isel(record=-1)
    classes, far = study.interval(effective(last.shares)), study.interval(last.distance / last.floor)
    count, distance = (classes.mean - classes.half).values, (far.mean + far.half).values
    accuracy, nearest, runs = float(images.accuracy.values.flat[0]), last.nearest.values, f"{last.sizes['seed']} seeds"

    def by_game(values: "xarray.DataArray") -> str:
        means = values.mean("rate")
        return ", ".join(f"{one} {float(means.sel(game=one)):.2f}" for one in means.game.values)

    return (
        Verdict("every game makes most of the ten digits", bool(count.min() >= GATE_DIGITS), float(count.min()),
                GATE_DIGITS, f"least lower end of the 95 % intervals of exp(entropy) over {runs}; "
                f"{by_game(classes.mean)}; the nearest neighbour names {accuracy:.1%} of held-out digits"),
        Verdict("generated digits are near to held-out ones, as a sample", bool(distance.max() <= GATE_DISTANCE),
                float(distance.max()), GATE_DISTANCE, "largest upper end of the 95 % intervals of the sliced "
                f"Wasserstein distance, in that of training digits, over {runs}; {by_game(far.mean)}"),
        Verdict("generated digits are no copies", bool(nearest.min() >= GATE_COPY), float(nearest.min()), GATE_COPY,
                "least median distance to the nearest training digit, in that of held-out digits; "
                f"{by_game(last.nearest.mean('seed'))}"),
    )  # fmt: skip


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw samples over time, and what is measured of them."""
    plane, images = (study.part(results, name) for name in ("mixture", "digits"))
    return {"mixture": _draw_mixture(config, plane), "digits": _draw_digits(config, images),
            "measures": _draw_measures(config, plane, images)}  # fmt: skip


def middling(found: "xarray.Dataset", game: str) -> "xarray.Dataset":
    """Return the run of a game, at the largest rate, whose late distance is the median one: not the best."""
    one = found.sel(game=game, rate=[float(found.rate.max())])
    order = np.argsort(late(one, "distance").values)
    return one.isel(rate=0, seed=int(order[(len(order) - 1) // 2]))


def stages(sizes: Players) -> tuple[np.ndarray, np.ndarray]:
    """Return the records to draw, thinning out towards the end, and their steps."""
    chosen = np.unique(np.rint(np.geomspace(1, sizes.records, STAGES)).astype(int) - 1)
    return chosen, (chosen + 1) * (sizes.steps // sizes.records)


def _draw_mixture(config: Config, plane: "xarray.Dataset") -> "Figure":
    chosen, steps = stages(config.mixture)
    games = list(plane.game.values)
    figure, panels = plots.figure(
        len(games), len(chosen) + 1, width=10.5, height=2.1 * len(games), share_x=True, share_y=True,
        caption=f"Samples over training, of the median one of {plane.sizes['seed']} seeds by distance from the data, "
        f"at the rate {float(plane.rate.max()):g}; on the right {POINTS} points of the data.",
    )  # fmt: skip
    reach = 1.6 * config.mixture.radius
    for number, name in enumerate(games):
        one = middling(plane, name)
        clouds = [*one.samples.isel(record=chosen).values, one.points.values]
        titles = [*(f"step {step:,}" for step in steps), "data"]
        for place, (panel, cloud, title) in enumerate(zip(panels[number], clouds, titles, strict=True)):
            panel.plot(*cloud.T, ".", markersize=3, alpha=0.5, color=plots.colour(7 if title == "data" else number))
            panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
            plots.finish(panel, x="", y="" if place else name.replace(", ", ",\n"), title="" if number else title)
    return figure


def _draw_digits(config: Config, images: "xarray.Dataset") -> "Figure":
    chosen, steps = stages(config.digits)
    figure, ((panel,),) = plots.figure(
        1, 1, width=9.0, height=0.4 + 0.45 * (1 + len(chosen) * images.sizes["game"]),
        caption="Held-out digits, and what a generator makes of one and the same noise over training: of each game the "
        f"median one of {images.sizes['seed']} seeds by distance from the data.",
    )  # fmt: skip
    rows, names = [images.data.values], ["held-out digits"]
    for game in images.game.values:
        rows += list(middling(images, game).samples.isel(record=chosen).values)
        names += [f"{game}, step {steps[0]:,}", *(f"{step:,}" for step in steps[1:])]
    canvas = np.full((len(rows), 9, TILES, 9), np.nan)
    canvas[:, :8, :, :8] = np.stack(rows).reshape(-1, TILES, 8, 8).transpose(0, 2, 1, 3)
    panel.imshow(canvas.reshape(9 * len(rows), -1)[:-1, :-1], cmap="gray_r", vmin=0, vmax=1)
    panel.set_yticks(3.5 + 9 * np.arange(len(rows)), names)
    panel.set_xticks([])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.grid(False)
    return figure


def _draw_measures(config: Config, plane: "xarray.Dataset", images: "xarray.Dataset") -> "Figure":
    figure, panels = plots.figure(
        2, 3, width=12.5, height=6.6, caption="Medians and quartiles over seeds, at the largest rate. Above: the "
        "mixture; below: digits. Dotted: two samples of the data; held-out digits; all ten digits alike.",
    )  # fmt: skip
    images = images.assign(classes=effective(images.shares))
    shown = (
        (plane, config.mixture, ("modes", "share of modes covered", 1.0), ("good", "share of samples near a mode", 1.0),
         ("distance", "distance from the data", float(plane.floor.median()))),
        (images, config.digits, ("classes", "digits made, in effect", 10.0),
         ("nearest", "nearest training digit / usual", 1.0),
         ("distance", "distance from the data", float(images.floor.median()))),
    )  # fmt: skip
    for row, (found, sizes, *names) in zip(panels, shown, strict=True):
        steps = sizes.steps // sizes.records * (1 + np.arange(sizes.records))
        for panel, (name, label, bound) in zip(row, names, strict=True):
            values = found[name].where(found.status == 0).sel(rate=found.rate.max())
            for number, game in enumerate(found.game.values):
                plots.band(panel, steps, values.sel(game=game), over="seed", label=str(game), position=number)
            plots.threshold(panel, bound)
            if name == "distance":
                plots.logarithmic(panel)
            plots.finish(panel, x="step", y=label, legend="inside" if panel is row[-1] else "none")
    return figure


EXPERIMENT = Experiment("adversarial", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
