"""Kernels, and the machine whose parameters are one multiplier a row: a support vector machine in its dual.

A kernel is the scalar product of two examples after a map φ that is never formed. A machine `f(x) = w·φ(x) + b` with
`w = Σ_i a_i y_i φ(x_i)` needs nothing else: with `v_i = a_i y_i` and the Gram matrix `K_ij = k(x_i, x_j)`,

    primal  P = |w|²/2 + C Σ_i max(0, 1 - y_i f(x_i)),   |w|² = v·Kv,   f = Kv + b
    dual    D = Σ_i a_i - |w|²/2                         for 0 ≤ a_i ≤ C and Σ_i a_i y_i = 0

and D ≤ P always, with equality at the optimum alone. A kernel is written for two examples, `gram` makes the matrix.
linear leaves the columns as they are, rbf fits any boundary as its width shrinks, laplace a rougher one; polynomial
counts products of columns. sigmoid is a scalar product for some settings only, and then the dual has no maximum.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.nn.losses import hinge
from calcdl.types import Array, Scalar

Kernel = Callable[..., Scalar]
Number = Float[Array, ""] | float


class Machine(NamedTuple):
    """A support vector machine on its training rows.

    Attributes:
        multipliers: a, one for each row; rows with a > 0 are its support vectors.
        offset: b.
        margins: y f(x), above 1 outside the margin, below 0 on the wrong side.
        primal: P, what is minimised.
        dual: D, which no P is below.
    """

    multipliers: Float[Array, " rows"]
    offset: Scalar
    margins: Float[Array, " rows"]
    primal: Scalar
    dual: Scalar


def linear(one: Float[Array, " columns"], other: Float[Array, " columns"]) -> Scalar:
    """Scalar product of the columns as they are.

    `k = x·z`

    Args:
        one: x, an example.
        other: z, another.

    Returns:
        A scalar of the dtype of the examples.

    >>> float(linear(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])))
    11.0
    """
    return jnp.dot(one, other)


def polynomial(
    one: Float[Array, " columns"],
    other: Float[Array, " columns"],
    degree: int = 3,
    scale: Number = 1.0,
    offset: Number = 1.0,
) -> Scalar:
    """Scalar product of all products of up to `degree` columns.

    `k = (s x·z + c)^d`

    Args:
        one: x, an example.
        other: z, another.
        degree: d, a whole number of at least 1.
        scale: s > 0, in the inverse of the columns' unit squared.
        offset: c ≥ 0, the weight of products of fewer columns.

    Returns:
        A scalar of the dtype of the examples.

    Raises:
        ValueError: a degree below 1.

    >>> float(polynomial(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]), degree=2))
    144.0
    """
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
        raise ValueError(f"degree must be a whole number of at least 1, got {degree!r}")
    return _affine(one, other, scale, offset) ** degree


def rbf(one: Float[Array, " columns"], other: Float[Array, " columns"], width: Number = 1.0) -> Scalar:
    """Gaussian of the distance: 1 for the same example, 0 for examples far apart.

    `k = exp(-|x - z|² / (2 σ²))`

    Args:
        one: x, an example.
        other: z, another.
        width: σ > 0, in the columns' unit; elsewhere also given as γ = 1 / (2 σ²).

    Returns:
        A scalar of the dtype of the examples.

    Raises:
        ValueError: a width that is not positive.

    >>> print(f"{rbf(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]), width=2.0):.4f}")
    0.6065
    """
    return jnp.exp(-jnp.sum(((one - other) / _width(width, one)) ** 2) / 2)


def laplace(one: Float[Array, " columns"], other: Float[Array, " columns"], width: Number = 1.0) -> Scalar:
    """Exponential of the distance along the axes, which has a peak where the Gaussian is smooth.

    `k = exp(-|x - z|₁ / σ)`,  `∂k/∂x_j = -k sign(x_j - z_j) / σ`, which is 0 where x_j = z_j

    Args:
        one: x, an example.
        other: z, another.
        width: σ > 0, in the columns' unit.

    Returns:
        A scalar of the dtype of the examples.

    Raises:
        ValueError: a width that is not positive.

    >>> print(f"{laplace(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]), width=2.0):.4f}")
    0.3679
    """
    apart = (one - other) / _width(width, one)
    # The gradient of jnp.abs at 0 is 1.
    return jnp.exp(-jnp.sum(apart * jnp.sign(apart)))


def sigmoid(
    one: Float[Array, " columns"], other: Float[Array, " columns"], scale: Number = 1.0, offset: Number = 0.0
) -> Scalar:
    """Hyperbolic tangent of the scalar product; a Gram matrix may have negative eigenvalues.

    `k = tanh(s x·z + c)`

    Args:
        one: x, an example.
        other: z, another.
        scale: s, in the inverse of the columns' unit squared.
        offset: c.

    Returns:
        A scalar of the dtype of the examples.

    >>> float(sigmoid(jnp.array([1.0, 2.0]), jnp.array([2.0, -1.0])))
    0.0
    """
    return jnp.tanh(_affine(one, other, scale, offset))


def of_width(name: str, width: Number) -> Kernel:
    """Return a kernel by its name, set to the scale of the columns.

    `k_σ(x, z) = k(x / σ, z / σ)`, but for linear, which knows no scale

    Args:
        name: a key of `KERNELS`.
        width: σ > 0, in the columns' unit.

    Returns:
        A function of two examples.

    Raises:
        KeyError: an unknown name.

    >>> print(f"{of_width('rbf', 2.0)(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])):.4f}")
    0.6065
    """
    if name == "linear":
        return KERNELS[name]
    return lambda one, other: KERNELS[name](one / _width(width, one), other / _width(width, other))


def gram(
    kernel: Kernel, ones: Float[Array, "rows columns"], others: Float[Array, "others columns"] | None = None
) -> Float[Array, "rows others"]:
    """Make the matrix of a kernel between rows and rows.

    `K_ij = k(x_i, z_j)`

    Args:
        kernel: takes two examples; its settings bound, as in `partial(rbf, width=2.0)`.
        ones: x, one example a row.
        others: z, likewise; by default x.

    Returns:
        The matrix.

    >>> print(gram(linear, jnp.array([[1.0, 2.0], [0.0, 1.0]])))
    [[5. 2.]
     [2. 1.]]
    """
    others = ones if others is None else others
    return jax.vmap(lambda one: jax.vmap(partial(kernel, one))(others))(ones)


def decision(
    multipliers: Float[Array, " rows"],
    labels: Float[Array, " rows"],
    kernels: Float[Array, "others rows"],
    offset: Number = 0.0,
) -> Float[Array, " others"]:
    """Score examples by a machine: the sign is the decision, a size of 1 the margin.

    `f(z) = Σ_i a_i y_i k(z, x_i) + b`

    Args:
        multipliers: a, one for each training row.
        labels: y, -1 or 1.
        kernels: between the examples and the training rows, as `gram(kernel, examples, rows)` gives them.
        offset: b.

    Returns:
        One score an example.

    >>> rows, labels = jnp.array([[0.0, 0.0], [2.0, 2.0]]), jnp.array([-1.0, 1.0])
    >>> print(decision(jnp.array([0.25, 0.25]), labels, gram(linear, rows), -1.0))
    [-1.  1.]
    """
    return kernels @ (multipliers * labels) + jnp.asarray(offset, multipliers.dtype)


def best_offset(scores: Float[Array, " rows"], labels: Float[Array, " rows"]) -> Scalar:
    """Return the offset for which the hinge losses of some scores add up to least.

    `b = argmin_b Σ_i max(0, 1 - y_i (s_i + b))`, the middle of them where there are many

    The sum has a corner at every `t_i = y_i - s_i`, and its slope is the number of t_i below b minus the number of
    labels 1: so b lies between the t_i of that rank and the next.

    Args:
        scores: s, without an offset.
        labels: y, -1 or 1, both present.

    Returns:
        The offset; of labels of one kind the sum has no least, and this is the last corner.

    >>> float(best_offset(jnp.array([0.0, 2.0, 4.0]), jnp.array([-1.0, 1.0, 1.0])))
    -1.0
    """
    corners = jnp.sort(labels - scores)
    rank = jnp.sum(labels > 0)
    last = len(corners) - 1
    return (corners[jnp.maximum(rank - 1, 0)] + corners[jnp.minimum(rank, last)]) / 2


def machine(
    multipliers: Float[Array, " rows"],
    labels: Float[Array, " rows"],
    kernels: Float[Array, "rows rows"],
    penalty: Number,
) -> Machine:
    """Return the machine that multipliers stand for, with the best offset and both values, which prove how good it is.

    `P = v·Kv/2 + C Σ_i max(0, 1 - y_i f(x_i))`,  `D = Σ_i a_i - v·Kv/2`,  `v_i = a_i y_i`,  `f = Kv + b`

    Args:
        multipliers: a, 0 ≤ a_i ≤ C and Σ a_i y_i = 0, without which D is no bound.
        labels: y, -1 or 1, both present.
        kernels: the Gram matrix K of the training rows.
        penalty: C > 0, the price of a unit of the hinge loss.

    Returns:
        The machine; no other has a primal value below its dual one.

    >>> rows, labels = jnp.array([[0.0, 0.0], [2.0, 2.0]]), jnp.array([-1.0, 1.0])
    >>> found = machine(jnp.array([0.25, 0.25]), labels, gram(linear, rows), 1.0)
    >>> float(found.offset), float(found.primal), float(found.dual), found.margins.tolist()
    (-1.0, 0.25, 0.25, [1.0, 1.0])

    Reference: Cortes and Vapnik 1995, Support-vector networks, appendix A.
    """
    scores = decision(multipliers, labels, kernels)
    offset = best_offset(scores, labels)
    losses = jnp.asarray(penalty, scores.dtype) * jnp.sum(hinge(scores + offset, labels))
    primal = jnp.dot(multipliers * labels, scores) / 2 + losses
    return Machine(multipliers, offset, labels * (scores + offset), primal, dual_value(multipliers, labels, kernels))


def dual_value(
    multipliers: Float[Array, " rows"], labels: Float[Array, " rows"], kernels: Float[Array, "rows rows"]
) -> Scalar:
    """Return the lower bound that multipliers with 0 ≤ a_i ≤ C and Σ a_i y_i = 0 give on every primal value.

    `D = Σ_i a_i - v·Kv/2`,  `∂D/∂a_i = 1 - y_i (Kv)_i`,  `v_i = a_i y_i`

    Args:
        multipliers: a.
        labels: y, -1 or 1.
        kernels: the Gram matrix K of the training rows, symmetric: its gradient takes one product with K.

    Returns:
        A scalar.

    >>> rows, labels = jnp.array([[0.0, 0.0], [2.0, 2.0]]), jnp.array([-1.0, 1.0])
    >>> float(dual_value(jnp.array([0.25, 0.25]), labels, gram(linear, rows)))
    0.25

    """
    return jnp.sum(multipliers) - _half_square(multipliers * labels, kernels)


@jax.custom_jvp
def _half_square(vector: Array, matrix: Array) -> Array:
    return jnp.dot(vector, matrix @ vector) / 2


_half_square.defjvps(
    lambda dot, value, vector, matrix: jnp.dot(dot, matrix @ vector),
    lambda dot, value, vector, matrix: jnp.dot(vector, dot @ vector) / 2,
)


def _affine(one: Array, other: Array, scale: Number, offset: Number) -> Array:
    product = jnp.dot(one, other)
    return jnp.asarray(scale, product.dtype) * product + jnp.asarray(offset, product.dtype)


def _width(width: Number, like: Array) -> Array:
    if isinstance(width, float | int) and not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    return jnp.asarray(width, like.dtype)


KERNELS: dict[str, Kernel] = {
    "linear": linear,
    "polynomial": polynomial,
    "rbf": rbf,
    "laplace": laplace,
    "sigmoid": sigmoid,
}
