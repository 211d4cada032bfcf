import numpy as np
import pytest

from calcdl import data, study
from calcdl.experiments.classification import (
    EXPERIMENT,
    Case,
    Config,
    check,
    design,
    fit,
    grouped,
    measure,
    probabilities,
    show,
)
from calcdl.lab.config import ConfigError, read
from calcdl.lab.session import plans


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "classification.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "classification.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 5
    assert all(verdict.holds for verdict in verdicts), verdicts


def test_contradictions_are_noticed(config, results):
    wrong = results.copy(deep=True)
    wrong["fits_objective"][...] *= 1 + 1e-9
    wrong["fits_coefficients"][...] += 1e-4
    wrong["fits_gap"][0, 0, 0] = 1e-7
    wrong["steps_value"][...] = wrong.steps_value[::-1].values
    assert [verdict.holds for verdict in check(config, wrong)] == [False] * 5
    lost = results.copy(deep=True)
    lost["fits_gap"][0, 0, 0] = np.nan
    assert not check(config, lost)[3].holds


def test_fits_are_those_on_record(truths, results):
    records = {record["id"]: record for record in truths("sklearn_refs.json")["refs"]}
    cancer = data.load("breast_cancer")
    two = grouped(
        study.run, lambda key, tables, **point: fit(key, tables, solver="newton", strength=1.0, steps=50, **point),
        {"breast_cancer": Case(design(cancer), cancer.targets)}, [], name="fits", dtype="float64",
        dimensions={"coefficients": ("column", "output")},
    ).isel(case=0)  # fmt: skip
    record = records["breast_cancer_std_logistic_C1.0"]
    np.testing.assert_allclose(two.objective, record["objective_value"], rtol=1e-10)
    np.testing.assert_allclose(two.coefficients[1:, 0], record["coef"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(two.coefficients[0, 0], record["intercept"], rtol=0, atol=1e-6)
    three = study.part(results, "fits").sel(case="iris", strength=1.0)
    record = records["iris_std_softmax_C1"]
    known = np.reshape(record["coef"], record["shape"])
    for solver in ("newton", "lbfgs"):
        one = three.sel(solver=solver)
        np.testing.assert_allclose(one.objective, record["objective_value"], rtol=1e-10)
        np.testing.assert_allclose(one.coefficients[1:].values.T, known, rtol=0, atol=1e-6)
        np.testing.assert_allclose(one.coefficients[0], record["intercept_minus_mean"], rtol=0, atol=1e-6)
        right = probabilities(one.coefficients.values, design(data.load("iris"))).argmax(axis=1)
        assert (right == data.load("iris").targets).mean() == pytest.approx(record["train_accuracy"])


def test_cases_of_one_shape_do_not_feel_what_fills_them(config, results):
    alone = study.part(results, "fits").sel(case="iris, 2 columns", solver="newton", strength=1.0)
    assert np.isfinite(alone.coefficients[:3]).all()
    assert (alone.coefficients[3:] == 0).all()
    assert (study.part(results, "reference").coefficients.sel(case="iris, 2 columns")[:, 3:].isnull()).all()


def test_probabilities_of_two_classes_are_those_of_the_logistic_function():
    w, x = np.array([[0.5], [2.0]]), np.array([[1.0, -1.0], [1.0, 400.0]])
    np.testing.assert_allclose(probabilities(w, x)[:, 1], [1 / (1 + np.exp(1.5)), 1.0], rtol=1e-12)


def test_a_dry_run_fits_nothing(config, monkeypatch):
    monkeypatch.setattr("calcdl.experiments.classification.reference", None)
    fits, steps = plans(measure, config)
    assert (fits.lanes, steps.lanes) == (8, 2)


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["boundary", "methods"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "irs"], "did you mean 'iris'?"),
        (["--data", "diabetes"], "diabetes"),
        (["--boundary.across", "petal length (cm)"], "boundary.across"),
        (["--boundary.strength", "3"], "boundary.strength"),
        (["--fits.strengths", "0"], "fits.strengths[0]"),
        (["--precision", "float32"], "precision"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)


def test_a_column_that_is_not_there_is_refused():
    boundary = {"data": ("iris",), "across": ("petal length",), "up": ("petal width (cm)",)}
    with pytest.raises(
        ConfigError, match=r"boundary.across\[0\]: got 'petal length'; expected a column of iris: sepal"
    ):
        measure(Config.model_validate({"data": ("iris",), "boundary": boundary}))


def test_a_file_of_ones_own_is_fitted(tmp_path, monkeypatch):
    path = tmp_path / "pets.csv"
    rows = "\n".join(f"{size},{size % 3},{'dog' if size > 4 else 'cat'}" for size in range(9))
    path.write_text(f"size,colour,kind\n{rows}\n")
    seen = {}

    def run(function, axes, *, name, shared, **_):
        seen[name] = shared["tables"]
        raise StopIteration

    config = Config.model_validate({"data": (str(path),), "target": "kind"})
    with pytest.raises(StopIteration):
        measure(config, run)
    assert seen["fits_2"][1][0, :9].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
