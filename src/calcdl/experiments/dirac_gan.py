r"""Why does gradient descent turn in a game where it would arrive at a minimum, and what cures it?

Question. A generator and a discriminator each descend on a loss of their own. Do they arrive, and at which pace?

Mathematics. The data are the point 0, the generator is a point θ, the discriminator a line D(x) = ψ x. Near (0, 0) they
move along :math:`v = (a \psi, -a \theta)`, at right angles to where they are; a = 1/2, for a critic 1:

    a flow turns in circles: eigenvalues ± i a;   steps at once: 1 ± i h a, outwards at every rate;
    steps in turn, the discriminator first: of modulus 1 below h = 2 / a, round and round.

What damps ψ by γ (a penalty on the slope of D at the data, noise on both points) gives -γ/2 ± √(γ²/4 - a²); at once it
arrives for h a² < γ < 2/h + h a²/2, in turn for 0 < γ < 2/h - h a²/2. Every rule that looks ahead or remembers has a
characteristic polynomial. The non-saturating field pulls inwards a little: at once it comes to turn at the distance
√(2h), in turn 1 / r² grows by h/8 a step. Clipping, or a penalty that wants the slope 1, has no rest at (0, 0).

Claim. The factor a step and the period of all games, orders of moves, cures and rates are the polynomial's; what
arrives lies between the borders; from far away orbits stay, come nearer or leave as said.

Command. python -m calcdl.experiments.dirac_gan configs/dirac_gan.toml
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from calcdl import optim, study
from calcdl.calculus.expressions import parse
from calcdl.lab import landscapes, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ExperimentConfig, NonNegative, OneOf, Rate, Readable, Section, Seeds
from calcdl.nn import adversarial
from calcdl.theory import dirac_gan, games
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

CURES = {
    "none": "no cure", "r1": "penalty R1", "instance_noise": "instance noise", "consensus": "consensus",
    "extragradient": "extragradient", "optimistic": "optimistic", "negative_momentum": "negative momentum",
    "averaging": "averaging", "clipping": "clipping", "slope_one": "penalty on slope 1",
}  # fmt: skip
PACED = tuple(CURES)[:7]  # those with a factor a step
SLOW, MOVES = "non_saturating", {"simultaneous": "at once", "alternating": "in turn"}
PLAYERS, POINTS, ARROWS, WINDOW = ("generator", "discriminator"), 16, 13, 17
# Where a run starts that measures a step at the equilibrium, and between which distances it does: so near, double
# precision knows the linear part alone. With noise on the points terms of order 1 cancel, and cost the digits.
NEAR, NOISY = (1e-60, 1e-280, 1e-10), (1e-4, 1e-7, 1e-3)
GATE_PACE, GATE_CELLS, GATE_ANGLE, FLOOR = 1e-6, 0.99, 1e-12, 1e-3
GATE_ORBIT, GATE_SLOW, GATE_MEAN, GATE_AWAY, GATE_NEARER = 0.01, 0.05, 1.5, 5.0, 0.5


def rules_of(text: str) -> adversarial.Game:
    """Return a game by its name, or with a formula as the discriminator's loss by the logit of a generated point."""
    if text in adversarial.GAMES:
        return adversarial.GAMES[text]
    formula = parse(text, ("a",))
    return adversarial.Game(lambda a: formula(-a), formula, lambda a: -formula(a))


def one_of(texts: Sequence[str], number: Array) -> adversarial.Game:
    """Return the game of a number that is data, so that one program plays all of them."""
    told: Any = zip(*map(rules_of, texts), strict=True)
    return adversarial.Game(*(lambda a, one=one: jax.lax.select_n(number, *(loss(a) for loss in one)) for one in told))


GameName = Annotated[str, Readable(rules_of, f"one of {', '.join(adversarial.GAMES)}, or a formula of the logit a")]
Case = tuple[GameName, Annotated[str, OneOf(dirac_gan.TURNS)], Annotated[str, OneOf(tuple(CURES))]]
Side = Annotated[int, Field(ge=4, le=200)]
Steps = Annotated[int, Field(ge=20, le=10**6)]


class Strength(Section):
    """How strong cures are."""

    penalty: NonNegative = Field(default=0.5, description="of R1: twice the weight of the squared slope at the data")
    noise: NonNegative = Field(default=1.0, description="standard deviation of the noise on data and generator")
    consensus: NonNegative = Field(default=0.5, description="c of c/2 times the squared length of the field")
    momentum: Annotated[float, Field(gt=-1, lt=1)] = Field(default=-0.5, description="b of negative momentum")
    clip: Rate = Field(default=1.0, description="the largest slope of a clipped critic")
    slope_one: NonNegative = Field(default=0.3, description="weight of the squared distance of the slope from 1")


class Pace(Section):
    """Factor a step and period, close to the equilibrium."""

    games: AxisOf[GameName] = Field(default=tuple(adversarial.GAMES), description="names, or formulas of the logit a")
    cures: AxisOf[Annotated[str, OneOf(PACED)]] = Field(default=PACED, description="cures")
    rates: AxisOf[Rate] = Field(default=(0.05, 0.1, 0.2, 0.3, 0.4, 0.55, 0.7, 0.8, 1.05, 1.25), description="rates h")
    steps: Steps = Field(default=500, description="steps")


class Region(Section):
    """Where the penalty R1 makes descent arrive."""

    game: GameName = Field(default="saturating", description="a name, or a formula of the logit a")
    largest_rate: Rate = Field(default=4.4, description="right end of the map")
    largest_penalty: Rate = Field(default=4.4, description="upper end of the map")
    side: Side = Field(default=33, description="cells along a side")
    steps: Steps = Field(default=600, description="steps")


class Paths(Section):
    """Whole paths, from far away."""

    cases: AxisOf[Case] = Field(
        default=(
            ("saturating", "simultaneous", "none"), ("saturating", "alternating", "none"),
            ("non_saturating", "simultaneous", "none"), ("non_saturating", "alternating", "none"),
            ("saturating", "alternating", "averaging"), ("wasserstein", "alternating", "none"),
            ("wasserstein", "alternating", "clipping"), ("wasserstein", "alternating", "slope_one"),
            ("saturating", "simultaneous", "r1"), ("saturating", "simultaneous", "instance_noise"),
            ("saturating", "simultaneous", "extragradient"), ("saturating", "alternating", "negative_momentum"),
        ),
        description="game, order of moves and cure of every panel",
    )  # fmt: skip
    rate: Rate = Field(default=0.2, description="learning rate")
    radius: Rate = Field(default=1.5, description="distance of the start")
    steps: Steps = Field(default=800, description="steps")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float64"] = Field(default="float64", description="type of all numbers")
    seeds: Seeds = Field(default=(0, 1), description="of the direction in which every run starts")
    strength: Strength = Field(default=Strength(), description="how strong cures are")
    pace: Pace = Field(default=Pace(), description="factor a step and period")
    region: Region = Field(default=Region(), description="where descent arrives")
    paths: Paths = Field(default=Paths(), description="whole paths")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Play close to the equilibrium, over the map of rate and penalty, and from far away."""
    pace, region, paths = config.pace, config.region, config.paths
    run = partial(run, dtype=config.precision, shared={"strength": dict(config.strength)})
    turns, share = study.axis("turns", dirac_gan.TURNS), (np.arange(region.side) + 0.5) / region.side
    kinds = [study.axis("game", range(len(pace.games))), turns, study.axis("cure", pace.cures)]
    cells = [study.axis("rate", region.largest_rate * share), study.axis("penalty", region.largest_penalty * share)]
    seed, named = study.axis("seed", config.seeds), {"late": ("at", "player"), "closed": ("root", "power")}
    travel = partial(travelled, rate=paths.rate, radius=paths.radius, steps=paths.steps)
    return study.join(
        pace=run(partial(paced, told=pace.games, steps=pace.steps), [*kinds, study.axis("rate", pace.rates), seed],
                 name="pace", dimensions=named).assign_coords(game=list(pace.games)),
        region=run(partial(paced, told=(region.game,), steps=region.steps), [turns, *cells, seed], name="region",
                   dimensions=named),
        paths=run(travel, [study.axis("case", map("; ".join, paths.cases)), seed], name="paths", dimensions=named
                  | {"x": ("at", "player")} | dict.fromkeys(("field", "mesh"), ("place", "player"))),
    )  # fmt: skip


def losses_of(rules: adversarial.Game, cure: str, strength: Any) -> tuple[games.Losses, Any]:
    """Return the players' losses, whole; and the objective that is played, in which each sees the other held."""
    dtype = strength["penalty"].dtype
    normal = jax.scipy.special.ndtri((jnp.arange(POINTS, dtype=dtype) + 0.5) / POINTS)
    rows = strength["noise"] * normal / jnp.std(normal) if cure == "instance_noise" else jnp.zeros((1,), dtype)
    own = dirac_gan.losses(*rules, rows)

    def added(params: Any) -> Any:
        line = partial(jnp.multiply, params["discriminator"])
        if cure == "r1":
            return strength["penalty"] / 2 * adversarial.slope_penalty(line, rows)
        if cure == "slope_one":
            return strength["slope_one"] * adversarial.slope_penalty(line, rows, 1.0)
        if cure == "consensus":
            return strength["consensus"] / 2 * sum(v**2 for v in games.field(own)(params).values())
        return jnp.zeros((), dtype)

    whole = {name: partial(lambda loss, params: loss(params) + added(params), loss) for name, loss in own.items()}
    return whole, lambda params: adversarial.game(rules, jnp.multiply, jnp.add, params, rows, rows) + added(params)


def solver_of(turns: str, cure: str, rate: Array, strength: Any) -> optim.Solver:
    """Return what moves both players, at once or the discriminator first."""
    rule = {
        "extragradient": optim.extragradient(rate), "optimistic": optim.descent("optimistic_gradient_descent", rate),
        # A traced number is not held to the interval of what minimises.
        "negative_momentum": optim.descent("momentum", rate, momentum=strength["momentum"]),
    }.get(cure, optim.descent("sgd", rate))  # fmt: skip
    if turns == "alternating":
        rule = optim.alternating(optim.frozen(rule, PLAYERS[:1]), optim.frozen(rule, PLAYERS[1:]))
    if cure == "clipping":
        ends = {"generator": jnp.full_like(rate, jnp.inf), "discriminator": strength["clip"]}
        return optim.projected(rule, optim.projection("box", lower=jax.tree.map(jnp.negative, ends), upper=ends))
    return optim.averaged(rule) if cure == "averaging" else rule


def closed_form(rules: adversarial.Game, turns: str, cure: str, rate: Array, strength: Any) -> dict[str, Array]:
    """Return a, and a matrix whose eigenvalues are, by hand, the factors of a step at the equilibrium."""
    slope, bend = dirac_gan.logit_slopes(*rules, rate.dtype)
    damping: dict[str, Any] = {
        "r1": (0.0, strength["penalty"]), "instance_noise": (0.0, bend * strength["noise"] ** 2),
        "consensus": (strength["consensus"] * slope**2,) * 2,
    }  # fmt: skip
    polynomial = dirac_gan.recurrence(
        turns, rate, slope, damping.get(cure, (0.0, 0.0)), optimism=float(cure == "optimistic"),
        momentum=strength["momentum"] if cure == "negative_momentum" else 0.0, look_ahead=cure == "extragradient",
    )  # fmt: skip
    return {"slope": slope, "closed": dirac_gan.companion(polynomial)}


def played(key: Key, distance: float, objective: Any, solver: optim.Solver, steps: int) -> Array:
    """Return all places of a run from a distance: generator and discriminator."""
    angle = jax.random.uniform(key, (), jnp.float64, maxval=2 * np.pi)
    start = {"generator": distance * jnp.cos(angle), "discriminator": distance * jnp.sin(angle)}
    places: Any = optim.minimise(objective, start, solver, steps=steps, tolerance=0.0, trace=["params"]).trace.params
    return jnp.stack([places[name] for name in PLAYERS], axis=1)


def paced(
    key: Key, *, turns: str, rate: Array, strength: Any, told: tuple[str, ...], steps: int, game: Array | int = 0,
    cure: str = "r1", penalty: Array | None = None,
) -> dict[str, Array]:  # fmt: skip
    """Play close to the equilibrium, and say whether the last fifth of the steps is nearer to it than the first."""
    strength = strength if penalty is None else {**strength, "penalty": penalty}
    rules, near = one_of(told, jnp.int32(game)), NOISY if cure == "instance_noise" else NEAR
    objective, solver = losses_of(rules, cure, strength)[1], solver_of(turns, cure, rate, strength)
    places = played(key, near[0], objective, solver, steps)
    size, fifth = jnp.linalg.norm(places, axis=1), steps // 5
    late, nearer = games.last_between(places, *near[1:], WINDOW), jnp.max(size[-fifth:]) < jnp.max(size[:fifth])
    return {"late": late, "nearer": nearer} | closed_form(rules, turns, cure, rate, strength)


def travelled(key: Key, *, case: str, strength: Any, rate: float, radius: float, steps: int) -> dict[str, Array]:
    """Return a path from a distance, the field about the equilibrium, and a step at the equilibrium."""
    game, turns, cure = case.split("; ")
    rules, h = rules_of(game), jnp.asarray(rate, jnp.float64)
    losses, objective = losses_of(rules, cure, strength)
    side = radius * jnp.linspace(-1.5, 1.5, ARROWS)
    mesh = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    field = jax.vmap(lambda x: games.field(losses)(dict(zip(PLAYERS, x, strict=True))))(mesh)
    places = played(key, radius, objective, solver_of(turns, cure, h, strength), steps)
    told = {"x": places, "mesh": mesh, "field": jnp.stack([field[name] for name in PLAYERS], axis=1)}
    return told | closed_form(rules, turns, cure, h, strength)


def factors(runs: "xarray.Dataset") -> tuple[np.ndarray, np.ndarray]:
    """Return the leading factor a step of every run, as fitted to it and in closed form."""
    return games.leading(np.asarray(games.fitted_step(runs.late.values))), games.leading(runs.closed.values)


def borders(region: "xarray.Dataset", turns: str, rates: np.ndarray) -> np.ndarray:
    """Return the penalties between which descent arrives, a pair a rate."""
    slope = float(region.slope.values.flat[0])
    return np.array([dirac_gan.penalty_range(turns, rate, slope) for rate in rates])


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold factors, periods and borders against the closed forms, and paths against what is said of them."""
    pace, region, paths = (study.part(results, name) for name in ("pace", "region", "paths"))
    seen, known = factors(pace)
    (measured, told), angle = (np.log(np.maximum(np.abs(one), 1e-300)) for one in (seen, known)), np.angle(known)
    off = float((np.abs(measured - told) / np.maximum(np.abs(told), FLOOR)).max())
    turned = float((np.abs(np.angle(seen) - angle) / np.maximum(angle, FLOOR)).max())
    ends = np.array([borders(region, turns, region.rate.values) for turns in dirac_gan.TURNS])
    arriving = (ends[..., :1] < region.penalty.values) & (region.penalty.values < ends[..., 1:])
    right = float((region.nearer.values == arriving[..., None]).mean())
    return (
        Verdict("close to the equilibrium the distance changes by the closed form's factor a step", off <= GATE_PACE,
                off, GATE_PACE, f"largest relative difference of its logarithm over {seen.size:,} runs"),
        Verdict("the period of the rotation is that of the closed form", turned <= GATE_PACE, turned, GATE_PACE,
                f"largest relative difference of the angle a step; periods from {2 * np.pi / angle.max():.3g} on"),
        Verdict("penalty R1: what arrives is what lies between the borders in rate and penalty", right >= GATE_CELLS,
                right, GATE_CELLS, f"share of {region.nearer.size:,} runs; {int(region.nearer.sum()):,} come nearer"),
        *_path_verdicts(config.paths, paths),
    )  # fmt: skip


def _path_verdicts(config: Paths, paths: "xarray.Dataset") -> list[Verdict]:
    size, h = np.linalg.norm(paths.x.values, axis=-1), config.rate
    steps, quarter = np.arange(config.steps + 1), len(size.T) // 4
    length = np.linalg.norm(paths.field, axis=-1) * np.linalg.norm(paths.mesh, axis=-1)
    along = np.abs((paths.field * paths.mesh).sum("player").values) / np.maximum(length, 1e-300)
    nearer = size[..., -quarter:].max(axis=-1) / size[..., :quarter].max(axis=-1)
    mean = (steps * size).max(axis=-1) * h * paths.slope.values / (2 * config.radius)
    game, turns, cure = np.array([case.split("; ") for case in paths.case.values]).T
    free, at_once = (cure == "none") & (game != SLOW), turns == "simultaneous"
    laws = np.array([dirac_gan.non_saturating_distance(one, h, config.radius, steps) for one in turns])[:, None]
    told = [
        ("the flow of a minimax game is at right angles to the place: circles", free, along.max(axis=-1), GATE_ANGLE,
         "largest cosine between field and place"),
        ("at once, it is farther away after every step", free & at_once, (size[..., :-1] / size[..., 1:]).max(axis=-1),
         1.0, "largest distance before a step over that after it"),
        ("in turn, it stays on its orbit", free & ~at_once, np.abs(nearer - 1), GATE_ORBIT,
         "change of the largest distance from the first to the last quarter of the steps"),
        ("the non-saturating game comes to turn at sqrt(2 h), or creeps inwards: 1 / r^2 grows by h / 8 a step",
         (cure == "none") & (game == SLOW), np.abs(size / laws - 1)[..., -2 * quarter :].max(axis=-1), GATE_SLOW,
         "largest relative difference of the distance from its law, over the second half of the steps"),
        ("the mean of an orbit comes nearer as 1 / k", cure == "averaging", mean, GATE_MEAN,
         "largest k times the distance of the mean of k, over the diameter of the start over h a"),
        ("clipping, or a penalty on slope 1, never comes near", np.isin(cure, ("clipping", "slope_one")),
         config.radius / np.maximum(size[..., -2 * quarter :].min(axis=-1), 1e-300), GATE_AWAY,
         "distance of the start over the least of the second half"),
        ("cures come nearer", np.isin(cure, PACED[1:]), nearer, GATE_NEARER,
         "largest distance in the last over that in the first quarter of the steps"),
    ]  # fmt: skip
    return [
        Verdict(claim, bool((values[of] <= bound).all()), float(values[of].max()), bound,
                f"{evidence}, of {' and '.join(paths.case.values[of])}")
        for claim, of, values, bound, evidence in told if of.any()
    ]  # fmt: skip


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw paths in the field, the map, and factors by rate with what they make of a distance."""
    pace, region, paths = (study.part(results, name) for name in ("pace", "region", "paths"))
    return {"portraits": _draw_portraits(config.paths, paths), "region": _draw_region(region),
            "pace": _draw_pace(config.paths, pace, paths)}  # fmt: skip


def _draw_portraits(config: Paths, paths: "xarray.Dataset") -> "Figure":
    caption = (
        f"{config.steps} steps of size {config.rate:g} from the black dot; star: the generator at the data. Arrows: "
        "the field. At once descent leaves, in turn it circles; the non-saturating game goes to the dashed circle, "
        "radius sqrt(2 h), or creeps inwards; the mean of an orbit arrives. A critic circles, clipped or held to slope "
        "1 too. What damps the field, and rules that look ahead or back, spiral in."
    )
    figure, panels = landscapes.grid(len(paths.case), 4, side=2.7, caption=caption)
    reach, turn = 1.6 * config.radius, np.linspace(0, 2 * np.pi, 100)
    for place, (axes, case) in enumerate(zip(panels, paths.case.values, strict=True)):
        one, (game, turns, cure) = paths.isel(case=place, seed=0), case.split("; ")
        field = one.field.values / np.maximum(np.linalg.norm(one.field.values, axis=1, keepdims=True), 1e-12) ** 0.5
        axes.quiver(*one.mesh.values.T, *field.T, color="#AAAAAA", width=0.005, rasterized=True)
        axes.plot(*np.append(one.x.values[:80], one.x.values[80::2], axis=0).T, color=plots.colour(place // 4), lw=0.8)
        axes.plot(*one.x.values[:80].T, ".", color=plots.colour(place // 4), markersize=3)
        axes.plot(*one.x.values[0], "o", color="black")
        axes.plot(0, 0, "*", color="#F0E442", markeredgecolor="black", markersize=12, zorder=4)
        if (game, turns, cure) == (SLOW, "simultaneous", "none"):
            plots.theory(axes, (2 * config.rate) ** 0.5 * np.cos(turn), (2 * config.rate) ** 0.5 * np.sin(turn))
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        name = f"{game.replace('_', '-')}, {MOVES[turns]}\n{CURES[cure]}"
        plots.finish(axes, x="generator θ", y="discriminator ψ" if place % 4 == 0 else "", title=name)
    return figure


def _draw_region(region: "xarray.Dataset") -> "Figure":
    caption = (
        "Penalty R1: measured factor on the distance a step, close to the equilibrium; blue arrives, red leaves. "
        "Dashed: the borders of theory. At once, the penalty must exceed h a^2; in turn, none is too small."
    )
    figure, (panels,) = plots.figure(1, 2, width=11.0, height=4.6, caption=caption, share_y=True)
    factor = region.status.copy(data=np.abs(factors(region)[0])).max("seed")
    rates = np.linspace(1e-3, float(region.rate.max()), 200)
    for axes, turns in zip(panels, dirac_gan.TURNS, strict=True):
        shades = axes.pcolormesh(region.rate, region.penalty, factor.sel(turns=turns).T, cmap="RdBu_r", vmin=0, vmax=2,
                                 rasterized=True)  # fmt: skip
        ends = borders(region, turns, rates)
        plots.theory(axes, rates, np.where(ends[:, :1] <= ends[:, 1:], ends, np.nan))
        axes.set(xlim=(0, rates[-1]), ylim=(0, float(region.penalty.max())))
        plots.finish(axes, x="learning rate h", y="penalty", title=MOVES[turns], legend="none")
    figure.colorbar(shades, ax=panels[1], label="factor a step", extend="max")
    return figure


def _draw_pace(config: Paths, pace: "xarray.Dataset", paths: "xarray.Dataset") -> "Figure":
    game, steps = pace.game.values[0], np.arange(config.steps + 1)
    caption = (
        f"Left, middle: factor on the distance a step close to the equilibrium, {game} game; marks: measured. Right: "
        "distance by step from far away, median and quartiles. Dashed: theory; on the right from the middle of the run "
        "on, and for the non-saturating game its law of the squared distance."
    )
    figure, (panels,) = plots.figure(1, 3, width=14.0, height=4.4, caption=caption)
    seen, known = (pace.status.copy(data=np.abs(one)) for one in factors(pace))
    for (axes, turns), (place, cure) in product(
        zip(panels, dirac_gan.TURNS, strict=False), enumerate(pace.cure.values)
    ):
        one = {"game": game, "turns": turns, "cure": cure}
        axes.plot(pace.rate, seen.sel(one).median("seed"), color=plots.colour(place), marker=plots.marker(place),
                  linestyle="none", label=CURES[cure], markersize=5)  # fmt: skip
        plots.theory(axes, pace.rate, known.sel(one).isel(seed=0), label="")
        plots.finish(axes, x="learning rate h", y="factor a step", title=MOVES[turns])
    for place, case in enumerate(case for case in paths.case.values if case.split("; ")[2] in PACED):
        run, (game, turns, cure) = paths.sel(case=case), case.split("; ")
        size, half = np.linalg.norm(run.x.values, axis=-1), len(steps) // 2
        name = f"{game.replace('_', '-')}, {MOVES[turns]}: {CURES[cure]}"
        plots.band(panels[2], steps, size, over=0, label=name, position=place)
        if cure != "none":
            factor = np.abs(games.leading(run.closed.values[0]))
            line = np.median(size[:, half]) * factor ** (steps[half:] - half)
            plots.theory(panels[2], steps[half:], line, label="")
        elif game == SLOW:
            rest = dirac_gan.non_saturating_distance(turns, config.rate, config.radius, steps)
            plots.theory(panels[2], steps, rest, label="")
    plots.logarithmic(panels[2])
    panels[2].set_ylim(1e-3 * config.radius, 2 * config.radius)
    plots.finish(panels[2], x="step", y="distance from the equilibrium", legend="right")
    return figure


EXPERIMENT = Experiment("dirac_gan", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
