"""The chain rule over a graph of scalars: many paths from the inputs to the output.

`dy/dx = Σ over paths of the products of partial derivatives`. Adjoints and tangents sum over all paths at once, from
the output back or from an input on; `paths` lists them one by one. Records keep their names as keys, and so pass
through `jax.jit` and `jax.vmap`.
"""

import graphlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.types import Array, Scalar

MOST_PATHS = 1000

Function = Callable[..., Array]
ByName = OrderedDict[str, Array]


class Graph(NamedTuple):
    """Variables that depend on each other, with derivatives of three kinds.

    Attributes:
        values: of inputs and nodes, each after those on which it depends.
        edges: `edges[node][argument]`, the partial derivative of a node by one of its arguments.
        adjoints: `adjoints[name]`, the total derivative of the output by it, from the output on (reverse accumulation).
        tangents: `tangents[input][name]`, the total derivative of it by an input (forward accumulation).
    """

    values: ByName
    edges: dict[str, ByName]
    adjoints: ByName
    tangents: dict[str, ByName]


def graph(
    nodes: Mapping[str, tuple[Function, Sequence[str]]],
    inputs: Mapping[str, Float[Array, ""] | float],
    output: str | None = None,
) -> Graph:
    """Differentiate over a graph of scalars.

    `∂u/∂v = Σ over nodes w that take v of (∂u/∂w) (∂w/∂v)`, from the output back, and the mirror image from each input

    Args:
        nodes: function and names of its arguments by the name of its result, in any order.
        inputs: scalars by name; may be traced. For many inputs, use `jax.vmap`.
        output: the name that adjoints refer to; None takes the one that no other takes.

    Returns:
        Values, partial and total derivatives.

    Raises:
        ValueError: a name is unknown, taken twice or part of a cycle, a value is no scalar, or the output is not clear.

    Example:
        >>> nodes = {"u": (lambda x, y: x**2 + y, ("x", "y")), "x": (jnp.multiply, "ab"), "y": (jnp.add, "ab")}
        >>> result = graph(nodes, {"a": 2.0, "b": 3.0})
        >>> float(result.adjoints["a"]), float(result.edges["u"]["x"]), float(result.tangents["b"]["y"])
        (37.0, 12.0, 1.0)

    Reference: Griewank and Walther 2008, Evaluating derivatives, section 2.2 and chapter 3.
    """
    order, output = _order(nodes, inputs, output)
    dtype = jnp.result_type(*inputs.values(), 1.0)
    values: ByName = OrderedDict()
    edges: dict[str, ByName] = {}
    for name in order:
        if name in inputs:
            values[name] = jnp.asarray(inputs[name], dtype)
        else:
            function, arguments = nodes[name]
            operands = [values[argument] for argument in arguments]
            values[name] = jnp.asarray(function(*operands))
        if values[name].shape:
            raise ValueError(
                f"{name!r} must be a scalar, got shape {values[name].shape}; use jax.vmap for many at once"
            )
        if name in nodes:
            edges[name] = OrderedDict()
            for argument, partial in zip(
                arguments, jax.grad(function, tuple(range(len(operands))))(*operands), strict=True
            ):
                edges[name][argument] = edges[name].get(argument, 0) + partial
    zero, one = jnp.zeros((), values[output].dtype), jnp.ones((), values[output].dtype)
    adjoints = OrderedDict((name, one if name == output else zero) for name in [output, *reversed(order)])
    for name in reversed(order):
        for argument, partial in edges.get(name, {}).items():
            adjoints[argument] = adjoints[argument] + adjoints[name] * partial
    tangents: dict[str, ByName] = {}
    for start in inputs:
        reached: ByName = OrderedDict()
        for name in order:
            terms = [partial * reached[argument] for argument, partial in edges.get(name, {}).items()]
            reached[name] = sum(terms, one if name == start else zero)
        tangents[start] = reached
    return Graph(values, edges, adjoints, tangents)


class Path(NamedTuple):
    """One way through a graph, from its start on, and the product of the partial derivatives along it."""

    names: tuple[str, ...]
    product: Scalar


def paths(result: Graph, start: str, end: str | None = None) -> tuple[Path, ...]:
    """List every path between two variables; the products sum to the total derivative.

    `d(end)/d(start) = Σ over paths of Π over edges of ∂(node)/∂(argument)`

    Args:
        result: what `graph` returned.
        start: name of an input or node.
        end: name of a node; None takes the output of the graph.

    Returns:
        The paths, none if end does not depend on start.

    Raises:
        ValueError: a name is unknown, or there are more than 1,000 paths.

    Example:
        >>> nodes = {"u": (lambda x, y: x**2 + y, ("x", "y")), "x": (jnp.multiply, "ab"), "y": (jnp.add, "ab")}
        >>> for path in paths(graph(nodes, {"a": 2.0, "b": 3.0}), "a"):
        ...     print(" -> ".join(path.names), float(path.product))
        a -> x -> u 36.0
        a -> y -> u 1.0
    """
    end = next(iter(result.adjoints)) if end is None else end
    for name in (start, end):
        if name not in result.values:
            raise ValueError(f"start and end must be among {', '.join(result.values)}; got {name!r}")
    counts = dict.fromkeys(result.values, 0)
    for name in result.values:
        counts[name] = 1 if name == start else sum(counts[argument] for argument in result.edges.get(name, {}))
    if counts[end] > MOST_PATHS:
        raise ValueError(
            f"from {start!r} to {end!r} there must be at most {MOST_PATHS} paths, got {counts[end]}; "
            "take adjoints or tangents, which sum over all of them"
        )
    found: dict[str, list[Path]] = {}

    def ways(name: str) -> list[Path]:
        if name == start:
            return [Path((start,), jnp.ones_like(result.values[start]))]
        if name not in found:
            found[name] = [
                Path((*way.names, name), way.product * partial)
                for argument, partial in result.edges.get(name, {}).items()
                if counts[argument]
                for way in ways(argument)
            ]
        return found[name]

    return tuple(ways(end))


def _order(nodes: Mapping[str, Any], inputs: Mapping[str, Any], output: str | None) -> tuple[list[str], str]:
    for name, (_, arguments) in nodes.items():
        if name in inputs:
            raise ValueError(f"nodes and inputs must differ in their names, got {name!r} in both")
        for argument in arguments:
            if argument not in nodes and argument not in inputs:
                known = ", ".join([*inputs, *nodes])
                raise ValueError(
                    f"nodes: {name!r} takes {argument!r}, which is neither a node nor an input of: {known}"
                )
    dependencies = {**dict.fromkeys(inputs, ()), **{name: tuple(nodes[name][1]) for name in nodes}}
    try:
        order = list(graphlib.TopologicalSorter(dependencies).static_order())
    except graphlib.CycleError as error:
        raise ValueError(f"nodes must not depend on themselves, got the cycle {' -> '.join(error.args[1])}") from None
    used = {argument for arguments in dependencies.values() for argument in arguments}
    ends = [name for name in nodes if name not in used] if output is None else [output]
    if len(ends) != 1 or ends[0] not in dependencies:
        raise ValueError(f"output must be one of {', '.join(dependencies)}; got {', '.join(ends) or 'none'}")
    return order, ends[0]
