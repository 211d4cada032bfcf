from functools import partial

import jax
import numpy as np
import pytest

from calcdl import study
from calcdl.data import load
from calcdl.experiments.linear_regression import (
    DESIGNS,
    METHODS,
    Config,
    check,
    closed_form,
    measure,
    prepare,
    r_squared,
    show,
    steps_to,
)
from calcdl.lab.config import ConfigError, build, read
from calcdl.types import DataError

CERTIFIED = {"NoInt1": 14, "Norris": 11, "Pontius": 10, "Longley": 9, "Wampler1": 9, "Wampler3": 9}
SMALL = {"relative_rates": (0.5, 0.99, 1.01, 3.0), "steps": 300, "record_every": 10}


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "linear_regression.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


@pytest.fixture
def table(tmp_path):
    def write(**columns):
        rows = zip(*([format(float(cell), ".17g") for cell in column] for column in columns.values()), strict=True)
        path = tmp_path / "table.csv"
        path.write_text("\n".join([",".join(columns), *map(",".join, rows)]))
        return str(path)

    return write


def numbers(rows):
    generator = np.random.default_rng(3)
    a, b = generator.normal(5.0, 2.0, rows), generator.normal(0.0, 1.0, rows)
    return {"a": a, "b": b, "y": 2 * a - b + generator.normal(0.0, 0.1, rows)}


def test_the_default_file_is_the_default(configs):
    assert read(configs / "linear_regression.toml", Config) == Config()


def test_all_rates_and_designs_share_one_program():
    plans = {}

    def dry(function, axes, **options):
        plan = study.plan(function, axes, **options)
        plans[plan.name] = plan
        return study.collect(plan, {})

    measure(Config(), dry)
    assert len(Config().relative_rates) == 64
    assert (len(plans["descent"].programs), plans["descent"].lanes) == (1, 128)
    assert plans["descent"].dtype == "float64"


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 7
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert not any("WARNING" in verdict.claim for verdict in verdicts)
    assert "condition number 5.24e+07; the flattest direction needs 184," in verdicts[-1].evidence


def test_descent_is_that_of_a_loop_by_hand(results):
    x, y = DESIGNS["raw"](load("diabetes_raw"), True), load("diabetes_raw").targets
    x = np.insert(x, 0, 1.0, axis=1)
    rate = 0.95 * 2 / np.linalg.eigvalsh(x.T @ x / len(y))[-1]
    weights, losses = np.zeros(11), []
    for _ in range(300):
        losses.append(np.mean((x @ weights - y) ** 2) / 2)
        weights -= rate * x.T @ (x @ weights - y) / len(y)
    run = results.sel(design="raw", relative_rate=0.95)
    np.testing.assert_allclose(run.loss, losses, rtol=1e-9)
    np.testing.assert_allclose(run.coefficients, weights, rtol=1e-7)


def test_excess_loss_is_the_sum_over_eigenvectors(results):
    below = results.sel(relative_rate=results.relative_rate <= 1)
    np.testing.assert_allclose(
        below.excess, below.predicted_excess.transpose(*below.excess.dims), rtol=1e-6, atol=1e-12
    )


def test_diverging_lanes_are_announced_and_leave_the_others_alone(results):
    assert (results.status.sel(relative_rate=3.0) == 1).all()
    others = results.sel(relative_rate=results.relative_rate < 3)
    assert (others.status == 0).all()
    assert np.isfinite(others.loss).all()
    assert (results.diverges == (results.relative_rate > 1)).all()


@pytest.mark.parametrize(
    ("claim", "tamper"),
    [
        (0, lambda one: one.assign_coords(relative_rate=one.relative_rate * 1.02)),
        (0, lambda one: one.assign(diverges=one.relative_rate + 0 * one.factor[..., 0] > 0.9)),
        (2, lambda one: one.assign(share=one.share.where(one.record != 150, one.share + 2e-6))),
        (2, lambda one: one.assign(predicted_share=one.predicted_share * np.nan)),
        (4, lambda one: one.assign(closed_form_coefficients=one.closed_form_coefficients * (1 + 1e-9))),
        (
            6,
            lambda one: one.assign(
                excess=one.excess.isel(design=[1, 0]).assign_coords(design=one.design), best=0 * one.best
            ),
        ),
    ],
)
def test_what_is_wrong_is_noticed(config, results, claim, tamper):
    assert check(config, results)[claim].holds
    assert not check(config, tamper(results))[claim].holds


def test_steps_to_is_where_a_run_arrives(results):
    run = results.sel(design="scaled", relative_rate=0.9)
    needed, shares = steps_to(1e-2, run), np.abs(run.share.transpose("record", "direction").values)
    assert (needed[2:] > needed[1:-1]).all()
    for direction in range(9):
        first = run.record.values[shares[:, direction] <= 1e-2][0]
        assert first - 5 < needed[direction] <= first
    assert steps_to(1e-2, results.sel(design="raw", relative_rate=1.1))[0] == np.inf


@pytest.mark.parametrize("tested", [0.0, 0.25])
@pytest.mark.parametrize("designs", [("raw", "scaled"), ("scaled",)])
def test_figures_are_drawn(table, tested, designs):
    config = Config(data=table(**numbers(40)), target="y", test=tested, designs=designs, **SMALL)
    results = measure(config)
    assert ("test" in results.part) == (tested > 0)
    figures = show(config, results)
    assert list(figures) == ["left_by_rate", "error_by_direction", "loss_curves", "residuals"]
    assert ("test R2" in figures["residuals"].axes[0].get_title(loc="left")) == (tested > 0)
    assert len(check(config, results)) == 3 * len(designs) + (len(designs) == 2)


def test_float32_warns_that_digits_are_not_to_be_had(table):
    config = Config(data=table(**numbers(40)), target="y", precision="float32", **SMALL)
    results = measure(config)
    assert results.loss.dtype == results.error.dtype == results.closed_form_coefficients.dtype == np.float32
    verdicts = check(config, results)
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert ["use float64" in verdict.claim for verdict in verdicts] == [False] * 4 + [True] * 2 + [False]


def test_diabetes_is_that_of_scikit_learn(truths):
    reference = next(one for one in truths("sklearn_refs.json")["refs"] if one["id"] == "diabetes_ols")
    results = measure(Config(data="diabetes", relative_rates=(0.5,), steps=1, record_every=1))
    raw = results.sel(design="raw")
    for method in METHODS:
        fit = raw.sel(factorisation=method)
        expected = [reference["intercept"], *reference["coef"]]
        np.testing.assert_allclose(fit.closed_form_coefficients, expected, rtol=1e-6)
        assert float(fit.closed_form_residual_sum_of_squares) == pytest.approx(reference["rss"], rel=1e-10)
        assert float(fit.closed_form_r_squared) == pytest.approx(reference["r2"], rel=1e-10)
    assert r_squared(raw, raw.fitted_exactly) == pytest.approx(reference["r2"], rel=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CERTIFIED)
def test_certified_digits(truths, table, key, name, method):
    truth = truths(f"nist/{name}.json")
    columns = {f"x{at}": column for at, column in enumerate(np.reshape(truth["x"], (len(truth["y"]), -1)).T)}
    config = Config(
        data=table(**columns, y=truth["y"]), target="y", degree=truth["degree"] or 1, intercept=truth["intercept"]
    )
    data = prepare(config)
    x = np.insert(data.features, 0, 1.0, axis=1) if config.intercept else data.features
    solve = jax.jit(partial(closed_form, design="raw", factorisation=method, intercept=config.intercept))
    found = np.asarray(solve(key, {"raw": (x,)}, data.targets)["coefficients"])
    certified = np.asarray(truth["certified"])
    digits = -np.log10(np.maximum(np.abs(found - certified) / np.abs(certified), 1e-16))
    assert digits.min() >= CERTIFIED[name]


LINE = np.arange(12.0)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"x": [1.0], "y": [2.0]}, {}, "at least two rows"),
        ({"x": LINE, "z": 3 * LINE + 1, "y": LINE**2}, {}, "'z' is an exact linear combination of 'x'"),
        ({"x": LINE, "z": np.ones(12), "y": LINE**2}, {}, "'z' is 1 in every row"),
        ({"x": LINE, "y": np.ones(12)}, {}, "'y' is 1 in every row"),
        ({"x": LINE, "y": [*LINE[:-1], np.nan]}, {}, "finite number"),
        ({"x": LINE[:3], "z": LINE[:3] ** 2, "y": [1.0, 0.0, 2.0]}, {}, "3 train rows for 3 coefficients"),
        ({"x": LINE, "z": LINE**2, "y": LINE**3}, {"degree": 2}, "column 'x.2' is in float64 a combination|'z'"),
        ({"x": LINE, "y": LINE**2}, {"degree": 11}, "12 train rows for 12 coefficients"),
        ({"x": 100 + LINE, "y": LINE**2}, {"degree": 9}, "is in float64 a combination.*lower the degree$"),
        ({"x": 100 + LINE, "y": LINE**2}, {"degree": 5, "precision": "float32"}, 'set precision = "float64"$'),
        ({"x": 1e200 * LINE, "y": LINE**2}, {}, "squares float64 cannot hold"),
        ({"x": 1e25 * LINE, "y": LINE**2}, {"precision": "float32"}, "squares float32 cannot hold"),
    ],
)
def test_data_that_determine_nothing_are_refused(table, columns, options, message):
    with pytest.raises(DataError, match=message):
        measure(Config(data=table(**columns), target="y", **options))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1501}, "steps: got 1501; expected a multiple of record_every = 10"),
        ({"steps": 0}, "steps: got 0"),
        ({"relative_rates": (0.5, 1.5)}, r"relative_rates\[0\]: got 0.5; expected rates within 0.01 of 1"),
        ({"relative_rates": (1.5, 0.995)}, r"relative_rates\[0\]: got 1.5"),
        ({"relative_rates": (0.5, 0.0)}, r"relative_rates\[1\]: got 0.0; expected a number > 0"),
        ({"relative_rates": (0.5, float("nan"))}, r"relative_rates\[1\]: got nan"),
        ({"relative_rates": (0.5, float("inf"))}, r"relative_rates\[1\]: got inf"),
        ({"relative_rates": (0.5, 0.5)}, r"relative_rates\[1\]: got 0.5; expected distinct"),
        ({"relative_rates": ()}, "relative_rates: .*at least 1"),
        ({"designs": ("row",)}, "designs.*raw"),
        ({"degree": 0}, "degree: got 0"),
        ({"degree": True}, "degree: got true; expected a whole number"),
        ({"test": 1.0}, "test: got 1.0"),
        ({"gone": 0.0}, "gone: got 0.0"),
        ({"relative_rate": (0.5,)}, "relative_rate: unknown key; .*relative_rates"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build(Config, values)


def test_too_many_monomials_are_refused_before_they_are_made():
    with pytest.raises(ConfigError, match="degree: got 20, for 30,045,014 columns; expected at most 10,000"):
        measure(Config(degree=20))


def test_a_set_of_classes_is_refused():
    with pytest.raises(ValueError, match="digits: this data set is a classification"):
        measure(Config(data="digits"))
