r"""What does it buy to know the curvature, and where does Newton's method go?

Question. Gradient descent asks for the slope alone, Newton's method for the curvature too, quasi-Newton methods guess
it from slopes. How much sooner are they at the minimum, by steps and by time, and what does pure Newton take for one?

Mathematics. A method has order q if :math:`|e_{k+1}| \approx C |e_k|^q` for its errors. Gradient descent multiplies
the error by a factor a step: q = 1. Newton's step :math:`-H^{-1} g` leads to the minimum of the parabola that touches
f, and what is left is of second order in the error: q = 2, the digits double. BFGS and L-BFGS learn H from changes of
the gradient: between 1 and 2. The same for roots of one variable: bisection 1, the secant method 1.618, Newton 2.
:math:`-H^{-1} g` leads wherever the gradient is 0. A minimum is a matter of luck, unless H is made positive definite.

Claim. Orders: 1 for descent, 2 for Newton, between them for the quasi-Newton methods; 1, 1.618, 2 for roots. Pure
Newton ends at saddles or maxima from many starts; with shifted or absolute eigenvalues and a line search at minima.

Command. python -m calcdl.experiments.second_order configs/second_order.toml

Reference. Nocedal and Wright, Numerical Optimization (2006), chapters 2, 3, 6.
"""

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from calcdl import study
from calcdl.calculus.derivatives import hessian
from calcdl.calculus.expressions import parse
from calcdl.lab import panels, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, Count, ExperimentConfig, Finite, OneOf, Rate, Readable, Section, Seeds
from calcdl.optim import descent
from calcdl.optim.line_search import lbfgs, steepest_descent
from calcdl.optim.nonlinear_least_squares import SumOfSquares, levenberg_marquardt
from calcdl.optim.quasi_newton import bfgs
from calcdl.optim.roots import find_root
from calcdl.optim.second_order import CURVATURES, newton
from calcdl.optim.solver import Solver, minimise
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

VARIABLES = ("x1", "x2")
OfX = Annotated[str, Readable(parse, "a formula in x")]
OfX1X2 = Annotated[str, Readable(partial(parse, variables=VARIABLES), "a formula in x1 and x2")]
Pair = tuple[Finite, Finite]

DIMENSIONS = {"error": ("step",), "path": ("step", "variable"), "end": ("variable",)}
SOLVERS = ("gradient descent", "steepest descent", "L-BFGS", "BFGS", "Levenberg-Marquardt", "Newton")
FIRST_ORDER, QUASI = SOLVERS[:2], SOLVERS[2:4]
ROOT_ORDERS = {"bisection": 1.0, "secant": (1 + math.sqrt(5)) / 2, "newton": 2.0}
KINDS = ("minimum", "saddle", "maximum", "nowhere")
ORDER_GATE, BETWEEN, ROOT_GATE, SAFE_SHARE, LOST_SHARE = 0.1, (1.1, 1.9), 0.1, 0.99, 0.05
FLOOR, NEAR, REPEATS, SAME = 1e-13, 0.03, 3, 1e-4


class Race(Section):
    """One objective, half a sum of squares, by every method."""

    residuals: AxisOf[OfX1X2] = Field(
        default=("10*(x2 - x1**2)", "1 - x1"), description="formulas in x1 and x2; f is half the sum of their squares"
    )
    start: Pair = Field(default=(-1.2, 1.0), description="where the run of the figures starts")
    spread: Rate = Field(default=0.3, description="how far, at most, the other starts lie from it along each axis")
    solvers: AxisOf[Annotated[str, OneOf(SOLVERS)]] = Field(default=SOLVERS, description="the methods")
    learning_rate: Rate = Field(default=2e-3, description="of gradient descent")
    steps: Annotated[int, Field(ge=10, le=100_000)] = Field(default=1000, description="steps of a run")
    seeds: Seeds = Field(default=tuple(range(16)), description="one random start each, for the orders")


class Basins(Section):
    """Where Newton's method goes, from a grid of starts."""

    function: OfX1X2 = Field(default="(x1**2 + x2 - 11)**2 + (x1 + x2**2 - 7)**2", description="a formula in x1, x2")
    lower: Pair = Field(default=(-6.0, -6.0), description="lower end of x1 and x2")
    upper: Pair = Field(default=(6.0, 6.0), description="upper end of x1 and x2")
    points: Annotated[int, Field(ge=5, le=1001)] = Field(default=121, description="starts along each axis")
    steps: Count = Field(default=100, description="most steps of a run")


class Roots(Section):
    """The same ladder for the root of a function of one variable."""

    function: OfX = Field(default="x**3 - 2*x - 5", description="a formula in x with one root in the bracket")
    bracket: Pair = Field(default=(1.0, 4.0), description="where the sign changes")
    seeds: Seeds = Field(default=tuple(range(64)), description="one start in the bracket each")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float64"] = Field(default="float64", description="orders need the digits of float64")
    race: Race = Field(default=Race(), description="orders and times")
    basins: Basins = Field(default=Basins(), description="critical points reached")
    roots: Roots = Field(default=Roots(), description="roots of one variable")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Run every method from every start, time them, and follow Newton's method from a grid."""
    race, basins, roots = config.race, config.basins, config.roots
    run = partial(run, dtype=config.precision, dimensions=DIMENSIONS)
    fixed: Any = race.model_dump(include={"residuals", "steps", "start", "spread", "learning_rate"})
    axes = [study.axis("solver", race.solvers), study.axis("seed", race.seeds)]
    raced = run(partial(descend, **fixed), axes, name="race").assign_coords(step=np.arange(race.steps + 1))
    sides = zip(VARIABLES, basins.lower, basins.upper, strict=True)
    grid = [study.axis(name, np.linspace(low, high, basins.points)) for name, low, high in sides]
    axes = [study.axis("curvature", CURVATURES), *grid]
    ended = run(partial(follow, function=basins.function, steps=basins.steps), axes, name="basins")
    axes = [study.axis("way", ROOT_ORDERS), study.axis("seed", roots.seeds)]
    found = run(partial(root, function=roots.function, bracket=roots.bracket), axes, name="roots")
    ran = "error" in raced and bool(np.isfinite(raced.error).any())
    seconds = ("solver", [time_of_step(name, config) if ran else math.nan for name in race.solvers])
    return study.join(race=raced.assign(seconds=seconds), basins=ended,
                      roots=found.assign_coords(step=np.arange(found.sizes["step"])))  # fmt: skip


def solver_of(name: str, residuals: Any, learning_rate: float) -> Solver:
    """Return the method of a name."""
    makers: dict[str, Any] = {
        "gradient descent": lambda: descent("sgd", learning_rate), "steepest descent": steepest_descent,
        "L-BFGS": lbfgs, "BFGS": bfgs, "Levenberg-Marquardt": lambda: levenberg_marquardt(residuals), "Newton": newton,
    }  # fmt: skip
    solver: Solver = makers[name]()
    return solver


def objective_of(texts: tuple[str, ...]) -> Any:
    """Return half the sum of squares of some formulas."""
    parts = [parse(text, VARIABLES) for text in texts]
    return SumOfSquares(lambda x: jnp.stack([part(x[0], x[1]) for part in parts]))


def descend(
    key: Key, *, solver: str, residuals: tuple[str, ...], start: Pair, spread: float, learning_rate: float, steps: int
) -> dict[str, Array]:
    """Minimise from a random start; its errors are distances from the critical point nearby, found by Newton."""
    f = objective_of(residuals)
    begin = jnp.asarray(start, float) + jax.random.uniform(key, (2,), float, -spread, spread)
    method = solver_of(solver, f.residuals, learning_rate)
    found = minimise(f, begin, method, steps=steps, tolerance=0.0, trace=("params",))
    goal = minimise(f, found.params, newton(), steps=60, tolerance=0.0)
    error = jnp.linalg.norm(found.trace.params - goal.params[None, :], axis=1)
    return {"error": error, "path": found.trace.params, "steps": found.steps}


def follow(key: Key, *, curvature: str, x1: Array, x2: Array, function: str, steps: int) -> dict[str, Array]:
    """Run Newton's method, and tell by the Hessian at its end what it found."""
    expression = parse(function, VARIABLES)

    def f(x: Array) -> Array:
        return expression(x[0], x[1])

    found = minimise(f, jnp.stack([x1, x2]), newton(curvature=curvature), steps=steps, tolerance=1e-8)
    at = jnp.where(jnp.isfinite(found.params), found.params, 0)
    negative = jnp.sum(jnp.linalg.eigvalsh(hessian(f)(at)) < 0)
    return {"end": at, "kind": jnp.where(found.gradient_norm < SAME, negative, 3), "steps": found.steps}


def root(key: Key, *, way: str, function: str, bracket: Pair) -> dict[str, Array]:
    """Find a root from a random start in the right half of the bracket, or from brackets that end there."""
    lower, upper = (jnp.asarray(end, float) for end in bracket)
    start = upper - jax.random.uniform(key, (), float) * (upper - lower) / 4
    near: Any = {"newton": start, "secant": (start, start - (upper - lower) / 10), "bisection": (lower, start)}
    found = find_root(parse(function), near[way], way)
    return {"error": found.errors, "root": found.root, "steps": found.steps,
            "order": jnp.where(jnp.isnan(found.order), jnp.inf, found.order)}  # fmt: skip


def time_of_step(name: str, config: Config) -> float:
    """Return the seconds of one compiled step on this machine, the least of some runs."""
    race = config.race
    f = objective_of(race.residuals)
    method = solver_of(name, f.residuals, race.learning_rate)
    run = jax.jit(lambda x: minimise(f, x, method, steps=race.steps, tolerance=0.0)._replace(state=()))
    start, taken = jnp.asarray(race.start, float), []
    steps = int(jax.block_until_ready(run(start)).steps)
    for _ in range(REPEATS):
        begun = time.perf_counter()
        jax.block_until_ready(run(start))
        taken.append(time.perf_counter() - begun)
    return min(taken) / max(steps, 1)


def pairs(errors: np.ndarray) -> np.ndarray:
    """Return the logarithms of all (e_k, e_{k+1}) near the minimum and above the rounding, where the errors fall."""
    before, after = errors[:, :-1], errors[:, 1:]
    # A method that has not come near in all its steps is judged by its last decade and a half.
    near = max(NEAR, 30 * errors[errors > FLOOR].min(initial=math.inf))
    kept = (after > FLOOR) & (after < before) & (before <= near)
    logarithms: np.ndarray = np.log10(np.stack([before[kept], after[kept]]))
    return logarithms


def orders(race: "xarray.Dataset") -> dict[str, float]:
    """Return the slope of log e_{k+1} over log e_k for every solver, by least squares over all starts."""
    found = {str(name): pairs(race.error.sel(solver=name).values) for name in race.solver.values}
    return {name: float(np.polyfit(each[0], each[1], 1)[0]) for name, each in found.items() if each.shape[1] > 3}


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold orders, basins and roots against what the mathematics says."""
    race, basins, roots = (study.part(results, name) for name in ("race", "basins", "roots"))
    return (*_order_verdicts(race), *_basin_verdicts(basins), _root_verdict(roots))


def _order_verdicts(race: "xarray.Dataset") -> list[Verdict]:
    told, found, verdicts = f"slope of log e' over log e from {race.sizes['seed']} starts: ", orders(race), []
    for names, order, what in ((FIRST_ORDER, 1.0, "without curvature"), (("Newton",), 2.0, "Newton's method")):
        chosen = {name: found[name] for name in names if name in found}
        if chosen:
            worst = max(abs(value - order) for value in chosen.values())
            claim = f"{what}: the order is {order:g}, to {ORDER_GATE:g}"
            verdicts.append(Verdict(claim, worst <= ORDER_GATE, worst, ORDER_GATE, told + _listed(chosen)))
    chosen = {name: found[name] for name in QUASI if name in found}
    if chosen:
        inside = min(min(value - BETWEEN[0], BETWEEN[1] - value) for value in chosen.values())
        claim = f"quasi-Newton methods: the order is between, from {BETWEEN[0]:g} to {BETWEEN[1]:g}"
        evidence = f"distance from the nearer end; {told}{_listed(chosen)}"
        verdicts.append(Verdict(claim, inside >= 0, inside, 0.0, evidence))
    return verdicts


def _listed(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {number:.3f}" for name, number in numbers.items())


def _basin_verdicts(basins: "xarray.Dataset") -> list[Verdict]:
    kinds = {str(name): basins.kind.sel(curvature=name) for name in basins.curvature.values}
    share = {name: [float((each == kind).mean()) for kind in range(len(KINDS))] for name, each in kinds.items()}
    parts = {name: zip(KINDS, each, strict=True) for name, each in share.items()}
    listed = {name: ", ".join(f"{kind} {part:.1%}" for kind, part in each) for name, each in parts.items()}
    told = "; ".join(f"{name}: {each}" for name, each in listed.items())
    lost, least = share["raw"][1] + share["raw"][2], min(share[name][0] for name in share if name != "raw")
    claim = f"pure Newton ends at a saddle or a maximum from more than {LOST_SHARE:.0%} of the starts"
    safe = f"with the curvature made positive and a line search, at least {SAFE_SHARE:.0%} end at a minimum"
    pure = Verdict(claim, lost > LOST_SHARE, lost, LOST_SHARE, told)
    return [pure, Verdict(safe, least >= SAFE_SHARE, least, SAFE_SHARE, told)]


def _root_verdict(roots: "xarray.Dataset") -> Verdict:
    order_of = roots.order.where(np.isfinite(roots.order)).median("seed")
    found = {str(name): float(order_of.sel(way=name)) for name in roots.way.values}
    worst = max(abs(found[name] - order) for name, order in ROOT_ORDERS.items())
    claim = f"roots: bisection, secant and Newton have the orders 1, 1.618 and 2, to {ROOT_GATE:g}"
    return Verdict(claim, worst <= ROOT_GATE, worst, ROOT_GATE, f"median over {roots.sizes['seed']}: {_listed(found)}")


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the race, the basins, the paths and the roots."""
    race, basins, roots = (study.part(results, name) for name in ("race", "basins", "roots"))
    drawn = {"convergence": _draw_race(race), "basins": _draw_basins(config, basins)}
    return drawn | {"paths": _draw_paths(config, race), "roots": _draw_roots(config, roots)}


def _draw_race(race: "xarray.Dataset") -> "Figure":
    caption = (
        "Distance from the minimum by steps and by time (medians, quartiles over starts). Right: each error against "
        "the one before; a slope of 1 takes a share of the error a step, a slope of 2 doubles the digits."
    )
    figure, ((by_step, by_time, by_error),) = plots.figure(1, 3, width=14.0, height=4.4, caption=caption)
    found = orders(race)
    for position, name in enumerate(race.solver.values):
        error, step = race.error.sel(solver=name).clip(1e-16), race.step.values
        last = int(race.steps.sel(solver=name).median())
        shown = np.unique(np.geomspace(1, last + 1, 60).astype(int)) - 1
        plots.band(by_step, step[shown] + 1, error[:, shown], over="seed", label=str(name), position=position)
        seconds = (step[shown] + 1) * float(race.seconds.sel(solver=name))
        plots.band(by_time, seconds * 1e6, error[:, shown], over="seed", label=str(name), position=position)
        dots, told = pairs(race.error.sel(solver=name).values), f"{found.get(str(name), math.nan):.2f}"
        label = f"{name}: order {told}, {float(race.seconds.sel(solver=name)) * 1e6:.2g} µs a step"
        look = panels.look(position) | {"linestyle": "", "markersize": 4, "label": label}
        by_error.plot(*10 ** dots[:, :: max(1, dots.shape[1] // 100)], **look)
    for power, least in ((1, 1e-9), (2, 1e-6)):
        plots.theory(by_error, [least, 1], [least**power, 1], label="slopes 1 and 2" if power == 1 else "")
    for axes in (by_step, by_time, by_error):
        plots.logarithmic(axes, "xy")
    plots.finish(by_step, x="step + 1", y="distance from the minimum", title="by steps", legend="none")
    plots.finish(by_time, x="time in microseconds", y="", title="by time", legend="none")
    plots.finish(by_error, x="error", y="next error", title="measured order", legend="right")
    return figure


def critical_points(basins: "xarray.Dataset") -> list[tuple[np.ndarray, int]]:
    """Return the distinct ends of the runs with their kinds, minima first."""
    kinds, ends = basins.kind.values.ravel(), basins.end.values.reshape(-1, 2)
    found: list[tuple[np.ndarray, int]] = []
    for kind in range(3):
        places, counts = np.unique(np.round(ends[kinds == kind] / SAME / 10), axis=0, return_counts=True)
        for place in places[np.argsort(-counts)] * SAME * 10:
            if all(np.abs(place - other).max() > 100 * SAME for other, _ in found):
                found.append((place, kind))
    return found


def values_of(text: str, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """Return a formula in x1 and x2 over a grid."""
    return np.asarray(parse(text, VARIABLES)(jnp.asarray(x1), jnp.asarray(x2)))


def _draw_basins(config: Config, basins: "xarray.Dataset") -> "Figure":
    caption = (
        "The colour of a start says where Newton's method ends from it: circles are minima, crosses saddles (grey), "
        "the triangle is a maximum (black). Pure Newton goes to whatever is near; the others only go down."
    )
    points, one = critical_points(basins), config.basins
    shades = _shades(points)
    figure, (drawn,) = plots.figure(1, basins.sizes["curvature"], width=12.6, height=4.6, share_y=True, caption=caption)
    x1, x2 = np.meshgrid(*(np.linspace(*ends, 61) for ends in zip(one.lower, one.upper, strict=True)))
    heights = values_of(one.function, x1, x2)
    levels = np.quantile(heights, np.linspace(0.02, 0.9, 12))
    titles = {"raw": "pure Newton", "shift": "shifted, with line search", "absolute": "absolute eigenvalues"}
    for axes, name in zip(drawn, ("raw", "shift", "absolute"), strict=True):
        chosen = basins.sel(curvature=name)
        picture = np.ones((*chosen.kind.shape, 3))
        for (place, kind), shade in zip(points, shades, strict=True):
            near = (np.abs(chosen.end - place).max("variable") < 100 * SAME) & (chosen.kind == kind)
            picture[near.values] = shade
        axes.imshow(picture.transpose(1, 0, 2), origin="lower", interpolation="nearest",
                    extent=(one.lower[0], one.upper[0], one.lower[1], one.upper[1]))  # fmt: skip
        axes.contour(x1, x2, heights, levels=levels, colors="#000000", linewidths=0.4, alpha=0.5)
        for (place, kind), shade in zip(points, shades, strict=True):
            axes.plot(*place, "oX^"[kind], markersize=9, markerfacecolor=shade, markeredgecolor="white")
        minima, saddles, maxima = (float((chosen.kind == kind).mean()) for kind in range(3))
        title = f"{titles[name]}:\n{minima:.0%} minima, {saddles:.0%} saddles, {maxima:.0%} maxima"
        plots.finish(axes, x="x1", y="x2" if axes is drawn[0] else "", title=title, legend="none")
        axes.grid(False)
    return figure


def _shades(points: list[tuple[np.ndarray, int]]) -> list[tuple[float, ...]]:
    from matplotlib.colors import to_rgb

    minima, greys = iter(plots.COLOURS * len(points)), iter(("#9A9A9A", "#C4C4C4", "#7A7A7A", "#B0B0B0") * len(points))
    return [to_rgb("#000000" if kind == 2 else next(greys if kind else minima)) for _, kind in points]


def _draw_paths(config: Config, race: "xarray.Dataset") -> "Figure":
    caption = (
        "The ways of the methods over the contours of the objective, from one start. What knows no curvature "
        "crosses the valley to and fro or creeps along it; what knows it goes round the bend in few steps."
    )
    figure, drawn = panels.grid(race.sizes["solver"], 3, caption=caption)
    typical = int(np.log(race.error[:, :, -1].clip(FLOOR)).sum("solver").argsort()[race.sizes["seed"] // 2])
    paths = race.path.isel(seed=typical)
    lower, upper = paths.min(("solver", "step")).values, paths.max(("solver", "step")).values
    lower, upper = lower - 0.2 * (upper - lower), upper + 0.2 * (upper - lower)
    x1, x2 = np.meshgrid(*(np.linspace(*ends, 161) for ends in zip(lower, upper, strict=True)))
    parts = np.stack([values_of(text, x1, x2) for text in config.race.residuals])
    heights = np.log10(np.sum(parts**2, axis=0) / 2 + 1e-3)
    for position, (axes, name) in enumerate(zip(drawn, race.solver.values, strict=True)):
        steps = int(race.steps.sel(solver=name)[typical])
        axes.contourf(x1, x2, heights, levels=20, cmap="Greys", alpha=0.6)
        path = paths.sel(solver=name).values[: steps + 1]
        axes.plot(*path.T, "-", color=plots.colour(position), marker="o", markersize=3, linewidth=1.0)
        axes.plot(*path[0], "s", color="#000000", markersize=6)
        axes.plot(*path[-1], "*", color="#000000", markersize=11)
        far = float(race.error.sel(solver=name)[typical, -1])
        told = f"{name}\n{steps} steps" + (f", still {far:.2g} away" if far > SAME else "")
        low = position >= len(drawn) - 3
        plots.finish(axes, x="x1" if low else "", y="" if position % 3 else "x2", title=told, legend="none")
    return figure


def _draw_roots(config: Config, roots: "xarray.Dataset") -> "Figure":
    caption = (
        "One root by three methods: bisection halves its bracket, the secant method multiplies the digits by 1.618 a "
        "step, Newton doubles them. Left: the first steps of Newton, each along a tangent to where it meets zero."
    )
    figure, ((curve, errors),) = plots.figure(1, 2, width=10.5, height=4.2, caption=caption)
    f, (lower, upper) = parse(config.roots.function), config.roots.bracket
    x = np.linspace(lower, upper, 201)
    curve.plot(x, np.asarray(f(jnp.asarray(x))), color="#000000", label=config.roots.function)
    curve.axhline(0, color="#555555", linewidth=0.8)
    tangents = find_root(f, upper, "newton")
    for place, at in enumerate(np.asarray(tangents.iterates)[:3]):
        then = float(tangents.iterates[place + 1])
        label, shade = f"step {place + 1}: {at:.4f} to {then:.4f}", plots.colour(place)
        curve.plot([at, at, then], [0, float(f(at)), 0], "-o", color=shade, markersize=4, label=label)
    for position, name in enumerate(roots.way.values):
        steps = int(roots.steps.sel(way=name).median())
        label = f"{name}: order {float(roots.order.sel(way=name).median()):.2f}"
        error = roots.error.sel(way=name)[:, : steps + 1].clip(1e-16)
        plots.band(errors, roots.step[: steps + 1], error, over="seed", label=label, position=position, markers=True)
    plots.logarithmic(errors)
    plots.finish(curve, x="x", y="f(x)")
    plots.finish(errors, x="step", y="distance from the root")
    return figure


EXPERIMENT = Experiment("second_order", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
