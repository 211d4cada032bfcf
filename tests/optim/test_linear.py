from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.data import load
from calcdl.optim import METHODS, digits_warning, linear_least_squares
from calcdl.optim.linear import _accurate_product

DIGITS = {"NoInt1": 14, "Norris": 11, "Pontius": 10, "Longley": 9, "Wampler1": 9, "Wampler3": 9}


def certified_problem(truths, name):
    record = truths(f"nist/{name}.json")
    x, y = np.array(record["x"], float), np.array(record["y"], float)
    if x.ndim == 1:
        x = np.stack([x**power for power in range(1, record["degree"] + 1)], axis=1)
    return record, x, y


def correct_digits(found, certified):
    error = np.abs(np.asarray(found, float) - certified) / np.abs(certified)
    return float(-np.log10(np.maximum(error, 1e-15)).min())


def fit(x, y, **options):
    return jax.jit(lambda x, y: linear_least_squares(x, y, **options))(x, y)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DIGITS)
def test_certified_problems_are_solved_to_the_certified_digits(truths, name, method):
    record, x, y = certified_problem(truths, name)
    result = fit(x, y, method=method, intercept=record["intercept"])
    assert correct_digits(result.coefficients, record["certified"]) > DIGITS[name]
    assert int(result.rank) == record["n_params"]
    assert correct_digits(result.r_squared, record["r_squared"]) > 13
    if record["rss"]:
        assert correct_digits(result.standard_errors, record["certified_sd"]) > 12
        assert correct_digits(result.residual_sum_of_squares, record["rss"]) > 12
    else:
        assert float(jnp.max(result.standard_errors)) < 1e-12
    assert digits_warning(result) is None
    # What is promised must be held.
    assert correct_digits(result.coefficients, record["certified"]) > min(float(result.digits), 14.5) - 0.5


@pytest.mark.parametrize(("name", "method"), [("NoInt1", "qr"), ("Longley", "svd"), ("Wampler3", "qr")])
def test_in_float32_the_user_is_told(truths, name, method):
    record, x, y = certified_problem(truths, name)
    narrow = fit(x.astype(np.float32), y.astype(np.float32), method=method, intercept=record["intercept"])
    assert {leaf.dtype for leaf in narrow} == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
    told = digits_warning(narrow)
    assert told is not None
    assert told.startswith("float32 holds about")
    assert told.endswith("use float64")
    assert correct_digits(narrow.coefficients, record["certified"]) > float(narrow.digits) - 0.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [0.0, 1e4])
def test_more_noise_on_wamplers_polynomial_costs_no_digits(method, noise):
    # As Wampler2, 4 and 5: coefficients 10^-j, and residuals that dwarf the fit, orthogonal to the columns.
    x = np.arange(21.0)
    columns = np.stack([x**power for power in range(1, 6)], axis=1)
    truth = [Fraction(1, 10**power) for power in range(6)]
    exact = [sum(c * Fraction(int(v)) ** power for power, c in enumerate(truth)) for v in x]
    sixth = np.diff(np.eye(21), n=6, axis=0)[7]
    y = np.array([float(value) for value in exact]) + noise * sixth
    result = fit(columns, y, method=method, intercept=True)
    # The targets are rounded to double: what is lost there no solver brings back.
    lost = np.linalg.norm(y) * np.finfo(float).eps
    assert correct_digits(result.coefficients, [float(c) for c in truth]) > 9 - np.log10(1 + lost * 1e9)


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_on_diabetes_is_reproduced(truths, method):
    (reference,) = [r for r in truths("sklearn_refs.json")["refs"] if r["id"] == "diabetes_ols"]
    data = load("diabetes")
    result = fit(data.features, data.targets, method=method, intercept=True)
    np.testing.assert_allclose(result.coefficients[1:], reference["coef"], rtol=1e-10)
    assert float(result.coefficients[0]) == pytest.approx(float(reference["intercept"]), rel=1e-13)
    assert float(result.r_squared) == pytest.approx(float(reference["r2"]), rel=1e-13)
    assert float(result.residual_sum_of_squares) == pytest.approx(float(reference["rss"]), rel=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_the_digits_promised_are_those_that_rounding_leaves(key, method):
    # A slope of nearly parallel columns, and residuals as large as the fit: both terms of the bound matter.
    x = jax.random.normal(key, (40, 40, 3), jnp.float64)
    x = x.at[:, :, 2].set(x[:, :, 0] + 0.003 * x[:, :, 2])
    y = x @ jnp.asarray([1.0, -2.0, 0.7]) + jax.random.normal(jax.random.key(1), (40, 40), jnp.float64)
    solve = jax.jit(jax.vmap(lambda x, y: linear_least_squares(x, y, method=method)))
    wide, narrow = solve(x, y), solve(x.astype(jnp.float32), y.astype(jnp.float32))
    error = jnp.abs(narrow.coefficients.astype(jnp.float64) / wide.coefficients - 1)
    left = -np.log10(error.max(axis=1)) - narrow.digits
    assert left.min() > 0
    assert np.median(left) < 1.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_badly_scaled_columns_cost_nothing(key, method, dtype):
    x = jax.random.normal(key, (30, 4), dtype)
    units = jnp.asarray([1e-18, 1.0, 1e12, 1e18], dtype)
    truth = jnp.asarray([1.0, -2.0, 3.0, 0.5], dtype)
    plain = fit(x, x @ truth, method=method)
    scaled = fit(x * units[None, :], x @ truth, method=method)
    np.testing.assert_allclose(plain.coefficients, truth, rtol=50 * float(jnp.finfo(dtype).eps))
    np.testing.assert_allclose(scaled.coefficients * units, truth, rtol=50 * float(jnp.finfo(dtype).eps))
    assert float(scaled.condition) < 2 * float(plain.condition)
    assert scaled.coefficients.dtype == scaled.digits.dtype == dtype


def test_dependent_columns():
    x = jnp.asarray([[1.0, 2.0, 0.0], [2.0, 4.0, 1.0], [3.0, 6.0, 0.0], [4.0, 8.0, 5.0]])
    y = jnp.asarray([1.0, 2.0, 3.0, 9.0])
    by_qr, by_svd = fit(x, y, method="qr"), fit(x, y, method="svd")
    assert int(by_qr.rank) == int(by_svd.rank) == 2
    assert jnp.isnan(by_qr.coefficients).all()
    assert float(by_qr.digits) == 0
    best = np.linalg.lstsq(x, y)[0]
    np.testing.assert_allclose(x @ by_svd.coefficients, x @ best, rtol=1e-12)
    np.testing.assert_allclose(by_svd.residuals, y - x @ best, atol=1e-13)
    assert digits_warning(by_qr).startswith("only 2 of 3 columns are independent")
    zero = fit(x.at[:, 2].set(0), y, method="svd")
    assert int(zero.rank) == 1
    assert float(zero.coefficients[2]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_eager_jit_and_vmap_agree(key, method):
    x, y = jax.random.normal(key, (3, 12, 4)), jax.random.normal(jax.random.key(1), (3, 12))
    lanes = jax.jit(jax.vmap(lambda x, y: linear_least_squares(x, y, method=method, intercept=True)))(x, y)
    alone = linear_least_squares(x[1], y[1], method=method, intercept=True)
    jitted = fit(x[1], y[1], method=method, intercept=True)
    for one, other, lane in zip(alone, jitted, lanes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11)
        np.testing.assert_allclose(one, lane[1], rtol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_are_those_of_the_normal_equations(key, method):
    x, y = jax.random.normal(key, (9, 3)), jax.random.normal(jax.random.key(1), (9,))

    def closed(x, y):
        return jnp.linalg.solve(x.T @ x, x.T @ y)

    def ours(x, y):
        return linear_least_squares(x, y, method=method).coefficients

    @jax.jit
    def derivatives(x, y):
        return [
            (
                jax.jacfwd(fit, 0)(x, y),
                jax.jacrev(fit, (0, 1))(x, y),
                jax.jacfwd(jax.jacrev(lambda factor, fit=fit: fit(x * factor, y)[0]))(1.5),
            )
            for fit in (ours, closed)
        ]

    for one, other in zip(*map(jax.tree.leaves, derivatives(x, y)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_are_summed_in_twice_the_precision(dtype):
    generator = np.random.default_rng(0)
    matrix = (generator.normal(size=(40, 6)) * 10.0 ** generator.integers(-5, 6, (40, 6))).astype(dtype)
    vector = generator.normal(size=6).astype(dtype)
    rows = [sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(row, vector, strict=True)) for row in matrix]
    rounded = np.array([float(row) for row in rows]).astype(dtype)
    exact = np.array([float(row - Fraction(float(value))) for row, value in zip(rows, rounded, strict=True)])
    size = np.abs(matrix) @ np.abs(vector)
    # All leading digits cancel: what is left is the rounding of the sum itself.
    found = jax.jit(_accurate_product)(matrix, vector, -rounded)
    np.testing.assert_array_less(
        np.abs(found - exact), 20 * np.finfo(dtype).eps ** 2 * size + np.abs(exact) * np.finfo(dtype).eps
    )


def test_bad_arguments_are_refused():
    x, y = jnp.ones((4, 2)), jnp.ones(4)
    with pytest.raises(ValueError, match="method: expected one of qr, svd, got 'normal'"):
        linear_least_squares(x, y, method="normal")
    with pytest.raises(ValueError, match=r"expected shapes \(rows, columns\) and \(rows,\), got \(4, 2\) and \(3,\)"):
        linear_least_squares(x, y[:3])
    with pytest.raises(ValueError, match=r"expected at least one coefficient and as many rows, got 2 and 1"):
        linear_least_squares(x[:1], y[:1])
    with pytest.raises(TypeError, match="expected both float32 or both float64, got float64 and float32"):
        linear_least_squares(x, y.astype(jnp.float32))
    with pytest.raises(TypeError, match="got int64 and int64"):
        linear_least_squares(x.astype(int), y.astype(int))


def test_as_many_rows_as_columns_leave_no_standard_errors():
    result = fit(jnp.asarray([[1.0, 2.0], [3.0, 5.0]]), jnp.asarray([1.0, 2.0]))
    np.testing.assert_allclose(result.coefficients, [-1.0, 1.0], rtol=1e-13)
    assert jnp.isnan(result.standard_errors).all()
