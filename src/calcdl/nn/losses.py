"""Losses: one number an example, from raw outputs; the caller averages or sums.

Predictions and targets have one shape, or one of the two is a scalar; a shape mismatch raises ValueError, because the
silent alternative, broadcasting (rows, 1) against (rows,), trains on nonsense. Predictions are floating point, else
TypeError. Probabilities are never formed: cross-entropies take logits, and stay finite and accurate for any of them.
A label that is none (-1 or `classes` for an index, 0 for a sign, 1.5 for a probability) gives NaN, loss and gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from calcdl.nn.activations import relu, softplus
from calcdl.types import Array

Loss = Callable[..., Array]


def squared_error(prediction: Float[Array, "*shape"], target: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Squared error, without the factor 1/2.

    `l = (p - t)²`,  `∂l/∂p = 2 (p - t)`

    Args:
        prediction: p, in the units of the target.
        target: t.

    Returns:
        The loss of each element, in units squared.

    Raises:
        ValueError: the shapes differ.
        TypeError: the prediction is not floating point.

    >>> print(squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    [0. 4.]
    """
    prediction, target = _pair(prediction, target)
    return (prediction - target) ** 2


def absolute_error(prediction: Float[Array, "*shape"], target: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Absolute error.

    `l = |p - t|`,  `∂l/∂p = sign(p - t)`, which is 0 where p = t

    Args:
        prediction: p, in the units of the target.
        target: t.

    Returns:
        The loss of each element, in units of the target.

    Raises:
        ValueError: the shapes differ.
        TypeError: the prediction is not floating point.

    >>> print(absolute_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    [0. 2.]
    """
    prediction, target = _pair(prediction, target)
    error = prediction - target
    # The gradient of jnp.abs at 0 is 1.
    return error * jnp.sign(error)


def huber(
    prediction: Float[Array, "*shape"], target: Float[Array, "*shape"], delta: Float[Array, ""] | float = 1.0
) -> Float[Array, "*shape"]:
    """Huber loss: squared near the target, absolute far from it.

    `l = e²/2 where |e| ≤ δ, else δ (|e| - δ/2)`,  `e = p - t`,  `∂l/∂p = min(max(e, -δ), δ)`

    Args:
        prediction: p, in the units of the target.
        target: t.
        delta: δ > 0, where the two meet, in the units of the target.

    Returns:
        The loss of each element, in units squared.

    Raises:
        ValueError: the shapes differ, or delta is not positive.
        TypeError: the prediction is not floating point.

    >>> print(huber(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0])))
    [0.125 2.5  ]

    Reference: Huber 1964, Robust estimation of a location parameter, section 2.
    """
    if isinstance(delta, float | int) and not delta > 0:
        raise ValueError(f"delta must be positive, got {delta}")
    prediction, target = _pair(prediction, target)
    error = prediction - target
    bound = jnp.asarray(delta, prediction.dtype)
    clipped = jnp.clip(error, -bound, bound)
    return clipped * (error - clipped / 2)


def binary_cross_entropy(
    logit: Float[Array, "*shape"], label: Float[Array, "*shape"] | Int[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Cross-entropy of a Bernoulli distribution given by its logit.

    `l = y log(1 + exp(-a)) + (1 - y) log(1 + exp(a))`,  `∂l/∂a = s(a) - y`, with s the sigmoid

    Args:
        logit: a, the log-odds of label 1.
        label: y, 0 or 1, or a probability between them.

    Returns:
        The loss of each element, in nats; NaN where the label is outside 0 to 1.

    Raises:
        ValueError: the shapes differ.
        TypeError: the logit is not floating point.

    >>> print(binary_cross_entropy(jnp.array([-100.0, 100.0]), jnp.array([1, 0])))
    [100. 100.]
    """
    logit, label = _pair(logit, label)
    label = jnp.where((label >= 0) & (label <= 1), label, jnp.nan)
    return label * softplus(-logit) + (1 - label) * softplus(logit)


def softmax_cross_entropy(
    logits: Float[Array, "*shape classes"], label: Int[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Cross-entropy of a categorical distribution given by its logits.

    `l = log Σ_j exp(a_j) - a_y`,  `∂l/∂a_j = softmax(a)_j - [j = y]`

    Args:
        logits: a, with the classes along the last axis; -inf forbids a class.
        label: y, the index of the class, 0 to classes - 1.

    Returns:
        The loss of each example, in nats; NaN where the label is out of range.

    Raises:
        ValueError: the shape of the label is not that of the logits without their last axis.
        TypeError: the logits are not floating point, or the label is not of integers.

    >>> print(softmax_cross_entropy(jnp.array([[0.0, 100.0], [0.0, 100.0]]), jnp.array([0, 2])))
    [100.  nan]
    """
    logits, label = _floating("logits", logits), jnp.asarray(label)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise TypeError(f"label must be of integers, got {label.dtype}; for logit and 0/1 see binary_cross_entropy")
    if logits.ndim == 0 or label.shape != logits.shape[:-1]:
        raise ValueError(f"label must have shape {logits.shape[:-1]}, the logits' without classes; got {label.shape}")
    classes = logits.shape[-1]
    known = (label >= 0) & (label < classes)
    index = jnp.where(known, label, 0)[..., None]
    log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), index, axis=-1)[..., 0]
    # A product, unlike a selection, makes the gradient NaN as well.
    return -log_probability * jnp.where(known, 1, jnp.nan).astype(logits.dtype)


def hinge(
    score: Float[Array, "*shape"], label: Float[Array, "*shape"] | Int[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Hinge loss of a support vector machine.

    `l = max(0, 1 - y f)`,  `∂l/∂f = -y where y f < 1, else 0`

    Args:
        score: f, whose sign is the decision.
        label: y, -1 or 1.

    Returns:
        The loss of each element; NaN where the label is neither -1 nor 1.

    Raises:
        ValueError: the shapes differ.
        TypeError: the score is not floating point.

    >>> print(hinge(jnp.array([2.0, 0.5, -1.0]), jnp.array([1, 1, 1])))
    [0.  0.5 2. ]

    Reference: Cortes and Vapnik 1995, Support-vector networks.
    """
    score, label = _pair(score, label)
    return relu(1 - _sign(label) * score)


def squared_hinge(
    score: Float[Array, "*shape"], label: Float[Array, "*shape"] | Int[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Squared hinge loss, which has no kink.

    `l = max(0, 1 - y f)²`,  `∂l/∂f = -2 y max(0, 1 - y f)`

    Args:
        score: f, whose sign is the decision.
        label: y, -1 or 1.

    Returns:
        The loss of each element; NaN where the label is neither -1 nor 1.

    Raises:
        ValueError: the shapes differ.
        TypeError: the score is not floating point.

    >>> print(squared_hinge(jnp.array([2.0, 0.5, -1.0]), jnp.array([1, 1, 1])))
    [0.   0.25 4.  ]
    """
    return hinge(score, label) ** 2


def _floating(name: str, value: Any) -> Array:
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got {array.dtype}; convert with .astype(jnp.float32)")
    return array


def _pair(prediction: Any, target: Any) -> tuple[Array, Array]:
    prediction = _floating("prediction", prediction)
    target = jnp.asarray(target).astype(prediction.dtype)
    if prediction.shape != target.shape and () not in (prediction.shape, target.shape):
        raise ValueError(
            f"target must have the shape of the prediction, {prediction.shape}, got {target.shape}; reshape one of them"
        )
    return prediction, target


def _sign(label: Array) -> Array:
    return jnp.where(jnp.abs(label) == 1, label, jnp.nan)


LOSSES: dict[str, Loss] = {
    "squared_error": squared_error,
    "absolute_error": absolute_error,
    "huber": huber,
    "binary_cross_entropy": binary_cross_entropy,
    "softmax_cross_entropy": softmax_cross_entropy,
    "hinge": hinge,
    "squared_hinge": squared_hinge,
}
