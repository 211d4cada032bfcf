"""From values ever closer to a point to a verdict: they settle, grow without bound, oscillate, or cannot be judged.

Values are read in shells, each nearer to the point than the one before by one factor. A shell knows its last value,
the range of all its values, and their round-off. Three readings compete, each with an error of its own making:

- the middle of the last shell, with three times the range of the last third of the shells: for what is squeezed;
- polynomial extrapolation (Neville, Richardson) in the distance: for what is smooth;
- the epsilon algorithm (Shanks, Wynn) along the shells: for sums of powers of the distance, also with logarithms.

No extrapolation is believed against the values beyond it: its error grows to whatever they contradict it by.

Reference: Brezinski and Redivo Zaglia, Extrapolation Methods, 1991.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from calcdl.types import Array, Scalar

_COLUMNS = 8
_SAFETY = 2.0
# As large a part of the earlier range as an oscillation must keep to count as lasting.
_LASTING = 0.95
# What is left of one stretch of growth in the next, for growth that will not end: log(x) keeps all of it.
_UNENDING = 0.999
# How small the error must be beside the way that the values still move.
_SETTLED = 0.1


class Shells(NamedTuple):
    """Values by shell, the farthest shell first.

    Attributes:
        last: the value nearest to the point.
        top: the largest value of the shell; infinity where one is not a number.
        bottom: the smallest value; minus infinity where one is not a number.
        noise: the largest round-off.
        relative: the largest round-off as a part of its value.
        rise: sum of the upward moves between neighbouring values, less their round-off.
        fall: the same for downward moves.
    """

    last: Float[Array, " shells"]
    top: Float[Array, " shells"]
    bottom: Float[Array, " shells"]
    noise: Float[Array, " shells"]
    relative: Float[Array, " shells"]
    rise: Float[Array, " shells"]
    fall: Float[Array, " shells"]


class Candidate(NamedTuple):
    """A possible limit, its estimated error, and the shell up to which it was read."""

    value: Array
    error: Array
    end: Array


class Others(NamedTuple):
    """What a sequence knows beside its shells, whose bounds are whole numbers and grow by no exact factor.

    Attributes:
        candidates: in place of the epsilon algorithm along the shells.
        levels: a_n, a_{n/2}, a_{n/4}, a_{n/8}.
        lost: the part by which the ratio of their differences may shrink in growth without a bound.
    """

    candidates: tuple[Candidate, ...]
    levels: Float[Array, " 4"]
    lost: float


class Reading(NamedTuple):
    """What the shells say.

    Attributes:
        value: the limit, if there is one.
        error: estimate of its error.
        settled: whether the error is small beside the way that the values still move.
        oscillates: whether they keep moving up and down as far as ever.
        grows: 1 or -1 where they grow without bound and keep that sign, else 0.
        clear: how many shells stand above round-off.
    """

    value: Scalar
    error: Scalar
    settled: Bool[Array, ""]
    oscillates: Bool[Array, ""]
    grows: Scalar
    clear: Scalar


def into_shells(
    values: Float[Array, "shells probes"], noise: Float[Array, "shells probes"], *, reach: bool = False
) -> Shells:
    """Gather values, ordered towards the point, shell by shell.

    Args:
        values: the last of each shell nearest to the point.
        noise: their round-off.
        reach: whether ranges go back to the last value before, so that a shell of one value has a range too.
    """
    finite = jnp.isfinite(values) & jnp.isfinite(noise)
    last = jnp.where(finite[:, -1], values[:, -1], jnp.nan)
    flat, rough = jnp.where(finite, values, jnp.nan).ravel(), noise.ravel()
    difference = jnp.diff(flat)
    move = jnp.sign(difference) * jnp.maximum(jnp.abs(difference) - rough[1:] - rough[:-1], 0)
    move = jnp.concatenate([jnp.zeros_like(flat[:1]), jnp.where(jnp.isnan(move), 0, move)]).reshape(values.shape)
    top = jnp.max(jnp.where(finite, values, jnp.inf), axis=1)
    bottom = jnp.min(jnp.where(finite, values, -jnp.inf), axis=1)
    if reach:
        before = jnp.concatenate([last[:1], last[:-1]])
        top, bottom = jnp.fmax(top, before), jnp.fmin(bottom, before)
    relative = noise / jnp.where(values == 0, 1, jnp.abs(values))
    return Shells(
        last=last,
        top=top,
        bottom=bottom,
        noise=jnp.max(jnp.where(finite, noise, jnp.inf), axis=1),
        relative=jnp.max(jnp.where(finite & (values != 0), relative, jnp.inf), axis=1),
        rise=jnp.sum(jnp.maximum(move, 0), axis=1),
        fall=jnp.sum(jnp.maximum(-move, 0), axis=1),
    )


def read(shells: Shells, weights: Array, beyond: Shells, others: Others | None = None) -> Reading:
    """Read a limit from shells.

    Args:
        shells: at least 6 of them, at distances that shrink by one factor.
        weights: `neville_weights` of those distances.
        beyond: shells nearer still, which may refute an extrapolation, and no more.
        others: what is known in another way.

    Returns:
        A `Reading`.
    """
    thirds = _Thirds.of(shells)
    found = (shanks(shells),) if others is None else others.candidates
    candidates = [_middle(shells, thirds), polynomial(shells, weights), *found]
    # A polynomial knows the powers 1, 2, ..., the epsilon algorithm any, and a middle goes nowhere.
    powers = jnp.asarray([0.3, 0.7] + [0.3] * len(found), shells.last.dtype)
    excused = jnp.asarray([False, False] + [others is None] * len(found))
    value, error, end = (jnp.stack(parts) for parts in zip(*candidates, strict=True))
    ahead, lagging, steady = jax.vmap(lambda last, power: _drift(shells, weights, last, power))(end, powers)
    steady &= excused
    drift = jnp.where(lagging & ~steady, ahead, 0)
    refuted = jax.vmap(lambda *each: _contradiction(shells, beyond, *each))(value, error, end, steady)
    error = jnp.maximum(error, jnp.maximum(refuted, drift))
    slow = _pick(lagging, jnp.argmin(error)) > 0
    rivals, theirs = value, error
    value, error, end = _least(value, error, end)
    # Two that contradict each other cannot both know their error.
    dispute = jnp.where(jnp.isfinite(theirs) & jnp.isfinite(rivals), jnp.abs(rivals - value) - theirs, 0)
    error = jnp.maximum(error, jnp.max(dispute))
    index = jnp.arange(len(shells.last))
    recent = (3 * index > end) & (index <= end)
    way = jnp.max(jnp.where(recent, shells.top, -jnp.inf)) - jnp.min(jnp.where(recent, shells.bottom, jnp.inf))
    limits, noise = np.finfo(value.dtype), _pick(shells.noise, end)
    scale = jnp.where((way == 0) & (value == 0), 1, jnp.maximum(jnp.abs(value), way))  # 0 throughout has no scale
    quiet = noise <= float(limits.eps) ** 0.5 * scale + float(limits.tiny) ** 0.5
    settled = (error <= _SETTLED * way) | (quiet & (error <= 20 * noise)) | (~slow & (error <= 0.02 * jnp.abs(value)))
    settled &= jnp.isfinite(error)
    oscillates, clear = _oscillation(thirds)
    return Reading(value, error, settled, oscillates, _growth(shells, thirds, others), clear)


class _Thirds(NamedTuple):
    """The first, second and last third of the shells up to each of several ends."""

    ends: Array
    span: Array
    middle: Array
    noise: Array
    finite: Array
    variation: Array
    typical: Array
    low: Array
    high: Array
    dip: Array
    relative: Array
    sign: Array

    @classmethod
    def of(cls, shells: Shells) -> "_Thirds":
        low = jnp.maximum(jnp.maximum(shells.bottom, -shells.top), 0)
        high = jnp.maximum(jnp.abs(shells.top), jnp.abs(shells.bottom))
        dip = low / jnp.where(high == 0, 1, high)
        parts = jnp.stack([shells.top, -shells.bottom, shells.noise, high, shells.relative, -low, -dip])
        top, bottom, noise, high, relative, low, dip = _by_thirds(parts, jnp.max)
        bottom, low, dip = -bottom, -low, -dip
        width = jnp.log(jnp.maximum(shells.top - shells.bottom, float(np.finfo(top.dtype).tiny)))
        rise, fall, width = _by_thirds(jnp.stack([shells.rise, shells.fall, width]), jnp.sum)
        count = np.arange(1, len(shells.last) // 3 + 1)
        return cls(
            ends=jnp.asarray(3 * count - 1),
            span=top - bottom,
            middle=(top + bottom) / 2,
            noise=noise,
            finite=jnp.isfinite(top - bottom),
            variation=jnp.minimum(rise, fall)[:, 2],
            typical=jnp.exp(width / jnp.asarray(count, top.dtype)[:, None]),
            low=low,
            high=high,
            dip=dip,
            relative=relative,
            sign=jnp.where(bottom > 0, 1, jnp.where(top < 0, -1, 0)).astype(top.dtype),
        )


def _by_thirds(parts: Array, reduce: Callable[..., Array]) -> Array:
    """Reduce over the three thirds of the first 3, 6, 9, ... shells: [parts, ends, 3]."""
    counts = range(1, parts.shape[1] // 3 + 1)
    return jnp.stack([reduce(parts[:, : 3 * n].reshape(len(parts), 3, n), axis=2) for n in counts], axis=1)


def _latest(allowed: Array) -> Array:
    """Return the index of the last True, or 0."""
    return jnp.max(jnp.where(allowed, jnp.arange(len(allowed)), 0))


def _pick(values: Array, at: Array) -> Array:
    """Return `values[at]`; far fewer operations than an index that is mapped over."""
    chosen = jnp.arange(len(values)) == at
    return jnp.sum(jnp.where(chosen.reshape(-1, *(1,) * (values.ndim - 1)), values, 0), axis=0)


def _oscillation(thirds: _Thirds) -> tuple[Array, Array]:
    clear = thirds.finite[:, 2] & (thirds.noise[:, 2] < 0.02 * thirds.span[:, 2])
    at = _latest(clear)
    chosen = _Thirds(*(_pick(part, at) for part in thirds))
    any_clear, (_, second, third) = jnp.any(clear), chosen.span
    lasting = third >= _LASTING * second
    # Poles without end, as those of tan(x): their highest values are chance, their usual ones are not.
    heavy = (third > 8 * chosen.typical[2]) & (chosen.typical[2] >= 0.8 * chosen.typical[1])
    level = jnp.abs(chosen.middle[2] - chosen.middle[1]) <= 0.25 * third
    returns = level | (chosen.dip[2] < 0.06)
    both_ways = chosen.variation >= 0.9 * third
    enough = any_clear & (chosen.ends >= 5)
    return enough & (lasting | heavy) & returns & both_ways, jnp.where(any_clear, chosen.ends + 1, 0)


def _growth(shells: Shells, thirds: _Thirds, others: Others | None) -> Array:
    clear = thirds.finite[:, 2] & (thirds.relative[:, 2] <= 0.1) & (thirds.sign[:, 2] != 0)
    at = _latest(clear)
    chosen = _Thirds(*(_pick(part, at) for part in thirds))
    sign, end = chosen.sign[2], chosen.ends
    stretch = jnp.maximum(end // 4, 1)
    levels = jnp.stack([_pick(shells.last, jnp.maximum(end - turn * stretch, 0)) for turn in range(4)])
    lost = 0.01
    if others is not None:
        levels, lost = jnp.where(jnp.all(jnp.isfinite(others.levels)), others.levels, levels), others.lost
    now, before, earlier, first = sign * levels
    unending = (now > before) & (now - before >= _UNENDING * (before - earlier))
    # Growth towards a bound far away looks like growth without one, but its increments grow ever less.
    ratio = (now - before) / jnp.where(before == earlier, 1, before - earlier)
    ratio_before = (before - earlier) / jnp.where(earlier == first, 1, earlier - first)
    unending &= (ratio > 3) | (ratio >= (1 - lost) * ratio_before)
    low = chosen.low[2]
    apart = (low > 1.2 * chosen.high[0]) & (low > 0.3 * chosen.high[1])
    apart &= (chosen.dip[2] > 0.12) | (chosen.variation == 0)
    signed = jnp.where(sign > 0, shells.bottom, -shells.top)
    returns = (jnp.arange(len(signed)) > end) & (shells.noise < 0.1 * low) & (signed < 0.3 * low)
    return jnp.where(jnp.any(clear) & unending & apart & ~jnp.any(returns), sign, 0)


def _middle(shells: Shells, thirds: _Thirds) -> Candidate:
    value = (shells.top + shells.bottom)[2::3] / 2
    return _least(value, 3 * thirds.span[:, 2] + shells.noise[2::3], thirds.ends)


def _least(value: Array, error: Array, end: Array) -> Candidate:
    error = jnp.where(jnp.isfinite(value) & jnp.isfinite(error), error, jnp.inf)
    best = jnp.argmin(error)
    return Candidate(*(_pick(part, best) for part in (value, error, end)))


def neville_weights(steps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return by how much of the last difference each column of Neville's scheme goes on, [columns, shells]."""
    count = len(steps)
    weights = np.full((min(_COLUMNS, count - 3), count), np.nan)
    for column in range(1, len(weights) + 1):
        weights[column - 1, column:] = steps[column:] / (steps[:-column] - steps[column:])
    return weights


def polynomial(shells: Shells, weights: Float[Array, "columns shells"]) -> Candidate:
    """Extrapolate to distance 0 by the polynomial through each run of up to 9 last values (Neville)."""

    def column(now: tuple[Array, Array], weight: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        value, noise = now
        value = value + (value - _earlier(value)) * weight
        noise = noise * (1 + jnp.abs(weight)) + _earlier(noise) * jnp.abs(weight)
        return (value, noise), (value, noise)

    # A loop, since in one stretch the compiler would repeat each column inside every later one.
    return _best_of(shells.last, *jax.lax.scan(column, (shells.last, shells.noise), weights)[1])


def shanks(shells: Shells) -> Candidate:
    """Extrapolate by Wynn's epsilon algorithm along the last values, round-off carried along."""
    Pair = tuple[Array, Array]

    def column(state: tuple[Pair, Pair], _: None) -> tuple[tuple[Pair, Pair], Pair]:
        before, now = state
        gap = now[0] - _earlier(now[0])
        value = _earlier(before[0]) + 1 / gap
        noise = _earlier(before[1]) + (now[1] + _earlier(now[1])) / gap**2
        return (now, (value, noise)), (value, noise)

    start = (jnp.zeros_like(shells.last), jnp.zeros_like(shells.last)), (shells.last, shells.noise)
    count = min(_COLUMNS, len(shells.last) - 3)
    value, noise = jax.lax.scan(column, start, None, length=count)[1]
    return _best_of(shells.last, value[1::2], noise[1::2])


def _earlier(values: Array, count: int = 1) -> Array:
    """Shift along the shells, so that each meets the one before it."""
    shifted = jnp.roll(values, count, axis=-1)
    return jnp.where(jnp.arange(values.shape[-1]) < count, jnp.nan, shifted)


def _best_of(first: Array, values: Array, noises: Array) -> Candidate:
    """Choose the entry that agrees best with its column before, and with the two entries above it."""
    previous = jnp.concatenate([first[None, :], values[:-1]])
    above, farther = _earlier(values), _earlier(values, 2)
    agreement = jnp.abs(values - previous) + jnp.abs(values - above) + jnp.abs(above - farther)
    index = jnp.broadcast_to(jnp.arange(len(first)), values.shape)
    return _least(values.ravel(), _SAFETY * (agreement + noises).ravel(), index.ravel())


def _drift(shells: Shells, weights: Array, end: Array, power: Array) -> tuple[Array, Array, Array]:
    """Return how far values may still go that approach their limit ever more slowly, as 1/log(1/x) does.

    Along shells a power of the distance loses the same part in each stretch, and its sum is known. Where that part is
    small and shrinks, the limit is anybody's guess, to twice what a constant part would leave. Also whether they
    approach slowly, and whether in constant parts.
    """
    stretch, index = jnp.maximum(end // 4, 1), jnp.arange(len(shells.last))

    def span(turn: int) -> Array:
        inside = (index <= end - turn * stretch) & (index >= end - (turn + 1) * stretch)
        top = jnp.max(jnp.where(inside, shells.top, -jnp.inf))
        return jnp.maximum(top + jnp.max(jnp.where(inside, -shells.bottom, -jnp.inf)), 0)

    now, before, earlier, first = (_pick(shells.last, jnp.maximum(end - turn * stretch, 0)) for turn in range(4))
    last, previous, oldest = now - before, before - earlier, earlier - first
    part = last / jnp.where(previous == 0, 1, previous)
    steady = jnp.abs(part - previous / jnp.where(oldest == 0, 1, oldest)) <= 1e-3 * jnp.abs(part)
    # The range, too, must shrink: an oscillation has a sum in the sense of Abel, and that is no limit.
    recent, older = span(0), span(1)
    kept = jnp.maximum(jnp.abs(part), jnp.where(jnp.isfinite(older), recent / jnp.where(older == 0, 1, older), 0))
    # What this power of the distance keeps; a short stretch says too little for that.
    most = jnp.minimum((1 + 1 / weights[0, -1]) ** (-power * stretch.astype(weights.dtype)), 0.6)
    lagging = (kept > most) & (recent > 3 * _pick(shells.noise, end))
    return jnp.where(kept < 0.9, 2 * recent / (1 - kept), jnp.inf), lagging, steady


def _contradiction(shells: Shells, beyond: Shells, value: Array, error: Array, end: Array, steady: Array) -> Array:
    """Return how far values nearer to the point are from the candidate, where they leave the band it came from."""
    index = jnp.arange(len(shells.last))
    apart = jnp.maximum(shells.top - value, value - shells.bottom)
    near = (index <= end) & (index > end - 2)
    band = 1.25 * jnp.max(jnp.where(near, apart, 0)) + 4 * shells.noise[end]
    outside = jnp.max(jnp.where(index > end, _outside(apart, shells.noise, band), 0))
    apart = jnp.maximum(beyond.top - value, value - beyond.bottom)
    outside = jnp.maximum(outside, jnp.max(_outside(apart, beyond.noise, band)))
    clear = jnp.isfinite(apart) & (beyond.noise < 0.01 * band)
    nearest = _pick(apart, _latest(clear))
    # Only the smallest powers of the distance leave that much, so far on.
    remains = jnp.any(clear) & (nearest > 0.02 * band) & (nearest > error) & ~steady
    return jnp.where(remains, jnp.maximum(outside, 2 * nearest), outside)


def _outside(apart: Array, noise: Array, band: Array) -> Array:
    counts = jnp.isfinite(apart) & jnp.isfinite(noise) & (apart > 4 * noise + band)
    return jnp.where(counts, apart, 0)
