r"""Which pixels does a convolutional network look at?

Question. Which pixels made a network decide as it did, and does a map of them show the network or merely the image?

Mathematics. Let f be the logit of the true class; the probability is flat where the network is sure. Its gradient says
what a small change of each pixel does; its mean over noisy copies of the image (SmoothGrad) smooths kinks out.
Integrated gradients go from a baseline b to x and add up by the fundamental theorem of calculus along a line:

    A_i = (x_i - b_i) ∫₀¹ ∂f/∂x_i (b + t (x - b)) dt,    Σ A_i = f(x) - f(b).

With ReLU and max-pooling the integrand is constant between kinks: n midpoints err by at most V / 2n, V the variation of
the slope along the path, and no rule does better than order 1. Fresh read-out weights make f and -f equally likely, so
that the correlation with the trained network's map is 0 on average, exactly; of sizes, what the image puts there stays.

Claim. Attributions add up to f(x) - f(b), to 1e-3 of it, for every network and image. Random weights leave no
correlation with a map, and of its sizes no more than another trained network shares. Deleting the pixels of the largest
attributions lowers the logit more than deleting random ones, or the brightest.

Command. python -m calcdl.experiments.sensitivity configs/sensitivity.toml
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from calcdl import data, nn, optim, study
from calcdl.calculus.quadrature import RULES
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import ConfigError, Count, ExperimentConfig, OneOf, Rate, Section, Seeds
from calcdl.train import Problem, make_run
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

PANEL = 16  # nodes of a panel of the path
METHODS = ("gradient", "gradient x input", "smoothed", "integrated")
ORDERS = {"integrated": "by integrated gradients", "gradient x input": "by gradient x input",
          "brightest": "the brightest pixels", "random": "random pixels"}  # fmt: skip
COMPARED = ("midpoint", "gauss_legendre")
GATE, DESTROYED, MARGIN = 1e-3, 0.2, 0.05
RANDOM_ORDERS, STEPS = 4, 1024  # orders that are averaged, steps that a slope's variation is summed over

Activation = Annotated[str, OneOf(nn.ACTIVATIONS)]
Nodes = Annotated[int, Field(ge=PANEL, le=2**20, multiple_of=PANEL)]


class Network(Section):
    """Convolutions and how they are trained."""

    activation: Activation = Field(default="relu", description="activation")
    pool: Count = Field(default=2, description="rows and columns of the windows of max-pooling, 1 for none")
    depth: Count = Field(default=3, description="convolutions, 3 x 3")
    channels: Count = Field(default=16, description="channels of each")
    seeds: Annotated[Seeds, Field(min_length=2)] = Field(default=tuple(range(6)), description="one network a seed")
    learning_rate: Rate = Field(default=0.003, description="rate of Adam")
    steps: Count = Field(default=240, description="steps")
    batch: Count = Field(default=64, description="examples a step")


class Smooth(Network):
    """Convolutions without a kink, for comparison."""

    activation: Activation = Field(default="gelu", description="activation")
    pool: Count = Field(default=1, description="as above")
    depth: Count = Field(default=2, description="as above")
    channels: Count = Field(default=8, description="as above")
    seeds: Annotated[Seeds, Field(min_length=2)] = Field(default=(0, 1), description="one network a seed")


class Maps(Section):
    """How maps are drawn."""

    images: Count = Field(default=1, description="images of each class: the held-out ones nearest to its mean")
    baseline: Literal["black", "mean"] = Field(default="black", description="where paths begin")
    rule: Annotated[str, OneOf(RULES)] = Field(default="midpoint", description="quadrature on each panel of a path")
    nodes: Nodes = Field(default=2048, description=f"nodes of a path, a multiple of {PANEL}, the nodes of a panel")
    nodes_again: Nodes = Field(default=256, description="nodes where weights are random, and where maps are repeated")
    nodes_compared: tuple[Nodes, ...] = Field(
        default=(16, 32, 64, 128, 256, 512, 1024), min_length=1, description="nodes that rules are compared at"
    )
    noise: Rate = Field(default=0.15, description="standard deviation of the noise, as a share of the range of a pixel")
    samples: Count = Field(default=64, description="noisy copies of an image")
    deleted: Annotated[int, Field(ge=1, le=64)] = Field(default=24, description="pixels deleted one by one")


class Config(ExperimentConfig):
    """What to measure."""

    network: Network = Field(default=Network(), description="the network whose maps are drawn")
    smooth: Smooth = Field(default=Smooth(), description="a network without a kink")
    maps: Maps = Field(default=Maps(), description="maps")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Train networks, draw their maps, randomise them from the read-out down, and delete pixels."""
    shared, found = rows(config), {}
    labels = {"kind": list(METHODS), "order": list(ORDERS), "rule": list(COMPARED)}
    named = {"maps": ("level", "kind", "image", "row", "column"), "deleted": ("order", "count", "image"),
             "error": ("rule", "node", "image"), "guess": ("image",), "change": ("image",),
             "variation": ("image",)}  # fmt: skip
    for name, sizes in (("network", config.network), ("smooth", config.smooth)):
        function = partial(network_run, sizes=sizes, maps=config.maps, full=name == "network")
        one = run(function, [study.axis("seed", sizes.seeds)], name=name, shared=shared, dimensions=named,
                  dtype=config.precision)  # fmt: skip
        one = one.assign_coords({key: value for key, value in labels.items() if key in one.dims})
        found[name] = one.assign(picture=(("image", "row", "column"), shared["chosen"][0][..., 0]))
    return study.join(**found)


def rows(config: Config) -> dict[str, Any]:
    """Return training rows, held-out rows, the baseline, and the images whose maps are drawn, class by class."""
    dataset = data.split(data.load("digits", constant="keep", collinear="keep"), validation=0.2, test=0.0)
    features = dataset.features.astype(config.precision).reshape(-1, 8, 8, 1)
    labels, held_out = dataset.targets.astype(np.int32), dataset.validation
    for path, sizes in (("network", config.network), ("smooth", config.smooth)):
        if sizes.batch > len(dataset.train):
            most = f"expected at most the {len(dataset.train)} training rows"
            raise ConfigError(f"{path}.batch: got {sizes.batch}; {most}")
    chosen = np.concatenate([typical(features, labels, dataset, label)[: config.maps.images] for label in range(10)])
    if len(chosen) < 10 * config.maps.images:
        raise ConfigError(f"maps.images: got {config.maps.images}; expected at most the held-out ones of a class")
    mean = features[dataset.train].mean(axis=0)
    return {
        "train": (features[dataset.train], labels[dataset.train]),
        "held_out": (features[held_out], labels[held_out]),
        "chosen": (features[chosen], labels[chosen]),
        "baseline": mean if config.maps.baseline == "mean" else np.zeros_like(mean),
    }


def typical(features: np.ndarray, labels: np.ndarray, dataset: data.Dataset, label: int) -> np.ndarray:
    """Return the held-out rows of a class, those nearest to the mean of its training rows first."""
    mean = features[dataset.train][labels[dataset.train] == label].mean(axis=0)
    of_class = dataset.validation[labels[dataset.validation] == label]
    order = np.argsort(((features[of_class] - mean) ** 2).sum(axis=(1, 2, 3)), kind="stable")
    return np.asarray(of_class[order])


def network_run(
    key: Key, train: Any, held_out: Any, chosen: Any, baseline: Array, *, sizes: Network, maps: Maps, full: bool
) -> dict[str, Array]:
    """Train one network and look at its maps."""
    (images, labels), start = chosen, jnp.broadcast_to(baseline[None], chosen[0].shape)
    network = nn.convnet(sizes.depth, sizes.channels, 10, nn.ACTIVATIONS[sizes.activation],
                         nn.INITIALISERS["he_normal"], dtype=images.dtype, pool=sizes.pool)  # fmt: skip
    problem = Problem(
        init=lambda key: network.init(key, (8, 8, 1)),
        loss=lambda params, rows: jnp.mean(nn.softmax_cross_entropy(network.apply(params, rows[0]), rows[1])),
        batches=data.minibatches(train, sizes.batch),
    )
    train_key, fresh_key, noise_key, order_key = jax.random.split(key, 4)
    adam = optim.descent("adam", sizes.learning_rate)
    trace = make_run(problem, adam, steps=sizes.steps, record_every=sizes.steps)(train_key)
    trained = trace.params

    def logits(params: Any, x: Array) -> Array:
        return jnp.take_along_axis(network.apply(params, x), labels[:, None], axis=1)[:, 0]

    # One call for all: every further copy of the network is compiled again.
    outputs = network.apply(trained, jnp.concatenate([held_out[0], images, start]))
    guesses, count = jnp.argmax(outputs, axis=1).astype(jnp.int32), len(images)
    of_class = jnp.take_along_axis(outputs[-2 * count :], jnp.tile(labels, 2)[:, None], axis=1)[:, 0]
    change, counts = of_class[:count] - of_class[count:], jnp.asarray(maps.nodes_compared, jnp.int32)

    def path(t: Array) -> Any:
        return jax.jvp(lambda s: logits(trained, start + s * (images - start)), (t,), (jnp.ones_like(t),))[1]

    sums = [jax.lax.map(partial(path_integral, path, RULES[rule], change), counts) for rule in COMPARED]
    error = jnp.abs(jnp.stack(sums) / change[None, None] - 1)
    accuracy = jnp.mean(guesses[: -2 * count] == held_out[1], dtype=images.dtype)
    results = {"accuracy": accuracy, "guess": guesses[-2 * count : -count], "change": change, "error": error,
               "status": trace.status}  # fmt: skip
    if full:
        levels = [trained, *cascade(trained, problem.init(fresh_key), sizes.depth)]
        weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *levels)
        keys = jax.random.split(noise_key, len(levels))
        nodes = jnp.asarray([maps.nodes, *[maps.nodes_again] * (len(levels) - 1)], jnp.int32)
        draw = partial(attribute, logits, images, start, maps=maps)
        drawn = jax.lax.map(lambda level: draw(*level), (weights, keys, nodes))
        orders = rankings(order_key, drawn[0], images - start)
        left = deletion(partial(logits, trained), images, start, orders, maps.deleted)
        slopes = jax.lax.map(path, jnp.linspace(0, 1, STEPS + 1, dtype=images.dtype))
        results |= {"variation": jnp.sum(jnp.abs(jnp.diff(slopes, axis=0)), axis=0), "maps": drawn[..., 0],
                    "deleted": jnp.concatenate([left[:3], left[3:].mean(axis=0, keepdims=True)])}  # fmt: skip
    return results


def cascade(trained: Any, fresh: Any, depth: int) -> list[Any]:
    """List the networks with 0, 1, ... all layers drawn anew, from the read-out down."""
    layers = ["readout", *(f"layer_{layer}" for layer in range(depth, 0, -1))]
    return [trained | {name: fresh[name] for name in layers[:count]} for count in range(depth + 2)]


def attribute(f: Any, images: Array, start: Array, weights: Any, key: Key, nodes: Array, *, maps: Maps) -> Array:
    """Draw the maps of every method, [method, image, row, column, 1]; f gives one number an image."""
    step, slope = images - start, jax.grad(lambda x: jnp.sum(f(weights, x)))
    noise = jnp.asarray(maps.noise, images.dtype) * jax.random.normal(key, (maps.samples, *images.shape), images.dtype)
    gradient, *_ = slopes = jax.vmap(slope)(images[None] + jnp.concatenate([jnp.zeros_like(images)[None], noise]))
    integrated = step * path_integral(lambda t: slope(start + t * step), RULES[maps.rule], images, nodes)
    return jnp.stack([gradient, gradient * step, slopes[1:].mean(axis=0), integrated])


def path_integral(f: Any, rule: Any, like: Array, nodes: Array) -> Any:
    """Integrate over 0..1 by a rule on equal panels; the number of nodes may be traced."""
    panels = nodes // PANEL
    width = 1 / panels.astype(like.dtype)

    def add(position: Array, total: Array) -> Array:
        low = position.astype(like.dtype) * width
        return jnp.add(total, rule(f, low, low + width, PANEL))

    return jax.lax.fori_loop(0, panels, add, jnp.zeros_like(like))


def rankings(key: Key, maps: Array, step: Array) -> Array:
    """Rank the pixels by each of `ORDERS`, the random one several times, among pixels that differ from the baseline."""
    ink, found = jnp.abs(step), dict(zip(METHODS, maps, strict=True))
    chance = jax.random.uniform(key, (RANDOM_ORDERS, *ink.shape), ink.dtype) + (ink > 0)[None]
    by = jnp.stack([found["integrated"], found["gradient x input"], ink, *chance])
    order = jnp.argsort(-by.reshape(*by.shape[:2], -1), axis=-1)
    return jnp.argsort(order, axis=-1).reshape(by.shape)


def deletion(f: Any, images: Array, start: Array, ranks: Array, deleted: int) -> Array:
    """Return the logits, [order, pixels deleted, image], while pixels are set to the baseline one after another."""
    after = jax.vmap(lambda rank, count: f(jnp.where(rank < count, start, images)), (0, None))
    logits: Array = jax.lax.map(partial(after, ranks), jnp.arange(deleted + 1))
    return jnp.moveaxis(logits, 0, 1)


def interval(values: np.ndarray, good: np.ndarray) -> tuple[float, float]:
    """Return the mean and half of its 95 % interval: over good images, then over networks, which are independent."""
    from scipy.special import stdtrit

    counts = good.sum(axis=1)
    means = np.where(good, values, 0).sum(axis=1)[counts > 0] / counts[counts > 0]
    error = means.std(ddof=1) / len(means) ** 0.5 if len(means) > 1 else np.nan
    return float(means.sum() / max(len(means), 1)), float(stdtrit(len(means) - 1, 0.975) * error)


def right(network: "xarray.Dataset") -> np.ndarray:
    """Return which images each network classified correctly, [network, image]: only those count."""
    labels = np.repeat(np.arange(10), network.sizes["image"] // 10)
    return np.asarray((network.guess.values == labels) & (network.status.values == 0)[:, None])


def similarity(network: "xarray.Dataset", method: str, *, sizes: bool) -> tuple[np.ndarray, np.ndarray]:
    """Correlate the ranks of pixels (Spearman): the trained map with the others of its network, and the next one's."""
    from scipy.stats import rankdata

    maps = network.maps.sel(kind=method).transpose("level", "seed", "image", "row", "column").values
    maps = maps.reshape(*maps.shape[:3], -1)
    ranks = rankdata(np.abs(maps) if sizes else maps, axis=-1)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    lengths = np.sqrt((ranks**2).sum(axis=-1, keepdims=True))
    trained, *drawn = ranks / np.where(lengths == 0, 1, lengths)  # a constant map resembles nothing
    return (trained * np.stack(drawn)).sum(axis=-1), (trained * np.roll(trained, 1, axis=0)).sum(axis=-1)


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold attributions against the fundamental theorem, maps against chance, and deletions against each other."""
    network = study.part(results, "network")
    randomised = [_randomisation_verdict(network, sizes=sizes) for sizes in (False, True)]
    deletions = [_deletion_verdict(config, network, order) for order in ("random", "brightest")]
    return (_completeness_verdict(config, network), *randomised, *deletions)


def _completeness_verdict(config: Config, network: "xarray.Dataset") -> Verdict:
    good, accuracy = right(network), float(network.accuracy.where(network.status == 0).mean())
    sums = network.maps.isel(level=0).sel(kind="integrated").sum(("row", "column"))
    errors = np.abs(sums / network.change - 1).values[good] if good.any() else np.full(1, np.nan)
    worst, claim = float(errors.max()), "integrated gradients add up to the difference of the logits"
    evidence = (
        f"largest relative error, {config.maps.nodes} nodes ({config.maps.rule}); median {np.median(errors):.1e}; "
        f"{good.sum()} of {good.size} maps: those whose image the network got right (held-out accuracy {accuracy:.3f})"
    )
    return Verdict(claim, worst <= GATE, worst, GATE, evidence)


def _randomisation_verdict(network: "xarray.Dataset", *, sizes: bool) -> Verdict:
    good, told, ends = right(network), [], []
    pairs = good & np.roll(good, 1, axis=0)
    for method in METHODS:
        drawn, other = similarity(network, method, sizes=sizes)
        levels = [interval(level, good) for level in drawn[1:]]
        mean, half = levels[-1] if sizes else max(levels, key=lambda one: abs(one[0]) + one[1])
        ends.append(sum(interval(drawn[-1] - other, pairs)) if sizes else abs(mean) + half)
        told.append(f"{method} {mean:.2f} ± {half:.2f} (two trained networks {interval(other, pairs)[0]:.2f})")
    worst, gate = float(np.max(ends)), MARGIN if sizes else DESTROYED
    claim = "random weights, of the read-out alone or of all layers, leave no correlation with the trained map"
    evidence = "farthest end of a 95 % interval, at any number of layers; by theory 0"
    if sizes:
        claim = "with all weights random, sizes resemble those of the trained map no more than another network's do"
        evidence = "farthest end of a 95 % interval of the excess over two trained networks"
    return Verdict(claim, worst <= gate, worst, gate, f"{evidence}; {', '.join(told)}")


def _deletion_verdict(config: Config, network: "xarray.Dataset", order: str) -> Verdict:
    good, areas = right(network), network.deleted.isel(count=slice(1, None)).mean("count")
    mean, half = interval(gain := (areas.sel(order=order) - areas.sel(order="integrated")).values, good)
    claim = f"deleting by integrated gradients lowers the logit more than deleting {ORDERS[order]}"
    evidence = (
        f"lower end of the 95 % interval: {mean:.2f} ± {half:.2f} in the logit, mean over 1 to {config.maps.deleted} "
        f"pixels; so for {(gain > 0)[good].sum()} of {good.sum()} maps"
    )
    return Verdict(claim, mean - half > 0, mean - half, 0.0, evidence)


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw maps, what randomised weights leave of them, and what their numbers are worth."""
    network, smooth = study.part(results, "network"), study.part(results, "smooth")
    return {"maps": _draw_maps(config, network), "randomisation": _draw_randomisation(config, network),
            "completeness": _draw_numbers(config, network, smooth)}  # fmt: skip


def _draw_maps(config: Config, network: "xarray.Dataset") -> "Figure":
    one = network.isel(seed=0)
    drawn = [("gradient", 0), ("smoothed", 0), ("integrated", 0), ("smoothed", -1), ("integrated", -1)]
    caption = (
        "Which pixels speak for the true class (red) and against it (blue)? Last two rows: all weights drawn anew."
    )
    rows = [one.maps.sel(kind=method).isel(level=level).values for method, level in drawn]
    canvas = np.full((2, 1 + len(rows), 9, 10, 9), np.nan)  # a pixel to the right of every map and below it stays blank
    shown = np.arange(0, network.sizes["image"], config.maps.images)
    for row, values in enumerate([one.picture.values, *rows]):
        values = values[shown] / (np.abs(values[shown]).max(axis=(1, 2), keepdims=True) + 1e-30)
        canvas[int(row > 0), row, :8, :, :8] = np.moveaxis(values, 0, 1)
    figure, ((axes,),) = plots.figure(width=10.5, height=5.8, caption=caption)
    axes.imshow(canvas[0].reshape(-1, 90), cmap="gray_r", vmin=0, vmax=1)
    shades = axes.imshow(canvas[1].reshape(-1, 90), cmap="RdBu_r", vmin=-1, vmax=1)
    guesses = one.guess.values[shown]
    titles = [str(label) if label == guess else f"{label}, taken\nfor {guess}" for label, guess in enumerate(guesses)]
    names = [f"{method},\nrandom weights" if level else method for method, level in drawn]
    axes.set_xticks(3.5 + 9 * np.arange(10), titles)
    axes.set_yticks(3.5 + 9 * np.arange(1 + len(drawn)), ["image", *names])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    figure.colorbar(shades, label="pixel / largest size in the map", shrink=0.6, aspect=30)
    return figure


def _draw_randomisation(config: Config, network: "xarray.Dataset") -> "Figure":
    depth, good = config.network.depth, right(network)
    pairs = good & np.roll(good, 1, axis=0)
    caption = f"What is left of a map while layers are drawn anew: medians and quartiles over {good.sum()} maps."
    figure, panels = plots.figure(1, len(METHODS), width=12.0, height=4.0, share_y=True, caption=caption)
    ticks = ["none", "read-out", *(f"+ layer {layer}" for layer in range(depth, 1, -1)), "all"]
    for axes, method in zip(panels[0], METHODS, strict=True):
        for position, (sizes, label) in enumerate(((True, "sizes only"), (False, "with sign"))):
            drawn, other = similarity(network, method, sizes=sizes)
            plots.band(axes, range(depth + 2), drawn[:, good], label=label, position=position, markers=True)
            axes.axhline(interval(other, pairs)[0], color=plots.colour(position), linestyle=":")
        plots.theory(axes, range(1, depth + 2), np.zeros(depth + 1), label="with sign, theory")
        axes.set_xticks(range(depth + 2), ticks, rotation=40, ha="right")
        plots.finish(axes, x="layers drawn anew", y="", title=method, legend="none")
    panels[0, 0].plot([], [], ":", color="#555555", label="two networks\ntrained apart")
    panels[0, 0].set_ylabel("rank correlation with the trained map")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _draw_numbers(config: Config, network: "xarray.Dataset", smooth: "xarray.Dataset") -> "Figure":
    nodes, good = np.asarray(config.maps.nodes_compared), right(network)
    caption = (
        "Left: by how much attributions miss f(x) - f(baseline), quartiles over maps; kinks keep every rule at "
        "order 1. Right: the logit while pixels are set to the baseline one by one, in four orders."
    )
    figure, ((left, after),) = plots.figure(1, 2, width=11.5, height=4.6, caption=caption)
    for place, (one, sizes) in enumerate(((network, config.network), (smooth, config.smooth))):
        name = f"{sizes.activation}, {'max-pooling' if sizes.pool > 1 else 'no pooling'}"
        for position, rule in enumerate(COMPARED):
            errors = one.error.sel(rule=rule).transpose("node", "seed", "image").values[:, right(one)]
            label = f"{name}: {rule.replace('_', '-')}"
            plots.band(left, nodes, np.maximum(errors, 1e-8), label=label, position=2 * place + position, markers=True)
    variation = np.median(np.abs(network.variation / network.change).values[good])
    plots.theory(left, nodes, variation / (2 * nodes), label="V / 2n, the worst case of midpoints")
    plots.threshold(left, GATE, "gate")
    plots.logarithmic(left, "xy")
    left.set_ylim(2e-8, 50)
    plots.finish(left, x="nodes n", y="relative error of the sum", title="completeness")
    for position, (order, name) in enumerate(ORDERS.items()):
        logits = network.deleted.sel(order=order).transpose("count", "seed", "image").values[:, good]
        plots.band(after, range(len(logits)), logits, label=name, position=position)
    plots.finish(after, x="pixels deleted", y="logit of the true class", title="deletion")
    return figure


EXPERIMENT = Experiment("sensitivity", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
