"""The thorough way to an integral: its ends judged, its waves summed, its mesh adapted, its poles looked for."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from calcdl.calculus import convergence
from calcdl.calculus.convergence import End, Tail
from calcdl.calculus.panels import INTERVALS, ROUNDING, Answer, Panels, Range, panels_of, position
from calcdl.types import Array

CONVERGES, NOT_REACHED, CONDITIONAL, UNDECIDED, NOT_FINITE, OSCILLATES, DIVERGES = range(7)
STATUSES = (
    "converges",
    "converges, but the tolerance was not reached",
    "converges only conditionally",
    "not decided whether it converges",
    "the integrand is not finite inside the range",
    "does not converge: oscillates",
    "diverges",
)
# Of the kinds of `convergence`.
_STATUS_OF = (CONVERGES, CONVERGES, CONDITIONAL, UNDECIDED, OSCILLATES, DIVERGES)

_SCAN = 2048
_FIRST_EDGES = 4
_ZOOMS, _ZOOM_POINTS = 14, 64

Function = Callable[[Array], Array]


class Scan(NamedTuple):
    """A look at the whole integrand, in the coordinate u.

    Attributes:
        u: where it was evaluated.
        values: the integrand by u, 0 in holes.
        is_hole: where it is not finite.
        edges: of a first mesh.
    """

    u: Float[Array, " points"]
    values: Float[Array, " points"]
    is_hole: Bool[Array, " points"]
    edges: Float[Array, " edges"]


def thorough(f: Function, range_: Range, edges: Array) -> Answer:
    """Integrate whatever it is, or say why not."""
    dtype = edges.dtype
    whole = panels_of(range_, edges)
    count = whole.low.shape[0]
    near = jnp.asarray((np.arange(64 * count) + 0.5) / 64, dtype)
    sizes = jnp.abs(jax.vmap(f)(position(whole, near)[0]))
    scale = jnp.nanmedian(jnp.where(jnp.isfinite(sizes), sizes, jnp.nan))
    ends = _ends(whole)
    tails = jax.vmap(lambda end: convergence.tail(f, end, scale))(ends)
    cut, forward = _cut(whole, tails), _orientation(whole)

    def integrand(u: Array) -> Array:
        x, dx = position(cut, u)
        return f(x) * dx

    scan = _survey(integrand, cut)
    holes, shaken = _flaws(cut, scan)
    pole, first = _pole(f, integrand, cut, scan, scale)
    absolute = jnp.mean(jnp.abs(scan.values)) * count
    epsilon = float(np.finfo(dtype).eps)
    core, info = _adapt(integrand, first, 10 * epsilon * absolute, max(range_.tolerance, 50 * epsilon))
    mesh = info.info
    used = jnp.arange(INTERVALS) < mesh["ninter"]
    shift = jnp.min(jnp.where(used, mesh["a_arr"], jnp.inf))
    left, right = (jnp.where(used, mesh[name] - shift, 0) for name in ("a_arr", "b_arr"))

    kinds = jnp.concatenate([tails.kind, pole[0]])
    signs = jnp.concatenate([tails.sign * forward.repeat(2), pole[1]])
    kind = jnp.max(kinds)
    value = core + jnp.sum(tails.value * forward.repeat(2))
    rounding = ROUNDING * epsilon * jnp.maximum(absolute, mesh["abs_total"]) + epsilon * jnp.sum(
        jnp.where(jnp.isfinite(shaken), shaken, 0)
    )
    rounding = rounding + jnp.sum(_rounding(f, jax.tree.map(lambda *part: jnp.concatenate(part), ends, pole[3])))
    error = 2 * info.err + jnp.sum(tails.error + 2 * tails.remainder) + 2 * jnp.sum(pole[2]) + rounding
    error = jnp.where(jnp.isfinite(error) & jnp.isfinite(value), error, jnp.inf)

    status = jnp.asarray(_STATUS_OF, jnp.int32)[kind]
    status = jnp.where((status < OSCILLATES) & (holes > 2), NOT_FINITE, status)
    reached = error <= jnp.maximum(4 * range_.tolerance * jnp.abs(value), 6 * rounding)
    status = jnp.where((status == CONVERGES) & ~reached, NOT_REACHED, status)
    value = jnp.where(
        status == DIVERGES,
        _infinity(kinds, signs),
        jnp.where((status == OSCILLATES) | (status == NOT_FINITE), jnp.nan, value),
    )
    return Answer(
        value.astype(dtype),
        jnp.where(status <= CONDITIONAL, error, jnp.inf).astype(dtype),
        status.astype(jnp.int32),
        (info.neval + 4096 * (1 + count)).astype(jnp.int32),
        left.astype(dtype),
        right.astype(dtype),
        (status <= NOT_REACHED) & ~jnp.any(tails.is_cut),
    )


def _adapt(integrand: Function, first: Array, absolute: Array, relative: float) -> tuple[Array, Any]:
    import quadax

    core, info = quadax.quadgk(
        integrand,
        first,
        full_output=True,
        epsabs=jnp.maximum(absolute, float(np.finfo(first.dtype).tiny)),
        epsrel=relative,
        max_ninter=INTERVALS,
        order=21,
    )
    return core, info


def _infinity(kinds: Array, signs: Array) -> Array:
    """Return the infinity that all diverging ends agree on, or NaN."""
    settled = kinds != convergence.DIVERGES
    up, down = jnp.all(settled | (signs > 0)), jnp.all(settled | (signs < 0))
    return jnp.where(up, jnp.inf, jnp.where(down, -jnp.inf, jnp.nan))


def _orientation(panels: Panels) -> Array:
    return jnp.where((panels.side == 0) & (panels.high < panels.low), -1, 1).astype(panels.low.dtype)


def _ends(panels: Panels) -> End:
    """Both ends of every panel, seen from inside."""
    forward = _orientation(panels)
    quarter = jnp.where(panels.side == 0, jnp.abs(panels.high - panels.low) / 4, 1)
    two = jnp.asarray([1, -1])
    # Of an infinite panel both ends are seen from its finite edge, one inwards and one outwards, in one direction.
    direction = jnp.where(panels.side[:, None] == 0, forward[:, None] * two[None, :], panels.side[:, None])
    return End(
        jnp.stack([panels.low, panels.high], axis=1).ravel(),
        direction.astype(panels.low.dtype).ravel(),
        quarter.repeat(2),
        (panels.side[:, None] == -two[None, :]).ravel(),
        jnp.abs(jnp.stack([panels.low, panels.high], axis=1)).ravel(),
    )


def _cut(panels: Panels, tails: Tail) -> Panels:
    """Panels without the tails that have been summed."""
    is_cut, cut = tails.is_cut.reshape(-1, 2), tails.cut.reshape(-1, 2)
    low, high = jnp.where(is_cut[:, 0], cut[:, 0], panels.low), jnp.where(is_cut[:, 1], cut[:, 1], panels.high)
    far = ((panels.side < 0) & is_cut[:, 0]) | ((panels.side > 0) & is_cut[:, 1])
    return Panels(low, high, jnp.where(far, 0, panels.side))


def _survey(integrand: Function, panels: Panels) -> Scan:
    """Scan the range: values, and edges for a first mesh, placed where the integrand turns."""
    dtype, count = panels.low.dtype, panels.low.shape[0]
    u = jnp.asarray((np.arange(_SCAN) + 1 / math.e) * count / _SCAN, dtype)
    values = jax.vmap(integrand)(u)
    is_hole = ~jnp.isfinite(values)
    values = jnp.where(is_hole, 0, values)
    turning = jnp.abs(jnp.diff(values, n=2))
    # Extrapolation towards the ends wants to begin with wide intervals.
    turning = jnp.where(jnp.abs(u[1:-1] % 1 - 0.5) < 0.45, turning, 0)
    share = jnp.cbrt(turning / jnp.maximum(jnp.max(turning), np.finfo(dtype).tiny))
    progress = jnp.cumsum(share / jnp.maximum(jnp.sum(share), np.finfo(dtype).tiny) + 0.5 / _SCAN)
    wanted = jnp.asarray((np.arange(_FIRST_EDGES) + 0.53) / _FIRST_EDGES, dtype) * progress[-1]
    return Scan(u, values, is_hole, jnp.interp(wanted, progress, u[1:-1]))


def _flaws(panels: Panels, scan: Scan) -> tuple[Array, Array]:
    """Return the number of points where f is not a number, and ∫|x f'|, by which rounding of positions counts."""
    x = position(panels, scan.u)[0]
    # Further out, overflow in a part of the formula says nothing about the integrand.
    inside = (
        jnp.min(jnp.abs(x[:, None] - panels.low[None, :]), axis=1) < math.log(float(np.finfo(panels.low.dtype).max)) / 8
    )
    holes = jnp.sum(scan.is_hole & (inside | (panels.side[jnp.floor(scan.u).astype(jnp.int32)] == 0)))
    # Moving every position by its rounding error moves the integral by this much.
    shaken = jnp.where(jnp.isfinite(x), jnp.abs(x), 0)[1:] * jnp.abs(
        jnp.diff(scan.values / position(panels, scan.u)[1])
    )
    return holes, jnp.sum(jnp.where(jnp.isfinite(shaken), shaken, 0))


def _pole(f: Function, integrand: Function, panels: Panels, scan: Scan, scale: Array) -> tuple[Any, Array]:
    """Judge the sharpest point inside from both sides: kinds, signs, remainders, sides; add it to the edges."""
    u, sizes = scan.u, jnp.abs(scan.values)
    around = sizes[:-2] + sizes[1:-1] + sizes[2:]
    sharpness = jnp.abs(jnp.diff(scan.values, n=2)) / (
        around + jnp.maximum(jnp.mean(sizes) * 1e-3, np.finfo(u.dtype).tiny)
    )
    sharpness = jnp.where(scan.is_hole[1:-1], jnp.inf, sharpness)
    gap = u[1] - u[0]
    away = 0.5 - jnp.abs(u[1:-1] % 1 - 0.5)
    centre = u[1 + jnp.argmax(jnp.where(away > 3 * gap, sharpness, -1))]

    def zoom(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        points = low + (high - low) * jnp.linspace(0, 1, _ZOOM_POINTS, dtype=low.dtype)
        # Jumps, kinks and poles of either sign all stand out in the second difference.
        turns = jnp.abs(jnp.diff(jax.vmap(integrand)(points), n=2))
        k = 1 + jnp.argmax(jnp.where(jnp.isnan(turns), jnp.inf, turns))
        return points[k - 1], points[k + 1]

    low, high = jax.lax.fori_loop(0, _ZOOMS, zoom, (centre - 2 * gap, centre + 2 * gap))
    centre = (low + high) / 2
    point, _ = position(panels, centre)
    index = jnp.floor(centre).astype(jnp.int32)
    edges = jnp.stack([panels.low[index], panels.high[index]])
    room = jnp.min(jnp.where(edges == point, jnp.abs(edges[1] - edges[0]) + 1, jnp.abs(edges - point))) / 4
    pair = [jnp.broadcast_to(number, 2) for number in (point, room, jnp.sum(jnp.abs(edges)) + jnp.abs(point))]
    both = End(pair[0], jnp.asarray([1, -1], u.dtype), pair[1], jnp.zeros(2, bool), pair[2])
    kind, sign, remainder, _ = jax.vmap(lambda end: convergence.powers(f, end, scale))(both)
    whole = jnp.arange(panels.low.shape[0] + 1, dtype=u.dtype)
    first = jnp.sort(jnp.concatenate([whole, scan.edges, centre[None]]))
    return (kind, sign * _orientation(panels)[index], remainder, both), first


def _rounding(f: Function, ends: End) -> Array:
    """Error of the integral near an end by rounding of the positions there, as close as extrapolation goes."""
    epsilon = float(np.finfo(ends.point.dtype).eps)
    x = ends.point + ends.direction * ends.width * jnp.where(ends.infinite, 1, math.sqrt(epsilon))
    sizes = jnp.abs(jax.vmap(f)(x))
    unsure: Array = epsilon * ends.magnitude * jnp.where(jnp.isfinite(sizes) & ~ends.infinite, sizes, 0)
    return unsure
