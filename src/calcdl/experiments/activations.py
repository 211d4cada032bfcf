r"""Which activation learns fastest, and what has its slope to do with it?

Question. An activation enters training twice: its values bound what a network can say, and every layer multiplies the
gradient by its slope. What do the two predict for one unit, and for a network on real data?

Mathematics. One unit :math:`\phi(w x + b)` learns :math:`t = 2 x + 1` from fresh normal x. Whatever w and b are, its
mean square error is at least that of the nearest values in the range of :math:`\phi`,

    E[max(t - greatest, 0)²] + E[max(least - t, 0)²],    t ~ N(1, 4).

With the identity the mean squares p, q of the errors of w and b obey, for n examples a step and rate η, exactly

    p' = ((1 - 2η)² + 8η²/n) p + (4η²/n) q,    q' = (4η²/n) p + (1 - 2η)² q;

the expected loss is p + q and shrinks for η < 1 / (1 + (1 + √2)/n): noise lowers the limit 2/L = 1. Under cross-entropy
a gradient is at most the values before a weight times the weights behind it: where values are bounded, weights grow at
most like a power of the number of steps.

Claim. Slopes by `jax.grad` are the closed forms. The identity follows its recursion; no run gets below the bound of its
range, but PReLU learns to be linear and gets below that of ReLU. On digits sigmoid needs more steps than tanh, the same
function up to scale and shift, four times as steep; bounded activations do not diverge.

Command. python -m calcdl.experiments.activations configs/activations.toml
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import data, diagnostics, nn, optim, study
from calcdl.calculus.quadrature import gaussian_expectation
from calcdl.lab import panels, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, OneOf, Rate, Section, Seeds, refuse
from calcdl.theory import one_unit
from calcdl.train import Problem, make_run
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

TARGET_SLOPE, TARGET_INTERCEPT, CLASSICAL_RATE, SHOWN = 2.0, 1.0, 0.01, (1e-2, 20.0)
TRAINED = ("identity", "sigmoid", "tanh", "relu", "leaky_relu", "prelu", "elu", "gelu")
KINKS = {"hard_sigmoid": (-3.0, 3.0), "relu": (0.0,), "leaky_relu": (0.0,), "prelu": (0.0,), "selu": (0.0,)}
# Least and greatest value, rounded outwards, of those that do not take every value.
RANGES = {
    "sigmoid": (0.0, 1.0), "hard_sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "softsign": (-1.0, 1.0), "erf": (-1.0, 1.0),
    "relu": (0.0, np.inf), "softplus": (0.0, np.inf), "elu": (-1.0, np.inf), "selu": (-1.7581, np.inf),
    "gelu": (-0.16998, np.inf), "gelu_tanh": (-0.17005, np.inf), "silu": (-0.27847, np.inf), "mish": (-0.30885, np.inf),
}  # fmt: skip
BOUNDED = tuple(name for name, (_, greatest) in RANGES.items() if greatest < np.inf)

ActivationName = Annotated[str, OneOf(nn.activations.ACTIVATIONS)]
InitialiserName = Annotated[str, OneOf(nn.initialisers.INITIALISERS)]


class Curves(Section):
    """The zoo on one page."""

    activations: AxisOf[ActivationName] = Field(default=tuple(nn.activations.ACTIVATIONS), description="activations")
    reach: Rate = Field(default=6.0, description="greatest size of a pre-activation")
    points: Annotated[int, Field(ge=2, le=2000)] = Field(default=241, description="pre-activations, evenly spaced")


class Line(Section):
    """The classical comparison: one unit, one line."""

    activations: AxisOf[ActivationName] = Field(default=TRAINED, description="activations")
    learning_rates: AxisOf[Rate] = Field(default=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0), description="rates")
    seeds: Seeds = Field(default=tuple(range(128)), description="one run a seed and setting")
    steps: Count = Field(default=100, description="steps")
    batch: Count = Field(default=10, description="fresh normal inputs a step")


class Digits(Section):
    """The same question asked of a network on handwritten digits."""

    activations: AxisOf[ActivationName] = Field(default=TRAINED, description="activations")
    learning_rates: AxisOf[Rate] = Field(default=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0), description="rates")
    seeds: Seeds = Field(default=tuple(range(4)), description="one run a seed and setting")
    depth: Count = Field(default=3, description="hidden layers")
    width: Count = Field(default=64, description="units a hidden layer")
    initialiser: InitialiserName = Field(default="he_normal", description="how weights are drawn")
    steps: Count = Field(default=300, description="steps, a multiple of record_every")
    record_every: Count = Field(default=10, description="steps between measurements on the held-out rows")
    batch: Count = Field(default=64, description="examples a step")
    target_loss: Rate = Field(default=0.3, description="held-out cross-entropy to be reached, in nats")

    @model_validator(mode="after")
    def _records_fit(self) -> Self:
        if self.steps % self.record_every:
            raise refuse("steps", self.steps, f"a multiple of record_every = {self.record_every}")
        return self


class Config(ExperimentConfig):
    """What to measure."""

    curves: Curves = Field(default=Curves(), description="values and slopes")
    line: Line = Field(default=Line(), description="one unit learns a line")
    digits: Digits = Field(default=Digits(), description="a network learns digits")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Evaluate the zoo, train one unit, train a network."""
    rows = digits_rows(config)
    curves, line, digits, run = config.curves, config.line, config.digits, partial(run, dtype=config.precision)
    grid = study.axis("x", np.linspace(-curves.reach, curves.reach, curves.points))
    zoo = run(curve, [study.axis("activation", curves.activations), grid], name="curves")
    unit = partial(line_run, steps=line.steps, batch=line.batch)
    units = run(unit, _axes(line), name="line", dimensions=dict.fromkeys(("loss", "slope"), ("step",)))
    by_step = dict.fromkeys(("loss", "held_out_loss", "accuracy"), ("step",))
    by_layer = dict.fromkeys(("dead", "saturated", "slope"), ("step", "layer"))
    network = partial(digits_run, **digits.model_dump(exclude={"activations", "learning_rates", "seeds"}))
    networks = run(network, _axes(digits), name="digits", shared=rows, dimensions=by_step | by_layer)
    recorded = np.arange(digits.record_every, digits.steps + 1, digits.record_every)
    networks = networks.assign_coords(step=recorded, layer=np.arange(1, digits.depth + 1))
    return study.join(curves=zoo, line=units.assign_coords(step=np.arange(1, line.steps + 1)), digits=networks)


def _axes(section: Line | Digits) -> list[study.Axis]:
    rates, seeds = study.axis("learning_rate", section.learning_rates), study.axis("seed", section.seeds)
    return [study.axis("activation", section.activations), rates, seeds]


def digits_rows(config: Config) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return features and labels of the training rows and of the held-out rows, standardised by the former."""
    dataset = data.load("digits", constant="keep", collinear="keep")
    dataset, _ = data.standardise(data.split(dataset, validation=0.2, test=0.0), constant="keep")
    if config.digits.batch > len(dataset.train):
        most = f"expected at most the {len(dataset.train)} training rows"
        raise ConfigError(f"digits.batch: got {config.digits.batch}; {most}")
    known, held_out = (data.rows(dataset, part, config.precision) for part in ("train", "validation"))
    return {"train": known, "held_out": held_out}


def curve(key: Key, *, x: Array, activation: str) -> dict[str, Array]:
    """Evaluate an activation and its slope, by `jax.grad` and in closed form."""
    unit = nn.activations.ACTIVATIONS[activation]
    point = (x, *learned(unit, x.dtype))
    gradient = jax.grad(unit.function)(*point)
    return {"value": unit.function(*point), "gradient": gradient, "derivative": unit.derivative(*point)}


def learned(unit: nn.activations.Activation, dtype: Any) -> tuple[Array, ...]:
    """Return what an activation takes beside x: where a learned slope starts, else nothing."""
    return () if unit.learned is None else (jnp.asarray(unit.learned, dtype),)


def line_run(key: Key, *, learning_rate: Array, activation: str, steps: int, batch: int) -> dict[str, Array]:
    """Train one unit; written as products of scalars, so that thousands of runs are one element-wise program."""
    unit, dtype = nn.activations.ACTIVATIONS[activation], learning_rate.dtype

    def error(params: tuple[Array, ...], x: Array) -> Array:
        weight, bias, *slope = params
        return nn.losses.squared_error(unit.function(weight * x + bias, *slope), TARGET_SLOPE * x + TARGET_INTERCEPT)

    problem = Problem(
        init=lambda key: (*jax.random.uniform(key, (2,), dtype, -1.0, 1.0), *learned(unit, dtype)),
        loss=lambda params, x: jnp.mean(error(params, x)),
        batches=data.fresh(lambda key, count: jax.random.normal(key, (count, batch), dtype)),
    )
    probes = {"slope": lambda objective, params, info: (*params, jnp.zeros((), dtype))[2]}  # 0 where none is learned
    trace = make_run(problem, optim.descent("sgd", learning_rate), steps=steps, probes=probes)(key)
    expected = gaussian_expectation(partial(error, trace.params), scale=jnp.ones((), dtype), breakpoints=(0.0,))
    expected = jnp.where(jnp.isnan(expected), jnp.inf, expected)  # weights so large that it overflows on the way
    return {"loss": trace.loss, "expected_loss": expected, **trace.probes, "status": trace.status,
            "diverged_at": trace.diverged_at}  # fmt: skip


def digits_run(
    key: Key, train: tuple[Array, Array], held_out: tuple[Array, Array], *, learning_rate: Array, activation: str,
    depth: int, width: int, initialiser: str, steps: int, record_every: int, batch: int, target_loss: float,
) -> dict[str, Array]:  # fmt: skip
    """Train a network by stochastic gradient descent and watch its units on the held-out rows."""
    (x, labels), unit, initialise = held_out, nn.ACTIVATIONS[activation], nn.INITIALISERS[initialiser]
    network = nn.stack(depth, width, 10, unit, initialise, dtype=x.dtype, tap=diagnostics.tap)

    def watch(objective: Any, params: Any, info: Any) -> dict[str, Array]:
        logits, seen = diagnostics.observe(network.apply, ["*.preactivation"])(params, x)
        layers = [params["first"], params["hidden"]] if depth > 1 else [params["first"]]
        slope = jnp.concatenate([layer.get("slope", jnp.zeros(0, x.dtype)).ravel() for layer in layers])
        h = diagnostics.by_layer(seen, "preactivation")
        steepness = unit.derivative(h, *([] if unit.learned is None else [slope[:, None, None]]))
        loss = jnp.mean(nn.losses.softmax_cross_entropy(logits, labels))
        return {
            "held_out_loss": jnp.where(jnp.isnan(loss), jnp.inf, loss),
            "accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=x.dtype),
            "dead": diagnostics.dead_units(steepness),
            "saturated": diagnostics.saturated_units(steepness, unit.lipschitz),
            "slope": jnp.zeros(depth, x.dtype) if unit.learned is None else slope,
        }

    problem = Problem(
        init=lambda key: network.init(key, x.shape[1:]),
        loss=lambda params, rows: jnp.mean(nn.losses.softmax_cross_entropy(network.apply(params, rows[0]), rows[1])),
        batches=data.minibatches(train, batch),
    )
    solver = optim.descent("sgd", learning_rate)
    trace = make_run(problem, solver, steps=steps, record_every=record_every, probes={"held_out": watch})(key)
    seen = trace.probes["held_out"]
    reached = (seen["held_out_loss"] <= target_loss) & (trace.status == 0)
    needed = jnp.where(jnp.any(reached), (jnp.argmax(reached).astype(jnp.int32) + 1) * record_every, jnp.int32(-1))
    return {"loss": trace.loss, **seen, "steps_to_target": needed,
            "status": trace.status, "diverged_at": trace.diverged_at}  # fmt: skip


def bound(activation: str) -> float:
    """Return the least expected loss that the range of an activation allows on the line."""
    return float(one_unit.least_loss(*RANGES.get(activation, (-np.inf, np.inf)), TARGET_SLOPE, TARGET_INTERCEPT))


def identity_loss(rate: float, steps: int, batch: int) -> np.ndarray:
    """Return the mean loss of the identity before every step, by theory; the start is uniform on -1..1."""
    return np.asarray(one_unit.identity_loss(rate, steps, batch, TARGET_SLOPE, TARGET_INTERCEPT, start_variance=1 / 3))


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold slopes, one unit and the network against what the mathematics says; what was not run is not judged."""
    line, digits = study.part(results, "line"), study.part(results, "digits")
    units, layers = {*config.line.activations}, {*config.digits.activations}
    return (
        _slope_verdict(config, study.part(results, "curves")),
        *([_identity_verdict(config, line)] if "identity" in units and len(config.line.seeds) >= 8 else []),
        *([_range_verdict(line)] if units & {*RANGES} else []),
        *([_prelu_verdict(line)] if "prelu" in units else []),
        *([_steepness_verdict(config, digits)] if {"sigmoid", "tanh"} <= layers else []),
        *([_bounded_verdict(digits)] if layers & {*BOUNDED} else []),
    )


def _slope_verdict(config: Config, curves: "xarray.Dataset") -> Verdict:
    names, x = curves.activation.values, curves.x.values
    kinks = np.array([[any(abs(at - kink) < 1e-5 for kink in KINKS.get(name, ())) for at in x] for name in names])
    difference = np.abs(curves.gradient - curves.derivative).transpose("activation", "x").values
    worst, gate = np.where(kinks, 0.0, difference).max(axis=1), 2e-6 if config.precision == "float32" else 1e-13
    claim = f"in {config.precision} the slope by jax.grad is the closed form, for all {len(names)} activations"
    places = f"{len(x)} points from {x[0]:g} to {x[-1]:g}, {kinks.sum()} at kinks left out"
    evidence = f"largest difference, that of {names[worst.argmax()]}, at {places}"
    return Verdict(claim, bool(worst.max() <= gate), float(worst.max()), gate, evidence)


def _identity_verdict(config: Config, line: "xarray.Dataset") -> Verdict:
    from scipy.special import stdtrit

    runs, batch, deviations = len(config.line.seeds), config.line.batch, []
    for rate in config.line.learning_rates:
        # Later on rare runs rule the mean: the logarithm of the loss varies by 32 a^2 k / n.
        steps = int(np.sum(np.arange(config.line.steps) * 32 * rate**2 / batch <= 0.5))
        loss = line.loss.sel(activation="identity", learning_rate=rate).transpose("seed", "step").values[:, :steps]
        error = loss.std(axis=0, ddof=1) / runs**0.5
        deviations += [*np.abs(loss.mean(axis=0) - identity_loss(rate, steps, batch)) / error]
    worst, allowed = float(np.max(deviations)), float(stdtrit(runs - 1, 1 - 5e-6))
    claim = "the mean loss of the identity follows the exact recursion, in standard errors"
    border = f"it shrinks at rates below {one_unit.identity_limit(batch):.3f}; the bound has a chance of 1 in 100,000"
    evidence = f"largest of {len(deviations)} deviations of a mean over {runs} runs; {border}"
    return Verdict(claim, worst <= allowed, worst, allowed, evidence)


def _range_verdict(line: "xarray.Dataset") -> Verdict:
    best = line.expected_loss.where(line.status == 0).min(("learning_rate", "seed")).to_series()
    spare = {name: best[name] - bound(name) for name in best.index if name in RANGES and best[name] < np.inf}
    least = min(spare.values(), default=np.nan)
    told = [f"{name} {best[name]:.4f} (bound {bound(name):.4f})" for name in spare]
    claim = "no run gets below the least loss that the range of its activation allows"
    evidence = f"least expected loss (by quadrature) of all runs and rates: {', '.join(told)}"
    return Verdict(claim, least >= -1e-3, least, -1e-3, evidence)


def _prelu_verdict(line: "xarray.Dataset") -> Verdict:
    runs = line.sel(activation="prelu")
    losses = panels.median(runs.expected_loss, runs.status == 0)
    best, loss = runs.sel(learning_rate=losses.fillna(np.inf).idxmin("learning_rate")), float(losses.min())
    ended, slope = best.status == 0, best.slope.isel(step=-1)
    claim = "PReLU, whose slope can become that of the identity, gets below the bound of ReLU"
    counts = f"{int(ended.sum())} of {ended.size} runs ended, {int((ended & (slope < 0)).sum())} as a V (slope < 0)"
    typical = f"the slope is {float(panels.median(slope, ended)):.3f}"
    evidence = f"medians at the best rate, {float(best.learning_rate):g}: {typical}; {counts}"
    return Verdict(claim, loss < bound("relu"), loss, bound("relu"), evidence)


def _steepness_verdict(config: Config, digits: "xarray.Dataset") -> Verdict:
    fewest = panels.median(digits.steps_to_target, digits.steps_to_target >= 0).min("learning_rate").to_series()
    ratio = float(fewest.fillna(np.inf)["sigmoid"] / fewest["tanh"])
    told = [f"{name} {'never' if np.isnan(steps) else int(steps)}" for name, steps in fewest.items()]
    claim = "sigmoid needs more steps than tanh, the same function up to scale and shift with four times the slope"
    evidence = f"ratio of median steps to {config.digits.target_loss:g} nats, each at its best rate: {', '.join(told)}"
    return Verdict(claim, ratio > 1, ratio, 1.0, evidence)


def _bounded_verdict(digits: "xarray.Dataset") -> Verdict:
    lost = (digits.status != 0).sum(("learning_rate", "seed")).to_series()
    of_bounded = float(lost[[name for name in lost.index if name in BOUNDED]].sum())
    told = ", ".join(f"{name} {count}" for name, count in lost.items())
    evidence = f"runs that left the finite numbers, of {digits.status.size // len(lost)} of each activation: {told}"
    return Verdict("bounded activations do not diverge at these rates", of_bounded == 0, of_bounded, 0.0, evidence)


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the zoo, one unit, the network, its units and its learned slopes."""
    line, digits = study.part(results, "line"), study.part(results, "digits")
    over = "median and quartiles over {} seeds, a colour a learning rate".format
    network = f"{config.digits.depth} layers learn digits: {over(digits.sizes['seed'])}"
    by_rate = partial(panels.multiples, by="learning_rate", along="step")
    figures = {"curves": _draw_curves(study.part(results, "curves")), "line": _draw_line(config, line)}
    caption = f"One unit learns 2x + 1: {over(line.sizes['seed'])}. A dead ReLU stays at 5, the target's mean square."
    figures["line_by_step"], _ = by_rate(line.loss, line.status, across="activation", y="loss of the batch",
                                         limits=SHOWN, logarithmic=True, caption=caption)  # fmt: skip
    figures["digits"] = _draw_tables(config, digits)
    figures["digits_by_step"], drawn = by_rate(digits.held_out_loss, digits.status, across="activation",
                                               y="held-out loss (nats)", limits=(0.05, 10.0), logarithmic=True,
                                               caption=f"{network}. Dotted: the target.")  # fmt: skip
    for axes in drawn:
        plots.threshold(axes, config.digits.target_loss)
    figures |= _draw_units(digits)
    if "prelu" in config.digits.activations:
        prelu, caption = digits.sel(activation="prelu"), f"Slopes that PReLU learns while {network}."
        figures["prelu"], _ = by_rate(prelu.slope, prelu.status, across="layer", y="learned slope", caption=caption)
    return figures


def _draw_curves(curves: "xarray.Dataset") -> "Figure":
    caption = "Values and slopes of the activations. Dashed: the slope in closed form, over that by jax.grad."
    figure, drawn = panels.grid(curves.sizes["activation"], caption=caption)
    for axes, name in zip(drawn, curves.activation.values, strict=True):
        one = curves.sel(activation=name)
        axes.plot(one.x, one.value, color=plots.colour(0))
        axes.plot(one.x, one.gradient, color=plots.colour(1), linewidth=3.0)
        plots.theory(axes, one.x, one.derivative)
        axes.set_ylim(-1.5, 2.5)
        plots.finish(axes, x="", y="", title=name, legend="none")
    panels.legend(figure, ["value", "slope"], title="")
    return figure


def _draw_line(config: Config, line: "xarray.Dataset") -> "Figure":
    rates, names = line.learning_rate.values, line.activation.values
    rate = rates[np.abs(np.log(rates / CLASSICAL_RATE)).argmin()]
    caption = (
        f"One unit learns 2x + 1, {line.sizes['seed']} seeds. Left: means; dashed: theory for the identity. Right: "
        f"medians above {SHOWN[0]:g}; dotted: the least that a range allows, and the rate where the identity diverges."
    )
    figure, ((by_step, by_rate),) = plots.figure(1, 2, width=10.5, height=4.2, share_y=True, caption=caption)
    for position, name in enumerate(names):
        one, look = line.sel(activation=name), panels.look(position)
        by_step.plot(line.step, one.loss.sel(learning_rate=rate).mean("seed", skipna=False), **look, markevery=0.1)
        by_rate.plot(rates, panels.median(one.expected_loss, one.status == 0).clip(SHOWN[0]), **look)
        by_rate.axhline(max(bound(name), SHOWN[0]), color=look["color"], linestyle=":")
    if "identity" in names:
        plots.theory(by_step, line.step, identity_loss(rate, config.line.steps, config.line.batch))
        plots.threshold(by_rate, one_unit.identity_limit(config.line.batch), along="x")
    plots.logarithmic(by_step)
    plots.logarithmic(by_rate, "xy")
    by_step.set_ylim(*SHOWN)
    plots.finish(by_step, x="step", y="mean square error", title=f"the classical rate, {rate:g}", legend="none")
    plots.finish(by_rate, x="learning rate", y="", title=f"after {config.line.steps} steps", legend="none")
    panels.legend(figure, names, title="activation", markers=True)
    return figure


def _draw_tables(config: Config, digits: "xarray.Dataset") -> "Figure":
    last, ended, most = digits.isel(step=-1), digits.status == 0, config.digits.steps
    caption = (
        f"After {most} steps: medians over the runs that ended, or reached the target, where at least half did; in "
        "brackets how many did where not all. Shares of units are those of the worst layer, on the held-out rows."
    )
    figure, drawn = plots.figure(2, 2, width=11.0, height=7.0, caption=caption)
    target = f"steps to a loss of {config.digits.target_loss:g} nats"
    for axes, values, good, title, form, limits in (
        (drawn[0, 0], last.accuracy, ended, "held-out accuracy", "{:.3f}", (0.5, 1.0)),
        (drawn[0, 1], last.steps_to_target, last.steps_to_target >= 0, target, "{:.0f}", (most, 0)),
        (drawn[1, 0], last.dead.max("layer"), ended, "share of dead units", "{:.2f}", (0, 1)),
        (drawn[1, 1], last.saturated.max("layer"), ended, "share of saturated units", "{:.2f}", (0, 1)),
    ):
        panels.table(axes, values, good, form=form, title=title, limits=limits)
    return figure


def _draw_units(digits: "xarray.Dataset") -> dict[str, "Figure"]:
    rates = digits.learning_rate
    own = rates.where((digits.status == 0).mean("seed") >= 0.5, 0.0).max("learning_rate").clip(float(rates.min()))
    names = [f"{name}, rate {float(rate):g}" for name, rate in zip(own.activation.values, own, strict=True)]
    units = digits.sel(learning_rate=own).assign_coords(activation=names)
    kinds = {"dead": "slope 0 on all held-out rows", "saturated": "slope below 5 % of the greatest on 95 % of the rows"}
    caption = "Units that are {} ({}), at the greatest rate at which half of the runs end: quartiles over seeds."
    by_activation = partial(panels.multiples, status=units.status, across="layer", by="activation", along="step")
    return {kind: by_activation(units[kind], y=f"share of {kind} units", caption=caption.format(kind, meaning))[0]
            for kind, meaning in kinds.items()}  # fmt: skip


EXPERIMENT = Experiment("activations", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
