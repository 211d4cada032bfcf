r"""Taps: look at any intermediate value of a pure function, and at the gradient that flows back through it.

    y = tap(x, "name")        inside a function: the identity
    capture(loss)(params)     the loss, its gradient, and for every tap x the pair  x,  ∂loss/∂x
    observe(model)(x)         what the model returns, and every tap x

A tap leaves a mark in the traced program and nothing else: no callback, no global. `capture` reads the program, adds
0 to every marked value, and differentiates by what it added:

    loss(x + o),    ∂loss/∂x = ∂loss/∂o at o = 0

So taps may stand in anything that can be traced: under `jax.jit`, `jax.vmap`, `jax.checkpoint`, and in the body of a
`jax.lax.scan`, whose taps come out stacked along the steps. Only where it depends on data whether or how often a tap is
met (`jax.lax.cond`, `jax.lax.while_loop`) there is no array that could hold it; such taps are refused by name.
"""

import fnmatch
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from calcdl.trees import map_with_names
from calcdl.types import Array, Params, Scalar

_MARK = "calcdl tap: "
_INLINED = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
_REMADE = ("checkpoint", "remat", "remat2")


class Tap(NamedTuple):
    """What flowed through a tap.

    Attributes:
        value: what the function computed there; inside a scan with a leading axis of its steps.
        cotangent: the derivative of the function's value by it, of the same shape; None for whole numbers.
    """

    value: Array
    cotangent: Any


class Captured(NamedTuple):
    """A function's value, its gradient, and its taps.

    Attributes:
        value: what the function returned.
        gradient: its gradient by the first argument.
        taps: by name.
    """

    value: Scalar
    gradient: Params
    taps: dict[str, Tap]


def tap(x: Any, name: str) -> Any:
    """Mark a value, so that `capture` finds it: the identity.

    `x  ->  x`

    Args:
        x: an array, or a pytree of arrays, whose leaves are found under the name, a dot, and their own.
        name: under which it is found, once in a function; in a scan it is met once a step.

    Returns:
        The same.

    Raises:
        ValueError: an empty name.

    Example:
        >>> float(tap(jnp.float32(2.0), "weight"))
        2.0
    """
    if not name:
        raise ValueError("name: expected a name for the tap, got an empty one")
    return map_with_names(lambda leaf, value: checkpoint_name(value, f"{_MARK}{name}{leaf and '.'}{leaf}"), x)


def capture(function: Callable[..., Scalar], names: Collection[str] | None = None) -> Callable[..., Captured]:
    r"""Make a function that also returns what flows through its taps, forwards and backwards.

    $$ x_t, \quad \frac{\partial f}{\partial x_t} $$

    One forward and one backward pass. Works under `jax.jit`, `jax.vmap` and `jax.grad`. A custom derivative rule of a
    function with a tap inside is replaced by the derivative of what it computes.

    Args:
        function: f, a scalar function of a pytree of floating-point arrays and further arguments.
        names: of the taps to be seen, where ``*`` stands for any letters; None for all. The others cost nothing.

    Returns:
        ``(params, *arguments) -> Captured``.

    Raises:
        ValueError: a name that is used for more than one tap or for none, a tap in a branch or in a while loop. By the
            function that is returned, when it is traced.

    Example:
        >>> loss = lambda w, x: tap(w * x, "product") ** 2
        >>> seen = capture(loss)(jnp.float32(3.0), jnp.float32(2.0))
        >>> float(seen.taps["product"].value), float(seen.taps["product"].cotangent), float(seen.gradient)
        (6.0, 12.0, 24.0)
    """

    def captured(params: Params, *arguments: Any) -> Captured:
        run, shape = _read(function, names, (params, *arguments))
        if [leaf.shape for leaf in jax.tree.leaves(shape)] != [()]:
            raise ValueError(f"function: expected it to return one scalar, got {shape}")
        found = jax.eval_shape(lambda *arguments: run(arguments, None)[1], params, *arguments)
        offsets = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in found.items() if _differentiable(leaf)}

        def value_of(params: Params, offsets: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
            (value,), seen = run((params, *arguments), offsets)
            return value, seen

        gradients = jax.value_and_grad(value_of, argnums=(0, 1), has_aux=True)
        (value, seen), (gradient, cotangents) = gradients(params, offsets)
        return Captured(value, gradient, {name: Tap(at, cotangents.get(name)) for name, at in seen.items()})

    return captured


def observe(
    function: Callable[..., Any], names: Collection[str] | None = None
) -> Callable[..., tuple[Any, dict[str, Array]]]:
    """Make a function that also returns what it computes at its taps, without any derivative.

    `x  ->  f(x), {name: value}`

    Args:
        function: f, of any arguments, with any value.
        names: as of `capture`.

    Returns:
        ``(*arguments) -> (value, {name: value at the tap})``.

    Raises:
        ValueError: as `capture`.

    Example:
        >>> value, seen = observe(lambda x: tap(2 * x, "double") + 1)(jnp.float32(3.0))
        >>> float(value), float(seen["double"])
        (7.0, 6.0)
    """

    def observed(*arguments: Any) -> tuple[Any, dict[str, Array]]:
        run, shape = _read(function, names, arguments)
        outputs, seen = run(arguments, None)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs), seen

    return observed


def _read(
    function: Callable[..., Any], names: Collection[str] | None, arguments: tuple[Any, ...]
) -> tuple[Callable[..., tuple[list[Any], dict[str, Array]]], Any]:
    """Trace a function; return what runs it with offsets at its taps, and the shape of its value."""
    flat, structure = jax.tree.flatten(arguments)
    trace = jax.make_jaxpr(lambda *leaves: function(*jax.tree.unflatten(structure, leaves)), return_shape=True)
    program, shape = trace(*flat)
    there = sorted(_all_names(program.jaxpr))
    found = {name: fnmatch.filter(there, name) for name in (["*"] if names is None else names)}
    if missing := [name for name, matches in found.items() if not matches and names is not None]:
        raise ValueError(
            f"names: expected taps of the function, got {missing[0]!r}; there are: {', '.join(there) or 'none'}"
        )
    wanted = frozenset(name for matches in found.values() for name in matches)

    def run(arguments: Any, offsets: Mapping[str, Array] | None) -> tuple[list[Any], dict[str, Array]]:
        return _run(program.jaxpr, program.consts, jax.tree.leaves(arguments), offsets or {}, wanted)

    return run, shape


def _differentiable(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _run(
    jaxpr: Any, consts: Any, arguments: Any, offsets: Mapping[str, Array], wanted: Collection[str]
) -> tuple[list[Any], dict[str, Array]]:
    """Evaluate a program with an offset added at every tap wanted; return its outputs and the values at the taps."""
    known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
    seen: dict[str, Array] = {}
    for equation in jaxpr.eqns:
        inputs = [atom.val if hasattr(atom, "val") else known[atom] for atom in equation.invars]
        outputs, inner = _step(equation, inputs, offsets, wanted)
        if twice := sorted({*inner} & {*seen}):
            raise ValueError(f"tap: expected each name once, got {twice[0]!r} twice; name the taps apart")
        seen |= inner
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return [atom.val if hasattr(atom, "val") else known[atom] for atom in jaxpr.outvars], seen


def _step(
    equation: Any, inputs: list[Any], offsets: Mapping[str, Array], wanted: Collection[str]
) -> tuple[list[Any], dict[str, Array]]:
    primitive, params = equation.primitive.name, equation.params
    if primitive == "name" and params["name"].startswith(_MARK):
        name, value = params["name"].removeprefix(_MARK), inputs[0]
        if name not in wanted:
            return [value], {}
        return [value + offsets[name] if name in offsets else value], {name: value}
    names = [name for name in _names(equation) if name in wanted]
    if not names:
        found = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
        return list(found) if equation.primitive.multiple_results else [found], {}
    if primitive == "scan":
        return _scan(equation, inputs, {name: offsets[name] for name in names if name in offsets}, wanted)
    inner = next((part for part in params.values() if _is_program(part)), None)
    if inner is None or primitive not in (*_INLINED, *_REMADE):
        raise ValueError(f"tap {names[0]!r}: expected outside of branches and while loops, got it inside {primitive!r}")
    jaxpr, consts = _parts(inner)
    if primitive in _INLINED:
        return _run(jaxpr, consts, inputs, offsets, wanted)
    own = {name: offsets[name] for name in names if name in offsets}
    again = jax.checkpoint(
        lambda offsets, *arguments: _run(jaxpr, consts, arguments, offsets, wanted),
        prevent_cse=params["prevent_cse"], policy=params["policy"],
    )  # fmt: skip
    outputs, seen = again(own, *inputs)
    return outputs, seen


def _scan(
    equation: Any, inputs: list[Any], offsets: Mapping[str, Array], wanted: Collection[str]
) -> tuple[list[Any], dict[str, Array]]:
    params, (jaxpr, consts) = equation.params, _parts(equation.params["jaxpr"])
    # What is scanned over has one axis more outside of the body than inside; the carry comes first among the outputs.
    pairs = list(zip(equation.invars, jaxpr.invars, strict=True))
    rows = sum(outer.aval.ndim > inner.aval.ndim for outer, inner in pairs)
    carried = sum(o.aval.ndim == i.aval.ndim for o, i in zip(equation.outvars, jaxpr.outvars, strict=True))
    fixed = len(inputs) - rows - carried
    constants, start, table = inputs[:fixed], inputs[fixed : fixed + carried], inputs[fixed + carried :]

    def advance(carry: Any, row: tuple[Any, Any]) -> tuple[Any, Any]:
        entries, own = row
        outputs, seen = _run(jaxpr, consts, [*constants, *carry, *entries], own, wanted)
        return outputs[:carried], (outputs[carried:], seen)

    carry, (stacked, seen) = jax.lax.scan(
        advance, start, (table, offsets), length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*carry, *stacked], seen


def _parts(program: Any) -> tuple[Any, Any]:
    return (program.jaxpr, program.consts) if hasattr(program, "jaxpr") else (program, [])


def _is_program(part: Any) -> bool:
    return hasattr(part, "eqns") or hasattr(part, "jaxpr")


def _names(equation: Any) -> list[str]:
    """Return the names of the taps in the programs that an equation carries."""
    parts = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program)
    return [name for part in parts if _is_program(part) for name in _all_names(_parts(part)[0])]


def _all_names(jaxpr: Any) -> list[str]:
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "name" and equation.params["name"].startswith(_MARK):
            found.append(equation.params["name"].removeprefix(_MARK))
        found += _names(equation)
    return found
