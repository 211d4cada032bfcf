"""The functions that a formula may call: for JAX with accurate derivatives, for floats, and for SymPy.

JAX has 1 - tanh², s - s² and expm1 + 1 for derivatives of tanh, sigmoid and expm1, which are 0 in the tails; here they
are not. For complex inputs, which serve derivatives by complex steps, abs, sign, floor, ceil, min, max, relu and cbrt
choose their branch by the real part; erf, erfc, gamma and loggamma refuse them.

Derivatives at a kink: 0 for abs, sign and relu; the mean of both sides for min and max. In float32, gamma errs by up to
1.3e-5 near 30, and 5e-6 below 10, since it is taken through its logarithm.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from calcdl.types import Array


class Function(NamedTuple):
    """What a text may call: for JAX, for floats, and for SymPy, whose module is then the first argument."""

    value: Callable[..., Array]
    number: Callable[..., float]
    symbolic: Callable[..., Any]
    fewest: int = 1
    most: int = 1


def real_part(x: Array) -> Array:
    """Return x, or its real part where it is complex."""
    return jnp.real(x) if jnp.iscomplexobj(x) else x


def forward_differentiated(function: Callable[..., Array]) -> Callable[..., Array]:
    """Differentiate an element-wise function forward, also where JAX asks for reverse mode.

    Backwards, a selection multiplies the slope of the branch not taken by 0, which gives NaN where that is infinite;
    forwards it drops the slope. The partial derivatives are element-wise too, and so every order is treated alike.
    """

    def partial_derivative(index: int, *arrays: Array) -> Array:
        def along(x: Array) -> Array:
            return function(*arrays[:index], x, *arrays[index + 1 :])

        slope: Array = jax.jvp(along, (arrays[index],), (jnp.ones_like(arrays[index]),))[1]
        return slope

    def rule(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
        value = guarded(*primals)
        total = jnp.zeros_like(value)
        for index, tangent in enumerate(tangents):
            if not isinstance(tangent, SymbolicZero):
                total = total + forward_differentiated(functools.partial(partial_derivative, index))(*primals) * tangent
        return value, total

    guarded: Any = jax.custom_jvp(function)
    guarded.defjvp(rule, symbolic_zeros=True)
    return guarded  # type: ignore[no-any-return]


def _with_derivative(value: Callable[..., Array], slope: Callable[..., Array]) -> Callable[..., Array]:
    function = jax.custom_jvp(value)
    function.defjvps(lambda tangent, _, x: tangent * slope(x))
    return function


def _sech_squared_value(x: Array) -> Array:
    return 4 * jax.lax.logistic(2 * x) * jax.lax.logistic(-2 * x)


def _softplus_value(x: Array) -> Array:
    return _relu(x) + jnp.log1p(jnp.exp(-_absolute(x)))


_tanh: Callable[..., Array] = _with_derivative(jnp.tanh, lambda x: _sech_squared(x))
_sech_squared: Callable[..., Array] = _with_derivative(_sech_squared_value, lambda x: -2 * _tanh(x) * _sech_squared(x))
_sigmoid: Callable[..., Array] = _with_derivative(jax.lax.logistic, lambda x: _sech_squared(x / 2) / 4)
_softplus: Callable[..., Array] = _with_derivative(_softplus_value, _sigmoid)
_expm1: Callable[..., Array] = _with_derivative(jnp.expm1, jnp.exp)


def _sign(x: Array) -> Array:
    return jnp.sign(real_part(x)).astype(x.dtype)


def _absolute(x: Array) -> Array:
    return _sign(x) * x  # jnp.abs has the slope 1 at 0


def _relu(x: Array) -> Array:
    return jnp.where(real_part(x) <= 0, jnp.zeros_like(x), x)


def _gamma(x: Array) -> Array:
    if jnp.iscomplexobj(x):
        raise TypeError(f"gamma does not accept dtype {x.dtype}, only real numbers")
    return jnp.asarray(jax.scipy.special.gamma(x))


def _cube_root(x: Array) -> Array:
    return _sign(x) * jnp.exp(jnp.log(_sign(x) * x) / 3) if jnp.iscomplexobj(x) else jnp.cbrt(x)


def _extreme(sign: int, real: Callable[..., Array], *numbers: Array) -> Array:
    if not jnp.iscomplexobj(numbers[0]):
        return functools.reduce(real, numbers)
    return functools.reduce(lambda one, other: jnp.where(sign * (one.real - other.real) >= 0, one, other), numbers)


def _symbolic_exponential(sympy: Any, x: Any) -> Any:
    # exp(n log(a)) is a**n to SymPy, however many digits that has.
    large = [number for number in x.atoms(sympy.Rational) if abs(number) > 1000] if x.has(sympy.log) else []
    return sympy.exp(x.xreplace({number: number.evalf(30) for number in large}))


def _symbolic_absolute(sympy: Any, x: Any) -> Any:
    # Where SymPy cannot tell that x is real, it would differentiate real and imaginary parts.
    return sympy.Abs(x) if x.is_extended_real is not None else sympy.Piecewise((-x, x < 0), (x, True))


def _symbolic_cube_root(sympy: Any, x: Any) -> Any:
    third = sympy.Rational(1, 3)
    return x**third if x.is_nonnegative else sympy.Piecewise((x**third, x >= 0), (-((-x) ** third), True))


CONSTANTS = {"pi": math.pi, "e": math.e, "inf": math.inf}
FUNCTIONS = {
    "exp": Function(jnp.exp, math.exp, _symbolic_exponential),
    "expm1": Function(_expm1, math.expm1, lambda s, x: s.exp(x) - 1),
    "log": Function(jnp.log, math.log, lambda s, x: s.log(x)),
    "log1p": Function(jnp.log1p, math.log1p, lambda s, x: s.log(1 + x)),
    "log2": Function(jnp.log2, math.log2, lambda s, x: s.log(x) / s.log(2)),
    "log10": Function(jnp.log10, math.log10, lambda s, x: s.log(x) / s.log(10)),
    "sqrt": Function(jnp.sqrt, math.sqrt, lambda s, x: s.sqrt(x)),
    "cbrt": Function(_cube_root, math.cbrt, _symbolic_cube_root),
    "sin": Function(jnp.sin, math.sin, lambda s, x: s.sin(x)),
    "cos": Function(jnp.cos, math.cos, lambda s, x: s.cos(x)),
    "tan": Function(jnp.tan, math.tan, lambda s, x: s.tan(x)),
    "asin": Function(jnp.arcsin, math.asin, lambda s, x: s.asin(x)),
    "acos": Function(jnp.arccos, math.acos, lambda s, x: s.acos(x)),
    "atan": Function(jnp.arctan, math.atan, lambda s, x: s.atan(x)),
    "sinh": Function(jnp.sinh, math.sinh, lambda s, x: s.sinh(x)),
    "cosh": Function(jnp.cosh, math.cosh, lambda s, x: s.cosh(x)),
    "tanh": Function(_tanh, math.tanh, lambda s, x: s.tanh(x)),
    "asinh": Function(jnp.arcsinh, math.asinh, lambda s, x: s.asinh(x)),
    "acosh": Function(jnp.arccosh, math.acosh, lambda s, x: s.acosh(x)),
    "atanh": Function(jnp.arctanh, math.atanh, lambda s, x: s.atanh(x)),
    "erf": Function(jax.lax.erf, math.erf, lambda s, x: s.erf(x)),
    "erfc": Function(jax.lax.erfc, math.erfc, lambda s, x: s.erfc(x)),
    "gamma": Function(_gamma, math.gamma, lambda s, x: s.gamma(x)),
    # SymPy writes the factorial of a whole number out.
    "loggamma": Function(
        jax.lax.lgamma, math.lgamma, lambda s, x: s.loggamma(x, evaluate=not (x.is_number and x > 1000))
    ),
    "sigmoid": Function(_sigmoid, lambda x: (1 + math.tanh(x / 2)) / 2, lambda s, x: 1 / (1 + s.exp(-x))),
    "softplus": Function(
        _softplus, lambda x: max(x, 0) + math.log1p(math.exp(-abs(x))), lambda s, x: s.log(1 + s.exp(x))
    ),
    "relu": Function(
        _relu,
        lambda x: max(x, 0.0),
        lambda s, x: s.Piecewise((x, x > 0), (0, True)),
    ),
    "abs": Function(_absolute, abs, _symbolic_absolute),
    "sign": Function(_sign, lambda x: math.copysign(1, x) if x else 0.0, lambda s, x: s.sign(x)),
    "floor": Function(lambda x: jnp.floor(real_part(x)).astype(x.dtype), math.floor, lambda s, x: s.floor(x)),
    "ceil": Function(lambda x: jnp.ceil(real_part(x)).astype(x.dtype), math.ceil, lambda s, x: s.ceiling(x)),
    "min": Function(functools.partial(_extreme, -1, jnp.minimum), min, lambda s, *x: s.Min(*x), 2, 100),
    "max": Function(functools.partial(_extreme, 1, jnp.maximum), max, lambda s, *x: s.Max(*x), 2, 100),
}
