r"""What does a penalty do to the coefficients of a linear model, and to its error on rows it has not seen?

Question. What is gained by asking for small coefficients, or for few of them, and what does it cost?

Mathematics. With columns of mean 0 and variance 1 and :math:`0 \le \rho \le 1` the elastic net minimises
:math:`|Xw - y|^2 / (2n) + \lambda (\rho |w|_1 + (1 - \rho) |w|_2^2 / 2)`: the lasso for :math:`\rho = 1`, ridge for 0,
which is least squares with rows :math:`\sqrt{n \lambda}\, I` added. At the minimum
:math:`g = X^\top (y - Xw) / n - \lambda (1 - \rho) w` is at most :math:`\lambda \rho` in size, and
:math:`\lambda \rho\, \mathrm{sign}(w_j)` where :math:`w_j \neq 0`; so the lasso is 0 from
:math:`\lambda = \max |X^\top y| / n` on. Over new noise the error is bias² + variance + noise; a penalty trades
variance for bias. Those of ridge at a point z, with :math:`A = (X^\top X / n + \lambda I)^{-1} X^\top / n`, are
:math:`(z^\top (A X - I) w)^2` and :math:`\sigma^2 |A^\top z|^2`.

Claim. Paths are scikit-learn's to 1e-6 and satisfy these conditions. The error of training never falls as the penalty
grows; in nine of ten divisions a penalty chosen on some rows predicts others better than least squares. Bias² plus
variance plus noise is the error, and ridge has the bias² and variance of theory, within 4 standard errors.

Command. python -m calcdl.experiments.regularisation configs/regularisation.toml
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from calcdl import data, optim, study
from calcdl.lab import panels, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, Rate, Section
from calcdl.optim.solver import CONVERGED
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

GATE, GATE_ERRORS, GATE_WON, ROUNDING = 1e-6, 4.0, 0.9, 1e-9
TOLERANCE, STEPS, MOST_NAMED, FAILED = 1e-12, 50_000, 12, 2
COLOURS = ("#BBBBBB", plots.COLOURS[0], plots.COLOURS[1])
PARTS = ("train", "validation", "test")
ManyTimes = Annotated[int, Field(ge=3, le=10_000)]
Ratio = Annotated[float, Field(gt=0, lt=1)]


def spread(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return numbers that grow by one factor, to three digits."""
    return tuple(float(f"{value:.3g}") for value in np.geomspace(low, high, count))


class Paths(Section):
    """Coefficients on all rows."""

    l1_ratio: Ratio = Field(default=0.5, description="rho of the elastic net; the lasso has 1, ridge 0")
    strengths: AxisOf[Rate] = Field(default=spread(1e-3, 8.0, 40), description="penalties, in units of max |x'y| / n")


class Errors(Section):
    """Errors on rows of training and on others."""

    degree: Annotated[int, Field(ge=1, le=5)] = Field(default=2, description="degree of the polynomial in the columns")
    strengths: AxisOf[Rate] = Field(default=spread(1e-3, 1.0, 16), description="penalties, in the same units")
    divisions: ManyTimes = Field(default=16, description="halves of the rows to train; quarters to choose by, to test")


class Noise(Section):
    """A known truth, observed with new noise again and again."""

    rows: Annotated[int, Field(ge=2, le=10_000)] = Field(default=50, description="rows to train on")
    columns: Count = Field(default=25, description="columns; a fifth has the coefficient 1, the others 0")
    noise: Rate = Field(default=1.0, description="standard deviation of the noise")
    strengths: AxisOf[Rate] = Field(default=spread(3e-3, 3.0, 16), description="penalties lambda")
    draws: ManyTimes = Field(default=200, description="draws of the noise")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float64"] = Field(default="float64", description="type of all floating numbers")
    data: str = Field(default="diabetes", description="a bundled regression set, or a CSV or NPZ file")
    target: str = Field(default="", description="the column to predict, for a file; empty for one named target")
    paths: Paths = Field(default=Paths(), description="coefficients")
    errors: Errors = Field(default=Errors(), description="errors")
    noise: Noise = Field(default=Noise(), description="bias and variance")

    @property
    def penalties(self) -> dict[str, float]:
        """Rho of every penalty."""
        return {"lasso": 1.0, "elastic net": self.paths.l1_ratio, "ridge": 0.0}


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Follow the paths, here and by scikit-learn; fit halves of the rows; fit a truth under new noise."""
    noise, run = config.noise, partial(run, dtype=config.precision)
    dataset = data.load(config.data, config.target or None, "regression")
    rows = data.standardise(dataset)[0].features, dataset.targets - dataset.targets.mean()
    tables, division = divided(config, dataset), study.axis("division", range(config.errors.divisions))
    ratio = study.axis("l1_ratio", config.penalties.values())
    strength, fewer = (study.axis("strength", sorted(one.strengths)) for one in (config.paths, config.errors))
    named: Any = {"shared": {"rows": rows}, "dimensions": {"coefficients": ("coefficient",)}}
    parts: Any = {"shared": {"tables": tables}, "dimensions": {"error": ("part",)}}
    paths = run(partial(path, solve=minimum), [ratio, strength], name="paths", **named)
    results = study.join(
        paths=paths.assign_coords(coefficient=list(dataset.feature_names)),
        closed=run(partial(path, solve=closed_form, l1_ratio=0.0), [strength], name="closed", **named),
        reference=reference(config, rows),
        errors=run(errors, [ratio, fewer, division], name="errors", **parts),
        plain=plain(tables),
        noise=run(partial(observe, noise=noise.noise), [ratio, study.axis("strength", sorted(noise.strengths)),
                  study.axis("seed", range(noise.draws))], name="noise", shared={"rows": truth(config)},
                  dimensions={"away": ("point",)}),
    )  # fmt: skip
    return results.assign_coords(errors_part=[*PARTS], plain_part=[*PARTS])


def divided(config: Config, dataset: data.Dataset) -> tuple[np.ndarray, ...]:
    """Return columns and targets by division, rows to train on first, by which all are standardised."""
    wide = data.polynomial_features(data.standardise(dataset)[0], config.errors.degree)
    (rows, columns), half = wide.features.shape, len(wide.targets) // 2
    if half <= columns:
        what = f"which makes {columns} columns for {half} rows to train on"
        raise ConfigError(f"errors.degree: got {config.errors.degree}, {what}; expected fewer, or give more rows")
    orders = [np.random.default_rng(number).permutation(rows) for number in range(config.errors.divisions)]
    scaled = [data.standardise(wide._replace(train=order[:half]), constant="keep")[0].features for order in orders]
    x = np.stack([one[order] for one, order in zip(scaled, orders, strict=True)])
    y = np.stack([wide.targets[order] for order in orders]) / wide.targets.std()
    return x, y - y[:, :half].mean(axis=1, keepdims=True)


def truth(config: Config) -> tuple[np.ndarray, ...]:
    """Return columns with their answers before noise, and points where predictions are wanted with theirs."""
    x, z = np.random.default_rng(0).normal(size=(2, config.noise.rows, config.noise.columns))
    weights = (np.arange(config.noise.columns) < config.noise.columns / 5).astype(np.float64)
    return x, x @ weights, z, z @ weights


def reference(config: Config, rows: tuple[np.ndarray, ...]) -> "xarray.Dataset":
    """Return scikit-learn's coefficients; its Ridge has n times the penalty, and its path falls."""
    import xarray
    from sklearn.linear_model import Ridge, enet_path

    x, y = rows
    strengths = np.sort(config.paths.strengths)
    penalties = strengths * np.abs(x.T @ y).max() / len(x)
    table = np.empty((len(config.penalties), len(penalties), x.shape[1]))
    for place, rho in enumerate(config.penalties.values()):
        if rho:
            found = enet_path(x, y, l1_ratio=rho, alphas=penalties[::-1], tol=1e-13, max_iter=10**6)
            table[place] = found[1].T[::-1]
        else:
            fits = [Ridge(len(x) * penalty, fit_intercept=False, solver="svd").fit(x, y) for penalty in penalties]
            table[place] = [fit.coef_ for fit in fits]
    labels = {"l1_ratio": [*config.penalties.values()], "strength": strengths}
    return xarray.Dataset({"coefficients": (("l1_ratio", "strength", "coefficient"), table)}, labels)


def minimum(x: Array, y: Array, l1_ratio: Array, penalty: Array) -> tuple[Array, Array]:
    """Return the coefficients for a penalty by accelerated proximal descent, and whether they are not at a minimum."""
    gram, moment = x.T @ x / len(x), x.T @ y / len(x)
    proximal = optim.proximal_elastic_net(penalty * l1_ratio, penalty * (1 - l1_ratio) / 2)
    found = optim.minimise(
        lambda w: w @ gram @ w / 2 - moment @ w, jnp.zeros_like(moment),
        optim.proximal_descent(1 / jnp.linalg.norm(gram), proximal, accelerated=True), steps=STEPS,
        tolerance=TOLERANCE * jnp.max(jnp.abs(moment)),
    )  # fmt: skip
    return found.params, jnp.where(found.status == CONVERGED, 0, FAILED)


def closed_form(x: Array, y: Array, l1_ratio: Any, penalty: Array) -> tuple[Array, Array]:
    """Return the coefficients of ridge regression: least squares with one row more for every column."""
    added = jnp.sqrt(len(x) * penalty) * jnp.eye(x.shape[1], dtype=x.dtype)
    whole = jnp.concatenate([x, added]), jnp.concatenate([y, jnp.zeros(x.shape[1], y.dtype)])
    return optim.linear_least_squares(*whole).coefficients, jnp.int32(0)


def path(key: Key, rows: Any, *, solve: Any, l1_ratio: Any, strength: Array) -> dict[str, Array]:
    """Return the coefficients for one penalty, and by how much they violate the conditions of a minimum."""
    x, y = rows
    penalty = strength * jnp.max(jnp.abs(x.T @ y)) / len(x)
    w, status = solve(x, y, l1_ratio, penalty)
    g, bound = x.T @ (y - x @ w) / len(x) - penalty * (1 - l1_ratio) * w, penalty * l1_ratio
    violated = jnp.where(w == 0, jnp.maximum(jnp.abs(g) - bound, 0), jnp.abs(g - bound * jnp.sign(w)))
    return {"coefficients": w, "violation": jnp.max(violated) / penalty, "status": status}


def errors(key: Key, tables: Any, *, l1_ratio: Array, strength: Array, division: Array) -> dict[str, Array]:
    """Fit half of the rows; return the mean squared errors by part, in variances of the target."""
    x, y = (table[division] for table in tables)
    half = len(y) // 2
    penalty = strength * jnp.max(jnp.abs(x[:half].T @ y[:half])) / half
    w, status = minimum(x[:half], y[:half], l1_ratio, penalty)
    parts = jnp.split((y - x @ w) ** 2, [half, len(y) - len(y) // 4])
    return {"error": jnp.stack([jnp.mean(part) for part in parts]), "status": status}


def plain(tables: tuple[np.ndarray, ...]) -> "xarray.Dataset":
    """Return the same errors of least squares, without a penalty."""
    import xarray

    found, half = [], tables[1].shape[1] // 2
    for x, y in zip(*tables, strict=True):
        squares = (y - x @ np.linalg.lstsq(x[:half], y[:half], rcond=None)[0]) ** 2
        found.append([part.mean() for part in np.split(squares, [half, len(y) - len(y) // 4])])
    return xarray.Dataset({"error": (("division", "part"), np.array(found))})


def observe(key: Key, rows: Any, *, l1_ratio: Array, strength: Array, noise: float) -> dict[str, Array]:
    """Fit answers with noise; return predictions minus the truth, and their squared error under other noise."""
    x, answers, z, right = rows
    known, other = noise * jax.random.normal(key, (2, len(x)), x.dtype)
    w, status = minimum(x, answers + known, l1_ratio, strength)
    away = z @ w - right
    return {"away": away, "squares": jnp.mean((away - other) ** 2), "status": status}


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold paths against scikit-learn and their conditions, errors against least squares, noise against theory."""
    return *_path_verdicts(config, results), *_error_verdicts(config, results), *_noise_verdicts(config, results)


def _path_verdicts(config: Config, results: "xarray.Dataset") -> list[Verdict]:
    paths, known = study.part(results, "paths"), study.part(results, "reference").coefficients
    found, count = paths.coefficients, paths.sizes["strength"]
    tables = {f"{name} by proximal descent": (rho, found.sel(l1_ratio=rho)) for name, rho in config.penalties.items()}
    tables["ridge in closed form"] = (0.0, study.part(results, "closed").coefficients)
    verdicts = []
    for name, (rho, table) in tables.items():
        right = known.sel(l1_ratio=rho).values
        worst = float(np.abs(table.values - right).max() / np.abs(right).max())
        evidence = f"largest difference over {count} penalties, relative to the largest coefficient"
        verdicts.append(Verdict(f"{name}: the coefficients are scikit-learn's", worst <= GATE, worst, GATE, evidence))
    violation = float(paths.violation.sel(l1_ratio=[config.paths.l1_ratio, 1.0]).max())
    lasso, lost = (found.sel(l1_ratio=1.0) != 0).sum("coefficient"), (found.sel(l1_ratio=0.0) == 0).sum()
    before, after = lasso.strength < 1 - ROUNDING, lasso.strength > 1 + ROUNDING
    wrong = int((before & (lasso == 0)).sum() + (after & (lasso > 0)).sum() + lost)
    kept = ", ".join(f"{int(one)} at {float(one.strength):.2g}" for one in lasso[:: max(1, count // 6)])
    return [
        *verdicts,
        Verdict(
            "lasso and elastic net: a column's correlation with the residual is at most the penalty, and equal to it, "
            "with the coefficient's sign, where that is not 0", violation <= GATE, violation, GATE,
            f"largest violation over {2 * count} minima, relative to the penalty",
        ),
        Verdict(
            "the lasso is exactly 0 from max |x'y| / n on and not before, ridge nowhere", wrong == 0, float(wrong), 0.0,
            f"exceptions among {count} penalties; of {found.sizes['coefficient']} coefficients the lasso keeps {kept}",
        ),
    ]  # fmt: skip


def _error_verdicts(config: Config, results: "xarray.Dataset") -> list[Verdict]:
    found, plain = study.part(results, "errors").error, study.part(results, "plain").error
    fitted = found.sel(part="train")
    falls = [plain.sel(part="train") - fitted.isel(strength=0), -fitted.diff("strength")]
    fall, count = max(float(one.values.max(initial=0.0)) for one in falls), found.sizes["division"]
    verdicts = [Verdict(
        "the error of training never falls as the penalty grows, and is least without one", fall <= GATE, fall,
        GATE, f"largest fall, in variances of the target, over {count} divisions",
    )]  # fmt: skip
    for name, rho in config.penalties.items():
        best = found.sel(l1_ratio=rho, part="validation").idxmin("strength")
        tested, without = found.sel(l1_ratio=rho, part="test").sel(strength=best), plain.sel(part="test")
        gained = np.log(without / tested)
        mean, half = (float(part) for part in study.interval(gained, "division", shared=1 / 2))
        won, middle = float((gained > 0).mean()), [float(one.median()) for one in (without, tested, best)]
        verdicts.append(Verdict(
            f"{name}, its penalty chosen on other rows, predicts better than least squares", won >= GATE_WON, won,
            GATE_WON, f"share of {count} divisions; median errors {middle[0]:.3f} and {middle[1]:.3f} variances, at "
            f"{middle[2]:.2g}; log of their ratio {mean:.2f} ± {half:.2f} (95 %, shared rows considered)",
        ))  # fmt: skip
    return verdicts


def decomposed(noise: "xarray.Dataset") -> "xarray.Dataset":
    """Return bias², variance and error by setting, with standard errors; `rest` is the error without the former two."""
    count, mean = noise.sizes["seed"], noise.away.mean("seed")
    off = noise.away - mean
    by_seed = {
        "variance": (off**2).mean("point") * count / (count - 1),
        "bias": 2 * (off * mean).mean("point"),
        "rest": noise.squares - (noise.away**2).mean("point"),
        "error": noise.squares,
    }
    made: dict[str, Any] = {f"{name}_se": one.std("seed", ddof=1) / count**0.5 for name, one in by_seed.items()}
    made |= {name: one.mean("seed") for name, one in by_seed.items()}
    made["bias"] = (mean**2).mean("point") - made["variance"] / count
    return noise[["status"]].mean("seed").assign(made)


def ridge_theory(config: Config) -> dict[str, np.ndarray]:
    """Return bias² and variance of ridge regression by strength."""
    x, answers, z, right = truth(config)
    unit, strengths = len(x) * np.eye(x.shape[1]), sorted(config.noise.strengths)
    makes = np.stack([z @ np.linalg.solve(x.T @ x + one * unit, x.T) for one in strengths])
    variance = config.noise.noise**2 * (makes**2).sum(axis=2).mean(axis=1)
    return {"bias": ((makes @ answers - right) ** 2).mean(axis=1), "variance": variance}


def _noise_verdicts(config: Config, results: "xarray.Dataset") -> list[Verdict]:
    found, count = decomposed(study.part(results, "noise")), config.noise.draws
    gap = found.error - found.bias - found.variance - config.noise.noise**2
    off, ridge = float(np.abs(gap / found.rest_se).max()), found.sel(l1_ratio=0.0)
    sizes = [np.abs(ridge[name] - one) / ridge[f"{name}_se"] for name, one in ridge_theory(config).items()]
    away = max(float(one.max()) for one in sizes)
    least = [(name, found.error.sel(l1_ratio=rho)) for name, rho in config.penalties.items()]
    shown = ", ".join(f"{name} {float(one.min()):.3f} at {float(one.idxmin()):.2g}" for name, one in least)
    return [
        Verdict(
            "bias² + variance + noise is the error under new noise", off <= GATE_ERRORS, off, GATE_ERRORS,
            f"largest difference in standard errors, {found.error.size} settings of {count} draws; least: {shown}",
        ),
        Verdict(
            "ridge has the bias² and the variance of theory", away <= GATE_ERRORS, away, GATE_ERRORS,
            f"largest difference in standard errors, {ridge.sizes['strength']} penalties of {count} draws",
        ),
    ]  # fmt: skip


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw coefficients, errors, and bias with variance along the paths."""
    drawings = {"paths": _draw_paths, "bias_variance": _draw_noise, "errors": _draw_errors}
    return {name: draw(config, results) for name, draw in drawings.items()}


def _draw_paths(config: Config, results: "xarray.Dataset") -> "Figure":
    paths, known = study.part(results, "paths").coefficients, study.part(results, "reference").coefficients
    figure, drawn = plots.figure(
        2, 2, width=10.5, height=7.0, share_x=True, caption="Coefficients by the strength of the penalty, in units of "
        "that from which the lasso is 0 (dotted). Dashed: scikit-learn. Below right: how many coefficients are not 0.",
    )  # fmt: skip
    *places, last = drawn.flat
    order = np.argsort(-np.abs(paths.sel(l1_ratio=0.0).isel(strength=0).values))
    names = [str(name) for name in paths.coefficient.values[order]]
    for position, (axes, (name, rho)) in enumerate(zip(places, config.penalties.items(), strict=True)):
        for place, column in enumerate(order):
            look = panels.look(place) if place < MOST_NAMED else {"color": "#999999"}
            every: Any = {"markevery": (place % 4, 4), "markersize": 4}
            axes.plot(paths.strength, paths.sel(l1_ratio=rho).values[:, column], **look, **every)
            plots.theory(axes, known.strength, known.sel(l1_ratio=rho).values[:, column], label="")
        plots.threshold(axes, 1.0, along="x")
        plots.logarithmic(axes, "x")
        plots.finish(axes, x="strength of the penalty" if axes is places[-1] else "", y="coefficient", title=name)
        count = (paths.sel(l1_ratio=rho) != 0).sum("coefficient")
        last.plot(count.strength, count, color=plots.colour(position), drawstyle="steps-mid", label=name)
    plots.finish(last, x="strength of the penalty", y="coefficients that are not 0")
    panels.legend(figure, names[:MOST_NAMED], "largest first", markers=True)
    return figure


def _draw_errors(config: Config, results: "xarray.Dataset") -> "Figure":
    found, plain = study.part(results, "errors").error, study.part(results, "plain").error
    figure, drawn = panels.grid(
        len(config.penalties), 3, caption=f"Mean squared error by strength of the penalty, {config.errors.divisions} "
        "divisions of the rows: median and quartiles. Dotted: least squares, tested. Star: the least median.",
    )  # fmt: skip
    for axes, (name, rho) in zip(drawn, config.penalties.items(), strict=True):
        for position, part in enumerate(PARTS):
            one = found.sel(l1_ratio=rho, part=part)
            plots.band(axes, one.strength, one, over="division", label=part, position=position)
        middle = found.sel(l1_ratio=rho, part="validation").median("division")
        axes.plot(middle.idxmin(), middle.min(), "*", color="#000000", markersize=10, zorder=4)
        plots.threshold(axes, float(plain.sel(part="test").median()), "least squares")
        plots.logarithmic(axes, "x")
        plots.finish(axes, x="strength of the penalty", y="error / variance" if axes is drawn[0] else "", title=name,
                     legend="inside" if axes is drawn[0] else "none")  # fmt: skip
    return figure


def _draw_noise(config: Config, results: "xarray.Dataset") -> "Figure":
    found, theory = decomposed(study.part(results, "noise")), ridge_theory(config)
    figure, drawn = panels.grid(
        len(config.penalties), 3, caption="What the error under new noise is made of, by penalty. Dots: the error, "
        "with two standard errors. Dashed: theory of ridge. Star: the least error.",
    )  # fmt: skip
    level = config.noise.noise**2
    lines = level + theory["variance"], level + theory["variance"] + theory["bias"]
    for axes, (name, rho) in zip(drawn, config.penalties.items(), strict=True):
        one = found.sel(l1_ratio=rho)
        shares = [np.full(one.sizes["strength"], level), one.variance, one.bias]
        axes.stackplot(one.strength, shares, colors=COLOURS, alpha=0.6, labels=["noise", "variance", "bias²"])
        axes.errorbar(one.strength, one.error, 2 * one.error_se, fmt="o", color="#000000", markersize=3, label="error")
        axes.plot(one.error.idxmin(), one.error.min(), "*", color="#000000", markersize=10)
        for total in lines if rho == 0 else ():
            plots.theory(axes, one.strength, total, label="")
        plots.logarithmic(axes, "x")
        plots.finish(axes, x="penalty", y="squared error" if axes is drawn[0] else "", title=name,
                     legend="inside" if axes is drawn[0] else "none")  # fmt: skip
    return figure


EXPERIMENT = Experiment("regularisation", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
