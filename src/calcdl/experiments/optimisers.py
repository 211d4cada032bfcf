r"""Which optimiser, at which learning rate, and where does each become unstable?

Question. Every first-order optimiser turns the same gradient into another step. What do they gain, what do they cost,
and can the largest learning rate of each be told from its code?

Mathematics. Near a minimum with curvature λ an update rule is a linear map of what it carries, parameter and state:

    z' = A(η λ) z,    stable while the spectral radius of A is below 1.

Gradient descent: η λ < 2. Heavy ball with momentum b: 2 (1 + b). Nesterov: 2 (1 + b) / (1 + 2 b). Adam at the minimum:
2 ε (1 + b1) / (1 - b1), because only ε divides its step there: it does not settle, it circles at about its rate. Rules
whose step does not shrink with the gradient (sign, Lion, Rprop) have no such limit. A is read off the Optax code.

Claim. The predicted limit is where real runs begin to leave the minimum, within 1 %, for every optimiser that has one.
On Rosenbrock's valley momentum gets lower than plain descent, each at its best rate. On digits every rule learns at its
best rate; they differ in what a wrong rate costs, and in memory and time.

Command. python -m calcdl.experiments.optimisers configs/optimisers.toml
"""

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import data, nn, study
from calcdl.calculus.expressions import parse
from calcdl.lab import landscapes, panels, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, Count, ExperimentConfig, Finite, OneOf, Rate, Readable, Section, Seeds, refuse
from calcdl.optim.descent import descent
from calcdl.optim.optimisers import OPTIMISERS
from calcdl.optim.solver import minimise
from calcdl.theory import stability
from calcdl.train import Problem, make_run
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

# Of rules that are the same at a minimum, one.
DISTINCT = ("sgd", "momentum", "nesterov", "optimistic_gradient_descent", "polyak_sgd", "adagrad", "adadelta",
            "rmsprop", "adam", "nadam", "adabelief", "yogi", "adan", "adopt", "madgrad", "prodigy", "lion", "lamb",
            "fromage", "novograd")  # fmt: skip
SELECTED = ("sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam", "nadam", "adabelief", "lion",
            "lamb")  # fmt: skip
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
WITHIN, LANES, ROUNDS, DECADES = 0.01, 129, 3, (-16, 8)
AT_REST, PUSHED, SMALL, LEFT = 10_000, 4_000, 1e-60, 1e-54
REPEATS, STEPS_A_CALL, A_ROW = 3, 5, 6
FUNCTIONS = ("(1 - x)**2 + 100*(y - x**2)**2", "(x**2 + y - 11)**2 + (x + y**2 - 7)**2")

OptimiserName = Annotated[str, OneOf(OPTIMISERS)]
OfXY = Annotated[str, Readable(partial(parse, variables=("x", "y")), "a formula in x and y")]


class Limits(Section):
    """Where each optimiser becomes unstable on a parabola."""

    optimisers: AxisOf[OptimiserName] = Field(default=DISTINCT, description="optimisers")
    curvature: Rate = Field(default=1.0, description="second derivative of the parabola")


class Classics(Section):
    """Two classical functions, without noise."""

    optimisers: AxisOf[OptimiserName] = Field(default=SELECTED, description="optimisers")
    functions: AxisOf[OfXY] = Field(default=FUNCTIONS, description="formulas in x and y")
    starts: tuple[tuple[Finite, Finite], ...] = Field(default=((-1.2, 1.0), (0.0, 0.0)), description="starts on each")
    learning_rates: AxisOf[Rate] = Field(default=RATES, description="rates")
    steps: tuple[Count, ...] = Field(default=(1000, 100), description="steps on each")


class Digits(Section):
    """A network learns handwritten digits, minibatch by minibatch."""

    optimisers: AxisOf[OptimiserName] = Field(default=(*SELECTED, "muon"), description="optimisers")
    learning_rates: AxisOf[Rate] = Field(default=RATES[2:], description="rates")
    seeds: Seeds = Field(default=(0, 1, 2), description="one run a seed and setting")
    width: Count = Field(default=32, description="hidden units")
    steps: Count = Field(default=150, description="steps, a multiple of record_every")
    record_every: Count = Field(default=10, description="steps between measurements on the held-out rows")
    batch: Count = Field(default=64, description="examples a step")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float64"] = Field(default="float64", description="of limits and classics; digits are float32")
    limits: Limits = Field(default=Limits(), description="stability")
    classics: Classics = Field(default=Classics(), description="functions of two variables")
    digits: Digits = Field(default=Digits(), description="a network")
    matrix: Count = Field(default=256, description="side of the matrix of parameters on which a step is timed")

    @model_validator(mode="after")
    def _lists_fit(self) -> Self:
        digits, classics = self.digits, self.classics
        if digits.steps % digits.record_every:
            raise refuse("digits.steps", digits.steps, f"a multiple of record_every = {digits.record_every}")
        for name, values in (("starts", classics.starts), ("steps", classics.steps)):
            if len(values) != len(classics.functions):
                raise refuse(f"classics.{name}", values, f"{len(classics.functions)} values, one for each function")
        return self


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Find the limits, descend the classics, train the network, and weigh the states."""
    classics, digits, matrix = config.classics, config.digits, config.matrix
    told = dict(zip(classics.functions, zip(classics.starts, classics.steps, strict=True), strict=True))
    function, seed = study.axis("function", classics.functions), study.axis("seed", digits.seeds)
    limits = run(partial(limit, curvature=config.limits.curvature), [study.axis("optimiser", config.limits.optimisers)],
                 name="limits", dtype="float64")  # fmt: skip
    runs = run(partial(descended, told=told), [function, *_axes(classics)], name="classics", dtype="float64",
               dimensions={"value": ("step",), "path": ("step", "variable")})  # fmt: skip
    networks = run(partial(learned, given=digits), [*_axes(digits), seed], name="digits", shared=digits_rows(),
                   dimensions=dict.fromkeys(("loss", "held_out_loss", "accuracy"), ("step",)))  # fmt: skip
    runs = runs.assign_coords(step=np.arange(runs.sizes["step"]))
    networks = networks.assign_coords(step=np.arange(digits.record_every, digits.steps + 1, digits.record_every))
    copies, milliseconds = np.transpose([cost(name, matrix) for name in digits.optimisers])
    networks = networks.assign(copies=("optimiser", copies), milliseconds=("optimiser", milliseconds))
    return study.join(limits=limits, classics=runs, digits=networks)


def _axes(section: Classics | Digits) -> list[study.Axis]:
    return [study.axis("optimiser", section.optimisers), study.axis("learning_rate", section.learning_rates)]


def build(name: str, learning_rate: Array) -> Any:
    """Return the Optax transformation of an optimiser with its default hyperparameters."""
    rule = OPTIMISERS[name]
    return rule.build(learning_rate, **{key: field.default for key, field in rule.hyperparameters.items()})


def limit(key: Key, *, optimiser: str, curvature: float) -> dict[str, Array]:
    """Predict where an optimiser becomes unstable, and find where its runs do."""
    bend = jnp.float64(curvature)
    predicted = stability.largest_stable_step(partial(build, optimiser), curvature=bend)
    return {"predicted": predicted.learning_rate, "kind": predicted.status, "measured": border(optimiser, bend)}


def border(optimiser: str, curvature: Array) -> Array:
    """Bracket the first rate at which a run at rest leaves the minimum when pushed: 0 if all do, infinite if none."""

    def leaves(log_rate: Array) -> Any:
        solver = descent(optimiser, jnp.exp(log_rate))

        def step(index: Array, carry: Any) -> Any:
            x, state, far = carry
            x = jnp.where(index < AT_REST, 0.0, jnp.where(index == AT_REST, SMALL, x))
            x, state, _ = solver.step(lambda x: curvature * x[0] ** 2 / 2, x, state)
            return x, state, jnp.where(index < AT_REST, 0.0, jnp.maximum(far, jnp.abs(x[0])))

        still = jnp.zeros(1, curvature.dtype)
        *_, far = jax.lax.fori_loop(0, AT_REST + PUSHED, step, (still, solver.init(still), still[0]))
        return ~(far < LEFT)

    def narrow(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        lower, upper, outcome = carry
        logs = lower + (upper - lower) * jnp.linspace(0, 1, LANES, dtype=curvature.dtype)
        gone = jax.vmap(leaves)(logs)
        first = jnp.where(jnp.any(gone), jnp.argmax(gone), LANES)
        seen = jnp.where(first == 0, 0.0, jnp.where(first == LANES, jnp.inf, 1.0))
        ends = logs[jnp.clip(first - 1, 0, LANES - 1)], logs[jnp.clip(first, 0, LANES - 1)]
        return *ends, jnp.where(index == 0, seen, outcome)

    lowest, highest = (decade * np.log(10) - jnp.log(curvature) for decade in DECADES)
    lower, upper, outcome = jax.lax.fori_loop(0, ROUNDS, narrow, (lowest, highest, jnp.ones_like(curvature)))
    return jnp.where(outcome == 1, jnp.exp((lower + upper) / 2), outcome)


def descended(key: Key, *, function: str, optimiser: str, learning_rate: Array, told: Any) -> dict[str, Any]:
    """Minimise a classic; a run that leaves the finite numbers stays where it was seen last."""
    (start, steps), expression = told[function], parse(function, ("x", "y"))
    solver, x = descent(optimiser, learning_rate), jnp.asarray(start, learning_rate.dtype)
    run = minimise(lambda x: expression(*x), x, solver, steps=steps, tolerance=0.0, trace=("value", "params"))
    return {"value": run.trace.value, "path": run.trace.params, "end": run.value, "ended": run.status}


def digits_rows() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return features and labels of the training rows and of the held-out rows, standardised by the former."""
    dataset = data.load("digits", constant="keep", collinear="keep")
    dataset, _ = data.standardise(data.split(dataset, validation=0.2, test=0.0), constant="keep")
    return {"train": data.rows(dataset, "train"), "held_out": data.rows(dataset, "validation")}


def learned(
    key: Key, train: Any, held_out: Any, *, optimiser: str, learning_rate: Array, given: Digits
) -> dict[str, Array]:
    """Train a network of one hidden layer and look at the held-out rows now and then."""
    relu, initialiser = nn.activations.ACTIVATIONS["relu"], nn.initialisers.INITIALISERS["he_normal"]
    network, (x, labels) = nn.stack(1, given.width, 10, relu, initialiser), held_out

    def watch(objective: Any, params: Any, info: Any) -> dict[str, Array]:
        logits = network.apply(params, x)
        loss = jnp.mean(nn.losses.softmax_cross_entropy(logits, labels))
        hit = jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=x.dtype)
        return {"held_out_loss": jnp.where(jnp.isnan(loss), jnp.inf, loss), "accuracy": hit}

    problem = Problem(
        init=lambda key: network.init(key, x.shape[1:]),
        loss=lambda params, rows: jnp.mean(nn.losses.softmax_cross_entropy(network.apply(params, rows[0]), rows[1])),
        batches=data.minibatches(train, given.batch),
    )
    lengths = {"steps": given.steps, "record_every": given.record_every}
    trace = make_run(problem, descent(optimiser, learning_rate), **lengths, probes={"held_out": watch})(key)
    return {"loss": trace.loss, **trace.probes["held_out"], "status": trace.status, "diverged_at": trace.diverged_at}


def cost(optimiser: str, side: int) -> tuple[float, float]:
    """Return how many copies of the parameters the state holds, and the milliseconds of a step on this machine."""
    params = {"weight": jnp.ones((side, side), jnp.float32), "bias": jnp.ones(side, jnp.float32)}
    solver = descent(optimiser, 1e-3)
    state = solver.init(params)
    copies = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / sum(leaf.nbytes for leaf in params.values())

    def step(_: Array, carry: Any) -> Any:
        return solver.step(lambda p: jnp.sum(p["weight"] ** 2) + jnp.sum(p["bias"] ** 2), *carry)[:2]

    several = jax.jit(lambda carry: jax.lax.fori_loop(0, STEPS_A_CALL, step, carry))
    taken = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        jax.block_until_ready(several((params, state)))
        taken.append(time.perf_counter() - begin)
    return float(copies), 1e3 * min(taken[1:]) / STEPS_A_CALL


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold limits against theory, momentum against plain descent, and every rule against the digits."""
    limits, classics, digits = (study.part(results, name) for name in ("limits", "classics", "digits"))
    has_one = limits.kind == stability.LIMITED
    limited, others = (limits.isel(optimiser=np.flatnonzero(which)) for which in (has_one, ~has_one))
    return (
        *([_limit_verdict(limited)] if has_one.any() else []),
        *([_other_verdict(others)] if not has_one.all() else []),
        *_momentum_verdict(classics),
        _digits_verdict(digits),
    )


def _limit_verdict(limited: "xarray.Dataset") -> Verdict:
    off = np.abs(limited.measured / limited.predicted - 1).fillna(np.inf).to_series()
    told = ", ".join(f"{name} {found:.4g}" for name, found in limited.measured.to_series().items())
    claim = f"the learning rate at which runs leave the minimum is the one read off the code, for {len(off)} optimisers"
    evidence = f"largest relative difference, that of {off.idxmax()}; found: {told}"
    return Verdict(claim, bool(off.max() <= WITHIN), float(off.max()), WITHIN, evidence)


def _other_verdict(others: "xarray.Dataset") -> Verdict:
    kinds, found = others.kind.to_series(), others.measured.to_series()
    free, stuck = kinds == stability.UNLIMITED, kinds == stability.NOT_PROPORTIONAL
    wrong = float((found[free] < np.inf).sum() + (found[stuck] > 0).sum())
    told = "; ".join(f"{name}: {stability.STATUSES[kind].split(',')[0]}" for name, kind in kinds.items())
    claim = "what the theory calls stable at every rate never leaves; whose step does not shrink leaves at every rate"
    return Verdict(
        claim, wrong == 0, wrong, 0.0, f"optimisers of which that is not so, of {free.sum() + stuck.sum()}; {told}"
    )


def _momentum_verdict(classics: "xarray.Dataset") -> list[Verdict]:
    best = classics.end.isel(function=0).min("learning_rate").to_series()
    if not {"sgd", "momentum", "nesterov"} <= {*best.index}:
        return []
    ratio = float(max(best["momentum"], best["nesterov"]) / best["sgd"])
    told = ", ".join(f"{name} {value:.3g}" for name, value in best.sort_values().items())
    claim = (
        f"on {classics.function.values[0]} momentum and Nesterov get lower than plain descent, each at its best rate"
    )
    evidence = f"ratio of the worse of the two to plain descent; values at the end: {told}"
    return [Verdict(claim, ratio < 1, ratio, 1.0, evidence)]


def _digits_verdict(digits: "xarray.Dataset") -> Verdict:
    hits = panels.median(digits.accuracy.isel(step=-1), digits.status == 0).fillna(0.0)
    best, at = hits.max("learning_rate").to_series(), hits.idxmax("learning_rate").to_series()
    told = ", ".join(f"{name} {best[name]:.3f} at {at[name]:g}" for name in best.index)
    evidence = f"least held-out accuracy, medians over seeds after {int(digits.step[-1])} steps: {told}"
    return Verdict("every optimiser learns digits at its best rate", best.min() >= 0.9, best.min(), 0.9, evidence)


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the sensitivity to the rate, the losses by step, the limits, the paths, and the costs."""
    classics, digits = study.part(results, "classics"), study.part(results, "digits")
    return {
        "sensitivity": _draw_curves(classics, digits, by_rate=True),
        "limits": _draw_limits(config, study.part(results, "limits")),
        "digits": _draw_digits(digits),
        "by_step": _draw_curves(classics, digits, by_rate=False),
        **{f"paths_{number + 1}": _draw_paths(config, classics, number) for number in range(len(classics.function))},
        "costs": _draw_costs(config, digits),
    }


def _draw_curves(classics: "xarray.Dataset", digits: "xarray.Dataset", *, by_rate: bool) -> "Figure":
    what = "What is left at the end, by learning rate: a curve that is low and wide forgives a wrong rate"
    what = what if by_rate else "What is left, by step, at the best rate of each"
    caption = f"{what}. Digits: medians over seeds, where at least half of the runs stayed finite. Grey: the others."
    names = list(dict.fromkeys([*classics.optimiser.values, *digits.optimiser.values]))
    losses = panels.median(digits.held_out_loss, digits.status == 0)
    tables = {text: classics.value.sel(function=text).dropna("step", how="all") for text in classics.function.values}
    rows, columns = -(-len(names) // A_ROW), len(tables) + 1
    figure, grid = plots.figure(rows, columns, width=2.0 + 3.4 * columns, height=3.2 * rows, caption=caption)
    for number, axes in enumerate(grid.flat):
        title, table = [*tables.items(), ("digits", losses)][number % columns]
        chosen = names[number // columns * A_ROW :][:A_ROW]
        for name in sorted(table.optimiser.values, key=chosen.__contains__):
            ends = table.sel(optimiser=name).isel(step=-1)
            best = table.sel(optimiser=name).isel(learning_rate=int(ends.fillna(np.inf).argmin("learning_rate")))
            x, y = (ends.learning_rate, ends) if by_rate else (best.step, best)
            look = panels.look(chosen.index(name)) if name in chosen else {"color": "#DDDDDD", "linewidth": 0.8}
            axes.plot(x, y, **look, markersize=4, markevery=1 if len(x) < 30 else 0.1)
        if title == "digits":
            for position, name in enumerate(chosen):
                axes.plot([], [], **panels.look(position), label=name)
        plots.logarithmic(axes, "xy" if by_rate else "y")
        axes.set_ylim(*((0.08, 10.0) if title == "digits" else (1e-15, 1e4)))
        label = "held-out loss (nats)" if title == "digits" else "value"
        plots.finish(axes, x="learning rate" if by_rate else "step", y=label, title=title, legend="right")
    return figure


def _draw_digits(digits: "xarray.Dataset") -> "Figure":
    caption = (
        f"Held-out accuracy after {int(digits.step[-1])} steps, medians over seeds; in brackets how many runs stayed "
        "finite where not all did. A row that is dark in many columns forgives a wrong rate."
    )
    last, rows = digits.accuracy.isel(step=-1), digits.sizes["optimiser"]
    figure, ((axes,),) = plots.figure(1, 1, width=9.0, height=1.0 + 0.3 * rows, caption=caption)
    panels.table(axes, last, digits.status == 0, form="{:.2f}", title="accuracy on digits", limits=(0.6, 1.0))
    return figure


def _draw_limits(config: Config, limits: "xarray.Dataset") -> "Figure":
    caption = (
        f"The learning rate at which a run at rest in a parabola of curvature {config.limits.curvature:g} leaves it "
        "when pushed. Dot: bisected on real runs; ring: read off the optimiser's code. Grey: why there is no limit."
    )
    table = limits.to_dataframe()
    table = table.assign(shown=table.predicted.where(table.kind == stability.LIMITED)).sort_values("shown")
    figure, ((axes,),) = plots.figure(1, 1, width=9.0, height=1.0 + 0.24 * len(table), caption=caption)
    axes.plot(table.measured.where(table.shown > 0), range(len(table)), "o", color=plots.colour(0), markersize=5)
    axes.plot(table.shown, range(len(table)), "o", markersize=10, markerfacecolor="none", markeredgecolor="#000000")
    plots.logarithmic(axes, "x")
    for row, kind in enumerate(table.kind):
        if kind != stability.LIMITED:
            words = stability.STATUSES[kind].removeprefix("no limit: ").split(", so")[0].split(", but")[0]
            axes.annotate(words, (0.02, row), xycoords=axes.get_yaxis_transform(), color="#777777", va="center",
                          fontsize="small")  # fmt: skip
    axes.set_yticks(range(len(table)), table.index, fontsize="small")
    plots.finish(axes, x="learning rate", y="", legend="none")
    return figure


def _draw_paths(config: Config, classics: "xarray.Dataset", number: int) -> "Figure":
    text, steps = str(classics.function.values[number]), config.classics.steps[number]
    expression, start = parse(text, ("x", "y")), np.asarray(config.classics.starts[number])
    runs = classics.sel(function=text).isel(step=slice(steps + 1))
    runs = runs.isel(learning_rate=runs.end.fillna(np.inf).argmin("learning_rate"))
    ends = runs.path.isel(step=-1).transpose("optimiser", "variable").values
    near = ends[np.abs(ends - start).max(axis=1) < 10]
    mesh = landscapes.square(np.concatenate([start[None], near]), margin=0.35)
    caption = f"{text}: {steps:,} steps at each optimiser's own best rate of those tried."
    figure, drawn = landscapes.grid(len(ends), 4, side=2.9, caption=caption)
    for axes, name in zip(drawn, runs.optimiser.values, strict=True):
        one = runs.sel(optimiser=name)
        landscapes.plane(axes, lambda points: expression(points[0], points[1]), [one.path.values], mesh=mesh)
        title = f"{name}, rate {float(one.learning_rate):g}\nvalue {float(one.end):.2g}"
        plots.finish(axes, x="x", y="y", title=title, legend="none")
    return figure


def _draw_costs(config: Config, digits: "xarray.Dataset") -> "Figure":
    caption = (
        f"Left: the state, in copies of the parameters. Right: a step on {config.matrix} x {config.matrix} parameters, "
        "gradient of a sum of squares included, at best; other work on the machine slows it."
    )
    names = digits.optimiser.values
    figure, ((left, right),) = plots.figure(1, 2, width=9.5, height=1.0 + 0.3 * len(names), caption=caption)
    for axes, values, label in ((left, digits.copies, "copies"), (right, digits.milliseconds, "ms a step")):
        axes.barh(np.arange(len(names)), values, color=plots.colour(0))
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        plots.finish(axes, x=label, y="", legend="none")
    plots.logarithmic(right, "x")
    return figure


EXPERIMENT = Experiment("optimisers", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
