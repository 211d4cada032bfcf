r"""Can a learning rate and a penalty be learned by descent, and what does their derivative cost?

Question. The validation loss depends on the learning rate and the penalty through every step of training. How is that
derivative taken, do all ways agree, and does descending it find good values?

Mathematics. Ridge regression trains f(w, h) = mean (X w - y)² / 2 + e^h |w|² / 2, from 0, by w' = w - η ∇f(w). With the
validation loss v the total derivative is dv/dh = ∂v/∂h + (dw/dh)' ∂v/∂w, and dw/dh comes

    unrolled:  back through all K steps;    forward:  along with them, by the chain rule step by step;
    implicit:  from ∇f(w, h) = 0, dw/dh = -H⁻¹ ∂(∇f)/∂h;    closed form:  w = (X'X/n + e^h I)⁻¹ X'y/n.

Before training has converged the unrolled derivative is that of what training did, the implicit one belongs to no
minimum. The slowest part of either error decays like (1 - η μ)^K, that of the unrolled one times K. Kept iterates take
memory in proportion to K; with every √K-th kept and the rest made again it is √K, forward and implicit need none.

Claim. Unrolled, forward and implicit derivatives are the closed form to 1e-6. Descent on the validation loss over both
logarithms ends within 2 % of the best of a grid, from every start. Memory grows like K, √K, 1 and 1.

Command. python -m calcdl.experiments.hypergradients configs/hypergradients.toml
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import data, optim, study
from calcdl.calculus import derivatives
from calcdl.lab import panels, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, Rate, Section, refuse
from calcdl.optim.solver import CONVERGED, STEP_LIMIT
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

AGREEMENT = {"float64": 1e-6, "float32": 1e-2}
WAYS = {"unrolled": 0.5, "unrolled, all kept": 1.0, "forward": 0.0, "implicit": 0.0}  # powers of K in the memory
METHODS = tuple(optim.hypergradients.METHODS)
PATHS = {"path": ("point", "hyperparameter"), "validation": ("point",)}


class Agreement(Section):
    """One derivative, four ways."""

    penalties: AxisOf[Rate] = Field(default=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0), description="e^h")
    steps: AxisOf[Count] = Field(default=(50, 500, 1500, 3000), description="K, steps of training")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        for place, (before, after) in enumerate(zip(self.steps, self.steps[1:], strict=False), start=1):
            if after <= before:
                raise refuse(f"steps[{place}]", after, f"more than the {before} before it")
        return self


class Learning(Section):
    """Rate and penalty learned by descent on the validation loss."""

    steps: Count = Field(default=100, description="K, steps of training that are differentiated")
    learning_rates: AxisOf[Rate] = Field(default=(0.002, 0.02, 0.2), description="rates to start from")
    penalties: AxisOf[Rate] = Field(default=(0.001, 0.1, 3.0), description="penalties to start from")
    outer_steps: Count = Field(default=200, description="steps on the validation loss")
    outer_rate: Rate = Field(default=0.1, description="Adam's rate on the logarithms")
    divisions: Count = Field(default=8, description="random divisions of the rows into those of training and others")
    grid: Annotated[int, Field(ge=3, le=200)] = Field(default=41, description="points a side of the map")


class Memory(Section):
    """What the way back has to keep."""

    steps: AxisOf[Annotated[int, Field(ge=16, le=10**7)]] = Field(
        default=(256, 1024, 4096, 16384), description="K, steps of training"
    )
    parameters: Count = Field(default=1000, description="size of the model")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float32", "float64"] = Field(default="float64", description="type of all floating numbers")
    data: str = Field(default="diabetes", description="a bundled regression set, or a CSV or NPZ file")
    target: str = Field(default="", description="the column to predict, for a file; empty for one named target")
    agreement: Agreement = Field(default=Agreement(), description="agreement")
    learning: Learning = Field(default=Learning(), description="learning")
    memory: Memory = Field(default=Memory(), description="memory")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Compare the ways, learn rate and penalty from several starts, map the validation loss, weigh the programs."""
    rows, one, learning = observations(config), config.agreement, config.learning
    # One table of divisions for all studies: they are to see the same rows.
    orders = [np.random.default_rng(number).permutation(len(rows[1])) for number in range(learning.divisions)]
    run = partial(run, dtype=config.precision, shared={"rows": rows, "orders": np.asarray(orders, np.int32)})
    penalty = study.axis("penalty", one.penalties)
    axes = [study.axis("way", METHODS), study.axis("steps", one.steps, static=True), penalty]
    ways, closed = run(agreement, axes, name="ways"), run(closed_form, [penalty], name="closed")
    starts = [study.axis("learning_rate", learning.learning_rates), study.axis("penalty", learning.penalties)]
    sizes: Any = {"steps": learning.steps, "outer_steps": learning.outer_steps, "outer_rate": learning.outer_rate}
    division = study.axis("division", range(learning.divisions))
    learned = run(partial(learn, **sizes), [*starts, division], name="learned", dimensions=PATHS)
    side = np.linspace(0, 1, learning.grid)
    square = [study.axis(name, ends[0] * (ends[1] / ends[0]) ** side) for name, ends in spans(config).items()]
    chart = run(partial(chart_point, steps=learning.steps), [*square, division], name="chart")
    return study.join(
        ways=ways, closed=closed, memory=weigh(config), chart=chart,
        learned=learned.assign_coords(hyperparameter=["learning_rate", "penalty"]),
    )  # fmt: skip


def observations(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return standardised columns and targets."""
    dataset = data.load(config.data, config.target or None, "regression", collinear="keep")
    if len(dataset.targets) < 20:
        raise ConfigError(f"data: got {config.data!r} of {len(dataset.targets)} rows; expected at least 20")
    features = data.standardise(dataset)[0].features
    targets = (dataset.targets - dataset.targets.mean()) / dataset.targets.std()
    return features.astype(config.precision), targets.astype(config.precision)


def spans(config: Config) -> dict[str, tuple[float, float]]:
    """Return the ends of the map: rates up to the border of divergence, penalties around the starts."""
    features, _ = observations(config)
    border = 2 / float(np.linalg.eigvalsh(features.T @ features / len(features)).max())
    rates, penalties = config.learning.learning_rates, config.learning.penalties
    return {
        "learning_rate": (min(rates) / 2, max(border, *rates)),
        "penalty": (min(penalties) / 40, max(penalties) * 2),
    }


def divided(rows: tuple[Array, Array], order: Array) -> tuple[tuple[Array, Array], ...]:
    """Divide the rows in an order: half to train, a quarter to validate, a quarter to test."""
    x, y = rows
    half, quarter = len(x) // 2, len(x) // 4
    return tuple((x[at], y[at]) for at in (order[:half], order[half:-quarter], order[-quarter:]))


def half_mean_square(weights: Array, rows: tuple[Array, Array]) -> Array:
    """Return the mean of half the squared error."""
    return jnp.mean((rows[0] @ weights - rows[1]) ** 2) / 2


def ridge(weights: Array, logarithm: Array, rows: tuple[Array, Array]) -> Array:
    """Return the training loss: half the mean square and the penalty e^h |w|² / 2."""
    return half_mean_square(weights, rows) + jnp.exp(logarithm) * jnp.sum(weights**2) / 2


def agreement(
    key: Key, rows: tuple[Array, Array], orders: Array, *, way: str, steps: int, penalty: Array
) -> dict[str, Array]:
    """Differentiate the validation loss by the logarithm of the penalty, in one way, after some steps."""
    train, held_out, _ = divided(rows, orders[0])
    curvature = jnp.linalg.eigvalsh(train[0].T @ train[0] / len(train[0])) + penalty
    rate = 2 / (curvature[0] + curvature[-1])
    found = optim.hypergradient(
        lambda w, _: half_mean_square(w, held_out), lambda w, h: ridge(w, h, train), jnp.zeros_like(train[0][0]),
        jnp.log(penalty), solver=lambda _: optim.descent("sgd", rate), steps=steps, method=way, tolerance=0.0,
    )  # fmt: skip
    known = (found.status == STEP_LIMIT) | (found.status == CONVERGED)
    return {"gradient": found.gradient, "slope": found.gradient_norm, "status": jnp.where(known, 0, found.status),
            "factor": (curvature[-1] - curvature[0]) / (curvature[-1] + curvature[0])}  # fmt: skip


def closed_form(key: Key, rows: tuple[Array, Array], orders: Array, *, penalty: Array) -> dict[str, Array]:
    """Return the validation loss at the solved normal equations, and its derivative."""
    (x, y), held_out, _ = divided(rows, orders[0])

    def loss(h: Array) -> Array:
        matrix = x.T @ x / len(x) + jnp.exp(h) * jnp.eye(x.shape[1], dtype=x.dtype)
        return half_mean_square(jnp.linalg.solve(matrix, x.T @ y / len(x)), held_out)

    return {"loss": loss(jnp.log(penalty)), "gradient": derivatives.derivative(loss)(jnp.log(penalty))}


def trained_by(logarithms: Array, rows: tuple[Array, Array], steps: int) -> Array:
    """Return the weights after some steps, as a function of the logarithms of rate and penalty."""
    path = optim.unrolled(
        lambda w, h: ridge(w, h[1], rows), jnp.zeros_like(rows[0][0]),
        lambda h: optim.descent("sgd", jnp.exp(h[0])), steps=steps,
    )  # fmt: skip
    weights: Array = path(logarithms)[0]
    return weights


def learn(
    key: Key, rows: tuple[Array, Array], orders: Array, *, learning_rate: Array, penalty: Array, division: Array,
    steps: int, outer_steps: int, outer_rate: float,
) -> dict[str, Array]:  # fmt: skip
    """Descend the validation loss over the logarithms of rate and penalty, and test where that ends."""
    train, held_out, test = divided(rows, orders[division])
    start = jnp.log(jnp.stack([learning_rate, penalty]))
    found = optim.minimise(
        lambda h: half_mean_square(trained_by(h, train, steps), held_out), start, optim.descent("adam", outer_rate),
        steps=outer_steps, tolerance=0.0, trace=("value", "params"),
    )  # fmt: skip
    tested = {name: half_mean_square(trained_by(h, train, steps), test)
              for name, h in (("test_before", start), ("test_after", found.params))}  # fmt: skip
    ended = (found.status == STEP_LIMIT) | (found.status == CONVERGED)
    return {"path": jnp.exp(jnp.asarray(found.trace.params)), "validation": jnp.asarray(found.trace.value), **tested,
            "status": jnp.where(ended, 0, found.status)}  # fmt: skip


def chart_point(
    key: Key, rows: tuple[Array, Array], orders: Array, *, learning_rate: Array, penalty: Array, division: Array,
    steps: int,
) -> dict[str, Array]:  # fmt: skip
    """Return the validation loss at one point of the map; infinite where training diverged."""
    train, held_out, _ = divided(rows, orders[division])
    loss = half_mean_square(trained_by(jnp.log(jnp.stack([learning_rate, penalty])), train, steps), held_out)
    return {"validation": jnp.where(jnp.isfinite(loss), loss, jnp.inf)}


def weigh(config: Config) -> "xarray.Dataset":
    """Return what the compiled programs of every way need besides their arguments and results, in bytes."""
    import xarray

    counts, size, dtype = config.memory.steps, config.memory.parameters, jnp.dtype(config.precision)

    def loss(w: Array, h: Array) -> Array:
        return jnp.sum(jnp.cos(w) + h * w**2)

    def program(way: str, steps: int) -> Any:
        start, solver = jnp.ones(size, dtype), lambda _: optim.descent("sgd", 0.1)
        if way.startswith("unrolled"):
            path = optim.unrolled(loss, start, solver, steps=steps, remember=way != "unrolled")
            return jax.grad(lambda h: jnp.sum(path(h)[0]))
        return lambda h: optim.hypergradient(lambda w, _: jnp.sum(w), loss, start, h, solver=solver, steps=steps,
                                             method=way).gradient  # fmt: skip

    def measured(way: str, steps: int) -> int:
        sizes: Any = jax.jit(program(way, steps)).lower(jax.ShapeDtypeStruct((), dtype)).compile().memory_analysis()
        return int(sizes.temp_size_in_bytes)

    table = [[measured(way, steps) for steps in counts] for way in WAYS]
    return xarray.Dataset({"bytes": (("way", "steps"), np.asarray(table, np.float64))},
                          {"way": [*WAYS], "steps": [*counts]})  # fmt: skip


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold the ways against the closed form, the learned values against the map, and memory against its powers."""
    return (
        *_agreement_verdicts(config, results),
        _learning_verdict(config, results),
        *([_memory_verdict(results)] if max(config.memory.steps) >= 16 * min(config.memory.steps) else []),
    )


def errors(results: "xarray.Dataset") -> "xarray.DataArray":
    """Return the relative error of every way: by method, steps and penalty."""
    closed = study.part(results, "closed").gradient
    relative: xarray.DataArray = np.abs(study.part(results, "ways").gradient - closed) / np.abs(closed).max()
    return relative


def _agreement_verdicts(config: Config, results: "xarray.Dataset") -> list[Verdict]:
    ways, gate = study.part(results, "ways"), AGREEMENT[config.precision]
    error = errors(results).isel(steps=-1).max("penalty")
    steps, verdicts = config.agreement.steps[-1], []
    for method in METHODS:
        worst = float(error.sel(way=method))
        claim = f"{method} derivatives of the validation loss by the penalty are the closed form"
        slope = float(ways.slope.isel(steps=-1).sel(way=method).max())
        evidence = (
            f"largest error over {ways.sizes['penalty']} penalties, relative to the largest derivative, after "
            f"{steps:,} steps in {config.precision}; there the gradient of training is at most {slope:.1e}"
        )
        verdicts.append(Verdict(claim, worst <= gate, worst, gate, evidence))
    return verdicts


def _learning_verdict(config: Config, results: "xarray.Dataset") -> Verdict:
    learned, chart = study.part(results, "learned"), study.part(results, "chart")
    best = chart.validation.min(("learning_rate", "penalty"))
    reached = learned.validation.min("point").where(learned.status == 0, np.inf) / best - 1
    worst = float(reached.max())
    before, after = (float(learned[name].median()) for name in ("test_before", "test_after"))
    evidence = (
        f"worst of {reached.size} descents ({config.learning.divisions} divisions of the rows), relative to the best "
        f"of {chart.sizes['learning_rate']}x{chart.sizes['penalty']} points; on rows not used at all the median loss "
        f"falls from {before:.3f} to {after:.3f}"
    )
    claim = "descent on the validation loss ends within 2 % of the best rate and penalty of a grid, from every start"
    return Verdict(claim, worst <= 0.02, worst, 0.02, evidence)


def powers(results: "xarray.Dataset") -> dict[str, float]:
    """Return the power of K by which the memory of every way grows between half of the range and its end."""
    memory = study.part(results, "memory").sortby("steps")
    ends = memory.bytes.isel(steps=[-2, -1])
    span = float(np.log(memory.steps[-1] / memory.steps[-2]))
    return {way: float(np.log(ends.sel(way=way)[1] / ends.sel(way=way)[0])) / span for way in WAYS}


def _memory_verdict(results: "xarray.Dataset") -> Verdict:
    found = powers(results)
    worst = max(abs(found[way] - WAYS[way]) for way in WAYS)
    told = ", ".join(f"{way} {found[way]:.2f}" for way in WAYS)
    last = study.part(results, "memory").bytes.isel(steps=-1)
    sizes = ", ".join(f"{way} {float(last.sel(way=way)) / 1024:,.0f} KiB" for way in WAYS)
    claim = "memory grows with the steps K like √K unrolled, K with all iterates kept, and not at all otherwise"
    return Verdict(claim, worst <= 0.1, worst, 0.1, f"farthest of the measured powers: {told}; at the end {sizes}")


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the four ways, the descents over the map, and the memory."""
    return {
        "agreement": _draw_agreement(config, results),
        "learning": _draw_learning(config, results),
        "memory": _draw_memory(results),
    }


def _draw_agreement(config: Config, results: "xarray.Dataset") -> "Figure":
    ways, closed, error = study.part(results, "ways"), study.part(results, "closed"), errors(results)
    steps = config.agreement.steps
    penalty = float(ways.penalty[0])
    caption = (
        f"The derivative of the validation loss by the logarithm of the penalty. Left: after {steps[-1]:,} steps all "
        f"ways are the closed form (dashed). Right: on the way there, at penalty {penalty:g}; dashed: (1 - η μ)^K, "
        "the share of the slowest error that is left."
    )
    figure, ((left, right),) = plots.figure(1, 2, width=10.0, height=4.2, caption=caption)
    for position, method in enumerate(METHODS):
        look, last = panels.look(position), ways.gradient.sel(way=method).isel(steps=-1)
        left.plot(ways.penalty, last, label=method, **(look | {"linestyle": "", "markersize": 9 - 2.5 * position}))
        late = np.maximum(error.sel(way=method).isel(penalty=0), 1e-17)
        right.plot(steps, late, label=method, **(look | {"markersize": 9 - 2.5 * position}))
    plots.theory(left, closed.penalty, closed.gradient, label="closed form")
    first = ways.isel(way=0, penalty=0, steps=0)
    plots.theory(right, steps, float(first.factor) ** np.asarray(steps, float), label="(1 - η μ)^K")
    plots.logarithmic(left, "x")
    plots.logarithmic(right, "y")
    plots.finish(left, x="penalty e^h", y="dv/dh", title=f"after {steps[-1]:,} steps")
    plots.finish(right, x="steps of training K", y="error, relative to the largest dv/dh", title=f"penalty {penalty:g}")
    return figure


def _draw_learning(config: Config, results: "xarray.Dataset") -> "Figure":
    import matplotlib

    learned, chart = study.part(results, "learned"), study.part(results, "chart").isel(division=0)
    caption = (
        f"Rate and penalty of {config.learning.steps} steps of training, learned by descent on the validation loss. "
        "Left: one division of the rows; circles: starts, stars: ends; cross: best of the grid; white: training "
        "diverges. Right: medians and quartiles over all starts, excess over the best of the grid."
    )
    figure, ((left, right),) = plots.figure(1, 2, width=11.0, height=4.6, caption=caption)
    loss = chart.validation.transpose("penalty", "learning_rate")
    least = float(loss.min())
    shown = np.clip(loss / least - 1, 1e-4, 1.0).where(loss < 2 * least)
    levels = np.geomspace(1e-4, 1.0, 17)
    norm = matplotlib.colors.LogNorm(1e-4, 1.0)
    drawn = left.contourf(chart.learning_rate, chart.penalty, shown, levels=levels, norm=norm, cmap="viridis_r")
    figure.colorbar(drawn, ax=left, label="excess over the least validation loss", format="%.0e", ticks=levels[::4])
    for start in learned.isel(division=0).stack(start=("learning_rate", "penalty")).path.transpose("start", ...):
        rates, penalties = (start.sel(hyperparameter=name) for name in ("learning_rate", "penalty"))
        left.plot(rates, penalties, color="white", linewidth=2.6)
        left.plot(rates, penalties, color=plots.colour(1), linewidth=1.4)
        left.plot(rates[0], penalties[0], "o", color=plots.colour(1), markeredgecolor="white")
        left.plot(rates[-1], penalties[-1], "*", color=plots.colour(1), markeredgecolor="white", markersize=11)
    at = loss.argmin(("penalty", "learning_rate"))
    left.plot(chart.learning_rate[at["learning_rate"]], chart.penalty[at["penalty"]], "kx", markersize=9, mew=2)
    left.set_ylim(float(chart.penalty[0]), float(chart.penalty[-1]))
    best = study.part(results, "chart").validation.min(("learning_rate", "penalty"))
    excess = (
        (learned.validation / best - 1).stack(run=("learning_rate", "penalty", "division")).transpose("run", "point")
    )
    plots.band(right, np.arange(excess.sizes["point"]), np.maximum(excess.values, 1e-6), over=0)
    plots.threshold(right, 0.02, "claim: 2 %")
    plots.logarithmic(left, "xy")
    plots.logarithmic(right, "y")
    plots.finish(left, x="learning rate η", y="penalty e^h", title="validation loss", legend="none")
    plots.finish(right, x="step on the validation loss", y="excess over the best of the grid", title="all descents")
    return figure


def _draw_memory(results: "xarray.Dataset") -> "Figure":
    memory, found = study.part(results, "memory"), powers(results)
    caption = "Memory that the compiled derivative needs, for 1 hyperparameter. In brackets the measured power of K."
    figure, ((axes,),) = plots.figure(width=7.0, caption=caption)
    for position, way in enumerate(WAYS):
        label = f"{way} (K^{found[way]:.2f})"
        axes.plot(memory.steps, memory.bytes.sel(way=way) / 1024, label=label, **panels.look(position))
    plots.logarithmic(axes, "xy")
    plots.finish(axes, x="steps of training K", y="temporary memory (KiB)", legend="right")
    return figure


EXPERIMENT = Experiment("hypergradients", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
