"""Aliases and records that every room shares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Float

Array = jax.Array
Key = jax.Array
Scalar = Float[jax.Array, ""]
Params = Any
Objective = Callable[[Params], Scalar]
Probe = Callable[[Objective, Params, Any], Any]


class DataError(ValueError):
    """The data, not the configuration, are at fault."""


class Verdict(NamedTuple):
    """A measured number against a stated bound.

    Attributes:
        claim: the sentence under test.
        holds: whether the measurement supports it.
        value: the measured number.
        threshold: the bound it was held against.
        evidence: where the number comes from, in a sentence.
    """

    claim: str
    holds: bool
    value: float
    threshold: float
    evidence: str
