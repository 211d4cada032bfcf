import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln

from calcdl.calculus import limits
from calcdl.calculus.sequences import iterates, partial_products, partial_sums, sequence_limit

MISSING = "does not exist"


def sums(term, start=1):
    return lambda count, dtype: partial_sums(term, start, count, dtype=dtype)


def numbers(function, start=1):
    return lambda count, dtype: function(jnp.arange(start, start + count).astype(dtype))


def steps(step, start):
    return lambda count, dtype: iterates(step, dtype(start), count)


def harmonic_less_log(count, dtype):
    return partial_sums(lambda k: 1 / k, 1, count, dtype=dtype) - jnp.log(jnp.arange(1, count + 1).astype(dtype))


TRUTHS = {
    "basel": sums(lambda k: 1 / k**2),
    "leibniz": sums(lambda k: 4 * (-1) ** k / (2 * k + 1), 0),
    "wallis": lambda count, dtype: partial_products(lambda k: 4 * k * k / (4 * k * k - 1), 1, count, dtype=dtype),
    "fixed_cos": steps(jnp.cos, 1),
}
# Name: terms, limit.
SEQUENCES = {
    "harmonic": (sums(lambda k: 1 / k), math.inf),
    "signs": (numbers(lambda n: (-1) ** n), MISSING),
    "compound": (numbers(lambda n: (1 + 1 / n) ** n), math.e),
    "root of n": (numbers(lambda n: n ** (1 / n)), 1),
    "fibonacci": (steps(lambda x: 1 + 1 / x, 1), (1 + math.sqrt(5)) / 2),
    "geometric": (sums(lambda k: 0.5**k, 0), 2),
    "slow geometric": (sums(lambda k: 0.99**k, 0), 100),
    "alternating geometric": (sums(lambda k: (-0.9) ** k, 0), 1 / 1.9),
    "two-cycle": (steps(lambda x: 3.2 * x * (1 - x), 0.3), MISSING),
    "chaos": (steps(lambda x: 4 * x * (1 - x), 0.3), MISSING),
    # Numerically summed: https://oeis.org/A115563.
    "n log^2 n": (sums(lambda k: 1 / (k * jnp.log(k) ** 2), 2), 2.10974280123689),
    "n log n": (sums(lambda k: 1 / (k * jnp.log(k)), 2), math.inf),
    "zeta(3/2)": (sums(lambda k: k**-1.5), 2.612375348685488),
    "zeta(3)": (sums(lambda k: k**-3.0), 1.2020569031595942),
    "zeta(1.1)": (sums(lambda k: k**-1.1), 10.584448464950809),
    "log 2": (sums(lambda k: (-1) ** (k + 1) / k), math.log(2)),
    "eta(1/2)": (sums(lambda k: (-1) ** (k + 1) / jnp.sqrt(k)), 0.6048986434216304),
    "euler": (harmonic_less_log, 0.5772156649015329),
    "e": (sums(lambda k: jnp.exp(-gammaln(k + 1)), 0), math.e),
    "doubling signs": (sums(lambda k: (-2.0) ** k, 0), MISSING),
    "grandi": (sums(lambda k: (-1.0) ** k, 0), MISSING),
    "sin n": (numbers(jnp.sin), MISSING),
    "sin n / n": (numbers(lambda n: jnp.sin(n) / n), 0),
    "difference of roots": (numbers(lambda n: jnp.sqrt(n + 1) - jnp.sqrt(n)), 0),
    "1 / log": (numbers(lambda n: 1 / jnp.log(n), 2), 0),
    "powers": (numbers(lambda n: 2.0**n), math.inf),
    "minus squares": (numbers(lambda n: -(n**2)), -math.inf),
    "roots": (numbers(jnp.sqrt), math.inf),
    "log": (numbers(jnp.log), math.inf),
    "constant": (numbers(lambda n: 3 + 0 * n), 3),
    "newton": (steps(lambda x: (x + 2 / x) / 2, 1), math.sqrt(2)),
    "sin log n": (numbers(lambda n: jnp.sin(jnp.log(n))), MISSING),
    "catalan": (sums(lambda k: (-1) ** k / (2 * k + 1) ** 2, 0), 0.915965594177219),
    "saw": (sums(lambda k: jnp.sin(k) / k), (math.pi - 1) / 2),
    "archimedes": (numbers(lambda n: n * jnp.sin(math.pi / n)), math.pi),
    "growing signs": (numbers(lambda n: n * (-1) ** n), MISSING),
    "remainders": (numbers(lambda n: jnp.mod(n, 3)), MISSING),
    "nested roots": (steps(lambda x: jnp.sqrt(2 + x), 0), 2),
    "logistic": (steps(lambda x: x - x * x, 0.5), 0),
    "iterated sine": (steps(jnp.sin, 1), 0),
    "factorial": (numbers(lambda n: jnp.exp(gammaln(n + 1) / n) / n), 1 / math.e),
}
# With 1000 terms. These move like powers of a logarithm, or their sums like a wave over n.
UNDECIDED = {"n log^2 n", "n log n", "zeta(1.1)", "1 / log", "sin log n", "saw", "doubling signs"}


def holds(found, expected):
    if expected == MISSING:
        return int(found.status) == limits.OSCILLATES
    if math.isinf(expected):
        return int(found.status) == (limits.UP if expected > 0 else limits.DOWN)
    return int(found.status) == limits.CONVERGES and abs(float(found.value) - expected) <= float(found.error)


def undecided(found):
    return int(found.status) in (limits.SLOW, limits.ROUGH) and math.isinf(found.error)


@pytest.mark.parametrize("name", list(TRUTHS))
def test_truths(name, truths):
    (record,) = [row for row in truths("limits.json")["scalar"] if row["id"] == name]
    found = sequence_limit(TRUTHS[name](1000, np.float64))
    assert holds(found, float(record["value"])), found.verdict
    assert found.error < 1e-10
    single = sequence_limit(TRUTHS[name](1000, np.float32))
    assert holds(single, float(record["value"])), single.verdict
    assert single.value.dtype == np.float32


@pytest.mark.parametrize("name", list(SEQUENCES))
def test_known_limits(name):
    terms, expected = SEQUENCES[name]
    found = sequence_limit(terms(1000, np.float64))
    assert undecided(found) if name in UNDECIDED else holds(found, expected), found.verdict
    few = sequence_limit(terms(60, np.float64))
    assert holds(few, expected) or undecided(few), few.verdict


@pytest.mark.parametrize("name", sorted(set(SEQUENCES) - {"factorial"})[::3])
def test_float32_never_claims_too_much(name):
    terms, expected = SEQUENCES[name]
    found = sequence_limit(terms(1000, np.float32))
    assert holds(found, expected) or undecided(found), found.verdict


def test_what_a_library_function_loses_can_be_said():
    # The float32 log-gamma errs by far more than its last place, and smoothly.
    terms = SEQUENCES["factorial"][0](1000, np.float32)
    assert holds(sequence_limit(terms, noise=1e-5), 1 / math.e)


def test_jit_and_vmap():
    ratios = jnp.array([0.2, -0.5, 0.9])
    found = jax.jit(jax.vmap(lambda r: sequence_limit(partial_sums(lambda k: r**k, 0, 300), start=0)))(ratios)
    np.testing.assert_array_less(np.abs(found.value - 1 / (1 - ratios)), np.asarray(found.error))
    assert np.all(found.status == limits.CONVERGES)


def test_makers_of_sequences():
    np.testing.assert_allclose(partial_products(lambda k: k, 1, 5), [1, 2, 6, 24, 120])
    assert partial_sums(lambda k: k, 3, 2, dtype=np.float32).dtype == np.float32
    assert iterates(lambda x: 2 * x, 1, 3).tolist() == [2, 4, 8]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"terms must be a vector of at least 24 numbers, got shape \(5,\)"):
        sequence_limit(jnp.ones(5))
    with pytest.raises(ValueError, match="start must be the number of the first term, at least 0, got -1"):
        sequence_limit(jnp.ones(30), start=-1)
    with pytest.raises(ValueError, match="noise must be at least 0, got -1"):
        sequence_limit(jnp.ones(30), noise=-1.0)
    for make in (partial_sums, partial_products, iterates):
        with pytest.raises(ValueError, match="count must be at least 1, got 0"):
            make(lambda k: k, 1, 0)
