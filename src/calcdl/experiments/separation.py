r"""When have the weights of a classifier no best value, and how is that told from convergence?

Question. Without a penalty the loss of logistic regression is convex and at least 0. Is there always a minimum?

Mathematics. With logits :math:`a = xW` and margins :math:`m_{ik} = a_{iy} - a_{ik}`, k ≠ y, there is none exactly if
along some W no margin is negative and one is positive: the loss falls along it for ever. If all are positive the
classes are separable, and the loss falls to 0. Descent shows it by |W| alone, for its gradient tends to 0 as at a
minimum: as 1/t for gradient descent, by a factor e a step for Newton's method, which adds 1 to all margins each step.
Under gradient descent for the time t, the sum of the learning rates, on separable classes

    W(t) = ŵ log t + O(1),    ŵ = argmin |w| with all margins at least 1,

the direction of the widest margin. (The curvature falls with the loss: of two classes it is at most
:math:`L \max |x_i|^2`. So the rate may grow, and t reach numbers that it never would at a constant one.) What proves a
minimum, if the gradient does not, is positive numbers :math:`\lambda_{ik}` with :math:`\sum \lambda_{ik} \, \partial
m_{ik} / \partial W = 0`, such as the probabilities :math:`p_{ik}` where it is 0 (see `calcdl.optim.separability`).

Claim. All classes of a set, and each from the rest, by the first columns and by all of them: whether there is a minimum
is reported as a linear programme decides it, by Newton's method and by L-BFGS, although the gradient is as small in
either case. The weights of gradient descent grow as |ŵ| log t where there is none, to 5 %; where there is one they
never become longer than there.

Command. python -m calcdl.experiments.separation configs/separation.toml

Reference. Soudry, Hoffer, Nacson, Gunasekar and Srebro, The implicit bias of gradient descent on separable data,
J. Machine Learning Research 19 (2018) 70; Albert and Anderson, Biometrika 71 (1984) 1.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from calcdl import data, optim, study
from calcdl.experiments.classification import MOST_BY_MATRIX, Case, design, fitted, load, padded
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, OneOf
from calcdl.optim import separability
from calcdl.optim.solver import CONVERGED, RUNNING, STALLED, TRACES
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

GATE_GROWTH, GATE_LONGER, RECORDS = 0.05, 1e-6, 200
METHODS, ALL = ("newton", "lbfgs"), "all classes"
ENDS = ("converged", "no optimum: the classes are separable", "no optimum: some rows are separable", "step limit")
CONVERGES, SEPARABLE, IN_PART, UNFINISHED = range(4)
DECIDED = {
    separability.OVERLAPPING: CONVERGES,
    separability.SEPARABLE: SEPARABLE,
    separability.QUASI_SEPARABLE: IN_PART,
}


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float64"] = Field(default="float64", description="type of all floating numbers")
    data: AxisOf[str] = Field(
        default=("iris", "wine", "breast_cancer"), description="bundled sets of classes, or CSV or NPZ files"
    )
    target: str = Field(default="", description="the column of classes, for a file; empty for one named target")
    columns: AxisOf[Count] = Field(default=(1, 2, 4, 8, 16, 32), description="how many of the first columns are used")
    solvers: AxisOf[Annotated[str, OneOf(METHODS)]] = Field(default=METHODS, description="methods: newton, lbfgs")
    steps: Count = Field(default=1000, description="most steps of them")
    descent: str = Field(default="iris", description="the set whose classes are told from the rest by plain descent")
    descent_steps: Annotated[int, Field(ge=1000, le=20_000)] = Field(default=5000, description="steps of that")


class Problem(NamedTuple):
    """What is told apart, and from which columns."""

    data: str
    target: str
    columns: int
    case: Case

    @property
    def title(self) -> str:
        """The problem in words."""
        from_rest = "" if self.target == ALL else " from the rest"
        return f"{self.data}: {self.target}{from_rest}, {self.columns} columns"


def problems(name: str, dataset: data.Dataset, counts: tuple[int, ...]) -> list[Problem]:
    """Return what is to be told apart: all classes, and each from the rest, by the first columns."""
    x, classes, found = design(dataset), dataset.classes, []
    targets = {ALL: dataset.targets} if len(classes) > 2 else {}
    for number in range(len(classes)) if len(classes) > 2 else (1,):
        targets[classes[number]] = (dataset.targets == number).astype(np.int32)
    for columns in sorted({min(count, x.shape[1] - 1) for count in counts}):
        found += [Problem(name, target, columns, Case(x[:, : columns + 1], y)) for target, y in targets.items()]
    return found


def attempt(key: Key, tables: Any, *, case: Array, solver: str, steps: int) -> dict[str, Any]:
    """Minimise without a penalty; return where it ended, and what the weights there prove."""
    *tables, free = tables
    x, y, weight, _, padding = (one[case] for one in tables)
    found = fitted(solver, (x, y, weight, free), padding, steps)
    proof = separability.certificate(found.params @ free.T, x, y, weight > 0)
    return {
        "ended": found.status, "proof": proof.status, "gradient_norm": found.gradient_norm, "margin": proof.margin,
        "norm": jnp.linalg.norm(found.params @ free.T), "taken": found.steps,
    }  # fmt: skip


def growing_rate(x: Array) -> Callable[[Array], Array]:
    """Return 1 / a bound of the curvature of two classes, which falls with the loss, as a function of the loss."""
    at_most, longest = jnp.linalg.norm(x, 2) ** 2 / 4, jnp.max(jnp.sum(x**2, axis=1))
    return lambda value: 1 / jnp.minimum(at_most, value * longest)


def grow(key: Key, tables: Any, *, case: Array, steps: int, records: np.ndarray) -> dict[str, Array]:
    """Descend without a penalty; return the size of weights and gradient at some steps, and the time by then."""
    x, y, weight, _, padding = (one[case] for one in tables[:-1])
    table, rate = (x, y, weight, tables[-1]), growing_rate(x)

    def step(objective: Any, params: Any, state: Any) -> Any:
        value, gradient = jax.value_and_grad(objective)(params)
        update = -rate(value) * gradient
        return params + update, state, optim.Info(value, gradient, update, jnp.int32(RUNNING))

    found: Any = fitted(optim.Solver(lambda params: (), step), table, padding, steps, tolerance=0.0, trace=TRACES)
    time = jnp.cumsum(jax.vmap(rate)(found.trace.value))[records - 1]
    return {
        "norm": jnp.linalg.norm(found.trace.params[records], axis=(1, 2)), "time": time,
        "slope": found.trace.gradient_norm[records],
    }  # fmt: skip


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Try every problem by both methods, decide it by a linear programme, and descend on some at a constant rate."""
    run = partial(run, dtype=config.precision)
    every = [one for name in config.data for one in problems(name, load(name, config.target), config.columns)]
    if large := [one for one in every if one.case.shape[1]]:
        raise ConfigError(f"data: got {large[0].title}; expected at most {MOST_BY_MATRIX} coefficients")
    found: dict[str, Any] = {}
    for classes in sorted({one.case.shape[0] for one in every}):
        group = [one for one in every if one.case.shape[0] == classes]
        tried = run(
            partial(attempt, steps=config.steps),
            [study.axis("case", range(len(group))), study.axis("solver", config.solvers)], name=f"classes_{classes}",
            shared={"tables": padded([one.case for one in group])},
        )  # fmt: skip
        found[f"classes_{classes}"] = tried.assign_coords(case=[one.title for one in group])
    records = np.unique(np.geomspace(1, config.descent_steps, RECORDS).astype(np.int64))
    telling = [
        one for one in problems(config.descent, load(config.descent, config.target), (10**9,)) if one.target != ALL
    ]
    grown = run(
        partial(grow, steps=config.descent_steps, records=records), [study.axis("case", range(len(telling)))],
        name="descent", shared={"tables": padded([one.case for one in telling])},
        dimensions=dict.fromkeys(("norm", "time", "slope"), ("step",)),
    ).assign_coords(case=[one.target for one in telling], step=records)  # fmt: skip
    if all((one.status == 0).all() for one in (*found.values(), grown)):  # else planned only, or in part elsewhere
        rates = [separability.shortest(*one.case) for one in telling]
        ends = [0.0 if rate else length(one.case) for rate, one in zip(rates, telling, strict=True)]
        grown = grown.assign(rate=("case", rates), minimum=("case", ends))
        return study.join(attempts=decided(list(found.values()), every), descent=grown)
    return study.join(**found, descent=grown)


def length(case: Case) -> float:
    """Return the length of the weights at the minimum, by scikit-learn with next to no penalty."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e15, solver="newton-cholesky", tol=1e-11, max_iter=1000).fit(case.x[:, 1:], case.y)
    return float(np.linalg.norm(np.append(model.coef_, model.intercept_)))


def decided(tried: list["xarray.Dataset"], every: list[Problem]) -> "xarray.Dataset":
    """Put attempts together, with what a linear programme decides and with what is reported."""
    import xarray

    together: Any = xarray.concat(tried, "case", combine_attrs="override").sel(case=[one.title for one in every])
    known = [separability.decide(*one.case) for one in every]
    status = np.array([DECIDED[one.status] for one in known])
    ends = np.empty(together.ended.shape, np.int64)
    for place, ended in np.ndenumerate(together.ended.values):
        proof = int(together.proof.values[place])
        # The programme has the word only where the weights prove nothing.
        truth = DECIDED.get(proof, status[place[0]])
        ends[place] = truth if truth != CONVERGES or ended in (CONVERGED, STALLED) else UNFINISHED
    return together.assign(  # type: ignore[no-any-return]
        reported=(("case", "solver"), ends), known=("case", status),
        share=("case", [float(one.separated.mean()) for one in known]),
        **{name: ("case", [one._asdict()[name] for one in every]) for name in ("data", "target", "columns")},
    )  # fmt: skip


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold reports and proofs against the linear programme, and the growth of weights against theory."""
    tried, grown = study.part(results, "attempts"), study.part(results, "descent")
    known, proof = tried.known, tried.proof
    wrong = int((tried.reported != known).sum())
    none = known != CONVERGES
    naive = int(((tried.ended == CONVERGED) & none).sum())
    counts = [int((known == status).sum()) for status in (CONVERGES, SEPARABLE, IN_PART)]
    proved = proof != separability.UNDECIDED
    false = int((proved & ((proof == separability.OVERLAPPING) != (known == CONVERGES))).sum())
    verdicts = [
        Verdict(
            "no problem without an optimum is reported as converged, and every other converges", wrong == 0,
            float(wrong), 0.0, f"wrong reports of {tried.reported.size}: {counts[0]} problems with an optimum, "
            f"{counts[1]} separable, {counts[2]} in part; by its gradient alone a solver calls {naive} of "
            f"{int(none.sum()) * tried.sizes['solver']} runs without one converged",
        ),
        Verdict(
            "what the weights at the end prove, is what the linear programme decides", false == 0, float(false), 0.0,
            f"contradictions; of {proof.size} runs the weights prove {int(proved.sum())}",
        ),
    ]  # fmt: skip
    for case in grown.case.values:
        one = grown.sel(case=case)
        verdicts.append(_growing(one, case) if one.rate > 0 else _still(one, case))
    return tuple(verdicts)


def _growing(one: "xarray.Dataset", case: str) -> Verdict:
    last = one.isel(step=one.step >= one.step[-1] / 2)
    slope = float(np.polyfit(np.log(last.time), last.norm, 1)[0])
    off = abs(slope / float(one.rate) - 1)
    return Verdict(
        f"{case} is separable from the rest: the weights grow by |ŵ| log t",
        off <= GATE_GROWTH,
        off,
        GATE_GROWTH,
        f"relative difference of the slope, {slope:.3f}, from {float(one.rate):.3f}, over t from "
        f"{float(last.time[0]):.0e} to {float(last.time[-1]):.0e}",
    )


def _still(one: "xarray.Dataset", case: str) -> Verdict:
    over = float(one.norm.max() / one.minimum) - 1
    return Verdict(
        f"{case} overlaps with the rest: the weights stay within those of the minimum",
        over <= GATE_LONGER,
        over,
        GATE_LONGER,
        f"greatest excess of the norm; in the end {float(one.norm[-1]):.4g} of {float(one.minimum):.4g}",
    )


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the growth of the weights, and what is reported of every problem."""
    return {
        "growth": _draw_growth(config, study.part(results, "descent")),
        "reports": _draw_reports(config, study.part(results, "attempts")),
    }


def _draw_growth(config: Config, grown: "xarray.Dataset") -> "Figure":
    figure, ((left, right),) = plots.figure(
        1, 2, width=10.5, height=4.2, caption=f"Gradient descent without a penalty, a class of {config.descent} from "
        "the rest. Left: length of the weights; dashed: |ŵ| log t, from the end. Dotted: at the minimum, where there "
        "is one. Right: the gradient; dashed: 1/t.",
    )  # fmt: skip
    drawn = 0
    for position, case in enumerate(grown.case.values):
        one = grown.sel(case=case)
        separable = float(one.rate) > 0
        label = f"{case}: {'separable' if separable else 'overlaps'}"
        left.plot(one.time, one.norm, color=plots.colour(position), label=label)
        right.plot(one.time, one.slope, color=plots.colour(position), label=label)
        if separable:
            some = one.isel(step=one.time > 1)
            ahead = np.log(some.time / some.time[-1])
            plots.theory(left, some.time, some.norm[-1] + one.rate * ahead, label="" if drawn else "theory")
            plots.theory(right, some.time, some.slope[-1] * np.exp(-ahead), label="")
            drawn += 1
        else:
            plots.threshold(left, float(one.minimum))
    plots.logarithmic(left, "x")
    left.set_xlim(1e-2, 1e10)
    left.set_ylim(0, 2 * float(grown.minimum.where(grown.rate == 0, 20).max()))
    plots.logarithmic(right, "xy")
    plots.finish(left, x="time t", y="length of the weights")
    plots.finish(right, x="time t", y="length of the gradient", legend="none")
    return figure


def _draw_reports(config: Config, tried: "xarray.Dataset") -> "Figure":
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    rows = list(dict.fromkeys(zip(tried.data.values, tried.target.values, strict=True)))
    counts = sorted({*tried["columns"].values})
    table = np.full((len(rows), len(counts)), np.nan)
    for one, data_name, target, columns in zip(
        tried.reported.max("solver").values,
        tried.data.values,
        tried.target.values,
        tried["columns"].values,
        strict=True,
    ):
        table[rows.index((data_name, target)), counts.index(columns)] = one
    figure, panels = plots.figure(
        width=8.5, height=1.6 + 0.34 * len(rows), caption="What is reported of a fit without a penalty, by the number "
        "of columns that it is given. White: not tried.",
    )  # fmt: skip
    axes, shades = panels[0, 0], [plots.COLOURS[5], plots.COLOURS[1], plots.COLOURS[4], "#999999"]
    axes.imshow(table, cmap=ListedColormap(shades), vmin=-0.5, vmax=len(ENDS) - 0.5, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_yticks(range(len(rows)), [f"{name.replace('_', ' ')}: {target}" for name, target in rows])
    axes.tick_params(length=0)
    plots.finish(axes, x="number of columns, the first ones", y="", legend="none")
    told = [Patch(color=shade, label=word) for shade, word in zip(shades, ENDS, strict=True)]
    seen = {int(value) for value in table[np.isfinite(table)]}
    figure.legend(handles=[one for place, one in enumerate(told) if place in seen], loc="outside lower center",
                  ncols=2, frameon=False, fontsize="small")  # fmt: skip
    return figure


EXPERIMENT = Experiment("separation", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
