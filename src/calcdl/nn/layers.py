"""Layers: functions of a pytree of parameters, and pure functions without any."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from calcdl.nn.initialisers import Initialiser
from calcdl.types import Array, Key, Params

PADDINGS = ("same", "valid", "circular")

_IMAGES = ("NHWC", "HWIO", "NHWC")


class Layer(NamedTuple):
    """A pair of pure functions.

    Attributes:
        init: ``(key, shape of one input) -> params``.
        apply: ``(params, x) -> y``.
    """

    init: Callable[[Key, tuple[int, ...]], Params]
    apply: Callable[..., Any]


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


def convolution(
    features: int,
    initialiser: Initialiser,
    gain: Any = 1.0,
    dtype: Any = jnp.float32,
    *,
    kernel: int | tuple[int, int] = (3, 3),
    stride: int | tuple[int, int] = 1,
    padding: str = "same",
) -> Layer:
    """Make a convolution of images, laid out as [batch, height, width, channels].

    `y[n, i, j] = Σ_{u v} x[n, s i + u - p, s j + v - p] W[u, v] + b`,  with b = 0 at first and stride s

    Args:
        features: channels that come out.
        initialiser: how W is drawn.
        gain: factor of W; may be traced.
        dtype: of the parameters.
        kernel: rows and columns of W, or one number for both.
        stride: s, of rows and columns, or one number for both.
        padding: "valid", no pixel outside of the image is asked for and p = 0; "same", pixels outside are 0, and
            "circular", the image is repeated: with both p = (kernel - 1) // 2, and stride 1 keeps the size.

    Returns:
        The layer; its parameters are ``{"weight": [rows, columns, channels, features], "bias": [features]}``.

    Raises:
        ValueError: sizes below 1, an unknown padding, or, by the layer, an image smaller than a "valid" kernel.

    Example:
        >>> from calcdl.nn.initialisers import INITIALISERS
        >>> layer = convolution(1, INITIALISERS["constant"], kernel=(1, 3), padding="circular")
        >>> x = jnp.array([1.0, 2.0, 4.0]).reshape(1, 1, 3, 1)
        >>> layer.apply(layer.init(jax.random.key(0), (1, 3, 1)), x).ravel().tolist()
        [7.0, 7.0, 7.0]
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding: expected one of {', '.join(PADDINGS)}, got {padding!r}")
    sizes, strides = _pair("kernel", kernel), _pair("stride", stride)

    def init(key: Key, shape: tuple[int, ...]) -> dict[str, Array]:
        return {
            "weight": initialiser(key, (*sizes, shape[-1], features), gain, dtype),
            "bias": jnp.zeros(features, dtype),
        }

    def apply(
        params: Mapping[str, Array], x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns features"]:
        _fits("kernel", sizes if padding == "valid" else (1, 1), x)
        if padding == "circular":
            before = [((size - 1) // 2, size // 2) for size in sizes]
            x = jnp.pad(x, ((0, 0), *before, (0, 0)), mode="wrap")
        margin: Any = [((size - 1) // 2, size // 2) for size in sizes] if padding == "same" else "VALID"
        dtype = jnp.result_type(x, params["weight"])
        y = jax.lax.conv_general_dilated(
            x.astype(dtype), params["weight"].astype(dtype), strides, margin, dimension_numbers=_IMAGES
        )
        return y + params["bias"][None, None, None, :]

    return Layer(init, apply)


def max_pool(
    x: Float[Array, "batch height width channels"],
    window: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
) -> Float[Array, "batch rows columns channels"]:
    """Largest value in each window of an image.

    `y[n, i, j] = max_{u v} x[n, s i + u, s j + v]`

    Args:
        x: images.
        window: rows and columns, or one number for both.
        stride: s, of rows and columns, or one number for both; None stands for the window, so that windows tile.

    Returns:
        The images, smaller; what does not fill a window is left out. The gradient goes to the first of equal values.

    Raises:
        ValueError: sizes below 1, or an image smaller than the window.

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2).ravel().tolist()
        [5.0, 7.0, 13.0, 15.0]
    """
    return _reduced(x, window, stride, -jnp.inf, jax.lax.max)


def average_pool(
    x: Float[Array, "batch height width channels"],
    window: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
) -> Float[Array, "batch rows columns channels"]:
    """Mean of each window of an image.

    `y[n, i, j] = mean_{u v} x[n, s i + u, s j + v]`

    Args:
        x: images.
        window: rows and columns, or one number for both.
        stride: s, of rows and columns, or one number for both; None stands for the window, so that windows tile.

    Returns:
        The images, smaller; what does not fill a window is left out.

    Raises:
        ValueError: sizes below 1, or an image smaller than the window.

    Example:
        >>> average_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2).ravel().tolist()
        [2.5, 4.5, 10.5, 12.5]
    """
    return _reduced(x, window, stride, 0.0, jax.lax.add) / math.prod(_pair("window", window))


def dropout(key: Key, x: Float[Array, "*shape"], rate: Any) -> Float[Array, "*shape"]:
    """Zeros in random places, and the rest scaled so that the mean stays.

    `y = x m / (1 - rate)`,  m = 0 with probability `rate`, else 1

    Args:
        key: of the random places.
        x: anything, in training; at inference x itself is used.
        rate: from 0 to below 1; may be traced.

    Returns:
        Of the shape and dtype of x.

    Raises:
        ValueError: a rate outside of that range.

    Example:
        >>> sorted(set(dropout(jax.random.key(0), jnp.ones(50), 0.75).tolist()))
        [0.0, 4.0]

    Reference: Srivastava et al. 2014, Dropout: a simple way to prevent neural networks from overfitting, section 10.
    """
    if isinstance(rate, float | int) and not 0 <= rate < 1:
        raise ValueError(f"rate: expected a number from 0 to below 1, got {rate!r}")
    share = jnp.asarray(rate).astype(jnp.float32)
    kept = jax.random.uniform(key, x.shape, jnp.float32) >= share
    return jnp.where(kept, x / (1 - jnp.asarray(rate).astype(x.dtype)), jnp.zeros((), x.dtype))


def _reduced(x: Array, window: Any, stride: Any, start: float, join: Any) -> Array:
    sizes = _pair("window", window)
    strides = sizes if stride is None else _pair("stride", stride)
    _fits("window", sizes, x)
    # The start must be a constant of the program: only then a maximum is known as one, and has a derivative.
    reduced: Array = jax.lax.reduce_window(
        x, np.asarray(start, x.dtype), join, (1, *sizes, 1), (1, *strides, 1), "VALID"
    )
    return reduced


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    sound = isinstance(pair, tuple) and len(pair) == 2
    if not sound or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in pair):
        raise ValueError(f"{name}: expected an integer of at least 1, or a pair of them, got {value!r}")
    return pair


def _fits(name: str, sizes: tuple[int, int], x: Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"x: expected images [batch, height, width, channels], got the shape {x.shape}")
    if x.shape[1] < sizes[0] or x.shape[2] < sizes[1]:
        raise ValueError(f"{name}: expected at most the image's size {x.shape[1:3]}, got {sizes}")
