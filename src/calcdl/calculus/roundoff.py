"""How much of a computed value is round-off, measured on the computation itself.

A difference such as `1 - cos(x)` at x = 1e-9 is 0 to the last bit, at this point and at every neighbour: nothing in
the values betrays that all their digits are lost. So the function is evaluated again with the result of every
operation moved by a few units in its last place, as round-off could have moved it by one, and the values are compared.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal
from jaxtyping import Bool, Float

from calcdl.types import Array

# These return one of the numbers they are given, or a whole one.
_EXACT = frozenset(
    {
        *("neg", "abs", "sign", "floor", "ceil", "round", "max"),
        *("min", "clamp", "select_n", "copy", "copy_p", "reshape", "broadcast_in_dim"),
        *("squeeze", "expand_dims", "transpose", "slice", "dynamic_slice", "dynamic_update_slice", "gather"),
        *("scatter", "concatenate", "pad", "rev", "stop_gradient", "reduce_max", "reduce_min"),
        *("reduce_precision", "iota", "sort", "device_put", "rem", "real", "imag"),
        *("split", "optimization_barrier"),
    }
)
# Calls whose body is walked through; the work of loops and branches is moved as a whole.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr"}
_CALLS |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
_CAN_UNDERFLOW = frozenset({"mul", "div", "exp", "exp2", "pow", "integer_pow", "square", "logistic"})
# Elementary functions of float32 are good to a few units in the last place, arithmetic to half a unit.
_CORRECTLY_ROUNDED = frozenset({"add", "sub", "mul", "div", "sqrt", "square"})
_SAFETY = 2.0
# By how many last places results are moved, for one place may be rounded away again, and how many ways of doing so.
_PLACES = 4.0
_ROOTS = (math.sqrt(2), math.sqrt(3), math.sqrt(5))


class Measured(NamedTuple):
    """Values of a function with their round-off.

    Attributes:
        value: f at each point.
        noise: how far round-off may have moved it; infinity where a neighbouring computation gives no number.
        undefined: NaN by the function's own domain (a root or logarithm of a negative number), and not because a
            number on the way became too large, or 0 / 0.
    """

    value: Float[Array, " points"]
    noise: Float[Array, " points"]
    undefined: Bool[Array, " points"]


def measure(function: Callable[[Array], Any], points: Float[Array, "points ..."]) -> Measured:
    """Evaluate a function at many points together with the round-off of every value.

    `noise = 2 max_v |f_v(x) - f(x)| / m + eps |f(x)|`, where in f_v the result of the i-th operation, and x itself, is
    multiplied by `1 + m eps c_vi`, with fixed c of either sign and size about 1, for three choices v of them; m is 4.

    Args:
        function: f, of one point, returning a number; anything that JAX can trace.
        points: where to evaluate it, in the dtype of the computation.

    Returns:
        A `Measured`.

    Raises:
        ValueError: f returns anything but one real number.

    Example:
        >>> measured = measure(lambda x: (1 - jnp.cos(x)) / x**2, jnp.array([0.1, 1e-9]))
        >>> [bool(noise < 1e-3) for noise in measured.noise]
        [True, False]

    Reference:
        Vignes, A stochastic arithmetic for reliable scientific computation, 1993 (random, where this is fixed).
    """
    program, form = jax.make_jaxpr(function, return_shape=True)(points[0])
    leaves = jax.tree.leaves(form)
    if len(leaves) != 1 or leaves[0].shape != () or jnp.issubdtype(leaves[0].dtype, jnp.complexfloating):
        raise ValueError(f"function must return one real number, got {form}")
    dtype = points.dtype

    def evaluate(point: Array, choice: Array) -> tuple[Array, Array]:
        walk = _Walk(choice)
        (value,) = walk.through(program.jaxpr, program.consts, [walk.moved(point, "input")])
        return jnp.asarray(value, dtype), walk.strained

    choices = jnp.asarray(np.eye(len(_ROOTS) + 1, len(_ROOTS), -1), dtype)
    values, strained = jax.vmap(jax.vmap(evaluate, (None, 0)), (0, None))(points, choices)
    value = values[:, 0]
    spread = jnp.max(jnp.abs(values[:, 1:] - value[:, None]), axis=1)
    noise = _SAFETY / _PLACES * spread + float(jnp.finfo(dtype).eps) * jnp.abs(value)
    return Measured(value, jnp.where(jnp.isnan(noise), jnp.inf, noise), jnp.isnan(value) & ~strained[:, 0])


class _Walk:
    """One pass through a program, with its operations moved as the choice says."""

    def __init__(self, choice: Array) -> None:
        self.choice = choice
        self.count = 0
        self.strained = jnp.asarray(False)

    def through(self, jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        known.update(zip(jaxpr.constvars, map(self.constant, constants), strict=True))

        def read(atom: Any) -> Any:
            return self.constant(atom.val) if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            name, operands = equation.primitive.name, [read(atom) for atom in equation.invars]
            if name in _CALLS:
                body = equation.params[_CALLS[name]]
                closed = not isinstance(body, Jaxpr)
                results = self.through(body.jaxpr if closed else body, body.consts if closed else (), operands)
            else:
                bound = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
                results = list(bound) if equation.primitive.multiple_results else [bound]
                results = [self.moved(result, name, operands) for result in results]
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def constant(self, value: Any) -> Any:
        """Move what stands for a number with more digits, as the literal for pi does."""
        if isinstance(value, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            return value
        parts = np.asarray(value, np.float64) * 2.0**20
        return value if np.all(parts == np.round(parts)) else self.moved(jnp.asarray(value), "constant")

    def moved(self, result: Any, name: str, operands: Sequence[Any] = ()) -> Any:
        if not jnp.issubdtype(jnp.result_type(result), jnp.floating) or name in _EXACT:
            return result
        floating = [form for form in map(jnp.result_type, operands) if jnp.issubdtype(form, jnp.floating)]
        widths = [jnp.finfo(form).bits for form in floating]
        if name == "convert_element_type" and max(widths, default=0) <= jnp.finfo(result.dtype).bits:
            return result
        self.count += 1
        limits = jnp.finfo(result.dtype)
        size = float(limits.eps) * (1 if name in _CORRECTLY_ROUNDED or name in ("input", "constant") else 2)
        moves = jnp.asarray([_PLACES * _sign_and_size(self.count, root) for root in _ROOTS], result.dtype)
        move = jnp.sum(self.choice.astype(result.dtype) * moves)
        if operands:
            self.strained |= jnp.any(jnp.isinf(result))
        if name == "div":
            self.strained |= jnp.any((operands[0] == 0) & (operands[1] == 0))
        moved = result * (1 + size * move)
        if name not in _CAN_UNDERFLOW:
            return moved
        exact = functools.reduce(jnp.logical_or, (operand == 0 for operand in operands))  # 0 times 0 has not underflown
        return moved + jnp.where(exact, 0, float(limits.tiny) * move)


def _sign_and_size(count: int, root: float) -> float:
    phase = math.fmod(count * root, 1.0)
    return (0.75 + 0.5 * math.fmod(2 * phase, 1.0)) * (1 if phase < 0.5 else -1)
