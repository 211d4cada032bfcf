r"""What can a computer, which sees finitely many points, say of a limit, and which step suits a difference quotient?

Question. A derivative is the limit of (f(x + h) - f(x)) / h. In exact arithmetic a smaller h is always better; in a
computer it is not. When does it harm?

Mathematics. A quotient of order p errs by what it cuts off and by what is rounded off,

    |D_h f - f'|  ≤  c |f⁽ᵖ⁺¹⁾| hᵖ  +  r u |f| / h,    least at  h* = (r u |f| / (p c |f⁽ᵖ⁺¹⁾|))^(1/(p+1)),

u being the unit round-off of the dtype: against h the error is a U. The dtype sets its left arm, the scheme its right.

Claim. Every limit in the configuration gets its known answer (a value, an infinity, or the reason why there is none),
and no error estimate is less than the error. The best step, measured over many points, is within a factor of 3 of h*
in every dtype and scheme. To the right of it the error shrinks with the power p of the step, to 5 %.

Command. python -m calcdl.experiments.limits configs/limits.toml
"""

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import study
from calcdl.calculus import limits as toolkit
from calcdl.calculus.derivatives import derivative, tangent_line
from calcdl.calculus.differences import SCHEMES, best_step, difference_quotient, error_curve
from calcdl.calculus.expressions import parse
from calcdl.calculus.sequences import sequence_limit
from calcdl.lab import panels, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, ExperimentConfig, Finite, OneOf, Rate, Readable, Section, refuse
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVED, DTYPES = ("forward", "central", "five_point"), ("bfloat16", "float16", "float32", "float64")
SIDES, REACHES, WINDOW = ("left", "right"), (0.5, 0.05, 0.005), 10_000
OUTCOMES = {  # what an answer that is no number may be, and the verdicts that give it
    "inf": (toolkit.UP,), "-inf": (toolkit.DOWN,), "oscillates": (toolkit.OSCILLATES,), "differs": (toolkit.DIFFERS,),
    "undefined": (toolkit.UNDEFINED,), "undecided": (toolkit.SLOW, toolkit.ROUGH),
}  # fmt: skip
QUOTIENTS = {"backward": "from the left", "forward": "from the right", "central": "from both sides"}
FACTOR, SLOPE_TOLERANCE, FEWEST_FITTED, ASYMPTOTIC = 3.0, 0.05, 5, 10.0


def _question(text: str) -> Any:
    """Read a formula in n if that is all it holds, else in x."""
    return parse(text, ("n",) if parse(text, None).variables == ("n",) else ("x",))


def _answer(text: str) -> Any:
    return text if text in OUTCOMES else parse(text, ())


Answer = Annotated[str, Readable(_answer, f"a constant such as 1/2 or e, or one of {', '.join(OUTCOMES)}")]
Formula = Annotated[str, Readable(parse, "a formula in x")]
FormulaOrTerms = Annotated[str, Readable(_question, "a formula in x or in n")]


class Question(Section):
    """A limit and its known answer."""

    text: FormulaOrTerms = Field(default="sin(x)/x", description="a formula in x, or in n = 1, 2, ... for a sequence")
    at: Annotated[float, Field(ge=-math.inf)] = Field(default=0.0, description="the point; inf for a sequence")
    side: Literal["both", "left", "right"] = Field(default="both", description="from where x comes")
    answer: Answer = Field(default="1", description=f"a constant such as 1/2 or e, or {', '.join(OUTCOMES)}")

    @model_validator(mode="after")
    def _at_infinity(self) -> Self:
        if self.is_sequence and self.at != math.inf:
            raise refuse("at", self.at, "inf, for a sequence in n")
        return self

    @property
    def is_sequence(self) -> bool:
        """Whether it is asked in n."""
        return parse(self.text, None).variables == ("n",)

    @property
    def title(self) -> str:
        """The limit as it is written on a line."""
        sign = "" if math.isinf(self.at) else {"left": "-", "right": "+", "both": ""}[self.side]
        return f"{self.text}, {'n' if self.is_sequence else 'x'} → {self.at:g}{sign}".replace("inf", "∞")


class Secants(Section):
    """A derivative as a limit: secants become the tangent."""

    text: Formula = Field(default="3*x**2 - 4*x", description="a formula in x")
    at: Finite = Field(default=1.0, description="where its slope is wanted")
    steps: AxisOf[Rate] = Field(default=tuple(float(f"1e-{k}") for k in range(9)), description="steps h")


class Curves(Section):
    """The error of a quotient against its step, at many points, for round-off is as good as random."""

    text: Formula = Field(default="exp(x)", description="a smooth formula in x")
    centre: Finite = Field(default=1.5, description="x in the middle")
    spread: Rate = Field(default=0.5, description="farthest x from the middle")
    points: Annotated[int, Field(ge=2, le=100_000)] = Field(default=200, description="how many x, evenly spaced")
    dtypes: AxisOf[Annotated[str, OneOf(DTYPES)]] = Field(default=DTYPES, description="dtypes of quotients")
    schemes: AxisOf[Annotated[str, OneOf(SCHEMES)]] = Field(default=CURVED, description="quotients")
    steps: Annotated[int, Field(ge=10, le=10_000)] = Field(
        default=97, description="steps, by ratio, from the epsilon on"
    )
    largest_step: Rate = Field(default=4.0, description="greatest step")
    largest_fitted: Rate = Field(default=0.1, description="greatest step from which an order is read")


def _questions() -> tuple[Question, ...]:
    asked: tuple[tuple[str, float, Any, str], ...] = (
        ("(3*(1+x)**2 - 4*(1+x) + 1)/x", 0.0, "both", "2"), ("sin(x)/x", 0.0, "both", "1"),
        ("(1 - cos(x))/x**2", 0.0, "both", "1/2"), ("x*sin(1/x)", 0.0, "both", "0"), ("x*log(x)", 0.0, "right", "0"),
        ("(1 + 1/x)**x", math.inf, "both", "e"), ("(1 + 1/n)**n", math.inf, "both", "e"),
        ("1/x**2", 0.0, "both", "inf"), ("1/x", 0.0, "left", "-inf"), ("1/x", 0.0, "right", "inf"),
        ("1/x", 0.0, "both", "differs"), ("abs(x)/x", 0.0, "left", "-1"), ("abs(x)/x", 0.0, "right", "1"),
        ("abs(x)/x", 0.0, "both", "differs"), ("floor(x)", 2.0, "both", "differs"),
        ("sin(1/x)", 0.0, "both", "oscillates"), ("cos(pi*n)", math.inf, "both", "oscillates"),
        ("sqrt(x)", 0.0, "both", "undefined"), ("log(log(1/x))", 0.0, "right", "undecided"),
    )  # fmt: skip
    return tuple(Question(text=text, at=at, side=side, answer=answer) for text, at, side, answer in asked)


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float64"] = Field(default="float64", description="type beside which narrower ones are judged")
    limits: Annotated[tuple[Question, ...], Field(min_length=1)] = Field(
        default=_questions(), description="what is asked"
    )
    terms: Annotated[int, Field(ge=24, le=100_000)] = Field(default=400, description="terms seen of a sequence")
    zoomed: AxisOf[Formula] = Field(default=("sin(1/x)", "x*sin(1/x)"), description="formulas seen ever closer to 0")
    secants: Secants = Field(default=Secants(), description="secants and the tangent")
    curves: Curves = Field(default=Curves(), description="error against step")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Take quotients over many steps, and measure the limits."""
    curves, x = config.curves, _points(config.curves)
    axes = [study.axis("dtype", curves.dtypes), study.axis("scheme", curves.schemes), study.axis("x", x)]
    function = partial(curve, text=curves.text, steps=curves.steps, largest=curves.largest_step)
    by_step = dict.fromkeys(("step", "error", "truncation", "round_off"), ("number",))
    errors = run(function, axes, name="curves", dimensions=by_step, dtype=config.precision)
    planned = bool((errors.status == study.STATUSES.index("not_run")).all())  # and no more is wanted
    return study.join(curves=errors, **({} if planned else {"limits": answers(config)}))


def _points(curves: Curves) -> np.ndarray:
    """Return where quotients are taken; a formula that is not finite wherever they look is refused."""
    reach = curves.largest_step * max(abs(offset) for name in curves.schemes for offset in SCHEMES[name].offsets)
    x = curves.centre + np.linspace(-1, 1, 101) * (curves.spread + reach)
    most = min(float(jnp.finfo(dtype).max) for dtype in curves.dtypes)
    fits = np.abs(np.asarray(parse(curves.text)(jnp.asarray(x, jnp.float32)))) <= most
    if not fits.all():
        wanted = f"a formula of sizes up to {most:.3g} from {x[0]:g} to {x[-1]:g}, or a smaller curves.largest_step"
        raise ConfigError(f"curves.text: got {curves.text}, not so at {x[fits.argmin()]:.3g}; expected {wanted}")
    return curves.centre + np.linspace(-1, 1, curves.points) * curves.spread


def curve(key: Key, *, x: Array, dtype: str, scheme: str, text: str, steps: int, largest: float) -> dict[str, Array]:
    """Return the error of a quotient over many steps, its two predicted parts, and the predicted best step."""
    function, kind = parse(text), jnp.finfo(dtype)
    # Rounded in so many words: a compiler may drop a conversion to a narrower dtype that is followed by one back.
    at = jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
    taken = jnp.asarray(np.geomspace(float(kind.eps), largest, steps), x.dtype)
    errors = error_curve(function, at.astype(dtype), taken, scheme=scheme)
    bend = derivative(function, SCHEMES[scheme].order + 1)(at)
    return {**errors._asdict(), "best": best_step(scheme, dtype, value=function(at), curvature=bend).astype(x.dtype)}


def answers(config: Config) -> "xarray.Dataset":
    """Measure the limits; eagerly, for a program of each would cost more than its answer."""
    import xarray

    dtype, rows = jnp.dtype(config.precision), []
    for one in config.limits:
        if one.is_sequence:
            found: Any = sequence_limit(parse(one.text, ("n",))(jnp.arange(1, config.terms + 1, dtype=dtype)))
            evidence = [part[None] for part in found[3:]]
        else:
            found = toolkit.limit(parse(one.text), jnp.asarray(one.at, dtype), side=one.side)
            evidence = found.approaches[3:]
        points, reached, noise = map(np.asarray, evidence)
        distance = 1 / np.abs(points) if math.isinf(one.at) else np.abs(points - one.at)
        known = math.nan if one.answer in OUTCOMES else float(parse(one.answer, ())())
        row = {"value": float(found.value), "error": float(found.error), "verdict": int(found.status), "known": known}
        sides = SIDES if len(points) == 2 else (SIDES[one.side == "right" or one.at == -math.inf],)
        places = {"side": list(sides), "point": np.arange(points.shape[1])}
        tables = {"distance": distance, "reached": reached, "noise": noise}
        rows.append(xarray.Dataset(row | {name: (tuple(places), part) for name, part in tables.items()}, places))
    return xarray.concat(rows, "limit", join="outer", data_vars="all")


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold answers, best steps and orders against what is known."""
    found, curves = study.part(results, "limits"), study.part(results, "curves")
    return (
        _answer_verdict(config, found),
        *([_estimate_verdict(config, found)] if found.known.notnull().any() else []),
        _step_verdict(curves),
        *([_order_verdict(config, curves)] if "float64" in config.curves.dtypes else []),
    )


def _answer_verdict(config: Config, found: "xarray.Dataset") -> Verdict:
    words = [toolkit.STATUSES[code] for code in found.verdict.values]
    right = [code in OUTCOMES.get(one.answer, (toolkit.CONVERGES,)) for one, code in
             zip(config.limits, found.verdict.values, strict=True)]  # fmt: skip
    missed = [f"; missed {config.limits[place].title}: {words[place]}" for place in np.flatnonzero(~np.array(right))]
    told = "; ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    claim = "every limit gets its known answer, existence and infinities included: answers missed"
    return Verdict(claim, not missed, float(len(missed)), 0.0, f"of {len(words)}: {told}{''.join(missed)}")


def _estimate_verdict(config: Config, found: "xarray.Dataset") -> Verdict:
    places = np.flatnonzero(found.known.notnull())
    numbers = found.isel(limit=places)
    off, unit = np.abs(numbers.value - numbers.known), np.finfo(config.precision).eps * np.abs(numbers.known)
    ratios = (off / (numbers.error + unit).clip(np.finfo(np.float64).tiny)).fillna(np.inf).values
    worst, name = float(ratios.max()), config.limits[places[ratios.argmax()]].title
    largest = f"largest error {float(off.max()):.1e}, largest estimate {float(numbers.error.max()):.1e}"
    claim = "no error estimate is less than the error: error over estimate"
    return Verdict(claim, worst <= 1, worst, 1.0, f"largest of {len(places)}, that of {name}; {largest}")


def best(curves: "xarray.Dataset") -> tuple["xarray.DataArray", ...]:
    """Return root mean square errors (one point's least error is luck), and the best step, measured and predicted."""
    error: xarray.DataArray = (curves.error**2).mean("x", skipna=False) ** 0.5
    place = error.where(error.notnull(), np.inf).argmin("number")
    measured = curves.step.isel(x=0).isel(number=place).where(error.notnull().all("number"))
    return error, measured, np.exp(np.log(curves.best).median("x"))


def _step_verdict(curves: "xarray.Dataset") -> Verdict:
    _, measured, predicted = best(curves)
    ratio = (measured / predicted).stack(place=("dtype", "scheme"))
    worst = float(np.exp(np.abs(np.log(ratio.values))).max())  # NaN where nothing could be measured
    told = ", ".join(
        f"{' '.join(place)} {one:.2f}" for place, one in zip(ratio.place.values, ratio.values, strict=True)
    )
    claim = "the best step is the predicted one in every dtype and scheme: largest factor between them"
    return Verdict(
        claim, worst <= FACTOR, worst, FACTOR, f"measured over predicted, {curves.sizes['x']} points: {told}"
    )


def _order_verdict(config: Config, curves: "xarray.Dataset") -> Verdict:
    one, largest, off, told = curves.sel(dtype="float64"), config.curves.largest_fitted, [], []
    for scheme, error, step, least in zip(
        one.scheme.values, best(one)[0], one.step.isel(x=0), best(one)[2], strict=True
    ):
        order, chosen = SCHEMES[scheme].order, ((step >= ASYMPTOTIC * least) & (step <= largest)).values
        logs = np.log([step.values[chosen], error.values[chosen]])
        slope = float(np.polyfit(logs[0], logs[1], 1)[0]) if chosen.sum() >= FEWEST_FITTED else math.nan
        off.append(np.nan_to_num(abs(slope / order - 1), nan=np.inf))
        told.append(f"{scheme} {slope:.4f} for {order}")
    claim = "the error shrinks with the order of the scheme: largest relative deviation of a slope"
    evidence = f"slopes from {ASYMPTOTIC:g} times the best step to {largest:g} in float64: {', '.join(told)}"
    return Verdict(claim, bool(max(off) <= SLOPE_TOLERANCE), float(max(off)), SLOPE_TOLERANCE, evidence)


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw secants, U-curves, the way to each limit, the magnifying glass and the table of answers."""
    found = study.part(results, "limits")
    steps = {"u_curves": _draw_curves(config, study.part(results, "curves")), "secants": _draw_secants(config)}
    ways = {"approach": _draw_approach(config, found), "zoom": _draw_zoom(config)}
    return {**steps, **ways, "answers": _draw_answers(config, found)}


def _draw_curves(config: Config, curves: "xarray.Dataset") -> "Figure":
    names, dtypes, size = curves.scheme.values, curves.dtype.values, curves.sizes["x"]
    what = f"Error of differences for {config.curves.text}: root mean square over {size} points, and one alone (thin)"
    caption, rows = f"{what}. Dashed: theory. Dotted: its best step.", (len(names) + 2) // 2
    figure, axes = plots.figure(rows, 2, width=10.5, height=0.5 + 3.5 * rows, caption=caption)
    error, measured, predicted = best(curves)
    bound = ((curves.truncation + curves.round_off) ** 2).mean("x") ** 0.5
    for panel, scheme in zip(axes.flat, names, strict=False):
        for position, dtype in enumerate(dtypes):
            place, shade = {"dtype": dtype, "scheme": scheme}, plots.colour(position)
            step, alone = curves.step.isel(x=0).sel(place), curves.error.isel(x=size // 2).sel(place)
            panel.plot(step, alone.where(alone > 0), color=shade, linewidth=0.5, alpha=0.6)
            panel.plot(step, error.sel(place), color=shade, linewidth=2.4)
            plots.theory(panel, step, bound.sel(place), label="")
            panel.axvline(float(predicted.sel(place)), color=shade, linestyle=":")
        plots.logarithmic(panel, "xy")
        panel.set_ylim(float(error.min()) / 10, 100.0)
        told = f"{scheme}, order {SCHEMES[str(scheme)].order}".replace("_", "-")
        plots.finish(panel, x="step h", y="error of the derivative", title=told, legend="none")
    last, epsilon = axes.flat[len(names)], [float(jnp.finfo(str(name)).eps) for name in dtypes]
    for scheme, mark in zip(names, ("o", "s", "^", "D"), strict=False):
        told = f"{scheme}, ε^(1/{SCHEMES[str(scheme)].order + 1})".replace("_", "-")
        last.plot([], [], mark, color="#555555", label=told)
        last.scatter(epsilon, measured.sel(scheme=scheme), 40, plots.COLOURS[: len(dtypes)], marker=mark)
        plots.theory(last, epsilon, predicted.sel(scheme=scheme), label="")
    plots.logarithmic(last, "xy")
    plots.finish(last, x="machine epsilon ε of the dtype", y="best step", title="best steps")
    for panel in axes.flat[len(names) + 1 :]:
        panel.set_visible(False)
    panels.legend(figure, [str(name) for name in dtypes], title="dtype")
    return figure


def _draw_secants(config: Config) -> "Figure":
    f, at, steps = parse(config.secants.text), jnp.asarray(config.secants.at, config.precision), config.secants.steps
    slopes = [[float(difference_quotient(f, at, h, scheme=scheme)) for scheme in QUOTIENTS] for h in steps]
    tangent, x = tangent_line(f, at), np.linspace(float(at) - max(steps) / 2, float(at) + 1.25 * max(steps), 200)
    caption = f"Secants of {f.text} turn into the tangent. Right: their slopes, and that of the tangent by autodiff."
    figure, ((left, right),) = plots.figure(1, 2, width=11.0, height=4.4, caption=caption)
    left.plot(x, f(jnp.asarray(x)), color="#000000", linewidth=2.4)
    for position, h in enumerate(max(steps) / np.array([1.0, 2.0, 4.0])):
        slope, shade = float(difference_quotient(f, at, h, scheme="forward")), plots.colour(position)
        left.plot(x, tangent.value + slope * (x - float(at)), color=shade, label=f"h = {h:g}, slope {slope:g}")
        left.plot(float(at + h), float(f(at + h)), "o", color=shade)
    plots.theory(left, x, tangent(x), label=f"tangent, slope {float(tangent.slope):g}")
    plots.finish(left, x="x", y="f(x)")
    rows = [(f"{h:g}", row) for h, row in zip(steps, slopes, strict=True)] + [("tangent", [float(tangent.slope)] * 3)]
    told = [[name, *(f"{slope:.8f}" for slope in row)] for name, row in rows]
    _write(right, [["h", *QUOTIENTS.values()], *told], [0.0, 0.16, 0.44, 0.72])
    return figure


def _write(axes: "Axes", rows: list[list[str]], edges: list[float]) -> None:
    """Write a table, its first row as the head."""
    axes.set_axis_off()
    axes.set(xlim=(0.0, 1.0), ylim=(len(rows), 0.0))
    for (line, row), family in zip(enumerate(rows), ["sans-serif", *["monospace"] * len(rows)], strict=False):
        for edge, text in zip(edges, row, strict=False):
            axes.text(edge, line + 0.5, text, va="center", fontsize=9, family=family)
    axes.plot([0.0, 1.0], [1.0, 1.0], color="#555555", linewidth=0.8)


def _draw_approach(config: Config, found: "xarray.Dataset") -> "Figure":
    off = np.abs(found.reached - found.known)
    chosen = np.flatnonzero((off > 0).any(("side", "point")))
    caption = "The way to a limit, by distance (at infinity 1/|x|). Dashed: round-off. Dotted: the error estimate."
    figure, drawn = panels.grid(max(len(chosen), 1), 4, caption=caption)
    looks = {"left": {"marker": "o", "markersize": 5, "fillstyle": "none"}, "right": {"marker": ".", "markersize": 4}}
    for number, (axes, place) in enumerate(zip(drawn, chosen, strict=False)):
        for position, side in enumerate(found.side.values):
            one, seen = found.sel(side=side).isel(limit=place), off.sel(side=side).isel(limit=place)
            near = one.distance > 1e-13
            shown: Any = {"linestyle": "", "markeredgewidth": 0.7, "color": plots.colour(position)} | looks[side]
            axes.plot(one.distance[near], seen.where(seen > 0)[near], **shown)
            plots.theory(axes, one.distance[near], one.noise.where(one.noise > 0)[near], label="")
        plots.threshold(axes, float(found.error[place]))
        plots.logarithmic(axes, "xy")
        axes.set_ylim(1e-17, 10.0)
        plots.finish(axes, x="distance", y="" if number % 4 else "|f - L|", legend="none")
        axes.set_title(config.limits[place].title, fontsize=8.5, loc="left")
    panels.legend(figure, [f"from the {side}" for side in found.side.values], title="")
    return figure


def _draw_zoom(config: Config) -> "Figure":
    caption = (
        "Ever closer to 0: what oscillates looks alike in every window and has no limit; what is squeezed gets flat."
    )
    figure, axes = plots.figure(len(config.zoomed), len(REACHES), width=10.5, share_y=True, caption=caption)
    for (row, column), panel in np.ndenumerate(axes):
        x, text = np.linspace(-1, 1, WINDOW) * REACHES[column], config.zoomed[row]
        panel.plot(x, parse(text)(jnp.asarray(x)), color=plots.colour(row), linewidth=0.6, rasterized=True)
        plots.finish(panel, x="x", y="" if column else text, title=f"|x| < {REACHES[column]:g}")
    return figure


def _draw_answers(config: Config, found: "xarray.Dataset") -> "Figure":
    rows = [["limit", "known", "measured", "error estimate", "verdict"]]
    columns = (found[name].values for name in ("value", "error", "verdict"))
    for one, value, error, code in zip(config.limits, *columns, strict=True):
        told = "" if math.isnan(value) or error == math.inf else f"{value:.12g}".replace("inf", "∞")
        known, estimate = one.answer.replace("inf", "∞"), f"{error:.0e}" if math.isfinite(error) else ""
        rows.append([one.title, known, told, estimate, toolkit.STATUSES[int(code)]])
    caption = "Limits as measured, with their error estimates, beside what is known of them."
    figure, ((axes,),) = plots.figure(width=12.5, height=0.4 + 0.27 * len(rows), caption=caption)
    _write(axes, rows, [0.0, 0.25, 0.34, 0.48, 0.58])
    return figure


EXPERIMENT = Experiment("limits", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
