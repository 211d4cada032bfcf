r"""What do areas under densities tell about data, and which parameters make data most likely?

Question. What becomes of areas when a variable is replaced by a function of it? Where is a likelihood greatest?

Mathematics. Areas move with the variable: for a monotone map y = g(x)

    p(y) = p(x) |dx/dy|,  x = g⁻¹(y),    E[y] = ∫ y p(y) dy = ∫ g(x) p(x) dx.

The likelihood L is the density of the data as a function of the parameters θ. At its greatest the score vanishes,

    ∂ log L/∂θ = 0,    by Newton's method  θ' = θ + J⁻¹ ∂ log L/∂θ,    J = -∂² log L/∂θ²,

and the diagonal of J⁻¹ holds the squares of the standard errors. For a normal model the root is the mean and the
variance with divisor n; for a logistic one, log L = Σ y a - log(1 + exp a) of the log-odds a, it has no closed form.

Claim. Areas stay, to 1e-10, and a histogram of transformed samples has the moved density. The root of the score is the
closed form to 1e-10 (normal) and scikit-learn's fit to 1e-6 (logistic).

Command. python -m calcdl.experiments.likelihood configs/likelihood.toml
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from calcdl import data, nn, study
from calcdl.calculus import derivatives
from calcdl.calculus.expressions import ExpressionError, parse
from calcdl.calculus.integrals import integrate
from calcdl.calculus.quadrature import gaussian_expectation
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, Finite, Rate, Section, Seeds
from calcdl.lab.refusals import choices
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Areas, normal fit (in standard deviations), score a row, coefficients of the logistic fit.
GATES = {"float64": (1e-10, 1e-10, 1e-8, 1e-6), "float32": (1e-4, 1e-4, 1e-5, 1e-3)}
STRIPS = (-2.0, -1.0, 0.0, 1.0, 2.0)
SIZES = dict.fromkeys(("estimate", "score", "standard_error"), ("coefficient",)) | {"path": ("step", "coefficient")}
PARTS, FINE = ("curves", "draws", "normal", "logistic"), 61


class Density(Section):
    """A normal variable and what a monotone map makes of it."""

    mean: Finite = Field(default=0.0, description="mean of x")
    scale: Rate = Field(default=0.6, description="standard deviation of x")
    transform: str = Field(default="exp(x)", description="y, a monotone formula in x")
    inverse: str = Field(default="log(y)", description="x, the inverse formula in y")
    bins: Annotated[int, Field(ge=2, le=1000)] = Field(default=40, description="bins of the histogram")
    samples: Count = Field(default=4000, description="values a seed")
    seeds: Seeds = Field(default=tuple(range(16)), description="one sample a seed")


class Likelihood(Section):
    """Maximum likelihood on real data."""

    data: str = Field(default="breast_cancer", description="a bundled set with two classes, or a CSV or NPZ file")
    target: str = Field(default="", description="the column of classes, for a file; empty for one named target")
    column: str = Field(default="mean smoothness", description="the column that a normal distribution is fitted to")
    features: AxisOf[str] = Field(default=("mean radius",), description="columns of the logistic model, standardised")
    offsets: AxisOf[Finite] = Field(default=(-0.6, 0.6), description="starts, in standard deviations from the mean")
    shares: AxisOf[Rate] = Field(default=(0.4, 0.9), description="starts, as shares of the standard deviation")
    steps: Count = Field(default=10, description="Newton steps that are recorded")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float32", "float64"] = Field(default="float64", description="type of all floating numbers")
    density: Density = Field(default=Density(), description="densities")
    likelihood: Likelihood = Field(default=Likelihood(), description="likelihoods")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Move a density, and solve the score equations of two models."""
    law, one, rows, run = config.density, config.likelihood, observations(config), partial(run, dtype=config.precision)
    edges, z = edges_of(law), study.axis("z", np.linspace(-4, 4, 241))
    curves = run(partial(moved, law=law), [z], name="curves")
    names, areas, expected = zip(*areas_of(law), strict=True)
    curves = curves.assign(area=("what", [*areas]), expected=("what", [*expected])).assign_coords(what=[*names])
    draws = run(partial(histogram, law=law), [study.axis("seed", law.seeds)], name="draws",
                shared={"edges": edges.astype(config.precision)}, dimensions={"counts": ("bin",)})  # fmt: skip
    draws = draws.assign(edges=("edge", edges), probability=("bin", bin_probabilities(law, edges)))
    starts = [study.axis("offset", one.offsets), study.axis("share", one.shares)]
    values, shared = rows["values"].astype(np.float64), {name: rows[name] for name in ("features", "labels")}
    normal = run(partial(fit_normal, steps=one.steps), starts, name="normal", shared={"values": rows["values"]},
                 dimensions=SIZES)  # fmt: skip
    mean, scale = values.mean(), values.std()
    normal = normal.assign(closed=("coefficient", [mean, np.log(scale)]), moments=("moment", [mean, scale]),
                           values=("row", values))  # fmt: skip
    logistic = run(partial(fit_logistic, steps=one.steps), [], name="logistic", shared=shared, dimensions=SIZES)
    logistic = logistic.assign_coords(coefficient=["intercept", *one.features]).assign(
        oracle=("coefficient", sklearn_fit(**shared)), features=(("row", "feature"), shared["features"]),
        labels=("row", shared["labels"]), x=("row", rows["x"]))  # fmt: skip
    logistic = logistic.assign_attrs(class_1=rows["class_1"])
    return study.join(curves=curves, draws=draws, normal=normal, logistic=logistic)


def observations(config: Config) -> dict[str, Any]:
    """Return the column of the normal model, the standardised columns of the logistic one, labels and their name."""
    one = config.likelihood
    dataset = data.load(one.data, one.target or None, "classification", constant="keep", collinear="keep")
    named = [("column", one.column), *((f"features[{at}]", name) for at, name in enumerate(one.features))]
    for place, name in named:
        if name not in dataset.feature_names:
            raise ConfigError(f"likelihood.{place}: got {name!r}; expected {choices(name, dataset.feature_names)}")
    if len(dataset.classes) != 2:
        raise ConfigError(f"likelihood.data: got {one.data!r} of {len(dataset.classes)} classes; expected a set of 2")
    values, *columns = (dataset.features[:, dataset.feature_names.index(name)] for _, name in named)
    chosen = data.standardise(dataset._replace(features=np.stack(columns, axis=1), feature_names=one.features))[0]
    rows = {"values": values, "features": chosen.features, "labels": dataset.targets}
    return {name: array.astype(config.precision) for name, array in rows.items()} | {
        "x": columns[0], "class_1": dataset.classes[1]}  # fmt: skip


def normal_density(x: Array, mean: float, scale: float) -> Array:
    """Return the density of the normal distribution."""
    return jnp.exp(-(((x - mean) / scale) ** 2) / 2) / (scale * math.sqrt(2 * math.pi))


def moved_density(y: Array, law: Density) -> Array:
    """Return the density of y = g(x), by the inverse of g: p(x) |dx/dy|."""
    back = parse(law.inverse, ("y",))
    return normal_density(back(y), law.mean, law.scale) * jnp.abs(derivatives.derivative(back)(y))


def moved(key: Key, *, z: Array, law: Density) -> dict[str, Array]:
    """Follow a point, z standard deviations from the mean, through the map; and its density."""
    x = law.mean + law.scale * z
    y = parse(law.transform)(x)
    return {"x": x, "y": y, "density_x": normal_density(x, law.mean, law.scale), "density_y": moved_density(y, law)}


def histogram(key: Key, edges: Array, *, law: Density) -> dict[str, Array]:
    """Count transformed samples between edges, and those beyond the first and the last."""
    y = parse(law.transform)(law.mean + law.scale * jax.random.normal(key, (law.samples,), edges.dtype))
    return {"counts": jnp.bincount(jnp.searchsorted(edges, y), length=edges.shape[0] + 1)}


def images(one: Density, z: Any) -> np.ndarray:
    """Return where the map takes the points some standard deviations from the mean."""
    return np.asarray(parse(one.transform)(one.mean + one.scale * jnp.asarray(z)), np.float64)


def edges_of(one: Density) -> np.ndarray:
    """Return the edges of equal bins over the images of 99 % of the normal distribution, or refuse the map."""
    z = np.linspace(-4, 4, 801)
    try:
        y, back = images(one, z), parse(one.inverse, ("y",))
    except ExpressionError as error:
        raise ConfigError(f"density: {error}") from None
    if not (np.isfinite(y).all() and (np.all(np.diff(y) > 0) or np.all(np.diff(y) < 0))):
        raise ConfigError(f"density.transform: got {one.transform!r}; expected a map that rises or falls all the way")
    if not np.allclose(back(jnp.asarray(y)), one.mean + one.scale * z, atol=1e-3 * one.scale):
        raise ConfigError(f"density.inverse: got {one.inverse!r}; expected the inverse of {one.transform}")
    low, high = sorted(images(one, (-2.6, 2.6)).tolist())
    return np.linspace(low, high, one.bins + 1)


def areas_of(one: Density) -> list[tuple[str, float, float]]:
    """Return areas by integration, each with what it should be: 1, half of P(|Z| <= 1), and a mean by two routes."""
    low, below, middle, above, high = (float(y) for y in np.sort(images(one, (-np.inf, -1, 0, 1, np.inf))))
    density_x = partial(normal_density, mean=one.mean, scale=one.scale)
    density_y = partial(moved_density, law=one)
    mean, half = gaussian_expectation(parse(one.transform), mean=one.mean, scale=one.scale), math.erf(0.5**0.5) / 2
    found = (
        ("x, everywhere", density_x, -math.inf, math.inf, 1.0),
        ("x, within a standard deviation", density_x, one.mean - one.scale, one.mean + one.scale, 2 * half),
        ("y, everywhere", density_y, low, high, 1.0),
        ("y, below the image of the mean", density_y, below, middle, half),
        ("y, above the image of the mean", density_y, middle, above, half),
        ("mean of y", lambda y: y * density_y(y), low, high, float(mean)),
    )
    return [(name, float(integrate(f, *ends).value), expected) for name, f, *ends, expected in found]


def normal_log_likelihood(params: Array, values: Array) -> Array:
    """Return the log-likelihood of a normal distribution by its mean and the logarithm of its standard deviation."""
    z = (values - params[0]) * jnp.exp(-params[1])
    return -jnp.sum(z**2) / 2 - values.shape[0] * (params[1] + math.log(2 * math.pi) / 2)


def logistic_log_likelihood(params: Array, features: Array, labels: Array) -> Array:
    """Return the log-likelihood of a logistic model by its intercept and slopes."""
    return -jnp.sum(nn.losses.binary_cross_entropy(params[0] + features @ params[1:], labels))


def fit(log_likelihood: Callable[[Array], Array], start: Array, rows: int, steps: int) -> dict[str, Array]:
    """Solve the score equation by Newton's method, record its first steps, and take errors from the information."""
    import optimistix

    score, curvature = derivatives.gradient(log_likelihood), derivatives.hessian(log_likelihood)
    tolerance = float(jnp.finfo(start.dtype).eps) ** 0.75
    newton: Any = optimistix.Newton(rtol=tolerance, atol=tolerance)
    root = optimistix.root_find(lambda at, _: score(at) / rows, newton, start, max_steps=64, throw=False).value

    def step(at: Array, _: None) -> tuple[Array, Array]:
        return at - jnp.linalg.solve(curvature(at), score(at)), at

    _, path = jax.lax.scan(step, start, length=steps + 1)
    error = jnp.sqrt(jnp.diagonal(jnp.linalg.inv(-curvature(root))))
    lost = (~(jnp.max(jnp.abs(score(root) * error)) < 0.1)).astype(jnp.int8)
    return {"estimate": root, "score": score(root), "standard_error": error, "path": path, "status": lost}


def fit_normal(key: Key, values: Array, *, offset: Array, share: Array, steps: int) -> dict[str, Array]:
    """Fit a normal distribution from a start beside the closed form, in units of the data's standard deviation."""
    scale = jnp.std(values)
    start = jnp.stack([jnp.mean(values) + offset * scale, jnp.log(share * scale)])
    return fit(partial(normal_log_likelihood, values=values), start, values.shape[0], steps)


def fit_logistic(key: Key, features: Array, labels: Array, *, steps: int) -> dict[str, Array]:
    """Fit a logistic model from zero."""
    start = jnp.zeros(features.shape[1] + 1, features.dtype)
    return fit(partial(logistic_log_likelihood, features=features, labels=labels), start, features.shape[0], steps)


def sklearn_fit(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return intercept and slopes of scikit-learn's logistic regression without a penalty."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(features, labels)
    return np.concatenate([model.intercept_, model.coef_[0]]).astype(features.dtype)


def bin_probabilities(one: Density, edges: np.ndarray) -> np.ndarray:
    """Return the probabilities between edges and beyond them: those of the same strips of x."""
    back = np.asarray(parse(one.inverse, ("y",))(jnp.asarray(edges)))
    below = np.array([math.erf((x - one.mean) / (one.scale * math.sqrt(2))) / 2 + 0.5 for x in back])
    return np.abs(np.diff(np.concatenate([[float(below[0] > below[-1])], below, [float(below[0] < below[-1])]])))


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold areas, histogram and both fits against what the mathematics says."""
    curves, draws, normal, logistic = (study.part(results, name) for name in PARTS)
    return (*_density_verdicts(config, curves, draws), _normal_verdict(config, normal),
            *_logistic_verdicts(config, logistic))  # fmt: skip


def _density_verdicts(config: Config, curves: "xarray.Dataset", draws: "xarray.Dataset") -> list[Verdict]:
    from scipy.special import chdtri

    transform, gate = config.density.transform, GATES[config.precision][0]
    off = float(np.abs(curves.area - curves.expected).max(skipna=False))
    told = ", ".join(f"{name} {float(area):.12g}" for name, area in zip(curves.what.values, curves.area, strict=True))
    claim = f"areas under the normal density stay areas under that of y = {transform}, and give the mean of y"
    areas = Verdict(claim, off <= gate, off, gate, f"largest difference; {told}")
    counts, total = draws.counts.sum("seed"), int(draws.counts.sum())
    expected = total * draws.probability
    squared, allowed = float(((counts - expected) ** 2 / expected).sum()), float(chdtri(counts.size - 1, 1e-5))
    claim = f"the histogram of {total:,} values of y has the moved density, by chi-squared"
    evidence = f"{counts.size} bins, both tails included; the bound has a chance of 1 in 100,000"
    return [areas, Verdict(claim, squared <= allowed, squared, allowed, evidence)]


def _normal_verdict(config: Config, normal: "xarray.Dataset") -> Verdict:
    one, gate, (mean, scale) = config.likelihood, GATES[config.precision][1], normal.moments.values
    away = np.abs(normal.estimate - normal.closed) / [scale, 1.0]
    worst, best = float(away.max(skipna=False)), away.max("coefficient").argmin(...)
    error, rows = normal.standard_error[best].values, normal.sizes["row"]
    claim = f"normal model of {one.column}: the root of the score is the mean and the standard deviation with divisor n"
    evidence = (
        f"largest difference over {away[..., 0].size} starts, in standard deviations; mean {mean:.6g} ± {error[0]:.2g} "
        f"(by theory {scale / rows**0.5:.2g}), logarithm of {scale:.6g} ± {error[1]:.2g} ({(2 * rows) ** -0.5:.2g})"
    )
    return Verdict(claim, worst <= gate, worst, gate, evidence)


def _logistic_verdicts(config: Config, fits: "xarray.Dataset") -> list[Verdict]:
    rows, (_, _, score_gate, gate) = fits.sizes["row"], GATES[config.precision]
    norm, away = float(np.sqrt((fits.score**2).sum(skipna=False))) / rows, np.abs(fits.estimate - fits.oracle)
    zipped = zip(fits.coefficient.values, fits.estimate, fits.standard_error, strict=True)
    told = ", ".join(f"{name} {float(at):.4f} ± {float(error):.4f}" for name, at, error in zipped)
    claim = f"logistic model of {config.likelihood.data}: the score of the fit is 0"
    solved = Verdict(claim, norm <= score_gate, norm, score_gate, f"its norm by row, over {rows} rows; {told}")
    errors = np.abs(fits.path - fits.estimate).max("coefficient").values
    worst, seen = float(away.max(skipna=False)), ", ".join(f"{error:.1g}" for error in errors[:8])
    claim = "logistic model: the coefficients are those of scikit-learn without a penalty"
    return [solved, Verdict(claim, worst <= gate, worst, gate, f"largest difference; Newton's errors by step: {seen}")]


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the moved density and both likelihoods."""
    curves, draws, normal, logistic = (study.part(results, name) for name in PARTS)
    return {"change_of_variables": _draw_density(config, curves, draws), "logistic": _draw_logistic(config, logistic),
            "normal": _draw_normal(config, normal)}  # fmt: skip


def _draw_density(config: Config, curves: "xarray.Dataset", draws: "xarray.Dataset") -> "Figure":
    edges, counts, transform = draws.edges.values, draws.counts.sum("seed").values, config.density.transform
    caption = (
        f"A change of variables: x is normal, y = {transform}. A strip keeps its area; where the map is flat, it gets "
        f"narrow and high, where it is steep, wide and low. Grey: histogram of {counts.sum():,} values of y."
    )
    figure, ((side, middle), (corner, below)) = plots.figure(2, 2, width=9.0, height=7.0, caption=caption)
    z, x, y, up, left = (curves[name].values for name in ("z", "x", "y", "density_x", "density_y"))
    heights = counts[1:-1] / counts.sum() / np.diff(edges)
    side.fill_betweenx(np.repeat(edges, 2)[1:-1], 0, np.repeat(heights, 2), color="#CCCCCC", linewidth=0)
    for low, high in pairwise(STRIPS):
        inside, shade = np.linspace(low, high, 100), 0.25 + 0.25 * (low % 2)
        within = partial(np.interp, inside, z)
        below.fill_between(within(x), 0, within(up), color=plots.colour(0), alpha=shade, linewidth=0)
        side.fill_betweenx(within(y), 0, within(left), color=plots.colour(1), alpha=shade, linewidth=0)
    for where, image in zip(np.interp(STRIPS, z, x), np.interp(STRIPS, z, y), strict=True):
        middle.plot([where, where, x[0]], [edges[0], image, image], color="#555555", linestyle=":", linewidth=1.0)
    corner.set_axis_off()
    side.plot(left, y, color=plots.colour(1))
    middle.plot(x, y, color="#000000")
    below.plot(x, up, color=plots.colour(0))
    corner.text(0.5, 0.5, "p(y) = p(x) |dx/dy|", ha="center", fontsize=16)
    side.set(ylim=(edges[0], edges[-1]), xlim=(1.05 * max(heights.max(), np.max(left)), 0))
    middle.set(ylim=(edges[0], edges[-1]), xlim=(x[0], x[-1]))
    below.set(ylim=(0, None), xlim=(x[0], x[-1]))
    area = dict(zip(curves.what.values, curves.area.values, strict=True))
    plots.finish(side, x="density of y", y="y", title=f"area {area['y, everywhere']:.10f}")
    plots.finish(middle, x="x", y="y", title=f"y = {transform}")
    plots.finish(below, x="x", y="density of x", title=f"area {area['x, everywhere']:.10f}")
    return figure


def _landscape(axes: "Axes", function: Any, x: np.ndarray, y: np.ndarray, labels: tuple[str, str]) -> None:
    """Draw how far a log-likelihood of two parameters lies below its maximum, and where each part of the score is 0."""
    points = jnp.stack(jnp.meshgrid(x, y), axis=-1)
    value, score = (np.asarray(part) for part in jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(function))))(points))
    axes.contourf(x, y, np.sqrt(value.max() - value), levels=16, cmap="Blues_r", alpha=0.8)
    for part, name in enumerate(labels):
        axes.contour(x, y, score[..., part], levels=[0.0], colors=[plots.colour(part + 2)], zorder=1.5)
        axes.plot([], [], color=plots.colour(part + 2), linewidth=2.0, label=f"∂ log L / ∂ {name.split(' by')[0]} = 0")
    axes.set(xlim=(x.min(), x.max()), ylim=(y.min(), y.max()))
    plots.finish(axes, x=labels[0], y=labels[1], title="log-likelihood (dark: high)")
    axes.legend(frameon=True, fontsize="small")


def _draw_normal(config: Config, normal: "xarray.Dataset") -> "Figure":
    column, values, (mean, scale) = config.likelihood.column, normal["values"].values, normal.moments.values
    caption = (
        f"Maximum likelihood of a normal model of {column}. Newton's steps from several starts end where both parts of "
        "the score are 0: at the mean and the standard deviation with divisor n. Right: the fitted density."
    )
    figure, ((steps, fitted),) = plots.figure(1, 2, width=11.0, height=4.4, caption=caption)
    x, y = mean + scale * np.linspace(-1, 1, FINE), scale * np.linspace(0.3, 1.5, FINE)
    for path in normal.path.stack(run=("offset", "share")).transpose("run", "step", "coefficient").values:
        steps.plot(path[:, 0], np.exp(path[:, 1]), "o-", color=plots.colour(1), markersize=4)
    steps.plot([mean], [scale], "*", color="#000000", markersize=12, label="closed form")
    fitted.hist(values, bins=40, density=True, color="#CCCCCC")
    along = np.linspace(values.min(), values.max(), 300)
    fitted.plot(along, normal_density(jnp.asarray(along), mean, scale), color=plots.colour(1))
    _landscape(steps, lambda at: normal_log_likelihood(at.at[1].set(jnp.log(at[1])), jnp.asarray(values)), x, y,
               ("mean", "standard deviation"))  # fmt: skip
    plots.finish(fitted, x=column, y="density", title=f"mean {mean:.4g}, standard deviation {scale:.4g}")
    return figure


def _draw_logistic(config: Config, fits: "xarray.Dataset") -> "Figure":
    one, path, estimate, labels = config.likelihood, fits.path.values, fits.estimate.values, fits.labels.values
    caption = (
        f"Maximum likelihood of a logistic model of {one.data}. Left: Newton's steps from 0. Middle: each step about "
        "doubles the digits. Right: fitted probability; bars: data; squares: shares by tenths, with standard errors."
    )
    figure, ((steps, errors, fitted),) = plots.figure(1, 3, width=13.0, height=4.2, caption=caption)
    steps.plot(path[:, 0], path[:, 1], "o-", color=plots.colour(1), markersize=4, label="Newton's steps")
    steps.plot(*fits.oracle.values[:2], "*", color="#000000", markersize=12, label="scikit-learn")
    errors.plot(range(len(path)), np.abs(path - estimate).max(axis=1).clip(1e-17), "o-", color=plots.colour(1))
    plots.logarithmic(errors)
    logits = estimate[0] + fits.features.values @ estimate[1:]
    x, name = (fits.x.values, one.features[0]) if len(one.features) == 1 else (logits, "fitted log-odds")
    rank = np.argsort(x)
    fitted.plot(x, labels, "|", color="#555555", markersize=8, alpha=0.4)
    fitted.plot(x[rank], 1 / (1 + np.exp(-logits[rank])), color=plots.colour(1))
    for tenth in np.array_split(rank, min(10, len(rank))):
        share, bar = labels[tenth].mean(), labels[tenth].std() / math.sqrt(len(tenth))
        fitted.errorbar(x[tenth].mean(), share, bar, fmt="s", color=plots.colour(0), markersize=5)
    rest, rows = jnp.asarray(estimate[2:]), (jnp.asarray(fits.features.values), jnp.asarray(labels))
    x, y = (np.sort(at * np.linspace(-0.4, 1.6, FINE)) for at in estimate[:2])
    _landscape(steps, lambda at: logistic_log_likelihood(jnp.concatenate([at, rest]), *rows), x, y,
               ("intercept", f"slope by standardised {one.features[0]}"))  # fmt: skip
    plots.finish(errors, x="Newton step", y="error of the coefficients", title="digits double")
    plots.finish(fitted, x=name, y=f"probability of {fits.attrs['class_1']}", title="the fit")
    return figure


EXPERIMENT = Experiment("likelihood", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
