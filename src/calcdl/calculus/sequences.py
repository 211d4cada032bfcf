"""Limits of sequences from their first terms, by the acceleration that agrees best with itself.

The terms are read like the values of a function at infinity (`calcdl.calculus.shells`): in shells of terms whose
numbers grow by one factor, extrapolated in 1/n. Further candidates suit sequences: the terms n, n/2, n/4, ..., where
powers of 1/n stay apart best, and the last consecutive terms, for geometric and alternating convergence.
`partial_sums`, `partial_products` and `iterates` make sequences.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from calcdl.calculus.shells import Candidate, Others, Shells, into_shells, neville_weights, polynomial, read, shanks
from calcdl.calculus.verdicts import Approach, verdict_of
from calcdl.types import Array

_FEWEST = 24
_CONSECUTIVE = 24


def sequence_limit(
    terms: Float[Array, " terms"], *, start: int = 1, noise: Float[Array, ""] | float | None = None
) -> Approach:
    """Measure the limit of a sequence from consecutive terms.

    Args:
        terms: a_start, a_{start+1}, ...; at least 24, and some hundreds where convergence is like a power of 1/n.
        start: number n of the first term; extrapolation is in powers of 1/n.
        noise: round-off of a term. By default what eighth differences show, at least 8 units in the last place of the
            largest term.

    Returns:
        An `Approach`; its points are the numbers n. Sums that grow like log(log(n)) are "not decided".

    Raises:
        ValueError: terms is no vector of at least 24 numbers, or start is less than 0, or noise is negative.

    Example:
        >>> found = sequence_limit(partial_sums(lambda k: 1 / k**2, 1, 400))
        >>> abs(float(found.value) - math.pi**2 / 6) <= float(found.error) < 1e-3, found.verdict
        (True, 'converges')
        >>> sequence_limit((-1.0) ** jnp.arange(100)).verdict
        'does not exist: the values oscillate'

    Reference:
        Weniger, Nonlinear sequence transformations, 1989.
    """
    terms = jnp.asarray(terms)
    if terms.ndim != 1 or len(terms) < _FEWEST:
        raise ValueError(f"terms must be a vector of at least {_FEWEST} numbers, got shape {terms.shape}")
    if start < 0:
        raise ValueError(f"start must be the number of the first term, at least 0, got {start}")
    if isinstance(noise, float | int) and not noise >= 0:
        raise ValueError(f"noise must be at least 0, got {noise}")
    terms = terms.astype(jnp.promote_types(terms.dtype, jnp.float32))
    rough = _noise(terms) if noise is None else jnp.asarray(noise, terms.dtype)
    rough = jnp.broadcast_to(rough, terms.shape)
    numbers = jnp.arange(start, start + len(terms)).astype(terms.dtype)
    value, error, status = _judge(terms, rough, start)
    return Approach(value, error, status, numbers, terms, rough)


@functools.partial(jax.jit, static_argnums=2)
def _judge(terms: Array, noise: Array, start: int) -> tuple[Array, Array, Array]:
    nodes = _nodes(len(terms), start)
    numbers, rows = nodes + start, _rows(nodes)
    main = into_shells(terms[rows], noise[rows], reach=True)
    nothing = Shells(*(part[:1] for part in main))._replace(top=jnp.full(1, jnp.inf, terms.dtype))
    halves = _halves(len(terms), start)
    found: list[Candidate] = []
    for part in (halves, np.arange(len(terms) - _CONSECUTIVE, len(terms))):
        few = into_shells(terms[part][:, None], noise[part][:, None])
        shell = jnp.asarray(np.searchsorted(nodes, part).clip(max=len(nodes) - 1))
        each = [shanks(few)]
        if part is halves:
            each.append(polynomial(few, jnp.asarray(neville_weights(1 / (part + start)), terms.dtype)))
        else:
            each = [each[0]._replace(error=jnp.where(_creeps(terms, noise), jnp.inf, each[0].error))]
        found += [Candidate(one.value, one.error, shell[one.end]) for one in each]
    weights = jnp.asarray(neville_weights(1 / np.maximum(numbers, 0.5)), terms.dtype)
    reading = read(main, weights, nothing, Others(tuple(found), terms[halves[:-5:-1]], 3 / len(terms)))
    overflows = jnp.any(jnp.isinf(terms))
    reading = reading._replace(settled=reading.settled & ~overflows)
    hollow = jnp.any(jnp.isnan(terms[2 * len(terms) // 3 :])) & ~overflows
    return verdict_of(reading, reading, hollow)


def _creeps(terms: Array, noise: Array) -> Array:
    """Return whether the last terms move one way, hardly less each time, and by little more than their round-off."""
    first, middle, before, last = terms[-24], terms[-13], terms[-2], terms[-1]
    moved = jnp.abs(last - middle)
    one_way = moved > 3 * jnp.abs(last - before)
    return one_way & (moved > 0.5 * jnp.abs(middle - first)) & (moved < 1e3 * noise[-1])


def _nodes(count: int, start: int) -> np.ndarray[Any, Any]:
    """Return the last index of each shell; the numbers n grow by one factor as well as whole numbers can."""
    most = 24 if count >= 200 else 12
    first = max(start, 2)
    while True:
        last = start + count - 1
        numbers = np.unique(np.round(np.geomspace(first, last, most)).astype(int))
        if len(numbers) == most:
            return numbers - start
        first += 1
        if first > last - most:
            most -= 3


def _rows(nodes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the indices of each shell's terms, the first of them repeated to fill the row."""
    widths = np.diff(nodes, prepend=nodes[0] - 1)
    back = np.arange(widths.max())[::-1]
    rows: np.ndarray[Any, Any] = nodes[:, None] - np.minimum(back[None, :], widths[:, None] - 1)
    return rows


def _halves(count: int, start: int) -> np.ndarray[Any, Any]:
    """Return the indices of terms whose numbers double exactly, up to the last such number."""
    last = start + count - 1
    doublings = max(int(math.log2(last / max(start, 4))), 4)
    unit = max(last >> doublings, 1)
    numbers = unit * 2 ** np.arange(doublings + 1)
    return numbers[(numbers <= last) & (numbers >= max(start, 1))] - start


def _noise(terms: Array) -> Array:
    """Return the round-off that differences show which leave nothing of smooth or alternating terms."""
    last = terms[-24:]
    for _ in range(4):
        last = last[2:] - last[:-2]
    size = jax.lax.cummax(jnp.abs(jnp.where(jnp.isfinite(terms), terms, 0)))
    unit = float(np.finfo(terms.dtype).eps) * size
    seen = jnp.where(jnp.isfinite(last), jnp.abs(last), 0)
    # The norm of these differences is 8.4; no computation of a term is expected to err by more than n units.
    return jnp.clip(
        jnp.max(seen) / 2 * (size / jnp.where(size[-1] == 0, 1, size[-1])), 8 * unit, 16 * len(terms) * unit
    )


def partial_sums(term: Callable[[Array], Any], start: int, count: int, *, dtype: Any = float) -> Array:
    """Return `s_n = Σ term(k)` for k from start to n, and n from start on.

    Args:
        term: the summand, of the number k as a floating scalar.
        start: the first k.
        count: how many sums.
        dtype: of k.

    Raises:
        ValueError: count is less than 1.

    Example:
        >>> partial_sums(lambda k: 1 / 2**k, 0, 4).tolist()
        [1.0, 1.5, 1.75, 1.875]
    """
    return jnp.cumsum(_terms(term, start, count, dtype))


def partial_products(factor: Callable[[Array], Any], start: int, count: int, *, dtype: Any = float) -> Array:
    """Return `p_n = Π factor(k)` for k from start to n, and n from start on.

    Args:
        factor: of the number k as a floating scalar.
        start: the first k.
        count: how many products.
        dtype: of k.

    Raises:
        ValueError: count is less than 1.

    Example:
        >>> partial_products(lambda k: 1 + 1 / k, 1, 4).tolist()
        [2.0, 3.0, 4.0, 5.0]
    """
    return jnp.cumprod(_terms(factor, start, count, dtype))


def iterates(step: Callable[[Array], Any], start: Float[Array, ""] | float, count: int) -> Array:
    """Return `x_1, x_2, ...` of the recursion `x_{n+1} = step(x_n)`.

    Args:
        step: the map.
        start: x_0, which is not returned.
        count: how many.

    Raises:
        ValueError: count is less than 1.

    Example:
        >>> iterates(lambda x: x / 2, 1.0, 3).tolist()
        [0.5, 0.25, 0.125]
    """
    _check_count(count)
    first = jnp.asarray(start, jnp.promote_types(jnp.result_type(start, 1.0), jnp.float32))

    def move(value: Array, _: None) -> tuple[Array, Array]:
        value = jnp.asarray(step(value), first.dtype)
        return value, value

    return jax.lax.scan(move, first, None, length=count)[1]


def _terms(term: Callable[[Array], Any], start: int, count: int, dtype: Any) -> Array:
    _check_count(count)
    return jnp.asarray(jax.vmap(term)(jnp.arange(start, start + count).astype(dtype)))


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
