r"""What does a derivative say about a function, and do three ways to take it agree?

Mathematics. The derivative is the slope of the tangent, the line that leaves the curve slower than any other: the gap
is :math:`f''(a) h^2 / 2 + O(h^3)`. For several variables the gradient collects the slopes along the axes; the slope
along a direction v of length one is :math:`\nabla f \cdot v \le \|\nabla f\|`, so the gradient points where f rises
fastest and its length is that slope. Where a function has a corner there is no derivative, whatever a program returns:
for the Euclidean norm at 0 every direction has slope 1.

Claim. Automatic differentiation, difference quotients extrapolated to step zero and symbolic differentiation agree. The
gap of a tangent shrinks like h². Arrows of the gradient point uphill and are as long as the slope. Where the limit of
the difference quotient exists, the gradient by `jax.grad` is that limit.

Command. python -m calcdl.experiments.derivatives configs/derivatives.toml
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import calculus, study
from calcdl.calculus.expressions import parse
from calcdl.calculus.smoothness import DIFFERENTIABLE, STATUSES
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ExperimentConfig, Finite, Rate, Readable, Section, refuse
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

# Bounds on the difference of automatic and symbolic slope, of the slope along an arrow and its length, and of a limit
# and the slope by `jax.grad`.
AGREE, UPHILL, AT_POINT = {"float64": 1e-13, "float32": 4e-6}, {"float64": 1e-8, "float32": 2e-3}, 1e-3
TURNS, DIGITS, FLAT = 48, 30, 1e-2
DISTANCES = tuple(2.0**-power for power in range(7))
VARIABLES = ("x1", "x2")
ANGLES = (0.0, 30.0, 90.0)

Points = Annotated[int, Field(ge=3, le=2001)]
OfX = Annotated[str, Readable(parse, "a formula in x")]
OfX1X2 = Annotated[str, Readable(partial(parse, variables=VARIABLES), "a formula in x1 and x2")]


class Curves(Section):
    """Functions of one variable and their tangents."""

    functions: AxisOf[OfX] = Field(
        default=("x**3 - 4*x - 5", "x**3 - 1/x", "3*x**2 - 4*x"), description="formulas in x"
    )
    at: tuple[Finite, ...] = Field(default=(2.0, 1.0, 1.0), description="where each is touched, in the same order")
    reach: Rate = Field(default=2.5, description="how far to look on both sides")
    points: Points = Field(default=201, description="values of x a function, evenly spaced")


class Fields(Section):
    """Functions of two variables and their gradients."""

    functions: AxisOf[OfX1X2] = Field(
        default=("3*x1**2 + 5*exp(x2)", "sqrt(x1**2 + x2**2)", "sin(2*x1)*cos(x2)"), description="formulas in x1 and x2"
    )
    at: tuple[Finite, Finite] = Field(default=(0.0, 0.0), description="where the derivative as a limit is asked for")
    reach: Rate = Field(default=2.0, description="how far to look along each axis")
    points: Points = Field(default=41, description="values of each variable, evenly spaced")
    arrows: Annotated[int, Field(ge=2, le=41)] = Field(default=11, description="most arrows along an axis")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float32", "float64"] = Field(default="float64", description="type of all floating numbers")
    curves: Curves = Field(default=Curves(), description="functions of one variable")
    fields: Fields = Field(default=Fields(), description="functions of two variables")

    @model_validator(mode="after")
    def _points_fit(self) -> Self:
        at, functions = self.curves.at, self.curves.functions
        if len(at) != len(functions):
            raise refuse("curves.at", at, f"{len(functions)} numbers, one for each function")
        return self


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Differentiate every curve three ways, follow every gradient, and take limits at a point."""
    curves, fields, run = config.curves, config.fields, partial(run, dtype=config.precision)
    function = study.axis("function", curves.functions)
    at = dict(zip(curves.functions, curves.at, strict=True))
    offset = study.axis("offset", np.linspace(-curves.reach, curves.reach, curves.points))
    slopes = run(partial(slope_at, at=at), [function, offset], name="curves")
    gaps = run(partial(gap_at, at=at), [function, study.axis("distance", DISTANCES)], name="gaps")
    grid = [study.axis(name, np.linspace(-fields.reach, fields.reach, fields.points)) for name in VARIABLES]
    function = study.axis("function", fields.functions)
    followed = run(gradient_at, [function, *grid], name="fields", dimensions={"gradient": ("variable",)})
    angle = study.axis("angle", ANGLES)
    asked = run(partial(limit_at, at=fields.at), [function, angle], name="point")
    symbolic = (("function", "offset"), symbolic_slopes(slopes))
    return study.join(
        curves=slopes.assign(symbolic=symbolic),
        gaps=gaps,
        fields=followed.assign_coords(variable=list(VARIABLES)),
        point=asked,
    )


def slope_at(key: Key, *, function: str, offset: Array, at: dict[str, float]) -> dict[str, Array]:
    """Value, tangent, and the slope by automatic differentiation and by differences."""
    f, touch = parse(function), jnp.asarray(at[function], offset.dtype)
    x = touch + offset
    differences = calculus.finite_difference(f, x)
    return {"x": x, "value": f(x), "tangent": calculus.tangent_line(f, touch)(x),
            "automatic": calculus.derivative(f)(x), "difference": differences.value,
            "error": differences.error}  # fmt: skip


def gap_at(key: Key, *, function: str, distance: Array, at: dict[str, float]) -> dict[str, Array]:
    """Mean gap between curve and tangent on both sides, and what it is to second order."""
    f, touch = parse(function), jnp.asarray(at[function], distance.dtype)
    tangent, bend = calculus.tangent_line(f, touch), calculus.derivative(f, 2)(touch)
    gaps = [f(touch + step) - tangent(touch + step) for step in (-distance, distance)]
    return {"gap": jnp.abs(sum(gaps)) / 2, "expected": jnp.abs(bend) * distance**2 / 2}


def gradient_at(key: Key, *, function: str, x1: Array, x2: Array) -> dict[str, Array]:
    """Gradient, the slope measured along it, and the steepest one measured over all directions."""
    f, x = as_field(function), jnp.stack([x1, x2])
    gradient = calculus.gradient(f)(x)

    def slope(angle: Array) -> Array:
        direction = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return calculus.finite_difference(lambda step: f(x + step * direction), jnp.zeros_like(x1)).value

    turns = jnp.arange(TURNS, dtype=x1.dtype) * (2 * np.pi / TURNS)
    slopes = jax.lax.map(slope, jnp.arctan2(gradient[1], gradient[0]) + turns)
    found = {"value": f(x), "gradient": gradient, "length": jnp.hypot(gradient[0], gradient[1]),
             "uphill": slopes[0], "steepest": jnp.max(slopes)}  # fmt: skip
    # Where there is no gradient that is the finding, and no failure of the run.
    return {name: jnp.where(jnp.isnan(values), jnp.inf, values) for name, values in found.items()}


def limit_at(key: Key, *, function: str, angle: Array, at: tuple[float, float]) -> dict[str, Array]:
    """Take the derivative along a line, at an angle in degrees, as the limit that it is, beside `jax.grad`."""
    f, x, turn = as_field(function), jnp.asarray(at, angle.dtype), jnp.deg2rad(angle)
    direction = jnp.stack([jnp.cos(turn), jnp.sin(turn)])
    found = calculus.differentiability(lambda step: f(x + step * direction), jnp.zeros_like(angle))
    left, right = found.quotient.approaches.value
    slopes = {"left": left, "right": right, "by_grad": calculus.gradient(f)(x) @ direction}
    return {"verdict": found.status} | {
        name: jnp.where(jnp.isnan(slope), jnp.inf, slope) for name, slope in slopes.items()
    }


def as_field(text: str) -> Any:
    """Return a formula in x1 and x2 as a function of a vector."""
    expression = parse(text, VARIABLES)
    return lambda x: expression(x[0], x[1])


def symbolic_slopes(slopes: "xarray.Dataset") -> np.ndarray:
    """Return the slope by SymPy at every point, worked out to 30 digits; NaN where it is no number."""
    import sympy

    found, symbol = np.full(slopes.x.shape, np.nan), sympy.Symbol("x", real=True)
    for row, text in enumerate(slopes.function.values):
        slope = parse(str(text)).symbolic("x")
        for place, x in enumerate(slopes.x.values[row]):
            number = slope.subs(symbol, sympy.Float(float(x), DIGITS)).evalf(DIGITS)
            found[row, place] = float(number) if number.is_real and number.is_finite else np.nan
    return found


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold the three slopes, the tangents, the arrows and the limits against each other."""
    curves, gaps = study.part(results, "curves"), study.part(results, "gaps")
    return (
        _automatic_verdict(config, curves),
        _difference_verdict(curves),
        *_gap_verdict(gaps),
        _uphill_verdict(config, study.part(results, "fields")),
        _limit_verdict(config, study.part(results, "point")),
    )


def _automatic_verdict(config: Config, curves: "xarray.Dataset") -> Verdict:
    off = np.abs(curves.automatic - curves.symbolic) / np.maximum(1, np.abs(curves.symbolic))
    worst, bound = float(off.max()), AGREE[config.precision]
    claim = f"in {config.precision} automatic and symbolic differentiation agree"
    at_touch = curves.automatic.sel(offset=0, method="nearest").to_series()
    told = "; ".join(f"{text}: f'({at:g}) = {at_touch[text]:.6g}"
                     for text, at in zip(config.curves.functions, config.curves.at, strict=True))  # fmt: skip
    poles = int(np.isnan(off).sum())
    evidence = f"largest difference, relative to the slope or 1, at {off.size - poles} points, {poles} poles left out"
    return Verdict(claim, worst <= bound, worst, bound, f"{evidence}; {told}")


def _difference_verdict(curves: "xarray.Dataset") -> Verdict:
    known = np.isfinite(curves.symbolic) & np.isfinite(curves.error)
    rounding = np.finfo(curves.x.dtype).eps * np.abs(curves.symbolic)
    ratio = (np.abs(curves.difference - curves.symbolic) / (curves.error + rounding)).where(known)
    relative = (np.abs(curves.difference - curves.symbolic) / np.maximum(1, np.abs(curves.symbolic))).where(known)
    worst = float(ratio.max())
    claim = "the difference quotient, extrapolated to step zero, is within its own error estimate of the slope"
    evidence = (
        f"largest share of the estimate over {int(known.sum())} points; half are within {float(relative.median()):.1g}"
    )
    return Verdict(claim, worst <= 1, worst, 1.0, evidence)


def _gap_verdict(gaps: "xarray.Dataset") -> list[Verdict]:
    bent = gaps.expected.isel(distance=0, drop=True) > 0
    if not bool(bent.any()):
        return []
    last = gaps.gap.sel(function=gaps.function[bent]).isel(distance=[-2, -1])
    orders = np.log2(last.isel(distance=0, drop=True) / last.isel(distance=1, drop=True)).to_series()
    worst = float(np.abs(orders - 2).max())
    told = ", ".join(f"{text}: {order:.4f}" for text, order in orders.items())
    claim = "the tangent leaves the curve like the square of the distance"
    evidence = (
        f"largest deviation of the order from 2 between distances {DISTANCES[-2]:g} and {DISTANCES[-1]:g}: {told}"
    )
    return [Verdict(claim, worst <= 0.05, worst, 0.05, evidence)]


def _uphill_verdict(config: Config, fields: "xarray.Dataset") -> Verdict:
    length = fields.length.where(np.isfinite(fields.length))
    length = length.where(length > FLAT * length.max(("x1", "x2")))
    off = np.maximum(np.abs(fields.uphill / length - 1), fields.steepest / length - 1)
    worst, bound = float(off.max()), UPHILL[config.precision]
    claim = "arrows point uphill, are as long as the slope there, and no direction is steeper"
    evidence = (
        f"largest relative deviation of the slope measured along the arrow, or of the steepest of {TURNS} directions, "
        f"from its length, at {int(np.isfinite(off).sum())} of {off.size} points; the rest is flat or has no gradient"
    )
    return Verdict(claim, worst <= bound, worst, bound, evidence)


def _limit_verdict(config: Config, point: "xarray.Dataset") -> Verdict:
    exists = point.verdict == DIFFERENTIABLE
    off = np.abs(point.right - point.by_grad) / np.maximum(1, np.abs(point.right))
    off = off.where(exists & exists.all("angle"), 0.0).fillna(np.inf)
    told = []
    for text in point.function.values:
        kinds = {STATUSES[status] for status in point.verdict.sel(function=text).values}
        told.append(f"{text}: {', '.join(sorted(kinds))}")
    place = f"({config.fields.at[0]:g}, {config.fields.at[1]:g})"
    claim = f"where the slopes at {place} exist as limits, the gradient by jax.grad gives them"
    worst = float(off.max())
    return Verdict(claim, worst <= AT_POINT, worst, AT_POINT, f"largest relative difference; {'; '.join(told)}")


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw tangents, gradients, surfaces, the agreement of the three slopes and what happens at the point."""
    fields = study.part(results, "fields")
    return {
        "tangents": _draw_tangents(config, study.part(results, "curves")),
        "gradients": _draw_gradients(config, fields),
        "surfaces": _draw_surfaces(fields),
        "agreement": _draw_agreement(study.part(results, "curves"), study.part(results, "gaps")),
        "at_the_point": _draw_point(config, fields, study.part(results, "point")),
    }


def _draw_tangents(config: Config, curves: "xarray.Dataset") -> "Figure":
    caption = "Top: each curve and its tangent. Bottom: the slope of every point, by three ways that cover one another."
    count = curves.sizes["function"]
    figure, panels = plots.figure(2, count, width=1 + 3.4 * count, height=6.4, caption=caption)
    for number, (text, at) in enumerate(zip(config.curves.functions, config.curves.at, strict=True)):
        one, (top, below) = curves.sel(function=text), panels[:, number]
        slope = float(one.automatic.sel(offset=0, method="nearest"))
        seen = one.tangent.values
        middle, half = (seen.max() + seen.min()) / 2, max(np.ptp(seen), 4.0)
        top.plot(one.x, one.value.where(np.abs(one.value - middle) < 2 * half), color=plots.colour(0), label="f")
        top.plot(one.x, one.tangent, color=plots.colour(1), label=f"tangent, slope {slope:g}")
        top.plot([at], [float(one.value.sel(offset=0, method="nearest"))], "o", color="#000000")
        top.set_ylim(middle - 0.8 * half, middle + 0.8 * half)
        plots.finish(top, x="", y="f(x)" if number == 0 else "", title=text)
        steep = 4 * max(abs(slope), 1.0)
        below.plot(one.x, one.automatic.where(np.abs(one.automatic) < 3 * steep), color=plots.colour(0), linewidth=3,
                   label="automatic")  # fmt: skip
        some = one.isel(offset=slice(None, None, max(1, one.sizes["offset"] // 16)))
        below.plot(some.x, some.difference.where(np.abs(some.difference) < 3 * steep), "o", color=plots.colour(1),
                   label="differences")  # fmt: skip
        plots.theory(below, one.x, one.symbolic.where(np.abs(one.symbolic) < 3 * steep), label="symbolic")
        below.plot([at], [slope], "o", color="#000000", zorder=4)
        drawn = one.automatic.where(np.abs(one.automatic) < steep)
        margin = 0.15 * float(drawn.max() - drawn.min())
        below.set_ylim(float(drawn.min()) - margin, float(drawn.max()) + margin)
        plots.finish(
            below, x="x", y="f'(x)" if number == 0 else "", title="", legend="inside" if number == 0 else "none"
        )
    return figure


def _draw_gradients(config: Config, fields: "xarray.Dataset") -> "Figure":
    caption = (
        "Colour: the function, with its contours. Arrows: its gradient, as long as the slope (each panel to its own "
        "scale). They cross the contours at right angles and point uphill."
    )
    count = fields.sizes["function"]
    figure, panels = plots.figure(1, count, width=1 + 3.7 * count, height=4.4, caption=caption)
    every = max(1, -(-fields.sizes["x1"] // config.fields.arrows))
    first = (fields.sizes["x1"] - 1) % every // 2
    some = slice(first, None, every)
    for number, (axes, text) in enumerate(zip(panels[0], fields.function.values, strict=True)):
        one = fields.sel(function=text)
        value = one.value.transpose("x2", "x1")
        filled = axes.contourf(one.x1, one.x2, value, levels=18, cmap="viridis")
        axes.contour(one.x1, one.x2, value, levels=filled.levels, colors="white", linewidths=0.4)
        arrows = one.gradient.isel(x1=some, x2=some).transpose("variable", "x2", "x1")
        longest = float(one.length.max())
        spacing = float(one.x1[every] - one.x1[0])
        axes.quiver(arrows.x1, arrows.x2, *arrows.values, color="#000000", angles="xy", scale_units="xy",
                    scale=longest / (1.3 * spacing), width=0.006)  # fmt: skip
        figure.colorbar(filled, ax=axes, shrink=0.62)
        axes.set_aspect("equal")
        plots.finish(axes, x="x1", y="x2" if number == 0 else "", title=f"{text}\nsteepest slope {longest:.3g}")
    return figure


def _draw_surfaces(fields: "xarray.Dataset") -> "Figure":
    caption = "The same functions as surfaces: where an arrow is long the surface is steep."
    count = fields.sizes["function"]
    figure, panels = plots.figure(1, count, width=1 + 3.7 * count, height=4.2, caption=caption)
    for number, text in enumerate(fields.function.values):
        panels[0, number].remove()
        axes: Any = figure.add_subplot(1, count, number + 1, projection="3d")
        value = fields.value.sel(function=text).transpose("x2", "x1")
        axes.plot_surface(*np.meshgrid(fields.x1, fields.x2), value, cmap="viridis", linewidth=0, antialiased=True)
        axes.set(xlabel="x1", ylabel="x2", title=text)
    return figure


def _draw_agreement(curves: "xarray.Dataset", gaps: "xarray.Dataset") -> "Figure":
    caption = (
        "Left: distance from the symbolic slope, relative to it or to 1; dots are differences, lines automatic "
        "differentiation, exact where no line is drawn. Right: the gap between curve and tangent; dashed: f'' h²/2."
    )
    figure, ((left, right),) = plots.figure(1, 2, width=10.5, height=4.2, caption=caption)
    for number, text in enumerate(curves.function.values):
        one, colour = curves.sel(function=text), plots.colour(number)
        scale = np.maximum(1, np.abs(one.symbolic))
        for values, look in ((one.difference, "."), (one.automatic, "-")):
            off = (np.abs(values - one.symbolic) / scale).values
            left.plot(one.offset, np.where(off > 0, off, np.nan), look, color=colour, markersize=3)
        gap = gaps.sel(function=text)
        right.plot(gap.distance, gap.gap, "o-", color=colour, label=text)
        last = number == curves.sizes["function"] - 1
        plots.theory(right, gap.distance, gap.expected, label="f'' h²/2" if last else "")
    plots.logarithmic(left)
    plots.logarithmic(right, "xy")
    plots.finish(left, x="distance from the point of contact", y="relative error of the slope", legend="none")
    plots.finish(right, x="distance h from the point of contact", y="gap")
    return figure


def _draw_point(config: Config, fields: "xarray.Dataset", point: "xarray.Dataset") -> "Figure":
    caption = (
        f"Along x1 through ({config.fields.at[0]:g}, {config.fields.at[1]:g}): f, and the slopes from the left and "
        "from the right as limits of the difference quotient. Where they differ there is no derivative."
    )
    count = fields.sizes["function"]
    figure, panels = plots.figure(1, count, width=1 + 3.4 * count, height=3.8, caption=caption)
    reach = np.linspace(-1, 1, 201)
    for number, (axes, text) in enumerate(zip(panels[0], fields.function.values, strict=True)):
        expression, asked = parse(str(text), VARIABLES), point.sel(function=text, angle=0)
        values = np.asarray(expression(jnp.asarray(config.fields.at[0] + reach), config.fields.at[1]))
        middle = values[len(reach) // 2]
        axes.plot(config.fields.at[0] + reach, values, color=plots.colour(0), label="f")
        for side, sign, colour in (("left", -1, 1), ("right", 1, 2)):
            slope = float(asked[side])
            if np.isfinite(slope):
                line = np.array([0, 0.8 * sign])
                axes.plot(config.fields.at[0] + line, middle + slope * line, color=plots.colour(colour), linewidth=2.5,
                          label=f"slope from the {side}: {round(slope, 6) + 0.0:g}")  # fmt: skip
        grad = float(asked.by_grad)
        says, verdict = f"{grad:.4g}" if np.isfinite(grad) else "no number", STATUSES[int(asked.verdict)].split(":")[0]
        plots.finish(axes, x="x1", y="f" if number == 0 else "", title=f"{text}\n{verdict}; jax.grad: {says}")
    return figure


EXPERIMENT = Experiment("derivatives", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
