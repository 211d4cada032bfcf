import jax
import numpy as np
import pytest

from calcdl import data, study
from calcdl.experiments.regularisation import (
    EXPERIMENT,
    Config,
    check,
    decomposed,
    measure,
    minimum,
    ridge_theory,
    show,
)
from calcdl.lab.config import ConfigError, read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "regularisation.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "regularisation.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 12
    assert all(verdict.holds for verdict in verdicts), verdicts


def test_contradictions_are_noticed(config, results):
    wrong = results.copy(deep=True)
    wrong["paths_coefficients"][:, 0, 0] += 1e-3
    wrong["closed_coefficients"][0, 0] += 1e-3
    wrong["paths_violation"][0, 0] = 1e-3
    wrong["paths_coefficients"][0, -1, 0] = 1e-300
    wrong["errors_error"][...] = wrong.errors_error.values[:, ::-1] * 10
    wrong["noise_squares"][...] *= 2
    wrong["noise_away"][...] *= 1.5
    assert [verdict.holds for verdict in check(config, wrong)] == [False] * 12


@pytest.fixture(scope="module")
def solve():
    return jax.jit(minimum)


def test_coefficients_are_those_on_record(truths, solve):
    dataset = data.load("diabetes")
    x, y = dataset.features, dataset.targets - dataset.targets.mean()
    records = {record["id"]: record for record in truths("sklearn_refs.json")["refs"]}
    rows = len(y)
    for name, l1_ratio, penalty in (
        ("diabetes_ols", 0.0, 0.0),
        ("diabetes_ridge_0.1", 0.0, 0.1 / rows),
        ("diabetes_ridge_1.0", 0.0, 1.0 / rows),
        ("diabetes_lasso_0.1", 1.0, 0.1),
    ):
        known = np.asarray(records[name]["coef"])
        found, status = solve(x, y, l1_ratio, penalty)
        assert status == 0, name
        np.testing.assert_allclose(found, known, rtol=0, atol=1e-6 * np.abs(known).max(), err_msg=name)
        if l1_ratio:
            assert np.flatnonzero(found).tolist() == records[name]["support"]


def test_orthonormal_columns_have_a_closed_form(solve):
    x = np.sqrt(442) * np.linalg.qr(data.load("diabetes").features).Q
    moment, penalty, l1_ratio = np.array([3.0, -1.0, 0.2, 0, 0, 0, 0, 0, 0.31, -0.29]), 0.5, 0.6
    found, _ = solve(x, x @ moment, l1_ratio, penalty)
    shrunk = np.sign(moment) * np.maximum(np.abs(moment) - penalty * l1_ratio, 0)
    np.testing.assert_allclose(found, shrunk / (1 + penalty * (1 - l1_ratio)), rtol=1e-9, atol=1e-12)
    assert np.flatnonzero(found).tolist() == [0, 1, 8]


def test_bias_and_variance_are_those_of_their_definition(config, results):
    noise = study.part(results, "noise")
    found, away = decomposed(noise), noise.away.sel(l1_ratio=1.0, strength=0.3).values
    one = found.sel(l1_ratio=1.0, strength=0.3)
    count = len(away)
    assert float(one.variance) == pytest.approx(away.var(axis=0, ddof=1).mean(), rel=1e-12)
    products = [(away[i] * away[j]).mean() for i in range(count) for j in range(count) if i != j]
    assert float(one.bias) == pytest.approx(np.mean(products), rel=1e-9)
    assert float(one.bias + one.variance) == pytest.approx((away**2).mean(), rel=1e-12)


def test_more_penalty_is_more_bias_and_less_variance(config):
    theory = ridge_theory(config)
    assert theory["bias"][0] < theory["bias"][1]
    assert theory["variance"][0] > theory["variance"][1]


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["paths", "bias_variance", "errors"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--paths.l1_ratio", "1"], "paths.l1_ratio"),
        (["--paths.strengths", "0"], "paths.strengths[0]"),
        (["--noise.draws", "2"], "noise.draws"),
        (["--precision", "float32"], "precision"),
        (["--data", "iris"], "iris"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)


def test_more_columns_than_rows_are_refused():
    with pytest.raises(ConfigError, match=r"errors.degree: got 3, which makes 274 columns for 221 rows"):
        measure(Config.model_validate({"errors": {"degree": 3}}))
