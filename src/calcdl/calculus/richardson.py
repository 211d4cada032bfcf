"""Derivatives from values alone: difference quotients over many steps, extrapolated to step zero.

- `finite_difference`: a derivative of order 1 to 6, from both sides or from one, with an error estimate.
- `slopes`: the first derivative from both sides, the left and the right at once; where these differ there is a kink.

Nothing here is differentiated by JAX, so it can judge what JAX says: see `calculus.gradient_check`.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calcdl.calculus.roundoff import measure
from calcdl.trees import as_floating
from calcdl.types import Array, Scalar

Function = Callable[[Scalar], Scalar]
Side = Literal["both", "left", "right"]

HIGHEST_ORDER = 6
_COLUMNS = 7
_SAFETY = 4
_RATIO = 2.0**0.5
# Two ladders of steps, each shrinking by the ratio from rung to rung: one below the scale of x, one below the smallest
# step of that or below |x|, whichever is less. A factor that is no round number keeps steps off multiples of a period.
_RUNGS = 32
_FACTOR = 0.2897
_SHRINKING = tuple(_RATIO**-rung for rung in range(_RUNGS))


class Estimate(NamedTuple):
    """A derivative by differences and what is known of its accuracy.

    Attributes:
        value: the extrapolated derivative; NaN where no quotient was finite.
        error: bound on its distance from the derivative, from the disagreement of neighbours and from round-off.
        step: the smallest step that it was extrapolated from, in units of x.
    """

    value: Scalar
    error: Scalar
    step: Scalar


class Slopes(NamedTuple):
    """The first derivative as seen from where.

    Attributes:
        both: from both sides.
        left: from below.
        right: from above.
    """

    both: Estimate
    left: Estimate
    right: Estimate


class _Values(NamedTuple):
    points: Array
    values: Array
    rounding: Array


def finite_difference(f: Function, x: Scalar | float, *, order: int = 1, side: Side = "both") -> Estimate:
    """Extrapolate difference quotients to step zero by Richardson's method, with an error estimate.

    `D_h f = f⁽ⁿ⁾(x) + a_1 h^q + a_2 h^2q + ...`, q = 2 from both sides, 1 from one side; each column of the tableau
    removes one power: `T_m(h) = (r^qm T_{m-1}(h/r) - T_{m-1}(h)) / (r^qm - 1)`, r = √2

    The steps run from the scale of x down over nine or more orders of magnitude. Of all entries the one of least error
    is taken: its disagreement with its neighbours, plus what the measured round-off of f does to it. It is blind to a
    kink at x itself, which `slopes` and `calculus.smoothness` see.

    Args:
        f: function of a scalar; values that are not finite are left out.
        x: where; may be traced.
        order: n, of the derivative, 1 to 6.
        side: "right" takes f at x and above only, "left" at x and below.

    Returns:
        The estimate, in the dtype of x.

    Raises:
        ValueError: order or side is not one of those named.

    Example:
        >>> estimate = finite_difference(jnp.exp, jnp.float32(1.0))
        >>> bool(abs(estimate.value - jnp.e) < estimate.error), bool(estimate.error < 1e-3)
        (True, True)

    Reference:
        Ridders (1982), Accurate computation of F'(x) and F'(x)F''(x), Advances in Engineering Software 4.
    """
    if order not in range(1, HIGHEST_ORDER + 1):
        raise ValueError(f"order must be a whole number from 1 to {HIGHEST_ORDER}, got {order!r}")
    offsets, weights, power = _stencil(order, side)
    x = as_floating(x)
    steps = _ladders(x)
    known = _measured(f, x, steps, offsets)
    found: Estimate = _extrapolate(*_quotients(known, weights, order, offsets[-1] - offsets[0]), steps, power)
    return found


def slopes(f: Function, x: Scalar | float) -> Slopes:
    """Take the first derivative from both sides, from the left and from the right, all from the same values.

    `(f(x + h) - f(x - h)) / 2h`, `(f(x) - f(x - h)) / h` and `(f(x + h) - f(x)) / h`, each as h tends to 0

    Where the last two differ by more than their errors there is a kink at x, or too close to it to be told from x.

    Args:
        f: function of a scalar; values that are not finite are left out.
        x: where; may be traced.

    Returns:
        The three estimates: see `finite_difference`.

    Example:
        >>> found = slopes(jnp.abs, jnp.float32(0.0))
        >>> [round(float(side.value), 4) for side in found]
        [0.0, -1.0, 1.0]
    """
    x = as_floating(x)
    steps = _ladders(x)
    values = _measured(f, x, steps, (-1.0, 0.0, 1.0))
    both, left, right = (_Values(*(part[..., list(of)] for part in values)) for of in ((0, 2), (0, 1), (1, 2)))

    def from_side(known: _Values) -> Estimate:
        found: Estimate = _extrapolate(*_quotients(known, (-1.0, 1.0), 1, 1.0), steps, power=1)
        return found

    sides = jax.vmap(from_side)(jax.tree.map(lambda *parts: jnp.stack(parts), left, right))
    from_both = _extrapolate(*_quotients(both, (-0.5, 0.5), 1, 2.0), steps, power=2)
    return Slopes(from_both, *(Estimate(*(part[side] for part in sides)) for side in (0, 1)))


def _stencil(order: int, side: Side) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Return offsets and weights of the shortest quotient for the n-th derivative, and its power of the step."""
    if side not in ("both", "left", "right"):
        raise ValueError(f"side must be both, left or right; got {side!r}")
    reach = (order + 1) // 2
    offsets = np.arange(-reach, reach + 1.0) if side == "both" else np.arange(order + 1.0)
    if side == "both" and order % 2:
        offsets = offsets[offsets != 0]  # an odd derivative does not look at x itself
    offsets = -offsets[::-1] if side == "left" else offsets
    moments = offsets[None, :] ** np.arange(len(offsets))[:, None]
    weights = np.linalg.solve(moments, np.where(np.arange(len(offsets)) == order, 1.0, 0.0))
    weights = weights * float(np.prod(np.arange(1.0, order + 1)))
    return tuple(offsets.tolist()), tuple((np.round(weights * 12) / 12).tolist()), 2 if side == "both" else 1


def _ladders(x: Array) -> Array:
    """Return steps [ladder, rung], those of the second ladder below those of the first and below |x|."""
    size = jnp.sqrt(jnp.maximum(jnp.abs(x), 1))  # a function of scale 1 is met at any x
    below = _RATIO ** -(_RUNGS + 1) * size
    below = jnp.where(x == 0, below, jnp.minimum(jnp.abs(x), below))
    starts = jnp.stack([size, below]).astype(x.dtype)
    return starts[:, None] * jnp.asarray(_FACTOR * np.array(_SHRINKING), x.dtype)[None, :]


def _measured(f: Function, x: Array, steps: Array, offsets: tuple[float, ...]) -> _Values:
    """Evaluate f at every rung and offset [ladder, rung, offset]."""
    points = x + steps[..., None] * jnp.asarray(offsets, x.dtype)[None, None, :]
    values, rounding, _ = (part.reshape(points.shape) for part in measure(f, points.ravel()))
    rise = _largest_below((values[..., -1] - values[..., 0]) / (points[..., -1] - points[..., 0]))
    least = jnp.finfo(x.dtype).eps / 2 * (jnp.abs(values) + jnp.abs(x * rise)[..., None])
    rounding = jnp.where(jnp.isfinite(rounding), jnp.maximum(rounding, least), least)  # beside x f may be undefined
    resolved = (steps >= 8 * jnp.finfo(x.dtype).eps * jnp.abs(x))[..., None]
    return _Values(points, jnp.where(resolved, values, jnp.nan), rounding)


def _quotients(known: _Values, weights: tuple[float, ...], order: int, span: float) -> tuple[Array, Array]:
    """Return difference quotients at every rung and what round-off may have done to them; span is in steps."""
    points, values, rounding = known
    step = (points[..., -1:] - points[..., :1]) / span  # as rounded
    scaled = jnp.asarray(weights, values.dtype)[None, None, :] / step**order
    noise = jnp.sum(jnp.abs(scaled) * rounding, axis=-1)
    return jnp.sum(scaled * values, axis=-1), noise + jnp.finfo(values.dtype).tiny


@functools.partial(jax.jit, static_argnames="power")
def _extrapolate(column: Array, noise: Array, steps: Array, power: int) -> Estimate:
    """Return the entry of least error of Richardson's tableau over each ladder [ladder, rung]."""
    values, errors = [], []
    rungs = column.shape[1]
    for number in range(1, _COLUMNS + 1):
        factor = _RATIO ** (power * number)
        finer = (factor * column[:, 1:] - column[:, :-1]) / (factor - 1)
        noise = (factor * noise[:, 1:] + noise[:, :-1]) / (factor - 1)
        apart = jnp.maximum(jnp.abs(finer - column[:, 1:]), jnp.abs(finer - column[:, :-1]))
        if number > 1:  # one coincidence is not agreement
            error = _SAFETY * apart + noise
            blank = jnp.full((2, rungs - finer.shape[1]), jnp.inf, column.dtype)
            values.append(jnp.concatenate([blank, finer], axis=1).ravel())
            errors.append(jnp.concatenate([blank, error], axis=1).ravel())
        column = finer
    value, error = jnp.stack(values), jnp.stack(errors)
    error = jnp.where(jnp.isfinite(value) & jnp.isfinite(error), error, jnp.inf)
    chosen = jnp.argmin(error, axis=0)[None, :]
    value = jnp.take_along_axis(value, chosen, axis=0)[0]
    error = _contradicted(value, jnp.take_along_axis(error, chosen, axis=0)[0])
    best = jnp.argmin(error)
    return Estimate(jnp.where(jnp.isinf(error[best]), jnp.nan, value[best]), error[best], steps.ravel()[best])


def _largest_below(numbers: Array) -> Array:
    """Return the largest finite size at each rung and at all finer ones, those of the second ladder included."""
    sizes = jnp.where(jnp.isfinite(numbers), jnp.abs(numbers), 0).ravel()
    return jax.lax.cummax(sizes, reverse=True).reshape(numbers.shape)


def _contradicted(value: Array, error: Array) -> Array:
    """Widen errors until no estimate from finer steps, with its own error, lies outside.

    Steps that skip whole periods of f agree on a wrong derivative, and finer ones know.
    """
    finer = jnp.arange(len(value))[None, :] > jnp.arange(len(value))[:, None]
    outside = jnp.abs(value[:, None] - value[None, :]) - error[None, :]
    outside = jnp.where(finer & jnp.isfinite(outside), outside, 0)
    return jnp.maximum(error, jnp.max(outside, axis=1))
