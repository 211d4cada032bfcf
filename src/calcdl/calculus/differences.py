r"""Finite differences: the derivative before its limit is taken.

A difference quotient over a step h errs in two ways that pull h in opposite directions,

    |D_h f - f'|  ≤  c |f⁽ᵖ⁺¹⁾| hᵖ  +  r u |f| / h,

what is cut off (p is the order of the scheme) and what is rounded off (u is the unit round-off, r = Σ|weights|). Their
sum over h has the shape of a U; its bottom is `best_step`.

`complex_step` subtracts nothing, so it has no U, and asks for a function that can be continued to complex numbers. To
get a derivative out of differences, prefer `calculus.richardson`: many steps, extrapolated to h = 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.calculus.derivatives import derivative
from calcdl.calculus.richardson import finite_difference
from calcdl.trees import as_floating
from calcdl.types import Array, Scalar

Function = Callable[[Scalar], Scalar]


class Scheme(NamedTuple):
    """A difference quotient for the first derivative.

    Attributes:
        offsets: where f is taken, in steps from x.
        weights: what its values are multiplied by, before division by the step.
        order: p, the power of the step with which the error shrinks.
        truncation: c in the leading error, `c f⁽ᵖ⁺¹⁾(x) hᵖ`, without its sign.
    """

    offsets: tuple[float, ...]
    weights: tuple[float, ...]
    order: int
    truncation: float


class ErrorCurve(NamedTuple):
    """The error of a difference quotient against its step, measured and predicted.

    Attributes:
        step: h, in units of x.
        error: measured distance from the derivative.
        truncation: predicted part of what is cut off, `c |f⁽ᵖ⁺¹⁾| hᵖ`.
        round_off: predicted bound on what is rounded off, `r u |f| / h`.
    """

    step: Float[Array, " steps"]
    error: Float[Array, " steps"]
    truncation: Float[Array, " steps"]
    round_off: Float[Array, " steps"]


def difference_quotient(
    f: Function, x: Scalar | float, step: Scalar | float | None = None, *, scheme: str = "central"
) -> Scalar:
    """Take the slope of a secant.

    `D_h f = Σ_i weights_i f(x + offsets_i h) / h`

    The step is first rounded such that x + h is a number of the dtype: else the quotient of a step that was not taken
    would be returned.

    Args:
        f: function of a scalar.
        x: where.
        step: h, in units of x; None chooses the best one for the dtype and the curvature of f near x, which
            `finite_difference` estimates.
        scheme: one of `SCHEMES`.

    Returns:
        The quotient, in the dtype of x.

    Raises:
        ValueError: the scheme is not known, or the step is not positive.

    Example:
        >>> slope_over = lambda h: difference_quotient(lambda x: 3 * x**2 - 4 * x, 1.0, h, scheme="forward")
        >>> [round(float(slope_over(h)), 2) for h in (1, 0.1)]
        [5.0, 2.3]
    """
    parts = _scheme(scheme)
    x = as_floating(x)
    if step is None:
        curvature = finite_difference(f, x, order=parts.order + 1).value
        step = best_step(scheme, x.dtype, value=f(x), curvature=curvature)
        step = jnp.clip(step, jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(x), 1), 0.1 * jnp.maximum(jnp.abs(x), 1))
    elif isinstance(step, float | int) and not step > 0:
        raise ValueError(f"step must be a positive number, got {step}")
    step = _representable(x, jnp.asarray(step, x.dtype))
    values = _rounded(jax.vmap(f)(_rounded(x + jnp.asarray(parts.offsets, x.dtype) * step)))
    return jnp.sum(jnp.asarray(parts.weights, values.dtype) * values) / step


def complex_step(f: Callable[[Array], Array], x: Scalar | float, step: float = 1e-20) -> Scalar:
    """Differentiate by a step along the imaginary axis, without any cancellation.

    `f'(x) = Im f(x + i h) / h + O(h²)`

    Args:
        f: function of a scalar that is analytic near x and is computed by complex arithmetic throughout: `abs`,
            `maximum` and comparisons are not.
        x: where.
        step: h; its square must vanish beside x.

    Returns:
        The derivative to round-off, in the dtype of x (half precision is computed in float32).

    Raises:
        TypeError: f returns a real number for a complex one, so what is wanted has been dropped on the way.

    Example:
        >>> round(float(complex_step(jnp.exp, 0.0)), 12)
        1.0

    Reference:
        Squire, Trapp (1998), Using complex variables to estimate derivatives of real functions, SIAM Review 40.
    """
    x = as_floating(x)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    value = f(jax.lax.complex(wide, jnp.asarray(step, wide.dtype)))
    if not jnp.iscomplexobj(value):
        raise TypeError(f"f must return a complex number for a complex argument, got {jnp.result_type(value)}")
    return (jnp.imag(value) / jnp.asarray(step, wide.dtype)).astype(x.dtype)


def best_step(scheme: str, dtype: Any, *, value: Scalar | float = 1.0, curvature: Scalar | float = 1.0) -> Scalar:
    """Return the step at the bottom of the U, where what is cut off and what is rounded off add up to least.

    `h* = (r u |f| / (p c |f⁽ᵖ⁺¹⁾|))^(1/(p+1))`

    For |f| = |f⁽ᵖ⁺¹⁾| that is near ε^(1/2), ε^(1/3) and ε^(1/5) for orders 1, 2 and 4.

    Args:
        scheme: one of `SCHEMES`.
        dtype: of the values of f; u is half its machine epsilon.
        value: f(x).
        curvature: `f⁽ᵖ⁺¹⁾(x)`, the derivative that rules what is cut off.

    Returns:
        The step, in units of x; infinite where the curvature is 0, for then a larger step is always better.

    Raises:
        ValueError: the scheme is not known.

    Example:
        >>> print(f"{best_step('forward', jnp.float32):.2e} {best_step('central', jnp.float32):.2e}")
        4.88e-04 5.63e-03
    """
    parts = _scheme(scheme)
    wide = jnp.result_type(value, curvature, jnp.promote_types(dtype, jnp.float32))
    size, bend = jnp.abs(jnp.asarray(value, wide)), jnp.abs(jnp.asarray(curvature, wide))
    ratio = _round_off(parts, dtype) * size / (parts.order * parts.truncation * jnp.where(bend == 0, 1, bend))
    return jnp.where(bend == 0, jnp.inf, ratio ** (1 / (parts.order + 1)))


def error_curve(
    f: Function, x: Scalar | float, steps: Float[Array, " steps"], *, scheme: str = "central"
) -> ErrorCurve:
    """Measure the error of a difference quotient over many steps: the U, with the two parts that it is made of.

    `error(h) = |D_h f - f'(x)|  ≤  c |f⁽ᵖ⁺¹⁾(x)| hᵖ + r u |f(x)| / h`

    f' and f⁽ᵖ⁺¹⁾ are taken by automatic differentiation in the widest dtype at hand.

    Args:
        f: function of a scalar that JAX can differentiate and that keeps the dtype it is given.
        x: where; its dtype is the one that the quotients are computed in.
        steps: h.
        scheme: one of `SCHEMES`.

    Returns:
        The curve, in the widest dtype at hand.

    Raises:
        ValueError: the scheme is not known.

    Example:
        >>> curve = error_curve(jnp.exp, jnp.float32(1.0), jnp.float32([1e-1, 1e-2, 1e-6]))
        >>> bool(curve.error[1] < curve.error[0]), bool(curve.error[1] < curve.error[2])
        (True, True)
    """
    parts = _scheme(scheme)
    x = as_floating(x)
    wide = x.astype(jax.dtypes.canonicalize_dtype(jnp.float64))
    quotients = jax.vmap(lambda step: difference_quotient(f, x, step, scheme=scheme))(jnp.asarray(steps, x.dtype))
    error = jnp.abs(quotients.astype(wide.dtype) - derivative(f)(wide))
    taken = jnp.asarray(steps, wide.dtype)
    truncation = parts.truncation * jnp.abs(derivative(f, parts.order + 1)(wide)) * taken**parts.order
    return ErrorCurve(taken, error, truncation, _round_off(parts, x.dtype) * jnp.abs(f(wide)) / taken)


def _scheme(name: str) -> Scheme:
    if name not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}; got {name!r}")
    return SCHEMES[name]


def _round_off(scheme: Scheme, dtype: Any) -> float:
    """Return r u, by which round-off of values of size 1 may move the quotient, times the step."""
    return float(jnp.finfo(dtype).eps) / 2 * sum(abs(weight) for weight in scheme.weights)


def _representable(x: Array, step: Array) -> Array:
    """Round a step such that x + step is a number of the dtype."""
    taken = _rounded(x + step) - x
    return jnp.where(taken == 0, step, taken)


def _rounded(x: Array) -> Array:
    """Round to the dtype; XLA may compute half precision in a wider one and forget to."""
    limits = jnp.finfo(x.dtype)
    return jax.lax.reduce_precision(x, limits.nexp, limits.nmant)


SCHEMES = {
    "forward": Scheme((0.0, 1.0), (-1.0, 1.0), order=1, truncation=1 / 2),
    "backward": Scheme((-1.0, 0.0), (-1.0, 1.0), order=1, truncation=1 / 2),
    "central": Scheme((-1.0, 1.0), (-1 / 2, 1 / 2), order=2, truncation=1 / 6),
    "five_point": Scheme((-2.0, -1.0, 1.0, 2.0), (1 / 12, -2 / 3, 2 / 3, -1 / 12), order=4, truncation=1 / 30),
}
