r"""Are the probabilities of a classifier true, and what has the penalty to do with it?

Question. Of all rows to which logistic regression gives the probability 0.8, is it right about 80 in a hundred?

Mathematics. On the rows of training it is, on average, by the calculus of its minimum: the derivative of the loss by an
intercept is the sum of p - [class], which is 0 there, so the mean probability of a class is its share. On other rows
that is not so. Rows are put into bins by p; the calibration error is the mean of |share - p| over bins. It is not 0
even if probabilities are true, as rows are few: labels drawn from them show how large it is by chance. With a weak
penalty λ/2 |W|² the weights grow, and with them all logits: probabilities are surer than they are right. With a strong
one they are near the shares of the classes and say too little. As λ grows, |W| at the minimum falls and the loss on the
rows of training rises.

Claim. Over random divisions of the rows: mean probabilities are shares to 1e-8 at every penalty; the loss of training
never falls and |W| never grows with the penalty; on average over the sets a penalty chosen on other rows predicts
better than almost none in eight of ten divisions, and its probabilities are truer.

Command. python -m calcdl.experiments.calibration configs/calibration.toml

Reference. Guo, Pleiss, Sun and Weinberger, On calibration of modern neural networks, ICML 2017.
"""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from calcdl import data, study
from calcdl.diagnostics import Reliability, reliability
from calcdl.experiments.classification import (
    GATE_SHARE,
    MOST_BY_MATRIX,
    Case,
    design,
    fitted,
    grouped,
    load,
    row_losses,
    share_gap,
)
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, ExperimentConfig, Rate
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

GATE_WON, MOST_NEWTON, BINS, DRAWS, STRONGER = 0.8, 200, 10, 100, 100.0
PARTS = {"train": "training rows", "validation": "rows to choose by", "test": "test"}
ManyTimes = Annotated[int, Field(ge=3, le=10_000)]


def spread(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return numbers that grow by one factor, to three digits."""
    return tuple(float(f"{value:.3g}") for value in np.geomspace(low, high, count))


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float64"] = Field(default="float64", description="type of all floating numbers")
    data: AxisOf[str] = Field(
        default=("breast_cancer", "iris", "wine"), description="bundled sets of classes, or CSV or NPZ files"
    )
    target: str = Field(default="", description="the column of classes, for a file; empty for one named target")
    strengths: Annotated[AxisOf[Rate], Field(min_length=3)] = Field(
        default=spread(1e-4, 1e4, 17), description="penalties lambda = 1 / C"
    )
    divisions: ManyTimes = Field(default=20, description="halves of the rows to train; quarters to choose by, to test")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Fit half of the rows for every penalty and division, and look at the others."""
    sets = {name: load(name, config.target) for name in config.data}
    divisions = range(config.divisions)
    splits = {name: [data.split(one, 0.25, 0.25, seed=seed) for seed in divisions] for name, one in sets.items()}
    halves = {name: Case(np.stack([design(one) for one in splits[name]]), sets[name].targets) for name in sets}
    if large := [name for name, one in halves.items() if one.shape[1]]:
        raise ConfigError(f"data: got {large[0]!r}; expected sets with at most {MOST_BY_MATRIX} coefficients")
    by_part = dict.fromkeys(("loss", "accuracy"), ("part",)) | dict.fromkeys(
        ("events", "expected", "happened"), ("bin",)
    )
    axes = [study.axis("strength", sorted(config.strengths)), study.axis("division", divisions)]
    found = grouped(
        partial(run, dtype=config.precision), follow, halves, axes, name="path", parts=partial(parts, splits),
        dimensions=by_part,
    )  # fmt: skip
    return study.join(path=found.assign_coords(part=list(PARTS)))


def parts(splits: dict[str, list[data.Dataset]], group: Iterable[str], rows: int) -> np.ndarray:
    """Return to which part a row belongs, by set and division."""
    found = np.zeros((len([*group]), max(map(len, splits.values())), rows), np.int32)
    for place, name in enumerate(group):
        for number, one in enumerate(splits[name]):
            found[place, number, one.validation], found[place, number, one.test] = 1, 2
    return found


def follow(key: Key, tables: Any, *, case: Array, strength: Array, division: Array) -> dict[str, Array]:
    """Fit half of the rows; return losses and accuracy by part, and how true the probabilities of the last part are."""
    *tables, parts, free = tables
    x, y, weight, ridge, padding = (one[case] for one in tables)
    x, part = x[division], parts[case, division]
    inside = weight[None, :] * (part[None, :] == jnp.arange(len(PARTS), dtype=part.dtype)[:, None])
    table = (x, y, inside[0], free)
    found = fitted("newton", table, strength * ridge + padding, MOST_NEWTON)
    logits, share = x @ found.params @ free.T, inside / jnp.sum(inside, axis=1, keepdims=True)
    return {
        "loss": share @ row_losses(logits, y), "gap": share_gap(found.params, table),
        "accuracy": share @ (jnp.argmax(logits, axis=1) == y).astype(x.dtype),
        "norm": jnp.linalg.norm(found.params * ridge[:, None]),
        **truth(jax.random.fold_in(key, division), logits, y, inside[2]),
    }  # fmt: skip


def truth(key: Key, logits: Array, y: Array, weight: Array) -> dict[str, Array]:
    """Return how true probabilities are (of two classes, of the second), and the error if they were quite true."""
    first = 1 if logits.shape[1] == 2 else 0
    chance = jax.nn.softmax(logits)[:, first:]

    def compared(y: Array) -> Reliability:
        right = jax.nn.one_hot(y, logits.shape[1], dtype=chance.dtype)[:, first:]
        return reliability(chance, right, jnp.broadcast_to(weight[:, None], chance.shape), bins=BINS)

    drawn = jax.random.categorical(key, logits, shape=(DRAWS, len(y)))
    return compared(y)._asdict() | {"error_if_true": jnp.mean(jax.vmap(compared)(drawn).error)}


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold mean probabilities against shares, the path against its order, the chosen penalty against the weakest."""
    path = study.part(results, "path")
    gap, loss, norm = float(path.gap.max(skipna=False)), path.loss.sel(part="train"), path.norm
    order = max(float((-loss.diff("strength") / loss).max()), float((norm.diff("strength") / norm).max()))
    return (
        Verdict(
            "on the rows of training the mean probability of a class is its share", gap <= GATE_SHARE, gap, GATE_SHARE,
            f"largest difference, {path.gap.size:,} fits",
        ),
        Verdict(
            "as the penalty grows, the loss of training never falls and the weights never grow", order <= GATE_SHARE,
            order, GATE_SHARE, f"largest change the other way, as a share, {path.gap.size:,} fits",
        ),
        *_held_out(path),
    )  # fmt: skip


def chosen(path: "xarray.Dataset") -> "xarray.DataArray":
    """Return for every set the penalty with the least mean loss on the rows to choose by."""
    best: xarray.DataArray = path.loss.sel(part="validation").mean("division").idxmin("strength")
    return best


def _held_out(path: "xarray.Dataset") -> list[Verdict]:
    tested, count = path.loss.sel(part="test"), path.sizes["division"]
    with_one = tested.sel(strength=path.loss.sel(part="validation").idxmin("strength"))
    gained = np.log(tested.isel(strength=0) / with_one)
    won = float((gained.mean("case") > 0).mean())
    middle = [one.median("division").values for one in (tested.isel(strength=0), with_one)]
    told = ", ".join(
        f"{name} {share:.0%} ({without:.2g} and {now:.2g})"
        for name, share, without, now in zip(
            path.case.values, (gained > 0).mean("division").values, *middle, strict=True
        )
    )
    beyond, best = path.error - path.error_if_true, chosen(path)
    truer = beyond.isel(strength=0, drop=True) - beyond.sel(strength=best)
    mean, half = (float(part) for part in study.interval(truer.mean("case"), "division", shared=1 / 2))
    by_set = ", ".join(
        f"{name} {one:.3f}" for name, one in zip(path.case.values, truer.mean("division").values, strict=True)
    )
    return [
        Verdict(
            "a penalty chosen on other rows predicts better than almost none, on average over the sets",
            won >= GATE_WON, won, GATE_WON, f"share of {count} divisions; by set, with the median losses without and "
            f"with it: {told}",
        ),
        Verdict(
            "its probabilities are truer than with almost none, on average over the sets", mean - half > 0,
            mean - half, 0.0, "lower end of the 95 % interval, shared rows considered, of the gain in "
            f"calibration error beyond chance; mean {mean:.3f}; by set {by_set}",
        ),
    ]  # fmt: skip


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw how true probabilities are, by their size and by the penalty, and the losses."""
    path = study.part(results, "path")
    return {"reliability": _draw_reliability(path), "errors": _draw_errors(path), "losses": _draw_losses(path)}


def _draw_reliability(path: "xarray.Dataset") -> "Figure":
    names = path.case.values
    figure, drawn = plots.figure(
        1, len(names), width=2 + 3.4 * len(names), height=4.0, share_y=True, caption="Share of test rows in a class "
        f"among those given a probability, {path.sizes['division']} divisions, with two standard errors; points stand "
        "for at least 20 rows. Dotted: true probabilities. Above it the class comes more often than said.",
    )  # fmt: skip
    for place, (axes, name) in enumerate(zip(drawn[0], names, strict=True)):
        axes.plot([0, 1], [0, 1], ":", color="#555555")
        for position, (word, strength) in enumerate(_three(path.sel(case=name)).items()):
            one = path.sel(case=name, strength=strength)
            count, expected, happened = (one[key].sum("division") for key in ("events", "expected", "happened"))
            share = happened / count
            off = ((one.happened - share * one["events"]) ** 2).sum("division") ** 0.5 / count
            kept = (count >= 20).values
            axes.errorbar((expected / count)[kept], share[kept], 2 * off[kept], color=plots.colour(position),
                          marker=plots.marker(position), markersize=4, capsize=2, label=word)  # fmt: skip
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        plots.finish(axes, x="probability", y="" if place else "share of the class", title=name.replace("_", " "),
                     legend="inside" if place == 0 else "none")  # fmt: skip
    return figure


def _three(one: "xarray.Dataset") -> dict[str, float]:
    """Return a weak penalty, the right one and a strong one."""
    right = float(one.loss.sel(part="validation").mean("division").idxmin("strength"))
    strong = float(one.strength.sel(strength=STRONGER * right, method="nearest"))
    return {"hardly any penalty": float(one.strength[0]), "the one chosen": right, "a hundred times that": strong}


def _draw_errors(path: "xarray.Dataset") -> "Figure":
    names = path.case.values
    figure, drawn = plots.figure(
        1, len(names), width=2 + 3.4 * len(names), height=3.6, share_y=True, caption="Calibration error on test rows "
        "by penalty, median and quartiles over divisions. Dashed: what it would be, by chance, if the probabilities "
        "were true. Dotted: the penalty chosen. With the strongest all rows are given the shares of the classes, which "
        "is true and says nothing.",
    )  # fmt: skip
    for place, (axes, name) in enumerate(zip(drawn[0], names, strict=True)):
        one = path.sel(case=name)
        plots.band(axes, one.strength, one.error, over="division", label="measured", position=1)
        plots.theory(axes, one.strength, one.error_if_true.mean("division"), label="if true")
        plots.threshold(axes, _three(one)["the one chosen"], along="x")
        plots.logarithmic(axes, "x")
        plots.finish(axes, x="penalty", y="" if place else "calibration error", title=name.replace("_", " "),
                     legend="inside" if place == 0 else "none")  # fmt: skip
    return figure


def _draw_losses(path: "xarray.Dataset") -> "Figure":
    names = path.case.values
    figure, drawn = plots.figure(
        2, len(names), width=2 + 3.4 * len(names), height=6.0, share_x=True, caption="Loss and accuracy by penalty, "
        f"median and quartiles over {path.sizes['division']} divisions.",
    )  # fmt: skip
    for column, name in enumerate(names):
        for axes, key in zip(drawn[:, column], ("loss", "accuracy"), strict=True):
            for position, (part, word) in enumerate(PARTS.items()):
                one = path[key].sel(case=name, part=part)
                plots.band(axes, one.strength, one, over="division", label=word, position=position)
            plots.logarithmic(axes, "xy" if key == "loss" else "x")
            first: Any = "inside" if column == 0 and key == "loss" else "none"
            plots.finish(axes, x="penalty" if key == "accuracy" else "", y="" if column else key,
                         title=name.replace("_", " ") if key == "loss" else "", legend=first)  # fmt: skip
    return figure


EXPERIMENT = Experiment("calibration", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
