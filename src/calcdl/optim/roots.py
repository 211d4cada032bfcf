r"""Where a function of one variable is zero, and how fast the iterates get there.

| method | next iterate | needs | order |
|---|---|---|---|
| newton | x - f(x) / f'(x), where the tangent is zero | a start | 2 |
| secant | where the line through the last two points is zero | two starts | 1.618 |
| bisection | the middle of the half in which the sign changes | two ends with different signs | 1 |

The order is q in \|e_{k+1}\| ≈ C \|e_k\|^q; at a multiple root Newton and secant have order 1 too. Bisection never
fails where there is a change of sign and f is continuous; the others are fast near a root, and anywhere else may go
wherever they like.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from calcdl.calculus.derivatives import tangent_line
from calcdl.optim.hyperparameters import choose
from calcdl.trees import as_floating
from calcdl.types import Array, Scalar

Function = Callable[[Scalar], Scalar]

STATUSES = (
    "converged: a further step is within the tolerance, or is lost in rounding",
    "step limit: allow more steps or a looser tolerance",
    "no sign change: the function has one sign at both ends; choose ends with different signs, or newton or secant",
    "slope zero: the tangent or secant is level and meets zero nowhere; choose another start",
    "not finite: the function or the next iterate is infinite or NaN; choose a start nearer to the root",
    "no root: the sign changes at a jump or a pole, where the function is not near zero",
)
CONVERGED, STEP_LIMIT, NO_SIGN_CHANGE, LEVEL, NON_FINITE, JUMP = range(6)
_RUNNING = -1
_ROUNDING = 4


class Root(NamedTuple):
    """A root, and the way to it.

    Attributes:
        root: the last iterate.
        residual: the function there.
        status: index in `STATUSES`.
        steps: how many iterates were made after the start.
        iterates: all of them, the start first; the last is repeated to the end.
        errors: how far each is from the root: from the last iterate, or for bisection half the width of its bracket.
        order: q of the last errors that are above the rounding; NaN where there are fewer than three.
    """

    root: Scalar
    residual: Scalar
    status: Int[Array, ""]
    steps: Int[Array, ""]
    iterates: Float[Array, " rows"]
    errors: Float[Array, " rows"]
    order: Scalar

    @property
    def verdict(self) -> str:
        """How it ended, in a sentence; for one root only, outside `jax.jit`."""
        return STATUSES[int(self.status)]


class _Walk(NamedTuple):
    x: Scalar  # the iterate
    other: Scalar  # the iterate before, or the other end of the bracket
    value: Scalar  # at x
    other_value: Scalar
    moved: Scalar  # how long the last step was
    scale: Scalar  # of the starts, against which a root at zero is told from a small number
    status: Array
    steps: Array


class Method(NamedTuple):
    """One way to the next iterate.

    Attributes:
        points: how many numbers it starts from.
        step: `(f, walk) -> (walk with x and other replaced, status)`.
    """

    points: int
    step: Callable[[Function, Any], tuple[Any, Array]]


def find_root(
    f: Function,
    start: Scalar | float | tuple[Scalar | float, Scalar | float],
    method: str = "newton",
    *,
    steps: int = 60,
    tolerance: float | Scalar = 0.0,
) -> Root:
    """Find where a function of one variable is zero.

    `f(x) = 0`

    Works under `jax.jit` and `jax.vmap`; the number of steps is fixed, and a walk that has ended stays where it is.

    Args:
        f: function of a scalar.
        start: one number for "newton"; two for "secant" and "bisection", there the ends of the bracket.
        method: a key of `METHODS`.
        steps: how many steps at most.
        tolerance: the distance within which a root counts as found, at least 0; 0 goes on to the rounding.

    Returns:
        The root with its iterates and the measured order of convergence.

    Raises:
        ValueError: an unknown method, the wrong number of starts, steps below 2, a negative tolerance.

    Example:
        >>> found = find_root(lambda x: x**2 - 2, (1.0, 2.0), "bisection")
        >>> print(f"{found.root:.5f}, order {found.order:.2f}")
        1.41421, order 1.00
        >>> find_root(lambda x: x**2 + 1, (0.0, 2.0), "bisection").verdict.partition(":")[0]
        'no sign change'

    Reference:
        Dahlquist and Björck, Numerical Methods in Scientific Computing, volume I (2008), sections 6.1-6.3.
    """
    rule: Method = choose("method", method, METHODS)
    numbers = list(start) if isinstance(start, tuple | list) else [start]
    if len(numbers) != rule.points:
        wanted = "one number" if rule.points == 1 else "two numbers"
        raise ValueError(f"start: expected {wanted} for {method}, got {len(numbers)}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"steps: expected a whole number of at least 2, got {steps!r}")
    if not isinstance(tolerance, jax.core.Tracer) and not tolerance >= 0:
        raise ValueError(f"tolerance: expected a number of at least 0, got {tolerance}")
    dtype = jnp.promote_types(jnp.result_type(*(as_floating(number) for number in numbers)), jnp.float32)
    points = [jnp.asarray(number, dtype) for number in numbers]
    near = jnp.asarray(tolerance, dtype)

    def g(x: Scalar) -> Scalar:
        return jnp.asarray(f(x), dtype)

    walk = _begin(g, points, method)

    def advance(walk: _Walk, _: None) -> tuple[_Walk, tuple[Array, Array]]:
        walk = _advance(g, rule, walk, near)
        return walk, (walk.x, _bracket(walk))

    ended, (iterates, brackets) = jax.lax.scan(advance, walk, length=steps)
    iterates, brackets = jnp.append(walk.x, iterates), jnp.append(_bracket(walk), brackets)
    errors = brackets if method == "bisection" else jnp.abs(iterates - ended.x)
    left = jnp.zeros((), dtype) if method == "bisection" else _left(iterates, ended.steps)
    status = jnp.where(ended.status == _RUNNING, jnp.int32(STEP_LIMIT), ended.status)
    if method == "bisection":
        largest = jnp.maximum(jnp.abs(walk.value), jnp.abs(walk.other_value))
        jump = (status == CONVERGED) & ~(jnp.abs(ended.value) <= 0.01 * largest)
        status = jnp.where(jump, jnp.int32(JUMP), status)
    order = jnp.where(status == CONVERGED, _order(errors, ended, left), jnp.nan)
    return Root(ended.x, ended.value, status, ended.steps, iterates, errors, order)


def _begin(f: Function, points: list[Array], method: str) -> _Walk:
    x, other = points[-1], points[0]
    value, other_value = f(x), f(other)
    status = jnp.where(jnp.isfinite(value) & jnp.isfinite(other_value), jnp.int32(_RUNNING), jnp.int32(NON_FINITE))
    if method == "bisection":
        same = (jnp.sign(value) == jnp.sign(other_value)) & (value != 0)
        status = jnp.where((status == _RUNNING) & same, jnp.int32(NO_SIGN_CHANGE), status)
    if len(points) == 2:
        first = (other_value == 0) & (value != 0)
        x, other = jnp.where(first, other, x), jnp.where(first, x, other)
        value, other_value = jnp.where(first, other_value, value), jnp.where(first, value, other_value)
    status = jnp.where((value == 0) & (status == _RUNNING), jnp.int32(CONVERGED), status)
    scale = jnp.maximum(jnp.abs(x), jnp.abs(other))
    return _Walk(x, other, value, other_value, jnp.full_like(x, jnp.inf), scale, status, jnp.int32(0))


def _advance(f: Function, rule: Method, walk: _Walk, near: Array) -> _Walk:
    moved, status = rule.step(f, walk)
    value = f(moved.x)
    change = jnp.abs(moved.x - walk.x)
    size = jnp.maximum(jnp.abs(moved.x), 1e-3 * walk.scale)
    rounding = jnp.finfo(walk.x.dtype).eps * size
    # Near the rounding the steps no longer shrink: what is left of them is noise.
    noise = (change >= walk.moved) & (change <= jnp.finfo(walk.x.dtype).eps ** 0.5 * size)
    there = (value == 0) | (change <= jnp.maximum(near, _ROUNDING * rounding)) | noise
    done = jnp.where(there, jnp.int32(CONVERGED), jnp.int32(_RUNNING))
    finite = jnp.isfinite(moved.x) & jnp.isfinite(value)
    status = jnp.where(status == _RUNNING, jnp.where(finite, done, jnp.int32(NON_FINITE)), status)
    taken = (walk.status == _RUNNING) & finite & ((status == _RUNNING) | (status == CONVERGED))
    status = jnp.where(walk.status == _RUNNING, status, walk.status)
    after = moved._replace(value=value, moved=change, status=status, steps=walk.steps + 1)
    before = walk._replace(status=status)
    chosen: _Walk = jax.tree.map(lambda new, old: jnp.where(taken, new, old), after, before)
    return chosen


def _bracket(walk: _Walk) -> Array:
    return jnp.abs(walk.x - walk.other) / 2


def _newton(f: Function, walk: _Walk) -> tuple[_Walk, Array]:
    slope = tangent_line(f, walk.x).slope
    level = slope == 0
    x = walk.x - walk.value / jnp.where(level, 1, slope)
    return walk._replace(x=x, other=walk.x), jnp.where(level, jnp.int32(LEVEL), jnp.int32(_RUNNING))


def _secant(f: Function, walk: _Walk) -> tuple[_Walk, Array]:
    rise = walk.value - walk.other_value
    level = rise == 0
    x = walk.x - walk.value * ((walk.x - walk.other) / jnp.where(level, 1, rise))
    status = jnp.where(level, jnp.int32(LEVEL), jnp.int32(_RUNNING))
    return walk._replace(x=x, other=walk.x, other_value=walk.value), status


def _bisection(f: Function, walk: _Walk) -> tuple[_Walk, Array]:
    middle = walk.x + (walk.other - walk.x) / 2
    inside = jnp.sign(f(middle)) == jnp.sign(walk.value)
    other = jnp.where(inside, walk.other, walk.x)
    other_value = jnp.where(inside, walk.other_value, walk.value)
    return walk._replace(x=middle, other=other, other_value=other_value), jnp.int32(_RUNNING)


def _left(iterates: Array, steps: Array) -> Array:
    """Estimate by Aitken's rule how far the last iterate is from the root: much where the convergence is linear."""
    changes = jnp.abs(jnp.diff(iterates))
    last, before = changes[steps - 1], changes[jnp.maximum(steps - 2, 0)]
    return jnp.where((steps > 1) & (before > 0), last**2 / jnp.where(before > 0, before, 1), 0)


def _order(errors: Array, walk: _Walk, left: Array) -> Array:
    """Return the mean over the last two of log(e_{k+1} / e_k) / log(e_k / e_{k-1}) with errors above the rounding."""
    floor = 100 * jnp.maximum(jnp.finfo(errors.dtype).eps * jnp.abs(walk.x), left)
    known = (errors > floor) & (jnp.arange(len(errors)) <= walk.steps)
    clear = known[2:] & known[1:-1] & known[:-2] & (errors[1:-1] < errors[:-2]) & (errors[2:] < errors[1:-1])
    logs = jnp.log(jnp.where(errors > 0, errors, 1))
    falls = logs[:-1] - logs[1:]
    ratios = jnp.log(jnp.where(clear, falls[1:], 1) / jnp.where(clear, falls[:-1], 1))
    last = len(clear) - 1 - jnp.argmax(clear[::-1])
    # Those of the secant method lie above and below the limit by turns.
    two = jnp.where((last > 0) & clear[last - 1], (ratios[last] + ratios[last - 1]) / 2, ratios[last])
    return jnp.where(jnp.any(clear), jnp.exp(two), jnp.nan)


METHODS = {"newton": Method(1, _newton), "secant": Method(2, _secant), "bisection": Method(2, _bisection)}
