r"""How do sums become integrals, and what does it take to be right sooner?

Question. How fast do polygons enclose the circle, and sums an area? What does it take to be faster, also by chance?

Mathematics. Half the perimeters of the regular polygons around and inside the unit circle obey, from n to 2n sides,

    A' = 2AB / (A + B),  B' = √(A'B),  with errors π³/(3n²) and -π³/(6n²).

The Euler-Maclaurin formula says how far a rule with panels of width h is off on [a, b], where [f] = f(b) - f(a):

    left, right ∓(h/2) [f],  midpoint -(h²/24) [f'],  trapezoid (h²/12) [f'],  Simpson (h⁴/180) [f‴].
The mean of n random points has the standard error V s / √n in any number of variables.

Claim. The 96-gons lie inside 3 10/71 < π < 3 1/7. Orders and errors are those above; smoothness gives Gauss all digits
with 8 nodes, a kink costs Simpson's rule its order. ∫∫ x² + y² is 8/3 over the square, and over the disc the same in
both coordinates, to 1e-12. The error of Monte Carlo is like n^-1/2; 95 % of the runs have 8/3 in their interval.

Command. python -m calcdl.experiments.integrals configs/integrals.toml
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from calcdl import study
from calcdl.calculus import derivatives
from calcdl.calculus.antiderivatives import antiderivative
from calcdl.calculus.expressions import parse
from calcdl.calculus.integrals import integrate
from calcdl.calculus.multiple import integrate_box, integrate_region
from calcdl.calculus.quadrature import RULES
from calcdl.calculus.sampling import monte_carlo, quasi_monte_carlo
from calcdl.lab import panels, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ExperimentConfig, Finite, Rate, Readable, Section, Seeds
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

# Of the errors of the polygons about and inside the circle, in π³ / n².
POLYGONS = {"circumscribed": 1 / 3, "inscribed": -1 / 6}
# Order, which derivative enters at the ends, and its factor.
LEADING = {"left": (1, 0, -1 / 2), "right": (1, 0, 1 / 2), "midpoint": (2, 1, -1 / 24), "trapezoid": (2, 1, 1 / 12)}
LEADING |= {"simpson": (4, 3, 1 / 180)}
SAMPLERS, WAYS, REPLICATES = ("monte_carlo", "quasi_monte_carlo"), ("box", "disc", "polar"), 16
ORDER_GATE, STANDARD_ERRORS, LEAST_SHOWN = 0.05, 4.5, 3e-17
PARTS, GATE = ("exhaustion", "quadrature", "regions", "chance"), {"float64": 1e-12, "float32": 1e-5}


OfX = Annotated[str, Readable(parse, "a formula in x")]
OfXY = Annotated[str, Readable(partial(parse, variables=("x", "y")), "a formula in x, y")]
Even = Annotated[int, Field(ge=2, le=2048, multiple_of=2)]
Points = Annotated[int, Field(ge=32, le=2**24, multiple_of=REPLICATES)]
Pair = tuple[Finite, Finite]
Box = tuple[Pair, Pair]


class Quadrature(Section):
    """The same integral by every rule."""

    smooth: OfX = Field(default="exp(x)", description="an integrand with as many derivatives as one likes")
    rough: AxisOf[OfX] = Field(default=("abs(x - 0.3)", "sqrt(x)"), description="integrands that lack derivatives")
    limits: Pair = Field(default=(0.0, 1.0), description="lower and upper limit")
    panels: AxisOf[Even] = Field(default=(2, 4, 8, 16, 32, 64, 128, 256, 512), description="panels, or nodes of Gauss")
    gauss_nodes: Even = Field(default=8, description="nodes that give Gauss all digits of the smooth one")


class Volume(Section):
    """A double integral, by rules and by chance."""

    integrand: OfXY = Field(default="x**2 + y**2", description="a formula in x and y")
    lower: Pair = Field(default=(-1.0, -1.0), description="lower limits of x and y")
    upper: Pair = Field(default=(1.0, 1.0), description="upper limits of x and y")
    radius: Rate = Field(default=1.0, description="of the disc about 0 over which it is integrated too")
    samples: AxisOf[Points] = Field(
        default=(64, 256, 1024, 4096, 16384), description="points, or 16 shifts of a lattice"
    )
    seeds: Seeds = Field(default=tuple(range(256)), description="one run a seed and number of points")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float32", "float64"] = Field(default="float64", description="type of all floating numbers")
    doublings: Annotated[int, Field(ge=4, le=60)] = Field(default=26, description="of the sides, from the hexagon")
    quadrature: Quadrature = Field(default=Quadrature(), description="rules")
    volume: Volume = Field(default=Volume(), description="double integrals")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Exhaust the circle, sum by every rule, integrate over two variables by rules and by chance."""
    one, volume, dtype = config.quadrature, config.volume, config.precision
    run, by_sides = partial(run, dtype=dtype), dict.fromkeys((*POLYGONS, "extrapolated"), ("sides",))
    circle = run(partial(polygons, doublings=config.doublings, dtype=dtype), [], name="exhaustion", dimensions=by_sides)
    texts = (one.smooth, *(text for text in one.rough if text != one.smooth))
    axes = [study.axis("integrand", texts), study.axis("rule", RULES), study.axis("panels", one.panels, static=True)]
    sums = run(partial(quadrature, limits=one.limits, dtype=dtype), axes, name="quadrature")
    closed = {text: by_antiderivatives(text, [("x", *one.limits)]) for text in texts}
    exact = [float(integrate(parse(t), *one.limits).value) if math.isnan(x) else x for t, x in closed.items()]
    fixed: Any = {"integrand": volume.integrand, "box": (volume.lower, volume.upper), "dtype": dtype}
    regions = run(partial(region, radius=volume.radius, **fixed), [study.axis("way", WAYS)], name="regions")
    axes = [study.axis("sampler", SAMPLERS), study.axis("samples", volume.samples, static=True)]
    chance = run(partial(sample, **fixed), [*axes, study.axis("seed", volume.seeds)], name="chance")
    return study.join(
        exhaustion=circle.assign_coords(sides=6.0 * 2.0 ** np.arange(config.doublings + 1)),
        quadrature=sums.assign(exact=("integrand", exact), leading=(("rule", "panels"), leading_errors(one))),
        chance=chance, regions=regions.assign(
            exact=by_antiderivatives(volume.integrand, [*zip("xy", volume.lower, volume.upper, strict=True)])),
    )  # fmt: skip


def by_antiderivatives(text: str, limits: Sequence[tuple[str, float, float]]) -> float:
    """Integrate a formula over a box by antiderivatives; NaN where none was found."""
    import sympy

    value: Any = parse(text, [name for name, *_ in limits]).symbolic()
    for name, lower, upper in limits:
        symbol = sympy.Symbol(name, real=True)
        found = antiderivative(value, symbol)
        if found is None:
            return math.nan
        value = found.subs(symbol, sympy.Rational(upper)) - found.subs(symbol, sympy.Rational(lower))
    return float(value.evalf(25)) if value.is_number and value.is_finite and value.is_real else math.nan


def leading_errors(one: Quadrature) -> np.ndarray:
    """Return the first term of the error by rule and panels, for the smooth integrand; NaN for Gauss."""
    lower, upper = jnp.asarray(one.limits)
    density = np.asarray(one.panels) / (one.limits[1] - one.limits[0])
    slopes = [derivatives.derivative(parse(one.smooth), by) for by in range(4)]
    terms = [LEADING.get(rule, (1, 0, np.nan)) for rule in RULES]
    return np.stack([factor / density**p * float(slopes[by](upper) - slopes[by](lower)) for p, by, factor in terms])


def polygons(key: Key, *, doublings: int, dtype: str) -> dict[str, Array]:
    """Double the sides of two hexagons, again and again; weigh both so that the errors of order 2 cancel."""

    def double(pair: Any, _: None) -> Any:
        outer = 2 * pair[0] * pair[1] / (pair[0] + pair[1])
        return (outer, jnp.sqrt(outer * pair[1])), pair

    hexagons = jnp.asarray(2 * math.sqrt(3), dtype), jnp.asarray(3, dtype)
    _, (outer, inner) = jax.lax.scan(double, hexagons, length=doublings + 1)
    return {"circumscribed": outer, "inscribed": inner, "extrapolated": (outer + 2 * inner) / 3}


def quadrature(key: Key, *, integrand: str, rule: str, panels: int, limits: Pair, dtype: str) -> dict[str, Array]:
    """Integrate by one rule."""
    summed: Any = RULES[rule]
    return {"value": summed(parse(integrand), *jnp.asarray(limits, dtype), panels)}


def region(key: Key, *, way: str, integrand: str, box: Box, radius: float, dtype: str) -> dict[str, Array]:
    """Integrate over a box, and over a disc in Cartesian and in polar coordinates."""
    f, r, (lower, upper) = parse(integrand, ("x", "y")), jnp.asarray(radius, dtype), jnp.asarray(box, dtype)

    def height(x: Array) -> Array:
        return jnp.sqrt(jnp.maximum(r**2 - x**2, 0))

    def place(polar: Array) -> Array:
        return polar[0] * jnp.stack([jnp.cos(polar[1]), jnp.sin(polar[1])])

    def stretched(polar: Array) -> Array:
        j = derivatives.jacobian(place)(polar)
        return f(*place(polar)) * jnp.abs(j[0, 0] * j[1, 1] - j[0, 1] * j[1, 0])

    if way == "disc":
        found = integrate_region(f, [(-r, r), (lambda x: -height(x), height)])
    elif way == "polar":
        found = integrate_box(stretched, jnp.zeros(2, dtype), jnp.stack([r, jnp.asarray(2 * math.pi, dtype)]))
    else:
        found = integrate_box(lambda point: f(*point), lower, upper)
    return {"value": found.value, "error": found.error, "evaluations": found.evaluations}


def sample(key: Key, *, sampler: str, samples: int, integrand: str, box: Box, dtype: str) -> dict[str, Array]:
    """Integrate over a box by random points."""
    f, key = parse(integrand, ("x", "y")), jax.random.fold_in(key, samples)
    lower, upper = jnp.asarray(box, dtype)
    if sampler == "monte_carlo":
        return monte_carlo(key, lambda at: f(*at), lower, upper, samples)._asdict()
    return quasi_monte_carlo(key, lambda at: f(*at), lower, upper, samples // REPLICATES)._asdict()


def order(sizes: Any, values: Any, exact: float, rounding: float = 0.0) -> float:
    """Return p of errors like size^-p, by least squares over those well above rounding; NaN for fewer than three."""
    sizes, errors = np.asarray(sizes, np.float64), np.abs(np.asarray(values, np.float64) - exact)
    kept = errors > 2e3 * rounding * max(abs(exact), errors.max())
    return float(-np.polyfit(np.log(sizes[kept]), np.log(errors[kept]), 1)[0]) if kept.sum() >= 3 else math.nan


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold polygons, rules, regions and chance against what the mathematics says."""
    circle, sums, regions, chance = (study.part(results, name) for name in PARTS)
    return (*_polygon_verdicts(config, circle), *_rule_verdicts(config, sums), *_region_verdicts(config, regions),
            *_chance_verdicts(config, chance, float(regions.exact.fillna(regions.value[0]))))  # fmt: skip


def _polygon_verdicts(config: Config, circle: "xarray.Dataset") -> list[Verdict]:
    outer, inner = (float(circle[name][4]) for name in POLYGONS)
    spare = min(inner - 223 / 71, math.pi - inner, outer - math.pi, 22 / 7 - outer)
    claim = "the polygons of 96 sides give 3 10/71 < pi < 3 1/7, as Archimedes found"
    evidence = f"{223 / 71:.6f} < {inner:.6f} < pi < {outer:.6f} < {22 / 7:.6f}; the least of the four gaps"
    rounding = float(np.finfo(config.precision).eps)
    found = {name: order(circle.sides, circle[name], math.pi, rounding) for name in POLYGONS}
    orders = _orders_verdict("polygons, by the number of sides: order 2", found, dict.fromkeys(POLYGONS, 2.0))
    return [Verdict(claim, spare > 0, spare, 0.0, evidence), orders]


def _orders_verdict(claim: str, found: dict[str, float], expected: dict[str, float]) -> Verdict:
    worst, told = max(abs(p / expected[name] - 1) for name, p in found.items()), _listed(found)
    return Verdict(f"{claim}, to {ORDER_GATE:.0%}", worst <= ORDER_GATE, worst, ORDER_GATE, f"by least squares: {told}")


def _listed(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {number:.4f}" for name, number in numbers.items())


def rule_orders(config: Config, sums: "xarray.Dataset") -> dict[tuple[str, str], float]:
    """Return the measured order of every rule for every integrand."""
    rounding, places = float(np.finfo(config.precision).eps), product(sums.integrand.values, sums.rule.values)
    each = {place: sums.sel(integrand=place[0], rule=place[1]) for place in places}
    return {place: order(one.panels, one.value, float(one.exact), rounding) for place, one in each.items()}


def _rule_verdicts(config: Config, sums: "xarray.Dataset") -> list[Verdict]:
    smooth, orders, nodes = config.quadrature.smooth, rule_orders(config, sums), config.quadrature.gauss_nodes
    claim = f"{smooth}: the orders of left, right, midpoint, trapezoid, Simpson are 1, 1, 2, 2, 4"
    found, expected = (
        {rule: orders[smooth, rule] for rule in LEADING},
        {rule: float(LEADING[rule][0]) for rule in LEADING},
    )
    verdicts = [_orders_verdict(claim, found, expected)]
    one, gate = sums.sel(integrand=smooth), 16 * float(np.finfo(config.precision).eps)
    errors = one.value - one.exact
    ratios = {rule: float((errors / one.leading).sel(rule=rule).median()) for rule in LEADING}
    worst = max(abs(ratio - 1) for ratio in ratios.values())
    claim = f"{smooth}: the errors are the first term of the Euler-Maclaurin formula, to {ORDER_GATE:.0%}"
    evidence = f"error over that term, median over numbers of panels: {_listed(ratios)}"
    verdicts.append(Verdict(claim, worst <= ORDER_GATE, worst, ORDER_GATE, evidence))
    least = np.abs(errors / one.exact).where(one.panels <= nodes).min("panels")
    claim, error = f"{smooth}: Gauss has all digits with at most {nodes} nodes", float(least.sel(rule="gauss_legendre"))
    evidence = f"least relative error; Simpson's with as many panels is {float(least.sel(rule='simpson')):.1g}"
    verdicts.append(Verdict(claim, error <= gate, error, gate, evidence))
    rough = {text: p for (text, rule), p in orders.items() if rule == "simpson" and text != smooth}
    highest = max(rough.values(), default=math.nan)
    claim = "a kink or an infinite slope takes at least one and a half orders of four from Simpson's rule"
    return [*verdicts, Verdict(claim, highest <= 2.5, highest, 2.5, f"its order for {_listed(rough)}")]


def _region_verdicts(config: Config, regions: "xarray.Dataset") -> list[Verdict]:
    volume, gate, exact = config.volume, GATE[config.precision], float(regions.exact)
    box, disc, polar = (float(value) for value in regions.value)
    away = abs(box / exact - 1) if exact else abs(box)
    claim = f"the integral of {volume.integrand} over the box is that by antiderivatives, {exact:.12g}"
    verdicts = [] if math.isnan(exact) else [Verdict(claim, away <= gate, away, gate, f"relative error of {box:.15g}")]
    away = abs(disc / polar - 1) if polar else abs(disc)
    claim = f"over the disc of radius {volume.radius:g} it is the same in Cartesian and in polar coordinates"
    evidence = f"relative difference of {disc:.15g} and {polar:.15g}, each from {int(regions.evaluations[1]):,} points"
    return [*verdicts, Verdict(claim, away <= gate, away, gate, evidence)]


def _chance_verdicts(config: Config, chance: "xarray.Dataset", exact: float) -> list[Verdict]:
    from scipy.special import ndtri, stdtrit

    errors, root = chance.value - exact, np.sqrt(((chance.value - exact) ** 2).mean("seed"))
    slow, fast = (order(chance.samples, one, 0.0) for one in root.transpose("sampler", "samples"))
    off, gate = abs(slow / 0.5 - 1), 2 * ORDER_GATE
    claim = f"the error of Monte Carlo falls like samples^-1/2, to {gate:.0%}"
    evidence = f"root mean square over {chance.sizes['seed']} seeds: order {slow:.3f}"
    verdicts = [Verdict(claim, off <= gate, off, gate, evidence)]
    claim = "that of quasi-Monte Carlo falls like 1/samples or faster, as nearly as order 0.9"
    evidence = f"order; at most points its error is {float(root[1, -1] / root[0, -1]):.2g} of that of Monte Carlo"
    verdicts.append(Verdict(claim, fast >= 0.9, fast, 0.9, evidence))
    quantiles = {"monte_carlo": float(ndtri(0.975)), "quasi_monte_carlo": float(stdtrit(REPLICATES - 1, 0.975))}
    inside = {name: np.abs(errors / chance.standard_error).sel(sampler=name) <= q for name, q in quantiles.items()}
    share, quasi = (float(one.mean()) for one in inside.values())
    off = abs(share - 0.95) / math.sqrt(0.95 * 0.05 / inside["monte_carlo"].size)
    claim = "the 95 % interval of Monte Carlo holds the integral in 95 % of the runs, in standard errors"
    evidence = f"it does in {share:.2%} of {inside['monte_carlo'].size:,} runs, that of the lattice in {quasi:.2%}"
    return [*verdicts, Verdict(claim, off <= STANDARD_ERRORS, off, STANDARD_ERRORS, evidence)]


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw polygons, rules and chance."""
    circle, sums, regions, chance = (study.part(results, name) for name in PARTS)
    return {"exhaustion": _draw_exhaustion(circle), "quadrature": _draw_quadrature(config, sums),
            "chance": _draw_chance(config, chance, float(regions.exact.fillna(regions.value[0])))}  # fmt: skip


def _draw_exhaustion(circle: "xarray.Dataset") -> "Figure":
    caption = (
        "Polygons around and inside the circle close in on pi. Right: doubling the sides divides the error by 4, "
        "until rounding ends it (dashed: pi^3/3n^2, pi^3/6n^2); that of a mean in which those cancel, by 16."
    )
    figure, ((*circles, by_sides),) = plots.figure(1, 3, width=12.0, height=4.0, caption=caption)
    disc = np.cos(np.linspace(0, 2 * np.pi, 401)), np.sin(np.linspace(0, 2 * np.pi, 401))
    for at, axes in enumerate(circles):
        sides, inner, outer = (float(circle[name][at]) for name in ("sides", "inscribed", "circumscribed"))
        axes.fill(*disc, facecolor="#EEEEEE", edgecolor="#000000", linewidth=1.2)
        corners = (np.arange(sides + 1) * 2 + 1) * np.pi / sides - np.pi / 2
        for position, radius in enumerate((1 / np.cos(np.pi / sides), 1.0)):
            axes.plot(radius * np.cos(corners), radius * np.sin(corners), color=plots.colour(position))
        axes.set(aspect="equal", xlim=(-1.25, 1.25), ylim=(-1.25, 1.25))
        plots.finish(axes, x="", y="", title=f"{sides:.0f} sides: {inner:.4f} < π < {outer:.4f}", legend="none")
        axes.set_axis_off()
    for position, name in enumerate((*POLYGONS, "extrapolated")):
        label, look = name if name in POLYGONS else "(2 inscribed + circ.) / 3", panels.look(position)
        error = np.abs(circle[name] - math.pi).clip(2e-16)
        by_sides.plot(circle.sides, error, **look, markersize=4, linewidth=1.0, label=label)
        theory = abs(POLYGONS.get(name, np.nan)) * math.pi**3 / circle.sides**2
        plots.theory(by_sides, circle.sides, theory.where(theory > 2e-16), label="")
    plots.logarithmic(by_sides, "xy")
    plots.finish(by_sides, x="sides", y="error of half the perimeter", title="errors of order 2, and 4")
    return figure


def _draw_quadrature(config: Config, sums: "xarray.Dataset") -> "Figure":
    caption = (
        "Error of one integral by evaluations of the integrand; numbers: measured orders. Dashed: first term of the "
        "Euler-Maclaurin formula. Where derivatives are missing, the gain of the better rules goes with them."
    )
    texts, orders, smooth = sums.integrand.values, rule_orders(config, sums), config.quadrature.smooth
    figure, (drawn,) = plots.figure(1, len(texts), width=1.6 + 3.4 * len(texts), height=4.4, share_y=True,
                                    caption=caption)  # fmt: skip
    for axes, text in zip(drawn, texts, strict=True):
        ends = []
        for position, rule in enumerate(sums.rule.values):
            one = sums.sel(integrand=text, rule=rule)
            used = one.panels.values + (rule in ("trapezoid", "simpson"))
            error = np.abs(one.value - one.exact).clip(LEAST_SHOWN)
            axes.plot(used, error, **panels.look(position), markersize=4, linewidth=1.2)
            if text == smooth and rule in LEADING:
                plots.theory(axes, used, np.abs(one.leading), label="")
            if np.isfinite(orders[text, rule]) and not (text == smooth and rule not in LEADING):
                ends.append((float(np.log10(error[-1])), position, f"{orders[text, rule]:.1f}"))
        height = -math.inf
        for end, position, told in sorted(ends):
            height = max(end, height + 0.75)  # decades, so that no number covers another
            axes.annotate(told, (sums.panels.values[-1], 10**height), xytext=(8, -3), textcoords="offset points",
                          color=plots.colour(position), fontsize=8)  # fmt: skip
        plots.logarithmic(axes, "xy")
        axes.set_xscale("log", base=2)
        axes.margins(x=0.12)
        plots.finish(axes, x="evaluations", y="error" if axes is drawn[0] else "", legend="none",
                     title=f"∫ {text} dx = {float(sums.exact.sel(integrand=text)):.6f}")  # fmt: skip
    drawn[0].set_ylim(LEAST_SHOWN / 3, 3)
    panels.legend(figure, [str(rule).replace("_", "-") for rule in sums.rule.values], title="rule", markers=True)
    return figure


def _draw_chance(config: Config, chance: "xarray.Dataset", exact: float) -> "Figure":
    most = config.volume.samples[len(config.volume.samples) // 2]
    caption = (
        f"The integral of {config.volume.integrand} by random points, {chance.sizes['seed']} seeds. Left: median error "
        f"and quartiles; dashed: n^-1/2, 1/n. Right: intervals of 95 % from {most} points; one in 20 misses (orange)."
    )
    figure, ((by_samples, intervals),) = plots.figure(1, 2, width=10.5, height=4.2, caption=caption)
    for position, (name, label) in enumerate(zip(SAMPLERS, ("Monte Carlo", "quasi-Monte Carlo"), strict=True)):
        error = np.abs(chance.value.sel(sampler=name) - exact)
        plots.band(by_samples, chance.samples, error, over="seed", label=label, position=position, markers=True)
        line = float(error[0].median()) * (chance.samples / chance.samples[0]) ** [-0.5, -1.0][position]
        plots.theory(by_samples, chance.samples, line, label="")
    one = chance.sel(sampler="monte_carlo", samples=most).isel(seed=slice(60))
    outside = np.abs(one.value - exact) > 1.96 * one.standard_error
    for position, misses in enumerate((~outside, outside)):
        look = {"fmt": "o", "color": plots.colour(position), "markersize": 3}
        intervals.errorbar(np.flatnonzero(misses), one.value[misses], 1.96 * one.standard_error[misses], **look)
    plots.threshold(intervals, exact)
    plots.logarithmic(by_samples, "xy")
    plots.finish(by_samples, x="points n", y="error")
    plots.finish(intervals, x="run", y="estimate with interval of 95 %", title=f"exact: {exact:.6g}", legend="none")
    return figure


EXPERIMENT = Experiment("integrals", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
