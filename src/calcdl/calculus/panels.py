"""A range of integration cut into panels: the coordinate that runs through them, and the rules that fill them at once.

The panels of a range are numbered along one coordinate u, panel i between i and i + 1. A finite panel is spread evenly,
an infinite one by `x = edge + v / (1 - v)`, `v = u - i`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Function = Callable[[Array], Array]

_NODES = 31  # of the Gauss rule
_REACH, _STEP = 4.4, 1 / 32  # of the double-exponential rule, in its own variable
_END_STEP = 1 / 16  # of the double-exponential rule towards both ends
_SMOOTH = 1e-5  # what the highest Legendre coefficients of the middle of a panel may be, beside its mean
ENDS_AT_MOST = 5  # panels whose ends one mesh has room for
ROUNDING = 50  # in units of the last place of ∫|f|: below it no estimate means anything
INTERVALS = 120


class Range(NamedTuple):
    """What is known of the range when the program is made.

    Attributes:
        lower_infinite: whether the lower limit is -inf.
        upper_infinite: whether the upper limit is inf.
        tolerance: relative error to reach.
    """

    lower_infinite: bool
    upper_infinite: bool
    tolerance: float


class Panels(NamedTuple):
    """The panels of a range, in its direction.

    Attributes:
        low: where each panel begins; the finite edge for an infinite one.
        high: where it ends; likewise.
        side: -1 where it begins at -inf, 1 where it ends at inf, else 0.
    """

    low: Float[Array, " panels"]
    high: Float[Array, " panels"]
    side: Int[Array, " panels"]


class Answer(NamedTuple):
    """An integral with what its derivative needs.

    Attributes:
        value: the integral.
        error: estimate of its error.
        status: index into `integrals.STATUSES`.
        evaluations: how often f was evaluated.
        left: left edges, in u, of the mesh that was found; it ends with intervals of no width.
        right: right edges.
        whole: whether the mesh covers all of the integral.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]
    status: Int[Array, ""]
    evaluations: Int[Array, ""]
    left: Float[Array, " intervals"]
    right: Float[Array, " intervals"]
    whole: Bool[Array, ""]


def edges_between(inner: Sequence[Array], limits: Sequence[Array], lower_infinite: bool, upper_infinite: bool) -> Array:
    """Sort breakpoints between the finite limits, in the direction of the range."""
    if not inner:
        return jnp.stack(limits)
    points = jnp.sort(jnp.stack(inner))
    if lower_infinite and upper_infinite:
        return points
    if lower_infinite:
        return jnp.append(jnp.minimum(points, limits[-1]), limits[-1])
    if upper_infinite:
        return jnp.append(limits[0], jnp.maximum(points, limits[0]))
    lower, upper = limits
    points = jnp.clip(points, jnp.minimum(lower, upper), jnp.maximum(lower, upper))
    points = jnp.where(lower <= upper, points, points[::-1])
    return jnp.concatenate([lower[None], points, upper[None]])


def panels_of(range_: Range, edges: Float[Array, " edges"]) -> Panels:
    """Cut a range at its edges."""
    low, high = edges[:-1], edges[1:]
    side = np.zeros(len(edges) - 1, np.int32)
    if range_.lower_infinite:
        low, high, side = jnp.append(edges[0], low), jnp.append(edges[0], high), np.append(-1, side)
    if range_.upper_infinite:
        low, high, side = jnp.append(low, edges[-1]), jnp.append(high, edges[-1]), np.append(side, 1)
    return Panels(low, high, jnp.asarray(side, jnp.int32))


def position(panels: Panels, u: Float[Array, "..."]) -> tuple[Array, Array]:
    """Return x and dx/du."""
    index = jnp.clip(jnp.floor(u), 0, panels.low.shape[0] - 1).astype(jnp.int32)
    v = u - index
    low, high, side = panels.low[index], panels.high[index], panels.side[index]
    rest = jnp.maximum(jnp.where(side < 0, v, 1 - v), np.finfo(u.dtype).tiny)
    far = (1 - rest) / rest
    near = jnp.where(v < 0.5, low + (high - low) * v, high - (high - low) * (1 - v))
    x = jnp.where(side > 0, low + far, jnp.where(side < 0, high - far, near))
    return x, jnp.where(side == 0, high - low, 1 / rest**2)


def quick(f: Function, range_: Range, edges: Float[Array, " edges"]) -> tuple[Answer, Array]:
    """Try one rule on every panel; return the answer and whether it has converged."""
    dtype = edges.dtype
    low, width = edges[:-1], jnp.diff(edges)
    near, far = low.shape[0], range_.lower_infinite + range_.upper_infinite
    nodes, weights, checks = (jnp.asarray(part, dtype) for part in _gauss())
    distance, spacing = (jnp.asarray(part, dtype) for part in _double_exponential())
    beyond = [edges[0] - distance] * range_.lower_infinite + [edges[-1] + distance] * range_.upper_infinite
    x = jnp.concatenate([(low[:, None] + width[:, None] * nodes[None, :]).ravel(), *beyond])
    values = jax.vmap(f)(x)

    inside = values[: near * _NODES].reshape(near, _NODES) * width[:, None]
    outside = values[near * _NODES :].reshape(far, distance.shape[0])
    # Far out 0 * inf is common and stands for 0; inside the range no point is passed over.
    outside = jnp.where(jnp.isnan(outside), 0, outside * spacing[None, :])
    halved = jnp.sum(outside[:, ::2] - outside[:, 1::2], axis=1)
    # The rule was cut off where nothing was left, or so it must seem.
    left_over = jnp.abs(outside[:, 0]) + jnp.abs(outside[:, -1])

    value = jnp.sum(inside @ weights) + jnp.sum(outside)
    absolute = jnp.sum(jnp.abs(inside) @ weights) + jnp.sum(jnp.abs(outside))
    difference = jnp.sum(jnp.abs(inside @ checks)) + jnp.sum(jnp.abs(halved) + left_over / _STEP)
    # Moving every position by its rounding error moves the integral by this much.
    shaken = jnp.sum(
        jnp.abs(jnp.diff(values[: near * _NODES].reshape(near, _NODES)))
        * jnp.maximum(jnp.abs(low), jnp.abs(low + width))[:, None]
    )
    rounding = np.finfo(dtype).eps * (ROUNDING * absolute + shaken)
    agree = difference <= jnp.maximum(range_.tolerance * jnp.abs(value), rounding)
    answer = _answer(value, jnp.maximum(difference, rounding), x.shape[0], _mesh(range_, near))
    return answer, agree & (absolute > 0) & jnp.isfinite(absolute)


def at_ends(f: Function, range_: Range, edges: Float[Array, " edges"]) -> tuple[Answer, Array]:
    """Try the double-exponential rule on every finite panel, for what is steep at its ends and smooth between them.

    An integral that diverges at an end leaves something over where the rule is cut off. One that diverges inside has an
    integral of |f| on which two halves of the rule differ, also where f itself cancels by symmetry.
    """
    dtype = edges.dtype
    low, high, width = edges[:-1, None], edges[1:, None], jnp.diff(edges)[:, None]
    count = low.shape[0]
    small, weights, upper = (jnp.asarray(part, dtype)[None, :] for part in _towards_ends(dtype.name))
    nodes, _, checks = (jnp.asarray(part, dtype) for part in _gauss())
    x = jnp.where(upper > 0, high - width * small, low + width * small)
    between = low + width * (0.1 + 0.8 * nodes[None, :])
    values = jax.vmap(f)(jnp.concatenate([x.ravel(), between.ravel()]))
    bare, middle = values[: x.size].reshape(x.shape), values[x.size :].reshape(count, _NODES)

    terms = bare * weights * width
    value, absolute = jnp.sum(terms), jnp.sum(jnp.abs(terms))
    halved = jnp.abs(jnp.sum(terms[:, ::2] - terms[:, 1::2], axis=1))
    left_over = (jnp.abs(terms[:, 0]) + jnp.abs(terms[:, -1])) / _END_STEP
    moved = jnp.abs(jnp.diff(bare)) * jnp.abs(x[:, 1:]) * jnp.maximum(weights[:, 1:], weights[:, :-1]) * jnp.abs(width)
    epsilon = float(np.finfo(dtype).eps)
    difference = jnp.sum(halved + left_over) + epsilon * jnp.sum(moved) / _END_STEP
    rounding = epsilon * ROUNDING * absolute
    agree = difference <= jnp.maximum(range_.tolerance * jnp.abs(value), rounding)
    inside = jnp.sum(jnp.abs(middle @ checks)) <= _SMOOTH * jnp.sum(jnp.abs(middle)) / _NODES
    sizes = jnp.abs(terms)
    steady = jnp.abs(jnp.sum(sizes[:, ::2] - sizes[:, 1::2])) <= 0.01 * absolute
    evaluations = _NODES * count + values.shape[0]
    answer = _answer(value, jnp.maximum(difference, rounding), evaluations, _mesh_to_ends(count))
    return answer, agree & inside & steady & (absolute > 0) & jnp.isfinite(absolute)


def on_mesh(f: Function, range_: Range, edges: Array, left: Array, right: Array) -> Array:
    """Sum f over a mesh in u, differentiably by the edges and by what f closes over."""
    nodes, weights = (jnp.asarray(part, left.dtype) for part in _tanh_sinh())
    u = (left[:, None] + (right - left)[:, None] * nodes[None, :]).ravel()
    w = ((right - left)[:, None] * weights[None, :]).ravel()
    panels = panels_of(range_, edges)
    x, dx = position(panels, u)
    usable = jax.lax.stop_gradient(jnp.isfinite(jax.vmap(f)(x) * dx)) & (w > 0)
    # A derivative at a point that does not count could still be NaN, and NaN times zero is NaN.
    u = jnp.where(usable, u, u[jnp.argmax(usable)])
    x, dx = position(panels, u)
    return jnp.sum(jnp.where(usable, w, 0) * dx * jax.vmap(f)(x))


def is_infinite(limit: Any) -> bool:
    """Whether a limit is known to be infinite when the program is made."""
    return not isinstance(limit, jax.core.Tracer) and math.isinf(limit)


def _answer(value: Array, error: Array, evaluations: int, edges: np.ndarray[Any, Any]) -> Answer:
    """Answer of a rule that is trusted with the whole range; its mesh is filled up with intervals of no width."""
    mesh = jnp.asarray(np.append(edges, np.full(INTERVALS + 1 - len(edges), edges[-1])), value.dtype)
    zero, whole = jnp.zeros((), jnp.int32), jnp.ones((), bool)
    return Answer(value, error, zero, jnp.asarray(evaluations, jnp.int32), mesh[:-1], mesh[1:], whole)


def _mesh(range_: Range, near: int) -> np.ndarray[Any, Any]:
    """Mesh for the derivative of an integral that one rule could do."""
    distances = np.array([0, 1 / 8, 1 / 2, 1, 2, 4, 8, 16, 32, 128])
    rising = distances / (1 + distances)
    parts = [np.sort(1 - rising)] * range_.lower_infinite
    parts.append(range_.lower_infinite + np.arange(2 * near) / 2)
    parts += [range_.lower_infinite + near + rising] * range_.upper_infinite
    return np.append(np.concatenate(parts), range_.lower_infinite + near + range_.upper_infinite)


def _mesh_to_ends(count: int) -> np.ndarray[Any, Any]:
    """Mesh for the derivative of an integral that is steep at the ends of its panels."""
    near = 2.0 ** -np.array([310, 260, 210, 160, 110, 60, 30, 10, 4, 1])
    parts = [place + np.concatenate([[0], near, 1 - near[-2::-1]]) for place in range(count)]
    return np.append(np.concatenate(parts), count)


@functools.cache
def _towards_ends(dtype: str) -> tuple[np.ndarray[Any, Any], ...]:
    """Distances from the nearer end of (0, 1), their weights, and whether that is the upper end."""
    reach = np.arcsinh(-0.98 * math.log(float(np.finfo(dtype).tiny)) / np.pi)
    t = (np.arange(2 * math.ceil(reach / _END_STEP)) - math.ceil(reach / _END_STEP) + 0.5) * _END_STEP
    t = t[np.abs(t) <= reach]
    return *_from_nearer_end(t, _END_STEP), (t > 0).astype(float)


def _from_nearer_end(t: np.ndarray[Any, Any], step: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Distances of the double-exponential nodes from the nearer end of (0, 1), and their weights."""
    decay = np.exp(-np.pi * np.sinh(np.abs(t)))
    return decay / (1 + decay), step * np.pi * np.cosh(t) * decay / (1 + decay) ** 2


@functools.cache
def _gauss() -> tuple[np.ndarray[Any, Any], ...]:
    """Nodes in (0, 1), weights, and the rules whose sums are the highest Legendre coefficients.

    The coefficients fall like ρ^-k where the rule's error falls like ρ^-2k. Odd ones are among them, so that nothing
    cancels by symmetry.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    orders = np.arange(_NODES - 6, _NODES)
    polynomials = np.polynomial.legendre.legvander(nodes, _NODES - 1)[:, orders]
    return (1 + nodes) / 2, weights / 2, weights[:, None] * polynomials * (2 * orders + 1) / 2


@functools.cache
def _double_exponential() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Distances from 0 to infinity and their weights."""
    t = (np.arange(2 * round(_REACH / _STEP)) - round(_REACH / _STEP) + 0.5) * _STEP
    distance = np.exp(np.pi / 2 * np.sinh(t))
    return distance, _STEP * distance * np.pi / 2 * np.cosh(t)


@functools.cache
def _tanh_sinh() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Nodes in (0, 1), dense at both ends, and their weights."""
    t = np.arange(-32, 33) / 10
    small, weights = _from_nearer_end(t, 0.1)
    return np.where(t < 0, small, 1 - small), weights / np.sum(weights)
