r"""Why do 1,500 steps of gradient descent not fit a plane, and how does scaling the columns help?

Question. Least squares has a closed form; descent reaches it only in the limit. How large may the learning rate be,
what is still missing after so many steps, and what have the units of the columns to do with it?

Mathematics. The loss is half the mean squared error, :math:`L(w) = |Xw - y|^2 / (2n)`, and its Hessian
:math:`H = X^\top X / n` has eigenvalues :math:`\lambda_i`. The gradient is :math:`H (w - w^*)`, so a step multiplies
the error along eigenvector i by :math:`1 - \eta \lambda_i`: in k steps :math:`c_i(k) = (1 - \eta \lambda_i)^k c_i(0)`.
All errors shrink if and only if :math:`\eta < 2 / \lambda_{max}`. To shrink one to a share :math:`\epsilon` takes
:math:`\log \epsilon / \log |1 - \eta \lambda_i|` steps; for the flattest direction they grow with the condition number
:math:`\lambda_{max} / \lambda_{min}`. Rates are in units of :math:`2 / \lambda_{max}`: both designs share one axis.

Claim. The measured border between convergence and divergence is within 1 % of :math:`2 / \lambda_{max}`. The error
along every eigenvector follows :math:`(1 - \eta \lambda_i)^k` to 1e-6 of its start (1e-2 in float32). The closed form,
by QR and by SVD, has the digits that the data hold. With standardised columns as many steps come nearer to it.

Command. python -m calcdl.experiments.linear_regression configs/linear_regression.toml

Reference. Goh, Why momentum really works, Distill 2017, doi:10.23915/distill.00006 (descent along eigenvectors).
"""

from collections.abc import Callable
from functools import partial
from math import comb
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import study
from calcdl.data import Dataset, full_batch, load, polynomial_features, split, standardise
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, OneOf, Rate, refuse
from calcdl.nn.losses import squared_error
from calcdl.optim import descent
from calcdl.optim.linear import METHODS, LeastSquares, digits_warning, linear_least_squares
from calcdl.train import Problem, make_run
from calcdl.types import Array, DataError, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

BORDER_GATE = 0.01
# In float32 a rate is off by 1e-7, times the steps, and errors are measured to 1e-7 of the largest weight.
ERROR_GATE = {"float64": 1e-6, "float32": 1e-2}
MOST_COLUMNS, MOST_DRAWN = 10_000, 11
RATES = (
    *(float(f"{rate:.3g}") for rate in np.geomspace(0.01, 0.95, 38)),
    *(0.97, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975, 1.0025, 1.005, 1.0075, 1.01, 1.015, 1.02),
    *(1.03, 1.05, 1.07, 1.1, 1.13, 1.16, 1.2, 1.25, 1.3, 1.35, 1.4, 1.5, 1.6),
)


def standardised(dataset: Dataset, intercept: bool) -> np.ndarray:
    """Return columns of mean 0 and variance 1 over the train rows; without an intercept only of mean square 1."""
    scale: np.ndarray = np.sqrt(np.mean(dataset.features[dataset.train] ** 2, axis=0))
    return standardise(dataset)[0].features if intercept else dataset.features / scale


Columns = Callable[[Dataset, bool], np.ndarray]
DESIGNS: dict[str, Columns] = {"raw": lambda dataset, intercept: dataset.features, "scaled": standardised}


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float32", "float64"] = Field(default="float64", description="type of all floating numbers")
    data: str = Field(default="diabetes_raw", description="a bundled regression set, or the path of a CSV or NPZ file")
    target: str = Field(default="", description="the column to predict, for a file; empty for a column named target")
    degree: Annotated[int, Field(ge=1, le=20)] = Field(
        default=1, description="degree of the polynomial in the columns, products between them included"
    )
    intercept: bool = Field(default=True, description="whether a column of ones is put first")
    test: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="share of the rows kept for the test")
    designs: AxisOf[Annotated[str, OneOf(DESIGNS)]] = Field(
        default=("raw", "scaled"), description="the columns as they are, or standardised"
    )
    relative_rates: AxisOf[Rate] = Field(
        default=RATES, description="learning rates, in units of 2 / largest eigenvalue of the Hessian"
    )
    shown_rate: Rate = Field(default=0.9, description="figures by eigenvector show the run nearest to this rate")
    steps: Count = Field(default=1500, description="steps of a run, a multiple of record_every")
    record_every: Count = Field(default=10, description="steps between records by eigenvector (the loss has each step)")
    gone: Annotated[float, Field(gt=0, lt=1)] = Field(default=1e-3, description="share of its start that ends an error")

    @model_validator(mode="after")
    def _records_and_rates_fit(self) -> Self:
        if self.steps % self.record_every:
            raise refuse("steps", self.steps, f"a multiple of record_every = {self.record_every}")
        rates = self.relative_rates
        below, above = [rate for rate in rates if rate <= 1], [rate for rate in rates if rate > 1]
        for nearest in (max(below), min(above)) if below and above else ():
            if round(abs(nearest - 1), 9) > BORDER_GATE:
                wanted = f"rates within {BORDER_GATE:g} of 1 on both sides, to find the border, or all on one side"
                raise refuse(f"relative_rates[{rates.index(nearest)}]", nearest, wanted)
        return self


def prepare(config: Config) -> Dataset:
    """Load the data, hold rows out for the test, and expand the columns to a polynomial."""
    dataset = load(config.data, config.target or None, "regression")
    columns = comb(len(dataset.feature_names) + config.degree, config.degree) - 1
    if config.degree > 1 and columns > MOST_COLUMNS:
        raise ConfigError(f"degree: got {config.degree}, for {columns:,} columns; expected at most {MOST_COLUMNS:,}")
    dataset = split(dataset, validation=0.0, test=config.test) if config.test else dataset
    dataset, limits = polynomial_features(dataset, config.degree), np.finfo(config.precision)
    sizes = np.append(np.abs(dataset.features).max(axis=0), np.abs(dataset.targets).max())
    if not np.sqrt(limits.tiny) < sizes.min() <= sizes.max() < np.sqrt(limits.max / len(dataset.targets)):
        found = f"columns and target are of sizes {sizes.min():.3g} to {sizes.max():.3g}"
        raise DataError(f"{found}, whose squares {config.precision} cannot hold; give them in other units")
    return dataset


def analyse(x: np.ndarray, targets: np.ndarray, names: tuple[str, ...], precision: str) -> tuple[np.ndarray, ...]:
    """Return eigenvalues (largest first) and eigenvectors of the Hessian, and the optimum, or refuse the data."""
    rows, count = x.shape
    if rows <= count:
        raise DataError(f"{rows} train rows for {count} coefficients; give more rows or lower the degree")
    norms = np.linalg.norm(x, axis=0)
    if np.linalg.cond(x / norms) * rows * np.finfo(precision).eps >= 1:
        worst = names[int(np.abs(np.diag(np.linalg.qr(x / norms).R)).argmin())]
        remedy = "drop it or lower the degree" + (', or set precision = "float64"' if precision == "float32" else "")
        raise DataError(f"column {worst!r} is in {precision} a combination of the columns before it; {remedy}")
    _, singular, transposed = np.linalg.svd(x / np.sqrt(rows), full_matrices=False)
    return singular**2, transposed.T, np.linalg.lstsq(x / norms, targets, rcond=None)[0] / norms


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Fit in closed form, descend at every rate, and set theory beside both."""
    dataset = prepare(config)
    names, whole = dataset.feature_names, {name: DESIGNS[name](dataset, config.intercept) for name in config.designs}
    if config.intercept:
        names, whole = ("intercept", *names), {name: np.insert(x, 0, 1.0, axis=1) for name, x in whole.items()}
    train, targets = dataset.train, dataset.targets[dataset.train]
    designs = {name: (x[train], *analyse(x[train], targets, names, config.precision)) for name, x in whole.items()}
    shared = jax.tree.map(lambda leaf: leaf.astype(config.precision), {"designs": designs, "targets": targets})
    named: dict[str, tuple[str, ...]] = {"loss": ("step",), "error": ("record", "direction")}
    named |= {"coefficients": ("coefficient",), "standard_errors": ("coefficient",), "residuals": ("train_row",)}
    design = study.axis("design", config.designs)
    closed = run(
        partial(closed_form, intercept=config.intercept),
        [design, study.axis("factorisation", tuple(METHODS))],
        name="closed_form", shared=shared, dimensions=named, dtype=config.precision,
    )  # fmt: skip
    found = run(
        partial(descend, steps=config.steps, record_every=config.record_every),
        [design, study.axis("relative_rate", sorted(config.relative_rates))],
        name="descent", shared=shared, dimensions=named, dtype=config.precision,
    )  # fmt: skip
    _, values, vectors, optima = (np.stack(leaves) for leaves in zip(*designs.values(), strict=True))
    results = found.assign({f"closed_form_{name}": table for name, table in closed.data_vars.items()}).assign(
        eigenvalue=(("design", "direction"), values),
        eigenvector=(("design", "coefficient", "direction"), vectors),
        optimum=(("design", "coefficient"), optima),
        matrix=(("design", "row", "coefficient"), np.stack(list(whole.values()))),
        observed=("row", dataset.targets),
        part=("row", np.where(np.isin(np.arange(len(dataset.targets)), train), "train", "test")),
    )
    records = np.arange(0, config.steps + 1, config.record_every)
    results = results.assign_coords(coefficient=list(names), step=np.arange(config.steps), record=records)
    return with_theory(config, results).drop_vars("matrix").assign_attrs(target=dataset.target_name)


def closed_form(key: Key, designs: Any, targets: Array, *, design: str, factorisation: Any, intercept: bool) -> Any:
    """Solve one design by one factorisation."""
    columns = designs[design][0][:, int(intercept) :]
    return linear_least_squares(columns, targets, method=factorisation, intercept=intercept)._asdict()


def descend(
    key: Key, designs: Any, targets: Array, *, design: str, relative_rate: Array, steps: int, record_every: int
) -> dict[str, Array]:
    """Descend from zero with the whole batch; measure the error along every eigenvector."""
    x, eigenvalues, eigenvectors, optimum = designs[design]
    problem = Problem(
        init=lambda key: jnp.zeros_like(optimum),
        loss=lambda weights, rows: jnp.mean(squared_error(rows[0] @ weights, rows[1])) / 2,
        batches=full_batch((x, targets)),
    )
    probes = {"error": lambda objective, weights, info: eigenvectors.T @ (weights - optimum)}
    trace = make_run(problem, descent("sgd", relative_rate * 2 / eigenvalues[0]), steps=steps, probes=probes)(key)
    start, errors = eigenvectors.T @ -optimum, trace.probes["error"][record_every - 1 :: record_every]
    return {
        "loss": trace.loss,
        "error": jnp.concatenate([start[None, :], errors]),
        "coefficients": trace.params,
        "status": trace.status,
        "diverged_at": trace.diverged_at,
    }


def with_theory(config: Config, results: "xarray.Dataset") -> "xarray.Dataset":
    """Add shares of the start, of the error along eigenvectors and of the excess loss, measured and predicted."""
    start = -(results.eigenvector * results.optimum).sum("coefficient")
    # An error that is next to nothing from the start is measured to the rounding of the whole vector.
    scale = np.copysign(np.maximum(np.abs(start), 1e-8 * np.sqrt((start**2).sum("direction"))), start)
    factor = 1 - 2 * results.relative_rate * results.eigenvalue / results.eigenvalue.max("direction")
    energy = results.eigenvalue * start**2
    exact = (results.matrix * results.optimum).sum("coefficient")
    least = ((results.observed - exact) ** 2).where(results.part == "train").mean("row") / 2
    excess = results.loss.astype(np.float64) - least
    share = results.error.astype(np.float64) / scale
    with np.errstate(over="ignore", invalid="ignore"):
        predicted = start / scale * factor**results.record
        each = [{"direction": at} for at in range(energy.sizes["direction"])]
        theory = sum(energy[at] * factor[at] ** (2 * results.step) for at in each) / energy.sum("direction")
        growth = np.abs(share[{"record": -1}]) - np.abs(share[{"record": (share.sizes["record"] - 1) // 2}])
    best = excess.isel(step=-1).fillna(np.inf).argmin("relative_rate")
    fitted = (results.matrix * results.coefficients.isel(relative_rate=best)).sum("coefficient", skipna=False)
    return results.assign(
        factor=factor, best=best, fitted=fitted, fitted_exactly=exact, share=share, predicted_share=predicted,
        excess=excess / excess.isel(step=0), predicted_excess=theory,
        diverges=~(growth <= ERROR_GATE[config.precision]).all("direction"),
    )  # fmt: skip


def r_squared(results: "xarray.Dataset", fitted: "xarray.DataArray", part: str = "train") -> float:
    """Return the share of the variance of some rows that predictions explain."""
    observed = results.observed.where(results.part == part)
    return float(1 - ((observed - fitted) ** 2).mean("row") / observed.var("row"))


def steps_to(share: float, run: "xarray.Dataset") -> np.ndarray:
    """Return for every direction the steps that shrink its error to a share: log share / log |1 - eta lambda|."""
    left = np.abs(run.factor.values)
    with np.errstate(divide="ignore"):
        return np.where(left < 1, np.maximum(np.log(share) / np.log(left), 1.0), np.inf)


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold the border, the errors by eigenvector, the closed form and the gain of scaling against theory."""
    each = {name: results.sel(design=name) for name in config.designs}
    both_sides = min(config.relative_rates) <= 1 < max(config.relative_rates)
    verdicts = [_border(config, *item) for item in each.items() if both_sides]
    verdicts += [_errors(config, *item) for item in each.items()] + [_closed_form(*item) for item in each.items()]
    return (*verdicts, _scaling(config, each)) if {"raw", "scaled"} <= each.keys() else tuple(verdicts)


def _border(config: Config, name: str, one: "xarray.Dataset") -> Verdict:
    rates, lost = one.relative_rate.values, one.diverges.values
    kept, first = rates[~lost].max(initial=0.0), rates[lost].min(initial=np.inf)
    farther = round(float(max(kept - 1, first - 1, key=abs)), 9)
    claim = f"{name} columns: the largest rate that converges is 2 / largest eigenvalue, to {BORDER_GATE:.0%}"
    evidence = (
        f"all errors shrink up to {kept:g} times {2 / float(one.eigenvalue.max()):.6g}, one grows at {first:g} times; "
        f"{lost.sum()} of {len(rates)} rates diverge, {(one.status > 0).sum():d} beyond the largest {config.precision}"
    )
    return Verdict(claim, abs(farther) <= BORDER_GATE, farther, BORDER_GATE, evidence)


def _errors(config: Config, name: str, one: "xarray.Dataset") -> Verdict:
    with np.errstate(over="ignore", invalid="ignore"):
        grown = np.maximum(np.abs(one.factor).max("direction"), 1.0) ** one.record
        away = (np.abs(one.share - one.predicted_share) / grown).isel(record=slice(1, None)).where(np.isfinite)
    gate, sizes = ERROR_GATE[config.precision], away.sizes
    claim = f"{name} columns: the error along every eigenvector follows (1 - eta lambda)^k"
    evidence = (
        f"largest deviation over {sizes['direction']} eigenvectors, {sizes['relative_rate']} rates, {sizes['record']} "
        f"moments ({int(away.count()):,} of {away.size:,} finite), as share of start; of the growth where errors grow"
    )
    return Verdict(claim, bool(away.max() <= gate), float(away.max()), gate, evidence)


def _closed_form(name: str, one: "xarray.Dataset") -> Verdict:
    fit = LeastSquares(*(one[f"closed_form_{field}"].values[0] for field in LeastSquares._fields))
    limits, held, warning = np.finfo(np.float64), float(fit.digits), digits_warning(fit)
    away = np.abs(one.closed_form_coefficients - one.optimum) / np.maximum(np.abs(one.optimum), limits.tiny)
    digits = -np.log10(np.maximum(away.max("coefficient"), limits.eps))
    found = ", ".join(f"{method} {float(digits.sel(factorisation=method)):.1f}" for method in METHODS)
    evidence = (
        f"digits of the worst coefficient shared with LAPACK's in float64: {found}; rounding of the data leaves "
        f"{held:.1f}, LAPACK's own rounding one less; condition number of the columns {float(fit.condition):.3g}"
    )
    claim = f"{name} columns: QR and SVD give the digits the data hold" + (f"; WARNING: {warning}" if warning else "")
    return Verdict(claim, bool(digits.min() >= held - 1), float(digits.min()), held - 1, evidence)


def _scaling(config: Config, each: dict[str, "xarray.Dataset"]) -> Verdict:
    best = {name: one.isel(relative_rate=int(one.best)) for name, one in each.items()}
    floor = 100 * float(np.finfo(config.precision).eps)
    gain = max(float(best["scaled"].excess[-1]), floor) / max(float(best["raw"].excess[-1]), floor)
    claim = f"{config.steps:,} steps at the best rate leave no more of the excess loss with standardised columns"
    evidence = [
        f"{name}: condition number {float(one.eigenvalue[0] / one.eigenvalue[-1]):.3g}; the flattest direction needs "
        f"{steps_to(config.gone, one)[-1]:,.0f} steps to shrink to {config.gone:g}; {float(one.excess[-1]):.2g} of the "
        f"excess loss is left at {float(one.relative_rate):g} of the border; R2 {r_squared(one, one.fitted):.4f}, in "
        f"closed form {r_squared(one, one.fitted_exactly):.4f}"
        for name, one in best.items()
    ]
    return Verdict(claim, gain <= 1, gain, 1.0, "; ".join(evidence))


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw what is left by rate, the errors by eigenvector, loss curves and residuals."""
    drawings = {"left_by_rate": _draw_left, "error_by_direction": _draw_errors}
    drawings |= {"loss_curves": _draw_losses, "residuals": _draw_residuals}
    return {name: draw(config, results) for name, draw in drawings.items()}


def _draw_left(config: Config, results: "xarray.Dataset") -> "Figure":
    caption = (
        f"What {config.steps:,} steps leave of the loss above its minimum, by learning rate; right: near the border. "
        "Dots: every error shrinks; crosses: one grows. Dashed: theory."
    )
    figure, panels = plots.figure(1, 2, caption=caption, width=9.6)
    for axes, near in zip(panels[0], (False, True), strict=True):
        for at, name in enumerate(config.designs):
            one = results.sel(design=name)[["excess", "predicted_excess", "diverges"]].isel(step=-1)
            one = one.isel(relative_rate=one.excess.values < 1e60)
            for lost, mark, label in ((False, "o", f"{name} columns"), (True, "x", None)):
                some = one.isel(relative_rate=one.diverges.values == lost)
                axes.plot(some.relative_rate, some.excess, mark, color=plots.colour(at), markersize=4, label=label)
            plots.theory(axes, one.relative_rate, one.predicted_excess, label="" if at else "theory")
        plots.threshold(axes, 1.0, "2 / largest eigenvalue", along="x")
        plots.logarithmic(axes, "y" if near else "xy")
        axes.set_ylim(1e-10, 1e40 if near else 1e7)
        axes.set_xlim(*((0.98, 1.02) if near else (None, None)))
        x, y = "learning rate / (2 / largest eigenvalue)", "loss above its minimum / at the start"
        plots.finish(axes, x=x, y=y, legend="none" if near else "inside")
    return figure


def _draw_errors(config: Config, results: "xarray.Dataset") -> "Figure":
    import matplotlib

    caption = (
        f"Error along each eigenvector of the Hessian, as share of its start, at {config.shown_rate:g} of the border. "
        "Dashed: |1 - eta lambda|^k. Legend: eigenvalue, columns that weigh most in its vector, steps that shrink the "
        f"error to {config.gone:g} (dotted). Steep directions are done at once; the flattest hardly move."
    )
    figure, panels = plots.figure(1, len(config.designs), caption=caption, width=11.6, height=4.2, share_y=True)
    for axes, name in zip(panels[0], config.designs, strict=True):
        run = results.sel(design=name).sel(relative_rate=config.shown_rate, method="nearest")
        last, needed = run.sizes["direction"] - 1, steps_to(config.gone, run)
        for at in sorted({round(place) for place in np.linspace(0, last, min(last + 1, MOST_DRAWN))}):
            one, shade = run.isel(direction=at), matplotlib.colormaps["viridis"](0.92 * at / max(last, 1))
            weight = np.abs(one.eigenvector).sortby(-np.abs(one.eigenvector))
            heavy = ", ".join(map(str, weight.coefficient.values[: 1 + int(weight[1:2].sum() > 0.5)]))
            label = f"{float(one.eigenvalue):.2g}, {heavy}: {needed[at]:,.0f}"
            axes.plot(run.record, np.abs(one.share), color=shade, linewidth=3.0, label=label)
            plots.theory(axes, run.record, np.abs(one.predicted_share), label="")
        plots.threshold(axes, config.gone)
        axes.set_yscale("log")
        axes.set_ylim(1e-12, 3.0)
        plots.finish(axes, x="step", y="error / at the start", title=f"{name} columns", legend="right")
        axes.get_legend().set_title("eigenvalue, columns: steps")
    return figure


def _draw_losses(config: Config, results: "xarray.Dataset") -> "Figure":
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    caption = (
        "Loss above its minimum over training, one curve a rate, coloured by rate; orange: rates beyond the border. "
        f"Dashed: theory at {config.shown_rate:g} of the border."
    )
    figure, panels = plots.figure(1, len(config.designs), caption=caption, width=9.6, height=4.2, share_y=True)
    steps = np.unique(np.geomspace(1, config.steps, 90).astype(int)) - 1
    scale = ScalarMappable(LogNorm(min(config.relative_rates), max(1.0, min(config.relative_rates) * 2)), "viridis")
    for axes, name in zip(panels[0], config.designs, strict=True):
        one = results.sel(design=name).isel(step=steps)
        for rate, excess in zip(one.relative_rate.values, one.excess.where(one.excess < 1e30).values, strict=True):
            axes.plot(steps + 1, excess, color=scale.to_rgba(rate) if rate <= 1 else plots.colour(1), linewidth=0.8)
        plots.theory(axes, steps + 1, one.predicted_excess.sel(relative_rate=config.shown_rate, method="nearest"))
        plots.logarithmic(axes, "xy")
        axes.set_ylim(1e-10, 1e3)
        plots.finish(axes, x="step", y="loss above its minimum / at the start", title=f"{name} columns")
    figure.colorbar(scale, label="learning rate / (2 / largest eigenvalue)", ax=list(panels[0]))
    return figure


def _draw_residuals(config: Config, results: "xarray.Dataset") -> "Figure":
    caption = (
        f"What a fit leaves of {results.attrs['target']}, by prediction: in closed form, by descent at its best rate. "
        "A good fit leaves a cloud about the dotted line; R2 is the share of the variance that it explains."
    )
    fits = {"closed form": results.fitted_exactly[0]}
    fits |= {f"descent, {name} columns": results.fitted.sel(design=name) for name in config.designs}
    figure, panels = plots.figure(1, len(fits), caption=caption, width=9.6, height=3.8, share_x=True, share_y=True)
    for axes, (title, fitted) in zip(panels[0], fits.items(), strict=True):
        parts, scores = [part for part in ("train", "test") if part in results.part], [title]
        for at, part in enumerate(parts):
            rows, label = results.part.values == part, part if len(parts) > 1 else ""
            style = {"color": plots.colour(at), "markersize": 3, "alpha": 0.6, "label": label}
            axes.plot(fitted[rows], (results.observed - fitted)[rows], plots.marker(at), **style)
            scores.append(f"{part} R2 {r_squared(results, fitted, part):.4f}")
        plots.threshold(axes, 0.0)
        plots.finish(axes, x="predicted", y="observed - predicted", title="\n".join(scores))
    return figure


EXPERIMENT = Experiment("linear_regression", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
