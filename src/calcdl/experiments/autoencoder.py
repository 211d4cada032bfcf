r"""How does one differentiate through a random draw, and what does a variational autoencoder gain by it?

Question. An encoder says where the code z of an image may lie, a decoder what image a code stands for. How does the
gradient pass the draw between them, what does the code cost, and what is it worth?

Mathematics. For any q the log likelihood of x is at least the evidence lower bound

    ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)) = -(distortion + rate),

and KL is in closed form for q = N(m, s²), p = N(0, 1): Σ (m² + s² - 1 - log s²) / 2. Its gradient has two estimators,

    z = m + s e, e ~ N(0, 1):   ∇ E_q[f] = E[∇ f(m + s e)]            (reparameterised)
                                ∇ E_q[f] = E_q[f(z) ∇ log q(z)]        (score function),

with one mean; the second knows the size of f alone, not its slope. Less a baseline, (f - b) ∇ log q has that mean too.
A pixel is a count of 16, binomial in the sigmoid of the decoder's output. Its cross-entropy is a 16th of -log p, less a
constant: training by cross-entropy and KL, as is common, is β = 16 here. Of networks that minimise distortion + β rate
none can be improved by another's, so that the chord between two neighbours has a slope -dD/dR between their two β.

Claim. Both estimators have one mean, within 4 standard errors, and the score function at least 10 times the variance,
even with a baseline; chords slope between their β; held-out digits are likelier than by the histograms of their pixels.
(`linear_autoencoder` holds KL, and what training reaches, against closed forms.)

Command. python -m calcdl.experiments.autoencoder configs/autoencoder.toml
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from pydantic import Field, model_validator

from calcdl import data, nn, optim, study
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, OneOf, Rate, Section, Seeds, refuse
from calcdl.nn.variational import ESTIMATORS, Coder, bound, kl_to_standard_normal, log_binomial, log_normal, surrogate
from calcdl.train import Problem, make_run
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

LEVELS = 16  # a pixel is a count from 0 to 16
STAGES = ("before training", "after training")
CODES = tuple(float(value) for value in range(-3, 4))
PICTURES, SAMPLES, DIRECTIONS, PILOT = 10, 20, 8, 64
GATE_ERRORS, GATE_RATIO = 4.0, 10.0
TwoSeeds = Annotated[Seeds, Field(min_length=2)]


class Network(Section):
    """The autoencoder of digits."""

    betas: Annotated[AxisOf[Rate], Field(min_length=2)] = Field(
        default=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0), description="weights of the rate, rising"
    )
    seeds: TwoSeeds = Field(default=(0, 1, 2, 3), description="one network a seed")
    latents: Count = Field(default=8, description="numbers in a code")
    activation: Annotated[str, OneOf(nn.ACTIVATIONS)] = Field(default="gelu", description="activation")
    depth: Count = Field(default=1, description="hidden layers of the encoder, and of the decoder")
    width: Count = Field(default=64, description="units of each")
    learning_rate: Rate = Field(default=0.003, description="rate of Adam at first; it falls to 0 along a cosine")
    steps: Count = Field(default=3000, description="steps")
    batch: Count = Field(default=64, description="examples a step")
    draws: Count = Field(default=32, description="codes an image when the bound is measured")


class Gradients(Section):
    """The two estimators, at one batch of one network."""

    seeds: TwoSeeds = Field(default=(0, 1, 2, 3), description="one network and one batch a seed")
    steps: Count = Field(default=500, description="steps of training between the two stages")
    rows: Count = Field(default=16, description="examples in the batch")
    blocks: Annotated[int, Field(ge=2)] = Field(default=100, description="blocks of draws")
    block: Count = Field(default=100, description="draws a block")


class Config(ExperimentConfig):
    """What to measure."""

    network: Network = Field(default=Network(), description="the autoencoder of digits")
    gradients: Gradients = Field(default=Gradients(), description="estimators of the gradient")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for place, (low, high) in enumerate(zip(self.network.betas, self.network.betas[1:], strict=False)):
            if high <= low:
                raise refuse(f"network.betas[{place + 1}]", high, f"more than betas[{place}] = {low:g}")
        return self


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Train autoencoders over beta and seeds, and draw the estimators of the gradient."""
    known, held_out = digits(config)
    shapes = {"train": ("part",), "held_out": ("part",), "by_latent": ("latent",), "pictures": ("picture", "pixel"),
              "samples": ("sample", "pixel"), "traversal": ("latent", "step", "pixel")}  # fmt: skip
    spread = ("stage", "estimator")
    networks = run(
        partial(train, sizes=config.network),
        [study.axis("beta", config.network.betas), study.axis("seed", config.network.seeds)], name="networks",
        dtype=config.precision, shared={"known": known, "held_out": held_out}, dimensions=shapes,
    )  # fmt: skip
    gradients = run(
        partial(compare, sizes=config.network, settings=config.gradients),
        [study.axis("seed", config.gradients.seeds)], name="gradients", shared={"known": known}, dtype=config.precision,
        dimensions={"variance": spread, "length": spread, "means": (*spread, "block", "direction")},
    )  # fmt: skip
    return study.join(
        networks=networks.assign_coords(part=["distortion", "rate"]).assign(
            digits=(("picture", "pixel"), held_out[:PICTURES]), alone=independent(known, held_out)
        ),
        gradients=gradients.assign_coords(stage=list(STAGES), estimator=list(ESTIMATORS)),
    )


def digits(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return images to train on and held-out ones, as shares of 16."""
    dataset = data.split(data.load("digits", constant="keep", collinear="keep"), validation=0.2, test=0.0)
    for path, found in (("network.batch", config.network.batch), ("gradients.rows", config.gradients.rows)):
        if found > len(dataset.train):
            raise ConfigError(f"{path}: got {found}; expected at most the {len(dataset.train)} training rows")
    x = dataset.features.astype(config.precision)
    return x[dataset.train], x[dataset.validation]


def of_digits(sizes: Network, x: Array) -> Coder:
    """Make the autoencoder of binomial pixels, whose decoder begins near the mean image."""
    make = partial(nn.stack, sizes.depth, sizes.width, activation=nn.ACTIVATIONS[sizes.activation],
                   initialiser=nn.INITIALISERS["glorot_normal"], dtype=x.dtype)  # fmt: skip
    encoder, decoder = make(outputs=2 * sizes.latents), make(outputs=x.shape[1])
    share = jnp.clip(x.mean(axis=0), 1e-3, 1 - 1e-3)

    def init(key: Key) -> Any:
        keys = jax.random.split(key)
        out = decoder.init(keys[1], (sizes.latents,))
        readout = {**out["readout"], "bias": jnp.log(share / (1 - share))}
        return {"encoder": encoder.init(keys[0], x.shape[1:]), "decoder": {**out, "readout": readout}}

    return Coder(
        init,
        encode=lambda params, x: jnp.split(encoder.apply(params["encoder"], x), 2, axis=-1),
        decode=lambda params, z: decoder.apply(params["decoder"], z),
        log_density=lambda params, logits, x: jnp.sum(log_binomial(logits, x, LEVELS), axis=-1),
    )


def problem(coder: Coder, x: Array, beta: Any, batch: int, latents: int) -> Problem:
    """Minimise distortion + beta rate, with a fresh draw e for every example of every step."""
    rows = data.minibatches(x, batch)
    noise = data.fresh(lambda key, count: jax.random.normal(key, (count, batch, latents), x.dtype))

    def loss(params: Any, given: Any) -> Array:
        distortion, rate = bound(coder, params, *given)
        return jnp.mean(distortion + beta * rate)

    return Problem(coder.init, loss, data.together(rows, noise))


def trained(key: Key, task: Problem, learning_rate: float, steps: int) -> Any:
    """Train by Adam with a rate that falls to 0."""
    adam = optim.descent("adam", learning_rate, schedule=optim.schedule("cosine", steps=steps))
    return make_run(task, adam, steps=steps, record_every=steps)(key)


def train(key: Key, known: Array, held_out: Array, *, beta: Array, sizes: Network) -> dict[str, Array]:
    """Train an autoencoder, measure its bounds, and let it draw."""
    coder, images = of_digits(sizes, known), jnp.concatenate([known, held_out])
    run_key, noise_key, code_key = jax.random.split(key, 3)
    trace = trained(run_key, problem(coder, known, beta, sizes.batch, sizes.latents), sizes.learning_rate, sizes.steps)

    def normal(key: Key, rows: int) -> Array:
        return jax.random.normal(key, (rows, sizes.latents), known.dtype)

    def terms(key: Key) -> Array:
        by_row = bound(coder, trace.params, images, normal(key, len(images)))
        return jnp.stack([part.mean(axis=1) for part in jnp.split(by_row, [len(known)], axis=1)])

    # One call for all images: every further copy of the network is compiled again.
    of_known, of_held_out = jax.lax.map(terms, jax.random.split(noise_key, sizes.draws)).mean(axis=0)
    mean, log_deviation = coder.encode(trace.params, held_out)
    rates = kl_to_standard_normal(mean, log_deviation).mean(axis=0)
    order, steps = jnp.argsort(-rates), jnp.asarray(CODES, known.dtype)
    along = steps[None, :, None] * jnp.eye(sizes.latents, dtype=known.dtype)[order, None]
    codes = jnp.concatenate([mean[:PICTURES], normal(code_key, SAMPLES), along.reshape(-1, sizes.latents)])
    drawn = jax.nn.sigmoid(coder.decode(trace.params, codes))
    pictures, samples, rest = jnp.split(drawn, (PICTURES, PICTURES + SAMPLES))
    return {"train": of_known, "held_out": of_held_out, "by_latent": rates[order], "pictures": pictures,
            "samples": samples, "traversal": rest.reshape(*along.shape[:2], -1), "status": trace.status,
            "diverged_at": trace.diverged_at}  # fmt: skip


def compare(key: Key, known: Array, *, sizes: Network, settings: Gradients) -> dict[str, Array]:
    """Draw every estimator of the gradient by the encoder, at one batch, before and after training."""
    coder, keys = of_digits(sizes, known), jax.random.split(key, 6)
    start = coder.init(keys[0])
    task = problem(coder, known, 1.0, sizes.batch, sizes.latents)._replace(init=lambda key: start)
    trace = trained(keys[1], task, sizes.learning_rate, settings.steps)
    x = known[jax.random.choice(keys[2], len(known), (settings.rows,), replace=False)]
    directions = jax.random.normal(keys[3], (ravel_pytree(start["encoder"])[0].size, DIRECTIONS), x.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=0, keepdims=True)

    def noise(key: Key, count: int) -> Array:
        return jax.random.normal(key, (count, settings.rows, sizes.latents), x.dtype)

    def at(params: Any) -> dict[str, Array]:
        baseline = jax.vmap(lambda e: -bound(coder, params, x, e)[0])(noise(keys[4], PILOT)).mean(axis=0)

        def draw(estimator: str, e: Array) -> Array:
            by = jax.grad(lambda one: surrogate(estimator, coder, {**params, "encoder": one}, x, e, baseline))
            gradient: Array = ravel_pytree(by(params["encoder"]))[0]
            return gradient

        def block(key: Key) -> tuple[Array, Array]:
            drawn = noise(key, settings.block)
            gradients = jnp.stack([jax.vmap(partial(draw, one))(drawn) for one in ESTIMATORS])
            return gradients.mean(axis=1), jnp.sum(gradients**2, axis=-1).mean(axis=1)

        means, squares = jax.lax.map(block, jax.random.split(keys[5], settings.blocks))
        square = jnp.sum(means.mean(axis=0) ** 2, axis=-1)
        return {"variance": squares.mean(axis=0) - square, "length": jnp.sqrt(square),
                "means": jnp.swapaxes(means, 0, 1) @ directions}  # fmt: skip

    found: dict[str, Array] = jax.lax.map(at, jax.tree.map(lambda *leaves: jnp.stack(leaves), start, trace.params))
    return found | {"status": trace.status, "diverged_at": trace.diverged_at}


def independent(known: np.ndarray, held_out: np.ndarray) -> float:
    """Return the mean log likelihood of held-out images by the histogram of each pixel, every level seen once more."""
    levels = np.arange(LEVELS + 1)[:, None, None]
    counts = (np.rint(LEVELS * known) == levels).sum(axis=1) + 1
    chosen = np.take_along_axis(counts, np.rint(LEVELS * held_out).astype(int), axis=0)
    return float(np.log(chosen / (len(known) + LEVELS + 1)).sum(axis=1).mean())


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold the estimators against each other, and the networks against theory and data."""
    networks = study.part(results, "networks")
    found = _gradient_verdicts(study.part(results, "gradients"))
    return (*found, _chord_verdict(networks), _likelihood_verdict(networks))


def apart(found: "xarray.Dataset") -> "xarray.DataArray":
    """Return the means of the other estimators less the reparameterised one's, in standard errors."""
    means = found.means.where(found.status == 0)
    paired = (means - means.sel(estimator=ESTIMATORS[0])).sel(estimator=list(ESTIMATORS[1:]))
    error = paired.std("block", ddof=1, skipna=False) / found.sizes["block"] ** 0.5
    standard: xarray.DataArray = paired.mean("block", skipna=False) / error
    return standard


def _gradient_verdicts(found: "xarray.Dataset") -> tuple[Verdict, ...]:
    variance, away = found.variance.where(found.status == 0), np.abs(apart(found).values)
    ratio = (variance / variance.sel(estimator=ESTIMATORS[0])).sel(estimator=list(ESTIMATORS[1:]))
    worst, least, middle = float(away.max()), float(ratio.values.min()), ratio.median("seed")
    told = "; ".join(
        f"{stage} {first:,.0f} times, with a baseline {second:.1f} times"
        for stage, (first, second) in zip(STAGES, middle.transpose("stage", "estimator").values, strict=True)
    )
    return (
        Verdict("the score function's gradient and the reparameterised one have one mean", worst <= GATE_ERRORS, worst,
                GATE_ERRORS, f"largest difference in standard errors, of {away.size} (stages, estimators, seeds, "
                f"directions) over {found.sizes['block']} blocks of draws"),
        Verdict("the score function's gradient has at least 10 times the variance, even with a baseline",
                least >= GATE_RATIO, least, GATE_RATIO, f"least over {ratio.sizes['seed']} seeds; medians {told}"),
    )  # fmt: skip


def chords(networks: "xarray.Dataset") -> np.ndarray:
    """Return -dD/dR between neighbouring β, from the means over seeds on training images."""
    terms = networks.train.where(networks.status == 0).mean("seed", skipna=False)
    distortion, rate = (terms.sel(part=part).values for part in ("distortion", "rate"))
    slopes: np.ndarray = np.diff(distortion) / -np.diff(rate)
    return slopes


def _chord_verdict(networks: "xarray.Dataset") -> Verdict:
    betas, slopes = networks.beta.values, chords(networks)
    outside = np.where(slopes > 0, np.maximum(betas[:-1] / slopes, slopes / betas[1:]), np.inf)
    told = ", ".join(f"{slope:.3g} in {a:g}..{b:g}" for slope, a, b in zip(slopes, betas, betas[1:], strict=False))
    return Verdict(
        "chords of the curve of rate and distortion have slopes between their two β", bool((outside <= 1).all()),
        float(outside.max()), 1.0, f"largest ratio of lower β to slope, or of slope to upper β; slopes {told}",
    )  # fmt: skip


def _likelihood_verdict(networks: "xarray.Dataset") -> Verdict:
    bounds = -networks[["train", "held_out"]].where(networks.status == 0).isel(beta=0).sum("part", skipna=False)
    count, alone = bounds.sizes["seed"], float(networks.alone)
    mean, half = (float(part) for part in study.interval(bounds.held_out))
    return Verdict(
        "held-out digits are likelier by the autoencoder than by the histograms of their pixels", mean - half > alone,
        mean - half, alone, f"lower end of the 95 % interval of the ELBO at β {float(bounds.beta):g}, {mean:.1f} ± "
        f"{half:.1f} nats an image over {count} seeds; on training images {float(bounds.train.mean()):.1f}",
    )  # fmt: skip


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw digits and samples, rate and distortion, and the estimators."""
    networks = study.part(results, "networks")
    return {"samples": _draw_samples(networks), "rate_distortion": _draw_rates(networks),
            "gradients": _draw_gradients(study.part(results, "gradients"))}  # fmt: skip


def _tiles(axes: Any, images: np.ndarray, names: list[str]) -> None:
    """Draw images [row, column, 64], a pixel apart."""
    rows, columns = images.shape[:2]
    canvas = np.full((rows, 9, columns, 9), np.nan)
    canvas[:, :8, :, :8] = images.reshape(rows, columns, 8, 8).transpose(0, 2, 1, 3)
    axes.imshow(canvas.reshape(9 * rows, -1)[:-1, :-1], cmap="gray_r", vmin=0, vmax=1)
    axes.set_yticks(3.5 + 9 * np.arange(rows), names)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)


def _draw_samples(networks: "xarray.Dataset") -> "Figure":
    one, count = networks.isel(seed=0), networks.sizes["beta"]
    betas = networks.beta.values[sorted({0, count // 2, count - 1})]
    decoded = [one.pictures.sel(beta=beta).values for beta in betas]
    samples = [part for beta in betas for part in np.split(one.samples.sel(beta=beta).values, SAMPLES // PICTURES)]
    names = [*(f"decoded, β {beta:g}" for beta in betas), *(n for b in betas for n in (f"samples, β {b:g}", ""))]
    middle = one.sel(beta=betas[len(betas) // 2])
    figure, ((left, right),) = plots.figure(
        1, 2, width=11.5, height=5.6, caption="Left: held-out digits, what the decoder makes of their codes, and of "
        f"codes drawn at random. Right: at β {float(middle.beta):g}, each number of the code from -3 to 3, the others "
        "being 0, with the nats that it tells of a held-out digit: one that tells nothing does nothing.",
    )  # fmt: skip
    _tiles(left, np.stack([networks.digits.values, *decoded, *samples]), ["held-out digits", *names])
    _tiles(right, middle.traversal.values, [f"{float(rate):.2f} nats" for rate in middle.by_latent])
    right.set_xticks(3.5 + 9 * np.arange(len(CODES)), [f"{value:g}" for value in CODES])
    plots.finish(right, x="number in the code", y="")
    return figure


def _draw_rates(networks: "xarray.Dataset") -> "Figure":
    figure, ((left, right),) = plots.figure(
        1, 2, width=11.5, height=4.4,
        caption="Left: what a code costs and what it leaves untold, a point a seed, a cloud a β (largest on the left). "
        f"Dashed: slopes -β. Right: both by β, and their sum: medians, quartiles, {networks.sizes['seed']} seeds.",
    )  # fmt: skip
    names = {"train": "training images", "held_out": "held-out images"}
    networks = networks.assign({name: networks[name].where(networks.status == 0) for name in names})
    for position, (name, label) in enumerate(names.items()):
        rate, distortion = (networks[name].sel(part=part).values.ravel() for part in ("rate", "distortion"))
        left.plot(rate, distortion, plots.marker(position), label=label, markersize=4, color=plots.colour(position))
    for number, (beta, (d, r)) in enumerate(zip(networks.beta.values, networks.train.mean("seed").values, strict=True)):
        reach = min(2.0, 25.0 / beta) * np.array([-1.0, 1.0])
        plots.theory(left, r + reach, d - beta * reach, label="" if number else "slope -β")
    shown = {part: networks.held_out.sel(part=part) for part in ("rate", "distortion")}
    shown["minus ELBO"] = networks.held_out.sum("part", skipna=False)
    for position, (name, values) in enumerate(shown.items()):
        plots.band(right, networks.beta, values, over="seed", label=name, position=position, markers=True)
    plots.threshold(right, -float(networks.alone), "histograms of the pixels")
    plots.logarithmic(right, "x")
    right.set_xticks(networks.beta.values, [f"{beta:g}" for beta in networks.beta.values])
    plots.finish(left, x="rate (nats an image)", y="distortion (nats an image)")
    plots.finish(right, x="β", y="nats an image", title="held-out images")
    return figure


def _draw_gradients(found: "xarray.Dataset") -> "Figure":
    figure, ((left, right),) = plots.figure(
        1, 2, width=11.5, height=4.2, caption="Left: standard deviation of one draw of the gradient, of the gradient's "
        "length: a point a network. Right: the means of the other estimators less the reparameterised one's, in random "
        "directions; dashed: chance.",
    )  # fmt: skip
    noise = np.sqrt(found.variance.where(found.status == 0)) / found.length.sel(estimator=ESTIMATORS[0])
    for position, stage in enumerate(STAGES):
        points = noise.sel(stage=stage).transpose("estimator", "seed").values
        places = np.arange(len(ESTIMATORS))[:, None] + 0.16 * (2 * position - 1) + np.zeros_like(points)
        left.plot(places.ravel(), points.ravel(), plots.marker(position), label=stage, color=plots.colour(position))
    left.set_xticks(range(len(ESTIMATORS)), [name.replace(", ", ",\nwith a ") for name in ESTIMATORS])
    left.set_xlim(-0.5, len(ESTIMATORS) - 0.5)
    plots.logarithmic(left)
    x = np.linspace(-4, 4, 81)
    right.hist(apart(found).values.ravel(), bins=np.linspace(-4, 4, 17), density=True, color=plots.colour(2), alpha=0.5,
               label="measured")  # fmt: skip
    plots.theory(right, x, np.exp(log_normal(x, 0.0, 0.0)), label="standard normal")
    plots.finish(left, x="", y="noise / length of the gradient")
    plots.finish(right, x="difference of the means (standard errors)", y="density")
    return figure


EXPERIMENT = Experiment("autoencoder", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
