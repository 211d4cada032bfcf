"""Penalties on a tree of weights, each a scalar that is added to the loss.

The strength is the caller's factor, so that it can be traced: `loss + strength * l2(weights)`. Leaves that are not
floating point have no size and are passed over; which leaves to penalise (weights, seldom biases) is for the caller.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.trees import dot, split_floating
from calcdl.types import Array, Scalar

Regulariser = Callable[..., Scalar]


def l1(weights: Any) -> Scalar:
    """Sum of absolute values, which drives weights to exactly zero.

    `r = Σ_i |w_i|`,  `∂r/∂w_i = sign(w_i)`, taken as 0 where w_i = 0

    Args:
        weights: any pytree.

    Returns:
        A scalar of the widest dtype of the leaves, at least float32; 0 if there is no floating-point leaf.

    Raises:
        Nothing: leaves that are not floating point are passed over.

    >>> float(l1({"w": jnp.array([3.0, -4.0])}))
    7.0

    Reference: Tibshirani 1996, Regression shrinkage and selection via the lasso.
    """
    floating, _ = split_floating(weights)
    return dot(floating, jax.tree.map(jnp.sign, floating))


def l2(weights: Any) -> Scalar:
    """Sum of squares, which shrinks all weights in proportion.

    `r = Σ_i w_i²`,  `∂r/∂w_i = 2 w_i`

    Half of it is what a weight decay of 1 descends on.

    Args:
        weights: any pytree.

    Returns:
        A scalar of the widest dtype of the leaves, at least float32; 0 if there is no floating-point leaf.

    Raises:
        Nothing: leaves that are not floating point are passed over.

    >>> float(l2({"w": jnp.array([3.0, -4.0])}))
    25.0

    Reference: Hoerl and Kennard 1970, Ridge regression.
    """
    floating, _ = split_floating(weights)
    return dot(floating, floating)


def elastic_net(weights: Any, l1_ratio: Float[Array, ""] | float = 0.5) -> Scalar:
    """Mixture of both: zeros as with l1, correlated weights kept together as with l2.

    `r = ρ Σ_i |w_i| + (1 - ρ)/2 Σ_i w_i²`

    Args:
        weights: any pytree.
        l1_ratio: ρ, 0 (half of l2) to 1 (l1).

    Returns:
        A scalar of the widest dtype of the leaves, at least float32; 0 if there is no floating-point leaf.

    Raises:
        ValueError: l1_ratio is outside 0 to 1.

    >>> float(elastic_net({"w": jnp.array([3.0, -4.0])}, 0.5))
    9.75

    Reference: Zou and Hastie 2005, Regularization and variable selection via the elastic net.
    """
    if isinstance(l1_ratio, float | int) and not 0 <= l1_ratio <= 1:
        raise ValueError(f"l1_ratio must lie in 0 to 1, got {l1_ratio}")
    absolute, squares = l1(weights), l2(weights)
    ratio = jnp.asarray(l1_ratio, absolute.dtype)
    return ratio * absolute + (1 - ratio) / 2 * squares


REGULARISERS: dict[str, Regulariser] = {"l1": l1, "l2": l2, "elastic_net": elastic_net}
