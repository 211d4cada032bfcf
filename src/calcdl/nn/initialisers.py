"""Initialisers: how the weights start.

Each is `(key, shape, gain=1.0, dtype=float32) -> weights`, where shape = (fan_in, fan_out), gain is a factor on the
weights and may be traced, and dtype is floating; a bad shape or a gain that is not finite raises ValueError, another
dtype TypeError. The shape of a convolution is (kernel sizes.., inputs, outputs): its fan_in is the kernel's size times
inputs, its fan_out the kernel's size times outputs. A weight has mean 0 and variance gain² v, and v sets how much of
the signal a wide layer keeps:

| name | v | at gain 1 it keeps |
|---|---|---|
| lecun | 1 / fan_in | the signal through a linear layer |
| glorot | 2 / (fan_in + fan_out) | signal and gradient through a linear layer, in the mean of the two |
| he | 2 / fan_in | the signal through a relu layer |
| orthogonal | 1 / max(fan_in, outputs) | the length of each vector through a linear layer |
| delta_orthogonal | 1 / max(inputs, outputs) at the centre, else 0 | the length of each pixel through a linear layer |

Normal draws are not truncated, so the variance is what the table says. `theory.meanfield.gain` computes the gain that
an activation asks for. The same key gives the same float32 weights whether float64 is enabled or not.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.types import Array, Key

Shape = tuple[int, ...]
Gain = Float[Array, ""] | float
Initialiser = Callable[..., Array]


def zeros(key: Key, shape: Shape, gain: Gain = 1.0, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Zeros of any shape; with these alone all units of a layer stay equal.

    `w = 0`

    >>> print(zeros(jax.random.key(0), (3,)))
    [0. 0. 0.]
    """
    del key, gain
    return jnp.zeros(_sizes(shape), _floating(dtype))


def constant(key: Key, shape: Shape, gain: Gain = 1.0, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """One number everywhere, in any shape.

    `w = gain`

    >>> print(constant(jax.random.key(0), (3,), 0.5))
    [0.5 0.5 0.5]
    """
    del key
    return jnp.broadcast_to(_factor(gain, 1.0, dtype), _sizes(shape))


def normal(key: Key, shape: Shape, gain: Gain = 1.0, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Independent normal weights of any shape; in wide layers the signal explodes unless the gain is small.

    `w ~ N(0, gain²)`

    >>> normal(jax.random.key(0), (3, 2), 0.01).shape
    (3, 2)
    """
    return _normal(key, _sizes(shape), 1.0, gain, dtype)


def lecun_normal(key: Key, shape: Shape, gain: Gain = 1.0, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Independent normal weights that keep the signal through a linear layer.

    `w ~ N(0, gain² / fan_in)`

    >>> lecun_normal(jax.random.key(0), (3, 2)).shape
    (3, 2)

    Reference: LeCun, Bottou, Orr and Müller 1998, Efficient BackProp, section 4.6.
    """
    fan_in, _ = _fans(shape)
    return _normal(key, shape, 1 / fan_in, gain, dtype)


def lecun_uniform(key: Key, shape: Shape, gain: Gain = 1.0, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Independent uniform weights that keep the signal through a linear layer.

    `w ~ U(-a, a)`,  `a = gain sqrt(3 / fan_in)`

    >>> bool(jnp.all(jnp.abs(lecun_uniform(jax.random.key(0), (3, 2))) <= 1))
    True

    Reference: LeCun, Bottou, Orr and Müller 1998, Efficient BackProp, section 4.6.
    """
    fan_in, _ = _fans(shape)
    return _uniform(key, shape, 1 / fan_in, gain, dtype)


def glorot_normal(key: Key, shape: Shape, gain: Gain = 1.0, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Independent normal weights between what keeps the signal and what keeps the gradient of a linear layer.

    `w ~ N(0, 2 gain² / (fan_in + fan_out))`

    >>> glorot_normal(jax.random.key(0), (3, 2)).shape
    (3, 2)

    Reference: Glorot and Bengio 2010, Understanding the difficulty of training deep networks, eq. 12.
    """
    return _normal(key, shape, 2 / sum(_fans(shape)), gain, dtype)


def glorot_uniform(key: Key, shape: Shape, gain: Gain = 1.0, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Independent uniform weights between what keeps the signal and what keeps the gradient of a linear layer.

    `w ~ U(-a, a)`,  `a = gain sqrt(6 / (fan_in + fan_out))`

    >>> bool(jnp.all(jnp.abs(glorot_uniform(jax.random.key(0), (3, 3))) <= 1))
    True

    Reference: Glorot and Bengio 2010, Understanding the difficulty of training deep networks, eq. 16.
    """
    return _uniform(key, shape, 2 / sum(_fans(shape)), gain, dtype)


def he_normal(key: Key, shape: Shape, gain: Gain = 1.0, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Independent normal weights that keep the signal through a relu layer.

    `w ~ N(0, 2 gain² / fan_in)`

    >>> he_normal(jax.random.key(0), (3, 2)).shape
    (3, 2)

    Reference: He et al. 2015, arXiv:1502.01852, eq. 10.
    """
    fan_in, _ = _fans(shape)
    return _normal(key, shape, 2 / fan_in, gain, dtype)


def he_uniform(key: Key, shape: Shape, gain: Gain = 1.0, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Independent uniform weights that keep the signal through a relu layer.

    `w ~ U(-a, a)`,  `a = gain sqrt(6 / fan_in)`

    >>> bool(jnp.all(jnp.abs(he_uniform(jax.random.key(0), (6, 2))) <= 1))
    True

    Reference: He et al. 2015, arXiv:1502.01852, eq. 10.
    """
    fan_in, _ = _fans(shape)
    return _uniform(key, shape, 2 / fan_in, gain, dtype)


def orthogonal(key: Key, shape: Shape, gain: Gain = 1.0, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Weights drawn evenly from the matrices with orthonormal rows or columns, whichever are fewer.

    `Wᵀ W = gain² I` where fan_in ≥ fan_out, else `W Wᵀ = gain² I`

    >>> weights = orthogonal(jax.random.key(0), (4, 2), 3.0)
    >>> print((weights.T @ weights).round(3))
    [[ 9. -0.]
     [-0.  9.]]

    Of a convolution the kernel is taken as one matrix from all its inputs, (kernel's size times inputs, outputs).

    Reference: Saxe, McClelland and Ganguli 2014, arXiv:1312.6120, section 3; the signs, which QR leaves open, as in
    Mezzadri 2007, How to generate random matrices from the classical compact groups, section 5.
    """
    fan_in, _ = _fans(shape)
    fan_out = shape[-1]
    # There is no factorisation in half precision.
    working = jnp.promote_types(_floating(dtype), jnp.float32)
    tall = jax.random.normal(key, (max(fan_in, fan_out), min(fan_in, fan_out)), working)
    columns, triangle = jnp.linalg.qr(tall)
    columns = columns * jnp.where(jnp.diagonal(triangle) < 0, -1, 1)[None, :]
    weights = (columns if fan_in >= fan_out else columns.T).astype(dtype)
    return _factor(gain, 1.0, dtype) * weights.reshape(shape)


def delta_orthogonal(key: Key, shape: Shape, gain: Gain = 1.0, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Zero kernels but for an orthogonal matrix at their centre, so that every pixel starts on its own.

    `w_{uv} = 0` but at the centre, u = (rows - 1) // 2 and so on, where it is `orthogonal`

    A matrix, (fan_in, fan_out), is its own centre: a convolutional network draws its read-out so too.

    >>> print(delta_orthogonal(jax.random.key(0), (3, 1, 1))[:, 0, 0] ** 2)
    [0. 1. 0.]

    Reference: Xiao et al. 2018, arXiv:1806.05393, algorithm 1.
    """
    _fans(shape)
    *kernel, inputs, outputs = shape
    centre = tuple((size - 1) // 2 for size in kernel)
    return jnp.zeros(shape, dtype).at[centre].set(orthogonal(key, (inputs, outputs), gain, dtype))


def _sizes(shape: Shape) -> Shape:
    sizes = tuple(operator.index(size) for size in shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape must not have negative sizes, got {sizes}")
    return sizes


def _fans(shape: Shape) -> tuple[int, int]:
    sizes = _sizes(shape)
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"shape must be (fan_in, fan_out), or (kernel sizes.., inputs, outputs), all at least 1, got {sizes}"
        )
    *kernel, inputs, outputs = sizes
    return math.prod(kernel) * inputs, math.prod(kernel) * outputs


def _floating(dtype: Any) -> Any:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be floating point, got {jnp.dtype(dtype)}; valid: float32, float64, bfloat16")
    return jnp.dtype(dtype)


def _factor(gain: Gain, scale: float, dtype: Any) -> Array:
    if isinstance(gain, float | int) and not math.isfinite(gain):
        raise ValueError(f"gain must be finite, got {gain}")
    return jnp.asarray(gain, _floating(dtype)) * jnp.asarray(scale, dtype)


def _normal(key: Key, shape: Shape, variance: float, gain: Gain, dtype: Any) -> Array:
    factor = _factor(gain, math.sqrt(variance), dtype)
    return factor * jax.random.normal(key, shape, dtype)


def _uniform(key: Key, shape: Shape, variance: float, gain: Gain, dtype: Any) -> Array:
    factor = _factor(gain, math.sqrt(3 * variance), dtype)
    return factor * jax.random.uniform(key, shape, dtype, -1, 1)


INITIALISERS: dict[str, Initialiser] = {
    "zeros": zeros,
    "constant": constant,
    "normal": normal,
    "lecun_normal": lecun_normal,
    "lecun_uniform": lecun_uniform,
    "glorot_normal": glorot_normal,
    "glorot_uniform": glorot_uniform,
    "he_normal": he_normal,
    "he_uniform": he_uniform,
    "orthogonal": orthogonal,
    "delta_orthogonal": delta_orthogonal,
}
