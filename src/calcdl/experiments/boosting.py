r"""What does gradient boosting descend on, and in which space?

Question. Boosting fits tree after tree to residuals. Of which loss are they the gradient, and how far does a step go?

Mathematics. The parameters are the predictions F(x_i) themselves: a point of function space, seen at the rows. Descent
on :math:`L(F) = \sum_i l(F(x_i), y_i)` from the best constant adds minus its gradient, as a tree can say it:

    r_i = -∂l/∂F(x_i),   F_{m+1} = F_m + ν ρ h_m,   h_m = argmin_h Σ (r_i - h(x_i))²,   ρ = argmin_ρ L(F_m + ρ h_m).

The gradient is known at the rows alone; the tree is the direction nearest to it that has a value everywhere. The length
ρ, of the stage or of each leaf, is Newton's step -⟨∇L, h⟩ / ⟨h, ∇²L h⟩ or where the slope along h changes its sign.

Claim. The gradient by `jax.grad`, a tree and Newton's step for each leaf are scikit-learn's gradient boosting: the same
predictions on the training rows at every stage (squared error), the same training loss (logistic), to 1e-6. On all rows
the training loss never rises, whatever the loss. Small steps predict better. Outliers spoil squares, not Huber's loss.

Command. python -m calcdl.experiments.boosting configs/boosting.toml
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from calcdl import data, nn, study
from calcdl.calculus.expressions import parse
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, Rate, Readable, Section, Seeds
from calcdl.optim import function_space
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

NAMED = ("squared_error", "absolute_error", "huber", "binary_cross_entropy")
SEARCHES = tuple(f"{search}, {by}" for by in ("leaf", "stage") for search in ("newton", "minimum"))
PARTS = {"train": "training rows", "validation": "held-out rows"}
GATE_SAME, GATE_RISE, GATE_OUTLIERS, SHARE, JITTER = 1e-6, 1e-12, 2.0, 0.1, 1e-3


def loss_of(text: str, delta: float = 1.0) -> function_space.Loss:
    """Return a loss by its name, or read it as a formula of prediction and target."""
    if text == "huber":
        return partial(nn.losses.huber, delta=delta)
    return nn.LOSSES[text] if text in NAMED else parse(text, ("prediction", "target"))


Loss = Annotated[str, Readable(loss_of, f"one of {', '.join(NAMED)}, or a formula of prediction and target")]
Share = Annotated[float, Field(gt=0, le=1)]


class Trees(Section):
    """The weak learner."""

    depth: Annotated[int, Field(ge=1, le=8)] = Field(default=3, description="most splits from root to leaf")
    leaf_rows: Count = Field(default=10, description="fewest rows of a leaf")


class Curve(Section):
    """A sine, fitted stage by stage."""

    rows: Annotated[int, Field(ge=10, le=2000)] = Field(default=40, description="points")
    loss: Loss = Field(default="squared_error", description="a name, or a formula of prediction and target")
    learning_rate: Share = Field(default=0.5, description="shrinkage")
    trees: Trees = Field(default=Trees(depth=2, leaf_rows=3), description="trees")
    stages: AxisOf[Annotated[int, Field(ge=0, le=1000)]] = Field(default=(0, 1, 3, 12), description="stages drawn")


class Regression(Section):
    """Squared error on real data, and scikit-learn beside it."""

    data: str = Field(default="diabetes", description="a bundled set, or the path of a CSV or NPZ file")
    target: str = Field(default="", description="the column to predict, for a file; empty for one named target")
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.25, description="share of the rows held out")
    learning_rates: AxisOf[Share] = Field(default=(1.0, 0.3, 0.1, 0.03), description="shrinkages")
    subsample: Share = Field(default=0.5, description="share of the training rows that a stage sees")
    seeds: Annotated[Seeds, Field(min_length=2)] = Field(default=tuple(range(5)), description="of the subsamples")
    stages: Count = Field(default=150, description="trees")


class Classification(Section):
    """Logistic loss of two classes, by every line search."""

    data: str = Field(default="breast_cancer", description="a bundled set, or the path of a CSV or NPZ file")
    target: str = Field(default="", description="the column of classes, for a file; empty for one named target")
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.25, description="share of the rows held out")
    learning_rate: Share = Field(default=0.1, description="shrinkage")
    stages: Count = Field(default=100, description="trees")


class Outliers(Section):
    """The regression set with spoiled training targets; held-out targets stay clean."""

    losses: AxisOf[Loss] = Field(
        default=("squared_error", "absolute_error", "huber", "sqrt(1 + ((prediction - target) / 20)**2)"),
        description="names, or formulas of prediction and target",
    )
    delta: Rate = Field(default=40.0, description="where Huber's loss becomes linear, in the unit of the target")
    shares: AxisOf[Annotated[float, Field(ge=0, lt=0.5)]] = Field(default=(0.0, 0.05, 0.1, 0.2), description="spoiled")
    size: Rate = Field(default=10.0, description="how far up outliers are moved, in standard deviations of the target")
    seeds: Annotated[Seeds, Field(min_length=2)] = Field(default=tuple(range(5)), description="of the outliers")
    learning_rate: Share = Field(default=0.1, description="shrinkage")
    stages: Count = Field(default=50, description="trees")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float64"] = Field(default="float64", description="type of all numbers, and that of the trees")
    trees: Trees = Field(default=Trees(), description="trees for real data")
    curve: Curve = Field(default=Curve(), description="function space, drawn")
    regression: Regression = Field(default=Regression(), description="regression")
    classification: Classification = Field(default=Classification(), description="classification")
    outliers: Outliers = Field(default=Outliers(), description="outliers")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Draw what is random; boost a curve, a regression, a classification and a regression with outliers."""
    import xarray

    dataset, classes = load(config.regression, "regression"), load(config.classification, "classification")
    one, seeds = config.curve, sorted({*config.regression.seeds, *config.outliers.seeds})
    draws = run(partial(draw, rows=one.rows), [study.axis("seed", seeds)], name="draws",
                dtype=config.precision, dimensions={"x": ("row",), "y": ("row",)})  # fmt: skip
    if (draws.status != 0).any():  # planned only, or in part by another process
        return study.join(draws=draws)
    words = {seed: int(draws.word.sel(seed=seed)) for seed in seeds}
    tables = {
        "curve": boost_curve(one, draws.x.values[0], draws.y.values[0]),
        "regression": boost_regression(config, dataset, [words[seed] for seed in config.regression.seeds]),
        "classification": boost_classes(config, classes),
        "outliers": boost_outliers(config, dataset, [words[seed] for seed in config.outliers.seeds]),
    }
    return study.join(draws=draws, **{name: xarray.Dataset(*table) for name, table in tables.items()})


def draw(key: Key, *, rows: int) -> dict[str, Array]:
    """Draw the points of a curve, and the number that subsamples and outliers of a seed come from."""
    x, y = data.synthetic.sines(key, rows, noise=0.15, dtype=jnp.float64)
    return {"x": x[:, 0], "y": y, "word": jax.random.bits(key, dtype=jnp.uint32)}


def load(one: Regression | Classification, kind: data.dataset.TargetKind) -> data.Dataset:
    """Load and split a set."""
    dataset = data.load(one.data, one.target or None, kind, constant="keep", collinear="keep")
    if len(dataset.classes) not in (0, 2):
        raise ConfigError(f"{kind}.data: got {one.data!r} of {len(dataset.classes)} classes; expected a set of 2")
    return data.split(dataset, validation=one.validation, test=0.0)


def boost(loss: str, *rows: np.ndarray, delta: float = 1.0, search: str = SEARCHES[1], **settings: Any) -> Any:
    """Boost trees by a loss that is written, on features, targets and numbers of training rows."""
    how, by = search.split(", ")
    try:
        return function_space.gradient_boosting(loss_of(loss, delta), *rows, search=how, by=by, **settings)
    except ValueError as error:
        raise ConfigError(f"loss {loss!r}: {error}; choose another for these data") from None


def boost_curve(one: Curve, x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
    """Fit the curve, and keep the fit on a grid too."""
    known, grid = np.arange(len(x)), np.linspace(-1, 1, 241)
    points = np.append(x, grid)[:, None], np.append(y, np.sin(2 * np.pi * grid)), known
    path = boost(one.loss, *points, stages=max(one.stages) + 1, rates=[one.learning_rate], **one.trees.model_dump())
    return {
        "x": ("row", x), "y": ("row", y), "train_loss": ("stage", path.loss[:, 0, known].mean(axis=1)),
        "prediction": (("stage", "row"), path.prediction[:, 0, known]),
        "residual": (("stage", "row"), path.residual[:, 0, known]),
        "fit": (("stage", "place"), path.prediction[:, 0, one.rows :]),
        "direction": (("tree", "place"), path.direction[:, 0, one.rows :]),
    }, {"place": grid}  # fmt: skip


def weights(dataset: data.Dataset) -> np.ndarray:
    """Return weights of the rows near 1, so that no two splits tie and leave the choice to the last digit of a sum."""
    return np.random.default_rng(0).uniform(1 - JITTER, 1 + JITTER, len(dataset.targets))


def reference(trees: Trees, dataset: data.Dataset, rate: float, weight: Any = None, **settings: Any) -> np.ndarray:
    """Return scikit-learn's predictions (logits, for classes) of all rows after every stage."""
    from sklearn import ensemble

    model = ensemble.GradientBoostingClassifier if dataset.classes else ensemble.GradientBoostingRegressor
    settings |= {"learning_rate": rate, "max_depth": trees.depth, "min_samples_leaf": trees.leaf_rows}
    if model().get_params()["criterion"] == "friedman_mse":  # scikit-learn before 1.9 splits by another rule
        settings["criterion"] = "squared_error"
    x, y = dataset.features[dataset.train], dataset.targets[dataset.train]
    fitted = model(**settings).fit(x, y, None if weight is None else weight[dataset.train])
    staged = fitted.staged_decision_function if dataset.classes else fitted.staged_predict
    return np.stack([np.ravel(prediction) for prediction in staged(dataset.features)])


def boost_regression(config: Config, dataset: data.Dataset, seeds: Sequence[int]) -> tuple[Any, Any]:
    """Boost squared error on all rows and on subsamples, for every shrinkage, beside scikit-learn."""
    one, known, y, weight = config.regression, dataset.train, dataset.targets, weights(dataset)
    settings: Any = {"stages": one.stages, **config.trees.model_dump()}
    fit: Any = partial(boost, "squared_error", dataset.features, y, known, **settings)
    other: Any = partial(reference, config.trees, dataset, n_estimators=one.stages)
    paths = [fit(rates=one.learning_rates, search=search, weight=weight) for search in SEARCHES[:2]]
    theirs = np.stack([other(rate, weight, random_state=0) for rate in one.learning_rates], axis=1)
    away = np.stack([np.abs(path.prediction[1:] - theirs) for path in paths]) / y[known].std()
    found: dict[str, Any] = {
        "difference": (("search", "tree", "learning_rate"), away[..., known].max(axis=-1)),
        "held_out_difference": (("search", "learning_rate", "held_out"), away[:, -1][..., dataset.validation]),
        "train_loss": (("search", "stage", "learning_rate"), [path.loss[..., known] @ weight[known] for path in paths]),
    }
    rates, lanes = zip(*product(one.learning_rates, seeds), strict=True)
    errors = {
        "": ("stage", fit(rates=rates, seeds=lanes, share=one.subsample).prediction - y),
        "reference_": ("tree", np.stack([other(rate, random_state=seed, subsample=one.subsample)
                                         for rate, seed in zip(rates, lanes, strict=True)], axis=1) - y),
    }  # fmt: skip
    for (who, (along, error)), part in product(errors.items(), PARTS):
        table = np.sqrt((error[..., dataset._asdict()[part]] ** 2).mean(axis=-1)).reshape(len(error), -1, len(seeds))
        found[who + part] = ((along, "learning_rate", "seed"), table)
    return found, {"learning_rate": list(one.learning_rates), "seed": list(one.seeds)}


def boost_classes(config: Config, dataset: data.Dataset) -> tuple[Any, Any]:
    """Boost logistic loss by every line search, beside scikit-learn."""
    one, y, weight = config.classification, dataset.targets, weights(dataset)
    logits = reference(config.trees, dataset, one.learning_rate, weight, n_estimators=one.stages, random_state=0)
    fit: Any = partial(boost, "binary_cross_entropy", dataset.features, y, dataset.train, stages=one.stages,
                       rates=[one.learning_rate], weight=weight, **config.trees.model_dump())  # fmt: skip
    losses = [np.logaddexp(0, logits) - y * logits, *(fit(search=search).loss[:, 0] for search in SEARCHES)]
    found: dict[str, Any] = {}
    for part in PARTS:
        rows = dataset._asdict()[part]
        theirs, *ours = (loss[:, rows] @ weight[rows, None] / weight[rows].sum() for loss in losses)
        found |= {part: (("search", "stage", "seed"), ours), f"reference_{part}": (("tree", "seed"), theirs)}
    return found | {"train_loss": found["train"]}, {"search": list(SEARCHES)}


def boost_outliers(config: Config, dataset: data.Dataset, seeds: Sequence[int]) -> tuple[Any, Any]:
    """Boost every loss on spoiled targets; rows that are spoiled are so at every larger share too."""
    one, known, y = config.outliers, dataset.train, dataset.targets
    targets = np.tile(y, (len(one.shares), len(seeds), 1))
    orders = [np.random.default_rng(seed).permutation(known) for seed in seeds]
    for (row, share), (lane, order) in product(enumerate(one.shares), enumerate(orders)):
        targets[row, lane, order[: round(share * len(known))]] += one.size * y[known].std()
    lanes = targets.reshape(-1, len(y))
    settings: Any = {"rates": [one.learning_rate] * len(lanes), "stages": one.stages, **config.trees.model_dump()}
    paths = [boost(text, dataset.features, lanes, known, delta=one.delta, **settings) for text in one.losses]
    found = {
        "error": [np.sqrt(((path.prediction - y)[..., dataset.validation] ** 2).mean(axis=-1)) for path in paths],
        "train_loss": [path.loss[..., known].mean(axis=-1) for path in paths],
    }
    shape, named = (len(paths), one.stages + 1, *targets.shape[:2]), ("loss", "stage", "share", "seed")
    coordinates = {"loss": list(one.losses), "share": list(one.shares), "seed": list(one.seeds)}
    return {name: (named, np.reshape(table, shape)) for name, table in found.items()}, coordinates


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold predictions and losses against scikit-learn's, and descent, shrinkage and outliers against the claims."""
    regression, outliers = study.part(results, "regression"), study.part(results, "outliers")
    verdicts = [*_same(regression, study.part(results, "classification")), _descent(results)]
    verdicts += [_shrinkage(regression)] if regression.sizes["learning_rate"] > 1 else []
    comparable = {"squared_error", "huber"} <= {*outliers.loss.values} and 0 in outliers.share
    return tuple([*verdicts, _outliers(outliers)] if comparable and len(outliers.share) > 1 else verdicts)


def _same(regression: "xarray.Dataset", classes: "xarray.Dataset") -> list[Verdict]:
    off, held = float(regression.difference.max(skipna=False)), regression.held_out_difference
    ours, ends = classes.train.sel(search=SEARCHES[0]).values, classes.train.isel(stage=-1, seed=0)
    away = float(np.abs(ours[1:] - classes.reference_train.values).max())
    told = "; ".join(f"{search} {float(ends.sel(search=search)):.2g}" for search in SEARCHES)
    return [
        Verdict(
            "squared error: the training rows' predictions are scikit-learn's, at every stage and shrinkage",
            off <= GATE_SAME, off, GATE_SAME, "largest difference, in standard deviations of the target; in the end "
            f"{int((held <= GATE_SAME).sum()):,} of {held.size:,} held-out predictions are the same too",
        ),
        Verdict(
            "logistic loss: one Newton step a leaf has the training loss of scikit-learn, at every stage",
            away <= GATE_SAME, away, GATE_SAME, f"largest difference in nats; from {ours[0, 0]:.2g} to: {told}",
        ),
    ]  # fmt: skip


def _descent(results: "xarray.Dataset") -> Verdict:
    losses = [study.part(results, name).train_loss for name in ("curve", "regression", "classification", "outliers")]
    steps = np.concatenate([np.ravel(one.diff("stage") / np.abs(one.isel(stage=0))) for one in losses])
    rise = float(steps.max())
    return Verdict(
        "without subsamples the training loss never rises: every loss, shrinkage and line search",
        rise <= GATE_RISE, rise, GATE_RISE, "largest change in a stage, as a share of the loss at the start; it fell "
        f"in {int((steps < 0).sum()):,} of {steps.size:,} stages",
    )  # fmt: skip


def _shrinkage(regression: "xarray.Dataset") -> Verdict:
    least, rates = regression.validation.min("stage"), regression.learning_rate.values
    gain = study.interval(least.sel(learning_rate=rates.max()) - least.sel(learning_rate=rates.min()))
    low = float(gain.mean - gain.half)
    told = ", ".join(f"{float(least.sel(learning_rate=rate).median()):.4g} at {rate:g}" for rate in rates)
    return Verdict(
        f"small steps predict better: least held-out error of a run, shrinkage {rates.min():g} against {rates.max():g}",
        low > 0, low, 0.0, f"gain, lower end of its 95 % interval over {least.sizes['seed']} seeds; "
        f"median errors {told}",
    )  # fmt: skip


def _outliers(outliers: "xarray.Dataset") -> Verdict:
    error = outliers.error.isel(stage=-1).median("seed")
    share = float(outliers.share[outliers.share > 0].sel(share=SHARE, method="nearest"))
    extra = error.sel(share=share) - error.sel(share=0)
    ratio = float(extra.sel(loss="squared_error")) / max(float(extra.sel(loss="huber")), 1e-9)
    told = ", ".join(f"{name} {float(error.sel(loss=name, share=share)):.3g}" for name in outliers.loss.values)
    return Verdict(
        f"{share:.0%} of outliers cost squares at least {GATE_OUTLIERS:g} times as much held-out error as Huber's loss",
        ratio >= GATE_OUTLIERS, ratio, GATE_OUTLIERS, f"median errors over {outliers.sizes['seed']} choices: {told}",
    )  # fmt: skip


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw function space, error by stage, line searches, and outliers."""
    stages = (
        "Error by stage, on subsamples: median and quartiles over seeds. Dashed: scikit-learn's median, on its own."
    )
    searches = "Logistic loss by stage and line search. Dashed: scikit-learn, which takes one Newton step a leaf."
    return {
        "function_space": _draw_curve(config.curve, study.part(results, "curve")),
        "stages": _draw_parts(study.part(results, "regression"), "learning_rate", "root mean square error", stages),
        "line_searches": _draw_parts(study.part(results, "classification"), "search", "loss in nats", searches),
        "outliers": _draw_outliers(config.outliers, study.part(results, "outliers")),
    }


def _draw_curve(one: Curve, curve: "xarray.Dataset") -> "Figure":
    figure, panels = plots.figure(
        2, len(one.stages), width=2.5 + 2.8 * len(one.stages), height=5.4, share_x=True,
        caption="Descent in function space. Above: the fit so far; arrows: half of minus the gradient by each point's "
        "prediction. Below: minus the gradient, and the tree fitted to it, along which the next step goes.",
    )  # fmt: skip
    for column, stage in enumerate(one.stages):
        now, (above, below) = curve.isel(stage=stage), panels[:, column]
        above.plot(curve.x, curve.y, "o", color="#555555", markersize=3, label="data")
        above.plot(curve.place, now.fit, color=plots.colour(0), label="fit F")
        above.quiver(curve.x, now.prediction, 0 * curve.x, now.residual / 2, color=plots.colour(1), angles="xy",
                     scale_units="xy", scale=1, width=0.006)  # fmt: skip
        above.plot([], [], color=plots.colour(1), label="half of -∂l/∂F")
        below.plot(curve.x, now.residual, "o", color=plots.colour(1), markersize=3, label="-∂l/∂F")
        below.plot(curve.place, curve.direction.isel(tree=stage), color=plots.colour(2), label="next tree")
        below.set_ylim(1.1 * curve.residual.min(), 1.1 * curve.residual.max())
        legend: Any = "right" if column == len(one.stages) - 1 else "none"
        plots.finish(
            above, x="", y="prediction", title=f"{stage} trees, loss {now.train_loss.item():.2g}", legend=legend
        )
        plots.finish(below, x="x", y="minus the gradient", legend=legend)
    return figure


def _draw_parts(found: "xarray.Dataset", by: str, y: str, caption: str) -> "Figure":
    figure, panels = plots.figure(1, 2, width=10.5, height=4.0, caption=caption)
    for axes, (part, title) in zip(panels[0], PARTS.items(), strict=True):
        theirs = found[f"reference_{part}"].median("seed")
        for position, value in enumerate(found[by].values):
            ours, label = found[part].sel({by: value}), str(value)
            plots.band(axes, np.arange(ours.sizes["stage"]), ours, over="seed", label=label, position=position)
            dashed = theirs.sel({by: value}) if by in theirs.dims else theirs
            plots.theory(axes, np.arange(1, len(dashed) + 1), dashed, label="" if position else "scikit-learn")
        plots.logarithmic(axes)
        plots.finish(axes, x="stage", y=y, title=title, legend="right" if part == "validation" else "none")
    least = found.validation.median("seed")
    panels[0, 1].set_ylim(0.97 * float(least.min()), 1.1 * float(least.isel(stage=0).max()))
    panels[0, 1].get_legend().set_title({"learning_rate": "shrinkage"}.get(by, "line search"))
    return figure


def _draw_outliers(one: Outliers, outliers: "xarray.Dataset") -> "Figure":
    figure, ((pull, shares, stages),) = plots.figure(
        1, 3, width=12.5, height=3.8, caption="Left: what trees are fitted to, by error. Middle: held-out error by "
        f"share of outliers in training, after {one.stages} stages. Right: by stage. Median and quartiles over seeds.",
    )  # fmt: skip
    spoiled, error = float(outliers.share.sel(share=SHARE, method="nearest")), jnp.linspace(-5, 5, 301) * one.delta
    for position, text in enumerate(one.losses):
        slope = np.asarray(jax.vmap(jax.grad(loss_of(text, one.delta)))(-error, 0 * error))
        pull.plot(error, -slope / np.abs(slope).max(), color=plots.colour(position))
        found = outliers.error.sel(loss=text)
        plots.band(shares, one.shares, found.isel(stage=-1), over="seed", position=position, markers=True)
        found = found.sel(share=spoiled)
        plots.band(stages, range(one.stages + 1), found, over="seed", position=position, label=text.replace("_", " "))
    plots.finish(pull, x="target - prediction", y="minus the gradient / its greatest", legend="none")
    plots.finish(shares, x="share of outliers", y="held-out root mean square error")
    plots.finish(stages, x="stage", y="", title=f"{spoiled:.0%} of outliers", legend="right")
    return figure


EXPERIMENT = Experiment("boosting", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
