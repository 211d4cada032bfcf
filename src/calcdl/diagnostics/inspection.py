"""Inspection: does every parameter of a model learn? For a model of any make, from one gradient.

A model is any pytree: nested dictionaries, modules of Flax or Equinox, with functions and settings among its leaves.
Its parameters are its floating-point arrays. Nothing is judged by its size: the loss may be a sum or a mean, the
network narrow or wide. Judged are shares, and quotients of things of one kind.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calcdl.diagnostics.forward_order import Use, uses, with_taps
from calcdl.diagnostics.probes import signal_norms
from calcdl.diagnostics.taps import capture
from calcdl.trees import names
from calcdl.types import Array, Scalar, Verdict

KEEPS_WITHIN, LARGEST_STEP, SMALLEST_STEP = 100.0, 0.1, 0.5
FEWEST_WEIGHTS = 3


class Parameter(NamedTuple):
    """What is measured of one parameter.

    Attributes:
        name: as in the tree; ``[3]`` at its end is the layer, where a leading axis holds several.
        shape: of one layer.
        weight_norm: Euclidean norm.
        gradient_norm: that of the gradient.
        gradient_rms: root mean square of the gradient's entries.
        zeros: share of the gradient's entries that are exactly zero.
        signal_norm: norm of the back-propagated signal, the derivative of the loss by what a weight makes of the data,
            `∂L/∂h` for `h = x W`; NaN for parameters of fewer than two axes.
        update_ratio: norm of the optimiser's first update divided by `weight_norm`; infinite from weights of zero, NaN
            without an optimiser.
        precision: relative distance of neighbouring numbers of the parameter's dtype.
    """

    name: str
    shape: tuple[int, ...]
    weight_norm: float
    gradient_norm: float
    gradient_rms: float
    zeros: float
    signal_norm: float
    update_ratio: float
    precision: float


class Inspection(NamedTuple):
    """What one gradient says about a model; print it.

    Attributes:
        loss: of the model on the batch.
        parameters: in the order of depth.
        verdicts: what holds of them.
    """

    loss: float
    parameters: tuple[Parameter, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def healthy(self) -> bool:
        """Whether all verdicts hold."""
        return all(verdict.holds for verdict in self.verdicts)

    def table(self) -> str:
        """Return the parameters as a text, a line each."""
        updates = not all(math.isnan(one.update_ratio) for one in self.parameters)
        head = [
            "parameter",
            "shape",
            "|signal|",
            "|weight|",
            "|gradient|",
            "rms gradient",
            "zeros",
            "|update|/|weight|",
        ]
        rows = [
            [one.name, "x".join(map(str, one.shape)) or "-",
             "-" if math.isnan(one.signal_norm) else f"{one.signal_norm:.3g}", f"{one.weight_norm:.3g}",
             f"{one.gradient_norm:.3g}", f"{one.gradient_rms:.3g}", f"{one.zeros:.0%}", f"{one.update_ratio:.2g}"]
            for one in self.parameters
        ]  # fmt: skip
        lines = [line if updates else line[:-1] for line in (head, *rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) if place < 2 else cell.rjust(width)
                      for place, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in lines
        )  # fmt: skip

    def __str__(self) -> str:
        """Return the loss, the table and the verdicts."""
        said = [f"{'yes' if one.holds else 'NO '}  {one.claim}: {one.evidence}" for one in self.verdicts]
        return "\n".join([f"loss {self.loss:.6g}", "", self.table(), "", *said])


def inspect(
    loss: Callable[..., Scalar],
    model: Any,
    *batch: Any,
    optimiser: Any = None,
    order: Sequence[str] | None = None,
    trainable: Callable[[str], bool] | None = None,
) -> Inspection:
    r"""Look at the gradient of every parameter of a model, and say what is wrong.

    $$ \lVert \partial L / \partial W_l \rVert, \quad \lVert \Delta W_l \rVert / \lVert W_l \rVert $$

    Runs on the host, one compiled gradient. The verdicts: loss and gradient are finite; every parameter gets a
    gradient; over the depth the back-propagated signal neither vanishes nor explodes (its fitted factor from the last
    weight to the first, weights being parameters with two axes or more, from three of them on; the gradient by a weight
    would not tell, for in a ReLU network it is the same size in all layers, whatever happens to the signal); with an
    optimiser, no first step moves a weight by more than a tenth, and none is lost in the rounding of its dtype.

    Args:
        loss: ``(model, *batch) -> scalar``.
        model: any pytree. Its floating-point arrays are the parameters; everything else stays as it is.
        batch: what the loss takes besides.
        optimiser: an Optax transformation, or anything with its `init` and `update`, whose first step is judged.
        order: beginnings of names, first layer first; ``"hidden[]"`` says that the leading axis of what is called so
            holds layers. None takes the order in which the loss uses the parameters.
        trainable: which arrays are parameters, by name; None for all. Say so of running statistics, which are not.

    Returns:
        The parameters in the order of depth, and the verdicts. Print it for a table.

    Raises:
        ValueError: the loss is no scalar, no leaf is a parameter, or an entry of `order` is the beginning of no name.

    Example:
        >>> model = {"first": jnp.ones((2, 2)), "second": jnp.full((2, 1), 0.5), "activation": jnp.tanh}
        >>> def loss(model, x):
        ...     return jnp.sum(model["activation"](x @ model["first"]) @ model["second"])
        >>> seen = inspect(loss, model, jnp.array([[0.1, 0.2]]))
        >>> [one.name for one in seen.parameters], seen.healthy
        (['first', 'second'], True)
    """
    leaves, structure = jax.tree.flatten(model)
    called = _names(model)
    chosen = [place for place, leaf in enumerate(leaves)
              if _is_parameter(leaf) and (trainable is None or trainable(called[place]))]  # fmt: skip
    if not chosen:
        raise ValueError(f"model: expected floating-point arrays among its leaves, got none in {sorted(called)[:9]}")

    def rebuilt(parameters: Sequence[Any]) -> Any:
        return jax.tree.unflatten(structure, _with(leaves, chosen, parameters))

    parameters = [jnp.asarray(leaves[place]) for place in chosen]
    examples, form = jax.tree.flatten(batch)
    given = [place for place, leaf in enumerate(examples) if isinstance(leaf, jax.Array | np.ndarray)]

    def value_of(parameters: Sequence[Array], arrays: Sequence[Any]) -> Scalar:
        return loss(rebuilt(parameters), *jax.tree.unflatten(form, _with(examples, given, arrays)))

    arrays = [examples[place] for place in given]
    program, shape = jax.make_jaxpr(value_of, return_shape=True)(parameters, arrays)
    if not hasattr(shape, "shape") or shape.shape != ():
        raise ValueError(f"loss: expected it to return one scalar, got {shape}")
    found = uses(program, [True] * len(chosen) + [False] * len(given))[: len(chosen)]
    value, gradients, signals = _differentiated(program, found, parameters, arrays)
    nothing = [None] * len(leaves)
    updates = None if optimiser is None else _first_updates(
        optimiser, lambda values: jax.tree.unflatten(structure, _with(nothing, chosen, values)), parameters, gradients
    )  # fmt: skip
    rows = _rows([called[place] for place in chosen], [len(one) if one.ndim else 1 for one in parameters], found, order)
    unused = {row.name for row in rows if not found[row.place].place} if any(use.place for use in found) else set()
    table = tuple(_measured(row, parameters, gradients, updates, signals) for row in rows)
    return Inspection(float(value), table, _verdicts(float(value), table, unused))


class _Row(NamedTuple):
    name: str
    place: int
    layer: int | None


def _is_parameter(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _with(leaves: Sequence[Any], places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    changed = list(leaves)
    for place, value in zip(places, values, strict=True):
        changed[place] = value
    return changed


def _names(model: Any) -> list[str]:
    """Return the names of the leaves, without the word that a library puts behind each of them."""
    called = list(names(model))
    attribute = [bool(path) and isinstance(path[-1], jax.tree_util.GetAttrKey)
                 for path, _ in jax.tree_util.tree_leaves_with_path(model)]  # fmt: skip
    wrapped = all(name.endswith(".value") and one for name, one in zip(called, attribute, strict=True))
    return [name.removesuffix(".value") for name in called] if wrapped else called


def _rows(called: list[str], lengths: list[int], found: Sequence[Use], order: Sequence[str] | None) -> list[_Row]:
    """Return one row a parameter and layer, by depth."""
    entries = [] if order is None else [(entry.removesuffix("[]"), entry.endswith("[]")) for entry in order]
    for entry, _ in entries:
        if not any(_begins(name, entry) for name in called):
            raise ValueError(f"order: {entry!r} is the beginning of no parameter's name; got {', '.join(called)}")
    last = max((step for use in found for step in use.place), default=0) + 1
    keyed: list[tuple[tuple[Any, ...], _Row]] = []
    for place, (name, use) in enumerate(zip(called, found, strict=True)):
        used = use.place or (last,)
        matches = [(-len(entry), position) for position, (entry, _) in enumerate(entries) if _begins(name, entry)]
        position = min(matches)[1] if matches else len(entries)
        stacked = entries[position][1] if matches else use.stacked
        # Layers of one entry, or of one scan, follow each other; what belongs to a layer stays together.
        group, inner = ((), used) if matches else (used[:1], used[1:]) if stacked else (used, ())
        for layer in range(lengths[place] if stacked else 1):
            row = _Row(f"{name}[{layer}]" if stacked else name, place, layer if stacked else None)
            keyed.append(((position, group, layer, inner, place), row))
    return [row for _, row in sorted(keyed, key=lambda pair: pair[0])]


def _begins(name: str, entry: str) -> bool:
    return name.startswith(entry) and name[len(entry) : len(entry) + 1] in ("", ".", "/")


def _differentiated(
    program: Any, found: Sequence[Use], parameters: list[Array], arrays: list[Any]
) -> tuple[Array, list[Array], dict[int, Array]]:
    """Return the loss, its gradient, and the norm of the signal at every weight, by layer where it has several."""
    weights = [place for place, (use, one) in enumerate(zip(found, parameters, strict=True))
               if use.place and one.ndim - use.stacked >= 2]  # fmt: skip
    taps = {found[place].equation: f"{found[place].place}" for place in weights}
    tapped = with_taps(program, taps)

    def run(parameters: list[Array], arrays: list[Any]) -> tuple[Array, list[Array], dict[int, Array]]:
        seen = capture(lambda parameters: tapped(*parameters, *arrays)[0])(parameters)
        signals = {place: seen.taps[taps[found[place].equation]].cotangent for place in weights}
        norms = {place: signal_norms(signal if found[place].stacked else signal[None])
                 for place, signal in signals.items() if signal is not None}  # fmt: skip
        return seen.value, seen.gradient, norms

    differentiated: tuple[Array, list[Array], dict[int, Array]] = jax.jit(run)(parameters, arrays)
    return differentiated


def _first_updates(optimiser: Any, tree: Callable[[Any], Any], parameters: Any, gradients: Any) -> list[Array]:
    """Return the first updates; the optimiser sees trees like the model with None for what is no parameter."""

    def run(parameters: Any, gradients: Any) -> list[Array]:
        updates, _ = optimiser.update(tree(gradients), optimiser.init(tree(parameters)), tree(parameters))
        return list(jax.tree.leaves(updates))

    updates: list[Array] = jax.jit(run)(parameters, gradients)
    return updates


def _measured(row: _Row, parameters: Any, gradients: Any, updates: Any, signals: Any) -> Parameter:
    def of(arrays: Any) -> np.ndarray:
        array = np.asarray(arrays[row.place] if row.layer is None else arrays[row.place][row.layer])
        return array.astype(np.float64)

    weight, gradient = of(parameters), of(gradients)
    weight_norm, gradient_norm = _norm(weight), _norm(gradient)
    moved = math.nan if updates is None else _norm(of(updates))
    ratio = moved / weight_norm if weight_norm else moved * math.inf if moved else moved
    # Layers that are no steps of a scan have one signal between them, which is none of theirs.
    signal = signals.get(row.place, ())
    known = len(signal) == (1 if row.layer is None else len(parameters[row.place]))
    return Parameter(
        row.name, weight.shape, weight_norm, gradient_norm, gradient_norm / math.sqrt(max(weight.size, 1)),
        float(np.mean(gradient == 0)) if weight.size else 1.0, float(signal[row.layer or 0]) if known else math.nan,
        ratio, float(jnp.finfo(parameters[row.place].dtype).eps),
    )  # fmt: skip


def _norm(array: np.ndarray) -> float:
    largest = float(np.max(np.abs(array), initial=0.0))
    return largest * float(np.sqrt(np.sum(np.square(array / largest)))) if 0 < largest < math.inf else largest


def _verdicts(loss: float, table: Sequence[Parameter], unused: set[str]) -> tuple[Verdict, ...]:
    found = [_finite(loss, table), _reached(table, unused)]
    weights = [one for one in table if len(one.shape) >= 2 and one.name not in unused]
    found += _over_depth(weights)
    moved = [one for one in weights if 0 < one.update_ratio < math.inf]
    return (*found, *(_steps(moved) if moved else ()))


def _finite(loss: float, table: Sequence[Parameter]) -> Verdict:
    bad = [one.name for one in table if not math.isfinite(one.gradient_norm)]
    wrong = ([] if math.isfinite(loss) else [f"the loss is {loss}"]) + ([f"not so in {_listed(bad)}"] if bad else [])
    evidence = "; ".join(wrong) or f"in all of {len(table)} parameters"
    return Verdict("loss and gradient are finite", not wrong, float(len(bad)), 0.0, evidence)


def _reached(table: Sequence[Parameter], unused: set[str]) -> Verdict:
    zero = [one.name for one in table if one.gradient_norm == 0]
    idle, dead = [name for name in zero if name in unused], [name for name in zero if name not in unused]
    wrong = ([f"exactly zero in {_listed(dead)}"] if dead else []) + (
        [f"the loss does not use {_listed(idle)}"] if idle else []
    )
    evidence = "; ".join(wrong) or f"all of {len(table)} do"
    return Verdict("every parameter gets a gradient", not zero, float(len(zero)), 0.0, evidence)


def _over_depth(weights: Sequence[Parameter]) -> list[Verdict]:
    claim = "over the depth the back-propagated signal keeps its size"
    weights = [one for one in weights if not math.isnan(one.signal_norm)]
    positions = [place for place, one in enumerate(weights) if 0 < one.signal_norm < math.inf]
    if len(weights) < FEWEST_WEIGHTS or not positions:
        return []
    if positions[0] > 0:
        evidence = f"vanishes: exactly zero in the first {positions[0]} of {len(weights)} weights"
        return [Verdict(claim, False, 0.0, 1 / KEEPS_WITHIN, evidence)]
    if len(positions) < FEWEST_WEIGHTS:
        return []
    centred = np.array(positions, np.float64) - np.mean(positions)
    logs = np.log([weights[place].signal_norm for place in positions])
    slope = float(logs @ centred / (centred @ centred))
    decades = -slope * (len(weights) - 1) / math.log(10)
    holds = abs(decades) <= math.log10(KEEPS_WITHIN)
    word = "is kept" if holds else "vanishes" if decades < 0 else "explodes"
    evidence = (
        f"{word}: a weight passes on {math.exp(-slope):.3g}, and so the first of {len(weights)} gets "
        f"{10.0**decades:.2g} times the signal of the last"
    )
    return [Verdict(claim, holds, 10.0**decades, KEEPS_WITHIN if decades > 0 else 1 / KEEPS_WITHIN, evidence)]


def _steps(weights: Sequence[Parameter]) -> tuple[Verdict, Verdict]:
    most = max(weights, key=lambda one: one.update_ratio)
    least = min(weights, key=lambda one: one.update_ratio / one.precision)
    roundings = least.update_ratio / least.precision
    return (
        Verdict("no step moves a weight by more than a tenth", most.update_ratio <= LARGEST_STEP, most.update_ratio,
                LARGEST_STEP, f"{most.name} by {most.update_ratio:.2g} of its norm"),
        Verdict("no step is lost in rounding", roundings >= SMALLEST_STEP, roundings, SMALLEST_STEP,
                f"{least.name} moves by {roundings:.2g} times the distance of neighbouring numbers"),
    )  # fmt: skip


def _listed(names_of_parameters: Sequence[str]) -> str:
    shown, more = names_of_parameters[:4], len(names_of_parameters) - 4
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
