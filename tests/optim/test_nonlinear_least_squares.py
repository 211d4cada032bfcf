import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.expressions import parse
from calcdl.optim.nonlinear_least_squares import (
    DEFICIENT,
    NOT_FINITE,
    SATURATED,
    SumOfSquares,
    dogleg,
    gauss_newton,
    least_squares,
    levenberg_marquardt,
    standard_errors,
)
from calcdl.optim.solver import CONVERGED, STALLED, minimise

CERTIFIED = [
    *("Chwirut2", "DanWood", "ENSO", "Gauss1", "Kirby2", "Lanczos3", "MGH09", "MGH17", "Misra1a", "Misra1b"),
    *("Nelson", "Rat42", "Roszman1", "Thurber"),
]
SOLVERS = {"gauss_newton": gauss_newton, "levenberg_marquardt": levenberg_marquardt, "dogleg": dogleg}
X = np.linspace(0.0, 3.0, 12)


def decay(params):
    return params["height"] * jnp.exp(-params["rate"] * X.astype(params["rate"].dtype))


def correct_digits(found, certified):
    error = np.abs(np.asarray(found, float) - certified) / np.abs(certified)
    return float(-np.log10(np.maximum(error, 1e-15)).min())


def model(record):
    text = record["model_expr"].replace("arctan", "atan")
    for index in range(record["n_params"]):
        text = text.replace(f"b[{index}]", f"b{index}")
    inputs = [key for key in ("x", "x1", "x2") if key in record]
    formula = parse(text, tuple(f"b{index}" for index in range(record["n_params"])), tuple(inputs))
    observed = np.log(record["y"]) if record["response"] == "log(y)" else np.array(record["y"])
    data = [np.array(record[key], float) for key in inputs]
    return lambda b: formula(*b, *data) - observed


# One program, which chooses among the models: what a model does not have is a residual of its own.
@pytest.fixture(scope="module")
def fits(truths):
    records = [truths(f"nist/{name}.json") for name in CERTIFIED]
    columns = max(record["n_params"] for record in records)
    rows = max(record["n_obs"] for record in records) + columns

    def padded(record):
        residuals = model(record)

        def function(b):
            found = jnp.concatenate([residuals(b[: record["n_params"]]), b[record["n_params"] :]])
            return jnp.pad(found, (0, rows - found.size))

        return function

    branches = [padded(record) for record in records]

    def fit(job):
        which, start = job

        def residuals(b):
            return jax.lax.switch(which, branches, b)

        found = least_squares(residuals, start, steps=1000, tolerance=0.0)
        return found.params, found.status, standard_errors(residuals, found.params).standard_errors

    starts = [
        record[key] + [0.0] * (columns - record["n_params"]) for record in records for key in ("start1", "start2")
    ]
    which = np.repeat(np.arange(len(records)), 2)
    found = jax.jit(lambda jobs: jax.lax.map(fit, jobs))((which, np.array(starts)))
    return {
        record["name"]: (record, [np.asarray(part)[2 * index : 2 * index + 2] for part in found], rows - columns)
        for index, record in enumerate(records)
    }


@pytest.mark.parametrize("name", CERTIFIED)
def test_certified_fits_from_both_starts(fits, name):
    record, (points, statuses, errors), freedom = fits[name]
    count, rest = record["n_params"], record["n_obs"] - record["n_params"]
    for point, status, error in zip(points, statuses, errors, strict=True):
        assert correct_digits(point[:count], record["certified"]) >= 6
        assert correct_digits(error[:count] * np.sqrt(freedom / rest), record["certified_sd"]) >= 5
        assert status in (CONVERGED, STALLED)


@pytest.mark.parametrize("solver", SOLVERS)
def test_trees_keep_structure_and_dtype(solver):
    observed = decay({"height": jnp.float32(2.0), "rate": jnp.float32(0.7)})
    start = {"height": jnp.float32(1.0), "rate": jnp.float32(0.2)}

    def fit(start):
        return least_squares(lambda p: {"all": decay(p) - observed}, start, SOLVERS[solver], steps=60)

    found = jax.jit(fit)(start)
    assert int(found.status) == CONVERGED
    assert {leaf.dtype for leaf in jax.tree.leaves((found.params, found.value, found.state))} == {
        jnp.dtype(jnp.float32)
    }
    np.testing.assert_allclose(found.params["rate"], 0.7, rtol=1e-3)


def test_lanes_under_vmap_are_those_of_single_runs():
    observed = jnp.asarray(decay({"height": jnp.float64(2.0), "rate": jnp.float64(0.7)}))

    def fit(rate):
        start = {"height": jnp.ones_like(rate), "rate": rate}
        return least_squares(lambda p: decay(p) - observed, start, steps=40, trace=["value"])

    rates = jnp.array([0.2, 3.0])
    together = jax.jit(jax.vmap(fit))(rates)
    alone = jax.jit(fit)(rates[1])
    np.testing.assert_allclose(together.params["rate"], 0.7, rtol=1e-7)
    assert int(together.steps[1]) == int(alone.steps)
    assert np.all(np.diff(np.asarray(together.trace.value), axis=1) <= 0)


def test_the_units_of_parameters_do_not_matter():
    observed = decay({"height": jnp.float64(2.0), "rate": jnp.float64(0.7)})

    def run(unit):
        def residuals(p):
            return decay({"height": p[0] / unit, "rate": p[1] * unit}) - observed

        found = least_squares(residuals, jnp.stack([unit, 0.2 / unit]), steps=12, tolerance=0.0, trace=["value"])
        return found.trace.value

    values = jax.jit(jax.vmap(run))(jnp.array([1.0, 2.0**20]))
    np.testing.assert_allclose(values[0], values[1], rtol=1e-9, atol=1e-25)


def test_dependent_columns_have_the_shortest_solution_and_an_infinite_standard_error():
    def residuals(p):
        line = jnp.array([1.0, 2.0, 3.0, 4.0]) * (p[0] + p[1]) - jnp.array([2.0, 4.0, 6.5, 8.0])
        return jnp.append(line, p[2] - 1)

    found = jax.jit(lambda p: least_squares(residuals, p, gauss_newton, steps=5))(jnp.zeros(3))
    assert int(found.status) == CONVERGED
    np.testing.assert_allclose(found.params[0], found.params[1], rtol=1e-12)
    told = jax.jit(lambda p: standard_errors(residuals, p))(found.params)
    assert (int(told.status), int(told.rank)) == (DEFICIENT, 2)
    assert np.isinf(np.asarray(told.standard_errors)).tolist() == [True, True, False]
    assert np.all(np.isfinite(told.covariance))
    assert told.verdict.startswith("rank deficient")


def test_what_cannot_be_told_is_said():
    exact = jax.jit(lambda p: standard_errors(lambda p: p - 1, p))(jnp.zeros(2))
    assert int(exact.status) == SATURATED
    assert np.all(np.isinf(exact.standard_errors))
    lost = jax.jit(lambda p: standard_errors(lambda p: jnp.log(p) * jnp.ones(3), p))(-1.0)
    assert int(lost.status) == NOT_FINITE


def test_covariance_is_that_of_the_closed_form():
    matrix = np.stack([np.ones(12), X], axis=1)
    noise = np.random.default_rng(3).normal(size=12)
    fitted = np.linalg.lstsq(matrix, noise)[0]
    told = jax.jit(lambda p: standard_errors(lambda p: matrix @ p - noise, p))(fitted)
    rest = noise - matrix @ fitted
    expected = rest @ rest / 10 * np.linalg.inv(matrix.T @ matrix)
    np.testing.assert_allclose(told.covariance, expected, rtol=1e-10)
    np.testing.assert_allclose(told.standard_errors, np.sqrt(np.diag(expected)), rtol=1e-10)


def test_another_objective_is_refused_in_one_line():
    def residuals(p):
        return p - 1

    for objective in (lambda p: jnp.sum(p**2), SumOfSquares(lambda p: p - 1)):
        with pytest.raises(
            TypeError, match=r"^objective: expected SumOfSquares of the residuals .*least_squares"
        ) as told:
            minimise(objective, jnp.zeros(2), levenberg_marquardt(residuals), steps=1)
        assert "\n" not in str(told.value)
