"""The numbers that the theory is given: one check and one dtype for all of them."""

import math
from typing import Any

import jax.numpy as jnp

from calcdl.types import Array


def checked(**numbers: Any) -> tuple[Array, ...]:
    """Check the numbers that are not traced, and give all of them one dtype.

    A correlation may be negative; everything else, variances and lengths, may not.

    Raises:
        ValueError: a number is too small or not finite.

    Example:
        >>> [number.item() for number in checked(q=1, weight_variance=2.0)]
        [1.0, 2.0]
    """
    for name, value in numbers.items():
        least = -1 if name == "correlation" else 0
        if isinstance(value, float | int) and not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name} must be finite and at least {least}, got {value}")
    dtype = jnp.promote_types(jnp.result_type(*numbers.values(), 1.0), jnp.float32)
    return tuple(jnp.asarray(number, dtype) for number in numbers.values())
