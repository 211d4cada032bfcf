"""Limits of functions, with a verdict, an error estimate and the table of values behind them.

A computer sees a function at finitely many points, so a limit can be measured and never proved. Three habits keep the
measurement honest. The points approach by an irrational factor, several to a step, so that no sin(pi/x) or
sin(2 pi x) is met at its zeros only. Every value comes with its round-off (`calcdl.calculus.roundoff`), so that lost
digits are not taken for a limit. And an extrapolation must agree with the values nearest to the point, from 1e-12 to
1e-60 in float64. What drifts too slowly to tell, as log(log(x)) does, gets the verdict "not decided".

- `limit`: one variable, from one side, both sides, or at infinity.
- `path_limit`: several variables, along many straight and curved paths; it can refute, and no more.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from calcdl.calculus.roundoff import measure
from calcdl.calculus.shells import Reading, into_shells, neville_weights, read
from calcdl.calculus.verdicts import CONVERGES as CONVERGES
from calcdl.calculus.verdicts import DIFFERS as DIFFERS
from calcdl.calculus.verdicts import DOWN as DOWN
from calcdl.calculus.verdicts import OSCILLATES as OSCILLATES
from calcdl.calculus.verdicts import ROUGH as ROUGH
from calcdl.calculus.verdicts import SLOW as SLOW
from calcdl.calculus.verdicts import STATUSES as STATUSES
from calcdl.calculus.verdicts import UNDEFINED as UNDEFINED
from calcdl.calculus.verdicts import UP as UP
from calcdl.calculus.verdicts import Approach as Approach
from calcdl.calculus.verdicts import verdict_of, with_status
from calcdl.types import Array

# Of no simple ratio to anything, so that no period is met in step.
_START = 0.7390851332151607
_WITHIN = (0.7753, 0.4879, 0.2360, 0.0)


class Limit(NamedTuple):
    """A limit and what it rests on.

    Attributes:
        value: the limit; infinite, or NaN where it does not exist; the best guess where it is not decided.
        error: estimate of its error; infinite where it is not decided, NaN where there is no finite limit.
        status: index into `STATUSES`.
        approaches: each side or path; from both sides, the left comes first.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]
    status: Int[Array, ""]
    approaches: Approach

    @property
    def verdict(self) -> str:
        """The status in words; for concrete results."""
        return STATUSES[int(self.status)]

    def rows(self, every: int = 8) -> list[tuple[Any, float, float]]:
        """Return the evidence as rows (x, f(x), round-off), for concrete results.

        Args:
            every: how many points to a row.
        """
        points, values, noise = (np.asarray(part) for part in self.approaches[3:])
        return [
            (point.item() if point.ndim == 0 else tuple(point.tolist()), float(value), float(rough))
            for side in range(len(points))
            for point, value, rough in zip(
                points[side, ::every], values[side, ::every], noise[side, ::every], strict=True
            )
        ]


class _Ladder(NamedTuple):
    main: np.ndarray[Any, Any]
    deep: np.ndarray[Any, Any]

    @classmethod
    def of(cls, dtype: Any) -> "_Ladder":
        double = np.finfo(dtype).bits >= 64
        count, first, second = (36, 2.1972, 21.317) if double else (21, 1.9487, 2.8173)
        exponents = np.arange(count)[:, None] - np.asarray(_WITHIN)[None, :]
        near = _START * first**-exponents
        exponents = 1.0 + np.arange(count)[:, None] - np.asarray(_WITHIN)[None, 1::2]
        return cls(near, near[-1, -1] * second**-exponents)


def limit(
    function: Callable[[Array], Any],
    at: Float[Array, ""] | float,
    *,
    side: Literal["both", "left", "right"] = "both",
) -> Limit:
    """Measure the limit of a function of one variable.

    `lim f(x) as x -> at`, by values at `at ± h` for h from about 1 to 1e-12, and at 0 and infinity on to 1e-60
    (float32: 1e-6 and 1e-15), extrapolated.

    Args:
        function: f, of a scalar; anything that JAX can trace. It is never called at the point itself.
        at: the point, in the dtype of the computation (for Python numbers the default float). A finite one may be
            traced; `math.inf` and `-math.inf` must be concrete.
        side: from which side to approach; infinity has one side, whatever is asked.

    Returns:
        A `Limit`.

    Raises:
        ValueError: side is unknown, or at is NaN, or f does not return one real number.

    Example:
        >>> found = limit(lambda x: jnp.sin(x) / x, 0.0)
        >>> round(float(found.value), 5), found.verdict
        (1.0, 'converges')
        >>> limit(lambda x: jnp.sin(1 / x), 0.0).verdict
        'does not exist: the values oscillate'
        >>> limit(lambda x: jnp.abs(x) / x, 0.0).verdict
        'does not exist: the sides or paths differ'
    """
    if side not in ("both", "left", "right"):
        raise ValueError(f"side must be 'both', 'left' or 'right', got {side!r}")
    dtype = jnp.promote_types(jnp.result_type(at, 1.0), jnp.float32)
    concrete = None if isinstance(at, jax.core.Tracer) else float(at)
    if concrete is not None and math.isnan(concrete):
        raise ValueError("at must be a number or infinite, got nan")
    ladder = _Ladder.of(dtype)
    distances = np.concatenate([ladder.main.ravel(), ladder.deep.ravel()])
    if concrete is not None and math.isinf(concrete):
        points = jnp.asarray(math.copysign(1.0, concrete) / distances, dtype)[None, :]
        return _join(_approach(function, points, jnp.ones(points.shape, bool), ladder), jnp.asarray([True]))
    centre = jnp.asarray(at, dtype)
    signs = {"both": (-1.0, 1.0), "left": (-1.0,), "right": (1.0,)}[side]
    # Wide enough that the nearest points still differ from it by several of its last places.
    coarse = 16 * float(np.finfo(dtype).eps) * jnp.abs(centre)
    scale = jnp.maximum(1, coarse / float(ladder.main.min()))
    steps = scale * jnp.asarray(distances, dtype)
    points = centre + jnp.asarray(signs, dtype)[:, None] * steps[None, :]
    usable = jnp.broadcast_to((steps >= 0.99 * coarse)[None, :], points.shape)
    return _join(_approach(function, points, usable, ladder), jnp.ones(len(signs), bool))


def _approach(function: Callable[[Array], Any], points: Array, usable: Array, ladder: _Ladder) -> Approach:
    """Judge each row of points, [sides, points, *shape of a point]."""
    sides, count = points.shape[:2]
    measured = measure(function, points.reshape(sides * count, *points.shape[2:]))
    value, noise, undefined = (part.reshape(sides, count) for part in measured)
    value, noise = jnp.where(usable, value, jnp.nan), jnp.where(usable, noise, jnp.inf)

    found, error, status = _judge(value, noise, undefined)
    return Approach(found, error, status, points, value, noise)


@jax.jit
def _judge(value: Array, noise: Array, undefined: Array) -> tuple[Array, Array, Array]:
    """Return value, error and status of each row; compiled once for all functions."""
    ladder = _Ladder.of(value.dtype)
    split = ladder.main.size
    weights = jnp.asarray(np.stack([neville_weights(rungs[:, -1]) for rungs in ladder]), value.dtype)

    def judge(value: Array, noise: Array, undefined: Array) -> tuple[Array, Array, Array]:
        main, deep = (
            into_shells(value[part].reshape(rungs.shape), noise[part].reshape(rungs.shape))
            for part, rungs in ((slice(split), ladder.main), (slice(split, None), ladder.deep))
        )
        shells = jax.tree.map(lambda *parts: jnp.stack(parts), main, deep)
        both = jax.vmap(read, (0, 0, None))(shells, weights, deep)
        hollow = jnp.mean(undefined[2 * split // 3 : split].astype(value.dtype)) > 0.3
        first, second = (Reading(*(part[side] for part in both)) for side in (0, 1))
        return verdict_of(first, second, hollow)

    return jax.vmap(judge)(value, noise, undefined)


def _join(approach: Approach, counted: Array) -> Limit:
    """Join those sides or paths that count; they must agree."""
    value, error, status = approach.value, approach.error, approach.status
    converging = counted & (status == CONVERGES)
    best = jnp.argmin(jnp.where(converging, error, jnp.inf))
    apart = jnp.where(converging, jnp.abs(value - value[best]), 0)

    def some(kind: int) -> Array:
        return jnp.any(counted & (status == kind))

    kinds = sum(some(kind).astype(jnp.int32) for kind in (CONVERGES, UP, DOWN))
    differs = (kinds > 1) | jnp.any(converging & (apart > error + error[best]))
    joined = jnp.where(some(UP), UP, jnp.where(some(DOWN), DOWN, CONVERGES))
    joined = jnp.where(some(SLOW), SLOW, joined)
    joined = jnp.where(some(ROUGH), ROUGH, joined)
    joined = jnp.where(some(OSCILLATES), OSCILLATES, joined)
    joined = jnp.where(differs, DIFFERS, joined)
    joined = jnp.where(some(UNDEFINED) | ~jnp.any(counted), UNDEFINED, joined)
    # Sides that agree within their errors may still differ by as much.
    error = jnp.maximum(jnp.max(jnp.where(converging, error, 0)), jnp.max(apart))
    return Limit(*with_status(value[best], error, joined), joined.astype(jnp.int32), approach)


def path_limit(function: Callable[[Array], Any], at: Float[Array, " variables"]) -> Limit:
    """Look for a limit of a function of several variables along many paths.

    `x_i(h) = at_i + c_i h^p_i` for h -> 0+, with powers p of 1, 2 and 3 in many combinations: both directions of each
    axis, diagonals, other straight lines, parabolas and cubics; and a spiral. Two paths that disagree refute the
    limit. Paths that agree are evidence, and no proof: another path may still differ.

    Args:
        function: f, of a vector; anything that JAX can trace. It is never called at the point itself.
        at: the point, finite; may be traced. At 0 paths are followed farthest, elsewhere until x_i rounds to at_i.

    Returns:
        A `Limit`, each of whose approaches is a path. Paths on which f is nowhere defined do not count.

    Raises:
        ValueError: at is no vector of two or more numbers, or f does not return one real number.

    Example:
        >>> path_limit(lambda x: x[0] ** 2 * x[1] / (x[0] ** 4 + x[1] ** 2), jnp.zeros(2)).verdict
        'does not exist: the sides or paths differ'
        >>> path_limit(lambda x: x[0] ** 2 * x[1] / (x[0] ** 2 + x[1] ** 2), jnp.zeros(2)).verdict
        'converges'
    """
    centre = jnp.asarray(at)
    if centre.ndim != 1 or len(centre) < 2:
        raise ValueError(f"at must be a vector of two or more numbers, got shape {centre.shape}")
    dtype = jnp.promote_types(jnp.result_type(centre, 1.0), jnp.float32)
    centre, ladder = centre.astype(dtype), _Ladder.of(dtype)
    distances = np.concatenate([ladder.main.ravel(), ladder.deep.ravel()])
    steps = jnp.asarray(_paths(len(centre), distances), dtype)
    coarse = 16 * float(np.finfo(dtype).eps) * jnp.max(jnp.abs(centre))
    points = centre[None, None, :] + jnp.maximum(1, coarse / float(ladder.main.min())) * steps
    usable = jnp.broadcast_to((jnp.asarray(distances, dtype) >= 0.99 * coarse)[None, :], points.shape[:2])
    approach = _approach(function, points, usable, ladder)
    counted = jnp.any(jnp.isfinite(approach.values), axis=1) & (approach.status != UNDEFINED)
    return _join(approach, counted)


def _paths(variables: int, distances: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the paths as steps from the point, [paths, distances, variables]."""
    count = 8 * (2 * variables + 1)
    # Fixed numbers of either sign, well spread and of no simple ratio to each other.
    roots = np.sqrt(np.asarray([2 + 4 * i + 4 * i * i for i in range(1, variables + 1)]))
    phases = (np.arange(1, count + 1)[:, None] * roots[None, :]) % 1
    coefficients = (0.4 + 1.7 * ((3 * phases) % 1)) * np.where(phases < 0.5, 1, -1)
    powers = np.ones((count, variables))
    for i in range(variables):
        powers[8 + 16 * i : 12 + 16 * i, i] = 2
        powers[12 + 16 * i : 16 + 16 * i, i] = 3
        others = np.arange(variables) != i
        powers[16 + 16 * i : 20 + 16 * i, others] = 2
        powers[20 + 16 * i : 24 + 16 * i, others] = 3
    diagonals = np.ones((4, variables))
    diagonals[1:3, ::2] = -1
    diagonals[2:, 1::2] = -1
    straight = np.concatenate([np.eye(variables), -np.eye(variables), diagonals])
    coefficients = np.concatenate([straight, coefficients])
    powers = np.concatenate([np.ones_like(straight), powers])
    paths = coefficients[:, None, :] * distances[None, :, None] ** powers[:, None, :]
    turning = np.log(distances)[:, None] * 0.61803 + np.arange(variables)[None, :] * math.sqrt(2)
    return np.concatenate([paths, (distances[:, None] * np.cos(turning))[None]])
