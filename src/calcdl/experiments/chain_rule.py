r"""How does the chain rule multiply the factors of a composition, and what becomes of their product with depth?

Mathematics. The derivative of :math:`f_n(\dots f_1(x))` is :math:`J_n \cdots J_1`, from either end; where several
paths lead to the output, it is the sum over them. The factor of a layer has two parts, weights and slopes:
:math:`\delta_l = (\delta_{l+1} W_{l+1}^T) \odot \phi'(z_l)`. L equal factors make exp(L log g). A random n x n matrix
with weights of variance g²/n adds to the log of a length log g + (ψ(n/2) + log(2/n)) / 2 in the mean, with variance
ψ'(n/2) / 4: at g = 1 the mean square is kept, and yet the typical product vanishes.

Claim. Both orders, the sum over paths and back-propagation written out equal `jax.grad` to 1e-6 in float32. Products
grow and vanish at the rates above. For one loss the backward order needs the fewest multiplications of all orders.

Command. python -m calcdl.experiments.chain_rule configs/chain_rule.toml
"""

from functools import partial, reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, polygamma
from pydantic import Field

from calcdl import data, nn, optim, study
from calcdl.calculus.chain import Backpropagation, backpropagate, chain
from calcdl.calculus.expressions import Expression, parse
from calcdl.calculus.graph import Graph, graph, paths
from calcdl.lab import panels, plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, Finite, OneOf, Rate, Section, Seeds
from calcdl.train import Problem, make_run
from calcdl.trees import array_norm
from calcdl.types import Array, Key, Verdict

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

GATE = {"float32": 1e-6, "float64": 1e-14}
ROWS, TURNS, COUNTED_WIDTHS = 256, 0.75, (1, 4, 16, 64, 256)
LINKS = {"g x": lambda factor, x: factor * x, "tanh(g x)": lambda factor, x: jnp.tanh(factor * x)}
PARTS = {"weight_factors": "weights", "slope_factors": "slopes", "ratios": "weights x slopes"}

Nodes = tuple[tuple[str, Expression], ...]
ActivationName = Annotated[str, OneOf([name for name, unit in nn.ACTIVATIONS.items() if unit.learned is None])]
# Within these, a product of the greatest depth is neither 0 nor infinite in float32.
Factor = Annotated[float, Field(ge=0.5, le=1.8)]


class Composition(Section):
    """Functions of one number, one after another."""

    links: Annotated[tuple[str, ...], Field(min_length=1, max_length=50)] = Field(
        default=("sin(x)", "x**2 + 1", "exp(-x)", "tanh(3*x)"), description="formulas in x, the first applied first"
    )
    reach: Rate = Field(default=3.0, description="greatest size of x")
    points: Annotated[int, Field(ge=2, le=2000)] = Field(default=241, description="values of x, evenly spaced")


class Paths(Section):
    """Several variables between the inputs and one output."""

    nodes: AxisOf[str] = Field(
        default=("u = x*y + sin(z)", "x = a**2 + b", "y = a*b", "z = exp(a - b)"),
        description="name = formula; names that are no node are inputs",
    )
    at: tuple[Finite, ...] = Field(default=(1.0, 2.0), description="values of the inputs, in the order of the alphabet")
    spread: Rate = Field(default=1.0, description="standard deviation of random inputs about these")
    seeds: Seeds = Field(default=tuple(range(64)), description="one random point a seed")


class Network(Section):
    """A small network, before and after it learns two spirals."""

    activations: AxisOf[ActivationName] = Field(default=("sigmoid", "tanh", "relu"), description="activations")
    seeds: Seeds = Field(default=tuple(range(8)), description="one network and one set of points a seed")
    depth: Annotated[int, Field(ge=2, le=50)] = Field(default=6, description="hidden layers")
    width: Count = Field(default=16, description="units a hidden layer")
    learning_rate: Rate = Field(default=0.01, description="rate of Adam")
    steps: Count = Field(default=300, description="steps, each on all points")


class Chains(Section):
    """Factors below and above 1, many times."""

    factors: AxisOf[Factor] = Field(default=(0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5), description="g, the factor of a link")
    depth: Annotated[int, Field(ge=4, le=50)] = Field(default=50, description="links")
    widths: AxisOf[Annotated[int, Field(ge=2, le=128)]] = Field(default=(2, 16), description="of random matrices")
    seeds: Seeds = Field(default=tuple(range(64)), description="one product of random matrices a seed")


class Config(ExperimentConfig):
    """What to measure."""

    composition: Composition = Field(default=Composition(), description="functions of one number")
    graph: Paths = Field(default=Paths(), description="the chain rule of several variables")
    network: Network = Field(default=Network(), description="back-propagation written out")
    chains: Chains = Field(default=Chains(), description="how factors multiply with depth")


def measure(config: Config, run: Any = study.run) -> "xarray.Dataset":
    """Follow a composition and a graph, train networks, and multiply deep chains."""
    one, nodes, network, chains = config.composition, config.graph, config.network, config.chains
    run, seeds = partial(run, dtype=config.precision), partial(study.axis, "seed")
    links, formulas, names = read(config)
    x, factors = study.axis("x", np.linspace(-one.reach, one.reach, one.points)), study.axis("factor", chains.factors)
    spread, width = study.axis("spread", (0.0, nodes.spread)), study.axis("width", chains.widths, static=True)
    activation, kind = study.axis("activation", network.activations), study.axis("kind", LINKS)
    by_link = {"derivative": ("way",)} | dict.fromkeys(("local", "forward", "backward"), ("link",))
    by_name = {"value": ("variable",), "partial": ("edge",), "product": ("path",), "scale": ("input",)}
    by_layer = {"error": ("moment", "layer")} | dict.fromkeys(PARTS, ("moment", "hidden_layer"))
    training = partial(train, sizes=network, dtype=config.precision)
    composed = run(partial(follow, links=links), [x], name="composition", dimensions=by_link)
    branched = run(partial(branch, nodes=formulas, at=nodes.at), [spread, seeds(nodes.seeds)], name="graph",
                   dimensions=by_name | {"total": ("way", "input")})  # fmt: skip
    trained = run(training, [activation, seeds(network.seeds)], name="network", dimensions=by_layer)
    axes, by_depth = [width, factors, seeds(chains.seeds)], {"product": ("links",)}
    repeated = run(partial(repeat, depth=chains.depth), [kind, factors], name="chains", dimensions=by_depth)
    multiplied = run(partial(multiply, depth=chains.depth), axes, name="matrices", dimensions=by_depth)
    numbers, link = np.arange(1, chains.depth + 1), [f"{number}: {text}" for number, text in enumerate(one.links, 1)]
    return study.join(
        composition=composed.assign_coords(link=link, way=["jax.grad", "forward", "backward"]),
        graph=branched.assign_coords(**names, way=["jax.grad", "paths", "adjoints", "tangents"]),
        network=trained.assign_coords(moment=["before", "after"], hidden_layer=np.arange(1, network.depth + 1)),
        chains=repeated.assign_coords(links=numbers),
        matrices=multiplied.assign_coords(links=numbers),
    )


def read(config: Config) -> tuple[tuple[Expression, ...], Nodes, dict[str, list[str]]]:
    """Read links and nodes, name variables, edges, paths and inputs, and refuse what is no formula or no graph."""
    place, at = "composition.links", config.graph.at
    try:
        links, place = tuple(parse(text) for text in config.composition.links), "graph.nodes"
        pairs = [text.partition("=")[::2] for text in config.graph.nodes]
        nodes = tuple((name.strip(), parse(text.strip(), variables=None)) for name, text in pairs)
        names = inputs(nodes)
        if len(names) != len(at):
            raise ConfigError(f"graph.at: got {len(at)} value(s); expected one for each of {', '.join(names)}")
        result = connect(nodes, jnp.asarray(at))
        ways = [" → ".join(path.names) for name in names for path in paths(result, name)]
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"{place}: {error}") from None
    edges = [f"{argument} → {name}" for name, one in result.edges.items() for argument in one]
    return links, nodes, {"variable": [*result.values], "edge": edges, "path": ways, "input": names}


def inputs(nodes: Nodes) -> list[str]:
    """Return the names that are no node."""
    return sorted({name for _, one in nodes for name in one.variables} - {*dict(nodes)})


def connect(nodes: Nodes, point: Array) -> Graph:
    """Return the graph of the nodes at a point."""
    operations = {name: (function, function.variables) for name, function in nodes}
    return graph(operations, dict(zip(inputs(nodes), point, strict=True)))


def follow(key: Key, *, x: Array, links: tuple[Expression, ...]) -> dict[str, Array]:
    """Follow a composition at one x in both orders, and differentiate it as a whole."""
    result = chain(links, x)
    by_link = {"local": result.jacobians, "forward": result.forward, "backward": result.backward}
    found = {name: jnp.stack([*one.values()])[:, 0, 0] for name, one in by_link.items()}
    whole = jax.grad(lambda x: reduce(lambda value, link: link(value), links, x))(x)
    return {**found, "derivative": jnp.stack([whole, found["forward"][-1], found["backward"][0]])}


def branch(key: Key, *, spread: Array, nodes: Nodes, at: tuple[float, ...]) -> dict[str, Array]:
    """Differentiate over a graph at one point: as a whole, by every path, from the output back and from the inputs."""
    point = jnp.asarray(at, spread.dtype) + spread * jax.random.normal(key, (len(at),), spread.dtype)
    names, result = inputs(nodes), connect(nodes, point)
    output, products = next(iter(result.adjoints)), [[path.product for path in paths(result, name)] for name in names]
    whole = jax.grad(lambda point: connect(nodes, point).values[output])(point)
    adjoints, tangents = [result.adjoints[name] for name in names], [result.tangents[name][output] for name in names]
    sums = jnp.stack([jnp.sum(jnp.stack(one)) for one in products])
    return {
        "value": jnp.stack([*result.values.values()]),
        "partial": jnp.stack([edge for node in result.edges.values() for edge in node.values()]),
        "product": jnp.stack([product for one in products for product in one]),
        "scale": jnp.stack([jnp.sum(jnp.abs(jnp.stack(one))) for one in products]),
        "total": jnp.stack([whole, sums, jnp.stack(adjoints), jnp.stack(tangents)]),
    }


def train(key: Key, *, activation: str, sizes: Network, dtype: str) -> dict[str, Array]:
    """Train a network on two spirals, and back-propagate by hand before and after."""
    unit, (data_key, run_key) = nn.ACTIVATIONS[activation], jax.random.split(key)
    network = nn.stack(sizes.depth, sizes.width, 2, unit, nn.INITIALISERS["glorot_normal"], dtype=jnp.dtype(dtype))
    x, labels = data.synthetic.spirals(data_key, ROWS, turns=TURNS, dtype=jnp.dtype(dtype))

    def loss(params: Any, rows: Any) -> Array:
        return jnp.mean(nn.softmax_cross_entropy(network.apply(params, rows[0]), rows[1]))

    def compare(params: Any) -> tuple[Backpropagation, Array]:
        layers = [(unit.function, unit.derivative)] * sizes.depth + [(nn.activations.identity, jnp.ones_like)]
        result = backpropagate(layers, unstack(params), x, lambda y: nn.softmax_cross_entropy(y, labels))
        whole = unstack(jax.grad(loss)(params, (x, labels)))
        parts = zip(result.gradients, whole, result.activations, result.deltas, strict=False)
        return result, jnp.stack([difference(*part) for part in parts])

    start = network.init(run_key, (2,))
    problem = Problem(lambda key: start, loss, data.full_batch((x, labels)))
    trace = make_run(problem, optim.descent("adam", sizes.learning_rate), steps=sizes.steps)(run_key)
    result, error = jax.vmap(compare)(jax.tree.map(lambda *moments: jnp.stack(moments), start, trace.params))
    return {name: result._asdict()[name] for name in PARTS} | {"error": error, "status": trace.status}


def unstack(params: Any) -> list[dict[str, Array]]:
    """Return the layers of a stack one by one, the read-out last."""
    hidden = zip(params["hidden"]["weight"], params["hidden"]["bias"], strict=True)
    return [params["first"], *({"weight": weight, "bias": bias} for weight, bias in hidden), params["readout"]]


def difference(hand: dict[str, Array], whole: dict[str, Array], before: Array, delta: Array) -> Array:
    """Return the largest difference of two gradients of a layer, relative to the sizes of what examples add to them."""
    inputs = jnp.concatenate([jnp.abs(before), jnp.ones_like(before[:, :1])], axis=1)
    scale = jnp.max(inputs.T @ jnp.abs(delta)) / len(before)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(hand[name] - whole[name])) for name in hand]))
    return largest / jnp.where(scale > 0, scale, 1)


def repeat(key: Key, *, factor: Array, kind: str, depth: int) -> dict[str, Array]:
    """Multiply the factors of one link, many times, from x = 1 on."""
    result = chain([partial(LINKS[kind], factor)] * depth, jnp.ones((), factor.dtype))
    return {"product": jnp.stack([*result.forward.values()])[:, 0, 0]}


def multiply(key: Key, *, factor: Array, width: int, depth: int) -> dict[str, Array]:
    """Multiply random matrices from the output back, where one unit is read out."""
    draw = partial(nn.INITIALISERS["lecun_normal"], shape=(width, width), gain=factor, dtype=factor.dtype)
    weights = jax.vmap(draw)(jax.random.split(key, depth))
    links = [(str(number), partial(jnp.matmul, weight)) for number, weight in enumerate(weights)]
    backward = chain([*links, ("output", lambda x: x[:1])], jnp.zeros(width, factor.dtype)).backward
    return {"product": array_norm(jnp.stack([backward[name][0] for name, _ in reversed(links)]), axis=-1)}


def check(config: Config, results: "xarray.Dataset") -> tuple[Verdict, ...]:
    """Hold every way of taking a derivative against `jax.grad`, and every growth against its prediction."""
    one, nodes, network = (study.part(results, name) for name in ("composition", "graph", "network"))
    size, scale = float(abs(one.derivative).max()), nodes.scale.where(nodes.scale > 0, 1)
    orders = abs(one.derivative - one.derivative.sel(way="jax.grad")).max("x", skipna=False) / (size or 1)
    ways = (abs(nodes.total - nodes.total.sel(way="jax.grad")) / scale).max(("spread", "seed", "input"), skipna=False)
    points = f"{one.sizes['link']} links at {one.sizes['x']} points, relative to the largest derivative, {size:.3g}"
    counted = f"{nodes.sizes['path']} paths at {nodes.sizes['seed'] + 1} points, relative to the sum of their sizes"
    moments = f"{network.sizes['layer']} layers of {network.sizes['seed']} networks, relative to what examples add"
    return (
        _equals(config, "the product of the factors in either order", orders[1:], points),
        _equals(config, "the sum over paths", ways[1:], counted),
        _equals(config, "back-propagation written out", network.error.max(("moment", "layer", "seed")), moments),
        *_chain_verdicts(study.part(results, "chains")),
        _matrix_verdict(study.part(results, "matrices")),
        _cost_verdict(config),
    )


def _equals(config: Config, what: str, errors: "xarray.DataArray", places: str) -> Verdict:
    worst, gate = float(errors.max(skipna=False)), GATE[config.precision]
    told = [f"{name} {error:.1e}" for name, error in errors.to_series().items()]
    evidence = f"largest difference in {places}: {', '.join(told)}"
    return Verdict(f"in {config.precision} {what} is jax.grad", worst <= gate, worst, gate, evidence)


def _chain_verdicts(chains: "xarray.Dataset") -> list[Verdict]:
    depth, logs = chains.sizes["links"], np.log(chains.product.astype(float))
    scalar, tanh = (logs.sel(kind=kind) for kind in LINKS)
    worst = float(abs(scalar / chains.links - np.log(chains.factor)).max(skipna=False))
    rates = tanh.diff("links").isel(links=slice(depth // 2, None)).mean("links", skipna=False)
    ends = ", ".join(f"{g:g}^{depth} = {one:.2g}" for g, one in np.exp(scalar[:, -1]).to_series().items())
    told = ", ".join(f"{g:g}: {one:.3f}" for g, one in np.exp(rates).to_series().items())
    slowest, largest = float(rates.max(skipna=False)), f"largest difference of log(product)/L and log g; {ends}"
    return [
        Verdict("the product of L equal factors g is exp(L log g)", worst <= 1e-6, worst, 1e-6, largest),
        Verdict("of links tanh(g x) it vanishes, whether g is below or above 1", slowest < 0, slowest, 0.0,
                f"mean log of a factor in the second half of {depth} links; factor by g: {told}"),
    ]  # fmt: skip


def log_moments(width: int) -> tuple[float, float]:
    """Return mean and variance of what a random matrix of gain 1 adds to the log of a length."""
    return float(digamma(width / 2) - np.log(width / 2)) / 2, float(polygamma(1, width / 2)) / 4


def _matrix_verdict(matrices: "xarray.Dataset") -> Verdict:
    depth, seeds, deviations, told = matrices.sizes["links"], matrices.sizes["seed"], [], []
    rates = np.log(matrices.product.isel(links=-1).astype(float)).mean("seed", skipna=False) / depth
    for width in matrices.width.values:
        (mean, variance), added = log_moments(width), rates.sel(width=width) - np.log(matrices.factor)
        deviations += [*(abs(added - mean) / np.sqrt(variance / (depth * seeds))).values]
        told.append(f"{width}: {float(added.mean()):.4f} ({mean:.4f})")
    worst = float(np.max(deviations))
    claim = "random matrices multiply by the mean of the log of a factor, to so many standard errors"
    evidence = f"{seeds} products of {depth}; mean log of a factor less log g by width (theory): {', '.join(told)}"
    return Verdict(claim, worst <= 4.5, worst, 4.5, evidence)


def _cost_verdict(config: Config) -> Verdict:
    depth, counts, worst = config.network.depth, [], 0.0
    links = [*((str(number), lambda x: x * jnp.sum(x)) for number in range(depth)), ("loss", jnp.sum)]
    for width in COUNTED_WIDTHS:
        one = jax.eval_shape(partial(chain, links), jax.ShapeDtypeStruct((width,), jnp.float32))
        counts.append(f"{width}: {one.forward_cost:,} and {one.backward_cost:,}")
        worst = max(worst, one.backward_cost / one.cheapest[0])
    told = f"ratio to the cheapest, {depth} layers and a loss; forward and backward by width: {', '.join(counts)}"
    return Verdict("for one loss no order needs fewer multiplications than backward", worst <= 1, worst, 1.0, told)


def show(config: Config, results: "xarray.Dataset") -> dict[str, "Figure"]:
    """Draw the graph, products with depth, the composition and the layers of networks."""
    return {
        "graph": _draw_graph(study.part(results, "graph")),
        "depth": _draw_depth(study.part(results, "chains"), study.part(results, "matrices")),
        "composition": _draw_composition(study.part(results, "composition")),
        "layers": _draw_layers(study.part(results, "network")),
    }


def _draw_graph(nodes: "xarray.Dataset") -> "Figure":
    one, lines = nodes.sel(spread=0.0).isel(seed=0), []
    rank: dict[str, int] = {}
    edges = {tuple(edge.split(" → ")): f"{value:.3g}" for edge, value in one.partial.to_series().items()}
    for name in one.variable.values:
        rank[name] = max((rank[start] + 1 for start, end in edges if end == name), default=0)
    columns = [sorted(name for name in rank if rank[name] == at) for at in range(max(rank.values()) + 1)]
    rows = {name: len(names) / 2 - row for names in columns for row, name in enumerate(names)}
    place = {name: np.array([rank[name], rows[name]]) for name in rank}
    caption = "Multiply the derivatives along every path from an input to the output, then add the products."
    figure, ((axes,),) = plots.figure(width=11.0, height=4.6, caption=caption)
    arrow = {"arrowstyle": "-|>", "color": "#777777", "shrinkA": 25, "shrinkB": 25, "linewidth": 1.5}
    middle, white = {"ha": "center", "va": "center"}, {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    circle = {"boxstyle": "circle", "facecolor": "#DCEBF5", "edgecolor": plots.colour(0)}
    for (start, end), value in edges.items():
        axes.annotate("", place[end], place[start], arrowprops=arrow)
        axes.text(*(0.74 * place[start] + 0.26 * place[end]), value, bbox=white, **middle)
    for name, value in one.value.to_series().items():
        axes.text(*place[name], f"{name}\n{value:.3g}", bbox=circle, **middle)
    for name, total in one.total.sel(way="paths").to_series().items():
        lines += ["", f"d{columns[-1][0]}/d{name} = {total:.4g}, the sum of"]
        for way, product in one.product.to_series().items():
            steps = [edges[step] for step in pairwise(way.split(" → "))]
            lines += [f"  {way}:  {' · '.join(steps)} = {product:.3g}"] * way.startswith(f"{name} → ")
    axes.text(len(columns) - 0.7, 0.5, "\n".join(lines[1:]), va="center", linespacing=1.6)
    axes.set(xlim=(-0.2, len(columns) + 0.5), ylim=(0.5 - max(rows.values()), 0.5 + max(rows.values())))
    axes.set_axis_off()
    return figure


def _draw_depth(chains: "xarray.Dataset", matrices: "xarray.Dataset") -> "Figure":
    widths, links = matrices.width.values[::-1], chains.links.values
    titles = ["links g x", *(f"random matrices, {width} x {width}" for width in widths), "links tanh(g x)"]
    caption = (
        f"Products of L factors g, dashed: theory. Random matrices (median and quartiles of {matrices.sizes['seed']}) "
        "lose more than their g says, small ones most. With tanh the product vanishes at every g."
    )
    figure, (drawn,) = plots.figure(1, len(titles), width=13.0, height=4.0, share_y=True, caption=caption)
    for position, g in enumerate(chains.factor.values):
        for axes, kind in zip((drawn[0], drawn[-1]), LINKS, strict=True):
            axes.plot(links, chains.product.sel(factor=g, kind=kind), color=plots.colour(position), linewidth=3.0)
        plots.theory(drawn[0], links, g ** links.astype(float))
        for axes, width in zip(drawn[1:], widths, strict=False):
            plots.band(axes, links, matrices.product.sel(factor=g, width=width), over="seed", position=position)
            plots.theory(axes, links, np.exp(links * (np.log(g) + log_moments(width)[0])))
    for axes, title in zip(drawn, titles, strict=True):
        plots.logarithmic(axes)
        plots.finish(axes, x="links", y="product" if axes is drawn[0] else "", title=title, legend="none")
    panels.legend(figure, [f"{g:g}" for g in chains.factor.values], title="factor g")
    return figure


def _draw_composition(one: "xarray.Dataset") -> "Figure":
    caption = "Factors of a composition, multiplied up from either end; both arrive at jax.grad of the whole (dashed)."
    titles = {"local": "each link", "forward": "from the input to the link", "backward": "from the output to the link"}
    figure, (drawn,) = plots.figure(1, 3, width=12.0, height=3.8, caption=caption)
    for axes, (kind, title) in zip(drawn, titles.items(), strict=True):
        for position, curve in enumerate(one[kind].transpose("link", "x")):
            axes.plot(one.x, curve, color=plots.colour(position))
        if kind != "local":
            plots.theory(axes, one.x, one.derivative.sel(way="jax.grad"))
        plots.finish(axes, x="x", y="factor" if kind == "local" else "product", title=title, legend="none")
    panels.legend(figure, [str(name) for name in one.link.values], title="link")
    return figure


def _draw_layers(network: "xarray.Dataset") -> "Figure":
    caption = f"What a layer makes of the gradient from above: quartiles of {network.sizes['seed']} networks."
    values = network[[*PARTS]].to_array("part").stack(panel=("activation", "part"))
    labels = [f"{activation}: {PARTS[part]}" for activation, part in values.panel.values]
    values = values.drop_vars(["panel", "activation", "part"]).assign_coords(panel=labels)
    figure, drawn = panels.multiples(
        values, network.status.max("activation"), across="panel", by="moment", along="hidden_layer", y="factor",
        caption=caption, columns=3, logarithmic=True)  # fmt: skip
    for axes in drawn:
        plots.threshold(axes, 1.0)
    return figure


EXPERIMENT = Experiment("chain_rule", __doc__ or "", Config, measure, check, show)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
