"""Probes: one number a layer from a forward and a backward pass.

Layers are laid out as a stack keeps them: a mapping whose entry ``"first"`` is one layer and whose entry ``"hidden"``
holds all further layers along a leading axis; entries of other names (the read-out) belong to no hidden layer.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from calcdl.trees import array_norm
from calcdl.types import Objective, Params

PLACES = ("first", "hidden")
Seen = TypeVar("Seen")


def layer_norms(params: Mapping[str, Any], leaf: str = "weight") -> Float[Array, " depth"]:
    r"""Return the Euclidean norm of one leaf of every layer, :math:`\lVert W_l \rVert_2`, first layer first.

    Args:
        params: parameters, or anything of their structure (a gradient, an update).
        leaf: which leaf of a layer.

    Returns:
        One norm a layer; none for a network without hidden layers.

    Example:
        >>> layer_norms({"first": {"weight": jnp.full((2, 2), 2.0)}, "readout": {}}).tolist()
        [4.0]
    """
    norms = [array_norm(params["first"][leaf], None)[None]] if "first" in params else []
    if "hidden" in params:
        weights = params["hidden"][leaf]
        norms.append(array_norm(weights.reshape(weights.shape[0], -1), 1))
    return jnp.concatenate(norms) if norms else jnp.zeros(0)


def by_layer(taps: Mapping[str, Seen], what: str) -> Seen:
    """Join what the first layer and the other hidden layers show at one place into one stack, first layer first.

    `[x_1], [x_2 ... x_L]  ->  [x_1 ... x_L]`

    Args:
        taps: by name, as `capture` and `observe` return them: ``"first.<what>"`` of one layer, ``"hidden.<what>"`` of
            the layers of a scan, or one of the two.
        what: the place, such as ``"preactivation"``.

    Returns:
        The tap with a leading axis of layers; a cotangent of None stays None.

    Raises:
        ValueError: there is no such tap.

    Example:
        >>> from calcdl.diagnostics.taps import Tap
        >>> one, two = jnp.ones(2), jnp.full((3, 2), 2.0)
        >>> taps = {"first.preactivation": Tap(one, one), "hidden.preactivation": Tap(two, two)}
        >>> by_layer(taps, "preactivation").value[:, 0].tolist()
        [1.0, 2.0, 2.0, 2.0]
    """
    first, hidden = (taps.get(f"{place}.{what}") for place in PLACES)
    if first is None and hidden is None:
        expected = " or ".join(repr(f"{place}.{what}") for place in PLACES)
        raise ValueError(f"taps: expected a tap {expected}, got {sorted(taps)}")
    layers = [jax.tree.map(lambda leaf: leaf[None], first)] if first is not None else []
    layers += [hidden] if hidden is not None else []
    joined: Seen = jax.tree.map(lambda *parts: jnp.concatenate(parts), *layers)
    return joined


def signal_norms(signal: Float[Array, " depth *rest"]) -> Float[Array, " depth"]:
    r"""Return the Euclidean norm of every layer's signal, :math:`\lVert x_l \rVert_2`, safe from underflow.

    Args:
        signal: values or cotangents of any shape by layer.

    Returns:
        One norm a layer.

    Example:
        >>> print([f"{norm:.4g}" for norm in signal_norms(jnp.array([[[3.0, 4.0]], [[3e-30, 4e-30]]]))])
        ['5', '5e-30']
    """
    return array_norm(signal.reshape(len(signal), -1), 1)


def correlations(signal: Float[Array, "depth batch *features"]) -> Float[Array, " depth"]:
    r"""Return the mean cosine of the angle between two different rows of the batch, layer by layer.

    .. math:: c = 1 - \frac{1}{n - 1} \sum_i \Bigl\lVert r_i - \frac1n \sum_j r_j \Bigr\rVert^2,
        \quad r_i = x_i / \lVert x_i \rVert

    which is the mean over pairs in n, not n², operations, and exact near 1, where ordered networks end. Between the
    activations it tells how far a layer tells its inputs apart; between gradients by the input, whether they are
    shattered.

    Args:
        signal: values or cotangents by layer and example.

    Returns:
        A number from -1/(n - 1) to 1 a layer, over its n rows that are not zero; NaN where fewer than two are.

    Example:
        >>> correlations(jnp.array([[[1.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 3.0]]])).tolist()
        [1.0, 0.0]

    Reference:
        Poole et al. (2016), Exponential expressivity in deep neural networks, arXiv:1606.05340.
    """
    flat = signal.reshape(*signal.shape[:2], -1)
    length = array_norm(flat, 2)[..., None]
    is_zero = length == 0
    rows = jnp.where(is_zero, 0, flat / jnp.where(is_zero, 1, length))
    count = jnp.sum(~is_zero, axis=1, keepdims=True, dtype=rows.dtype)
    apart = jnp.where(is_zero, 0, rows - jnp.sum(rows, axis=1, keepdims=True) / jnp.maximum(count, 1))
    spread = jnp.sum(jnp.square(apart), axis=(1, 2))
    several = count[:, 0, 0] > 1
    return jnp.where(several, 1 - spread / jnp.where(several, count[:, 0, 0] - 1, 1), jnp.nan)


def second_moments(activations: Float[Array, "depth batch *features"]) -> Float[Array, " depth"]:
    """Return the mean square of every layer's activations over the units and the batch.

    Example:
        >>> second_moments(jnp.full((1, 2, 3), 2.0)).tolist()
        [4.0]
    """
    return jnp.mean(jnp.square(activations), axis=tuple(range(1, activations.ndim)))


def dead_units(slopes: Float[Array, "depth batch *places width"]) -> Float[Array, " depth"]:
    r"""Return the share of units of every layer through which no example passes a gradient.

    A unit is dead when :math:`\phi'(h) = 0` for every row of the batch, and every place of an image: no step on these
    data can revive it.

    Args:
        slopes: derivative of the activation at the pre-activations.

    Returns:
        A share from 0 to 1 a layer.

    Example:
        >>> dead_units(jnp.array([[[0.0, 1.0], [0.0, 0.0]]])).tolist()
        [0.5]
    """
    return jnp.mean(jnp.all(slopes == 0, axis=tuple(range(1, slopes.ndim - 1))), axis=1, dtype=slopes.dtype)


def saturated_units(
    slopes: Float[Array, "depth batch *places width"], largest: float, *, tolerance: float = 0.05, share: float = 0.95
) -> Float[Array, " depth"]:
    r"""Return the share of units of every layer that work on the flat part of their activation.

    A unit is saturated when :math:`|\phi'(h)| \le` `tolerance` :math:`\cdot \max|\phi'|` in at least `share` of the
    rows, and of the places of an image.

    Args:
        slopes: derivative of the activation at the pre-activations.
        largest: the largest slope that the activation has anywhere.
        tolerance: what counts as flat, relative to `largest`.
        share: share of the rows that makes a unit saturated.

    Returns:
        A share from 0 to 1 a layer.

    Example:
        >>> saturated_units(jnp.array([[[0.001, 0.25], [0.002, 0.25]]]), 0.25).tolist()
        [0.5]
    """
    rows = tuple(range(1, slopes.ndim - 1))
    flat = jnp.mean(jnp.abs(slopes) <= tolerance * largest, axis=rows, dtype=slopes.dtype)
    return jnp.mean(flat >= share, axis=1, dtype=slopes.dtype)


def gradient_by_layer(objective: Objective, params: Params, info: Any) -> Float[Array, " depth"]:
    """Probe of a training loop: norm of the weight gradient of every layer at the step just taken.

    Example:
        >>> from collections import namedtuple
        >>> info = namedtuple("Info", "gradient")({"first": {"weight": jnp.array([[3.0, 4.0]])}})
        >>> gradient_by_layer(None, None, info).tolist()
        [5.0]
    """
    return layer_norms(info.gradient)


def update_to_weight_ratio(objective: Objective, params: Params, info: Any) -> Float[Array, " depth"]:
    r"""Probe of a training loop: :math:`\lVert \Delta W_l \rVert / \lVert W_l \rVert` of the step just taken.

    It is 0 where nothing was updated, and infinite where weights of zero were.

    Example:
        >>> from collections import namedtuple
        >>> info = namedtuple("Info", "update")({"first": {"weight": jnp.array([[0.3]])}})
        >>> round(update_to_weight_ratio(None, {"first": {"weight": jnp.array([[3.0]])}}, info).item(), 3)
        0.1
    """
    update = layer_norms(info.update)
    return jnp.where(update == 0, 0, update / jnp.where(update == 0, 1, layer_norms(params)))
