"""Data made from a key: lines, sines, spirals, mixtures, and the answers of a random teacher network.

Each function returns `(features, targets)` as jax arrays with one row an example, is a pure function of its
key, and works under `jit` and `vmap` (the number of rows is static; slope, noise and the like may be traced).
The draws have the dtype asked for, whatever the global default is. `jax.random.fold_in(key, k)` with
`calcdl.data.fresh` makes them a stream.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from calcdl.types import Array, Key

Number = Array | float


def line(
    key: Key,
    rows: int,
    slope: Number = 2.0,
    intercept: Number = 1.0,
    noise: Number = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "rows 1"], Float[Array, " rows"]]:
    r"""Draw points on a line, with normal inputs and normal noise.

    $$ y = \text{slope} \cdot x + \text{intercept} + \text{noise} \cdot \varepsilon, \quad x, \varepsilon \sim
    N(0, 1) $$

    Args:
        key: a jax random key.
        rows: number of points.
        slope: targets per unit of the input.
        intercept: target at input 0.
        noise: standard deviation of the noise, in the target's unit.
        dtype: floating dtype of both arrays.

    Returns:
        Inputs of shape (rows, 1) and targets of shape (rows,).

    Example:
        >>> x, y = line(jax.random.key(0), 5)
        >>> bool(jnp.allclose(y, 2 * x[:, 0] + 1))
        True
    """
    input_key, noise_key = jax.random.split(key)
    x = jax.random.normal(input_key, (rows,), dtype)
    y = _cast(slope, dtype) * x + _cast(intercept, dtype) + _noise(noise_key, rows, noise, dtype)
    return x[:, None], y


def sines(
    key: Key,
    rows: int,
    frequencies: tuple[Number, ...] = (1.0,),
    noise: Number = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "rows 1"], Float[Array, " rows"]]:
    r"""Draw points on a sum of sines, with uniform inputs on [-1, 1).

    $$ y = \sum_f \sin(2 \pi f x) + \text{noise} \cdot \varepsilon $$

    Args:
        key: a jax random key.
        rows: number of points.
        frequencies: periods per unit of the input, one a sine.
        noise: standard deviation of the noise, in the target's unit.
        dtype: floating dtype of both arrays.

    Returns:
        Inputs of shape (rows, 1) and targets of shape (rows,).

    Raises:
        ValueError: no frequency is given.

    Example:
        >>> x, y = sines(jax.random.key(0), 5, frequencies=(1.0, 3.0))
        >>> bool(jnp.allclose(y, jnp.sin(2 * jnp.pi * x[:, 0]) + jnp.sin(6 * jnp.pi * x[:, 0]), atol=1e-5))
        True
    """
    if not frequencies:
        raise ValueError("frequencies: expected at least one, got an empty tuple")
    input_key, noise_key = jax.random.split(key)
    x = jax.random.uniform(input_key, (rows,), dtype, -1.0, 1.0)
    y = _noise(noise_key, rows, noise, dtype)
    for frequency in frequencies:
        y = y + jnp.sin(2 * jnp.pi * _cast(frequency, dtype) * x)
    return x[:, None], y


def spirals(
    key: Key,
    rows: int,
    classes: int = 2,
    turns: Number = 1.0,
    noise: Number = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "rows 2"], Int[Array, " rows"]]:
    r"""Draw points on interleaved spirals, one a class, in the unit disc.

    $$ (x, y) = r (\cos\varphi, \sin\varphi) + \text{noise} \cdot \varepsilon, \quad
       \varphi = 2\pi (\text{turns} \cdot r + \text{label} / \text{classes}), \quad r^2 \sim U(0, 1) $$

    Labels run round and round, so the classes differ by at most one row; the density is even along the radius
    squared.

    Args:
        key: a jax random key.
        rows: number of points.
        classes: number of spirals, at least 2.
        turns: full turns from the centre to the rim.
        noise: standard deviation of the noise on each coordinate, in radii of the disc.
        dtype: floating dtype of the points.

    Returns:
        Points of shape (rows, 2) and int32 labels 0..classes-1 of shape (rows,).

    Raises:
        ValueError: fewer than two classes.

    Example:
        >>> points, labels = spirals(jax.random.key(0), 6, classes=3)
        >>> labels.tolist(), bool(jnp.all(jnp.linalg.norm(points, axis=1) < 1))
        ([0, 1, 2, 0, 1, 2], True)
    """
    if classes < 2:
        raise ValueError(f"classes: expected at least 2, got {classes}")
    radius_key, noise_key = jax.random.split(key)
    labels = jnp.arange(rows, dtype=jnp.int32) % classes
    radius = jnp.sqrt(jax.random.uniform(radius_key, (rows,), dtype))
    angle = 2 * jnp.pi * (_cast(turns, dtype) * radius + labels.astype(dtype) / classes)
    points = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return points + _cast(noise, dtype) * jax.random.normal(noise_key, (rows, 2), dtype), labels


def centres(layout: str, modes: int, radius: Number = 1.0, dtype: DTypeLike = jnp.float32) -> Float[Array, "modes 2"]:
    r"""Place the centres of a mixture evenly on a circle, or on a square grid.

    $$ \text{ring: } r (\cos 2\pi k / m, \sin 2\pi k / m), \qquad \text{grid: } \{-r, \dots, r\}^2 $$

    Args:
        layout: a key of `LAYOUTS`.
        modes: their number m, at least 2; for a grid a square.
        radius: r, of the circle, or half a side of the grid; may be traced.
        dtype: floating dtype.

    Returns:
        The centres.

    Raises:
        ValueError: an unknown layout, or a number that does not fit it.

    Example:
        >>> centres("grid", 9, 2.0)[0].tolist()
        [-2.0, -2.0]
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    if modes < 2:
        raise ValueError(f"modes: expected at least 2, got {modes}")
    return _cast(radius, dtype) * LAYOUTS[layout](modes, dtype)


def mixture(
    key: Key,
    rows: int,
    layout: str = "ring",
    modes: int = 8,
    radius: Number = 1.0,
    noise: Number = 0.05,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "rows 2"], Int[Array, " rows"]]:
    r"""Draw points of a mixture of equally likely normal distributions in the plane.

    $$ x = c_k + \text{noise} \cdot \varepsilon, \quad k \sim U\{0, \dots, m - 1\}, \quad \varepsilon \sim N(0, 1) $$

    Args:
        key: a jax random key.
        rows: number of points.
        layout: where the centres c lie, a key of `LAYOUTS`.
        modes: their number m; for a grid a square.
        radius: as of `centres`.
        noise: standard deviation of each coordinate within a mode.
        dtype: floating dtype of the points.

    Returns:
        Points of shape (rows, 2), and int32 numbers of their modes of shape (rows,).

    Raises:
        ValueError: as `centres`.

    Example:
        >>> points, labels = mixture(jax.random.key(0), 100, "ring", 8, noise=0.0)
        >>> bool(jnp.allclose(points, centres("ring", 8)[labels])), len(set(labels.tolist()))
        (True, 8)
    """
    mode_key, noise_key = jax.random.split(key)
    places = centres(layout, modes, radius, dtype)
    labels = jax.random.randint(mode_key, (rows,), 0, modes, jnp.int32)
    return places[labels] + _cast(noise, dtype) * jax.random.normal(noise_key, (rows, 2), dtype), labels


def teacher_student(
    key: Key,
    rows: int,
    features: int = 10,
    hidden: int = 4,
    noise: Number = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "rows features"], Float[Array, " rows"]]:
    r"""Draw normal inputs, and as targets the answers of a random network with one hidden layer of tanh.

    $$ y = v^\top \tanh(W x / \sqrt{\text{features}}) / \sqrt{\text{hidden}} + \text{noise} \cdot \varepsilon,
       \quad W, v, x, \varepsilon \sim N(0, 1) $$

    The teacher depends on the key but not on the number of rows. A student of the same shape can reach the
    noise floor.

    Args:
        key: a jax random key.
        rows: number of examples.
        features: inputs of the teacher.
        hidden: its hidden units.
        noise: standard deviation of the noise, in the target's unit.
        dtype: floating dtype of both arrays.

    Returns:
        Inputs of shape (rows, features) and targets of shape (rows,).

    Example:
        >>> x, y = teacher_student(jax.random.key(0), 100)
        >>> x.shape, y.shape
        ((100, 10), (100,))

    Reference:
        Saad and Solla, "On-line learning in soft committee machines", Physical Review E 52 (1995), section
        II.
    """
    hidden_key, output_key, input_key, noise_key = jax.random.split(key, 4)
    weights = jax.random.normal(hidden_key, (features, hidden), dtype)
    output = jax.random.normal(output_key, (hidden,), dtype)
    x = jax.random.normal(input_key, (rows, features), dtype)
    answers = jnp.tanh(x @ weights / features**0.5) @ output / hidden**0.5
    return x, answers + _noise(noise_key, rows, noise, dtype)


def _cast(value: Number, dtype: DTypeLike) -> Array:
    return jnp.asarray(value, dtype)


def _noise(key: Key, rows: int, scale: Number, dtype: DTypeLike) -> Array:
    return _cast(scale, dtype) * jax.random.normal(key, (rows,), dtype)


def _ring(modes: int, dtype: DTypeLike) -> Array:
    angle = 2 * jnp.pi * jnp.arange(modes, dtype=dtype) / modes
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def _grid(modes: int, dtype: DTypeLike) -> Array:
    side = math.isqrt(modes)
    if side**2 != modes:
        raise ValueError(f"modes: expected a square number for a grid, got {modes}")
    across, up = jnp.meshgrid(*[jnp.linspace(-1, 1, side, dtype=dtype)] * 2)
    return jnp.stack([across.ravel(), up.ravel()], axis=1)


LAYOUTS: dict[str, Callable[[int, DTypeLike], Array]] = {"ring": _ring, "grid": _grid}
