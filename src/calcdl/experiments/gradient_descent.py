r"""How far may a step go downhill, and how fast does it get there?

Question. Gradient descent needs nothing but a slope and a learning rate. What does the rate decide?

Mathematics. A step is :math:`x' = x - \eta \nabla f(x)`. Near a minimum f is a bowl with curvatures λ, the eigenvalues
of its Hessian, and along each eigenvector the distance is multiplied by :math:`1 - \eta\lambda` at every step:

    positive: monotone;   negative: from side to side;   below -1: away, so η < 2 / L with the largest curvature L.

The slowest direction sets the pace. The best single rate, 2 / (L + μ), reaches (κ - 1) / (κ + 1) a step, κ = L / μ:
what is ill conditioned is slow. For x² from 3 with rate 0.1 the factor is 0.8, the loss 9, 5.76, 3.69, ...: 9 · 0.64^k.

Claim. On quadratics the loss is the closed form. Every function's border of divergence, found by bisecting real runs,
is 2 / L at its minimum within 1 %, and the pace at every rate is within 1 % of theory; below half of the border descent
is monotone, above it oscillates, above the border it leaves.

Command. python -m calcdl.experiments.gradient_descent configs/gradient_descent.toml
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import calculus, study
from calcdl.calculus.expressions import parse
from calcdl.lab import landscapes, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, Count, ExperimentConfig, Finite, Rate, Readable, Section, refuse
from calcdl.optim.descent import descent
from calcdl.optim.solver import STATUSES, TRACES, minimise
from calcdl.theory import dynamics
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

VARIABLES = ("x", "y")
CLOSED_FORM = {"float64": 1e-12, "float32": 1e-4}
WITHIN, SMALLEST_FACTOR = 0.01, {"float64": 0.2, "float32": 0.5}
PACE_STEPS, BORDER_STEPS, HALVINGS, POLISH = 4, 200, 40, 12
MONOTONE, OSCILLATES, LEAVES = range(3)
KINDS = ("monotone", "oscillates", "leaves")

OfX = Annotated[str, Readable(parse, "a formula in x")]
OfXY = Annotated[str, Readable(partial(parse, variables=VARIABLES), "a formula in x and y")]
Steps = Annotated[int, Field(ge=1, le=100_000)]


class Curves(Section):
    """Functions of one variable."""

    functions: AxisOf[OfX] = Field(default=("x**2", "log(cosh(x))"), description="formulas in x")
    starts: tuple[Finite, ...] = Field(default=(3.0, 3.0), description="where each run starts")
    learning_rates: tuple[Rate, ...] = Field(default=(0.1, 0.5), description="rate of each")
    steps: tuple[Steps, ...] = Field(default=(30, 30), description="steps of each")


class Fields(Section):
    """Functions of two variables."""

    functions: AxisOf[OfXY] = Field(
        default=("x**2 + y**2", "x**2 + 20*y**2", "x**2 - y**2 + y**4/4", "(1 - x)**2 + 100*(y - x**2)**2",
                 "(x**2 + y - 11)**2 + (x + y**2 - 7)**2"), description="formulas in x and y",
    )  # fmt: skip
    starts: tuple[tuple[Finite, Finite], ...] = Field(
        default=((-2.0, 1.5), (-4.0, 1.0), (2.0, 0.001), (-1.2, 1.0), (0.0, 0.0)), description="where each run starts"
    )
    learning_rates: tuple[Rate, ...] = Field(default=(0.1, 0.045, 0.1, 0.001, 0.01), description="rate of each")
    steps: tuple[Steps, ...] = Field(default=(30, 60, 80, 10_000, 60), description="steps of each")


class Sweep(Section):
    """Learning rates as shares of the border 2 / L at each function's minimum."""

    shares: AxisOf[Rate] = Field(
        default=(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9,
                 0.95, 0.98, 1.02, 1.05, 1.1), description="shares at which the pace near the minimum is measured",
    )  # fmt: skip
    shown: AxisOf[Rate] = Field(default=(0.1, 0.5, 0.9, 1.0, 1.05), description="shares from the starts of the curves")
    steps: Count = Field(default=12, description="steps of those")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float32", "float64"] = Field(default="float64", description="type of all floating numbers")
    curves: Curves = Field(default=Curves(), description="functions of one variable")
    fields: Fields = Field(default=Fields(), description="functions of two variables")
    sweep: Sweep = Field(default=Sweep(), description="rates from small to too large")

    @model_validator(mode="after")
    def _lists_fit(self) -> Self:
        for table, section in (("curves", self.curves), ("fields", self.fields)):
            for name, values in section:
                if len(values) != len(section.functions):
                    raise refuse(f"{table}.{name}", values, f"{len(section.functions)} values, one for each function")
        if both := {*self.curves.functions} & {*self.fields.functions}:
            raise refuse("fields.functions", both.pop(), "a formula that is not among curves.functions")
        return self


class Case(NamedTuple):
    """One function and how it is descended."""

    function: str
    start: tuple[float, ...]
    learning_rate: float
    steps: int


class Rest(NamedTuple):
    """A point without slope, the curvatures there, and whether it is a minimum."""

    x: Array
    curvature: Array
    directions: Array
    is_minimum: Array


def cases(config: Config) -> tuple[Case, ...]:
    """Return the functions of one variable, then those of two."""
    one, two = config.curves, config.fields
    curves = map(Case, one.functions, ((start,) for start in one.starts), one.learning_rates, one.steps)
    return (*curves, *map(Case, two.functions, two.starts, two.learning_rates, two.steps))


def as_function(text: str, variables: int) -> Any:
    """Return a formula as a function of a vector."""
    expression = parse(text, VARIABLES[:variables])
    return lambda x: expression(*(x[index] for index in range(variables)))


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Descend every function, sweep the rates near its minimum, and those shown from the start of every curve."""
    told, sweep = {case.function: case for case in cases(config)}, config.sweep
    by_step = dict.fromkeys(("value", "gradient_norm", "closed_form"), ("step",))
    by_variable = {"x": ("step", "variable"), "minimum": ("variable",), "curvature": ("variable",)}
    by_share = dict.fromkeys(("factor", "predicted_factor", "kind"), ("share",))
    shown = {"shown_rate": ("shown",)} | dict.fromkeys(("shown_x", "shown_value"), ("shown", "shown_step"))
    descend = partial(descended, told=told, sweep=sweep, dtype=config.precision)
    found = run(descend, [study.axis("function", tuple(told))], name="descents", dtype=config.precision,
                dimensions=by_step | by_variable | by_share | shown)  # fmt: skip
    return study.join(descents=found.assign_coords(share=list(sweep.shares)))


def descended(key: Key, *, function: str, told: dict[str, Case], sweep: Sweep, dtype: str) -> dict[str, Array]:
    """Descend a function as configured, find the rest near the end, and sweep the rates there."""
    case = told[function]
    f, start = as_function(function, len(case.start)), jnp.asarray(case.start, dtype)
    run = minimise(f, start, descent("sgd", case.learning_rate), steps=case.steps, tolerance=0.0, trace=TRACES)
    rest = rest_near(f, run.params)
    ended = {"ended": run.status, "steps": run.steps, "is_minimum": rest.is_minimum}
    shown = regimes(f, start, rest, sweep) if len(case.start) == 1 else {}
    numbers = run.trace._asdict() | predicted(f, start, rest, case) | pace(f, rest, sweep.shares) | border(f, rest)
    numbers["x"] = numbers.pop("params")
    return ended | numbers | shown


def rest_near(f: Any, x: Array) -> Rest:
    """Follow Newton's method to the point without slope that is near the end of a descent."""
    slope, bend = calculus.gradient(f), calculus.hessian(f)

    def closer(_: int, x: Array) -> Array:
        moved = x - jnp.linalg.solve(bend(x), slope(x))
        return jnp.where(jnp.all(jnp.isfinite(moved)), moved, x)

    x = jax.lax.fori_loop(0, POLISH, closer, x)
    curvature, directions = jnp.linalg.eigh(bend(x))
    flat = jnp.linalg.norm(slope(x)) <= 1e3 * jnp.finfo(x.dtype).eps * (1 + jnp.max(jnp.abs(curvature)))
    return Rest(x, curvature, directions, flat & (curvature[0] > 0))


def predicted(f: Any, start: Array, rest: Rest, case: Case) -> dict[str, Array]:
    """Return the loss that theory gives a quadratic, and whether the function is one between start and rest."""
    bend = calculus.hessian(f)
    off = [jnp.max(jnp.abs(bend(share * start + (1 - share) * rest.x) - bend(rest.x))) for share in (1.0, 0.39)]
    is_quadratic = jnp.maximum(*off) <= 1e-6 * jnp.max(jnp.abs(rest.curvature))
    away = jnp.matmul(start - rest.x, rest.directions, precision="highest")
    exact = dynamics.iterates("gradient_descent", away, rest.curvature, case.learning_rate, jnp.arange(case.steps + 1))
    loss = f(rest.x) + jnp.sum(rest.curvature[None] * exact**2, axis=1) / 2
    return {"closed_form": loss, "is_quadratic": is_quadratic, "minimum": rest.x, "least": f(rest.x),
            "curvature": rest.curvature}  # fmt: skip


def coordinates(f: Any, rest: Rest, start: Array, rate: Array, steps: int) -> Any:
    """Return a run that starts near the minimum, along the eigenvectors of the Hessian there."""
    begin = rest.x + jnp.matmul(rest.directions, start, precision="highest")
    path: Any = minimise(f, begin, descent("sgd", rate), steps=steps, tolerance=0.0, trace=["params"]).trace.params
    return jnp.matmul(path - rest.x[None], rest.directions, precision="highest")


def pace(f: Any, rest: Rest, shares: tuple[float, ...]) -> dict[str, Array]:
    """Measure the factor on the distance along the slowest direction, and how the steepest is taken."""
    directions, near = jnp.arange(rest.x.size), 0.3 * jnp.finfo(rest.x.dtype).eps ** 0.25

    def measured(rate: Array) -> tuple[Any, ...]:
        slowest = jnp.argmax(dynamics.contraction("gradient_descent", rate, rest.curvature))
        begin = near * jnp.where(directions == slowest, 1, jnp.where(directions == directions[-1], 0.01, 0))
        seen = coordinates(f, rest, begin, rate, PACE_STEPS)
        ends = seen[-1], dynamics.iterates("gradient_descent", begin, rest.curvature, rate, PACE_STEPS)
        factors = [(jnp.linalg.norm(end) / jnp.linalg.norm(begin)) ** (1 / PACE_STEPS) for end in ends]
        steep = seen[:, -1]
        turns, grows = jnp.any(steep[1:] * steep[:-1] < 0), jnp.abs(steep[-1]) > jnp.abs(steep[0])
        kind = jnp.where(grows, LEAVES, jnp.where(turns, OSCILLATES, MONOTONE))
        return *factors, kind.astype(jnp.int32)

    best = dynamics.tuning("gradient_descent", rest.curvature[0], rest.curvature[-1])
    rates = jnp.append(2 * jnp.asarray(shares, rest.x.dtype) / rest.curvature[-1], best.learning_rate)
    seen, exact, kind = jax.lax.map(measured, rates)
    found = {"factor": seen[:-1], "predicted_factor": exact[:-1], "best_factor": seen[-1], "best_predicted": best.rate}
    return _at_minimum(rest, found) | {"kind": kind[:-1]}


def border(f: Any, rest: Rest) -> dict[str, Array]:
    """Bisect the rate at which runs near the minimum begin to leave it."""
    near = jnp.full(rest.x.shape, jnp.finfo(rest.x.dtype).eps ** 0.5)
    limit = dynamics.largest_product("gradient_descent").astype(near.dtype) / rest.curvature[-1]

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        lower, upper = ends
        middle = (lower + upper) / 2
        far = jnp.linalg.norm(coordinates(f, rest, near, middle, BORDER_STEPS), axis=1)
        # A run that has left for good is stopped, and stands still from there.
        leaves = (far[-1] > far[BORDER_STEPS // 2]) | (far[-1] > 2 * far[0])
        return jnp.where(leaves, lower, middle), jnp.where(leaves, middle, upper)

    found = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(limit), 3.1 * limit))[0]
    return _at_minimum(rest, {"border": found, "predicted_border": limit})


def _at_minimum(rest: Rest, found: dict[str, Array]) -> dict[str, Array]:
    """Replace what has no meaning by infinity, which is no failure of a run."""
    return {name: jnp.where(rest.is_minimum & jnp.isfinite(value), value, jnp.inf) for name, value in found.items()}


def regimes(f: Any, start: Array, rest: Rest, sweep: Sweep) -> dict[str, Array]:
    """Descend a curve from its start at shares of the border."""
    rates = jnp.where(rest.is_minimum, 2 * jnp.asarray(sweep.shown, start.dtype) / rest.curvature[-1], 0)

    def path(rate: Array) -> tuple[Any, Any]:
        run = minimise(f, start, descent("sgd", rate), steps=sweep.steps, tolerance=0.0, trace=TRACES)
        return run.trace.params, run.trace.value

    x, value = jax.lax.map(path, rates)
    return {"shown_x": x[..., 0], "shown_value": value, "shown_rate": rates}


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold losses, borders, paces and kinds against theory; a function without a minimum near its end is not judged."""
    descents = study.part(results, "descents")
    bowls = descents.isel(function=np.flatnonzero(descents.is_minimum))
    return (
        *([_closed_form_verdict(config, descents)] if bool(descents.is_quadratic.any()) else []),
        *(_bowl_verdicts(config, bowls) if bowls.sizes["function"] else []),
    )


def _closed_form_verdict(config: Config, descents: "xarray.Dataset") -> Verdict:
    worst, told = 0.0, []
    for case in cases(config):
        one = descents.sel(function=case.function)
        if bool(one.is_quadratic):
            value, exact = (one[name].values[: int(one.steps) + 1] for name in ("value", "closed_form"))
            worst = max(worst, float(np.max(np.abs(value - exact)) / np.max(np.abs(exact))))
            told.append(f"{case.function}: {', '.join(f'{loss:.4g}' for loss in value[:4])}, ...")
    claim = "on quadratics the loss at every step is the closed form (9 * 0.64^k for x**2 from 3 with rate 0.1)"
    bound, evidence = CLOSED_FORM[config.precision], "largest difference, relative to the largest loss;"
    return Verdict(claim, worst <= bound, worst, bound, f"{evidence} losses of {'; '.join(told)}")


def _bowl_verdicts(config: Config, bowls: "xarray.Dataset") -> list[Verdict]:
    least, shares = SMALLEST_FACTOR[config.precision], bowls.share
    far = np.abs(bowls.border / bowls.predicted_border - 1)
    off = (np.abs(bowls.factor - bowls.predicted_factor) / np.maximum(bowls.predicted_factor, least)).max("share")
    best = np.abs(bowls.best_factor - bowls.best_predicted) / np.maximum(bowls.best_predicted, least)
    wanted = np.where(shares > 1, LEAVES, np.where(shares > 0.5, OSCILLATES, MONOTONE))
    clear = (np.abs(shares - 0.5) > 1e-3) & (np.abs(shares - 1) > 1e-3)
    wrong = float(((bowls.kind != wanted) & clear).sum())
    borders = "; ".join(f"{name}: {found:.5g}" for name, found in bowls.border.to_series().items())
    rates = f"{bowls.kind.size} rates, that for {off.to_series().idxmax()}"
    counts = ", ".join(f"{int((bowls.kind == kind).sum())} runs: {name}" for kind, name in enumerate(KINDS))
    factors = ", ".join(f"{name}: {factor:.4g}" for name, factor in bowls.best_predicted.to_series().items())
    return [
        Verdict("descent begins to diverge at the learning rate 2 / L, L the largest curvature at the minimum",
                bool(far.max() <= WITHIN), float(far.max()), WITHIN,
                f"largest relative distance from 2 / L of the border, bisected: {borders}"),
        Verdict("near a minimum the distance shrinks at the pace that the curvatures predict, at every rate",
                bool(off.max() <= WITHIN), float(off.max()), WITHIN,
                f"largest relative difference of the factor along the slowest direction at {rates}"),
        Verdict("below half of the border descent is monotone, above it oscillates, above the border it leaves",
                wrong == 0, wrong, 0.0, f"runs of another kind, along the steepest direction; {counts}"),
        Verdict("at the rate 2 / (L + mu) the distance shrinks by (kappa - 1) / (kappa + 1) a step",
                bool(best.max() <= WITHIN), float(best.max()), WITHIN, f"largest relative difference; {factors}"),
    ]  # fmt: skip


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the curves at several rates, the paths over contours and surfaces, the losses and the paces."""
    descents = study.part(results, "descents")
    return {
        "regimes": _draw_regimes(config, descents),
        **_draw_planes([case for case in cases(config) if len(case.start) == 2], descents),
        "losses": _draw_losses(cases(config), descents),
        "pace": _draw_pace(descents),
    }


def _draw_regimes(config: Config, descents: "xarray.Dataset") -> "Figure":
    caption = (
        f"{config.sweep.steps} steps from the black dot; rates as shares of the border 2 / L of the minimum. Small "
        "rates creep down one side, half the border finishes a parabola in one step, larger ones jump from side to "
        "side. At the border a parabola is never left, above it is climbed; a bounded slope keeps the jumps bounded."
    )
    shares, curves = config.sweep.shown, config.curves
    figure, panels = landscapes.grid(len(curves.functions) * len(shares), len(shares), side=2.6, caption=caption)
    for number, axes in enumerate(panels):
        row, column = divmod(number, len(shares))
        one = descents.sel(function=curves.functions[row])
        least = float(one.minimum[0]) if bool(one.is_minimum) else 0.0
        half = 1.5 * abs(curves.starts[row] - least) + 0.1
        grid = np.linspace(least - half, least + half, 241)
        curve = np.asarray(as_function(curves.functions[row], 1)(grid[None]))
        x, value = one.shown_x.values[column], one.shown_value.values[column]
        axes.plot(grid, curve, color="#999999")
        axes.plot(x, value, ".-", color=plots.colour(0), linewidth=0.8, markersize=7)
        axes.plot(x[:1], value[:1], "o", color="#000000")
        axes.set_xlim(grid[0], grid[-1])
        axes.set_ylim(curve.min() - 0.08 * np.ptp(curve), curve.max())
        title = f"rate {float(one.shown_rate[column]):.3g} = {shares[column]:g} of 2 / L"
        plots.finish(axes, x="x", y=curves.functions[row] if column == 0 else "", title=title)
    return figure


def _draw_planes(planes: list[Case], descents: "xarray.Dataset") -> dict[str, "Figure"]:
    caption = (
        "Paths from the white dot over filled contours, dark is low. Arrows: the negative gradient, at right angles to "
        "the contours; the longer the steeper. A round bowl is entered straight, a narrow valley from side to side; a "
        "saddle holds a path up; a curved valley is crept along."
    )
    flat, panels = landscapes.grid(len(planes), 3, side=3.9, caption=caption)
    solid, blocks = landscapes.grid(len(planes), 3, side=3.9, caption="The same paths, on the surfaces.")
    for axes, block, case in zip(panels, blocks, planes, strict=True):
        one, f = descents.sel(function=case.function), as_function(case.function, 2)
        slope, goals = jax.vmap(calculus.gradient(f), 1, 1), [one.minimum.values] if bool(one.is_minimum) else []
        path = one.x.values[: int(one.steps) + 1]
        landscapes.plane(axes, f, [path], gradient=slope, goals=goals)
        title = f"{case.function}\nrate {case.learning_rate:g}, {int(one.steps):,} steps"
        plots.finish(axes, x="x", y="y", title=title, legend="none")
        landscapes.surface(block, f, path, title=case.function)
    return {"paths": flat, "surfaces": solid}


def _draw_losses(told: tuple[Case, ...], descents: "xarray.Dataset") -> "Figure":
    caption = (
        "What is left of the loss above the minimum, by step. Straight lines: a factor a step. Dashed: the closed form "
        "for quadratics."
    )
    figure, panels = landscapes.grid(len(told), 4, side=3.0, caption=caption)
    for axes, case in zip(panels, told, strict=True):
        one = descents.sel(function=case.function)
        steps = np.arange(int(one.steps) + 1)
        least = float(one.least) if bool(one.is_minimum) else 0.0
        left = one.value.values[: len(steps)] - least
        axes.plot(steps, np.where(left > 1e-15, left, np.nan), ".-", color=plots.colour(0), markersize=4)
        if bool(one.is_quadratic):
            plots.theory(axes, steps, one.closed_form.values[: len(steps)] - least)
        plots.logarithmic(axes)
        title = f"{case.function}\n{STATUSES[int(one.ended)].split(':')[0]}"
        plots.finish(axes, x="step", y="loss above the minimum", title=title, legend="none")
    return figure


def _draw_pace(descents: "xarray.Dataset") -> "Figure":
    caption = (
        "Factor on the distance from the minimum along the slowest direction. Marks: measured; dashed: theory. A round "
        "bowl is done in one step at half the border; the worse the condition, the closer to 1 at every rate."
    )
    figure, ((axes,),) = plots.figure(1, 1, width=9.0, height=4.4, caption=caption)
    for position, text in enumerate(descents.function.values):
        one, look = descents.sel(function=text), {"color": plots.colour(position), "marker": plots.marker(position)}
        if bool(one.is_minimum):
            plots.theory(axes, one.share, one.predicted_factor, label="")
            axes.plot(one.share, one.factor, **look, linestyle="none", label=text, markersize=5)
    plots.threshold(axes, 1.0)
    for place, word in ((0.0, "monotone"), (0.5, "oscillates"), (1.0, "leaves")):
        axes.text(place + 0.01, 1.22, word, fontsize="small")
        plots.threshold(axes, place, along="x")
    plots.finish(axes, x="learning rate / (2 / L)", y="factor on the distance per step", legend="right")
    return figure


EXPERIMENT = Experiment("gradient_descent", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
