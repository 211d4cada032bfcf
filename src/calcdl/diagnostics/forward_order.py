"""The order in which a program uses its parameters: the depth of a model of any make, read from what it computes.

Names do not tell depth: `decoder` comes before `encoder` in the alphabet. The traced program does. A parameter's place
is the first equation in which it, or what was made of parameters alone, meets the data; a penalty on the weights, which
meets them when it is added to the loss, therefore changes nothing. What the outputs do not rest on has no place. Where
a scan runs over a parameter's leading axis, that axis is depth.

Where a weight meets the data, `h = W x`, the loss's derivative by the result is the back-propagated signal: `with_taps`
puts a tap there, so that it can be seen in a model that has none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import jax

from calcdl.diagnostics.taps import tap

PARTS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat",
         "remat2")  # fmt: skip


class Use(NamedTuple):
    """Where a program uses an input.

    Attributes:
        place: position of the first use with data: of the scan for an input that is scanned over, then inside of it;
            empty where there is none.
        stacked: whether a scan runs over its leading axis.
        equation: the equation, and those around it, outermost first, by which `with_taps` knows it.
    """

    place: tuple[int, ...]
    stacked: bool
    equation: tuple[int, ...]


class _Walk(NamedTuple):
    """What has been met so far."""

    places: list[tuple[int, ...]]
    stacked: list[bool]
    equations: list[tuple[int, ...]]
    clock: Iterator[int]


_Content = tuple[frozenset[int], bool]  # the inputs that something was made of, and whether data were among it
_NEUTRAL: _Content = (frozenset(), False)


def uses(program: Any, parameters: Sequence[bool]) -> tuple[Use, ...]:
    """Tell where a traced program first uses each of its inputs.

    `program  ->  place of each input in the order of computation`

    Args:
        program: of `jax.make_jaxpr`.
        parameters: which of its inputs are parameters; the others are data, as are the arrays it has closed over.

    Returns:
        One record an input.

    Example:
        >>> import jax
        >>> program = jax.make_jaxpr(lambda late, early, x: (x * early) * late + early**2)(1.0, 2.0, 3.0)
        >>> [use.place for use in uses(program, [True, True, False])]
        [(2,), (1,), ()]
    """
    size = len(parameters)
    walk = _Walk([()] * size, [False] * size, [()] * size, count(1))
    inputs = [(frozenset({index}), False) if one else (frozenset(), True) for index, one in enumerate(parameters)]
    constants = [(frozenset[int](), len(var.aval.shape) > 0) for var in program.jaxpr.constvars]
    _follow(program.jaxpr, [*constants, *inputs], walk, (), ())
    return tuple(Use(*one) for one in zip(walk.places, walk.stacked, walk.equations, strict=True))


def with_taps(program: Any, names: Mapping[tuple[int, ...], str]) -> Callable[..., list[Any]]:
    """Make the function that a program was traced from, with a tap at the result of some of its equations.

    `program  ->  (*inputs) -> outputs`

    Args:
        program: of `jax.make_jaxpr`.
        names: of the taps, by the `equation` of a `Use`.

    Returns:
        A function of the program's inputs that returns its outputs.

    Example:
        >>> from calcdl.diagnostics.taps import capture
        >>> program = jax.make_jaxpr(lambda w, x: (w * x) ** 2)(3.0, 2.0)
        >>> tapped = with_taps(program, {uses(program, [True, False])[0].equation: "signal"})
        >>> float(capture(lambda w, x: tapped(w, x)[0])(3.0, 2.0).taps["signal"].cotangent)
        12.0
    """
    return lambda *inputs: _evaluate(program.jaxpr, [*program.consts, *inputs], names, ())


def _follow(
    jaxpr: Any, inputs: Sequence[_Content], walk: _Walk, at: tuple[int, ...], within: tuple[int, ...]
) -> list[_Content]:
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))
    for equation in _needed(jaxpr):
        content = [_NEUTRAL if hasattr(atom, "val") else known.get(atom, _NEUTRAL) for atom in equation.invars]
        found = _through(equation, content, walk, (*at, next(walk.clock)), (*within, id(equation)))
        known |= dict(zip(equation.outvars, found, strict=True))
    return [_NEUTRAL if hasattr(atom, "val") else known.get(atom, _NEUTRAL) for atom in jaxpr.outvars]


def _inner(equation: Any) -> tuple[Any, Sequence[Any]] | None:
    """Return the program that an equation runs and its constants, for those that can be written out."""
    if equation.primitive.name not in ("scan", *PARTS):
        return None
    for part in equation.params.values():
        if hasattr(part, "jaxpr") or hasattr(part, "eqns"):
            jaxpr, consts = (part.jaxpr, part.consts) if hasattr(part, "jaxpr") else (part, ())
            return (jaxpr, consts) if len(jaxpr.invars) == len(equation.invars) else None
    return None


def _needed(jaxpr: Any) -> list[Any]:
    """Return the equations that the outputs rest on: none of what is computed and thrown away."""
    wanted, needed = {atom for atom in jaxpr.outvars if not hasattr(atom, "val")}, []
    for equation in reversed(jaxpr.eqns):
        if wanted & {*equation.outvars}:
            needed.append(equation)
            wanted |= {atom for atom in equation.invars if not hasattr(atom, "val")}
    return needed[::-1]


def _through(
    equation: Any, content: list[_Content], walk: _Walk, here: tuple[int, ...], path: tuple[int, ...]
) -> list[_Content]:
    inner, is_scan = _inner(equation), equation.primitive.name == "scan"
    if inner is not None:
        inputs = _into_scan(equation, inner[0], content, walk) if is_scan else content
        constants = [_NEUTRAL] * len(inner[1])
        return _follow(inner[0], [*constants, *inputs], walk, here if is_scan else here[:-1], path)
    made_of = frozenset[int]().union(*(one for one, _ in content))
    if not any(data for _, data in content):
        return [(made_of, False)] * len(equation.outvars)
    for index in made_of:
        if not walk.places[index]:
            walk.places[index], walk.equations[index] = here, path
    return [(frozenset(), True)] * len(equation.outvars)


def _into_scan(equation: Any, jaxpr: Any, content: list[_Content], walk: _Walk) -> list[_Content]:
    fixed, carried = _scan_parts(equation, jaxpr)
    for made_of, data in content[fixed + carried :]:
        for index in () if data else made_of:
            walk.stacked[index] = walk.stacked[index] or not walk.places[index]
    # A carry that starts from a constant meets the data in the first step.
    data = any(one for _, one in content)
    return [
        (made_of, one or (data and not made_of and fixed <= place < fixed + carried))
        for place, (made_of, one) in enumerate(content)
    ]


def _evaluate(jaxpr: Any, inputs: Sequence[Any], names: Mapping[tuple[int, ...], str], within: tuple[int, ...]) -> Any:
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))
    for equation in jaxpr.eqns:
        values = [atom.val if hasattr(atom, "val") else known[atom] for atom in equation.invars]
        path, inner = (*within, id(equation)), _inner(equation)
        if inner is None or not any(path == name[: len(path)] for name in names):
            found = equation.primitive.bind(*values, **equation.primitive.get_bind_params(equation.params))
            outputs = list(found) if equation.primitive.multiple_results else [found]
            if path in names:
                outputs[0] = tap(outputs[0], names[path])
        elif equation.primitive.name == "scan":
            outputs = _evaluate_scan(equation, *inner, values, names, path)
        else:
            outputs = _evaluate(inner[0], [*inner[1], *values], names, path)
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return [atom.val if hasattr(atom, "val") else known[atom] for atom in jaxpr.outvars]


def _evaluate_scan(
    equation: Any, jaxpr: Any, consts: Sequence[Any], values: list[Any], names: Any, path: tuple[int, ...]
) -> list[Any]:
    fixed, carried = _scan_parts(equation, jaxpr)

    def advance(carry: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = _evaluate(jaxpr, [*consts, *values[:fixed], *carry, *row], names, path)
        return outputs[:carried], outputs[carried:]

    start, table, params = values[fixed : fixed + carried], values[fixed + carried :], equation.params
    carry, rows = jax.lax.scan(advance, start, table, params["length"], params["reverse"], params["unroll"])
    return [*carry, *rows]


def _scan_parts(equation: Any, jaxpr: Any) -> tuple[int, int]:
    """Return how many inputs of a scan stay as they are, and how many are carried; the others are scanned over."""
    scanned = sum(outer.aval.ndim > one.aval.ndim for outer, one in zip(equation.invars, jaxpr.invars, strict=True))
    carried = sum(o.aval.ndim == i.aval.ndim for o, i in zip(equation.outvars, jaxpr.outvars, strict=True))
    return len(equation.invars) - scanned - carried, carried
