"""Whether an integral exists: the integrand near the ends of its range, on geometric scales and along its waves.

At an end of the range, finite or not, write the integral in `t`, the logarithm of the distance (to a finite end it
shrinks, towards infinity it grows): `∫ p(t) dt` with `p = |f(x(t)) dx/dt|`. Then

    p ~ exp(-λ t), λ > 0    converges,        p ~ exp(-λ t), λ < 0, or p ~ constant    diverges,
    p ~ t^-m, m > 1         converges slowly, p ~ t^-m, m <= 1                         diverges,

and both show in samples of two windows of t, the outer twice as far as the inner: the loss of log p over a window
doubles for the first kind and stays for the second. Where the sign keeps changing, the integral is a series over the
half waves between the zeros of f, which alternates: its sum is accelerated, and it exists if its terms tend to zero.

Reference: Cohen, Villegas, Zagier 2000, Experimental Mathematics 9:3-12, algorithm 1 (alternating series).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

CONVERGES, SLOW, CONDITIONAL, UNDECIDED, OSCILLATES, DIVERGES = range(6)
KINDS = (
    "converges",
    "converges, as slowly as a power of a logarithm",
    "converges only conditionally",
    "not decided whether it converges",
    "oscillates without a limit",
    "diverges",
)

_WINDOWS = 8
_SAMPLES = 32  # in each half of a window
_GRID = 1024  # where the first zeros are looked for
_FIRST_WAVES = 6  # left to the ordinary integration
_WAVES = 40
_BRACKET = 24
_NODES = 20

Function = Callable[[Array], Array]


class End(NamedTuple):
    """One side of an end of the range.

    Attributes:
        point: the end; for an infinite one the finite end of the same panel.
        direction: from `point` into the range, 1 or -1.
        width: distance at t = 0 for a finite end, 1 for an infinite one.
        infinite: whether the end is at infinity.
        magnitude: of the numbers from which positions near the end are made; their rounding is what can be told apart.
    """

    point: Float[Array, ""]
    direction: Float[Array, ""]
    width: Float[Array, ""]
    infinite: Bool[Array, ""]
    magnitude: Float[Array, ""]


class Tail(NamedTuple):
    """What the integrand does at an end.

    Attributes:
        kind: index into `KINDS`.
        sign: of the integrand there: 1, -1, or 0 for both.
        remainder: for slow convergence, how much of the integral lies beyond the reach of the numbers' precision.
        is_cut: whether `value` holds the part of the integral beyond `cut`.
        cut: position from which the half waves have been summed.
        value: their sum, counted positive from `cut` towards the end.
        error: estimate of the error of `value`.
    """

    kind: Int[Array, ""]
    sign: Float[Array, ""]
    remainder: Float[Array, ""]
    is_cut: Bool[Array, ""]
    cut: Float[Array, ""]
    value: Float[Array, ""]
    error: Float[Array, ""]


def tail(f: Function, end: End, scale: Float[Array, ""]) -> Tail:
    """Judge the convergence at one end and sum an oscillating tail.

    `∫ p(t) dt`, `p = |f(x(t)) dx/dt|`, `x = point ± width exp(-t)` or `point ± exp(t)`

    Args:
        f: integrand, of a scalar.
        end: which end.
        scale: typical size of |f| in the range, against which rounding errors are told from waves.

    Returns:
        The `Tail`; under `jax.vmap` one for each end.
    """
    kind, sign, remainder, waves = powers(f, end, scale)
    zero = jnp.zeros_like(scale)
    quiet = Tail(kind, sign, remainder, jnp.zeros((), bool), end.point, zero, zero)
    answer: Tail = only_where(waves, lambda point: _oscillating(f, end._replace(point=point), quiet), end.point, quiet)
    return answer


def powers(f: Function, end: End, scale: Float[Array, ""]) -> tuple[Array, Array, Array, Array]:
    """Judge convergence by the size of f alone: kind, sign, remainder and whether the sign keeps changing."""
    dtype = end.point.dtype
    depth = _depth(end)
    outer = depth * jnp.asarray(2.0 ** -np.arange(_WINDOWS), dtype)
    fractions = jnp.asarray(0.5 + (np.arange(2 * _SAMPLES) + 0.5) / (4 * _SAMPLES), dtype)
    t = outer[:, None] * fractions[None, :]
    values = jax.vmap(jax.vmap(f))(_position(end, t))
    log_p = jnp.log(jnp.abs(values)) + jnp.where(end.infinite, t, jnp.log(end.width) - t)
    halves = log_p.reshape(_WINDOWS, 2, _SAMPLES)
    means = jax.nn.logsumexp(halves, axis=2) - math.log(_SAMPLES)
    # Two zeros: nothing is left, however fast it went. Two infinities: more than the numbers can hold.
    loss = jnp.where(
        means[:, 1] == -jnp.inf, jnp.inf, jnp.where(means[:, 1] == jnp.inf, -jnp.inf, means[:, 0] - means[:, 1])
    )

    usable = ~jnp.any(jnp.isnan(values), axis=1)
    alive = usable & jnp.all(jnp.abs(values) > 0, axis=1)
    # What fades away is small before it is zero. A zero without warning is overflow in a denominator.
    last = jnp.argmax(jnp.where(jnp.abs(values) > 0, t, -1))
    abrupt = log_p.ravel()[last] > 0.3 * math.log(float(np.finfo(dtype).tiny))
    seen = jnp.minimum(jnp.argmax(alive), _WINDOWS - 2)
    here = jnp.where(abrupt & alive[seen], seen, jnp.minimum(jnp.argmax(usable), _WINDOWS - 2))
    span = outer[here] / 4
    rate = loss[here] / span
    rest = log_p[here] + rate * t[here]
    spread = jnp.where(jnp.isfinite(rate), jnp.std(jnp.where(jnp.isfinite(rest), rest, jnp.median(rest))), 0)
    noise = 6 * spread / math.sqrt(_SAMPLES) + span * (2 * jnp.exp(-depth / 2) + 10 * np.finfo(dtype).eps)

    # p = 1/t loses this much over a window, and 1/t² twice as much.
    order = loss[here] / math.log(math.log(1.5) / math.log(4 / 3))
    logarithmic = (loss[here] < 1.4 * loss[here + 1]) & (loss[here] < 4)
    by_order = jnp.where(order < 1.05, DIVERGES, jnp.where(order < 1.2, UNDECIDED, SLOW))
    flat = jnp.where(noise < 0.02, DIVERGES, UNDECIDED)
    kind = jnp.where(
        loss[here] > noise, jnp.where(logarithmic, by_order, CONVERGES), jnp.where(loss[here] < -noise, DIVERGES, flat)
    )
    kind = jnp.where(usable[here], kind, UNDECIDED).astype(jnp.int32)

    positive, negative = jnp.mean(values[seen] > 0), jnp.mean(values[seen] < 0)
    sign = jnp.where(negative == 0, 1, jnp.where(positive == 0, -1, 0)).astype(dtype)
    precise = -jnp.log(np.finfo(dtype).eps).astype(dtype)
    remainder = (
        jnp.exp(means[here, 0] + order * jnp.log(0.625 * outer[here] / precise))
        * precise
        / jnp.maximum(order - 1, 0.05)
    )
    above = jnp.mean(jnp.abs(values[seen])) > math.sqrt(np.finfo(dtype).eps) * scale
    decay = 4 * loss[seen] / outer[seen]
    waves = (jnp.minimum(positive, negative) > 0.1) & jnp.where(end.infinite, decay < 20, (decay < 1.5) & above)
    return kind, sign, jnp.where(kind == SLOW, remainder, 0), waves & alive[seen]


def only_where(predicate: Bool[Array, ""], compute: Callable[[Any], Any], operand: Any, otherwise: Any) -> Any:
    """Compute something only if it is needed; under `jax.vmap`, if any lane needs it.

    `compute(operand) if predicate else otherwise`

    `jax.lax.cond` becomes a selection under `jax.vmap` and computes always. A loop ends when no lane asks for more.

    Args:
        predicate: whether to compute.
        compute: function of the operand, all of whose work depends on it.
        operand: pytree of arrays, with all floating-point numbers that vary from lane to lane.
        otherwise: what to return else, of the same structure and dtypes.

    Returns:
        One of the two, lane by lane.
    """

    def other(leaf: Array) -> Array:
        return -leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def body(state: tuple[Array, Any, Any]) -> tuple[Array, Any, Any]:
        # Were the operand handed on as it is, the compiler could move the work out of the loop and do it always.
        return jnp.zeros_like(predicate), jax.tree.map(other, state[1]), compute(state[1])

    return jax.lax.while_loop(lambda state: state[0], body, (predicate, operand, otherwise))[2]


def _depth(end: End) -> Array:
    """Largest t at which positions and values can still be told apart."""
    limits = np.finfo(end.point.dtype)
    largest = 0.85 * math.log(float(limits.max))
    closest = jnp.maximum(float(limits.eps) ** 0.75 * end.magnitude, float(limits.tiny) ** 0.85)
    return jnp.where(end.infinite, largest, jnp.clip(jnp.log(end.width / closest), 2, largest))


def _position(end: End, t: Array) -> Array:
    return end.point + end.direction * jnp.where(end.infinite, jnp.exp(t), end.width * jnp.exp(-t))


def _oscillating(f: Function, end: End, quiet: Tail) -> Tail:
    """Sum the half waves of f between its zeros, in y = exp(t)."""
    dtype = end.point.dtype

    def position(y: Array) -> Array:
        return end.point + end.direction * jnp.where(end.infinite, y, end.width / y)

    def integrand(y: Array) -> Array:
        return f(position(y)) * jnp.where(end.infinite, 1, end.width / y**2)

    zeros, found = _zeros(jax.vmap(integrand), dtype)
    nodes, weights = (jnp.asarray(part, dtype) for part in np.polynomial.legendre.leggauss(_NODES))
    half = (zeros[1:] - zeros[:-1]) / 2
    y = (zeros[1:] + zeros[:-1])[:, None] / 2 + half[:, None] * nodes[None, :]
    waves = jnp.sum(half[:, None] * weights[None, :] * jax.vmap(jax.vmap(integrand))(y), axis=1)

    sums = jnp.stack(
        [jnp.sum(jnp.asarray(w, dtype) * waves[: len(w)]) for w in (_alternating(n) for n in (32, 28, 22))]
    )
    largest = jnp.max(jnp.abs(waves))
    error = 10 * (jnp.abs(sums[0] - sums[1]) + jnp.abs(sums[0] - sums[2])) + 20 * np.finfo(dtype).eps * largest
    late, early = jnp.mean(jnp.abs(waves[28:32])), jnp.mean(jnp.abs(waves[12:16]))
    summed = found & jnp.isfinite(error) & (error < 1e-4 * largest)
    vanishing = late < 0.995 * early
    absolute = (quiet.kind == CONVERGES) | (quiet.kind == SLOW)
    kind = jnp.where(summed & vanishing, CONDITIONAL, jnp.where(summed | (late > 1.05 * early), OSCILLATES, UNDECIDED))
    is_cut = summed & vanishing
    return quiet._replace(
        kind=jnp.where(absolute, quiet.kind, kind).astype(jnp.int32),
        sign=jnp.zeros_like(quiet.sign),
        is_cut=is_cut,
        cut=jnp.where(is_cut, position(zeros[0]), end.point),
        value=jnp.where(is_cut, sums[0], 0),
        error=jnp.where(is_cut, error, 0),
    )


def _zeros(g: Function, dtype: Any) -> tuple[Array, Array]:
    """Follow the zeros of g, each looked for about one gap behind the last."""
    grid = jnp.exp(jnp.linspace(0, 7, _GRID, dtype=dtype))
    changes = jnp.diff(jnp.sign(g(grid))) != 0
    first = jnp.argmax(changes)
    second = jnp.argmax(changes & (jnp.arange(_GRID - 1) > first))
    steps = jnp.linspace(0, 1, _BRACKET, dtype=dtype)

    def narrow(_: int, bracket: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high = bracket[:2]
        y = low + (high - low) * steps
        values = g(y)
        change = jnp.signbit(values[1:]) != jnp.signbit(values[:-1])
        k = jnp.argmax(change)
        share = values[k] / (values[k] - values[k + 1])
        return y[k], y[k + 1], jnp.where(jnp.any(change), y[k] + (y[k + 1] - y[k]) * share, jnp.nan)

    def follow(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        zero, gap = state
        following = jax.lax.fori_loop(0, 3, narrow, (zero + 0.4 * gap, zero + 1.9 * gap, zero))[2]
        return (following, following - zero), following

    start = grid[first], grid[second] - grid[first]
    _, zeros = jax.lax.scan(follow, start, length=_WAVES)
    return zeros[_FIRST_WAVES:], (second > first) & jnp.all(jnp.isfinite(zeros))


@functools.cache
def _alternating(count: int) -> np.ndarray[Any, Any]:
    """Weights of the first terms of an alternating series that give its sum."""
    d = (3 + math.sqrt(8)) ** count
    d = (d + 1 / d) / 2
    b, c, weights = -1.0, -d, []
    for k in range(count):
        c = b - c
        # The terms bring their own signs.
        weights.append(c / d * (-1) ** k)
        b *= (k + count) * (k - count) / ((k + 0.5) * (k + 1))
    return np.array(weights)
