r"""Singular values of a Jacobian: how a network, or a part of it, stretches and squeezes what passes through it.

    f(x + v) ≈ f(x) + J v,   J = U Σ Vᵀ

All singular values near 1 (dynamical isometry) let signals pass forwards and gradients backwards in every direction; a
few large ones and a mass near 0 let through a few directions only. `singular_values` builds the matrix; it is right up
to a thousand rows or columns. `lanczos_singular_values` needs products `J v` and `Jᵀ u` only, so that J is never
formed, and bounds its own error.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.calculus.derivatives import jacobian
from calcdl.trees import array_norm, widen
from calcdl.types import Array, Key

_State = tuple[Array, Array, Array, Array]


class SingularValues(NamedTuple):
    """Estimates of singular values, largest first.

    Attributes:
        values: the estimates.
        errors: for each the norm of its residual: a true singular value lies at most so far away.
    """

    values: Float[Array, " steps"]
    errors: Float[Array, " steps"]


def singular_values(f: Callable[[Array], Array], x: Float[Array, "..."]) -> Float[Array, " least"]:
    r"""Return all singular values of the Jacobian of a function at a point, from the matrix itself.

    $$ J_{ij} = \frac{\partial f_i}{\partial x_j}, \quad J = U \Sigma V^T $$

    Args:
        f: function of an array of any shape; it returns an array of any shape.
        x: the point, of a floating-point dtype; half precision is widened.

    Returns:
        The min(size of f(x), size of x) singular values, largest first.

    Example:
        >>> singular_values(lambda x: jnp.array([3.0, 4.0]) * x, jnp.ones(2)).tolist()
        [4.0, 3.0]
    """
    x = widen(x)
    matrix = jacobian(f)(x).reshape(-1, x.size)
    values: Array = jnp.linalg.svd(widen(matrix), compute_uv=False)
    return values


def lanczos_singular_values(
    key: Key, f: Callable[[Array], Array], x: Float[Array, "..."], steps: int
) -> SingularValues:
    r"""Estimate the outermost singular values of the Jacobian of a function at a point, without the matrix.

    Golub-Kahan-Lanczos bidiagonalisation: orthonormal V and U with

    $$ J V = U B, \quad J^T U = V B^T + \beta_{k+1} v_{k+1} e_k^T, \quad B \text{ upper bidiagonal} $$

    whose singular values near those of J, the largest first. Every new vector is orthogonalised twice against all
    before it; where the space is exhausted, it goes on from a random vector, so that equal singular values are found as
    often as there are such. One product with J and one with its transpose a step. Works under `jax.jit` and `jax.vmap`.

    Args:
        key: for the vectors it starts from.
        f: function of an array of any shape; it returns an array of any shape.
        x: the point, of a floating-point dtype; half precision is widened.
        steps: k, how many vectors; at most min(size of f(x), size of x), with which all singular values are found.

    Returns:
        k estimates with bounds of their errors.

    Raises:
        ValueError: steps below 1 or more than there are singular values.

    Example:
        >>> scales = jnp.array([1.0, 2.0, 3.0])
        >>> found = lanczos_singular_values(jax.random.key(0), lambda x: scales * x, jnp.ones(3), 3)
        >>> [round(float(value), 4) for value in found.values]
        [3.0, 2.0, 1.0]

    Reference:
        Golub and Kahan (1965), Calculating the singular values and pseudo-inverse of a matrix, SIAM J. Numer. Anal. 2.
    """
    x = widen(x)
    output, forward = jax.linearize(f, x)
    backward = jax.linear_transpose(forward, x)
    sizes, dtype = (output.size, x.size), x.dtype
    rows, columns = max(sizes), min(sizes)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= columns:
        raise ValueError(
            f"steps: expected a whole number from 1 to {columns}, the number of singular values; got {steps}"
        )

    def onwards(v: Array) -> Array:
        image: Array = forward(v.reshape(x.shape)).ravel().astype(dtype)
        return image

    def back(u: Array) -> Array:
        image: Array = backward(u.reshape(output.shape).astype(output.dtype))[0].ravel()
        return image

    # J or its transpose, whichever has the fewer columns: vectors V that fill their space miss nothing.
    times, transposed = (onwards, back) if sizes[1] == columns else (back, onwards)
    spare_left, spare_right = jax.random.uniform(key, (2, steps + 1, rows), dtype, -1, 1)
    spare_right = spare_right[:, :columns]
    start = spare_right[0] / array_norm(spare_right[0])
    none = jnp.zeros((), dtype)

    def advance(carry: _State, step: Array) -> tuple[_State, tuple[Array, Array]]:
        left, right, beta, largest = carry
        v = right[step]
        u, alpha = _next_vector(times(v) - beta * left[step - 1], left, spare_left[step], largest)
        left, largest = left.at[step].set(u), jnp.maximum(largest, alpha)
        v, beta = _next_vector(transposed(u) - alpha * v, right, spare_right[step + 1], largest)
        return (left, right.at[step + 1].set(v), beta, jnp.maximum(largest, beta)), (alpha, beta)

    # One row more than there are vectors: row -1 of the first step, times a beta of 0, is a zero.
    begin = (jnp.zeros((steps + 1, rows), dtype), jnp.zeros((steps + 1, columns), dtype).at[0].set(start), none, none)
    _, (alphas, betas) = jax.lax.scan(advance, begin, jnp.arange(steps))
    left_vectors, values, _ = jnp.linalg.svd(jnp.diag(alphas) + jnp.diag(betas[:-1], 1))
    return SingularValues(values, betas[-1] * jnp.abs(left_vectors[-1]))


def _next_vector(candidate: Array, basis: Array, spare: Array, largest: Array) -> tuple[Array, Array]:
    """Return a unit vector orthogonal to the basis, and the norm of the candidate's part in its direction."""
    candidate = _orthogonal(candidate, basis)
    length = array_norm(candidate)
    exhausted = length <= 10 * jnp.finfo(candidate.dtype).eps * largest
    # Divided first: the entries of a deep network's Jacobian may be so small that their products vanish.
    scaled = jnp.where(exhausted, _orthogonal(spare, basis), candidate / jnp.where(exhausted, 1, length))
    scaled = _orthogonal(scaled, basis)
    norm = array_norm(scaled)
    # In a space that is full there is no further direction.
    full = norm <= 1e-3
    return jnp.where(full, 0, scaled / jnp.where(full, 1, norm)), jnp.where(exhausted, 0, length)


def _orthogonal(vector: Array, basis: Array) -> Array:
    highest = jax.lax.Precision.HIGHEST
    along = jnp.matmul(basis, vector, precision=highest)
    return vector - jnp.matmul(along, basis, precision=highest)
