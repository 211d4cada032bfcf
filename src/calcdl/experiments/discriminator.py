r"""What does the best discriminator measure, and what slope does it hand to the generator?

Question. A generator never sees the data. All that it learns is the slope of its loss through the discriminator. What
is left of that slope once the discriminator is good, and does a critic with a bounded slope do better?

Mathematics. With D = s(a), a the logit, the two losses of the generator have the slopes

    ∂ log(1 - s(a)) / ∂a = -s(a),        ∂(-log s(a)) / ∂a = -(1 - s(a)),        a ratio of exp(-a):

where the discriminator is sure that a sample is generated (a << 0) the first, *saturating*, is dead. Of all D the value

    V(D) = E_p[log D] + E_q[log(1 - D)]    is largest for    D* = p / (p + q), a* = log p - log q,

and V(D*) = -log 4 + 2 JSD(p, q), the Jensen-Shannon divergence. For densities p, q without common support JSD = log 2
wherever they lie: it has no slope by the place of q. The cost of transport has one: W(p, q) = |θ| where q is p moved by
θ, and it is the largest E_p[f] - E_q[f] of all f whose slope is at most 1 (Kantorovich and Rubinstein). A critic f,
trained with the penalty λ mean (|f'| - 1)², hence gives a lower bound, (E_p[f] - E_q[f]) / max |f'| <= W. A straight f
of slope s gains s W - λ (|s| - 1)², most at s = 1 + W / 2λ, with a second top at s = W / 2λ - 1 as long as that is < 0.

Claim. Slopes by the logit are the closed forms to 1e-6, in float32 and float64. No trained D has a value above that of
D*, and the divergence that it reads is the integral's to 3e-3. Without common support it reads log 2 to 1e-3 at every
distance, and the saturating slope by θ falls below a hundredth; the critic never reads more than W, at least 80 % of
it, and hands on the slope 1 + W / 2λ to 10 %.

Command. python -m calcdl.experiments.discriminator configs/discriminator.toml

Reference: Goodfellow et al. 2014, arXiv:1406.2661, proposition 1 and theorem 1; Arjovsky and Bottou 2017, Towards
principled methods for training GANs, arXiv:1701.04862, theorems 2.1 and 2.4; Arjovsky et al. 2017, arXiv:1701.07875.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import data, nn, optim, study
from calcdl.calculus.quadrature import gauss_legendre
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, Count, ExperimentConfig, Rate, Section, Seeds, refuse
from calcdl.nn.adversarial import GAMES, PENALTIES, Game
from calcdl.nn.variational import log_normal
from calcdl.train import Problem, Trace, make_run
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

Function = Callable[[Array], Array]

GATE_SLOPE, GATE_DIVERGENCE, GATE_ABOVE, GATE_APART = 1e-6, 3e-3, 1e-5, 1e-3
GATE_SATURATED, GATE_TRANSPORT, GATE_CRITIC = 0.01, 0.8, 0.1
KINDS, DTYPES = ("discriminator", "critic"), ("float32", "float64")
REACH, NODES, LOG_HALF = 12.0, 256, math.log(0.5)
SHOWN = np.linspace(-3.0, 5.0, 161)
CLOSED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "saturating": lambda a: -1 / (1 + np.exp(-a)),
    "non_saturating": lambda a: -1 / (1 + np.exp(a)),
    "wasserstein": lambda a: -np.ones_like(a),
}


class Judge(Section):
    """The discriminator, or critic."""

    depth: Count = Field(default=2, description="hidden layers")
    width: Count = Field(default=32, description="units of each")
    learning_rate: Rate = Field(default=0.005, description="rate of Adam at first; it falls to 0 along a cosine")
    steps: Count = Field(default=2000, description="steps, a multiple of records")
    records: Count = Field(default=50, description="measurements, evenly over the steps")
    batch: Count = Field(default=128, description="rows of each density a step")
    penalty: Rate = Field(default=1.0, description="weight of the critic's (|slope| - 1)²")

    @model_validator(mode="after")
    def _records_fit(self) -> Self:
        if self.steps % self.records:
            raise refuse("records", self.records, f"a divisor of steps = {self.steps}")
        return self


class Config(ExperimentConfig):
    """What to measure."""

    precision: Literal["float64"] = Field(default="float64", description="of slopes and integrals; networks: float32")
    logits: AxisOf[Annotated[float, Field(ge=-80, le=80)]] = Field(
        default=tuple(float(a) for a in range(-20, 21, 2)), description="logits of a generated sample"
    )
    shifts: AxisOf[Annotated[float, Field(ge=-8, le=8)]] = Field(
        default=(0.0, 1.0, 2.0, 4.0), description="means of q = N(shift, 1/4), beside p = N(0, 1)"
    )
    distances: AxisOf[Annotated[float, Field(gt=1, allow_inf_nan=False)]] = Field(
        default=(2.0, 4.0, 8.0), description="by which q is p = U(-1/2, 1/2) moved"
    )
    seeds: Annotated[Seeds, Field(min_length=2)] = Field(default=(0, 1, 2, 3), description="one network a seed")
    judge: Judge = Field(default=Judge(), description="the discriminator, or critic")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Take slopes by the logit, and train discriminators and critics on densities that stay where they are."""
    seeds, narrow = study.axis("seed", config.seeds), {"dtype": "float32"}
    slopes = run(
        by_logit, [study.axis("logit", config.logits)], name="slopes", dtype=config.precision,
        dimensions={"slope": ("kind", "game")},
    )  # fmt: skip
    normals = run(
        partial(overlapping, sizes=config.judge), [study.axis("shift", config.shifts), seeds], name="normals",
        dimensions={"logit": ("x",)}, **narrow,
    )  # fmt: skip
    uniforms = run(
        partial(apart, sizes=config.judge),
        [study.axis("kind", KINDS), study.axis("distance", config.distances), seeds], name="uniforms",
        dimensions={"reading": ("record",), "steepest": ("record",), "slope": ("record", "loss")}, **narrow,
    )  # fmt: skip
    return study.join(
        slopes=slopes.assign_coords(kind=list(DTYPES), game=list(GAMES)), normals=normals.assign_coords(x=SHOWN),
        uniforms=uniforms,
    )  # fmt: skip


def by_logit(key: Key, *, logit: Array) -> dict[str, Array]:
    """Differentiate every generator's loss by the logit, in both types."""
    found = [[jax.grad(rules.generator)(logit.astype(kind)) for rules in GAMES.values()] for kind in DTYPES]
    return {"slope": jnp.stack([jnp.stack(row).astype(logit.dtype) for row in found])}


def log_densities(shift: Array) -> tuple[Function, Function]:
    """Return log p and log q of N(0, 1) and N(shift, 1/4)."""
    zero, half = jnp.zeros_like(shift), jnp.full_like(shift, LOG_HALF)
    return partial(log_normal, mean=zero, log_deviation=zero), partial(log_normal, mean=shift, log_deviation=half)


def train(
    key: Key, rules: Game, sample: Any, sizes: Judge, *, penalty: float = 0.0, look: Callable[[Function], Any]
) -> Trace:
    """Train a discriminator, a function of scalars, on fresh draws; `look` measures it on the way."""
    network = nn.stack(sizes.depth, sizes.width, 1, nn.ACTIVATIONS["softplus"], nn.INITIALISERS["he_normal"])

    def judge(params: Any, x: Array) -> Array:
        return network.apply(params, x[:, None])[:, 0]

    def loss(params: Any, given: Any) -> Array:
        real, fake, share = given
        total = rules.real(judge(params, real)).mean() + rules.fake(judge(params, fake)).mean()
        if penalty:
            total = total + penalty * PENALTIES["gradient_penalty"](partial(judge, params), real, fake, share)
        return total

    adam = optim.descent("adam", sizes.learning_rate, schedule=optim.schedule("cosine", steps=sizes.steps))
    task = Problem(lambda key: network.init(key, (1,)), loss, data.fresh(sample))
    probes = {"seen": lambda objective, params, info: look(lambda x: judge(params, x[None])[0])}
    return make_run(task, adam, steps=sizes.steps, record_every=sizes.steps // sizes.records, probes=probes)(key)


def overlapping(key: Key, *, shift: Array, sizes: Judge) -> dict[str, Array]:
    """Train a discriminator on two normal densities; return its value, and the divergence by integral."""
    rules, log_p, log_q = GAMES["non_saturating"], *log_densities(shift)

    def sample(key: Key, count: int) -> tuple[Array, Array, Array]:
        real, fake = jax.random.normal(key, (2, count, sizes.batch), shift.dtype)
        return real, shift + fake / 2, real

    def look(judge: Function) -> tuple[Array, Array]:
        def losses(x: Array) -> Array:
            return jnp.exp(log_p(x)) * rules.real(judge(x)) + jnp.exp(log_q(x)) * rules.fake(judge(x))

        lower, upper = jnp.asarray([-REACH, REACH], shift.dtype)
        return -gauss_legendre(losses, lower, upper, NODES), jax.vmap(judge)(jnp.asarray(SHOWN, shift.dtype))

    trace = train(key, rules, sample, sizes, look=look)
    value, logit = jax.tree.map(lambda leaf: leaf[-1], trace.probes["seen"])
    return {"value": value, "logit": logit, "divergence": jensen_shannon(shift.astype(float)),
            "status": trace.status, "diverged_at": trace.diverged_at}  # fmt: skip


def jensen_shannon(shift: Array) -> Array:
    """Integrate JSD = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2."""
    pair = log_densities(shift)

    def integrand(x: Array) -> Array:
        log_p, log_q = (one(x) for one in pair)
        log_m = jnp.logaddexp(log_p, log_q) + LOG_HALF
        return (jnp.exp(log_p) * (log_p - log_m) + jnp.exp(log_q) * (log_q - log_m)) / 2

    lower, upper = jnp.asarray([-REACH, REACH], shift.dtype)
    value: Array = gauss_legendre(integrand, lower, upper, NODES)
    return value


def apart(key: Key, *, kind: str, distance: Array, sizes: Judge) -> dict[str, Array]:
    """Train a discriminator or a critic on p and on p moved by θ; return what it reads, and its slopes by θ."""
    critic, dtype = kind == "critic", distance.dtype
    rules = GAMES["wasserstein" if critic else "non_saturating"]
    losses = ("wasserstein", "wasserstein") if critic else ("saturating", "non_saturating")

    def sample(key: Key, count: int) -> tuple[Array, Array, Array]:
        real, fake, share = jax.random.uniform(key, (3, count, sizes.batch), dtype)
        return real - 0.5, fake - 0.5 + distance, share

    def average(f: Function) -> Array:
        half = jnp.asarray(0.5, dtype)
        mean: Array = gauss_legendre(f, -half, half, 64)
        return mean

    grid = jnp.linspace(0.0, 1.0, 401, dtype=dtype) * (1 + distance) - 0.5

    def look(judge: Function) -> dict[str, Array]:
        by_place = [jax.grad(lambda place, own=GAMES[name].generator: average(lambda u: own(judge(place + u))))
                    for name in losses]  # fmt: skip
        steepest = jnp.abs(jax.vmap(jax.grad(judge))(grid)).max()
        total = average(lambda u: rules.real(judge(u)) + rules.fake(judge(distance + u)))
        reading = -total / steepest if critic else (math.log(4) - total) / 2
        return {"slope": jnp.stack([slope(distance) for slope in by_place]), "reading": reading, "steepest": steepest}

    trace = train(key, rules, sample, sizes, penalty=sizes.penalty if critic else 0.0, look=look)
    return {**trace.probes["seen"], "status": trace.status, "diverged_at": trace.diverged_at}


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold slopes and readings against closed forms and integrals."""
    uniforms = study.part(results, "uniforms")
    last = uniforms[["reading", "slope"]].where(uniforms.status == 0).isel(record=-1)
    found = (_slope_verdict(study.part(results, "slopes")), _value_verdict(study.part(results, "normals")))
    return (
        *found,
        *_judge_verdicts(last.sel(kind="discriminator")),
        *_critic_verdicts(config, last.sel(kind="critic")),
    )


def _slope_verdict(slopes: "xarray.Dataset") -> Verdict:
    exact = np.stack([closed(slopes.logit.values) for closed in CLOSED.values()], axis=-1)[:, None]
    error = np.abs(slopes.slope.values / exact - 1)
    lowest = slopes.slope.sel(logit=slopes.logit.min(), kind="float64")
    ratio = float(lowest.sel(game="non_saturating") / lowest.sel(game="saturating"))
    return Verdict(
        "slopes of the generators' losses by the logit are the closed forms", bool(error.max() <= GATE_SLOPE),
        float(error.max()), GATE_SLOPE, f"largest relative error of {error.size} slopes in {', '.join(DTYPES)}; at the "
        f"logit {float(slopes.logit.min()):g} the non-saturating one is {ratio:.4g} times the saturating one",
    )  # fmt: skip


def readings(normals: "xarray.Dataset") -> "xarray.DataArray":
    """Return the divergences that the discriminators read, less the integral."""
    short: xarray.DataArray = (normals.value + math.log(4)) / 2 - normals.divergence
    return short.where(normals.status == 0)


def _value_verdict(normals: "xarray.Dataset") -> Verdict:
    short = readings(normals).values
    holds = bool(short.max() <= GATE_ABOVE and short.min() >= -GATE_DIVERGENCE)
    return Verdict(
        "no discriminator's value exceeds -log 4 + 2 JSD, and all come near", holds, float(np.abs(short).max()),
        GATE_DIVERGENCE, f"divergence read less the integral's, in nats: from {short.min():.2g} to {short.max():.2g} "
        f"over {short.size} discriminators; integrals from {normals.divergence.values.min():.3g} to "
        f"{normals.divergence.values.max():.3g}",
    )  # fmt: skip


def _judge_verdicts(last: "xarray.Dataset") -> tuple[Verdict, Verdict]:
    off = np.abs(last.reading.values - math.log(2))
    dead, alive = (np.abs(last.slope.isel(loss=number).values) for number in (0, 1))
    return (
        Verdict("without common support a discriminator reads log 2 at every distance",
                bool(off.max() <= GATE_APART), float(off.max()), GATE_APART,
                f"largest difference in nats, over {off.size} discriminators"),
        Verdict("there the saturating generator learns nothing of the distance", bool(dead.max() <= GATE_SATURATED),
                float(dead.max()), GATE_SATURATED, f"largest slope by θ; of the non-saturating loss, through the same "
                f"discriminators, from {alive.min():.3g} to {alive.max():.3g}"),
    )  # fmt: skip


def _critic_verdicts(config: Config, last: "xarray.Dataset") -> tuple[Verdict, Verdict]:
    share = (last.reading / last.distance).values
    expected = 1 + last.distance / (2 * config.judge.penalty)
    error = np.abs(last.slope.isel(loss=0) / expected - 1).values
    told = ", ".join(f"{value:.3g}" for value in last.slope.isel(loss=0).median("seed").values)
    return (
        Verdict("the critic's reading bounds the cost of transport from below, closely",
                bool(share.min() >= GATE_TRANSPORT and share.max() <= 1 + GATE_ABOVE), float(share.min()),
                GATE_TRANSPORT, f"least share of the distance over {share.size} critics; largest {share.max():.4f}"),
        Verdict("the slope by θ that a critic hands on is 1 + W / 2λ", bool(error.max() <= GATE_CRITIC),
                float(error.max()), GATE_CRITIC, f"largest relative error; medians {told} at the distances "
                f"{', '.join(f'{value:g}' for value in last.distance.values)}"),
    )  # fmt: skip


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw slopes, and what is read."""
    slopes, normals, uniforms = (study.part(results, name) for name in ("slopes", "normals", "uniforms"))
    uniforms = uniforms.where(uniforms.status == 0)
    return {"slopes": _draw_slopes(config, slopes, uniforms), "readings": _draw_readings(normals, uniforms)}


def _draw_slopes(config: Config, slopes: "xarray.Dataset", uniforms: "xarray.Dataset") -> "Figure":
    middle = uniforms.isel(distance=uniforms.sizes["distance"] // 2)
    figure, ((left, right),) = plots.figure(
        1, 2, width=11.5, height=4.4, caption="Left: size of the generator's slope by the logit of its sample; dashed: "
        "closed forms. On the left of 0 the discriminator knows better. Right: size of the slope by the place θ of q, "
        f"at the distance {float(middle.distance):g}, while the discriminator trains and q waits.",
    )  # fmt: skip
    for number, name in enumerate(GAMES):
        values = np.abs(slopes.slope.sel(kind="float32", game=name).values)
        left.plot(slopes.logit, values, plots.marker(number), color=plots.colour(number), label=name.replace("_", "-"))
        plots.theory(
            left, slopes.logit, np.abs(CLOSED[name](slopes.logit.values)), label="closed form" if number == 2 else ""
        )
    steps = config.judge.steps // config.judge.records * (1 + np.arange(config.judge.records))
    lines = {"saturating": ("discriminator", 0), "non-saturating": ("discriminator", 1), "critic": ("critic", 0)}
    for number, (name, (kind, loss)) in enumerate(lines.items()):
        values = np.abs(middle.slope.sel(kind=kind).isel(loss=loss))
        plots.band(right, steps, values, over="seed", label=name, position=number)
    straight = 1 + float(middle.distance) / (2 * config.judge.penalty)
    plots.theory(right, steps[[0, -1]], np.full(2, straight), label="1 + W / 2λ")
    for panel in (left, right):
        plots.logarithmic(panel)
    plots.finish(left, x="logit a of a generated sample", y="|slope by a|")
    plots.finish(right, x="steps of the discriminator", y="|slope by θ|")
    return figure


def _draw_readings(normals: "xarray.Dataset", uniforms: "xarray.Dataset") -> "Figure":
    figure, ((left, middle, right),) = plots.figure(
        1, 3, width=13.0, height=4.2, caption="Left: logits of trained discriminators; dashed: log p - log q. "
        "Far from 0 little depends on them. Middle: the divergence they read, a point a seed; "
        "dashed: by integral. Right: q is p moved, without overlap: a discriminator reads log 2 wherever q is, a "
        "critic the distance.",
    )  # fmt: skip
    for number in range(normals.sizes["shift"]):
        one = normals.isel(shift=number)
        place = float(one["shift"])
        plots.band(left, one.x, one.logit, over="seed", label=f"q around {place:g}", position=number)
        log_p, log_q = -(one.x**2) / 2, -2 * (one.x - place) ** 2 - LOG_HALF
        likely = np.maximum(log_p, log_q).values > -6
        plots.theory(left, one.x[likely], (log_p - log_q)[likely], label="" if number else "log p - log q")
    read = (readings(normals) + normals.divergence).transpose("shift", "seed").values
    shifts = normals["shift"].values
    middle.plot(shifts, read, plots.marker(0), color=plots.colour(0), markersize=5)
    fine = np.linspace(shifts.min(), shifts.max(), 41)
    with jax.enable_x64(True):
        plots.theory(middle, fine, jax.jit(jax.vmap(jensen_shannon))(fine), label="JSD by integral")
    for number, kind in enumerate(KINDS):
        values = uniforms.reading.sel(kind=kind).isel(record=-1).transpose("distance", "seed").values
        right.plot(uniforms.distance, values, plots.marker(number), color=plots.colour(number), markersize=5)
        right.plot([], [], plots.marker(number), color=plots.colour(number), label=kind)
    ends = np.array([1.0, float(uniforms.distance.max())])
    plots.theory(right, ends, ends, label="log 2, and the distance")
    plots.theory(right, ends, np.full(2, math.log(2)), label="")
    left.set_ylim(-12, 12)
    plots.finish(left, x="x", y="logit")
    plots.finish(middle, x="mean of q", y="divergence read (nats)")
    plots.finish(right, x="distance of q from p", y="reading (nats, or units of x)")
    return figure


EXPERIMENT = Experiment("discriminator", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
