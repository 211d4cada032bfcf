r"""Descent that chooses its own rate: a direction, then a search along it. Both are Optax's.

    p' = p + t d,    t such that f(p + t d) <= f(p) + c t <g, d>

- `steepest_descent` goes along the negative gradient; `lbfgs` along an estimate of Newton's direction made from the
  last differences of gradients. Prefer `lbfgs` wherever the objective is smooth and the same at every step.
- The "zoom" search also asks that the slope has become flatter (strong Wolfe), which is what keeps the curvature that
  `lbfgs` learns positive; "backtracking" only asks for enough decrease and takes fewer gradients.

A search that finds nothing says why: what is left to gain lies below the rounding of the value, or the direction does
not descend as its slope promises.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from calcdl.optim.hyperparameters import choose
from calcdl.optim.solver import Info, Solver
from calcdl.optim.trials import outcome
from calcdl.trees import cast_like, dot, norm, widen
from calcdl.types import Array, Objective, Params, Scalar

MOST_TRIALS = 40


def steepest_descent(*, line_search: str = "zoom") -> Solver:
    r"""Make gradient descent whose rate is searched for at every step.

    $$ p_{k+1} = p_k - t_k \nabla f(p_k) $$

    Args:
        line_search: a key of `LINE_SEARCHES`.

    Returns:
        A solver without hyperparameters.

    Raises:
        ValueError: an unknown line search.

    Example:
        >>> solver = steepest_descent()
        >>> params = jnp.float32(3.0)
        >>> float(solver.step(lambda x: x**2, params, solver.init(params))[0])
        0.0

    Reference:
        Nocedal and Wright, Numerical Optimization (2006), chapter 3.
    """
    return _searched(optax.scale(-1.0), line_search)


def lbfgs(*, memory_size: int = 10, line_search: str = "zoom") -> Solver:
    r"""Make L-BFGS: Newton's direction from the last changes of the gradient, without a matrix.

    $$ p_{k+1} = p_k - t_k H_k \nabla f(p_k), \quad H_k (g_k - g_{k-1}) = p_k - p_{k-1} $$

    Args:
        memory_size: how many changes are kept, each of the size of the parameters, twice.
        line_search: a key of `LINE_SEARCHES`.

    Returns:
        A solver; its objective must be the same at every step.

    Raises:
        ValueError: a memory below 1, an unknown line search.

    Example:
        >>> from calcdl.optim.solver import minimise
        >>> valley = lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
        >>> found = minimise(valley, jnp.array([-1.2, 1.0]), lbfgs(), steps=100)
        >>> [round(float(entry), 3) for entry in found.params]
        [1.0, 1.0]

    Reference:
        Liu and Nocedal, On the limited memory BFGS method for large scale optimization, Math. Programming 45 (1989).
    """
    if isinstance(memory_size, bool) or not isinstance(memory_size, int) or memory_size < 1:
        raise ValueError(f"memory_size: expected a positive integer, got {memory_size!r}")
    rule = optax.chain(optax.scale_by_lbfgs(memory_size=memory_size), optax.scale(-1.0))
    return _searched(rule, line_search)


def _searched(rule: optax.GradientTransformation, line_search: str) -> Solver:
    search: optax.GradientTransformationExtraArgs = choose("line_search", line_search, LINE_SEARCHES)()

    def init(params: Params) -> Any:
        return rule.init(widen(params)), search.init(widen(params))

    def step(objective: Objective, params: Params, state: Any) -> tuple[Params, Any, Info]:
        wide = widen(params)

        def value_of(at: Params) -> Scalar:
            value: Scalar = widen(objective(cast_like(at, params)))
            return value

        value, gradient = jax.value_and_grad(value_of)(wide)
        direction, rule_state = rule.update(gradient, state[0], wide)
        update, search_state = search.update(direction, state[1], wide, value=value, grad=gradient, value_fn=value_of)
        # A direction that does not descend, or is not finite, is no reason to lose the point.
        update = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), update)
        moved = cast_like(jax.tree.map(jnp.add, wide, update), params)
        change = jax.tree.map(jnp.subtract, moved, params)
        status = _status(value, gradient, direction, change, search_state, wide)
        seen = value.astype(jax.eval_shape(objective, params).dtype)
        info = Info(seen, cast_like(gradient, params), change, status)
        return moved, (rule_state, search_state), info

    return Solver(init, step)


def _status(value: Scalar, gradient: Params, direction: Params, change: Params, search_state: Any, x: Params) -> Array:
    new_value, new_gradient = (optax.tree.get(search_state, name) for name in ("value", "grad"))
    # Near a minimum the gradient is known to more digits than the value, so a smaller one is a gain too.
    falls = False if new_gradient is None else norm(new_gradient) < norm(gradient)
    changed = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(change)]))
    # A value is a sum whose terms were rounded, which costs more digits than its last.
    noise = jnp.finfo(value.dtype).eps ** 0.75 * jnp.abs(value)
    goes_on = changed & ((new_value < value) | falls)
    return outcome(goes_on, dot(direction, gradient), value, noise, moves=direction, x=x)


def _zoom() -> optax.GradientTransformationExtraArgs:
    return optax.scale_by_zoom_linesearch(max_linesearch_steps=MOST_TRIALS, initial_guess_strategy="one")


def _backtracking() -> optax.GradientTransformationExtraArgs:
    return optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=MOST_TRIALS, decrease_factor=0.5, increase_factor=4.0, max_learning_rate=1e10
    )


LINE_SEARCHES = {"zoom": _zoom, "backtracking": _backtracking}
