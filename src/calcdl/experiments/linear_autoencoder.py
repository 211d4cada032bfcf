r"""Is a variational autoencoder's bound right, and does descent reach the best, where both are known?

Question. KL from a normal distribution to the standard one has a closed form; so has, where encoder and decoder are
linear, the optimum of the evidence lower bound. Does descent by the reparameterised gradient, from random weights and
through random draws, end there?

Mathematics. KL(N(m, s²) || N(0, 1)) = (m² + s² - 1 - log s²) / 2 is the mean of log q - log p over q, by integral or by
draws. Decoder x = W z + b + noise N(0, σ²), code z ~ N(0, 1), encoder q(z|x) = N(V x + c, diag s²), all learned. The
posterior of z is normal with the covariance σ² (WᵀW + σ²)⁻¹, diagonal where the columns of W are orthogonal, so that
the bound can be tight there: its maximum is the log likelihood of probabilistic principal components. With the
eigenvalues λ of the covariance of d columns, k of them kept, it is, a row,

    log L = -(Σ_{i <= k} log λ_i + (d - k) log σ² + d log 2π + d) / 2,    σ² = mean of λ_i over i > k,

and W spans the first k eigenvectors. The reconstruction needs no draws here: E|x - W z - b|² is the square at the mean
code plus Σ s_j² |w_j|².

Claim. KL is its integral to 1e-6, and its mean over draws within 4 standard errors. The bound nowhere exceeds the
optimum, and misses it by at most 1e-3 of what the k components gain over none; σ² is the mean of the eigenvalues left
out, to 1 %, and the angle between the subspaces is at most 2 degrees.

Command. python -m calcdl.experiments.linear_autoencoder configs/linear_autoencoder.toml

Reference: Tipping and Bishop 1999, Probabilistic principal component analysis, equations 7 and 8.
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from calcdl import calculus, data, nn, optim, study
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, Finite, Rate, Section, Seeds, refuse
from calcdl.nn.variational import Coder, bound, kl_to_standard_normal, log_normal
from calcdl.train import Problem, make_run
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

GATE_KL, GATE_ERRORS = 1e-6, 4.0
GATE_GAP, GATE_ABOVE, GATE_NOISE, GATE_ANGLE = 1e-3, 1e-5, 0.01, 2.0


class Divergence(Section):
    """KL of a normal distribution from the standard one."""

    means: AxisOf[Finite] = Field(default=(-1.5, 0.0, 1.0, 2.0), description="means of q")
    deviations: AxisOf[Rate] = Field(default=(0.001, 0.1, 0.5, 1.0, 2.0), description="standard deviations of q")
    draws: Annotated[int, Field(ge=2, le=10**7)] = Field(default=100_000, description="draws of the mean")


class Linear(Section):
    """Linear networks on the digits."""

    latents: AxisOf[Annotated[int, Field(ge=1, le=32)]] = Field(default=(1, 2, 4, 7), description="numbers in a code")
    seeds: Annotated[Seeds, Field(min_length=2)] = Field(default=(0, 1, 2, 3), description="one network a seed")
    learning_rate: Rate = Field(default=0.05, description="rate of Adam at first; it falls to 0 along a cosine")
    steps: Count = Field(default=4000, description="steps, a multiple of record_every")
    record_every: Count = Field(default=50, description="steps between measurements of the bound")
    batch: Count = Field(default=128, description="examples a step")


class Config(ExperimentConfig):
    """What to measure."""

    divergence: Divergence = Field(default=Divergence(), description="KL")
    linear: Linear = Field(default=Linear(), description="linear autoencoders")

    @model_validator(mode="after")
    def _records_fit(self) -> Self:
        if self.linear.steps % self.linear.record_every:
            expected = f"a multiple of linear.record_every = {self.linear.record_every}"
            raise refuse("linear.steps", self.linear.steps, expected)
        return self


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Take KL three ways, fit linear autoencoders over the size of the code and seeds, and take eigenvalues."""
    x, centres, deviations = digits(config), config.divergence.means, config.divergence.deviations
    kl = run(
        partial(divergence, draws=config.divergence.draws),
        [study.axis("centre", centres), study.axis("deviation", deviations)], name="divergence", dtype=config.precision,
    )  # fmt: skip
    settings = config.linear.model_dump(include={"learning_rate", "steps", "record_every", "batch"})
    linear = run(
        partial(fit, size=max(config.linear.latents), **settings),
        [study.axis("latents", config.linear.latents), study.axis("seed", config.linear.seeds)], name="linear",
        shared={"x": x}, dtype=config.precision, dimensions={"weight": ("latent", "pixel"), "elbo": ("record",)},
    )  # fmt: skip
    eigenvalues, eigenvectors = np.linalg.eigh(np.cov(x.astype(np.float64), rowvar=False, bias=True))
    exact = [[integral(centre, deviation) for deviation in deviations] for centre in centres]
    return study.join(
        divergence=kl.assign(integral=(("centre", "deviation"), exact)),
        linear=linear.assign(eigenvalue=("pixel", eigenvalues[::-1].copy()),
                             eigenvector=(("component", "pixel"), eigenvectors.T[::-1].copy())),
    )  # fmt: skip


def digits(config: Config) -> np.ndarray:
    """Return all images, with pixels from 0 to 1."""
    x = data.load("digits", constant="keep", collinear="keep").features.astype(config.precision)
    if config.linear.batch > len(x):
        raise ConfigError(f"linear.batch: got {config.linear.batch}; expected at most the {len(x)} rows")
    return x


def divergence(key: Key, *, centre: Array, deviation: Array, draws: int) -> dict[str, Array]:
    """Take KL in closed form and as the mean of log q - log p over draws."""
    log_deviation, z = jnp.log(deviation), centre + deviation * jax.random.normal(key, (draws,), centre.dtype)
    log_ratio = log_normal(z, centre, log_deviation) - log_normal(z, 0.0, 0.0)
    error = jnp.std(log_ratio) / np.sqrt(draws).astype(centre.dtype)
    return {"closed": kl_to_standard_normal(centre, log_deviation), "average": jnp.mean(log_ratio), "error": error}


def integral(centre: float, deviation: float) -> float:
    """Integrate q (log q - log p)."""
    with jax.enable_x64(True):
        m, log_s = jnp.float64(centre), jnp.log(jnp.float64(deviation))

        def log_ratio(z: Array) -> Any:
            return log_normal(z, m, log_s) - log_normal(z, 0.0, 0.0)

        return float(calculus.quadrature.gauss_hermite(log_ratio, mean=centre, scale=deviation))


def linear_coder(size: int, used: Array, columns: int) -> Coder:
    """Make linear networks with Gaussian noise; numbers of the code where `used` is 0 stay out."""
    glorot = nn.INITIALISERS["glorot_normal"]
    encoder, decoder = nn.dense(size, glorot, dtype=used.dtype), nn.dense(columns, glorot, dtype=used.dtype)

    def init(key: Key) -> Any:
        keys = jax.random.split(key)
        return {"encoder": encoder.init(keys[0], (columns,)), "decoder": decoder.init(keys[1], (size,)),
                "log_deviation": jnp.zeros_like(used), "log_noise": jnp.zeros((), used.dtype)}  # fmt: skip

    def encode(params: Any, x: Array) -> Any:
        mean = used[None] * encoder.apply(params["encoder"], x)
        return mean, jnp.broadcast_to((used * params["log_deviation"])[None], mean.shape)

    return Coder(
        init,
        encode,
        decode=lambda params, z: decoder.apply(params["decoder"], used[None] * z),
        log_density=lambda params, mean, x: jnp.sum(log_normal(x, mean, params["log_noise"]), axis=-1),
    )


def exact_elbo(coder: Coder, params: Any, weight: Array, x: Array) -> Array:
    """Return the mean bound without draws: that at the mean codes, less Σ s² |w|² / 2σ²."""
    at_mean = -jnp.sum(bound(coder, params, x, jnp.zeros((len(x), len(weight)), x.dtype)), axis=0)
    spread = jnp.sum((jnp.exp(params["log_deviation"])[:, None] * weight) ** 2)
    return at_mean.mean() - spread * jnp.exp(-2 * params["log_noise"]) / 2


def fit(
    key: Key, x: Array, *, latents: Array, size: int, learning_rate: float, steps: int, record_every: int, batch: int
) -> dict[str, Array]:
    """Train linear networks by the reparameterised gradient, with a fresh draw for every example of every step."""
    used = (jnp.arange(size) < latents).astype(x.dtype)
    coder, rows = linear_coder(size, used, x.shape[1]), data.minibatches(x, batch)
    noise = data.fresh(lambda key, count: jax.random.normal(key, (count, batch, size), x.dtype))

    def loss(params: Any, given: Any) -> Array:
        return jnp.mean(jnp.sum(bound(coder, params, *given), axis=0))

    def weight(params: Any) -> Array:
        masked: Array = used[:, None] * params["decoder"]["weight"]
        return masked

    def look(objective: Any, params: Any, info: Any) -> Array:
        return exact_elbo(coder, params, weight(params), x)

    adam = optim.descent("adam", learning_rate, schedule=optim.schedule("cosine", steps=steps))
    problem = Problem(coder.init, loss, data.together(rows, noise))
    trace = make_run(problem, adam, steps=steps, record_every=record_every, probes={"elbo": look})(key)
    variance = jnp.exp(2 * trace.params["log_noise"])
    return {"elbo": trace.probes["elbo"], "weight": weight(trace.params), "variance": variance,
            "status": trace.status, "diverged_at": trace.diverged_at}  # fmt: skip


def log_likelihood(eigenvalues: np.ndarray, kept: int) -> float:
    """Return that of probabilistic principal components, a row, at its maximum."""
    d, left_out = len(eigenvalues), eigenvalues[kept:].mean()
    logs = np.log(eigenvalues[:kept]).sum() + (d - kept) * np.log(left_out)
    return float(-(logs + d * np.log(2 * np.pi) + d) / 2)


def angle(weight: np.ndarray, components: np.ndarray) -> float:
    """Return the largest angle in degrees between the spans of two sets of rows, the second orthonormal."""
    if not np.isfinite(weight).all():
        return float("nan")
    basis = np.linalg.qr(weight.T)[0]
    outside = basis - components.T @ (components @ basis)
    return float(np.degrees(np.arcsin(min(1.0, float(np.linalg.norm(outside, 2))))))


def gaps(results: "xarray.Dataset") -> "xarray.DataArray":
    """Return by how much the bound misses the optimum, as a share of what the components gain over none."""
    eigenvalues = results.eigenvalue.values
    best = np.array([log_likelihood(eigenvalues, int(kept)) for kept in results.latents])[:, None, None]
    elbo = results.elbo.where(results.status == 0)
    missing: xarray.DataArray = -(elbo - best) / (best - log_likelihood(eigenvalues, 0))
    return missing


def angles(results: "xarray.Dataset") -> "xarray.DataArray":
    """Return the angle between the decoder's subspace and that of the components, for every run."""
    components, found = results.eigenvector.values, np.full(results.status.shape, np.nan)
    for (place, seed), state in np.ndenumerate(results.status.values):
        kept = int(results.latents[place])
        if state == 0:
            found[place, seed] = angle(results.weight.values[place, seed, :kept], components[:kept])
    turned: xarray.DataArray = results.status.copy(data=found)
    return turned


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold KL against its integral, and bound, noise and subspace against the closed form."""
    kl, linear = study.part(results, "divergence"), study.part(results, "linear")
    return (*_divergence_verdicts(kl), *_bound_verdicts(linear), *_decoder_verdicts(linear))


def _divergence_verdicts(kl: "xarray.Dataset") -> tuple[Verdict, ...]:
    size = np.maximum(1, kl.integral)
    wrong = float((np.abs(kl.closed - kl.integral) / size).values.max())
    # Where q = p every log ratio is 0, and only rounding is left.
    away = float((np.abs(kl.average - kl.closed) / (kl.error + GATE_KL * size)).values.max())
    return (
        Verdict("KL in closed form is its integral", wrong <= GATE_KL, wrong, GATE_KL,
                f"largest difference, relative where KL is above 1, over {kl.closed.size} normal distributions"),
        Verdict("KL in closed form is the mean of log q - log p over draws", away <= GATE_ERRORS, away, GATE_ERRORS,
                f"largest difference in standard errors over {kl.closed.size} normal distributions"),
    )  # fmt: skip


def _bound_verdicts(linear: "xarray.Dataset") -> tuple[Verdict, ...]:
    missing, last = gaps(linear), int(linear.latents.max())
    worst, above = float(missing.isel(record=-1).values.max()), float(-missing.values.min())
    found = float(linear.elbo.sel(latents=last).isel(record=-1).mean(skipna=False))
    return (
        Verdict("the bound of a linear autoencoder nowhere exceeds the likelihood of principal components",
                above <= GATE_ABOVE, above, GATE_ABOVE, "largest excess, of what components gain over none; "
                f"{missing.size:,} measurements in {linear.status.size} runs"),
        Verdict("descent by the reparameterised gradient reaches it", worst <= GATE_GAP, worst, GATE_GAP,
                f"largest gap in {linear.status.size} runs, of what components gain over none; with {last} of them "
                f"{found:.3f} nats a row of {log_likelihood(linear.eigenvalue.values, last):.3f}"),
    )  # fmt: skip


def _decoder_verdicts(linear: "xarray.Dataset") -> tuple[Verdict, ...]:
    turned, runs = angles(linear).values, linear.status.size
    left_out = np.array([linear.eigenvalue.values[int(kept) :].mean() for kept in linear.latents])[:, None]
    noise = float(np.abs(linear.variance.where(linear.status == 0).values / left_out - 1).max())
    return (
        Verdict("the variance of its noise is the mean of the eigenvalues left out", noise <= GATE_NOISE, noise,
                GATE_NOISE, f"largest relative difference over {runs} runs"),
        Verdict("its decoder spans the principal components", bool(turned.max() <= GATE_ANGLE), float(turned.max()),
                GATE_ANGLE, f"largest angle in degrees over {runs} runs; median {np.median(turned):.2f}"),
    )  # fmt: skip


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the way to the optimum."""
    figure, ((left, right),) = plots.figure(
        1, 2, width=11.0, height=4.4,
        caption="A linear autoencoder on its way to the principal components. Left: its bound by step; dashed: the "
        "optimum, from eigenvalues. Right: what is missing, of what the components gain over none; median and "
        f"quartiles over {len(config.linear.seeds)} networks.",
    )  # fmt: skip
    results = study.part(results, "linear")
    steps = config.linear.record_every * np.arange(1, config.linear.steps // config.linear.record_every + 1)
    missing = gaps(results)
    for position, kept in enumerate(config.linear.latents):
        elbo = results.elbo.where(results.status == 0).sel(latents=kept)
        name = f"{kept} number{'s' if kept > 1 else ''}"
        plots.band(left, steps, elbo, over="seed", label=name, position=position)
        best = log_likelihood(results.eigenvalue.values, kept)
        plots.theory(left, steps[[0, -1]], [best, best], label="" if position else "principal components")
        plots.band(right, steps, np.abs(missing.sel(latents=kept)), over="seed", label=name, position=position)
    left.set_ylim(log_likelihood(results.eigenvalue.values, 0), left.get_ylim()[1])
    plots.threshold(right, GATE_GAP, "gate")
    plots.logarithmic(right)
    plots.finish(left, x="step", y="bound (nats an image)", legend="none")
    plots.finish(right, x="step", y="share missing", legend="right")
    return {"bound": figure}


EXPERIMENT = Experiment("linear_autoencoder", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
