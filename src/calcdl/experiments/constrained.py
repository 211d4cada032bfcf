r"""What is a Lagrange multiplier, and how does one find it?

Question. Where is a function least on a curve, and what would it gain if the curve moved?

Mathematics. At the least value of f on c = 0 no step along the curve descends: the gradient of f has no part along it
and is parallel to that of c, :math:`\nabla f = \lambda \nabla c`. An inequality c >= 0 only pushes: lambda >= 0. Where
the curve moves to c = b the least value follows, :math:`df^* / db = \lambda`: a multiplier is a price. The augmented
Lagrangian guesses it by a penalty rho on the violation and corrects it in rounds; a round multiplies its error by

    (I + rho M)^-1,    M = J H^-1 J',

with J the gradients of the active constraints and H the second derivative of the Lagrangian.

Claim. Gradients are parallel at the solution. A round shrinks the error as predicted or more. The price is the slope of
the least value. Textbook problems: f to 1e-8, multipliers to 1e-5. Dice of greatest entropy are exponential.

Command. python -m calcdl.experiments.constrained configs/constrained.toml
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import calculus, study
from calcdl.calculus.expressions import parse
from calcdl.lab import panels, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ExperimentConfig, Finite, OneOf, Rate, Readable, Section, Seeds, refuse
from calcdl.optim.constrained import minimise_constrained
from calcdl.optim.kkt import Multipliers, kkt_residuals
from calcdl.optim.projections import projection
from calcdl.optim.roots import find_root
from calcdl.optim.solver import CONVERGED
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

PARTS = ("plane", "book", "dice", "simplex")
CONDITIONS = ("stationarity", "feasibility", "complementarity", "sign")
SOLVED, PRICED = {"float64": 1e-8, "float32": 2e-3}, {"float64": 1e-5, "float32": 5e-2}
FACES, CORNERS, SLOWER, STEP = 6, 3, 0.02, {"float64": 1e-4, "float32": 3e-2}
VARIABLES, INEQUALITIES, XY = ("x1", "x2", "x3", "x4"), 3, ("x", "y")


class Known(NamedTuple):
    """A textbook problem whose parts are all quadratic, with its solution and multipliers in closed form."""

    objective: str
    inequality: tuple[str, ...]
    solution: tuple[str, ...]
    multipliers: tuple[str, ...]
    lower: float = -np.inf


# Hock and Schittkowski (1981), Test Examples for Nonlinear Programming Codes, by their numbers.
BOOK = {
    "HS35": Known("9 - 8*x1 - 6*x2 - 4*x3 + 2*x1**2 + 2*x2**2 + x3**2 + 2*x1*x2 + 2*x1*x3", ("3 - x1 - x2 - 2*x3",),
                  ("4/3", "7/9", "4/9"), ("2/9",), lower=0.0),
    "HS43": Known("x1**2 + x2**2 + 2*x3**2 + x4**2 - 5*x1 - 5*x2 - 21*x3 + 7*x4",
                  ("8 - x1**2 - x2**2 - x3**2 - x4**2 - x1 + x2 - x3 + x4",
                   "10 - x1**2 - 2*x2**2 - x3**2 - 2*x4**2 + x1 + x4",
                   "5 - 2*x1**2 - x2**2 - x3**2 - 2*x1 + x2 + x4"), ("0", "1", "2", "-1"), ("1", "0", "2")),
    "HS76": Known("x1**2 + x2**2/2 + x3**2 + x4**2/2 - x1*x3 + x3*x4 - x1 - 3*x2 + x3 - x4",
                  ("5 - x1 - 2*x2 - x3 - x4", "4 - 3*x1 - x2 - 2*x3 + x4", "x2 + 4*x3 - 1.5"),
                  ("3/11", "23/11", "0", "6/11"), ("5/11",), lower=0.0),
}  # fmt: skip

OfXY = Annotated[str, Readable(partial(parse, variables=XY), "a formula in x, y")]
Pair = tuple[Finite, Finite]
Mean = Annotated[float, Field(gt=1, lt=FACES)]


class Plane(Section):
    """A problem of two variables."""

    objective: OfXY = Field(default="x**2 + y**2", description="what to make least")
    equality: tuple[OfXY, ...] = Field(default=("x + y - 1",), description="formulas that are to be 0")
    inequality: tuple[OfXY, ...] = Field(default=(), description="formulas that are to be at least 0")
    start: Pair = Field(default=(1.75, -0.5), description="x and y where to start")
    solution: tuple[Finite, ...] = Field(default=(0.5, 0.5), description="x and y if they are known, else []")
    multipliers: tuple[Finite, ...] = Field(default=(1.0,), description="those known, equalities first, else []")
    penalties: AxisOf[Rate] = Field(default=(4.0, 10.0, 40.0, 100.0), description="rho at the start")
    rounds: Annotated[int, Field(ge=4, le=200)] = Field(default=16, description="most rounds")
    shifts: AxisOf[Finite] = Field(default=(-1.0, -0.5, 0.0, 0.5, 1.0), description="values b of the first constraint")
    x_range: Pair = Field(default=(-1.0, 2.0), description="ends of x shown")
    y_range: Pair = Field(default=(-1.0, 2.0), description="ends of y shown")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        count = len(self.equality) + len(self.inequality)
        if not count:
            raise refuse("equality", self.equality, "a formula here or in inequality; without one see gradient_descent")
        if 0 not in self.shifts:
            raise refuse("shifts", self.shifts, "0 among them")
        for name, known, size in (("solution", self.solution, 2), ("multipliers", self.multipliers, count)):
            if len(known) not in (0, size):
                raise refuse(name, known, f"[] or a list of {size}")
        return self


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float32", "float64"] = Field(default="float64", description="type of all floating numbers")
    plane: Plane = Field(default=Plane(), description="a problem of two variables")
    book: AxisOf[Annotated[str, OneOf(BOOK)]] = Field(default=tuple(BOOK), description="textbook problems")
    means: AxisOf[Mean] = Field(default=(1.5, 2.5, 3.5, 4.5, 5.5), description="means of dice of greatest entropy")
    seeds: Seeds = Field(default=tuple(range(32)), description="random points to be brought to the simplex")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Solve the problem of the plane round by round and for moved constraints, those of the book, and the uses."""
    plane, run = config.plane, partial(run, dtype=config.precision)
    names = {"multipliers": ("constraint",), "point": ("variable",), "kkt": ("condition",),
             "prices": ("round", "constraint"), "residuals": ("round", "condition")}  # fmt: skip
    axes = [study.axis("penalty", plane.penalties), study.axis("shift", plane.shifts)]
    solved = run(partial(solve_plane, plane=plane), axes, name="plane", dimensions=names)
    tables = [np.stack(table) for table in zip(*(read_known(BOOK[name]) for name in config.book), strict=True)]
    book = run(solve_book, [study.axis("number", range(len(config.book)))], name="book",
               shared={"tables": tuple(table.astype(config.precision) for table in tables)})  # fmt: skip
    faces = {"probabilities": ("face",), "kkt": ("condition",)}
    dice = run(solve_dice, [study.axis("mean", config.means)], name="dice", dimensions=faces)
    axes, solve = [study.axis("seed", config.seeds)], partial(project, dtype=config.precision)
    corners = {"kkt": ("condition",), "point": ("corner",), "nearest": ("corner",)}
    simplex = run(solve, axes, name="simplex", dimensions=corners)
    solved = solved.assign_coords(condition=list(CONDITIONS), constraint=[*plane.equality, *plane.inequality],
                                  round=np.arange(plane.rounds + 1))  # fmt: skip
    return study.join(plane=solved, book=book, dice=dice, simplex=simplex)


def read_plane(plane: Plane) -> tuple[Callable[[Any], Array], Callable[[Any], Array]]:
    """Return objective and constraints, equalities first, as functions of x and y together."""
    f, *constraints = (parse(text, XY) for text in (plane.objective, *plane.equality, *plane.inequality))
    return lambda p: f(*p), lambda p: jnp.stack([c(*p) for c in constraints])


def solve_plane(key: Key, *, penalty: Array, shift: Array, plane: Plane) -> dict[str, Array]:
    """Solve with the first constraint at a shift in place of 0; keep the rounds, and what theory says of them."""
    (objective, constraints), exact = read_plane(plane), len(plane.equality)
    tolerance, start = 32 * float(jnp.finfo(shift.dtype).eps) ** 0.75, jnp.asarray(plane.start, shift.dtype)

    def solved(b: Array) -> tuple[Array, Any]:
        found = minimise_constrained(
            objective, start, penalty=penalty, steps=plane.rounds, tolerance=tolerance, trace=("kkt", "multipliers"),
            equality=lambda p: constraints(p).at[0].add(-b)[:exact],
            inequality=lambda p: constraints(p).at[0].add(-b)[exact:],
        )  # fmt: skip
        return found.value, found

    step = STEP[str(shift.dtype)] * jnp.asarray([0, 1, -1], shift.dtype)
    (values, found), slopes = jax.vmap(jax.value_and_grad(solved, has_aux=True))(shift + step)
    ended, found = jnp.max(found.status), jax.tree.map(lambda leaf: leaf[0], found)
    prices = joined(found.multipliers)
    active = (jnp.arange(len(prices)) < exact) | (prices > 0)
    rows = jnp.where(active[:, None], calculus.jacobian(constraints)(found.params), 0)
    hessian = calculus.hessian(lambda p: objective(p) - prices @ constraints(p))(found.params)
    growth = jnp.eye(len(prices), dtype=penalty.dtype) + penalty * rows @ jnp.linalg.pinv(hessian) @ rows.T
    sizes = jnp.abs(jnp.linalg.eigvals(growth))  # exactly 1 for what is not active
    return {"value": values[0], "point": found.params, "multipliers": prices, "kkt": jnp.stack(found.kkt),
            "ended": ended, "slope": slopes[0], "difference": (values[1] - values[2]) / (step[1] - step[2]),
            "used": found.steps, "expected": 1 / jnp.min(jnp.where(sizes == 1, jnp.inf, sizes)),
            "prices": joined(found.trace.multipliers), "residuals": jnp.stack(found.trace.kkt, axis=1)}  # fmt: skip


def joined(multipliers: Any) -> Array:
    """Return the multipliers of equalities, then those of inequalities, along the last axis."""
    return jnp.concatenate([multipliers.equality, multipliers.inequality], axis=-1)


def read_known(known: Known) -> tuple[np.ndarray, ...]:
    """Return Hessians, gradients and values at 0 of the parts of a problem; bounds, start, solution, multipliers."""
    used, places, origin = len(known.solution), np.arange(len(VARIABLES)), jnp.zeros(len(VARIABLES))
    # A variable that the problem does not have is drawn to 0, an inequality that it does not have holds.
    spare = "".join(f" + {name}**2" for name in VARIABLES[used:])
    met = ("1",) * (INEQUALITIES - len(known.inequality))
    parts = [parse(text, VARIABLES) for text in (known.objective + spare, *known.inequality, *met)]
    ways: list[Any] = [calculus.hessian, calculus.gradient, lambda f: f]
    sizes = {known.solution: len(places), known.multipliers: INEQUALITIES}
    exact = [np.pad([float(parse(x, ()).symbolic()) for x in some], (0, n - len(some))) for some, n in sizes.items()]
    ends = [np.where(places < used, known.lower, -np.inf), np.where(places < used, 0.5, 0.0)]
    at_origin = [np.stack([way(lambda p, f=f: f(*p))(origin) for f in parts]) for way in ways]
    return (*at_origin, *ends, *exact)


def solve_book(key: Key, *, number: Array, tables: tuple[Array, ...]) -> dict[str, Array]:
    """Solve a problem of the book and hold it against its solution and multipliers in closed form."""
    curved, slopes, levels, lower, start, solution, prices = (table[number.astype(jnp.int32)] for table in tables)

    def parts(p: Array) -> Array:
        return levels + slopes @ p + (curved @ p) @ p / 2

    found = minimise_constrained(lambda p: parts(p)[0], start, inequality=lambda p: parts(p)[1:], lower=lower)
    exact = parts(solution)[0]
    return {"value_error": jnp.abs(found.value - exact) / jnp.maximum(1, jnp.abs(exact)), "rounds": found.steps,
            "violation": found.kkt.feasibility, "ended": found.status,
            "price_error": jnp.max(jnp.abs(found.multipliers.inequality - prices))}  # fmt: skip


def solve_dice(key: Key, *, mean: Array) -> dict[str, Array]:
    """Find the multiplier that gives an exponential dice its mean, and judge it as one of greatest entropy."""
    faces = jnp.arange(1, FACES + 1, dtype=mean.dtype)
    tilt = find_root(lambda t: jax.nn.softmax(t * faces) @ faces - mean, jnp.zeros_like(mean)).root
    # grad sum p log p = log p + 1 is to be a combination of the gradients of sum p and of the mean.
    kkt = kkt_residuals(
        lambda p: jnp.sum(jax.scipy.special.xlogy(p, p)), jax.nn.softmax(tilt * faces), lower=0.0,
        multipliers=Multipliers(equality=jnp.stack([1 - jax.nn.logsumexp(tilt * faces), tilt])),
        equality=lambda p: jnp.stack([jnp.sum(p) - 1, p @ faces - mean]),
    )  # fmt: skip
    return {"probabilities": jax.nn.softmax(tilt * faces), "tilt": tilt, "kkt": jnp.stack(kkt)}


def project(key: Key, *, dtype: str) -> dict[str, Array]:
    """Bring a random point to the simplex by sorting, and judge the result as the nearest probabilities."""
    point = jax.random.normal(key, (CORNERS,), dtype)
    nearest = projection("simplex")(point)
    threshold = jnp.min(nearest - point)
    kkt = kkt_residuals(
        lambda p: jnp.sum((p - point) ** 2) / 2, nearest, equality=lambda p: jnp.sum(p) - 1, lower=0.0,
        multipliers=Multipliers(equality=threshold, lower=nearest - point - threshold),
    )  # fmt: skip
    return {"point": point, "nearest": nearest, "kkt": jnp.stack(kkt)}


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold gradients, rounds, prices, the book and the uses against what is known."""
    plane, book, dice, simplex = (study.part(results, name) for name in PARTS)
    solved, priced = SOLVED[config.precision], PRICED[config.precision]
    first = plane.multipliers.isel(constraint=0)
    scale, runs = np.maximum(1, np.abs(first)), f"largest difference, {plane.sizes['shift']} values of b"
    names = f"largest difference; {', '.join(config.book)}, in at most {int(book.rounds.max())} rounds"
    price = "the slope of the least value by the right-hand side is the multiplier, d f*/d b = lambda"
    lost = {name: int((part.ended != CONVERGED).sum()) for name, part in (("plane", plane), ("book", book))}
    conditions = "largest residual of the four conditions of a solution"
    return (
        *_gradient_verdicts(config, plane.sel(shift=0)),
        *_round_verdict(plane.sel(shift=0)),
        _held(f"{price}, differentiated through the conditions", (plane.slope - first) / scale, solved, runs),
        _held(f"{price}, by the quotient of differences", (plane.difference - first) / scale, priced, runs),
        _held("textbook problems have the least value known in closed form, and no constraint is violated",
              np.maximum(book.value_error, book.violation), solved, names),
        _held("textbook problems have the multipliers known in closed form", book.price_error, priced, names),
        _held("the exponential dice of a mean has the greatest entropy", dice.kkt, solved,
              f"{conditions}, {dice.sizes['mean']} means"),
        _held("the probabilities found by sorting are the nearest", simplex.kkt, solved,
              f"{conditions}, {simplex.sizes['seed']} random points"),
        _held("every run says that it converged", sum(lost.values()), 0.0, f"runs that do not: {lost}"),
    )  # fmt: skip


def _held(claim: str, off: Any, bound: float, evidence: str) -> Verdict:
    worst = float(np.max(np.abs(off)))
    return Verdict(claim, worst <= bound, worst, bound, evidence)


def _gradient_verdicts(config: Config, rounds: "xarray.Dataset") -> list[Verdict]:
    plane, bound, (x, y) = config.plane, SOLVED[config.precision], rounds.point[0].values
    prices = ", ".join(f"{price:.6g} for {text}" for text, price in rounds.multipliers[0].to_series().items())
    told = f"largest residual of the four conditions; solution ({x:.6g}, {y:.6g}), multiplier {prices}"
    claim = "at the solution grad f is the sum of lambda_i grad c_i, and no constraint is violated"
    knowns = [("point", plane.solution, rounds.point), ("multiplier", plane.multipliers, rounds.multipliers)]
    return [_held(claim, rounds.kkt, bound, told)] + [
        _held(f"{plane.objective}: {name} {', '.join(f'{number:g}' for number in known)}", got.values - known, bound,
              "largest difference, over all penalties") for name, known, got in knowns if known
    ]  # fmt: skip


def factors(rounds: "xarray.Dataset") -> "tuple[xarray.DataArray, xarray.DataArray]":
    """Return the error of the multipliers after every round, and its mean factor a round above rounding."""
    errors = np.abs(rounds.prices - rounds.multipliers).max("constraint").where(rounds["round"] <= rounds.used)
    logs = np.log(errors.where(errors > 1e3 * np.finfo(rounds.prices.dtype).eps ** 0.75)).diff("round")
    return errors, np.exp(logs.where(logs["round"] > 1).mean("round"))


def _round_verdict(rounds: "xarray.Dataset") -> list[Verdict]:
    _, found = factors(rounds)
    ratio = (found / rounds.expected).where(np.isfinite(found) & (rounds.expected > 0) & (rounds.expected < 1))
    pairs = zip(rounds.penalty.values, found.values, rounds.expected.values, strict=True)
    told = ", ".join(f"rho {rho:g}: {got:.4f} for {expected:.4f}" for rho, got, expected in pairs)
    claim = "a round shrinks the error of the multipliers at least as (I + rho J H^-1 J')^-1 does"
    claim, evidence = f"{claim}, to {SLOWER:.0%}", f"largest ratio of measured and predicted factor; {told}"
    return [_held(claim, ratio.fillna(0), 1 + SLOWER, evidence)] if bool(ratio.notnull().any()) else []


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the parallel gradients and the price of a constraint, the rounds, and what multipliers are good for."""
    plane, _, dice, simplex = (study.part(results, name) for name in PARTS)
    rounds, shifted = plane.sel(shift=0), plane.isel(penalty=0)
    return {"multipliers": _draw_multipliers(config.plane, rounds, shifted), "rounds": _draw_rounds(rounds),
            "uses": _draw_uses(dice, simplex)}  # fmt: skip


def _draw_plane(plane: Plane, axes: Any, shifts: Any) -> Any:
    """Draw the contours of the objective and the curves of the constraints; return the first of these."""
    x, y = jnp.meshgrid(*(jnp.linspace(*ends, 121) for ends in (plane.x_range, plane.y_range)))
    objective, all_constraints = read_plane(plane)
    value, constraints = np.asarray(objective((x, y))), np.asarray(all_constraints((x, y)))
    filled = axes.contourf(x, y, value, levels=18, cmap="viridis", alpha=0.6)
    axes.contour(x, y, value, levels=filled.levels, colors="white", linewidths=0.5, linestyles="solid")
    look: Any = {"colors": "black", "linestyles": "solid", "linewidths": 2.0 if len(shifts) == 1 else 1.0}
    curve = axes.contour(x, y, constraints[0], levels=sorted(shifts), **look)
    for values in constraints[1:]:
        axes.contour(x, y, values, levels=[0.0], **look)
    for values in constraints[len(plane.equality) :]:
        axes.contourf(x, y, values, levels=[-1e30, 0], colors="black", alpha=0.35)
    axes.set(xlim=plane.x_range, ylim=plane.y_range, aspect="equal")
    return curve


def _draw_multipliers(plane: Plane, rounds: "xarray.Dataset", shifted: "xarray.Dataset") -> "Figure":
    first, b = (plane.equality + plane.inequality)[0], shifted["shift"].values
    caption = (
        f"Left: {plane.objective} (lighter is more), the black curve {first} = 0, and gradients: only at the solution "
        "(dot) is blue made of the others. Middle: the curve moved to = b, and the solutions. Right: the least value; "
        "short lines have the multiplier (number) as their slope."
    )
    figure, ((axes, moved, values),) = plots.figure(1, 3, width=14.5, height=4.8, caption=caption)
    point, price = rounds.point[0].values, float(rounds.multipliers[0, 0])
    path = np.concatenate([_draw_plane(plane, axes, (0.0,)).get_paths()[0].vertices, point[None]])
    nearest = int(np.argmin(np.linalg.norm(path - point, axis=1)))
    places = path[[len(path) // 4, nearest, len(path) - len(path) // 4 - 1]]
    objective, constraints = read_plane(plane)
    normals = np.asarray(jax.vmap(calculus.jacobian(constraints))(jnp.asarray(places)))
    arrows = [np.asarray(jax.vmap(calculus.gradient(objective))(jnp.asarray(places))), *np.moveaxis(normals, 1, 0)]
    scale = max(np.linalg.norm(one, axis=1).max() for one in arrows) / (0.2 * np.ptp(plane.x_range))
    for position, label in enumerate((plane.objective, *plane.equality, *plane.inequality)):
        some = slice(None) if position < 2 else slice(1, 2)
        axes.quiver(*places[some].T, *arrows[position][some].T, color=plots.colour(position), zorder=4, headwidth=2.5,
                    angles="xy", scale_units="xy", scale=scale, width=0.007 if position else 0.014,
                    label=f"gradient of {label}")  # fmt: skip
    axes.plot(*point, "o", color="black", markersize=7, zorder=5)
    plots.finish(axes, x="x", y="y", title=f"solution ({point[0]:.4g}, {point[1]:.4g}), multiplier {price:.4g}")
    _draw_plane(plane, moved, b)
    moved.plot(*shifted.point.values.T, "o-", color=plots.colour(3), zorder=5)
    plots.finish(moved, x="x", y="y", title=f"{first} = b, b from {b.min():g} to {b.max():g}", legend="none")
    half, labels = 0.3 * float(np.ptp(b)) / max(1, len(b) - 1), ["slope lambda"] + [""] * (len(b) - 1)
    least, prices = shifted.value.values, shifted.multipliers.values[:, 0]
    rise = half * prices
    values.plot([b - half, b + half], [least - rise, least + rise], color=plots.colour(0), linewidth=3, label=labels)
    for at, value, price in zip(b, least, prices, strict=True):
        side, align = (9, "left") if price < 0 else (-9, "right")
        values.annotate(f"{round(price, 6) + 0.0:.3g}", (at, value), (side, 6), textcoords="offset points", ha=align)
    values.plot(b, shifted.value, "o", color=plots.colour(3), label="least value f*(b)", zorder=5)
    plots.finish(values, x="right-hand side b", y="least value", title="the price of the constraint")
    return figure


def _draw_rounds(rounds: "xarray.Dataset") -> "Figure":
    caption = (
        "The augmented Lagrangian, round by round, by penalty rho. Left: error of the multipliers; dashed: predicted. "
        "Right: violation of the constraints (lines) and gradient of the Lagrangian (dots), which is 0 up to rounding."
    )
    figure, (drawn,) = plots.figure(1, 2, width=10.5, height=4.4, caption=caption)
    (errors, _), floor = factors(rounds), float(np.finfo(rounds.prices.dtype).eps) / 10
    residuals = rounds.residuals.where(rounds["round"] <= rounds.used).clip(floor)
    for position, rho in enumerate(rounds.penalty.values):
        error, one, label = errors.sel(penalty=rho), residuals.sel(penalty=rho), f"rho = {rho:g}"
        drawn[0].plot(error["round"], error.clip(floor), **panels.look(position), linestyle="", label=label)
        line = float(error[1]) * float(rounds.expected.sel(penalty=rho)) ** (error["round"] - 1)
        plots.theory(drawn[0], error["round"], line.where(error.notnull()), label="" if position else "predicted")
        drawn[1].plot(one["round"], one.sel(condition="feasibility"), color=plots.colour(position), label=label)
        drawn[1].plot(one["round"], one.sel(condition="stationarity"), ".", color=plots.colour(position))
    for axes, label in zip(drawn, ("error of the multipliers", "residuals of the conditions"), strict=True):
        plots.logarithmic(axes)
        plots.finish(axes, x="round", y=label)
    return figure


def _draw_uses(dice: "xarray.Dataset", simplex: "xarray.Dataset") -> "Figure":
    caption = (
        "Left: of all dice with a given mean those of greatest entropy: exp(lambda k), lambda the mean's multiplier. "
        "Right: points and the nearest probabilities, seen at right angles to the simplex."
    )
    figure, ((faces, triangle),) = plots.figure(1, 2, width=12, height=4.4, caption=caption)
    for position, mean in enumerate(dice["mean"].values):
        one, face = dice.sel(mean=mean), np.arange(1, FACES + 1)
        label = f"mean {mean:g}: lambda = {round(float(one.tilt), 6) + 0.0:.3g}"
        faces.plot(face, one.probabilities, **panels.look(position), label=label)
    plots.finish(faces, x="face k", y="probability")
    turn = np.array([[-1, 1, 0], [-1, -1, 2]]) / np.sqrt([[2], [6]])
    corners, (starts, ends) = turn @ np.eye(CORNERS), (turn @ simplex[name].values.T for name in ("point", "nearest"))
    triangle.fill(*corners, color=plots.colour(2), alpha=0.3)
    triangle.plot(*np.stack([starts, ends], axis=1), color="#999999", linewidth=0.7)
    for position, (places, name) in enumerate(((starts, "point"), (ends, "nearest probabilities"))):
        triangle.plot(*places, "o", color=plots.colour(position), markersize=4, label=name)
    triangle.set(aspect="equal", xticks=[], yticks=[])
    plots.finish(triangle, x="", y="", title="corners: one probability is 1", legend="right")
    return figure


EXPERIMENT = Experiment("constrained", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
