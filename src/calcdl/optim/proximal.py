r"""Penalties with a corner: descent on the smooth part, then the proximal map of the penalty.

    p' = prox(p - rate * grad f(p)),    prox(p) = argmin over q of rate * r(q) + ||q - p||^2 / 2

The subgradient of a corner never becomes small; the proximal map lands on it exactly, which is how a lasso gets its
zeros. A run ends where the gradient mapping (p - p') / rate is 0, which takes the place of the gradient. A projection
is the proximal map of the penalty that is 0 in a set and infinite outside.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from calcdl.optim.hyperparameters import Number, check_value
from calcdl.optim.projections import descended, projection
from calcdl.optim.solver import RUNNING, Info, Solver
from calcdl.trees import cast_like, dot, widen, widest
from calcdl.types import Array, Objective, Params, Scalar


class Proximal(NamedTuple):
    """A penalty with its proximal map, so that whoever steps by the one reports the other.

    Attributes:
        penalty: `params -> scalar`, r.
        map: `(rate, params) -> params`, the minimiser over q of rate * r(q) + ||q - params||^2 / 2.
    """

    penalty: Callable[[Params], Scalar]
    map: Callable[[Scalar, Params], Params]


class ProximalState(NamedTuple):
    """What an accelerated step remembers.

    Attributes:
        before: the parameters of the step before, in float32 or wider.
        momentum: t of FISTA, 1 where it starts afresh.
    """

    before: Params
    momentum: Scalar


def proximal_descent(learning_rate: Number, proximal: Proximal, *, accelerated: bool = False) -> Solver:
    r"""Make descent on the sum of a smooth objective and a penalty that has a corner: ISTA, or FISTA.

    $$ p_{k+1} = \mathrm{prox}_{\eta r}(y_k - \eta \nabla f(y_k)), \quad
       y_k = p_k + \frac{t_{k-1} - 1}{t_k} (p_k - p_{k-1}), \quad t_k = \frac{1 + \sqrt{1 + 4 t_{k-1}^2}}{2} $$

    ISTA has y = p. For rates up to 1 / L, with L the largest curvature of f, the error falls as 1 / k, or 1 / k^2
    accelerated; the momentum starts afresh whenever it points uphill, so that a strongly convex sum converges linearly.
    The objective that a step is given is f; `Info.value` is f + r, and `Info.gradient` the gradient mapping, both at
    the parameters before the step, for which the accelerated one takes a second gradient.

    Args:
        learning_rate: eta, above 0.
        proximal: the penalty r with its map, such as `proximal_l1(0.1)`.
        accelerated: whether to extrapolate.

    Returns:
        A solver.

    Raises:
        ValueError: a rate that is not above 0.
        TypeError: a rate that is no number.

    Example:
        >>> solver = proximal_descent(0.5, proximal_l1(1.0))
        >>> params, _, info = solver.step(lambda p: (p - 2) ** 2, jnp.float32(0.0), solver.init(jnp.float32(0.0)))
        >>> float(params), float(info.value)
        (1.5, 4.0)

    Reference:
        Beck and Teboulle (2009), A fast iterative shrinkage-thresholding algorithm, SIAM J. Imaging Sciences 2;
        O'Donoghue and Candes (2015), Adaptive restart for accelerated gradient schemes.
    """
    check_value("learning_rate", learning_rate, "(0, inf)")

    def init(params: Params) -> Any:
        return ProximalState(widen(params), jnp.ones((), widest(params))) if accelerated else ()

    def step(objective: Objective, params: Params, state: Any) -> tuple[Params, Any, Info]:
        rate, wide = jnp.asarray(learning_rate, widest(params)), widen(params)

        def shrunk(at: Params, gradient: Params) -> Params:
            return proximal.map(rate, descended(at, gradient, rate))

        value, gradient = jax.value_and_grad(objective)(params)
        new = plain = shrunk(wide, gradient)
        if accelerated:
            momentum = (1 + jnp.sqrt(1 + 4 * state.momentum**2)) / 2
            ahead = _plus((state.momentum - 1) / momentum, _minus(wide, state.before), wide)
            new = shrunk(ahead, jax.grad(objective)(cast_like(ahead, params)))
            uphill = dot(_minus(ahead, new), _minus(new, wide)) > 0
            state = ProximalState(wide, jnp.where(uphill, 1, momentum).astype(rate.dtype))
        whole = value + proximal.penalty(params).astype(value.dtype)
        mapped = cast_like(jax.tree.map(lambda d: d / rate.astype(d.dtype), _minus(wide, plain)), params)
        moved = cast_like(new, params)
        return moved, state, Info(whole, mapped, _minus(moved, params), jnp.int32(RUNNING))

    return Solver(init, step)


def soft_threshold(x: Array, threshold: Number) -> Array:
    r"""Shrink towards 0 by a threshold, and to exactly 0 what is smaller: the proximal map of the absolute value.

    $$ S_t(x) = \mathrm{sign}(x) \max(|x| - t, 0) $$

    Args:
        x: floating-point array.
        threshold: t, at least 0, in the unit of x.

    Returns:
        The shrunk array, of the dtype of x.

    Example:
        >>> soft_threshold(jnp.array([3.0, -0.5, -2.0]), 1.0).tolist()
        [2.0, 0.0, -1.0]

    Reference:
        Donoho (1995), De-noising by soft-thresholding, IEEE Trans. Information Theory 41.
    """
    return x - jnp.clip(x, -jnp.asarray(threshold, x.dtype), jnp.asarray(threshold, x.dtype))


def proximal_l1(strength: Number) -> Proximal:
    r"""Pair the sum of absolute values with its map, the soft threshold: what makes coefficients exactly 0.

    $$ r(p) = s \lVert p \rVert_1, \quad \mathrm{prox} = S_{\eta s}(p) $$

    Args:
        strength: s, at least 0.

    Returns:
        The penalty and its map.

    Raises:
        ValueError: a negative strength.

    Example:
        >>> float(proximal_l1(0.5).penalty(jnp.array([3.0, -4.0])))
        3.5

    Reference:
        Tibshirani (1996), Regression shrinkage and selection via the lasso.
    """
    check_value("strength", strength, "[0, inf)")
    return proximal_elastic_net(strength, 0.0)


def proximal_squared_l2(strength: Number) -> Proximal:
    r"""Pair the sum of squares with its map, which shrinks everything in proportion.

    $$ r(p) = s \lVert p \rVert_2^2, \quad \mathrm{prox} = p / (1 + 2 \eta s) $$

    Args:
        strength: s, at least 0.

    Returns:
        The penalty and its map.

    Raises:
        ValueError: a negative strength.

    Example:
        >>> float(proximal_squared_l2(0.5).map(jnp.float32(1.0), jnp.float32(3.0)))
        1.5
    """
    return proximal_elastic_net(0.0, strength)


def proximal_elastic_net(l1: Number, l2: Number) -> Proximal:
    r"""Pair the sum of absolute values and of squares with its map: the soft threshold, then a shrinkage.

    $$ r(p) = s_1 \lVert p \rVert_1 + s_2 \lVert p \rVert_2^2, \quad
       \mathrm{prox} = \frac{S_{\eta s_1}(p)}{1 + 2 \eta s_2} $$

    Args:
        l1: s_1, at least 0.
        l2: s_2, at least 0.

    Returns:
        The penalty and its map.

    Raises:
        ValueError: a negative strength.

    Example:
        >>> float(proximal_elastic_net(1.0, 0.5).map(jnp.float32(1.0), jnp.float32(3.0)))
        1.0

    Reference:
        Zou and Hastie (2005), Regularization and variable selection via the elastic net.
    """
    check_value("l1", l1, "[0, inf)")
    check_value("l2", l2, "[0, inf)")

    def penalty(params: Params) -> Scalar:
        wide = widen(params)
        dtype = widest(params)
        return jnp.asarray(l1, dtype) * dot(wide, jax.tree.map(jnp.sign, wide)) + jnp.asarray(l2, dtype) * dot(
            wide, wide
        )

    def shrink(rate: Scalar, params: Params) -> Params:
        def leaf(p: Array) -> Array:
            step, one, two = (jnp.asarray(number, p.dtype) for number in (rate, l1, l2))
            return soft_threshold(p, step * one) / (1 + 2 * step * two)

        return jax.tree.map(leaf, params)

    return Proximal(penalty, shrink)


def proximal_box(lower: Any, upper: Any) -> Proximal:
    r"""Pair the bounds lower <= p <= upper with their map, the projection.

    $$ \mathrm{prox} = \min(\max(p, l), u) $$

    The penalty is counted as 0 everywhere: no parameters but those of the start can be outside.

    Args:
        lower: a number for all or a tree like the parameters; -inf for no bound.
        upper: likewise, inf for no bound.

    Returns:
        The penalty and its map.

    Raises:
        ValueError: a lower bound above the upper one.

    Example:
        >>> proximal_box(0.0, 1.0).map(jnp.float32(0.5), jnp.array([-1.0, 0.25, 3.0])).tolist()
        [0.0, 0.25, 1.0]
    """
    return proximal_projection(projection("box", lower=lower, upper=upper))


def proximal_projection(project: Callable[[Params], Params]) -> Proximal:
    r"""Pair the penalty that is 0 in a set and infinite outside with its map, the projection onto the set.

    $$ \mathrm{prox} = P(p) $$

    The penalty is counted as 0 everywhere: no parameters but those of the start can be outside.

    Args:
        project: the map to the nearest point of a convex set, such as `projection` makes.

    Returns:
        The penalty and its map.

    Example:
        >>> proximal_projection(projection("simplex")).map(jnp.float32(0.5), jnp.array([1.0, 0.75, -3.0])).tolist()
        [0.625, 0.375, 0.0]
    """
    return Proximal(lambda params: jnp.zeros((), widest(params)), lambda rate, params: project(params))


def _plus(factor: Scalar, direction: Params, at: Params) -> Params:
    return jax.tree.map(lambda p, d: p + factor.astype(p.dtype) * d, at, direction)


def _minus(one: Params, other: Params) -> Params:
    return jax.tree.map(jnp.subtract, one, other)


PROXIMALS: dict[str, Callable[..., Proximal]] = {
    "l1": proximal_l1,
    "squared_l2": proximal_squared_l2,
    "elastic_net": proximal_elastic_net,
    "box": proximal_box,
}
