r"""What keeps a network from learning its rows by heart: small weights, dropout, or stopping early?

Question. A network with more parameters than rows can fit any labels, wrong ones too. How far is the loss on its own
rows from that on new ones, and what narrows the gap?

Mathematics. The gap is L(new rows) - L(own rows). Of the labels a share p is drawn at random, on all rows: what can be
learned of a row is a distribution, and no loss on new rows gets below its entropy, with k classes
:math:`-q \log q - (1 - q) \log ((1 - q) / (k - 1))` where :math:`q = 1 - p + p / k`. To get below it on its own rows a
network has to learn wrong labels. L2 adds :math:`\lambda |W|^2 / 2` to the loss; dropout leaves every hidden unit out
with probability r, at every step and row anew, and scales the others by :math:`1 / (1 - r)`; early stopping keeps the
weights of the step at which the loss on rows held out for that is least; strengths are chosen by those rows too.

Claim. Without a remedy the network gets below that entropy on its own rows. L2, dropout and early stopping each narrow
the gap, lower the loss and raise the accuracy on new rows, by the 95 % interval over seeds, paired.

Command. python -m calcdl.experiments.generalisation configs/generalisation.toml

Reference. Srivastava et al. 2014, Dropout: a simple way to prevent neural networks from overfitting.
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import data, nn, optim, study
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, Count, ExperimentConfig, Rate, Seeds, refuse
from calcdl.train import Problem, make_run
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

CLASSES = 10
PARTS = ("train", "validation", "test")
Share = Annotated[float, Field(gt=0, lt=1)]


class Config(ExperimentConfig):
    """What to measure."""

    rows: Annotated[int, Field(ge=10, le=1000)] = Field(default=100, description="digits to train on, new ones a seed")
    choosing: Annotated[int, Field(ge=10, le=500)] = Field(
        default=300, description="digits to choose by; the rest test"
    )
    wrong: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.2, description="share of all labels drawn at random")
    width: Count = Field(default=192, description="units of the hidden layer")
    learning_rate: Rate = Field(default=0.1, description="rate of descent with momentum")
    weight_decays: AxisOf[Rate] = Field(default=(0.01, 0.03, 0.1, 0.2), description="lambda of L2")
    dropout_rates: AxisOf[Share] = Field(default=(0.5, 0.75, 0.9, 0.95), description="shares of units left out")
    steps: Count = Field(default=400, description="steps with all rows, a multiple of record_every")
    record_every: Count = Field(default=5, description="steps between measurements, at which training may stop")
    seeds: Annotated[Seeds, Field(min_length=2)] = Field(default=tuple(range(12)), description="one network a seed")

    @model_validator(mode="after")
    def _records_fit(self) -> Self:
        if self.steps % self.record_every:
            raise refuse("steps", self.steps, f"a multiple of record_every = {self.record_every}")
        return self

    @property
    def settings(self) -> tuple[tuple[float, float], ...]:
        """Pairs of weight decay and dropout rate, of which at most one is not 0; the first has neither."""
        decayed, dropped = ((one, 0.0) for one in self.weight_decays), ((0.0, one) for one in self.dropout_rates)
        return (0.0, 0.0), *decayed, *dropped


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Train networks with every strength of every remedy."""
    dataset = data.load("digits")
    decays, rates = np.asarray(config.settings, config.precision).T
    shared = {"digits": (dataset.features.astype(config.precision), dataset.targets.astype(np.int32))}
    sizes = config.model_dump(include={"rows", "choosing", "wrong", "width", "learning_rate", "steps", "record_every"})
    results: xarray.Dataset = run(
        partial(train, **sizes), [study.axis("setting", range(len(decays))), study.axis("seed", config.seeds)],
        name="networks", shared={**shared, "decays": decays, "rates": rates}, dtype=config.precision,
        dimensions=dict.fromkeys(("loss", "accuracy"), ("step", "part")),
    )  # fmt: skip
    steps = np.arange(config.record_every, config.steps + 1, config.record_every)
    return results.assign_coords(part=[*PARTS], step=steps)


def train(
    key: Key, digits: tuple[Array, Array], decays: Array, rates: Array, *, setting: Array, rows: int, choosing: int,
    wrong: float, width: int, learning_rate: float, steps: int, record_every: int,
) -> dict[str, Array]:  # fmt: skip
    """Train a network on few digits; return losses and accuracies on them, on those to choose by, and on the rest."""
    order_key, which_key, label_key, key = jax.random.split(key, 4)
    x, labels = (table[jax.random.permutation(order_key, len(table))] for table in digits)
    drawn = jax.random.randint(label_key, labels.shape, 0, CLASSES, labels.dtype)
    labels = jnp.where(jax.random.uniform(which_key, labels.shape, x.dtype) < wrong, drawn, labels)

    def network(tap: Any = nn.networks.untapped) -> nn.networks.Network:
        return nn.stack(1, width, CLASSES, nn.ACTIVATIONS["relu"], nn.INITIALISERS["he_normal"], dtype=x.dtype, tap=tap)

    def loss(params: Any, key: Key) -> Array:
        def drop(value: Array, name: str) -> Array:
            return nn.dropout(key, value, rates[setting]) if name.endswith(".activated") else value

        fit = jnp.mean(nn.softmax_cross_entropy(network(drop).apply(params, x[:rows]), labels[:rows]))
        return fit + decays[setting] / 2 * nn.regularisers.l2([layer["weight"] for layer in params.values()])

    def look(objective: Any, params: Any, info: Any) -> tuple[Array, ...]:
        logits = network().apply(params, x)
        right = (jnp.argmax(logits, axis=-1) == labels).astype(x.dtype)
        each = (jnp.split(one, [rows, rows + choosing]) for one in (nn.softmax_cross_entropy(logits, labels), right))
        return tuple(jnp.stack([jnp.mean(part) for part in parts]) for parts in each)

    keys = data.fresh(lambda key, count: jax.random.split(key, count))
    problem = Problem(lambda key: network().init(key, x.shape[1:]), loss, keys)
    solver = optim.descent("momentum", learning_rate)
    trace = make_run(problem, solver, steps=steps, record_every=record_every, probes={"seen": look})(key)
    losses, accuracies = trace.probes["seen"]
    return {"loss": losses, "accuracy": accuracies, "status": trace.status, "diverged_at": trace.diverged_at}


def entropy(config: Config) -> float:
    """Return the entropy of a label: the loss on new rows that nothing gets below."""
    right = 1 - config.wrong + config.wrong / CLASSES
    others = 1 - right
    return float(-right * np.log(right) - (others * np.log(others / (CLASSES - 1)) if others else 0.0))


def remedied(config: Config, results: "xarray.Dataset") -> dict[str, "xarray.Dataset"]:
    """Return losses and accuracies by seed, of no remedy and of each at the strength or step that some rows choose."""
    ended, held_out = results.isel(step=-1), results.loss.sel(part="validation", drop=True)
    last, decays = held_out.isel(step=-1).mean("seed").values, len(config.weight_decays)
    decayed, dropped = 1 + int(last[1 : 1 + decays].argmin()), 1 + decays + int(last[1 + decays :].argmin())
    stop = results.step[held_out.isel(setting=0, drop=True).argmin("step")].drop_vars("step")
    return {
        "none": ended.isel(setting=0),
        f"L2 of {config.settings[decayed][0]:g}": ended.isel(setting=decayed),
        f"dropout of {config.settings[dropped][1]:g}": ended.isel(setting=dropped),
        f"early stopping after {float(stop.median()):.0f} steps": results.isel(setting=0).sel(step=stop),
    }


def tested(one: "xarray.Dataset") -> "xarray.DataArray":
    """Return the loss on new rows."""
    loss: xarray.DataArray = one.loss.sel(part="test", drop=True)
    return loss


def accuracy(one: "xarray.Dataset") -> "xarray.DataArray":
    """Return the accuracy on new rows."""
    right: xarray.DataArray = one.accuracy.sel(part="test", drop=True)
    return right


def gap(one: "xarray.Dataset") -> "xarray.DataArray":
    """Return the loss on new rows minus that on its own."""
    wide: xarray.DataArray = tested(one) - one.loss.sel(part="train", drop=True)
    return wide


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold the losses against the entropy of the labels, and every remedy against none."""
    found, least = remedied(config, results), entropy(config)
    none, lost = found.pop("none"), int((results.status != 0).sum())
    own, new = none.loss.sel(part="train"), tested(none)
    failed = f"; {lost} of {results.status.size} runs diverged" if lost else ""
    verdicts = [Verdict(
        "without a remedy the network learns its wrong labels", bool((own < least).all()) and not lost,
        float(own.max()), least, f"largest loss on its own rows after {config.steps} steps, {own.size} seeds, against "
        f"the entropy of a label; on new rows it is {float(new.mean()):.3f}{failed}",
    )]  # fmt: skip
    claims = {
        "narrows the gap": gap,
        "lowers the loss on new rows": tested,
        "raises the accuracy on new rows": accuracy,
    }
    for name, one in found.items():
        for claim, value in claims.items():
            before, after = value(none), value(one)
            gained = after - before if value is accuracy else before - after
            mean, half = (float(part) for part in study.interval(gained))
            verdicts.append(Verdict(
                f"{name} {claim}", mean > half and not lost, mean - half, 0.0,
                f"lower end of the 95 % interval of the difference over {own.size} seeds; {float(before.mean()):.3f} "
                f"without, {float(after.mean()):.3f} with{failed}",
            ))  # fmt: skip
    return tuple(verdicts)


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw losses by step, and gaps with losses on new rows by strength."""
    return {"training": _draw_training(config, results), "gaps": _draw_gaps(config, results)}


def _draw_training(config: Config, results: "xarray.Dataset") -> "Figure":
    found = remedied(config, results)
    names = [name for name in found if not name.startswith("early")]
    early = found[next(name for name in found if name.startswith("early"))]
    figure, drawn = plots.figure(
        1, len(names), width=11.0, height=3.8, share_y=True,
        caption=f"{config.rows} digits, a share of {config.wrong:g} of all labels drawn at random: losses by step, "
        f"median and quartiles of {len(config.seeds)} networks. Star: early stopping. Dotted: entropy of a label.",
    )  # fmt: skip
    for axes, name in zip(drawn[0], names, strict=True):
        one = results.isel(setting=int(found[name].setting))
        for position, part in enumerate(("train", "test")):
            label = "its own rows" if part == "train" else "new rows"
            plots.band(axes, one.step, one.loss.sel(part=part), over="seed", label=label, position=position)
        plots.threshold(axes, entropy(config), "entropy")
        if name == "none":
            place = float(early.step.median()), float(early.loss.sel(part="test").median())
            axes.plot(*place, "*", color="#000000", markersize=11, zorder=4)
        plots.logarithmic(axes, "x")
        plots.finish(axes, x="step", y="loss" if name == "none" else "", title=name,
                     legend="inside" if name == "none" else "none")  # fmt: skip
    return figure


def _draw_gaps(config: Config, results: "xarray.Dataset") -> "Figure":
    early = list(remedied(config, results).values())[-1]
    ended, cases = results.isel(step=-1), {}
    for at, (decay, rate) in enumerate(config.settings):
        cases[f"L2, {decay:g}" if decay else f"dropout, {rate:g}" if rate else "none"] = ended.isel(setting=at)
    cases["early stopping"] = early
    figure, drawn = plots.figure(
        1, 3, width=11.0, height=0.9 + 0.32 * len(cases), share_y=True,
        caption="The gap between the losses on new rows and on its own, the loss on new rows, the accuracy there: mean "
        f"and 95 % interval over {len(config.seeds)} networks. Dotted: without a remedy, and the entropy of a label.",
    )  # fmt: skip
    kinds = {"none": 7, "L2": 0, "dropout": 1, "early stopping": 2}
    shown = {"gap, nats": gap, "loss on new rows, nats": tested, "accuracy on new rows": accuracy}
    for axes, (title, values) in zip(drawn[0], shown.items(), strict=True):
        for place, (name, one) in enumerate(cases.items()):
            mean, half = (float(part) for part in study.interval(values(one)))
            position = kinds[name.partition(",")[0]]
            axes.errorbar(mean, place, xerr=half, fmt=plots.marker(position), color=plots.colour(position), capsize=3)
        plots.threshold(axes, float(values(cases["none"]).mean()), along="x")
        plots.finish(axes, x=title, y="")
    plots.threshold(drawn[0, 1], entropy(config), along="x")
    drawn[0, 0].set_yticks(range(len(cases)), list(cases))
    drawn[0, 0].invert_yaxis()
    return figure


EXPERIMENT = Experiment("generalisation", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
