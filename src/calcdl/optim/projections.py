r"""Simple sets: a step of any solver, followed by the way to the nearest point of the set.

    p' = P(p + u),    P(p) = argmin over q in the set of ||q - p||

A run ends where the gradient mapping p - P(p - grad f(p)) is 0, which takes the place of the gradient; inside the set
it is the gradient. The projections are Optax's, by name, but for "box_section", which it has not, and for those that
rest on the simplex: Optax's turns float32 into float64 where x64 is on. In half precision they are computed in float32
and rounded once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from calcdl.optim.hyperparameters import Hyperparameter, Number, check_names, check_value, choose
from calcdl.optim.solver import Info, Solver
from calcdl.optim.vectors import flatten
from calcdl.trees import cast_like, widen, widest
from calcdl.types import Array, Objective, Params

Map = Callable[[Params], Params]
_MOST_STEPS = 200


class Projection(NamedTuple):
    """A set by name.

    Attributes:
        build: `(params, **hyperparameters) -> params`, the nearest point of the set.
        hyperparameters: what describes the set, by name; a default of None must be given.
        trees: those of them that may be trees like the parameters.
    """

    build: Callable[..., Params]
    hyperparameters: dict[str, Hyperparameter]
    trees: tuple[str, ...] = ()


def projection(name: str, **hyperparameters: Any) -> Map:
    r"""Make the map to the nearest point of a set.

    $$ P(p) = \arg\min_{q \in S} \lVert q - p \rVert_2 $$

    The parameters are one long vector, whatever the tree. Where many points are nearest (the centre of a sphere)
    there is no projection: "l2_sphere" returns NaN at 0. "box_section" is where a plane cuts a box; if it does not, the
    corner nearest to the plane is returned.

    Args:
        name: a key of `PROJECTIONS`.
        **hyperparameters: what describes the set: `scale` (a radius, a sum or a side, above 0), `lower` and `upper`
            ("box"), the normal `a` and the offset `b` of <a, p> = b ("hyperplane") or <= b ("halfspace"), or all four
            ("box_section"). All but `scale` and `b` may be trees like the parameters. Traced values pass unchecked.

    Returns:
        A function of parameters, which keeps structure and dtypes.

    Raises:
        ValueError: an unknown name or hyperparameter, one that is missing, a number outside its interval, a lower bound
            above the upper one.
        TypeError: a hyperparameter that is no number.

    Example:
        >>> projection("simplex")(jnp.array([1.0, 0.75, -3.0])).tolist()
        [0.625, 0.375, 0.0]

    Reference:
        Duchi et al. (2008), Efficient projections onto the l1-ball, ICML; Dai and Fletcher (2006), New algorithms for
        singly linearly constrained quadratic programs subject to lower and upper bounds ("box_section").
    """
    rule: Projection = choose("projection", name, PROJECTIONS)
    check_names(f"projection {name}", hyperparameters, rule.hyperparameters)
    values = {field: one.default for field, one in rule.hyperparameters.items()} | hyperparameters
    for field, value in values.items():
        if value is None:
            raise ValueError(f"projection {name}: expected the hyperparameter {field!r}, got none")
        leaves = jax.tree.leaves(value) if field in rule.trees else [value]
        for leaf in leaves:
            check_value(field, leaf, rule.hyperparameters[field].bounds)
    _check_box(values.get("lower"), values.get("upper"))

    def project(params: Params) -> Params:
        wide = widen(params)
        filled = {field: _filled(value, wide, field in rule.trees) for field, value in values.items()}
        return cast_like(rule.build(wide, **filled), params)

    return project


def projected(solver: Solver, project: Map, *, rate: Number = 1.0) -> Solver:
    r"""Follow every step of a solver by a projection onto a set.

    $$ p_{k+1} = P(p_k + u_k), \quad G(p) = \frac{p - P(p - \text{rate} \, \nabla f(p))}{\text{rate}} $$

    The gradient mapping G, which `Info.gradient` holds, is 0 exactly where no feasible direction descends. It does not
    depend on the solver: momentum in the state is no lack of stationarity.

    Args:
        solver: whose steps to project; its `Info.gradient` must be the gradient of the objective.
        project: the map to the nearest point of a convex set, such as `projection` makes.
        rate: of the gradient mapping, above 0. With the learning rate of plain descent, the mapping is the step
            made, over the rate.

    Returns:
        A solver with the state of the one given.

    Raises:
        ValueError: a rate that is not above 0.

    Example:
        >>> from calcdl.optim.descent import descent
        >>> solver = projected(descent("sgd", 0.5), projection("non_negative"))
        >>> params = jnp.array([1.0, 1.0])
        >>> objective = lambda p: jnp.sum((p + jnp.array([1.0, -2.0])) ** 2)
        >>> params, _, info = solver.step(objective, params, solver.init(params))
        >>> params.tolist(), info.gradient.tolist()
        ([0.0, 2.0], [1.0, -2.0])

    Reference:
        Beck (2017), First-Order Methods in Optimization, chapter 10.
    """
    check_value("rate", rate, "(0, inf)")

    def step(objective: Objective, params: Params, state: Any) -> tuple[Params, Any, Info]:
        moved, state, info = solver.step(objective, params, state)
        moved = cast_like(project(moved), params)
        mapped = _mapping(params, info.gradient, project, rate)
        update = jax.tree.map(jnp.subtract, moved, params)
        return moved, state, Info(info.value, mapped, update, info.status)

    return Solver(solver.init, step)


def _mapping(params: Params, gradient: Params, project: Map, rate: Number) -> Params:
    wide = widen(params)
    step = jax.tree.map(jnp.subtract, wide, project(descended(wide, gradient, rate)))
    return cast_like(jax.tree.map(lambda d: d / jnp.asarray(rate, d.dtype), step), params)


def descended(at: Params, gradient: Params, rate: Number) -> Params:
    """Return the end of a step of plain descent, in float32 or wider."""
    return jax.tree.map(lambda p, g: p - jnp.asarray(rate, p.dtype) * g.astype(p.dtype), at, gradient)


def _filled(value: Any, params: Params, may_be_tree: bool) -> Any:
    """Return a tree of arrays like the parameters for what may be one, else a scalar of their dtype."""
    if not may_be_tree:
        return jnp.asarray(value, widest(params))
    if str(jax.tree.structure(value)) == str(jax.tree.structure(params)):
        return jax.tree.map(lambda p, v: jnp.broadcast_to(jnp.asarray(v, p.dtype), p.shape), params, value)
    return jax.tree.map(lambda p: jnp.broadcast_to(jnp.asarray(value, p.dtype), p.shape), params)


def _check_box(lower: Any, upper: Any) -> None:
    pair = jax.tree.leaves((lower, upper))
    if len(pair) != 2 or any(isinstance(end, jax.core.Tracer) for end in pair):
        return
    if np.any(np.asarray(pair[0]) > np.asarray(pair[1])):
        raise ValueError(f"lower: expected no bound above the upper one, got {lower} and {upper}")


def _hypercube(params: Params, scale: Array) -> Params:
    return jax.tree.map(lambda p: jnp.clip(p, 0, scale.astype(p.dtype)), params)


def _simplex(params: Params, scale: Array) -> Params:
    """Subtract from all entries what makes the sum of the positive ones right."""
    vector = flatten(params)
    ordered = jnp.sort(vector.entries, descending=True)
    counts = jnp.arange(1, len(ordered) + 1, dtype=ordered.dtype)
    excess = jnp.cumsum(ordered) - scale
    positive = jnp.maximum(jnp.sum(ordered * counts > excess), 1)
    level = excess[positive - 1] / positive.astype(ordered.dtype)
    return vector.wide(jnp.maximum(vector.entries - level, 0))


def _l1_sphere(params: Params, scale: Array) -> Params:
    sizes = _simplex(jax.tree.map(jnp.abs, params), scale)
    return jax.tree.map(lambda p, size: jnp.where(p < 0, -size, size), params, sizes)


def _l1_ball(params: Params, scale: Array) -> Params:
    inside = jnp.sum(jnp.abs(flatten(params).entries)) <= scale
    return jax.tree.map(lambda p, edge: jnp.where(inside, p, edge), params, _l1_sphere(params, scale))


def _box_section(params: Params, lower: Params, upper: Params, a: Params, b: Array) -> Params:
    """Clip p - t a, for the t at which <a, clip(p - t a)> = b: that falls in t, and is linear between its corners."""
    vector = flatten(params)
    given = (vector.entries, *(flatten(tree).entries for tree in (lower, upper, a)), b)
    fixed = jax.lax.stop_gradient(given)
    entries, low, high, normal, _ = fixed
    level = normal == 0
    corners = jnp.concatenate([entries - low, entries - high]) / jnp.tile(jnp.where(level, 1, normal), 2)
    corners = jnp.where(jnp.tile(level, 2), jnp.inf, corners)
    first = jnp.min(corners, initial=jnp.inf, where=jnp.isfinite(corners))
    last = jnp.max(corners, initial=-jnp.inf, where=jnp.isfinite(corners))
    rounding = 8 * jnp.finfo(entries.dtype).eps

    def search(state: Any) -> Any:
        t, before, after, count, _ = state
        cut = _cut(t, *fixed)
        before, after = jnp.where(cut.excess >= 0, t, before), jnp.where(cut.excess <= 0, t, after)
        # Newton's step ends within one linear piece; every third step halves what is left, whatever the pieces.
        newton = (cut.slope > 0) & (cut.zero >= before) & (cut.zero <= after) & ((count % 3 != 2) | (first > last))
        moved = jnp.where(newton, cut.zero, (jnp.maximum(before, first) + jnp.minimum(after, last)) / 2)
        done = (jnp.abs(cut.excess) <= rounding * cut.size) | (moved == t)
        return jnp.where(done, t, moved), before, after, count + 1, done

    zero, infinite = jnp.zeros((), entries.dtype), jnp.full((), jnp.inf, entries.dtype)
    start = (zero, -infinite, infinite, jnp.int32(0), jnp.zeros((), bool))
    t, *_ = jax.lax.while_loop(lambda state: ~state[4] & (state[3] < _MOST_STEPS), search, start)
    # One more step, without which derivatives would take t for a constant.
    return vector.wide(_cut(_cut(jax.lax.stop_gradient(t), *given).zero, *given).clipped)


class _Cut(NamedTuple):
    clipped: Array
    excess: Array  # <a, clipped> - b
    slope: Array  # by which the excess falls
    zero: Array  # where it is 0 if the slope stays
    size: Array  # of the numbers whose sum the excess is


def _cut(t: Array, p: Array, lower: Array, upper: Array, a: Array, b: Array) -> _Cut:
    moved = p - t * a
    clipped = jnp.clip(moved, lower, upper)
    terms, slope = a * clipped, jnp.sum(jnp.where(clipped == moved, a**2, 0))
    excess = jnp.sum(terms) - b
    return _Cut(clipped, excess, slope, t + excess / jnp.where(slope > 0, slope, 1), jnp.sum(jnp.abs(terms)) + abs(b))


_SCALE = {"scale": Hyperparameter(1.0, "(0, inf)")}
_BOX = {"lower": Hyperparameter(None, "[-inf, inf]"), "upper": Hyperparameter(None, "[-inf, inf]")}
_PLANE = {"a": Hyperparameter(None, "(-inf, inf)"), "b": Hyperparameter(None, "(-inf, inf)")}

PROJECTIONS: dict[str, Projection] = {
    "non_negative": Projection(optax.projections.projection_non_negative, {}),
    "box": Projection(optax.projections.projection_box, _BOX, ("lower", "upper")),
    "hypercube": Projection(_hypercube, _SCALE),
    "simplex": Projection(_simplex, _SCALE),
    "l1_sphere": Projection(_l1_sphere, _SCALE),
    "l1_ball": Projection(_l1_ball, _SCALE),
    "l2_sphere": Projection(optax.projections.projection_l2_sphere, _SCALE),
    "l2_ball": Projection(optax.projections.projection_l2_ball, _SCALE),
    "linf_ball": Projection(optax.projections.projection_linf_ball, _SCALE),
    "hyperplane": Projection(optax.projections.projection_hyperplane, _PLANE, ("a",)),
    "halfspace": Projection(optax.projections.projection_halfspace, _PLANE, ("a",)),
    "box_section": Projection(_box_section, _BOX | _PLANE, ("lower", "upper", "a")),
}
