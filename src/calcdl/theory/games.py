r"""Games: players who each descend on a loss of their own, and why they turn where one player would arrive.

Player i holds x_i and lowers L_i(x), which the others change too. All together move along the field

    v(x) = (-∂L_1/∂x_1, ..., -∂L_n/∂x_n),

which is the slope of no function: its Jacobian at an equilibrium v = 0 need not be symmetric, and its eigenvalues λ may
be complex. The imaginary part turns. A step of descent, `1 + h λ`, is longer than 1 wherever the real part is 0: where
a flow would circle, descent leaves. What any method makes of a game is told by the spectral radius of its own step's
derivative at the equilibrium, state included: `step_matrix`. What a path shows of it is a fit: `fitted_step`.

`dirac_gan` has the smallest such game in closed form.

Reference: Mescheder, Nowozin and Geiger 2017, The numerics of GANs, arXiv:1705.10461, section 3.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from calcdl.trees import join_floating, split_floating
from calcdl.types import Array, Objective, Params, Scalar

Losses = Mapping[str, Callable[[Params], Scalar]]


def field(losses: Losses) -> Callable[[Params], Params]:
    r"""Return the field along which players move who each descend on their own loss.

    $$ v_i(x) = -\partial L_i / \partial x_i $$

    Args:
        losses: by player, `params -> loss`, of the parameters of all of them; it must not hold anything constant, or
            derivatives of the field lack it.

    Returns:
        `params -> v`, of the structure of the parameters, a dict by player.

    Example:
        >>> v = field({"x": lambda p: p["x"] * p["y"], "y": lambda p: -p["x"] * p["y"]})
        >>> {name: float(value) for name, value in v({"x": 1.0, "y": 2.0}).items()}
        {'x': -2.0, 'y': 1.0}
    """

    def move(params: Params) -> Params:
        if sorted(params) != sorted(losses):
            raise ValueError(f"losses: expected one for each of the players {sorted(params)}, got {sorted(losses)}")
        slopes = {name: jax.grad(_alone(loss, name, params))(params[name]) for name, loss in losses.items()}
        return {name: jax.tree.map(jnp.negative, slopes[name]) for name in params}

    return move


def as_objective(losses: Losses) -> Objective:
    r"""Make one objective of a game: a solver that descends on it plays the game.

    $$ f = \sum_i L_i, \quad \text{with } \nabla f \text{ replaced by } -v $$

    Higher derivatives are those of v, so that a solver's step may be differentiated, as `step_matrix` does; where each
    player sees the others as constants, as in `calcdl.nn.adversarial.game`, it may not.

    Args:
        losses: by player, as for `field`.

    Returns:
        `params -> scalar`.

    Example:
        >>> f = as_objective({"x": lambda p: p["x"] * p["y"], "y": lambda p: -p["x"] * p["y"]})
        >>> {name: float(slope) for name, slope in jax.grad(f)({"x": 1.0, "y": 2.0}).items()}
        {'x': 2.0, 'y': -1.0}
    """

    @jax.custom_jvp
    def objective(params: Params) -> Scalar:
        return reduce(jnp.add, [loss(params) for loss in losses.values()])

    @objective.defjvp
    def _(primals: tuple[Params], tangents: tuple[Params]) -> tuple[Scalar, Scalar]:
        (params,), (tangent,) = primals, tangents
        value = objective(params)
        parts = jax.tree.map(lambda v, t: jnp.sum(v * t), field(losses)(params), tangent)
        return value, -reduce(jnp.add, jax.tree.leaves(parts)).astype(value.dtype)

    return objective


def step_matrix(step: Callable[..., tuple[Any, ...]], *point: Any) -> Float[Array, "entries entries"]:
    r"""Linearise any step about a point that it leaves where it is.

    $$ z_{k+1} - z = M (z_k - z), \quad M = \partial\, \mathrm{step} / \partial z $$

    Args:
        step: `*point -> point`, such as `params, state -> params, state` of a solver.
        *point: the point, pytrees; only what is floating in them takes part. A state must have settled: take it from
            after a step.

    Returns:
        M, by the order of the leaves. `stability.spectral_radius` of it is the factor on small distances, a step.

    Example:
        >>> step_matrix(lambda x, m: (x - 0.5 * (m + x), m + x), 0.0, 0.0).tolist()
        [[0.5, -0.5], [1.0, 1.0]]
    """
    moving, kept = split_floating(point)
    entries, unravel = ravel_pytree(moving)

    def move(entries: Array) -> Array:
        return ravel_pytree(split_floating(tuple(step(*join_floating(unravel(entries), kept))))[0])[0]

    matrix: Array = jax.jacfwd(move)(entries)
    return matrix


def last_between(path: Float[Array, "times players"], least: float, most: float, count: int) -> Array:
    r"""Return the last places in a row of a path before it leaves a range of distances from 0, scaled.

    $$ (x_m, ..., x_{m+n}) / \lVert x_m \rVert $$

    Close to an equilibrium at 0 that is where the slowest direction alone is left, or the pair that turns.

    Args:
        path: places, the start within the range.
        least: below this distance digits are lost.
        most: above this one a step is no longer linear.
        count: how many places.

    Returns:
        The places; where the path is in the range for fewer steps, some are of after it.

    Example:
        >>> last_between(jnp.array([[8.0, 0.0], [4.0, 0.0], [2.0, 0.0], [1.0, 0.0]]), 1.5, 9.0, 2).tolist()
        [[1.0, 0.0], [0.5, 0.0]]
    """
    size = jnp.linalg.norm(path, axis=1)
    inside = jnp.sum(jnp.cumprod((size > least) & (size < most)))
    some = jax.lax.dynamic_slice(path, (jnp.maximum(inside - count, 0), 0), (count, path.shape[1]))
    unit = jnp.linalg.norm(some[0])
    return some / jnp.where(unit > 0, unit, 1)


def fitted_step(places: Float[Array, "*runs times players"]) -> Float[Array, "*runs players players"]:
    r"""Fit the linear map by which places in a row follow one another.

    $$ M = \arg\min \sum_k \lVert x_{k+1} - M x_k \rVert^2 / \lVert x_k \rVert^2 $$

    Args:
        places: of one run or of many.

    Returns:
        M, with the factor 0 along what the places do not reach.

    Example:
        >>> places = jnp.array([[1.0, 0.0], [0.0, 2.0], [-4.0, 0.0]])
        >>> [[round(float(x), 4) for x in row] for row in fitted_step(places)]
        [[0.0, -2.0], [2.0, 0.0]]
    """
    length = jnp.linalg.norm(places, axis=-1, keepdims=True)[..., :-1, :]
    scale = jnp.where(length > 0, length, 1)
    digits = 1e4 * float(jnp.finfo(places.dtype).eps) ** 0.8
    inverse = jnp.linalg.pinv(places[..., :-1, :] / scale, rtol=digits)
    return jnp.swapaxes(jnp.matmul(inverse, places[..., 1:, :] / scale, precision="highest"), -1, -2)


def leading(matrices: np.ndarray) -> np.ndarray:
    r"""Return the eigenvalue of largest modulus of each matrix, of a pair the one above the real axis.

    $$ \lambda_1 = |\lambda_1| e^{i \varphi}, \quad 0 \le \varphi \le \pi $$

    Args:
        matrices: of a step, square, in the memory of the host; what is not finite counts as 0.

    Returns:
        Its modulus is the factor on distances a step, and 2π over its angle the period in steps.

    Example:
        >>> f"{complex(leading(np.array([[0.0, -2.0], [2.0, 0.0]]))):.2f}"
        '0.00+2.00j'
    """
    values = np.linalg.eigvals(np.nan_to_num(matrices))
    most = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    upper: np.ndarray = most.real + 1j * np.abs(most.imag)
    return upper


def _alone(loss: Callable[[Params], Scalar], name: str, params: Params) -> Callable[[Any], Scalar]:
    return lambda own: loss({**params, name: own})
