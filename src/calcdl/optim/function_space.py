r"""Descent in function space: the parameters are predictions, and a weak learner says which directions there are.

    r_i = -∂l/∂F_i,   F ← F + ν ρ h,   h ≈ r in the learner's class,   ρ = argmin_ρ Σ l(F_i + ρ h_i, y_i)

With regression trees for h this is gradient boosting. The length ρ is one for the stage, or one for each group of rows
(each leaf of a tree, whose own value then no longer matters, but for its sign). Two searches for it:

| search | length | for |
|---|---|---|
| newton | -f'(0) / f''(0) along h; 1 without curvature | smooth losses |
| minimum | where f' changes its sign, by bisection; Newton's where it never does | any loss, kinks included |

A shrunken step that would raise the loss is halved until it does not. Learners run on the host, one lane after another;
gradients and searches are compiled, for all lanes together.

Reference: Friedman, Greedy function approximation: a gradient boosting machine, Annals of Statistics 29 (2001) 1189.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from calcdl.calculus.derivatives import derivative, gradient
from calcdl.optim.hyperparameters import choose
from calcdl.optim.roots import find_root
from calcdl.types import Array, Scalar

Loss = Callable[[Array, Array], Array]
Learner = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
_State = tuple[np.ndarray, np.ndarray, np.ndarray]
_DOUBLINGS, _HALVINGS, _BISECTIONS, _CONSTANTS = 10, 8, 52, 50


class Path(NamedTuple):
    """Where descent has been, stage by stage.

    Attributes:
        prediction: F.
        residual: minus the gradient there: what the next learner is fitted to.
        loss: of every row.
        direction: h of every stage.
    """

    prediction: Float[np.ndarray, "stages+1 lanes rows"]
    residual: Float[np.ndarray, "stages+1 lanes rows"]
    loss: Float[np.ndarray, "stages+1 lanes rows"]
    direction: Float[np.ndarray, "stages lanes rows"]


def boost(
    loss: Loss,
    learner: Learner,
    target: Float[np.ndarray, "lanes rows"],
    bags: Iterable[Float[np.ndarray, "lanes rows"] | Bool[np.ndarray, "lanes rows"]],
    *,
    rates: Sequence[float],
    groups: int = 1,
    search: str = "newton",
) -> Path:
    r"""Descend in function space from the best constant.

    $$ F_{m+1} = F_m + \nu \rho h_m, \quad h_m \approx -\partial L / \partial F_m $$

    Args:
        loss: element-wise loss of prediction and target, differentiable almost everywhere.
        learner: `(lane, residual, bag) -> (direction, group)`, all of them over rows; it looks at rows in the bag only,
            and gives a direction, and the number of a group below `groups`, to the others too.
        target: targets of every lane.
        bags: how much each row counts, 0 for those out of the bag: first at the start, then for every stage.
        rates: the shrinkage ν of every lane, in (0, 1].
        groups: how many lengths a stage has.
        search: a key of `SEARCHES`.

    Returns:
        The path, the start first.

    Raises:
        ValueError: an unknown search, or a loss that is not finite at the best constant.

    Example:
        >>> def one_step(lane, residual, bag):
        ...     return np.where(np.arange(4) < 2, residual[:2].mean(), residual[2:].mean()), np.zeros(4, np.int32)
        >>> y = np.array([[0.0, 1.0, 4.0, 5.0]], np.float32)
        >>> path = boost(lambda f, y: (f - y) ** 2, one_step, y, [np.ones((1, 4), bool)] * 2, rates=[1.0])
        >>> path.prediction[-1].tolist()
        [[0.5, 0.5, 4.5, 4.5]]
    """
    choose("search", search, SEARCHES)
    whole, *stages = bags
    shrinkage = np.asarray(rates, target.dtype)

    def go(state: _State, bag: np.ndarray, direction: np.ndarray, group: np.ndarray, rates: np.ndarray) -> _State:
        prediction, residual, losses = _advance(loss, search, groups, state[0], target, bag, direction, group, rates)
        return np.asarray(prediction), np.asarray(residual), np.asarray(losses)

    found = [_best_constant(go, target, whole)]
    if not all(np.isfinite(part).all() for part in found[0]):
        raise ValueError("the loss is not finite, or has no finite gradient, at the best constant for these targets")
    directions = np.zeros((len(stages), *target.shape), target.dtype)
    for bag, direction in zip(stages, directions, strict=True):
        group = np.zeros(target.shape, np.int32)
        for lane, (residual, inside) in enumerate(zip(found[-1][1], bag, strict=True)):
            direction[lane], group[lane] = learner(lane, residual, inside)
        found.append(go(found[-1], bag, direction, group, shrinkage))
    prediction, residual, losses = (np.stack(parts) for parts in zip(*found, strict=True))
    return Path(prediction, residual, losses, directions)


def _best_constant(go: Callable[..., _State], target: np.ndarray, bag: np.ndarray) -> _State:
    """Search from the median, which is the best constant for absolute error, until it stands still."""
    middle = np.nanmedian(np.where(bag > 0, target, np.nan), axis=1, keepdims=True).astype(target.dtype)
    group, whole = np.zeros(target.shape, np.int32), np.ones(len(target), target.dtype)
    state = go((np.broadcast_to(middle, target.shape), target, target), bag, np.zeros_like(target), group, whole)
    for _ in range(_CONSTANTS):
        slope = np.where(bag > 0, bag * state[1], 0).sum(axis=1, keepdims=True)
        moved = go(state, bag, np.broadcast_to(np.sign(slope), target.shape), group, whole)
        near = 4 * np.finfo(target.dtype).eps * np.abs(moved[0])
        still, state = np.abs(moved[0] - state[0]) <= near, moved
        if still.all():
            break
    return state


def gradient_boosting(
    loss: Loss, features: Float[np.ndarray, "rows columns"], target: Float[np.ndarray, "*lanes rows"],
    known: Int[np.ndarray, " known"], *, stages: int, rates: Sequence[float], search: str = "newton", by: str = "leaf",
    depth: int = 3, leaf_rows: int = 1, share: float = 1.0, seeds: Sequence[int] = (),
    weight: Float[np.ndarray, " rows"] | None = None,
) -> Path:  # fmt: skip
    """Boost regression trees: `boost` with `regression_trees` on `subsamples`.

    Args:
        loss: element-wise loss of prediction and target.
        features: the columns that trees split.
        target: targets of all rows, one sequence for all lanes or one for each.
        known: numbers of the rows to learn from; the others are predicted too.
        stages: how many trees.
        rates: the shrinkage of every lane.
        search: a key of `SEARCHES`.
        by: what has a length of its own: each "leaf", or the whole "stage".
        depth: most splits between root and leaf.
        leaf_rows: fewest rows of a leaf.
        share: share of the known rows that a stage sees.
        seeds: the seed of every lane's subsamples, 0 for all by default.
        weight: how much each row counts, at least 0; all alike by default.

    Returns:
        The path, the best constant first.

    Raises:
        ValueError: an unknown search or `by`, or a loss that is not finite at the best constant.

    Example:
        >>> x, y = np.arange(8.0)[:, None], np.array([0.0, 0.0, 0.0, 0.0, 3.0, 3.0, 3.0, 3.0])
        >>> path = gradient_boosting(lambda f, y: (f - y) ** 2, x, y, np.arange(8), stages=2, rates=[0.5], depth=1)
        >>> [round(float(loss.mean()), 4) for loss in path.loss]
        [2.25, 0.5625, 0.1406]
    """
    learner = regression_trees(features, depth=depth, leaf_rows=leaf_rows, by=by)
    bags = subsamples(len(features), known, stages, seeds or [0] * len(rates), share)
    lanes = np.broadcast_to(target.astype(jnp.result_type(float)), (len(rates), len(features)))
    weighted = (bag * (np.ones(len(features)) if weight is None else weight).astype(lanes.dtype) for bag in bags)
    return boost(loss, learner, lanes, weighted, rates=rates, groups=2**depth, search=search)


def step_lengths(
    loss: Loss, search: str, groups: int, *, prediction: Float[Array, " rows"], target: Float[Array, " rows"],
    bag: Float[Array, " rows"] | Bool[Array, " rows"], direction: Float[Array, " rows"], group: Int[Array, " rows"],
    rate: Scalar | float = 1.0,
) -> Float[Array, " groups"]:  # fmt: skip
    r"""Search along a direction, for each group of rows by itself.

    $$ \rho_j = \arg\min_\rho \sum_{i \in j} w_i \, l(F_i + \rho h_i, y_i) $$

    Args:
        loss: element-wise loss of prediction and target.
        search: a key of `SEARCHES`.
        groups: how many groups.
        prediction: F.
        target: y.
        bag: how much each row counts.
        direction: h.
        group: the group of every row.
        rate: the share of the step that will be gone: it does not raise the loss of a group by more than rounding.

    Returns:
        A length for each group, 0 where no step lowers the loss.

    Example:
        >>> rows = {"prediction": jnp.zeros(3), "target": jnp.array([1.0, 3.0, 8.0]), "bag": jnp.ones(3, bool)}
        >>> rows |= {"direction": jnp.ones(3), "group": jnp.array([0, 0, 1])}
        >>> print(step_lengths(lambda f, y: (f - y) ** 2, "newton", 2, **rows))
        [2. 8.]
    """

    def one_group(number: Array) -> Array:
        inside = (bag > 0) & (group == number)

        def along(length: Scalar) -> Scalar:
            moved = jnp.where(inside, prediction + length * direction, prediction)
            return jnp.sum(jnp.where(inside, bag * loss(moved, target), 0))

        zero = jnp.zeros((), prediction.dtype)
        far = jnp.max(jnp.where(inside, jnp.abs(target - prediction), 0))
        size = jnp.max(jnp.where(inside, jnp.abs(direction), 0))
        length = SEARCHES[search](along, far / jnp.where(size > 0, size, 1))
        tried = length * jnp.asarray(0.5, zero.dtype) ** jnp.arange(_HALVINGS, dtype=zero.dtype)
        before = along(zero)
        rounding = 8 * jnp.finfo(zero.dtype).eps * jnp.abs(before)
        falls = jax.vmap(lambda length: along(rate * length))(tried) <= before + rounding
        return jnp.where(jnp.any(falls), tried[jnp.argmax(falls)], zero)

    return jax.vmap(one_group)(jnp.arange(groups, dtype=jnp.int32))


def regression_trees(
    features: Float[np.ndarray, "rows columns"], *, depth: int, leaf_rows: int = 1, by: str = "leaf"
) -> Learner:
    """Make a learner of regression trees, scikit-learn's, that are fitted to residuals by least squares.

    Args:
        features: the columns that trees split, in float32 as scikit-learn has them.
        depth: most splits between root and leaf.
        leaf_rows: fewest rows of a leaf.
        by: what has a length of its own: each "leaf", of which there are at most 2^depth, or the whole "stage".

    Returns:
        The learner.

    Raises:
        ValueError: an unknown `by`.

    Example:
        >>> grow = regression_trees(np.arange(4.0)[:, None], depth=1)
        >>> [part.tolist() for part in grow(0, np.array([0.0, 0.0, 2.0, 4.0]), np.ones(4, bool))]
        [[0.0, 0.0, 3.0, 3.0], [0, 0, 1, 1]]
    """
    choose("by", by, {"leaf": None, "stage": None})
    columns = np.ascontiguousarray(features, np.float32)

    def grow(lane: int, residual: np.ndarray, bag: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from sklearn import config_context
        from sklearn.tree import DecisionTreeRegressor

        inside = bag > 0
        with config_context(assume_finite=True, skip_parameter_validation=True):
            tree = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=leaf_rows, random_state=0)
            weight, fitted = bag[inside].astype(np.float64), residual[inside].astype(np.float64)
            tree.fit(columns[inside], fitted, sample_weight=weight, check_input=False)
        node = tree.tree_.apply(columns)
        leaf = np.searchsorted(np.flatnonzero(tree.tree_.children_left < 0), node).astype(np.int32)
        return tree.tree_.value[node, 0, 0], leaf if by == "leaf" else np.zeros_like(leaf)

    return grow


def subsamples(
    rows: int, known: Int[np.ndarray, " known"], stages: int, seeds: Sequence[int], share: float = 1.0
) -> Iterator[np.ndarray]:
    """Yield the bags of `boost`: all known rows first, then a share of them for every stage.

    Args:
        rows: how many rows there are.
        known: the rows to learn from.
        stages: how many stages.
        seeds: the seed of every lane; lanes of one seed have the same bags.
        share: share of the known rows in a bag, drawn without replacement; with 1 nothing is drawn.

    Yields:
        Bags, bool of shape (lanes, rows).

    Example:
        >>> [bag.sum() for bag in subsamples(10, np.arange(8), 2, [0], 0.5)]
        [np.int64(8), np.int64(4), np.int64(4)]
    """
    draws = {seed: np.random.default_rng(seed) for seed in seeds}
    count = max(1, round(share * len(known)))
    for stage in range(stages + 1):
        chosen = {
            seed: draw.choice(known, count, replace=False) if stage and share < 1 else known
            for seed, draw in draws.items()
        }
        bag = np.zeros((len(seeds), rows), bool)
        for lane, seed in enumerate(seeds):
            bag[lane, chosen[seed]] = True
        yield bag


def _newton(along: Callable[[Scalar], Scalar], reach: Scalar) -> Scalar:
    zero = jnp.zeros_like(reach)
    slope, curvature = derivative(along)(zero), derivative(along, 2)(zero)
    return jnp.where(curvature > 0, -slope / jnp.where(curvature > 0, curvature, 1), 1)


def _minimum(along: Callable[[Scalar], Scalar], reach: Scalar) -> Scalar:
    slope = derivative(along)
    ends = reach * jnp.asarray(2.0, reach.dtype) ** jnp.arange(_DOUBLINGS, dtype=reach.dtype)
    rises = jax.vmap(slope)(ends) > 0
    found = find_root(slope, (jnp.zeros_like(reach), ends[jnp.argmax(rises)]), "bisection", steps=_BISECTIONS)
    return jnp.where(jnp.any(rises), found.root, _newton(along, reach))


def _state(loss: Loss, prediction: Array, target: Array) -> tuple[Array, Array, Array]:
    residual = -gradient(lambda f: jnp.sum(loss(f, target)))(prediction)
    return prediction, residual, loss(prediction, target)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(loss: Loss, search: str, groups: int, *lanes: Array) -> tuple[Array, Array, Array]:
    def one(prediction: Array, target: Array, bag: Array, direction: Array, group: Array, rate: Array) -> Any:
        rows = {"prediction": prediction, "target": target, "bag": bag, "direction": direction, "group": group}
        length = step_lengths(loss, search, groups, **rows, rate=rate)
        return _state(loss, prediction + rate * length[group] * direction, target)

    ends: tuple[Array, Array, Array] = jax.vmap(one)(*lanes)
    return ends


SEARCHES = {"newton": _newton, "minimum": _minimum}
