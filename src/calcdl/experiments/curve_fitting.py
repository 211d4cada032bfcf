r"""Which curve of a family fits the data best, and how sure can one be of its parameters?

Question. A formula with unknown parameters is to pass through noisy data. Does the fit depend on where the search
starts and on the method? What do the parameters' standard errors promise, and is it kept?

Mathematics. The sum of squares of the residuals :math:`r_i = f(x_i, p) - y_i` is least where r is orthogonal to the
columns of :math:`J = \partial r / \partial p`, so the gradient :math:`J^\top r` is 0. Gauss-Newton solves the problem
that is linear in the step, :math:`\min |r + J s|`; Levenberg and Marquardt damp that step until the sum falls. Near the
fit parameters depend on the noise linearly, so independent noise of standard deviation s gives them the covariance
:math:`s^2 (J^\top J)^{-1}`, with :math:`s^2 = |r|^2 / (m - n)`.

Claim. Every start ends at the same fit, by Levenberg-Marquardt and by the dogleg; the residuals are orthogonal to all
tangent directions. Fits to new noise scatter as the standard errors say, to 10 %, and 95 % of the 95 % intervals hold
the parameters from which those data were made.

Command. python -m calcdl.experiments.curve_fitting configs/curve_fitting.toml

Reference. Seber and Wild, Nonlinear Regression (1989), section 2.1.
"""

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import data, study
from calcdl.calculus.derivatives import gradient, jacobian
from calcdl.calculus.expressions import parse
from calcdl.lab import panels, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import (
    AxisOf,
    ConfigError,
    Count,
    ExperimentConfig,
    Finite,
    NonNegative,
    Rate,
    Section,
    Seeds,
    refuse,
)
from calcdl.optim.nonlinear_least_squares import (
    DETERMINED,
    UNCERTAINTIES,
    dogleg,
    gauss_newton,
    least_squares,
    levenberg_marquardt,
    standard_errors,
)
from calcdl.trees import array_norm
from calcdl.types import Array, DataError, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

SOLVERS: dict[str, Any] = {
    "Gauss-Newton": gauss_newton, "Levenberg-Marquardt": levenberg_marquardt, "dogleg": dogleg,
}  # fmt: skip
SAFE = ("Levenberg-Marquardt", "dogleg")
DIMENSIONS = {"parameters": ("parameter",), "errors": ("parameter",), "value": ("step",),
              "covariance": ("parameter", "other")}  # fmt: skip
SAME_FIT, ORTHOGONAL, SPREAD, STANDARD_ERRORS, GRID = 1e-6, 1e-6, 0.1, 4.5, 201
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Numbers = Annotated[tuple[Finite, ...], Field(min_length=1)]


class Model(Section):
    """The family of curves."""

    formula: str = Field(default="a/(1 + exp(b - c*x))", description="a formula in the variable and the parameters")
    variable: str = Field(default="x", description="name of the variable in the formula")
    parameters: Names = Field(default=("a", "b", "c"), description="names of the parameters in the formula")
    start: Numbers = Field(default=(75.0, 2.5, 0.07), description="where the fit starts, one number a parameter")
    factors: AxisOf[Rate] = Field(default=(1.0, 2.5, 0.3), description="other starts: this many times the first")
    steps: Count = Field(default=200, description="most steps of a fit")


class Observations(Section):
    """What is fitted: a file, or data made from the formula."""

    file: str = Field(default="", description="a CSV or NPZ file; empty for data made from the formula")
    target: str = Field(default="", description="the column to fit, for a file; empty for one named target")
    column: str = Field(default="", description="the column of the variable; empty where there is but one other column")
    truth: Numbers = Field(default=(72.5, 2.6, 0.067), description="parameters of the data made")
    noise: NonNegative = Field(default=1.5, description="standard deviation of the noise of the data made")
    rows: Annotated[int, Field(ge=2, le=100_000)] = Field(default=24, description="observations made")
    limits: tuple[Finite, Finite] = Field(default=(5.0, 80.0), description="first and last value of the variable")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(default=2, description="of the noise of the data made")


class Config(ExperimentConfig):
    """What to fit."""

    precision: Literal["float64"] = Field(default="float64", description="fits need the digits of float64")
    model: Model = Field(default=Model(), description="the family of curves")
    observations: Observations = Field(default=Observations(), description="the data")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(default=0.95, description="of intervals and bands")
    seeds: Seeds = Field(default=tuple(range(400)), description="new noise on the fitted curve, one fit each")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        model, count = self.model, len(self.model.parameters)
        try:
            parse(model.formula, model.parameters, (model.variable,))
        except ValueError as error:
            names = ", ".join((model.variable, *model.parameters))
            raise refuse("model.formula", model.formula, f"a formula in {names}; {error}") from None
        if len(model.start) != count:
            raise refuse("model.start", model.start, f"{count} numbers, one for each parameter")
        if not self.observations.file and len(self.observations.truth) != count:
            raise refuse("observations.truth", self.observations.truth, f"{count} numbers, one for each parameter")
        return self


def observed(config: Config) -> tuple[np.ndarray, np.ndarray, str, str]:
    """Return variable and target, with their names: from the file, or made from the formula."""
    one, count = config.observations, len(config.model.parameters)
    if not one.file:
        x = np.linspace(*one.limits, one.rows)
        curve = np.asarray(curve_of(config)(jnp.asarray(one.truth, float), jnp.asarray(x)))
        y, names = (
            curve + one.noise * np.random.default_rng(one.seed).normal(size=one.rows),
            (config.model.variable, "y"),
        )
    else:
        found = data.load(one.file, one.target or None, "regression", collinear="keep")
        column = one.column or (found.feature_names[0] if len(found.feature_names) == 1 else "")
        if column not in found.feature_names:
            listed = ", ".join(found.feature_names)
            raise ConfigError(f"observations.column: got {one.column!r}; expected one of {listed}")
        x, y = found.features[:, found.feature_names.index(column)], np.asarray(found.targets, float)
        names = (column, found.target_name)
    if len(y) <= count or not np.isfinite(y).all():
        raise DataError(f"{one.file or 'observations'}: {len(y)} rows for {count} parameters, or values that are not "
                        "finite; expected more finite rows than parameters")  # fmt: skip
    return x, y, *names


def curve_of(config: Config) -> Any:
    """Return the formula as a function of a vector of parameters and the variable."""
    model = config.model
    formula = parse(model.formula, model.parameters, (model.variable,))

    def curve(p: Array, x: Array) -> Array:
        value: Array = formula(*p, x)
        return value

    return curve


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Fit from every start by every method, draw the band, and fit again to new noise on the fitted curve."""
    import xarray

    x, y, *names = observed(config)
    run = partial(run, dtype=config.precision, dimensions=DIMENSIONS)
    start, parameter = np.asarray(config.model.start, float), {"parameter": list(config.model.parameters)}
    axes = [study.axis("solver", SOLVERS), study.axis("factor", config.model.factors)]
    fixed: Any = {"curve": curve_of(config), "steps": config.model.steps}
    fits = run(partial(fit, **fixed), axes, name="fits", shared={"rows": (x, y), "start": start})
    chosen = best(fits)
    shared = {"x": x, "truth": chosen.parameters.values, "noise": np.asarray(float(chosen.noise))}
    axes = [study.axis("seed", config.seeds)]
    again = run(partial(refit, **fixed), axes, name="again", shared=shared)
    band = band_of(config, np.asarray(x), chosen)
    rows = xarray.Dataset({"x": ("row", x), "y": ("row", y)}, attrs={"x": names[0], "y": names[1]})
    rows = rows.assign(
        fitted=("row", np.asarray(curve_of(config)(jnp.asarray(chosen.parameters.values), jnp.asarray(x))))
    )
    return study.join(fits=fits.assign_coords(parameter), again=again.assign_coords(parameter), band=band, rows=rows)


def fit(
    key: Key, rows: tuple[Array, Array], start: Array, *, solver: str, factor: Array, curve: Any, steps: int
) -> dict[str, Array]:
    """Fit by one method from one start, and tell what the data say of the parameters."""
    x, y = rows

    def residuals(p: Array) -> Array:
        left: Array = curve(p, x) - y
        return left

    found = least_squares(residuals, factor * start, SOLVERS[solver], steps=steps, tolerance=0.0, trace=("value",))
    told = standard_errors(residuals, found.params)
    left, columns = residuals(found.params), jacobian(residuals)(found.params)
    sizes = array_norm(columns, axis=0) * array_norm(left)
    cosines = jnp.abs(left @ columns) / jnp.where(sizes > 0, sizes, 1)
    outputs = {"parameters": found.params, "errors": told.standard_errors, "covariance": told.covariance,
               "noise": told.noise, "rank": told.rank, "told": told.status, "value": found.trace.value,
               "cosine": jnp.max(cosines), "steps": found.steps, "ended": found.status}  # fmt: skip
    # A fit that runs away is a finding, and no failure of the run.
    return {name: jnp.where(jnp.isnan(values), jnp.inf, values) for name, values in outputs.items()}


def refit(key: Key, x: Array, truth: Array, noise: Array, *, curve: Any, steps: int) -> dict[str, Array]:
    """Fit data made from known parameters with new noise."""
    y = curve(truth, x) + noise * jax.random.normal(key, x.shape, x.dtype)
    found = least_squares(lambda p: curve(p, x) - y, truth, steps=steps, tolerance=0.0)
    told = standard_errors(lambda p: curve(p, x) - y, found.params)
    outputs = {"parameters": found.params, "errors": told.standard_errors}
    return {name: jnp.where(jnp.isnan(values), jnp.inf, values) for name, values in outputs.items()}


def best(fits: "xarray.Dataset") -> "xarray.Dataset":
    """Return the fit with the least sum of squares."""
    last = fits.value[:, :, -1]
    place = np.unravel_index(int(np.argmin(last.values)), last.shape)
    return fits.isel(solver=int(place[0]), factor=int(place[1]))


def quantile(config: Config, freedom: int) -> float:
    """Return how many standard errors an interval reaches to each side."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + config.confidence) / 2))


def band_of(config: Config, x: np.ndarray, chosen: "xarray.Dataset") -> "xarray.Dataset":
    """Return the fitted curve with standard errors: of the curve, and of a new observation."""
    import xarray

    curve, p, grid = curve_of(config), jnp.asarray(chosen.parameters.values), np.linspace(x.min(), x.max(), GRID)
    slopes = np.asarray(jax.vmap(lambda at: gradient(lambda p: curve(p, at))(p))(jnp.asarray(grid)))
    variance = np.einsum("ij,jk,ik->i", slopes, chosen.covariance.values, slopes)
    return xarray.Dataset(
        {"fitted": ("at", np.asarray(curve(p, jnp.asarray(grid)))), "error": ("at", np.sqrt(variance)),
         "error_of_new": ("at", np.sqrt(variance + float(chosen.noise) ** 2))}, coords={"at": grid},
    )  # fmt: skip


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold the fits against each other, against the condition of a minimum, and against new noise."""
    fits, again = study.part(results, "fits"), study.part(results, "again")
    chosen = best(fits)
    count, rows = fits.sizes["parameter"], results.sizes["rows_row"]
    away = np.abs(fits.parameters / chosen.parameters - 1).max("parameter").sel(solver=list(SAFE))
    found = ", ".join(f"{name} = {value:.6g} +- {error:.2g}" for name, value, error in zip(
        fits.parameter.values, chosen.parameters.values, chosen.errors.values, strict=True))  # fmt: skip
    worst = float(away.max())
    claim = f"{' and '.join(SAFE)} end at one fit from {fits.sizes['factor']} starts"
    verdicts = [Verdict(claim, worst <= SAME_FIT, worst, SAME_FIT, f"largest relative difference; {found}")]
    cosine = float(chosen.cosine)
    claim = "at the fit the residuals are orthogonal to every tangent direction"
    told = UNCERTAINTIES[int(chosen.told)].split(":")[0]
    verdicts.append(Verdict(claim, cosine <= ORTHOGONAL, cosine, ORTHOGONAL, f"largest cosine of an angle; {told}"))
    if int(chosen.told) != DETERMINED:
        claim = "every parameter is determined by the data"
        return (*verdicts, Verdict(claim, False, float(chosen["rank"]), count, UNCERTAINTIES[int(chosen.told)]))
    spread = again.parameters.std("seed") / chosen.errors
    worst = float(np.abs(spread - 1).max())
    claim = f"fits to new noise scatter as the standard errors say, to {SPREAD:.0%}"
    listed = ", ".join(f"{name} {float(ratio):.3f}" for name, ratio in zip(fits.parameter.values, spread, strict=True))
    verdicts.append(Verdict(claim, worst <= SPREAD, worst, SPREAD, f"spread over standard error: {listed}"))
    off = np.abs(again.parameters - chosen.parameters) / again.errors
    inside = (off <= quantile(config, rows - count)).mean("seed")
    level, total = config.confidence, again.sizes["seed"]
    missed = float(np.abs(inside - level).max()) / math.sqrt(level * (1 - level) / total)
    claim = f"the {level:.0%} intervals hold the parameter in {level:.0%} of {total} fits, in standard errors"
    listed = ", ".join(f"{name} {float(share):.1%}" for name, share in zip(fits.parameter.values, inside, strict=True))
    return (*verdicts, Verdict(claim, missed <= STANDARD_ERRORS, missed, STANDARD_ERRORS, f"held: {listed}"))


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the fit with its band, the scatter of fits to new noise, and the way down."""
    fits, again = study.part(results, "fits"), study.part(results, "again")
    return {"fit": _draw_fit(config, results), "scatter": _draw_scatter(config, results, again),
            "descent": _draw_descent(config, fits)}  # fmt: skip


def _draw_fit(config: Config, results: "xarray.Dataset") -> "Figure":
    band, rows, chosen = study.part(results, "band"), study.part(results, "rows"), best(study.part(results, "fits"))
    reach = quantile(config, rows.sizes["row"] - chosen.sizes["parameter"])
    x, y = (str(results.attrs.get(f"rows_{name}", name)) for name in ("x", "y"))
    caption = (
        f"The data, the fitted curve, and where it lies with a confidence of {config.confidence:.0%} (dark), or a new "
        "observation (light). Below: what the curve leaves; it should look like noise."
    )
    figure, panel = plots.figure(2, 1, width=8.0, height=6.4, share_x=True, caption=caption)
    top, below = panel[:, 0]
    top.get_gridspec().set_height_ratios((3, 1))
    for error, alpha, label in ((band.error_of_new, 0.12, "new observation"), (band.error, 0.35, "curve")):
        top.fill_between(band.at, band.fitted - reach * error, band.fitted + reach * error, color=plots.colour(0),
                         alpha=alpha, linewidth=0, label=f"{config.confidence:.0%}: {label}")  # fmt: skip
    told = zip(config.model.parameters, chosen.parameters.values, chosen.errors.values, strict=True)
    lines = [f"{name} = {value:.5g} ± {error:.2g}" for name, value, error in told]
    top.plot(band.at, band.fitted, color=plots.colour(0), label="\n".join(["fit with standard errors:", *lines]))
    top.plot(rows.x, rows.y, "o", color="#000000", markersize=4, label="data")
    below.axhline(0, color=plots.colour(0), linewidth=1.2)
    below.vlines(rows.x, 0, rows.y - rows.fitted, color="#000000", linewidth=0.8)
    below.plot(rows.x, rows.y - rows.fitted, "o", color="#000000", markersize=4)
    plots.finish(top, x="", y=y, title=f"{y} = {config.model.formula}")
    plots.finish(below, x=x, y="data - fit", title=f"standard deviation {float(chosen.noise):.3g}")
    return figure


def _draw_scatter(config: Config, results: "xarray.Dataset", again: "xarray.Dataset") -> "Figure":
    chosen = best(study.part(results, "fits"))
    names, centre = list(config.model.parameters), chosen.parameters.values
    reach = quantile(config, results.sizes["rows_row"] - len(names))
    count = max(1, len(names) - 1)
    caption = (
        f"Fits to {again.sizes['seed']} draws of new noise on the fitted curve. Left: pairs of parameters with the "
        "ellipse of two standard deviations that the covariance predicts. Right: the first intervals; orange ones miss."
    )
    figure, ((*pairs, intervals),) = plots.figure(
        1, count + 1, width=1.5 + 3.6 * (count + 1), height=4.0, caption=caption
    )
    turn = np.linspace(0, 2 * np.pi, 201)
    for number, axes in enumerate(pairs):
        both = [number, min(number + 1, len(names) - 1)]
        axes.plot(*again.parameters.values[:, both].T, ".", color=plots.colour(0), markersize=3, label="fits")
        lengths, ways = np.linalg.eigh(chosen.covariance.values[np.ix_(both, both)])
        around = ways @ (2 * np.sqrt(np.maximum(lengths, 0))[:, None] * np.stack([np.cos(turn), np.sin(turn)]))
        plots.theory(axes, *(centre[both][:, None] + around), label="predicted")
        plots.finish(axes, x=names[both[0]], y=names[both[1]], legend="inside" if number == 0 else "none")
    first = again.isel(seed=slice(60), parameter=-1)
    outside = np.abs(first.parameters - centre[-1]) > reach * first.errors
    for position, misses in enumerate((~outside, outside)):
        look: Any = {"fmt": "o", "color": plots.colour(position), "markersize": 3}
        intervals.errorbar(np.flatnonzero(misses), first.parameters[misses], reach * first.errors[misses], **look)
    plots.threshold(intervals, float(centre[-1]))
    plots.finish(intervals, x="draw", y=f"{names[-1]} with interval of {config.confidence:.0%}", legend="none")
    return figure


def _draw_descent(config: Config, fits: "xarray.Dataset") -> "Figure":
    least = float(best(fits).value[-1])
    caption = (
        "Half the sum of squares above its least, by steps, from each start. Gauss-Newton is as fast as the others "
        "near the fit, but nothing keeps it from running away where the curve is far from straight in its parameters."
    )
    figure, drawn = panels.grid(fits.sizes["factor"], 3, caption=caption)
    longest = int(fits.steps.where(fits.steps < config.model.steps).max().fillna(config.model.steps)) + 1
    for number, axes in enumerate(drawn):
        for position, name in enumerate(fits.solver.values):
            one = fits.sel(solver=name).isel(factor=number)
            shown = slice(0, min(int(one.steps), longest) + 1)
            above = (one.value - least).where(np.isfinite(one.value)).clip(1e-14 * least + 1e-300)
            axes.plot(np.arange(one.sizes["step"])[shown], above[shown], **panels.look(position), markersize=3)
        plots.logarithmic(axes)
        told = ", ".join(f"{value * config.model.factors[number]:g}" for value in config.model.start)
        left = "above the least" if number % 3 == 0 else ""
        plots.finish(axes, x="step", y=left, title=f"start {told}", legend="none")
    panels.legend(figure, [str(name) for name in fits.solver.values], title="method", markers=True)
    return figure


EXPERIMENT = Experiment("curve_fitting", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
