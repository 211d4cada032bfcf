r"""Networks: layers put together, after one equation.

    h_1 = x W_1 + b_1
    h_l = s h_{l-1} + α (φ(N(h_{l-1})) W_l + b_l),    l = 2 .. L
    y = φ(N(h_L)) W + b

φ is the activation. N is a normalisation, or the identity. Without a residual connection s = 0 and α = 1; with one
s = 1, and α scales what each layer adds to the stream h.

The weights of equal layers lie in one array, and a scan runs over it, so that compile time does not grow with depth.

To look inside, hand in a `tap`, a function of (value, name) that returns the value, such as `diagnostics.tap`. Of every
hidden layer it is given

| name | value |
|---|---|
| where.preactivation | h_l, the stream |
| where.branch | h_l once more, on its way into N: its gradient is without what the residual connection carries |
| where.normalised | N(h_l) |
| where.activated | φ(N(h_l)) |

where `where` is "first" for layer 1 and, inside the scan, "hidden" for all further ones together; in a `convnet`,
which is not scanned, "layer_1", "layer_2" and so on.

Reference: He et al. 2016, arXiv:1603.05027, for N before φ before W.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from calcdl.nn.activations import Activation
from calcdl.nn.initialisers import Initialiser
from calcdl.nn.layers import Layer, convolution, dense, max_pool
from calcdl.nn.normalisation import Normalisation, no_norm
from calcdl.types import Array, Key, Params

Normaliser = Callable[..., Normalisation]
TapOf = Callable[[Array, str], Array]


class Network(NamedTuple):
    """A layer made of layers.

    Attributes:
        init: ``(key, shape of one input) -> params``.
        apply: ``(params, x, statistics=None) -> y``; the statistics, where given, take the place of the batch's own.
        statistics: ``(params, x) -> statistics``: a tree of the `Statistics` of its batch normalisations, empty
            without any.
    """

    init: Callable[[Key, tuple[int, ...]], Params]
    apply: Callable[..., Array]
    statistics: Callable[[Params, Array], dict[str, Any]]


def untapped(x: Array, name: str) -> Array:
    """Look at nothing: the tap that networks have when none is given.

    >>> float(untapped(jnp.float32(2.0), "first.preactivation"))
    2.0
    """
    del name
    return x


def stack(
    depth: int,
    width: int,
    outputs: int,
    activation: Activation,
    initialiser: Initialiser,
    gain: Any = 1.0,
    dtype: Any = jnp.float32,
    *,
    normalisation: Normaliser | None = None,
    residual: Any = None,
    tap: TapOf = untapped,
) -> Network:
    """Make `depth` equal hidden layers and a linear read-out.

    `h_1 = x W_1 + b_1`,  `h_l = s h_{l-1} + α (φ(N(h_{l-1})) W_l + b_l)`,  `y = φ(N(h_L)) W + b`;
    for depth 0, `y = x W + b`

    Args:
        depth: number L of hidden layers, 0 or more.
        width: units of every hidden layer.
        outputs: units of the read-out.
        activation: φ; a learned slope becomes one parameter a layer.
        initialiser: how the weights of all layers are drawn; biases are 0 at first.
        gain: factor of the hidden weights; may be traced.
        dtype: of the parameters.
        normalisation: makes N, a member of `NORMALISATIONS`; None for the identity.
        residual: α, and s = 1: 1 for a plain residual connection, 1/sqrt(depth) for one under which the stream stays of
            one size at any depth; may be traced. None for none: s = 0 and α = 1.
        tap: what looks inside, as the module says.

    Returns:
        The network, which takes images as rows of pixels. Its parameters are ``{"first": ..., "hidden": ...,
        "readout": ...}``, where ``"hidden"`` holds layers 2 to L along a leading axis and what does not exist is left
        out. A hidden layer has ``"weight"`` and ``"bias"``, and where they are learned ``"slope"`` and
        ``"normalisation"``.

    Raises:
        ValueError: a negative depth, a width or number of outputs below 1, a residual that is no finite number.

    Example:
        >>> from calcdl.nn.activations import ACTIVATIONS
        >>> from calcdl.nn.initialisers import INITIALISERS
        >>> network = stack(3, 8, 2, ACTIVATIONS["relu"], INITIALISERS["he_normal"])
        >>> params = network.init(jax.random.key(0), (4,))
        >>> params["hidden"]["weight"].shape, network.apply(params, jnp.ones((5, 4))).shape
        ((2, 8, 8), (5, 2))
    """
    _check_sizes(depth=depth, width=width, outputs=outputs)
    block = _block(dense(width, initialiser, gain, dtype), activation, normalisation, residual, tap, dtype)
    return _scanned(depth, width, block, dense(outputs, initialiser, 1.0, dtype), rows_of=_as_rows)


def convolutional_stack(
    depth: int,
    channels: int,
    outputs: int,
    activation: Activation,
    initialiser: Initialiser,
    gain: Any = 1.0,
    dtype: Any = jnp.float32,
    *,
    kernel: int | tuple[int, int] = 3,
    normalisation: Normaliser | None = None,
    residual: Any = None,
    tap: TapOf = untapped,
) -> Network:
    """Make `depth` equal circular convolutions, a mean over the image, and a linear read-out.

    `h_1 = W_1 * x + b_1`,  `h_l = s h_{l-1} + α (W_l * φ(N(h_{l-1})) + b_l)`,  `y = mean_{ij} φ(N(h_L))_{ij} W + b`

    Circular padding makes all places of the image equal, as mean-field theory has them.

    Args:
        depth: number L of hidden layers, 0 or more.
        channels: of every hidden layer.
        outputs: units of the read-out.
        activation: φ; a learned slope becomes one parameter a layer.
        initialiser: how the weights of all layers are drawn; biases are 0 at first.
        gain: factor of the hidden weights; may be traced.
        dtype: of the parameters.
        kernel: rows and columns of the kernel, or one number for both.
        normalisation: as of `stack`; batch normalisation averages over examples and places.
        residual: as of `stack`.
        tap: as of `stack`.

    Returns:
        The network, of images [batch, height, width, channels]; parameters are laid out as those of `stack`.

    Raises:
        ValueError: as `stack`, and a kernel below 1.

    Example:
        >>> from calcdl.nn.activations import ACTIVATIONS
        >>> from calcdl.nn.initialisers import INITIALISERS
        >>> network = convolutional_stack(3, 8, 2, ACTIVATIONS["tanh"], INITIALISERS["delta_orthogonal"])
        >>> params = network.init(jax.random.key(0), (6, 6, 1))
        >>> params["hidden"]["weight"].shape, network.apply(params, jnp.ones((5, 6, 6, 1))).shape
        ((2, 3, 3, 8, 8), (5, 2))
    """
    _check_sizes(depth=depth, channels=channels, outputs=outputs)
    layer = convolution(channels, initialiser, gain, dtype, kernel=kernel, padding="circular")
    block = _block(layer, activation, normalisation, residual, tap, dtype)
    return _scanned(depth, channels, block, dense(outputs, initialiser, 1.0, dtype), pooled=_image_mean)


def convnet(
    depth: int,
    channels: int,
    outputs: int,
    activation: Activation,
    initialiser: Initialiser,
    gain: Any = 1.0,
    dtype: Any = jnp.float32,
    *,
    kernel: int | tuple[int, int] = 3,
    pool: int = 2,
    normalisation: Normaliser | None = None,
    tap: TapOf = untapped,
) -> Network:
    """Make a small network for images: convolution, normalisation, activation and pooling, again and again.

    `h_l = W_l * z_{l-1} + b_l`,  `z_l = max_pool(φ(N(h_l)))`,  `y = z_L W + b`, of all places of z_L

    Args:
        depth: convolutions, 0 or more.
        channels: of every convolution.
        outputs: units of the read-out.
        activation: φ; a learned slope becomes one parameter a layer.
        initialiser: how the weights of all layers are drawn; biases are 0 at first.
        gain: factor of the convolutions' weights; may be traced.
        dtype: of the parameters.
        kernel: rows and columns of the kernels, or one number for both; what lies outside of the image is 0.
        pool: rows and columns of the windows that are pooled, while the image is not smaller; 1 for no pooling.
        normalisation: as of `stack`.
        tap: as of `stack`, with the names "layer_1.preactivation" and so on.

    Returns:
        The network, of images [batch, height, width, channels]; parameters ``{"layer_1": ..., "readout": ...}``.

    Raises:
        ValueError: sizes below 1.

    Example:
        >>> from calcdl.nn.activations import ACTIVATIONS
        >>> from calcdl.nn.initialisers import INITIALISERS
        >>> network = convnet(2, 4, 10, ACTIVATIONS["relu"], INITIALISERS["he_normal"])
        >>> params = network.init(jax.random.key(0), (8, 8, 1))
        >>> params["readout"]["weight"].shape, network.apply(params, jnp.ones((5, 8, 8, 1))).shape
        ((16, 10), (5, 10))
    """
    _check_sizes(depth=depth, channels=channels, outputs=outputs, pool=pool)
    layer = convolution(channels, initialiser, gain, dtype, kernel=kernel)
    block, readout = _block(layer, activation, normalisation, None, tap, dtype), dense(outputs, initialiser, 1.0, dtype)
    places = [f"layer_{position}" for position in range(1, depth + 1)]

    def init(key: Key, shape: tuple[int, ...]) -> dict[str, Any]:
        *keys, last = jax.random.split(key, depth + 1)
        params = {}
        for where, own in zip(places, keys, strict=True):
            params[where] = block.init(own, shape)
            rows, columns = (size // pool if min(shape[:2]) >= pool else size for size in shape[:2])
            shape = (rows, columns, channels)
        return {**params, "readout": readout.init(last, (math.prod(shape),))}

    def run(params: Params, x: Array, statistics: Mapping[str, Any], see: Callable[[Array], Any]) -> Any:
        seen = {}
        for where in places:
            (_, x), seen[where] = block.apply(where, params[where], (None, x), statistics.get(where), see)
            x = max_pool(x, pool) if pool > 1 and min(x.shape[1:3]) >= pool else x
        return readout.apply(params["readout"], _as_rows(x)), seen

    return Network(
        init,
        lambda params, x, statistics=None: run(params, x, statistics or {}, _nothing)[0],
        lambda params, x: _present(run(params, x, {}, block.statistics)[1]),
    )


class _Block(NamedTuple):
    """One hidden layer: ``apply(where, params, (stream, activated), statistics, see)`` takes both further."""

    init: Callable[[Key, tuple[int, ...]], dict[str, Any]]
    apply: Callable[..., tuple[tuple[Any, Array], Any]]
    statistics: Callable[[Array], Any]


def _block(
    layer: Layer, activation: Activation, normalisation: Normaliser | None, residual: Any, tap: TapOf, dtype: Any
) -> _Block:
    if isinstance(residual, bool | str) or (isinstance(residual, float | int) and not math.isfinite(residual)):
        raise ValueError(f"residual: expected None or a finite number, the scale of the branch, got {residual!r}")
    if isinstance(normalisation, str):
        raise ValueError(f"normalisation: expected a member of NORMALISATIONS, got the name {normalisation!r}")
    normalise = no_norm() if normalisation is None else normalisation(dtype=dtype)

    def init(key: Key, shape: tuple[int, ...]) -> dict[str, Any]:
        params = layer.init(key, shape)
        if activation.learned is not None:
            params = {**params, "slope": jnp.asarray(activation.learned, dtype)}
        own = normalise.init(key, params["bias"].shape)
        return {**params, "normalisation": own} if own else params

    def apply(
        where: str, params: Mapping[str, Any], carry: tuple[Any, Array], statistics: Any, see: Any
    ) -> tuple[tuple[Any, Array], Any]:
        stream, a = carry
        h = layer.apply(params, a)
        h = h if stream is None else stream + jnp.asarray(residual).astype(h.dtype) * h
        h = tap(h, f"{where}.preactivation")
        normalised = normalise.apply(params.get("normalisation", {}), tap(h, f"{where}.branch"), statistics)
        slope = () if activation.learned is None else (params["slope"],)
        a = activation.function(tap(normalised, f"{where}.normalised"), *slope)
        return (None if residual is None else h, tap(a, f"{where}.activated")), see(h)

    return _Block(init, apply, normalise.statistics)


def _scanned(
    depth: int,
    width: int,
    block: _Block,
    readout: Layer,
    *,
    rows_of: Callable[[Array], Array] = lambda x: x,
    pooled: Callable[[Array], Array] = lambda x: x,
) -> Network:
    def init(key: Key, shape: tuple[int, ...]) -> dict[str, Any]:
        first, hidden, last = jax.random.split(key, 3)
        one = jax.eval_shape(rows_of, jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape[1:]
        params: dict[str, Any] = {"readout": readout.init(last, (width if depth else one[-1],))}
        if depth >= 1:
            params["first"] = block.init(first, one)
        if depth >= 2:
            further = (*one[:-1], width)
            params["hidden"] = jax.vmap(lambda k: block.init(k, further))(jax.random.split(hidden, depth - 1))
        return params

    def run(params: Params, x: Array, statistics: Mapping[str, Any], see: Callable[[Array], Any]) -> tuple[Array, Any]:
        seen: dict[str, Any] = {}
        carry: Any = (None, rows_of(x))
        if depth >= 1:
            carry, seen["first"] = block.apply("first", params["first"], carry, statistics.get("first"), see)
        if depth >= 2:
            rows = (params["hidden"], statistics.get("hidden"))
            carry, seen["hidden"] = jax.lax.scan(
                lambda carry, row: block.apply("hidden", row[0], carry, row[1], see), carry, rows
            )
        return readout.apply(params["readout"], pooled(carry[1])), seen

    return Network(
        init,
        lambda params, x, statistics=None: run(params, x, statistics or {}, _nothing)[0],
        lambda params, x: _present(run(params, x, {}, block.statistics)[1]),
    )


def _nothing(h: Array) -> None:
    del h


def _present(seen: Mapping[str, Any]) -> dict[str, Any]:
    return {where: found for where, found in seen.items() if found is not None}


def _as_rows(x: Array) -> Array:
    return x.reshape(x.shape[0], -1) if x.ndim > 2 else x


def _image_mean(a: Array) -> Array:
    return jnp.mean(a, axis=(1, 2))


def _check_sizes(**sizes: Any) -> None:
    for name, value in sizes.items():
        least = 0 if name == "depth" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")


ARCHITECTURES: dict[str, Callable[..., Any]] = {
    "mlp": stack,
    "residual_mlp": partial(stack, residual=1.0),
    "convnet": convnet,
}
