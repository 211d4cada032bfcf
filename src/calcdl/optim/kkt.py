r"""What holds at a constrained minimum: the conditions of Karush, Kuhn and Tucker, and how far a point is from them.

For min f(x) with c(x) = 0 and d(x) >= 0, where bounds l <= x <= u count as inequalities x - l >= 0 and u - x >= 0:

    stationarity      grad f = sum_i lambda_i grad c_i + sum_j mu_j grad d_j
    feasibility       c = 0,  d >= 0
    complementarity   mu_j d_j = 0
    sign              mu >= 0

A multiplier is what the minimum changes by when its constraint moves, d f* / d b for c(x) = b: a price.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from calcdl.optim.vectors import flatten
from calcdl.trees import widen
from calcdl.types import Array, Objective, Params, Scalar

Constraint = Callable[[Params], Any]
Bound = Any
_BENT = 0.25


class Multipliers(NamedTuple):
    """Lagrange multipliers, by kind of constraint; None where there is no such constraint.

    Attributes:
        equality: of the structure that the equality constraints return; of any sign.
        inequality: of the structure that the inequality constraints return; at least 0, and 0 where not active.
        lower: of the structure of the parameters; at least 0, and 0 where there is no bound or it is not reached.
        upper: like `lower`.
    """

    equality: Any = None
    inequality: Any = None
    lower: Params | None = None
    upper: Params | None = None


class KKT(NamedTuple):
    """How far a point with its multipliers is from a solution: four largest entries, each 0 at one.

    Attributes:
        stationarity: of the gradient of the Lagrangian, in the objective's unit a parameter's.
        feasibility: of the violation, in the constraints' unit.
        complementarity: of the products of inequalities and their multipliers, in the objective's unit.
        sign: of the negative parts of the multipliers of inequalities.
    """

    stationarity: Scalar
    feasibility: Scalar
    complementarity: Scalar
    sign: Scalar


class System(NamedTuple):
    """A constrained problem on vectors: parameters x, constraints c and multipliers as one vector each.

    Attributes:
        objective: f of x.
        constraints: c of x, equalities first.
        is_equality: which of c are equalities; known before anything runs.
        ravel: parameters -> x.
        unravel: x -> parameters, in float32 or wider.
        pack: Multipliers -> vector; what is None is left out.
        unpack: vector -> Multipliers.
    """

    objective: Callable[[Array], Scalar]
    constraints: Callable[[Array], Float[Array, " constraints"]]
    is_equality: np.ndarray
    ravel: Callable[[Params], Float[Array, " n"]]
    unravel: Callable[[Array], Params]
    pack: Callable[[Multipliers], Array]
    unpack: Callable[[Array], Multipliers]


def kkt_residuals(
    objective: Objective,
    params: Params,
    multipliers: Multipliers,
    *,
    equality: Constraint | None = None,
    inequality: Constraint | None = None,
    lower: Bound = None,
    upper: Bound = None,
) -> KKT:
    r"""Measure how far any point, with any multipliers, is from a constrained minimum.

    $$ \lVert \nabla f - \textstyle\sum_i \lambda_i \nabla c_i \rVert_\infty, \quad
       \max(|c_E|, -c_I, 0), \quad \max |\lambda_I c_I|, \quad \max(-\lambda_I, 0) $$

    Args:
        objective: f, scalar function of the parameters.
        params: pytree of floating-point arrays.
        multipliers: those to judge, of the structure of `ConstrainedSolution.multipliers`; None stands for zeros.
        equality: c(params) = 0, an array or a pytree of arrays; None for no such constraints.
        inequality: c(params) >= 0, likewise.
        lower: least values of the parameters: a number for all or a tree of their structure, -inf for no bound.
        upper: largest values, inf for no bound.

    Returns:
        The four residuals.

    Raises:
        TypeError: constraints or parameters that are not floating point.
        ValueError: bounds that are not of the parameters' structure or shapes.

    Example:
        >>> square = lambda x: x @ x
        >>> line = lambda x: x[0] + x[1] - 1
        >>> at = jnp.array([0.5, 0.5])
        >>> kkt = kkt_residuals(square, at, Multipliers(equality=jnp.array(1.0)), equality=line)
        >>> float(kkt.stationarity), float(kkt.feasibility)
        (0.0, 0.0)

    Reference:
        Nocedal and Wright (2006), Numerical Optimization, Theorem 12.1.
    """
    problem = system(objective, params, equality, inequality, lower, upper)
    x, prices = problem.ravel(params), problem.pack(multipliers)
    return kkt(problem, lagrangian_gradient(problem, x, prices), problem.constraints(x), prices)


def kkt(problem: System, slope: Array, c: Array, multipliers: Array) -> KKT:
    """Residuals of a problem on vectors, of the gradient of its Lagrangian and the values of its constraints."""
    on = ~problem.is_equality
    prices, slacks = multipliers[on], c[on]
    return KKT(
        _largest(slope), _largest(violation(problem, c)), _largest(prices * slacks), _largest(jnp.minimum(prices, 0))
    )


def lagrangian_gradient(problem: System, x: Array, multipliers: Array) -> Array:
    """Gradient by x of f(x) - multipliers . c(x)."""
    slope: Array = jax.grad(lambda x: problem.objective(x) - jnp.sum(multipliers * problem.constraints(x)))(x)
    return slope


def violation(problem: System, c: Array) -> Array:
    """By how much each constraint is missed: all of an equality, the negative part of an inequality."""
    return jnp.where(problem.is_equality, c, jnp.minimum(c, 0))


def is_active(problem: System, c: Array, multipliers: Array) -> Bool[Array, " constraints"]:
    """Which constraints hold a solution in place: the equalities, and inequalities below their multipliers."""
    felt = jnp.asarray(problem.is_equality) | (c <= multipliers)
    return jax.lax.stop_gradient(felt)


def held(problem: System, c: Array, multipliers: Array) -> Array:
    """Equalities, and the smaller of inequalities and multipliers: with the gradient, what is 0 at solutions only."""
    return jnp.where(is_active(problem, c, multipliers), c, multipliers)


def size(*vectors: Array) -> Scalar:
    """Norm of vectors that are near 0 or not, for decisions only."""
    return jnp.sqrt(jnp.sum(jnp.concatenate(vectors) ** 2))


def is_qualified(problem: System, x: Array, c: Array, multipliers: Array, small: Scalar) -> Bool[Array, ""]:
    """Whether the active constraints have independent gradients near x, so that multipliers exist and are unique.

    At a point that is feasible only within the tolerance a gradient may be about to vanish (x^2 = 0). It is so where
    the step that would restore feasibility changes the gradients by more than a quarter of themselves.
    """
    if not c.size:
        return jnp.asarray(True)
    active = is_active(problem, c, multipliers) | (c <= 10 * small)
    rows = jnp.where(active[:, None], jax.jacrev(problem.constraints)(x), 0)
    lengths = jnp.linalg.norm(rows, axis=1)
    scale = jnp.where(lengths > 0, lengths, 1)
    unit = rows / scale[:, None]
    filled = jnp.concatenate([unit, jnp.diag(1 - active.astype(x.dtype))], axis=1)
    left, sizes, right = jnp.linalg.svd(filled, full_matrices=False)
    precision = 10 * jnp.finfo(x.dtype).eps ** 0.5
    inverse = jnp.where(sizes > precision, 1 / jnp.where(sizes > precision, sizes, 1), 0)
    pseudo = (right.T * inverse[None, :]) @ left.T
    correction = -(pseudo @ jnp.where(active, c / scale, 0))[: x.size]
    turned = jnp.where(active[:, None], jax.jacrev(problem.constraints)(x + correction), 0) / scale[:, None] - unit
    bent = jnp.linalg.norm(turned @ pseudo[: x.size]) >= _BENT
    independent: Array = (sizes[-1] > precision) & ~bent
    return independent


def system(
    objective: Objective,
    params: Params,
    equality: Constraint | None,
    inequality: Constraint | None,
    lower: Bound,
    upper: Bound,
) -> System:
    """Bring a problem on trees into the form on vectors."""
    leaves = jax.tree.leaves(params)
    for leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"params: expected floating-point leaves, got {jnp.result_type(leaf)}; see split_floating")
    dtype = jnp.result_type(jnp.float32, *(jnp.asarray(leaf).dtype for leaf in leaves))
    wide, back = widen(params), flatten(params).wide
    below, above = _bound("lower", lower, wide), _bound("upper", upper, wide)
    parts: list[tuple[Constraint, Any, bool]] = []
    for name, c, exact in (("equality", equality, True), ("inequality", inequality, False)):
        if c is not None:
            parts.append((c, _shapes(name, c, wide), exact))
    for bound, sign in ((below, 1.0), (above, -1.0)):
        if bound is not None:
            parts.append((_distance(bound, sign), wide, False))
    vectors = [flatten(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)) for _, like, _ in parts]
    sizes = [vector.entries.size for vector in vectors]
    given = [one is not None for one in (equality, inequality, below, above)]

    def constraints(x: Array) -> Array:
        at = back(x)
        return jnp.concatenate([jnp.zeros(0, dtype), *(_vector(c(at), dtype) for c, _, _ in parts)])

    def pack(multipliers: Multipliers) -> Array:
        kinds = [kind for kind, present in zip(multipliers, given, strict=True) if present]
        filled = [
            jnp.zeros(size, dtype) if kind is None else _vector(kind, dtype)
            for kind, size in zip(kinds, sizes, strict=True)
        ]
        return jnp.concatenate([jnp.zeros(0, dtype), *filled])

    def unpack(vector: Array) -> Multipliers:
        pieces = iter(jnp.split(vector, np.cumsum(sizes)[:-1]) if sizes else [])
        trees = iter([like.wide(piece) for like, piece in zip(vectors, pieces, strict=True)])
        return Multipliers(*(next(trees) if present else None for present in given))

    return System(
        # Differentiated many times over: compiled functions are traced once for each.
        jax.jit(lambda x: jnp.asarray(objective(back(x)), dtype)),
        jax.jit(constraints),
        np.repeat([exact for _, _, exact in parts], sizes).astype(bool),
        lambda tree: _vector(tree, dtype),
        back,
        pack,
        unpack,
    )


def _vector(tree: Any, dtype: Any) -> Array:
    leaves = [jnp.ravel(jnp.asarray(leaf, dtype)) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros(0, dtype), *leaves])


def _shapes(name: str, constraint: Constraint, params: Params) -> Any:
    shapes = jax.eval_shape(constraint, params)
    for leaf in jax.tree.leaves(shapes):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            relation = "= 0" if name == "equality" else ">= 0"
            raise TypeError(f"{name}: expected a function of floating-point values c(x) {relation}, got {leaf.dtype}")
    return shapes


def _distance(bound: Params, sign: float) -> Constraint:
    def distance(params: Params) -> Params:
        # A bound at infinity is a constraint that is always met and never felt.
        return jax.tree.map(
            lambda p, b: jnp.where(jnp.isfinite(b), sign * (p - jnp.where(jnp.isfinite(b), b, 0)), 1), params, bound
        )

    return distance


def _bound(name: str, bound: Bound, params: Params) -> Params | None:
    if bound is None:
        return None
    given, wanted = str(jax.tree.structure(bound)), str(jax.tree.structure(params))
    if given != wanted:
        if jax.tree.leaves(bound) != [bound] or jnp.ndim(bound):
            raise ValueError(f"{name}: expected a number or a tree of the structure {wanted}, got {given}")
        bound = jax.tree.map(lambda _: bound, params)

    def fit(leaf: Array, limit: Any) -> Array:
        try:
            return jnp.broadcast_to(jnp.asarray(limit, leaf.dtype), leaf.shape)
        except ValueError as error:
            raise ValueError(f"{name}: expected the shape {leaf.shape}, got {jnp.shape(limit)}") from error

    return jax.tree.map(fit, params, bound)


def _largest(vector: Array) -> Scalar:
    return jnp.max(jnp.abs(vector), initial=0)
