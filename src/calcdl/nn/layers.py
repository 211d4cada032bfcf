"""Layers: functions of a pytree of parameters.

A deep stack keeps the weights of its equal layers in one array and scans over it, so that compile time does not grow
with depth.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.nn.activations import Activation
from calcdl.nn.initialisers import Initialiser
from calcdl.types import Array, Key, Params


class Layer(NamedTuple):
    """A pair of pure functions.

    Attributes:
        init: ``(key, shape of one input) -> params``.
        apply: ``(params, x) -> y``.
    """

    init: Callable[[Key, tuple[int, ...]], Params]
    apply: Callable[..., Any]


class Stack(NamedTuple):
    """A layer of hidden layers, with a view inside.

    Attributes:
        init: ``(key, shape of one input) -> params``.
        apply: ``(params, x) -> y``.
        record: ``(params, x, offsets) -> (y, preactivations)``. `offsets`, shaped like the pre-activations
            ``[depth, batch, width]``, are added to them: the gradient by an offset is the back-propagated signal.
    """

    init: Callable[[Key, tuple[int, ...]], Params]
    apply: Callable[..., Any]
    record: Callable[..., tuple[Any, Any]]


def dense(features: int, initialiser: Initialiser, gain: Any = 1.0, dtype: Any = jnp.float32) -> Layer:
    """Make a fully connected layer.

    `y = x W + b`, with b = 0 at first

    Args:
        features: units.
        initialiser: how W is drawn.
        gain: factor of W; may be traced.
        dtype: of the parameters.

    Returns:
        The layer; its parameters are ``{"weight": [inputs, features], "bias": [features]}``.

    Example:
        >>> from calcdl.nn.initialisers import INITIALISERS
        >>> layer = dense(3, INITIALISERS["zeros"])
        >>> layer.apply(layer.init(jax.random.key(0), (2,)), jnp.ones((1, 2))).tolist()
        [[0.0, 0.0, 0.0]]
    """

    def init(key: Key, shape: tuple[int, ...]) -> dict[str, Array]:
        return {
            "weight": initialiser(key, (shape[-1], features), gain, dtype),
            "bias": jnp.zeros(features, dtype),
        }

    def apply(params: Mapping[str, Array], x: Float[Array, "batch inputs"]) -> Float[Array, "batch features"]:
        return x @ params["weight"] + params["bias"][None, :]

    return Layer(init, apply)


def stack(
    depth: int,
    width: int,
    outputs: int,
    activation: Activation,
    initialiser: Initialiser,
    gain: Any = 1.0,
    dtype: Any = jnp.float32,
) -> Stack:
    """Make `depth` equal hidden layers and a linear read-out.

    `h_1 = x W_1 + b_1`,  `h_l = φ(h_{l-1}) W_l + b_l`,  `y = φ(h_L) W + b`;  for depth 0, `y = x W + b`

    Args:
        depth: number L of hidden layers, 0 or more.
        width: units of every hidden layer.
        outputs: units of the read-out.
        activation: φ; a learned slope becomes one parameter a layer.
        initialiser: how the weights of all layers are drawn; biases are 0 at first.
        gain: factor of the hidden weights; may be traced.
        dtype: of the parameters.

    Returns:
        The stack. Its parameters are ``{"first": ..., "hidden": ..., "readout": ...}``, where ``"hidden"`` holds
        layers 2 to L along a leading axis and what does not exist is left out.

    Raises:
        ValueError: a negative depth, a width or number of outputs below 1.

    Example:
        >>> from calcdl.nn.activations import ACTIVATIONS
        >>> from calcdl.nn.initialisers import INITIALISERS
        >>> network = stack(3, 8, 2, ACTIVATIONS["relu"], INITIALISERS["he_normal"])
        >>> params = network.init(jax.random.key(0), (4,))
        >>> params["hidden"]["weight"].shape, network.apply(params, jnp.ones((5, 4))).shape
        ((2, 8, 8), (5, 2))
    """
    for name, value, least in (("depth", depth, 0), ("width", width, 1), ("outputs", outputs, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    hidden_layer, readout = dense(width, initialiser, gain, dtype), dense(outputs, initialiser, 1.0, dtype)

    def one(key: Key, inputs: int) -> dict[str, Array]:
        params = hidden_layer.init(key, (inputs,))
        return params if activation.learned is None else {**params, "slope": jnp.asarray(activation.learned, dtype)}

    def init(key: Key, shape: tuple[int, ...]) -> dict[str, Any]:
        first, hidden, last = jax.random.split(key, 3)
        params: dict[str, Any] = {"readout": readout.init(last, (width if depth else shape[-1],))}
        if depth >= 1:
            params["first"] = one(first, shape[-1])
        if depth >= 2:
            params["hidden"] = jax.vmap(lambda k: one(k, width))(jax.random.split(hidden, depth - 1))
        return params

    def activate(params: Mapping[str, Array], h: Array) -> Array:
        slope = () if activation.learned is None else (params["slope"],)
        activated: Array = activation.function(h, *slope)
        return activated

    def hidden(a: Array, layer: Mapping[str, Array], offset: Any) -> tuple[Array, Array]:
        h = hidden_layer.apply(layer, a)
        h = h if offset is None else h + offset
        return activate(layer, h), h

    def apply(params: Params, x: Array) -> Array:
        if depth >= 1:
            x, _ = hidden(x, params["first"], None)
        if depth >= 2:
            x, _ = jax.lax.scan(lambda a, layer: (hidden(a, layer, None)[0], None), x, params["hidden"])
        y: Array = readout.apply(params["readout"], x)
        return y

    def record(params: Params, x: Array, offsets: Array) -> tuple[Array, Array]:
        seen = offsets
        if depth >= 1:
            x, first = hidden(x, params["first"], offsets[0])
            seen = first[None]
        if depth >= 2:
            x, rest = jax.lax.scan(lambda a, layer: hidden(a, *layer), x, (params["hidden"], offsets[1:]))
            seen = jnp.concatenate([seen, rest])
        return readout.apply(params["readout"], x), seen

    return Stack(init, apply, record)
