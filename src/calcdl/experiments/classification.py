r"""Where does logistic regression draw the line, and what does its gradient say there?

Question. A linear classifier with probabilities has a convex loss: how is its minimum found, and how is it known?

Mathematics. With logits :math:`a = xW` (x begins with 1) the loss of a row is :math:`\log \sum_k e^{a_k - a_y}`, of two
classes :math:`\log(1 + e^{\mp a})`. Minimised is

    L(W) = Σ_i loss_i + λ/2 |W|²,    ∂loss_i/∂a_ik = p_ik - [k = y_i],    λ = 1/C,

where the intercepts are not penalised. So the derivative by an intercept says: at the minimum the mean probability of a
class is its share of the rows. The line is where probabilities are equal: p = 1/2 of two classes. Newton's method needs
a Hessian, :math:`X^\top \mathrm{diag}(p(1 - p)) X + \lambda I`, which L-BFGS learns from gradients; plain descent needs
steps in proportion to its condition number, accelerated descent to the root of that.

Claim. Objective and coefficients by Newton's method and L-BFGS are scikit-learn's, to 1e-10 and 1e-6, on data of two,
three and ten classes. Mean probabilities are shares to 1e-8. To one excess Newton's method takes the fewest steps, then
come L-BFGS, accelerated descent and plain descent.

Command. python -m calcdl.experiments.classification configs/classification.toml
"""

from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import data, nn, optim, study
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, OneOf, Rate, Section, refuse
from calcdl.optim.separability import contrasts
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GATE_OBJECTIVE, GATE_COEFFICIENTS, GATE_SHARE = 1e-10, 1e-6, 1e-8
TOLERANCE, MOST_BY_MATRIX = 1e-12, 100
SOLVERS = {"newton": "Newton", "lbfgs": "L-BFGS", "accelerated": "accelerated descent", "descent": "gradient descent"}


class Fits(Section):
    """Fits to all rows."""

    strengths: AxisOf[Rate] = Field(default=(0.01, 1.0, 100.0), description="penalties lambda = 1 / C")
    steps: Count = Field(default=3000, description="most steps")


class Steps(Section):
    """Methods, step by step."""

    data: str = Field(default="breast_cancer", description="a bundled set, or the path of a file")
    strength: Rate = Field(default=1.0, description="penalty lambda = 1 / C")
    methods: AxisOf[Annotated[str, OneOf(SOLVERS)]] = Field(default=(*SOLVERS,), description="fewest steps first")
    steps: Count = Field(default=3000, description="steps of each")
    excess: Rate = Field(default=1e-3, description="what a method is to reach: objective / least objective - 1")


class Boundary(Section):
    """Two columns of a set, to draw."""

    data: AxisOf[str] = Field(default=("breast_cancer", "iris"), description="bundled sets or files, a panel each")
    across: tuple[str, ...] = Field(default=("mean concave points", "petal length (cm)"), description="first columns")
    up: tuple[str, ...] = Field(default=("worst radius", "petal width (cm)"), description="second columns")
    strength: Rate = Field(default=1.0, description="the penalty there, one of fits.strengths")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float64"] = Field(default="float64", description="type of all floating numbers")
    data: AxisOf[str] = Field(
        default=("breast_cancer", "iris", "wine", "digits"), description="bundled sets of classes, or CSV or NPZ files"
    )
    target: str = Field(default="", description="the column of classes, for a file; empty for one named target")
    fits: Fits = Field(default=Fits(), description="minima")
    boundary: Boundary = Field(default=Boundary(), description="lines")
    steps: Steps = Field(default=Steps(), description="methods")

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        for name, given in (("across", self.boundary.across), ("up", self.boundary.up)):
            if len(given) != len(self.boundary.data):
                raise refuse(f"boundary.{name}", given, f"one column for each of {len(self.boundary.data)} sets")
        if self.boundary.strength not in self.fits.strengths:
            raise refuse("boundary.strength", self.boundary.strength, f"one of fits.strengths = {self.fits.strengths}")
        return self


class Case(NamedTuple):
    """Rows, the first column of ones, and labels."""

    x: np.ndarray
    y: np.ndarray

    @property
    def shape(self) -> tuple[int, bool]:
        """The number of classes, and whether there are many coefficients."""
        classes = int(self.y.max()) + 1
        return classes, self.x.shape[-1] * (classes - 1) > MOST_BY_MATRIX


def load(name: str, target: str) -> data.Dataset:
    """Load a set of classes."""
    own = None if name in data.DATASETS else target or None
    return data.load(name, own, "classification", constant="keep", collinear="keep")


def design(dataset: data.Dataset) -> np.ndarray:
    """Return standardised columns, by the rows of training, after one of ones."""
    return np.insert(data.standardise(dataset, constant="keep")[0].features, 0, 1.0, axis=1)


def padded(cases: list[Case]) -> tuple[np.ndarray, ...]:
    """Return columns, labels, weights of rows, penalties of columns, of one shape for all cases, and free logits.

    A column that is only there for the shape has a penalty of its own, which no other coefficient feels.
    """
    rows, columns = max(len(one.y) for one in cases), max(one.x.shape[-1] for one in cases)
    x, y = np.zeros((len(cases), *cases[0].x.shape[:-2], rows, columns)), np.zeros((len(cases), rows), np.int32)
    weight, ridge, padding = np.zeros(y.shape), np.zeros((len(cases), columns)), np.ones((len(cases), columns))
    for place, one in enumerate(cases):
        own, known = one.x.shape[-1], len(one.y)
        x[place, ..., :known, :own], y[place, :known], weight[place, :known] = one.x, one.y, 1
        ridge[place, 1:own], padding[place, :own] = 1, 0
    classes = cases[0].shape[0]
    return x, y, weight, ridge, padding, np.array([[0.0], [1.0]]) if classes == 2 else contrasts(classes)


def fitted(solver: str | optim.Solver, table: Any, strength: Array, steps: int, **settings: Any) -> optim.Solution:
    """Minimise the sum of the losses of rows that count, with a penalty for each column, from 0."""
    x, y, weight, free = table
    v = jnp.zeros((x.shape[1], free.shape[1]), x.dtype)

    def objective(v: Array) -> Array:
        losses = row_losses(x @ v @ free.T, y)
        return jnp.sum(weight * losses) + strength @ jnp.sum(v**2, axis=1) / 2

    def rate() -> Any:
        # The second derivative of a loss by its logits is at most 1/4 of two classes, 1/2 of more.
        most = jnp.linalg.norm(x * weight[:, None], 2) ** 2 / (4 if len(free) == 2 else 2)
        return 1 / (most + jnp.max(strength))

    methods: dict[str, Any] = {
        "newton": lambda: optim.newton(solve="cholesky" if v.size <= MOST_BY_MATRIX else "cg"), "lbfgs": optim.lbfgs,
        "accelerated": lambda: optim.proximal_descent(rate(), optim.proximal_l1(0.0), accelerated=True),
        "descent": lambda: optim.descent("sgd", rate()),
    }  # fmt: skip
    small = {"tolerance": TOLERANCE * jnp.linalg.norm(jnp.abs(x).T @ weight)}
    chosen = methods[solver]() if isinstance(solver, str) else solver
    return optim.minimise(objective, v, chosen, steps=steps, **small | settings)


def row_losses(logits: Array, y: Array) -> Array:
    """Return the loss of every row; of two classes the first logit is 0."""
    if logits.shape[1] == 2:
        return nn.losses.binary_cross_entropy(logits[:, 1], y)
    return nn.softmax_cross_entropy(logits, y)


def share_gap(v: Array, table: Any) -> Array:
    """Return the largest difference of mean probability and share of a class, over rows that count."""
    x, y, weight, free = table
    chance, right = jax.nn.softmax(x @ v @ free.T), jax.nn.one_hot(y, len(free), dtype=x.dtype)
    return jnp.max(jnp.abs(weight @ (chance - right))) / jnp.sum(weight)


def fit(key: Key, tables: Any, *, case: Array, solver: str, strength: Any, steps: int) -> dict[str, Array]:
    """Fit all rows; return the coefficients class by class (of two, of the second), and the mean probabilities."""
    *tables, free = tables
    x, y, weight, ridge, padding = (one[case] for one in tables)
    found = fitted(solver, (x, y, weight, free), strength * ridge + padding, steps)
    return {
        "coefficients": found.params @ (free[1:] if len(free) == 2 else free).T, "objective": found.value,
        "gap": share_gap(found.params, (x, y, weight, free)), "taken": found.steps,
    }  # fmt: skip


def compare(key: Key, tables: Any, *, solver: str, strength: float, steps: int) -> dict[str, Any]:
    """Return the objective before every step and after the last."""
    *tables, free = tables
    x, y, weight, ridge, _ = (one[0] for one in tables)
    found = fitted(solver, (x, y, weight, free), strength * ridge, steps, tolerance=0.0, trace=["value"])
    return {"value": found.trace.value}


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Fit whole sets and pairs of columns, here and by scikit-learn, and follow the methods step by step."""
    fits, run = config.fits, partial(run, dtype=config.precision)
    sets = {
        name: load(name, config.target) for name in sorted({*config.data, *config.boundary.data, config.steps.data})
    }
    points = {name: pair(config, sets, name) for name in config.boundary.data}
    cases = {name: Case(design(sets[name]), sets[name].targets) for name in config.data}
    shown = Case(design(sets[config.steps.data]), sets[config.steps.data].targets)
    cases |= {f"{name}, 2 columns": Case(design(one), one.targets) for name, one in points.items()}
    found = {
        "fits": grouped(
            run, partial(fit, steps=fits.steps), cases,
            [study.axis("solver", ("newton", "lbfgs")), study.axis("strength", sorted(fits.strengths))],
            name="fits", dimensions={"coefficients": ("column", "output")},
        ),
        "steps": run(
            partial(compare, strength=config.steps.strength, steps=config.steps.steps),
            [study.axis("solver", config.steps.methods)], name="steps", shared={"tables": padded([shown])},
            dimensions={"value": ("step",)},
        ),
    }  # fmt: skip
    if all((one.status == 0).all() for one in found.values()):  # else planned only, or in part by another process
        found |= {"reference": reference(config, cases), "points": drawn(points)}
    return study.join(**found)


def grouped(
    run: Any, function: Any, cases: dict[str, Case], axes: list[study.Axis], *, name: str, parts: Any = None, **how: Any
) -> "xarray.Dataset":
    """Run a function on every case, by one study for all that have as many classes, and put them together."""
    import xarray

    found = []
    for shape in sorted({one.shape for one in cases.values()}):
        group = {title: one for title, one in cases.items() if one.shape == shape}
        *tables, free = padded(list(group.values()))
        tables += [] if parts is None else [parts(group, tables[0].shape[-2])]
        word = f"{name}_{shape[0]}{'_large' if shape[1] else ''}"
        one = run(function, [study.axis("case", range(len(group))), *axes], name=word,
                  shared={"tables": (*tables, free)}, **how)  # fmt: skip
        sizes = {size: range(one.sizes[size]) for size in ("column", "output") if size in one.sizes}
        found.append(one.assign_coords(case=list(group), **sizes))
    together: xarray.Dataset = xarray.concat(found, "case", join="outer", combine_attrs="override")
    return together.sel(case=list(cases))


def pair(config: Config, sets: dict[str, data.Dataset], name: str) -> data.Dataset:
    """Return a set with the two columns that are drawn."""
    place, chosen = config.boundary.data.index(name), []
    known = sets[name].feature_names
    for axis, columns in (("across", config.boundary.across), ("up", config.boundary.up)):
        if columns[place] not in known:
            expected = f"a column of {name}: {', '.join(known)}"
            raise ConfigError(f"boundary.{axis}[{place}]: got {columns[place]!r}; expected {expected}")
        chosen.append(known.index(columns[place]))
    return sets[name]._replace(features=sets[name].features[:, chosen])


def drawn(points: dict[str, data.Dataset]) -> "xarray.Dataset":
    """Return the points of the figures, with their labels."""
    import xarray

    found = [
        xarray.Dataset(
            {"at": (("row", "axis"), one.features), "label": ("row", one.targets)}, {"row": range(len(one.targets))}
        ) for one in points.values()
    ]  # fmt: skip
    names = "|".join(",".join(one.classes) for one in points.values())
    return xarray.concat(found, "case", join="outer").assign_coords(case=[*points]).assign_attrs(classes=names)


def reference(config: Config, cases: dict[str, Case]) -> "xarray.Dataset":
    """Return scikit-learn's coefficients, centred over the classes, and their objective."""
    import xarray
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    strengths, most = sorted(config.fits.strengths), max(one.shape[0] for one in cases.values())
    found = np.full((len(cases), len(strengths), max(one.x.shape[1] for one in cases.values()), most), np.nan)
    objective = np.empty(found.shape[:2])
    for (place, (x, y)), (row, strength) in product(enumerate(cases.values()), enumerate(strengths)):
        with threadpool_limits(1):  # for matrices as small as these threads only wait for each other
            model = LogisticRegression(C=1 / strength, solver="newton-cholesky", tol=1e-11, max_iter=1000)
            model.fit(x[:, 1:], y)
        w = np.insert(model.coef_, 0, model.intercept_, axis=1).T
        w -= w.mean(axis=1, keepdims=True) if w.shape[1] > 1 else 0
        logits = np.insert(x @ w, 0, 0.0, axis=1) if w.shape[1] == 1 else x @ w
        loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
        objective[place, row] = loss.sum() + strength / 2 * (w[1:] ** 2).sum()
        found[place, row, : len(w), : w.shape[1]] = w
    tables = {"coefficients": (("case", "strength", "column", "output"), found),
              "objective": (("case", "strength"), objective)}  # fmt: skip
    return xarray.Dataset(tables, {"case": list(cases), "strength": strengths})


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold fits against scikit-learn, mean probabilities against shares, and the path against its order."""
    fits, known = (study.part(results, name) for name in ("fits", "reference"))
    off = float(np.abs(fits.objective / known.objective - 1).max(skipna=False))
    along, problems = ("column", "output"), known.objective.size
    away = np.abs(fits.coefficients - known.coefficients.values[:, None, ..., : fits.sizes["output"]]).max(along)
    away = (away / np.abs(known.coefficients).max(along).values[:, None]).max(("case", "strength"), skipna=False)
    gap, taken = float(fits.gap.max(skipna=False)), fits.taken.median(("case", "strength"))
    return (
        Verdict(
            "the objective is scikit-learn's, by Newton's method and by L-BFGS", off <= GATE_OBJECTIVE, off,
            GATE_OBJECTIVE, f"largest relative difference over {problems} problems",
        ),
        *(
            Verdict(
                f"{SOLVERS[name]}: the coefficients are scikit-learn's", worst <= GATE_COEFFICIENTS, worst,
                GATE_COEFFICIENTS, f"largest difference over {problems} problems, relative to the largest coefficient; "
                f"{float(taken.sel(solver=name)):g} steps (median)",
            ) for name, worst in ((name, float(away.sel(solver=name))) for name in fits.solver.values)
        ),
        Verdict(
            "at the minimum the mean probability of a class is its share of the rows", gap <= GATE_SHARE, gap,
            GATE_SHARE, f"largest difference over {fits.gap.size} fits",
        ),
        _steps_verdict(config, study.part(results, "steps").value),
    )  # fmt: skip


def _steps_verdict(config: Config, value: "xarray.DataArray") -> Verdict:
    there = value <= (1 + config.steps.excess) * value.min()
    taken = there.argmax("step").where(there.any("step"), np.inf).sel(solver=list(config.steps.methods)).values
    least = float((taken[1:] / np.maximum(taken[:-1], 1)).min(initial=np.inf)) if np.isfinite(taken[:-1]).all() else 0.0
    told = ", ".join(f"{SOLVERS[name]} {steps:g}" for name, steps in zip(value.solver.values, taken, strict=True))
    return Verdict(
        f"to an excess of {config.steps.excess:g} each method takes more steps than the one before", least > 1, least,
        1.0, f"least ratio of steps; {told} (inf: more than {config.steps.steps:,})",
    )  # fmt: skip


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw lines, and the methods by step."""
    return {
        "boundary": _draw_lines(config, results),
        "methods": _draw_steps(config, study.part(results, "steps").value),
    }


def probabilities(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the probabilities of every class, for coefficients of the second of two or of all."""
    logits = x @ w
    logits = np.insert(logits, 0, 0.0, axis=-1) if w.shape[1] == 1 else logits
    chance: np.ndarray = np.exp(logits - np.logaddexp.reduce(logits, axis=-1)[..., None])
    return chance


def _draw_lines(config: Config, results: "xarray.Dataset") -> "Figure":
    fits, points, one = study.part(results, "fits"), study.part(results, "points"), config.boundary
    figure, drawn = plots.figure(
        1, len(one.data), width=6.0 * len(one.data), height=4.6,
        caption=f"Two columns, penalty {one.strength:g}. Black: where the two likeliest classes have equal "
        "probabilities. Grey: where the likeliest has 0.75, 0.9 and 0.99. Shade: the likeliest class.",
    )  # fmt: skip
    for place, (axes, name) in enumerate(zip(drawn[0], one.data, strict=True)):
        here = points.sel(case=name).dropna("row")
        at, label = here["at"].values, here.label.values.astype(np.int32)
        w = fits.coefficients.sel(case=f"{name}, 2 columns", solver="newton", strength=one.strength).values[:3]
        w = w[:, np.isfinite(w).all(axis=0)]
        room = 0.05 * np.ptp(at, axis=0)
        across, up = np.meshgrid(*np.linspace(at.min(axis=0) - room, at.max(axis=0) + room, 200).T)
        grid = (np.stack([across, up], axis=-1) - at.mean(axis=0)) / at.std(axis=0)
        chance = probabilities(w, np.insert(grid, 0, 1.0, axis=-1))
        largest = np.sort(chance, axis=-1)
        shades = [plots.colour(number) for number in range(chance.shape[-1])]
        axes.contourf(across, up, chance.argmax(axis=-1), np.arange(len(shades) + 1) - 0.5, colors=shades, alpha=0.15)
        drawn_levels = axes.contour(across, up, largest[..., -1], [0.75, 0.9, 0.99], colors="#777777", linewidths=0.8)
        axes.clabel(drawn_levels, fontsize=7)
        _draw_border(axes, across, up, chance)
        for number, shade in enumerate(shades):
            axes.plot(*at[label == number].T, plots.marker(number), color=shade, markersize=3.5,
                      label=points.attrs["classes"].split("|")[place].split(",")[number])  # fmt: skip
        axes.grid(False)
        plots.finish(axes, x=one.across[place], y=one.up[place], title=name.replace("_", " "), legend="right")
    return figure


def _draw_border(axes: "Axes", across: np.ndarray, up: np.ndarray, chance: np.ndarray) -> None:
    """Draw where a class is as likely as the likeliest other."""
    for number in range(chance.shape[-1] - (chance.shape[-1] == 2)):
        others = np.delete(chance, number, axis=-1).max(axis=-1)
        axes.contour(across, up, np.log(chance[..., number] / others), [0.0], colors="#000000", linewidths=1.8)


def _draw_steps(config: Config, value: "xarray.DataArray") -> "Figure":
    figure, drawn = plots.figure(
        caption=f"Objective above its least value, as a share of it, by step: {config.steps.data.replace('_', ' ')}, "
        f"penalty {config.steps.strength:g}. Dotted: the excess that is asked for.",
    )
    axes = drawn[0, 0]
    for position, name in enumerate(value.solver.values):
        one = value.sel(solver=name) / value.min() - 1
        axes.plot(np.arange(len(one)) + 1, one.where(one > 1e-15), color=plots.colour(position), label=SOLVERS[name])
    plots.threshold(axes, config.steps.excess)
    plots.logarithmic(axes, "xy")
    plots.finish(axes, x="step, the start being 1", y="objective above the least, as a share")
    return figure


EXPERIMENT = Experiment("classification", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
