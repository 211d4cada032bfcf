r"""Attribution: in which part of a layer the gradient is lost or gained.

One layer of a deep network, forwards

    h_l = s h_{l-1} + α (a_{l-1} W_l + b_l),   a_l = φ(N(h_l))

and what flows back through it, part by part, each with its gain:

    δ_{l+1} = ∂L/∂h_{l+1}  --weight-->  u_l = ∂L/∂a_l  --activation-->  v_l = ∂L/∂N(h_l)
            --normalisation-->  w_l = ∂L/∂h_l through the branch  --skip-->  δ_l = s δ_{l+1} + w_l

The logarithms of the gains add up to that of the layer. The skip connection's part is what it adds to the branch: it is
large where the branch alone would lose the gradient.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float

from calcdl.diagnostics.probes import by_layer, signal_norms
from calcdl.diagnostics.taps import Tap
from calcdl.trees import array_norm
from calcdl.types import Array


class Attribution(NamedTuple):
    """Natural logarithm of the gain of the gradient's norm from layer l + 1 back to layer l, for l = 1 ... L - 1.

    Attributes:
        weight: of the weights, `log(|u_l| / |δ_{l+1}|)`, the branch's scale included.
        activation: of the activation's slopes, `log(|v_l| / |u_l|)`.
        normalisation: of the normalisation, `log(|w_l| / |v_l|)`.
        skip: of the skip connection, `log(|δ_l| / |w_l|)`.
        total: of the layer, `log(|δ_l| / |δ_{l+1}|)`, the sum of the four.
    """

    weight: Float[Array, " layers"]
    activation: Float[Array, " layers"]
    normalisation: Float[Array, " layers"]
    skip: Float[Array, " layers"]
    total: Float[Array, " layers"]


def attribute(taps: Mapping[str, Tap]) -> Attribution:
    r"""Divide every layer's gain of the gradient among its parts.

    $$ \log \frac{|\delta_l|}{|\delta_{l+1}|} = \log \frac{|u_l|}{|\delta_{l+1}|} + \log \frac{|v_l|}{|u_l|}
       + \log \frac{|w_l|}{|v_l|} + \log \frac{|\delta_l|}{|w_l|} $$

    Norms are over the batch and the units and do not underflow. Works under `jax.jit` and `jax.vmap`.

    Args:
        taps: of `capture`, joined by `by_layer`: ``"preactivation"`` at h_l, ``"activated"`` at a_l, and
            ``"branch"`` at h_l as it enters the branch, ``"normalised"`` at N(h_l) where there are such.

    Returns:
        The parts by layer, L - 1 each. A part that has no tap is 0. Infinite or NaN where a gradient is exactly zero.

    Raises:
        ValueError: no tap of the pre-activation or of the activation, or fewer than two layers.

    Example:
        >>> import jax
        >>> from calcdl.diagnostics.taps import capture, tap
        >>> def loss(weights, x):
        ...     def layer(a, weight):
        ...         return tap(jnp.tanh(tap(a * weight, "hidden.preactivation")), "hidden.activated"), None
        ...     return jnp.sum(jax.lax.scan(layer, x, weights)[0])
        >>> parts = attribute(capture(loss)(jnp.array([1.0, 0.5]), jnp.array([2.0])).taps)
        >>> round(float(jnp.exp(parts.weight[0])), 4), round(float(jnp.exp(parts.activation[0])), 4)
        (0.5, 0.0707)
    """
    places = {name.rpartition(".")[2] for name in taps}
    stream, activated = _logs(taps, "preactivation"), _logs(taps, "activated")
    if len(stream) < 2:
        raise ValueError(f"taps: expected at least two layers between which a gradient flows, got {len(stream)}")
    branch = _logs(taps, "branch") if "branch" in places else stream
    normalised = _logs(taps, "normalised") if "normalised" in places else branch
    return Attribution(
        weight=activated[:-1] - stream[1:],
        activation=normalised[:-1] - activated[:-1],
        normalisation=branch[:-1] - normalised[:-1],
        skip=stream[:-1] - branch[:-1],
        total=stream[:-1] - stream[1:],
    )


def _logs(taps: Mapping[str, Tap], what: str) -> Float[Array, " depth"]:
    # Norms are joined, and not what they are of, which is larger.
    found = {name: tap.cotangent for name, tap in taps.items() if name.rpartition(".")[2] == what}
    if any(cotangent is None for cotangent in found.values()):
        raise ValueError(f"taps: expected floating-point values at {what!r}, whose gradient can be followed")
    norms = {name: array_norm(cotangent) if name == f"first.{what}" else signal_norms(cotangent)
             for name, cotangent in found.items()}  # fmt: skip
    return jnp.log(by_layer(norms, what))
