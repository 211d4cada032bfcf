r"""Which loss learns from a bad mistake, and which one forgives an outlier?

Question. A classifier that is sure of the wrong class, and a line through data of which some are wrong: what does the
loss tell the parameters?

Mathematics. With :math:`s = 1/(1 + e^{-a})` cross-entropy has the gradient :math:`s - y` by the logit a, and half the
squared error :math:`(s - y) s (1 - s)`: through the slope of the sigmoid it loses the ratio :math:`s (1 - s)`, which is
:math:`e^{-|a|}` where the unit is sure. By gradient flow a unit comes from the logit a to b in the time
:math:`\int da / |dL/da|`: about a for cross-entropy, about :math:`e^a` for squared error. Through a softmax p squared
error has :math:`(diag(p) - p p^T)(p - y)` instead of p - y. Of a residual r, the square pulls by 2r, Huber's loss by r
up to :math:`\delta`, and the absolute value by 1, however large it is.

Claim. The ratio of the gradients is s (1 - s) to 1e-6, at every logit; steps from a wrong start are those of the
integral within 5 %; from a wrong start a network learns digits better by cross-entropy, at the best rate of each; a
fifth of outliers bends the line of squares at least three times as far as that of Huber's loss.

Command. python -m calcdl.experiments.losses configs/losses.toml
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import calculus, data, nn, optim, study
from calcdl.lab import panels, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, Finite, Rate, Section, Seeds, refuse
from calcdl.train import Problem, make_run
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

CLASSES = 10
TRUE_LINE = {"slope": 2.0, "intercept": 1.0}
CLASSIFIERS = ("squared_error", "cross_entropy")
ROBUST = ("squared_error", "huber", "absolute_error")
WORDS = {**{loss: loss.replace("_", " ") for loss in ROBUST}, "cross_entropy": "cross-entropy"}
GATE_RATIO, GATE_STEPS, GATE_OUTLIERS, SHARE = 1e-6, 0.05, 3.0, 0.2
Share = Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)]


class Logits(Section):
    """Gradients by the logit, and how long one unit takes from a wrong one."""

    logits: AxisOf[Finite] = Field(
        default=tuple(float(a) for a in range(-20, 21)), description="where gradients are taken, for the label 1"
    )
    starts: AxisOf[Rate] = Field(
        default=(1.0, 2.0, 3.0, 4.0, 5.0), description="wrong logits from which a unit descends, for the label 0"
    )
    learning_rate: Rate = Field(default=0.02, description="rate of its descent")
    arrived: Rate = Field(default=0.2, description="the error at which it has learned")
    steps: Count = Field(default=20_000, description="most steps")


class Networks(Section):
    """Digits, learned from a wrong start."""

    gains: AxisOf[Rate] = Field(default=(1.0, 30.0), description="factors on the first read-out: 1 unsure, 30 wrong")
    learning_rates: AxisOf[Rate] = Field(default=(0.03, 0.1, 0.3, 1.0, 3.0), description="rates of gradient descent")
    seeds: Annotated[Seeds, Field(min_length=2)] = Field(default=tuple(range(6)), description="one network a seed")
    width: Count = Field(default=32, description="units of the hidden layer")
    steps: Count = Field(default=200, description="steps, a multiple of record_every")
    record_every: Count = Field(default=10, description="steps between measurements on the held-out rows")
    batch: Count = Field(default=64, description="examples a step")


class Lines(Section):
    """Lines through data with outliers."""

    shares: AxisOf[Share] = Field(default=(0.0, 0.05, 0.1, 0.2, 0.3), description="shares of rows that are outliers")
    size: Rate = Field(default=20.0, description="how far above the line outliers lie, in units of the noise")
    noise: Rate = Field(default=0.3, description="standard deviation of the other rows")
    rows: Count = Field(default=200, description="rows of a data set")
    seeds: Seeds = Field(default=tuple(range(32)), description="one data set a seed")
    steps: Count = Field(default=1000, description="steps of the descent, whose rate falls to 0")


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float32", "float64"] = Field(
        default="float64", description="type of all floating numbers; 1 - s has no digits in float32 above logit 16"
    )
    logits: Logits = Field(default=Logits(), description="one unit")
    networks: Networks = Field(default=Networks(), description="a wrong start")
    lines: Lines = Field(default=Lines(), description="outliers")

    @model_validator(mode="after")
    def _records_fit(self) -> Self:
        if self.networks.steps % self.networks.record_every:
            expected = f"a multiple of networks.record_every = {self.networks.record_every}"
            raise refuse("networks.steps", self.networks.steps, expected)
        return self


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Take gradients by the logit, descend from wrong logits, train from wrong starts, fit lines among outliers."""
    unit, networks, lines = config.logits, config.networks, config.lines
    known, held_out = digits(config)
    loss = study.axis("loss", CLASSIFIERS)
    return study.join(
        gradients=run(by_logit, [loss, study.axis("logit", unit.logits)], name="gradients", dtype=config.precision,
                      dimensions=dict.fromkeys(("softmax", "softmax_expected"), ("class",))),
        unit=run(
            partial(descend, **unit.model_dump(include={"learning_rate", "arrived", "steps"})),
            [loss, study.axis("start", unit.starts)], name="unit", dtype=config.precision,
        ),
        networks=run(
            partial(train, **networks.model_dump(include={"width", "steps", "record_every", "batch"})),
            [loss, study.axis("gain", networks.gains), study.axis("learning_rate", networks.learning_rates),
             study.axis("seed", networks.seeds)],
            name="networks", shared={"known": known, "held_out": held_out}, dtype=config.precision,
            dimensions={"accuracy": ("record",)},
        ),
        lines=run(
            partial(fit, **lines.model_dump(include={"size", "noise", "rows", "steps"})),
            [study.axis("loss", ROBUST), study.axis("share", lines.shares), study.axis("seed", lines.seeds)],
            name="lines", dtype=config.precision,
        ),
    )  # fmt: skip


def digits(config: Config) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return digits and labels, to train on and held out, standardised by the former."""
    dataset = data.load("digits", constant="keep", collinear="keep")
    dataset, _ = data.standardise(data.split(dataset, validation=0.2, test=0.0), constant="keep")
    if config.networks.batch > len(dataset.train):
        found, most = config.networks.batch, len(dataset.train)
        raise ConfigError(f"networks.batch: got {found}; expected at most the {most} training rows")
    return data.rows(dataset, "train", config.precision), data.rows(dataset, "validation", config.precision)


def of_logit(loss: str, logit: Array, label: Array) -> Array:
    """Return the loss of a unit with a sigmoid: half the squared error of its output, or cross-entropy."""
    if loss == "cross_entropy":
        return nn.losses.binary_cross_entropy(logit, label)
    return nn.squared_error(nn.activations.sigmoid(logit), label) / 2


def of_logits(loss: str, logits: Array, label: Array) -> Array:
    """Return the loss of a softmax: half the squared error of its probabilities, or cross-entropy."""
    if loss == "cross_entropy":
        return nn.softmax_cross_entropy(logits, label)
    wanted = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
    return jnp.sum(nn.squared_error(jax.nn.softmax(logits), wanted), axis=-1) / 2


def by_logit(key: Key, *, loss: str, logit: Array) -> dict[str, Array]:
    """Take loss and gradient at a logit of the right class: of a sigmoid, and of a softmax whose others are 0."""
    del key
    value, slope = jax.value_and_grad(partial(of_logit, loss))(logit, jnp.ones_like(logit))
    logits = jnp.zeros(CLASSES, logit.dtype).at[0].set(logit)
    gradient = jax.grad(partial(of_logits, loss))(logits, jnp.int32(0))
    p = jax.nn.softmax(logits)
    error = p - jnp.zeros_like(p).at[0].set(1)
    expected = error if loss == "cross_entropy" else p * (error - p @ error)
    return {"value": value, "gradient": slope, "softmax": gradient, "softmax_expected": expected}


def descend(key: Key, *, loss: str, start: Array, learning_rate: float, arrived: float, steps: int) -> dict[str, Array]:
    """Count the steps of descent from a wrong logit until the output is near enough to the label 0."""
    del key
    slope = jax.grad(lambda a: of_logit(loss, a, jnp.zeros_like(a)))

    def going(state: tuple[Array, Array]) -> Array:
        return (nn.activations.sigmoid(state[0]) > arrived) & (state[1] < steps)

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return state[0] - learning_rate * slope(state[0]), state[1] + 1

    end, count = jax.lax.while_loop(going, step, (start, jnp.int32(0)))
    return {"steps": jnp.where(nn.activations.sigmoid(end) > arrived, jnp.int32(-1), count)}


def train(
    key: Key, known: tuple[Array, Array], held_out: tuple[Array, Array], *, loss: str, gain: Array,
    learning_rate: Array, width: int, steps: int, record_every: int, batch: int,
) -> dict[str, Array]:  # fmt: skip
    """Train a network whose first read-out is sure of random classes, the more so the greater the gain."""
    x, labels = held_out
    network = nn.stack(1, width, CLASSES, nn.ACTIVATIONS["tanh"], nn.INITIALISERS["glorot_normal"], dtype=x.dtype)

    def init(key: Key) -> Any:
        params = network.init(key, x.shape[1:])
        return {**params, "readout": jax.tree.map(lambda leaf: gain * leaf, params["readout"])}

    def look(objective: Any, params: Any, info: Any) -> Array:
        return jnp.mean(jnp.argmax(network.apply(params, x), axis=-1) == labels, dtype=x.dtype)

    def mean(params: Any, rows: tuple[Array, Array]) -> Array:
        return jnp.mean(of_logits(loss, network.apply(params, rows[0]), rows[1]))

    problem, solver = Problem(init, mean, data.minibatches(known, batch)), optim.descent("sgd", learning_rate)
    trace = make_run(problem, solver, steps=steps, record_every=record_every, probes={"accuracy": look})(key)
    return {"accuracy": trace.probes["accuracy"], "status": trace.status, "diverged_at": trace.diverged_at}


def fit(key: Key, *, loss: str, share: Array, size: float, noise: float, rows: int, steps: int) -> dict[str, Array]:
    """Fit a line to data of which a share lies far above it; the same rows are outliers at every larger share."""
    data_key, which = jax.random.split(key)
    x, y = data.synthetic.line(data_key, rows, **TRUE_LINE, noise=noise, dtype=share.dtype)
    outlying = jax.random.uniform(which, (rows,), share.dtype) < share
    y = y + jnp.where(outlying, size * noise, 0).astype(y.dtype)
    error: Any = partial(nn.losses.huber, delta=2 * noise) if loss == "huber" else nn.LOSSES[loss]

    def mean(params: Array, _: Any) -> Array:
        return jnp.mean(error(params[0] * x[:, 0] + params[1], y))

    solver = optim.descent("sgd", 0.3, schedule=optim.schedule("cosine", steps=steps))
    problem = Problem(lambda key: jnp.zeros(2, x.dtype), mean, data.full_batch(()))
    params = make_run(problem, solver, steps=steps, record_every=steps)(key).params
    return {"slope_error": params[0] - TRUE_LINE["slope"], "intercept_error": params[1] - TRUE_LINE["intercept"]}


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold gradients against their formulas, steps against the integral, and losses against each other."""
    found = study.part(results, "gradients")
    ratio = found.gradient.sel(loss="squared_error") / found.gradient.sel(loss="cross_entropy")
    wrong = float(np.abs(ratio / slope_of_sigmoid(found.logit) - 1).max())
    off, size = (
        np.linalg.norm(part.values, axis=-1) for part in (found.softmax - found.softmax_expected, found.softmax)
    )
    through, smallest = float((off / size).max()), float(ratio.min())
    return (
        Verdict(
            "squared error has s(1 - s) times the gradient of cross-entropy, at every logit", wrong <= GATE_RATIO,
            wrong, GATE_RATIO, f"largest relative difference; the ratio falls to {smallest:.2g}",
        ),
        Verdict(
            "through a softmax it is (diag(p) - p p^T)(p - y) in place of p - y", through <= GATE_RATIO, through,
            GATE_RATIO, f"largest relative difference over logits and both losses, {CLASSES} classes",
        ),
        _steps_verdict(config, study.part(results, "unit").steps),
        _networks_verdict(config, study.part(results, "networks")),
        _lines_verdict(config, study.part(results, "lines")),
    )  # fmt: skip


def slope_of_sigmoid(logit: Any) -> np.ndarray:
    """Return s (1 - s) in a form that keeps its digits."""
    away = np.exp(-np.abs(np.asarray(logit, np.float64)))
    slope: np.ndarray = away / (1 + away) ** 2
    return slope


def expected_steps(config: Config, loss: str, start: float) -> float:
    """Integrate the time of gradient flow from a wrong logit to the one at which the unit has learned."""
    end = float(np.log(config.logits.arrived / (1 - config.logits.arrived)))
    with jax.enable_x64(True):
        slope = jax.grad(lambda a: of_logit(loss, a, jnp.zeros_like(a)))
        time = calculus.quadrature.gauss_legendre(lambda a: 1 / slope(a), end, start, 64)
    return float(time) / config.logits.learning_rate


def _steps_verdict(config: Config, steps: "xarray.DataArray") -> Verdict:
    ratios = {
        (loss, start): float(steps.sel(loss=loss, start=start)) / expected_steps(config, loss, start)
        for loss in CLASSIFIERS for start in config.logits.starts if int(steps.sel(loss=loss, start=start)) >= 0
    }  # fmt: skip
    worst = max((abs(ratio - 1) for ratio in ratios.values()), default=np.inf)
    last = max(config.logits.starts)
    counts = {loss: int(steps.sel(loss=loss, start=last)) for loss in CLASSIFIERS}
    return Verdict(
        "steps from a wrong logit are the integral of 1 / |dL/da| over the rate", worst <= GATE_STEPS, worst,
        GATE_STEPS, f"{len(ratios)} of {steps.size} descents arrived; from logit {last:g} cross-entropy takes "
        f"{counts['cross_entropy']:,} steps, squared error {counts['squared_error']:,}",
    )  # fmt: skip


def best(networks: "xarray.Dataset", gain: float) -> "xarray.Dataset":
    """Return the runs from one start at the rate that is best for each loss; a run that diverged has a guess."""
    runs = networks.accuracy.where(networks.status == 0, 1 / CLASSES).sel(gain=gain)
    rate = runs.isel(record=-1).mean("seed").idxmax("learning_rate")
    chosen: xarray.Dataset = runs.sel(learning_rate=rate).to_dataset(name="accuracy").assign(rate=rate)
    return chosen


def _networks_verdict(config: Config, networks: "xarray.Dataset") -> Verdict:
    chosen = best(networks, max(config.networks.gains))
    last, rates = chosen.accuracy.isel(record=-1), chosen.rate
    gained = study.interval(last.sel(loss="cross_entropy") - last.sel(loss="squared_error"))
    low = float(gained.mean - gained.half)
    means = last.mean("seed")
    shown = ", ".join(
        f"{WORDS[loss]} {float(means.sel(loss=loss)):.3f} at rate {float(rates.sel(loss=loss)):g}"
        for loss in CLASSIFIERS
    )
    return Verdict(
        "from a start that is sure of wrong classes cross-entropy learns more", low > 0, low, 0.0,
        f"lower end of the 95 % interval of the accuracy gained over {last.sizes['seed']} seeds; means: {shown}",
    )  # fmt: skip


def distance(lines: "xarray.Dataset") -> "xarray.DataArray":
    """Return how far a fitted line is from the true one."""
    away: xarray.DataArray = np.hypot(lines.slope_error, lines.intercept_error)
    return away


def _lines_verdict(config: Config, lines: "xarray.Dataset") -> Verdict:
    share = float(lines.share.sel(share=SHARE, method="nearest"))
    middle = distance(lines).sel(share=share).median("seed")
    ratio = float(middle.sel(loss="squared_error") / middle.sel(loss="huber"))
    shown = ", ".join(f"{WORDS[loss]} {float(middle.sel(loss=loss)):.3f}" for loss in ROBUST)
    return Verdict(
        f"{share:.0%} of outliers bend the line of squares at least three times as far as that of Huber's loss",
        ratio >= GATE_OUTLIERS, ratio, GATE_OUTLIERS, f"median distance from the true line over {lines.sizes['seed']} "
        f"data sets: {shown}",
    )  # fmt: skip


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw loss and gradient by logit, steps, training, and lines."""
    return {
        "gradients": _draw_gradients(config, results),
        "training": _draw_training(config, study.part(results, "networks")),
        "outliers": _draw_outliers(config, study.part(results, "lines")),
    }


def _draw_gradients(config: Config, results: "xarray.Dataset") -> "Figure":
    found, steps = study.part(results, "gradients"), study.part(results, "unit").steps
    figure, panels_ = plots.figure(
        1, 3, width=11.0, height=3.8,
        caption="One unit that ought to say 1. Left: its loss by logit. Middle: how hard the loss pulls; squared error "
        "lets go where the unit is sure and wrong. Right: steps from a wrong logit; dashed: the integral.",
    )  # fmt: skip
    left, middle, right = panels_[0]
    for position, loss in enumerate(CLASSIFIERS):
        look: Any = {"label": WORDS[loss], "color": plots.colour(position)}
        one = found.sel(loss=loss).sortby("logit")
        left.plot(one.logit, one.value, **look)
        middle.plot(one.logit, np.abs(one.gradient), **look)
        taken = steps.sel(loss=loss)
        right.plot(taken.start, taken.where(taken >= 0), plots.marker(position), **look)
        starts = np.linspace(min(config.logits.starts), max(config.logits.starts), 30)
        predicted = [expected_steps(config, loss, float(start)) for start in starts]
        plots.theory(right, starts, predicted, label="theory" if position else "")
    left.set_ylim(-0.2, 6)
    plots.logarithmic(middle)
    plots.logarithmic(right)
    plots.finish(left, x="logit", y="loss")
    plots.finish(middle, x="logit", y="size of the gradient by the logit", legend="none")
    plots.finish(right, x="logit at the start", y="steps until the error is small")
    return figure


def _draw_training(config: Config, networks: "xarray.Dataset") -> "Figure":
    settings = config.networks
    steps = np.arange(settings.record_every, settings.steps + 1, settings.record_every)
    figure, axes = panels.grid(
        2 * len(settings.gains), 2, caption=f"Digits, {len(settings.seeds)} networks: held-out accuracy by step at "
        "each loss's best rate (left), and in the end by rate (right). The greater gain begins sure of wrong classes.",
    )  # fmt: skip
    for row, gain in enumerate(settings.gains):
        chosen = best(networks, gain)
        for position, loss in enumerate(CLASSIFIERS):
            accuracy, label = (
                chosen.accuracy.sel(loss=loss),
                f"{WORDS[loss]}, rate {float(chosen.rate.sel(loss=loss)):g}",
            )
            plots.band(axes[2 * row], steps, accuracy, over="seed", label=label, position=position)
            runs = networks.accuracy.where(networks.status == 0, 1 / CLASSES).sel(gain=gain, loss=loss).isel(record=-1)
            plots.band(axes[2 * row + 1], runs.learning_rate, runs, over="seed", position=position, markers=True)
        plots.logarithmic(axes[2 * row + 1], "x")
        plots.finish(axes[2 * row], x="step", y="accuracy", title=f"gain {gain:g}")
        plots.finish(axes[2 * row + 1], x="learning rate", y="", title=f"gain {gain:g}, after {settings.steps} steps")
    return figure


def _draw_outliers(config: Config, lines: "xarray.Dataset") -> "Figure":
    figure, drawn = plots.figure(
        caption=f"Distance of a fitted line from the true one by the share of outliers, {config.lines.size:g} standard "
        f"deviations above it: median and quartiles over {len(config.lines.seeds)} data sets.",
    )
    axes, away = drawn[0, 0], distance(lines)
    for position, loss in enumerate(ROBUST):
        plots.band(
            axes, lines.share, away.sel(loss=loss), over="seed", label=WORDS[loss], position=position, markers=True
        )
    plots.logarithmic(axes)
    plots.finish(axes, x="share of outliers", y="distance of slope and intercept")
    return figure


EXPERIMENT = Experiment("losses", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
