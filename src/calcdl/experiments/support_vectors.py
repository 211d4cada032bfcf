r"""Which rows decide where two classes are parted, and how is a machine with a parameter for every row trained?

Mathematics. The primal, over weights and an offset that costs nothing, and its dual, over one multiplier a row:

    P(w, b) = |w|²/2 + C Σ max(0, 1 - y_i f(x_i)),  f = w·φ(x) + b;   D(a) = Σ a_i - |Σ a_i y_i φ(x_i)|²/2,
    0 ≤ a_i ≤ C,  Σ a_i y_i = 0.   D(a) ≤ P(w, b) for any two; where they are equal both are optimal, and

a_i = 0 outside the margin (y f > 1), 0 < a_i < C on it (y f = 1), a_i = C inside (y f < 1). The dual needs scalar
products k(x, z) = φ(x)·φ(z) alone. P has corners: subgradients with falling rates err by 1/t. D is a parabola over a
box cut by a plane: projected steps, accelerated, converge geometrically. Squares of the hinge make P smooth: Newton.

Claim. No dual value exceeds a primal one; their gap falls below 1e-10, and rows are of the three kinds, to 1e-6.
Objectives (1e-10), support vectors, decisions and weights (1e-6) are scikit-learn's. Without a row that is no support
vector the machine is the same, so held-out errors are on average no more than the share of support vectors.

Command. python -m calcdl.experiments.support_vectors configs/support_vectors.toml
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from calcdl import data, nn, optim, study
from calcdl.lab import landscapes, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, ExperimentConfig, OneOf, Rate, Section, Seeds
from calcdl.nn import kernels
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

GATE_WEAK, GATE_GAP, GATE_SAME, GATE, GATE_POWER = 1e-12, 1e-10, 1e-10, 1e-6, 0.8
SMALL, TOLERANCE, LOOSE, HARD, MOST_ROWS, RECORDS = 1e-8, 1e-14, 1e-9, 1e8, 3000, 60
DRAWN_STEPS, CHOICE_STEPS, SMOOTH_STEPS = 200_000, 5000, 1000
SOLVERS: dict[str, Any] = {"Newton": optim.newton, "L-BFGS": optim.lbfgs}
KINDS, EDGES = ("outside, a = 0", "on the margin, 0 < a < C", "inside, a = C"), (SMALL, 1 - SMALL)
Arrays = dict[str, Array]
Pair = Annotated[tuple[str, ...], Field(max_length=2)]
ManySteps = Annotated[int, Field(ge=100, le=10**7)]


class Training(Section):
    """All rows: multipliers by projected descent, weights by descent on hinge and squared hinge."""

    penalties: AxisOf[Rate] = Field(default=(0.1, 0.03, 0.3), description="C, the first one for subgradients too")
    kernel: Annotated[str, OneOf(("polynomial", "rbf", "laplace"))] = Field(default="rbf", description="beside linear")
    width: Rate = Field(default=1.0, description="width of that kernel, in square roots of the number of columns")
    rates: AxisOf[Rate] = Field(default=(0.1, 0.01, 0.001), description="first rates η; step k has η / (1 + η k)")
    seeds: Annotated[Seeds, Field(min_length=2)] = Field(default=tuple(range(5)), description="of the first weights")
    steps: ManySteps = Field(default=10_000, description="steps of projected descent at most, steps by subgradients")


class Drawn(Section):
    """Two columns, and spirals, for the eye."""

    rows: Annotated[int, Field(ge=20, le=500)] = Field(default=120, description="rows of each, drawn at random")
    penalties: Annotated[AxisOf[Rate], Field(max_length=3)] = Field(default=(0.1, 100.0), description="C")
    width: Rate = Field(default=0.5, description="width of the kernel, in standard deviations times the root of 2")


class Choice(Section):
    """What C and width do to rows that are held out."""

    penalties: AxisOf[Rate] = Field(default=(0.1, 1.0, 10.0), description="C")
    widths: AxisOf[Rate] = Field(default=(0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0), description="in the same unit")
    train: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.3, description="share of the rows to train on")
    divisions: Annotated[int, Field(ge=3, le=1000)] = Field(default=8, description="divisions of the rows")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float64"] = Field(default="float64", description="type of all floating numbers")
    data: str = Field(default="breast_cancer", description="a bundled set of classes, or a CSV or NPZ file")
    target: str = Field(default="", description="the column of classes, for a file; empty for one named target")
    classes: Pair = Field(default=(), description="the two classes to part; empty for a set of two")
    training: Training = Field(default=Training(), description="all rows")
    drawn: Drawn = Field(default=Drawn(), description="two dimensions")
    choice: Choice = Field(default=Choice(), description="C and width")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Train on all rows by every method, on two columns, on parts of the rows; ask scikit-learn."""
    one, two, three, dataset, axis = config.training, config.drawn, config.choice, prepare(config), study.axis
    x, y = data.standardise(dataset, constant="keep")[0].features, 2.0 * dataset.targets - 1
    (points, labels, names), (parts, fitted) = drawn_tables(config, dataset, x, y), divided(config, dataset)
    row, record = ("row",), dict.fromkeys(("upper", "lower", "value"), ("record",))
    named: Any = record | {"multipliers": row, "margins": row, "weights": ("column",)}
    run, rows = partial(run, dtype=config.precision, dimensions=named), {"x": x, "y": y}
    penalty, kernel, seed = (
        axis("penalty", one.penalties),
        axis("kernel", ("linear", one.kernel)),
        axis("seed", one.seeds),
    )
    first: Any = {"penalty": one.penalties[0], "steps": one.steps}
    results = study.join(
        machines=run(partial(ascend, width=one.width, steps=one.steps), [kernel, penalty], name="machines",
                     shared={"tables": (x[None], y[None])}),
        way=run(partial(way, **first), [axis("accelerated", [False, True])], name="way", shared=rows),
        subgradient=run(partial(subgradient, **first), [axis("mean", [False, True]), axis("rate", sorted(one.rates)),
                        seed], name="subgradient", shared=rows),
        smooth=run(partial(smooth, steps=SMOOTH_STEPS), [axis("solver", SOLVERS), penalty, seed], name="smooth",
                   shared=rows),
        drawn=run(partial(ascend, width=two.width, steps=DRAWN_STEPS), [axis("table", [0, 1]), kernel,
                  axis("penalty", sorted(two.penalties))], name="drawn", shared={"tables": (points, labels)}),
        choice=run(partial(held_out, kernel=one.kernel, rows=fitted, steps=CHOICE_STEPS), [
                   axis("penalty", sorted(three.penalties)), axis("width", sorted(three.widths)),
                   axis("division", range(three.divisions))], name="choice", shared={"tables": parts}),
        reference=reference(one, x, y),
    )  # fmt: skip
    results = results.assign(points=(("table", "place", "axis"), points), labels=(("table", "place"), labels))
    return results.assign_coords({"record": marks(one.steps), "axis": names})


def marks(steps: int) -> np.ndarray:
    """Return the steps after which values are recorded, evenly on a logarithmic scale."""
    return np.unique(np.geomspace(1, steps, RECORDS).round().astype(np.int32))


def prepare(config: Config) -> data.Dataset:
    """Load two classes of a set."""
    dataset = data.load(config.data, config.target or None, "classification", constant="keep", collinear="keep")
    named = config.classes or dataset.classes
    if len({*named}) != 2 or len(named) != 2 or not {*named} <= {*dataset.classes}:
        raise ConfigError(f"classes: got {list(config.classes)}; expected two of {', '.join(dataset.classes)}")
    kept = np.flatnonzero(np.isin(dataset.targets, places := [dataset.classes.index(name) for name in named]))
    if len(kept) > MOST_ROWS:
        raise ConfigError(f"data: got {len(kept):,} rows; expected at most {MOST_ROWS:,}: the matrix has rows² entries")
    targets, features = (dataset.targets[kept] == places[1]).astype(np.int32), dataset.features[kept]
    return dataset._replace(features=features, targets=targets, classes=tuple(named), train=np.arange(len(kept)))


def drawn_tables(config: Config, dataset: data.Dataset, x: np.ndarray, y: np.ndarray) -> Any:
    """Return points [set, row, axis] and labels of two columns and of two spirals, and the names of the columns."""
    chosen = np.argsort(-np.abs(y @ x), kind="stable")[:2]  # those that go most with the labels
    kept = np.random.default_rng(0).permutation(len(y))[: config.drawn.rows]
    spirals, labels = data.synthetic.spirals(jax.random.key(0), len(kept), turns=0.8, noise=0.05, dtype=jnp.float64)
    points = np.stack([x[kept][:, chosen], np.asarray(spirals / jnp.std(spirals))])
    return points, np.stack([y[kept], 2.0 * np.asarray(labels) - 1]), [dataset.feature_names[one] for one in chosen]


def divided(config: Config, dataset: data.Dataset) -> tuple[tuple[np.ndarray, ...], int]:
    """Return columns and labels by division, rows to train on first, by which all are standardised; their number."""
    parts = [data.split(dataset, 1 - config.choice.train, 0.0, seed=seed) for seed in range(config.choice.divisions)]
    orders = [np.append(part.train, part.validation) for part in parts]
    scaled = [data.standardise(part, constant="keep")[0].features for part in parts]
    x = np.stack([one[order] for one, order in zip(scaled, orders, strict=True)])
    return (x, 2.0 * dataset.targets[np.stack(orders)] - 1), len(parts[0].train)


def gram_of(name: str, width: Any, x: Any, others: Any = None) -> Array:
    """Return the matrix of a kernel, its width in square roots of the number of columns; linear has none."""
    return kernels.gram(kernels.of_width(name, width * x.shape[1] ** 0.5), x, others)


def train(gram: Array, y: Array, penalty: Any, steps: int, tolerance: float = TOLERANCE, **how: Any) -> optim.Solution:
    """Maximise the dual by projected steps, accelerated unless told otherwise, until they are small."""
    section = optim.projection("box_section", lower=0.0, upper=penalty, a=y, b=0.0)
    proximal = optim.proximal_projection(section)
    most = jnp.linalg.norm(gram)  # of Frobenius, which no curvature exceeds
    solver = optim.proximal_descent(1 / most, proximal, accelerated=how.pop("accelerated", True))
    small = tolerance * penalty * most
    return optim.minimise(lambda a: -kernels.dual_value(a, y, gram), 0 * y, solver, steps=steps, tolerance=small, **how)


def ascend(key: Key, *, tables: Any, kernel: str, penalty: Array, width: float, steps: int, table: Any = 0) -> Arrays:
    """Train a machine on one of the tables."""
    x, y = (one[jnp.int32(table)] for one in tables)
    gram = gram_of(kernel, width, x)
    found = train(gram, y, penalty, steps)
    return kernels.machine(found.params, y, gram, penalty)._asdict() | {"taken": found.steps}


def way(key: Key, *, x: Array, y: Array, accelerated: bool, penalty: float, steps: int) -> Arrays:
    """Record primal and dual value on the way to the linear machine."""
    gram = gram_of("linear", 1.0, x)
    found: Any = train(gram, y, penalty, steps, accelerated=accelerated, trace=["params"]).trace.params
    seen = jax.vmap(lambda a: kernels.machine(a, y, gram, penalty))(found[marks(steps)])
    return {"upper": seen.primal, "lower": seen.dual}


def held_out(
    key: Key, *, tables: Any, kernel: str, penalty: Array, width: Array, division: Array, rows: int, steps: int
) -> Arrays:
    """Train on some rows; return the share of errors on others, that of support vectors, and the gap."""
    x, y = (one[jnp.int32(division)] for one in tables)
    whole = gram_of(kernel, width, x, x[:rows])
    a = train(whole[:rows], y[:rows], penalty, steps, LOOSE).params
    found = kernels.machine(a, y[:rows], whole[:rows], penalty)
    wrong = kernels.decision(a, y[:rows], whole[rows:], found.offset) * y[rows:] <= 0
    return {"error": jnp.mean(wrong), "supports": jnp.mean(a > SMALL * penalty), "gap": 1 - found.dual / found.primal}


def linear_machine(key: Key, loss: Any, x: Array, y: Array, penalty: Any) -> tuple[Any, Arrays]:
    """Return what the linear machine minimises over weights and offset, and where to start."""
    start = {"w": jax.random.normal(key, (x.shape[1],), x.dtype), "b": jnp.zeros((), x.dtype)}
    return lambda p: p["w"] @ p["w"] / 2 + penalty * jnp.sum(loss(x @ p["w"] + p["b"], y)), start


def subgradient(key: Key, *, x: Array, y: Array, rate: Array, mean: bool, penalty: float, steps: int) -> Arrays:
    """Record the value of the iterates, or of their mean, on the way down the hinge with rates η / (1 + η k)."""
    objective, start = linear_machine(key, nn.losses.hinge, x, y, penalty)
    down = optim.descent("sgd", rate, schedule=lambda k: 1 / (1 + rate * k))
    solver = optim.averaged(down) if mean else down
    found: Any = optim.minimise(objective, start, solver, steps=steps, tolerance=0.0, trace=["value"]).trace.value
    return {"value": found[marks(steps)]}


def smooth(key: Key, *, x: Array, y: Array, solver: str, penalty: Array, steps: int) -> Arrays:
    """Minimise with the squared hinge, to the rounding."""
    objective, start = linear_machine(key, nn.losses.squared_hinge, x, y, penalty)
    found = optim.minimise(objective, start, SOLVERS[solver](), steps=steps, tolerance=TOLERANCE * jnp.sum(x**2))
    return {"weights": jnp.append(found.params["w"], found.params["b"]), "least": found.value, "taken": found.steps}


def reference(one: Training, x: np.ndarray, y: np.ndarray) -> "xarray.Dataset":
    """Return scikit-learn's machines; the squared hinge is one with K + I / (2 C) whose multipliers have no bound."""
    import xarray
    from sklearn.svm import SVC

    names, row, found = ("linear", one.kernel, "squared"), ("row",), list[Any]()
    for name, penalty in ((name, penalty) for name in names for penalty in one.penalties):
        gram, most = np.asarray(gram_of("linear" if name == "squared" else name, one.width, x)), penalty
        if name == "squared":
            gram, most = gram + np.eye(len(y)) / (2 * penalty), HARD
        fitted, a = SVC(kernel="precomputed", C=most, tol=1e-12, cache_size=500).fit(gram, y), np.zeros(len(y))
        a[fitted.support_] = np.abs(fitted.dual_coef_[0])
        seen = kernels.machine(jnp.asarray(a), jnp.asarray(y), jnp.asarray(gram), most)
        weights = np.append(x.T @ (a * y), fitted.intercept_)
        found.append((a, y * fitted.decision_function(gram), seen.dual, 1 - seen.dual / seen.primal, weights))
    named = {"multipliers": row, "margins": row, "dual": (), "gap": (), "weights": ("column",)}
    columns = [np.reshape(one, (len(names), -1, *np.shape(one[0]))) for one in zip(*found, strict=True)]
    tables = {key: (("kernel", "penalty", *named[key]), one) for key, one in zip(named, columns, strict=True)}
    return xarray.Dataset(tables, {"kernel": list(names), "penalty": list(one.penalties)})


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold the dual against the primal, rows against their conditions, machines against scikit-learn's, errors."""
    parts = _duality, _conditions, _machines, _choice
    return tuple(Verdict(claim, bool(value <= bound), float(value), bound, evidence)
                 for part in parts for claim, value, bound, evidence in part(config, results))  # fmt: skip


def heights(results: "xarray.Dataset") -> Any:
    """Return how far subgradients, from the rate that ends lowest, stay above the best dual value."""
    above: Any = study.part(results, "subgradient").value / study.part(results, "way").lower.max() - 1
    return above.isel(rate=int(above.sel(mean=False).isel(record=-1).median("seed").argmin("rate")))


def _duality(config: Config, results: "xarray.Dataset") -> Any:
    way, found, above = study.part(results, "way"), study.part(results, "machines"), heights(results)
    excess = max(float(one.max()) for one in (way.lower.max() / way.upper - 1, found.dual / found.primal - 1, -above))
    gap, slow = np.abs(1 - found.dual / found.primal), (1 - way.lower / way.upper).sel(accelerated=False)[-1]
    steps, end = config.training.steps, float(above.sel(mean=False).isel(record=-1).median())
    late, taken = results.record.values * 10 >= steps, ", ".join(f"{one:,}" for one in found.taken.values.ravel())
    logs = np.log(results.record.values[late]), np.log(above.sel(mean=True).median("seed").values[late])
    yield ("no dual value exceeds a primal one: every method, every step recorded", excess, GATE_WEAK,
           "largest dual value over least primal value of the same machine, minus 1")  # fmt: skip
    yield ("the gap between dual and primal closes by accelerated projected steps", gap.max(skipna=False), GATE_GAP,
           f"largest relative gap, machines of {taken} steps; linear unaccelerated {float(slow):.2g}")  # fmt: skip
    yield ("hinge: the mean of subgradient steps with falling rates errs by about 1 / t", np.polyfit(*logs, 1)[0],
           -GATE_POWER, f"power of t from step {steps // 10:,} to {steps:,}, first rate {float(above.rate):g}; in the "
           f"end iterates are {end:.1e} above the dual value")  # fmt: skip


def _conditions(config: Config, results: "xarray.Dataset") -> Any:
    parts = study.part(results, "machines"), study.part(results, "drawn")
    share = np.concatenate([np.ravel(one.multipliers / one.penalty) for one in parts])
    margin = np.concatenate([np.ravel(one.margins) for one in parts])
    hinge, kind = np.maximum(1 - margin, 0), np.digitize(share, EDGES)
    slack = np.maximum(share * np.abs(1 - margin - hinge), (1 - share) * hinge).max()
    broken = np.choose(kind, [1 - margin, np.abs(1 - margin), margin - 1]).max()
    told = "; ".join(f"{count:,} {name}" for count, name in zip(np.bincount(kind, minlength=3), KINDS, strict=True))
    yield ("complementary slackness: a (1 - y f - ξ) = 0 and (C - a) ξ = 0", slack, GATE,
           "largest of both, over C; ξ = max(0, 1 - y f)")  # fmt: skip
    yield ("rows are of three kinds: outside the margin a = 0, on it 0 < a < C, inside a = C", broken, GATE,
           f"how far the worst row is on the wrong side of its margin; {told}")  # fmt: skip


def _machines(config: Config, results: "xarray.Dataset") -> Any:
    ours, squared = study.part(results, "machines"), study.part(results, "smooth")
    theirs, other = (study.part(results, "reference").sel(kernel=name) for name in (ours.kernel, "squared"))
    off, own = abs(ours.dual / theirs.dual - 1).max(skipna=False), float(theirs.gap.max())
    mine, known = (one.multipliers > SMALL * one.penalty for one in (ours, theirs))
    away = abs(ours.margins - theirs.margins).max("row", skipna=False) / abs(theirs.margins).max("row")
    least, size = abs(squared.least / other.dual - 1).max(skipna=False), abs(other["weights"]).max("column")
    counts, other_kind = ", ".join(map(str, known.sum("row").values.ravel())), mine != known
    taken = ", ".join(f"{name} {int(squared.taken.sel(solver=name).max())}" for name in SOLVERS)
    yield ("the dual objective is scikit-learn's", off, GATE_SAME,
           f"largest relative difference; scikit-learn's own gap to the primal is up to {own:.2g}")  # fmt: skip
    yield ("the support vectors are scikit-learn's", (other_kind & (abs(ours.margins - 1) > GATE)).sum(), 0.0,
           f"rows that are one in one machine only; {int(other_kind.sum())} more on the margin, which equal rows may "
           f"share; of {ours.sizes['row']} rows {counts} are")  # fmt: skip
    yield ("the decision values are scikit-learn's", float(np.max(away.values)), GATE,
           "largest difference, relative to the machine's largest value")  # fmt: skip
    yield ("squared hinge: Newton and L-BFGS reach the value of scikit-learn's dual", least, GATE_SAME,
           f"largest relative difference, {squared.taken.size} runs; steps at most: {taken}")  # fmt: skip
    yield ("squared hinge: weights and offset are those of scikit-learn's dual",
           (abs(squared["weights"] - other["weights"]) / size).max(skipna=False), GATE,
           "largest difference, relative to the largest weight")  # fmt: skip


def _choice(config: Config, results: "xarray.Dataset") -> Any:
    found = study.part(results, "choice")
    mean = found[["error", "supports"]].mean("division")
    best = mean.stack(setting=("penalty", "width")).isel(setting=int(mean.error.values.argmin()))
    yield ("the mean error on held-out rows is at most the mean share of support vectors",
           (mean.error - mean.supports).max(skipna=False), 0.0, f"largest excess, {mean.error.size} settings, "
           f"{found.sizes['division']} divisions; least error {float(best.error):.1%}, C {float(best.penalty):g}, "
           f"width {float(best.width):g}, {float(best.supports):.0%} support; gap {found.gap.max():.1g}")  # fmt: skip


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw boundaries, the gap and the kinds of rows, and what C and width do."""
    draws = {"boundaries": _draw_boundaries, "duality": _draw_duality, "choice": _draw_choice}
    return {name: draw(config, results) for name, draw in draws.items()}


def _draw_boundaries(config: Config, results: "xarray.Dataset") -> "Figure":
    drawn = study.part(results, "drawn").stack(setting=("kernel", "penalty"))
    figure, drawings = plots.figure(
        2, drawn.sizes["setting"], width=0.6 + 2.9 * drawn.sizes["setting"], height=6.4, caption="Line: f = 0; dashed: "
        "margins f = ±1; rings: support vectors; crosses: wrong. Above: two columns, standardised; below: two spirals.",
    )  # fmt: skip
    for (table, place), axes in np.ndenumerate(drawings):
        found, points = drawn.isel(table=table, setting=place), results.points.values[table]
        labels, mesh = results.labels.values[table], landscapes.square(points, margin=0.06)
        gram = gram_of(str(found.kernel.values), config.drawn.width, mesh.reshape(2, -1).T, points)
        scores = np.asarray(gram @ (found.multipliers.values * labels) + found.offset.values).reshape(mesh.shape[1:])
        ends: Any = (*mesh[0, 0, [0, -1]], *mesh[1, [0, -1], 0])
        axes.imshow(scores, extent=ends, origin="lower", cmap="RdBu_r", vmin=-4, vmax=4, alpha=0.6, aspect="auto")
        axes.contour(*mesh, scores, [-1, 0, 1], colors="#222222", linewidths=[1, 2, 1], linestyles=["--", "-", "--"])
        wrong, support = found.margins.values <= 0, found.multipliers.values > SMALL * float(found.penalty)
        for label, size, mark in ((-1, 4, "o"), (1, 4, "o"), (-1, 7, "X"), (1, 7, "X")):
            chosen = (labels == label) & (wrong == (mark == "X"))
            look: Any = {"color": plots.colour(int(label > 0)), "markeredgecolor": "white", "markeredgewidth": 0.5}
            axes.plot(*points[chosen].T, mark, markersize=size, **look)
        axes.plot(*points[support].T, "o", fillstyle="none", color="#000000", markersize=7, markeredgewidth=0.8)
        axes.grid(False)
        x, y = results.axis.values if table == 0 else ("x", "y")
        title = f"{found.kernel.values}, C = {float(found.penalty):g}\n{support.sum()} of {len(labels)} rows ringed"
        plots.finish(axes, x=str(x), y=str(y) if place == 0 else "", title=title)
    return figure


def _draw_duality(config: Config, results: "xarray.Dataset") -> "Figure":
    way, above, penalty = study.part(results, "way"), heights(results), config.training.penalties[0]
    figure, ((left, right),) = plots.figure(
        1, 2, width=10.5, height=4.2, caption=f"The linear machine, C = {penalty:g}. Left: relative gap of the dual "
        "methods; value of subgradients above the best dual one, median and quartiles over starts. Right: every row's "
        "multiplier by its decision value, positive on its own side. The conditions allow these three edges alone.",
    )  # fmt: skip
    steps = results.record.values
    for position, name in enumerate(("iterates", "mean of the iterates")):
        one = above.sel(mean=bool(position))
        plots.band(left, steps, one, over="seed", label=f"subgradients, {name}", position=position)
    plots.theory(left, steps[30:], float(one.median("seed")[-1]) * steps[-1] / steps[30:], label="1 / step")
    for position, name in enumerate(("projected", "accelerated")):
        line = (1 - way.lower / way.upper).sel(accelerated=bool(position)).clip(1e-16)
        left.plot(steps, line, color=plots.colour(2 + position), label=f"dual, {name}")
    plots.logarithmic(left, "xy")
    plots.finish(left, x="step", y="gap / value")
    found = study.part(results, "machines").sel(kernel="linear", penalty=penalty)
    share, margins = found.multipliers.values / penalty, found.margins.values
    for place, name in enumerate(KINDS):
        chosen = np.digitize(share, EDGES) == place
        label, shade = f"{chosen.sum()} {name}", plots.colour(place)
        right.plot(margins[chosen], share[chosen], plots.marker(place), color=shade, alpha=0.6, label=label)
    right.set_xlim(min(margins.min() - 0.2, -1), 6)
    plots.finish(right, x="y f(x), as far as 6", y="a / C")
    return figure


def _draw_choice(config: Config, results: "xarray.Dataset") -> "Figure":
    found = study.part(results, "choice")
    figure, drawn = plots.figure(
        1, 2, width=9.6, height=3.8, caption=f"{config.training.kernel} kernel by C and width, in square roots of the "
        f"columns; {config.choice.train:.0%} to train on. Median and quartiles, {found.sizes['division']} divisions.",
    )  # fmt: skip
    named = {"error": "errors / held-out rows", "supports": "support vectors / training rows"}
    for axes, (name, y) in zip(drawn[0], named.items(), strict=True):
        for position, penalty in enumerate(found.penalty.values):
            one, label = found[name].sel(penalty=penalty), f"C = {penalty:g}"
            plots.band(axes, found.width, one, over="division", label=label, position=position, markers=True)
        axes.set_xscale("log", base=2)
        plots.logarithmic(axes)
        plots.finish(axes, x="width", y=y)
    return figure


EXPERIMENT = Experiment("support_vectors", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
