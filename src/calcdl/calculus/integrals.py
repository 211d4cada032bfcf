"""Definite integrals of one variable, with an error estimate and a verdict.

    integral = integrate(f, lower, upper)      # value, error, status, evaluations
    integral.verdict                           # "converges", "diverges", ...

An easy integrand costs one Gauss rule on each panel, or a double-exponential one towards infinity; one that is steep at
finite ends only, like a root or a logarithm there, a double-exponential rule towards these. If neither has converged,
the integral gets all there is (`adaptive`): its ends are examined by `convergence`,
oscillating tails are summed wave by wave, a fine scan looks for a pole and places the first edges where the integrand
turns, and `quadax.quadgk` adapts and extrapolates. Under `jax.vmap` that happens if any lane needs it.

Derivatives by the limits, by breakpoints and by whatever f closes over are those of the integral: the mesh that was
found is kept, its edges move with the limits, and f is differentiated on it. That is Leibniz's rule,

    d/dp ∫_a^b f(x, p) dx = f(b, p) b' - f(a, p) a' + ∫_a^b ∂f/∂p dx.

Reference: Piessens et al. 1983, QUADPACK; Takahasi and Mori 1974 (double-exponential rules).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from calcdl.calculus.adaptive import STATUSES, thorough
from calcdl.calculus.convergence import only_where
from calcdl.calculus.panels import ENDS_AT_MOST, Answer, Range, at_ends, edges_between, is_infinite, on_mesh, quick
from calcdl.types import Array

Function = Callable[[Array], Array]
Number = Float[Array, ""] | float


class Integral(NamedTuple):
    """A definite integral.

    Attributes:
        value: the integral; infinite, with its sign, or NaN where it does not exist.
        error: estimate, from above, of the error of `value`; infinite where there is none.
        status: index into `STATUSES`.
        evaluations: number of evaluations of the integrand.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]
    status: Int[Array, ""]
    evaluations: Int[Array, ""]

    @property
    def verdict(self) -> str:
        """The sentence that the status stands for."""
        return STATUSES[int(self.status)]


def integrate(
    f: Function,
    lower: Number,
    upper: Number,
    *,
    breakpoints: Sequence[Number] = (),
    tolerance: float | None = None,
) -> Integral:
    """Integrate a function of one variable.

    `∫_lower^upper f(x) dx`

    Args:
        f: integrand, from a scalar to a scalar; it may close over traced values.
        lower: lower limit; finite and maybe traced, or an infinite Python or NumPy number.
        upper: upper limit, likewise; it may lie below the lower one.
        breakpoints: where f has kinks, jumps or singularities; those outside of the range do not matter. A jump
            that moves with a parameter has a derivative only as a breakpoint.
        tolerance: relative error to reach; by default the dtype's precision to the power of 3/4.

    Returns:
        The `Integral`, in the dtype of the limits (at least float32; the default float for Python numbers). Its value
        is differentiable, except where it exists only conditionally or not at all: there the derivative is NaN.

    Raises:
        ValueError: a limit or breakpoint is NaN, a breakpoint is infinite, or the tolerance is not positive.

    Example:
        >>> integral = integrate(lambda x: 1 / (1 + x**2), 0.0, math.inf)
        >>> print(f"{integral.value:.6f}", integral.verdict)
        1.570796 converges
        >>> integrate(lambda x: 1 / x, 0.0, 1.0).verdict
        'diverges'
    """
    _check(lower, upper, breakpoints, tolerance)
    infinite = [is_infinite(limit) for limit in (lower, upper)]
    if all(infinite) and lower == upper:
        return Integral(*(jnp.zeros((), kind) for kind in (float, float, jnp.int32, jnp.int32)))
    if (infinite[0] and lower > 0) or (infinite[1] and upper < 0):
        turned = integrate(f, upper, lower, breakpoints=breakpoints, tolerance=tolerance)
        return turned._replace(value=-turned.value)

    dtype = jnp.promote_types(jnp.result_type(lower, upper, *breakpoints, 1.0), jnp.float32)
    inner = [jnp.asarray(point, dtype) for point in breakpoints]
    limits = [jnp.asarray(limit, dtype) for limit, far in zip((lower, upper), infinite, strict=True) if not far]
    if not inner and all(infinite):
        inner = [jnp.zeros((), dtype)]
    edges = edges_between(inner, limits, *infinite)
    tolerance = float(np.finfo(dtype).eps) ** 0.75 if tolerance is None else float(tolerance)

    def real(x: Array) -> Array:
        return jnp.asarray(f(x)).astype(dtype)

    converted, constants = jax.closure_convert(real, edges[0])
    value, error, status, evaluations = _integral(
        converted, Range(infinite[0], infinite[1], tolerance), edges, constants
    )
    return Integral(value, error, status, evaluations)


def line_integral(
    field: Callable[[Float[Array, " dimension"]], Float[Array, " dimension"]],
    curve: Callable[[Array], Float[Array, " dimension"]],
    lower: Number,
    upper: Number,
    *,
    breakpoints: Sequence[Number] = (),
    tolerance: float | None = None,
) -> Integral:
    """Integrate a vector field along a curve.

    `∫_C F · dr = ∫_lower^upper F(r(t)) · r'(t) dt`

    Args:
        field: F, from a point to a vector.
        curve: r, from the parameter to a point; differentiable by JAX.
        lower: parameter at which the curve starts.
        upper: parameter at which it ends.
        breakpoints: parameters of the curve's corners.
        tolerance: as for `integrate`.

    Returns:
        The `Integral`; for `F = (-y, x) / 2` around a closed curve the area inside, by Green's theorem.

    Raises:
        ValueError: as for `integrate`.

    Example:
        >>> ellipse = lambda t: jnp.stack([3 * jnp.cos(t), jnp.sin(t)])
        >>> area = line_integral(lambda r: jnp.stack([-r[1], r[0]]) / 2, ellipse, 0.0, 2 * math.pi)
        >>> print(f"{area.value:.4f}")
        9.4248
    """

    def along(t: Array) -> Array:
        position, velocity = jax.jvp(curve, (t,), (jnp.ones_like(t),))
        return jnp.sum(field(position) * velocity)

    return integrate(along, lower, upper, breakpoints=breakpoints, tolerance=tolerance)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _integral(f: Callable[..., Array], range_: Range, edges: Array, constants: Sequence[Any]) -> tuple[Array, ...]:
    return tuple(_solve(f, range_, edges, constants)[:4])


@_integral.defjvp
def _(f: Any, range_: Range, primals: Any, tangents: Any) -> tuple[Any, Any]:
    answer = _solve(f, range_, *jax.lax.stop_gradient(tuple(primals)))
    mesh = answer.left, answer.right

    def fixed(edges: Array, constants: Sequence[Any]) -> Array:
        return on_mesh(lambda x: f(x, *constants), range_, edges, *mesh)

    current, slope = jax.jvp(fixed, primals, tangents)
    # The value of the one and the derivatives, of every order, of the other.
    outputs = (answer.value + (current - jax.lax.stop_gradient(current)), *answer[1:4])
    still = [jax.custom_derivatives.zero_from_primal(output) for output in outputs]
    return outputs, (jnp.where(answer.whole, slope, jnp.nan), *still[1:])


def _solve(f: Callable[..., Array], range_: Range, edges: Array, constants: Sequence[Any]) -> Answer:
    def harder(operand: tuple[Array, Sequence[Any]]) -> Answer:
        edges, constants = operand
        return thorough(lambda x: f(x, *constants), range_, edges)

    def steeper(operand: tuple[Array, Sequence[Any]]) -> tuple[Answer, Array]:
        edges, constants = operand
        return at_ends(lambda x: f(x, *constants), range_, edges)

    simple, done = quick(lambda x: f(x, *constants), range_, edges)
    operand = edges, [jnp.asarray(constant) for constant in constants]
    may_be_steep = not (range_.lower_infinite or range_.upper_infinite) and len(edges) <= ENDS_AT_MOST + 1
    if isinstance(done, jax.core.Tracer):
        if may_be_steep:
            simple, done = only_where(~done, steeper, operand, (simple, done))
        answer: Answer = only_where(~done, harder, operand, simple)
        return answer
    if may_be_steep and not done:
        simple, done = steeper(operand)
    return simple if done else jax.jit(harder)(operand)


def _check(lower: Any, upper: Any, breakpoints: Sequence[Any], tolerance: float | None) -> None:
    named = [("lower", lower), ("upper", upper), *(("breakpoints", point) for point in breakpoints)]
    for name, value in named:
        if isinstance(value, jax.core.Tracer):
            continue
        if math.isnan(value) or (name == "breakpoints" and math.isinf(value)):
            raise ValueError(
                f"{name} must be {'finite' if name == 'breakpoints' else 'a number or infinite'}, got {value}"
            )
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be a relative error between 0 and 1, got {tolerance}")
