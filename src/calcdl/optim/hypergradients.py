r"""Hypergradients: the derivative of a validation loss by what steers training.

Training is a function p(h) of the hyperparameters h: learning rates, penalties, anything differentiable. The total
derivative of a validation loss v(p, h) is

    dv/dh = ∂v/∂h + (dp/dh)' ∂v/∂p

and there are three ways to dp/dh:

- "unrolled": back through the steps. One sweep for any number of hyperparameters; the iterates that the way back needs
  are kept only at every √K-th of K steps and made again in between, so memory grows with √K.
- "forward": dp/dh is carried along with the steps. Memory does not grow with the steps; work grows with the number of
  hyperparameters. Prefer it for a handful.
- "implicit": at a minimum, ∇f(p, h) = 0 and so dp/dh = -H^-1 ∂(∇f)/∂h: one linear solve, and no step is
  remembered. It knows nothing of the path, so a learning rate has the derivative 0, and it is only as right as the
  minimum is reached; the gradient's norm there is handed back.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int

from calcdl.calculus.derivatives import hessian_vector_product
from calcdl.optim.hyperparameters import choose
from calcdl.optim.solver import CONVERGED, RUNNING, STEP_LIMIT, Solver, default_tolerance, minimise
from calcdl.trees import norm
from calcdl.types import Array, Params, Scalar

Loss = Callable[[Params, Any], Scalar]


class Hypergradient(NamedTuple):
    """A validation loss, and how it changes with the hyperparameters.

    Attributes:
        value: the validation loss at the parameters that training ends with.
        gradient: its total derivative, of the structure of the hyperparameters.
        params: those parameters.
        gradient_norm: the norm of the training loss's gradient there: how far they are from a minimum.
        status: index in `calcdl.optim.solver.STATUSES` of how training ended.
    """

    value: Scalar
    gradient: Any
    params: Params
    gradient_norm: Scalar
    status: Int[Array, ""]


def hypergradient(
    validation: Loss,
    training: Loss,
    params: Params,
    hyperparameters: Any,
    *,
    solver: Callable[[Any], Solver],
    steps: int,
    method: str = "unrolled",
    tolerance: float | None = None,
) -> Hypergradient:
    r"""Differentiate a validation loss by the hyperparameters of the training that comes before it.

    $$ \frac{d}{dh} v(p_K(h), h), \quad p_{k+1} = \mathrm{step}_h(p_k) $$

    Args:
        validation: v, `(params, hyperparameters) -> scalar`.
        training: f, `(params, hyperparameters) -> scalar`, what the solver minimises.
        params: where training starts.
        hyperparameters: h, a pytree of floating-point arrays.
        solver: `hyperparameters -> Solver`; its steps must be differentiable for "unrolled" and "forward", which
            rules out searches that loop (line searches, damping).
        steps: K, how many steps; for "implicit" at most.
        method: a key of `METHODS`.
        tolerance: the norm of the gradient that is small enough, at which "implicit" ends; by default that of
            `minimise`.

    Returns:
        Value and derivative.

    Raises:
        ValueError: an unknown method, or no positive number of steps.

    Example:
        >>> from calcdl.optim.descent import descent
        >>> def after(rate, method):  # x^2/2 from 1: x_3 = (1 - rate)^3, so the derivative of x_3 is -3 (1 - rate)^2
        ...     return hypergradient(lambda x, _: x, lambda x, _: x**2 / 2, jnp.float32(1), jnp.float32(rate),
        ...                          solver=lambda h: descent("sgd", h), steps=3, method=method).gradient
        >>> float(after(0.5, "unrolled")), float(after(0.5, "forward"))
        (-0.75, -0.75)

    Reference:
        Franceschi et al., Forward and reverse gradient-based hyperparameter optimization, arXiv:1703.01785;
        Griewank, Achieving logarithmic growth of temporal and spatial complexity in reverse automatic
        differentiation, Optimization Methods and Software 1 (1992); Bengio, Gradient-based optimization of
        hyperparameters, Neural Computation 12 (2000).
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected a positive integer, got {steps!r}")
    differentiate = choose("method", method, METHODS)
    if method == "implicit":
        path = trained(training, params, solver, steps=steps, tolerance=tolerance)
    else:
        path = unrolled(training, params, solver, steps=steps, remember=method == "forward")

    def outer(h: Any) -> tuple[Scalar, Any]:
        end, status = path(h)
        return validation(end, h), (end, status)

    value, gradient, (end, status) = differentiate(outer, hyperparameters)
    slope = norm(jax.grad(training)(end, hyperparameters))
    small = slope <= (default_tolerance(slope.dtype) if tolerance is None else tolerance)
    ended = jnp.where(small, jnp.int32(CONVERGED), jnp.int32(STEP_LIMIT))
    status = jnp.where(status == RUNNING, ended, status)
    return Hypergradient(value, gradient, end, slope, status)


def unrolled(
    training: Loss, params: Params, solver: Callable[[Any], Solver], *, steps: int, remember: bool = False
) -> Callable[[Any], tuple[Params, Int[Array, ""]]]:
    r"""Make the parameters after K steps a function of the hyperparameters that can be differentiated either way.

    $$ h \mapsto p_K(h) $$

    Args:
        training: `(params, hyperparameters) -> scalar`.
        params: where training starts.
        solver: `hyperparameters -> Solver`.
        steps: K, how many.
        remember: keep every iterate for the way back, instead of every √K-th: a third less work, √K/2 times the memory.

    Returns:
        `hyperparameters -> (params, status)`, the status that of the solver in its last step.

    Example:
        >>> from calcdl.optim.descent import descent
        >>> path = unrolled(lambda x, h: h * x**2 / 2, jnp.float32(1), lambda h: descent("sgd", 0.5), steps=4)
        >>> float(path(jnp.float32(1.0))[0]), float(jax.grad(lambda h: path(h)[0])(jnp.float32(1.0)))
        (0.0625, -0.25)
    """
    block = steps if remember else math.isqrt(steps)
    blocks, rest = divmod(steps, block)

    def path(h: Any) -> tuple[Params, Int[Array, ""]]:
        def advance(carry: Any, _: None) -> tuple[Any, None]:
            at, state, _ = carry
            at, state, info = solver(h).step(lambda p: training(p, h), at, state)
            return (at, state, info.status), None

        def stretch(carry: Any, length: int) -> Any:
            return jax.lax.scan(advance, carry, length=length)[0]

        kept = stretch if remember else jax.checkpoint(stretch, static_argnums=1)
        start = jax.tree.map(jnp.asarray, params)
        carry = (start, solver(h).init(start), jnp.int32(0))
        carry = jax.lax.scan(lambda carry, _: (kept(carry, block), None), carry, length=blocks)[0]
        end, _, status = kept(carry, rest) if rest else carry
        return end, status

    return path


def trained(
    training: Loss,
    params: Params,
    solver: Callable[[Any], Solver],
    *,
    steps: int,
    tolerance: float | None = None,
) -> Callable[[Any], tuple[Params, Int[Array, ""]]]:
    r"""Make the minimum of a training loss a function of the hyperparameters, differentiated implicitly.

    $$ \frac{dp}{dh} = -H^{-1} \frac{\partial}{\partial h} \nabla_p f(p, h), \quad \nabla_p f(p, h) = 0 $$

    H is the Hessian by the parameters, positive definite; its products are taken by differentiating the gradient, and
    the system is solved by conjugate gradients, so no matrix is made.

    Args:
        training: f, `(params, hyperparameters) -> scalar`.
        params: where to start.
        solver: `hyperparameters -> Solver`.
        steps: how many steps at most.
        tolerance: as that of `minimise`.

    Returns:
        `hyperparameters -> (params, status)`; differentiable in both directions.

    Example:
        >>> from calcdl.optim.line_search import lbfgs
        >>> best = trained(lambda x, h: (x - 3) ** 2 + h * x**2, jnp.float32(0), lambda h: lbfgs(), steps=20)
        >>> print(f"{jax.grad(lambda h: best(h)[0])(jnp.float32(0.5)):.4f}")  # x = 3 / (1 + h)
        -1.3333
    """

    def best(h: Any) -> tuple[Params, Int[Array, ""]]:
        fixed = jax.lax.stop_gradient(h)
        start = jax.tree.map(jnp.asarray, params)
        found = minimise(lambda p: training(p, fixed), start, solver(fixed), steps=steps, tolerance=tolerance)
        end = jax.lax.stop_gradient(found.params)
        # What is added is 0, and its derivative by h is that of the minimum.
        slope = jax.grad(training)(end, h)
        shift = jax.tree.map(lambda one: one - jax.lax.stop_gradient(one), slope)
        product = hessian_vector_product(lambda p: training(p, fixed), end)
        eps = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(end))).eps)
        most = 20 * sum(leaf.size for leaf in jax.tree.leaves(end))
        change = jax.scipy.sparse.linalg.cg(product, shift, tol=4 * eps, maxiter=most)[0]
        return jax.tree.map(jnp.subtract, end, change), found.status

    return best


def _backwards(outer: Callable[[Any], tuple[Scalar, Any]], h: Any) -> tuple[Scalar, Any, Any]:
    (value, rest), gradient = jax.value_and_grad(outer, has_aux=True)(h)
    return value, gradient, rest


def _forwards(outer: Callable[[Any], tuple[Scalar, Any]], h: Any) -> tuple[Scalar, Any, Any]:
    def twice(h: Any) -> tuple[Scalar, tuple[Scalar, Any]]:
        value, rest = outer(h)
        return value, (value, rest)

    gradient, (value, rest) = jax.jacfwd(twice, has_aux=True)(h)
    return value, gradient, rest


METHODS = {"unrolled": _backwards, "forward": _forwards, "implicit": _backwards}
