import numpy as np
import pytest

from calcdl import data, study
from calcdl.experiments.separation import (
    CONVERGES,
    EXPERIMENT,
    IN_PART,
    SEPARABLE,
    UNFINISHED,
    Config,
    check,
    decided,
    measure,
    problems,
    show,
)
from calcdl.lab.config import ConfigError, read
from calcdl.lab.session import plans
from calcdl.optim import separability
from calcdl.optim.solver import CONVERGED, STEP_LIMIT


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "separation.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "separation.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 5
    assert all(verdict.holds for verdict in verdicts), verdicts


def test_reports_are_what_is_known_of_iris(results):
    tried = study.part(results, "attempts")
    reported = {str(one.case.values): one.reported.values.tolist() for _, one in tried.groupby("case", squeeze=False)}
    reported = {title.strip("[]'"): ends[0] for title, ends in reported.items()}
    assert reported["iris: setosa from the rest, 4 columns"] == [SEPARABLE]
    assert reported["iris: all classes, 4 columns"] == [IN_PART]
    others = [title for title in reported if "1 columns" in title or ": v" in title]
    assert len(others) == 6
    assert all(reported[title] == [CONVERGES] for title in others)


def test_a_small_gradient_is_no_evidence(results):
    setosa = study.part(results, "attempts").sel(case="iris: setosa from the rest, 4 columns", solver="newton")
    assert setosa.ended == CONVERGED
    assert float(setosa.gradient_norm) < 1e-8
    assert setosa.reported == SEPARABLE


def test_contradictions_are_noticed(config, results):
    wrong = results.copy(deep=True)
    wrong["attempts_reported"][-1, 0] = UNFINISHED
    wrong["attempts_proof"][0, 0] = separability.SEPARABLE
    wrong["descent_norm"][...] = 1.1 * wrong.descent_norm.max()
    assert [verdict.holds for verdict in check(config, wrong)] == [False] * 5


def test_a_run_that_has_not_converged_is_not_called_so(results):
    (one,) = (one for one in problems("iris", data.load("iris"), (1,)) if one.target == "setosa")
    tried = study.part(results, "attempts").sel(case=[one.title]).drop_vars(["reported", "known", "share"])
    tried["ended"][...] = STEP_LIMIT
    assert (decided([tried], [one]).reported == UNFINISHED).all()


def test_problems_are_all_classes_and_each_from_the_rest_once():
    found = problems("iris", data.load("iris"), (4, 2, 100))
    assert [(one.target, one.columns) for one in found[:4]] == [
        ("all classes", 2), ("setosa", 2), ("versicolor", 2), ("virginica", 2),
    ]  # fmt: skip
    assert len(found) == 8
    assert found[6].case.x.shape == (150, 5)
    assert np.flatnonzero(found[6].case.y).tolist() == list(range(50, 100))
    (two,) = problems("breast_cancer", data.load("breast_cancer"), (30,))
    assert two.title == "breast_cancer: benign from the rest, 30 columns"


def test_a_dry_run_decides_nothing(config, monkeypatch):
    monkeypatch.setattr("calcdl.optim.separability.decide", None)
    assert [plan.lanes for plan in plans(measure, config)] == [6, 2, 3]


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["growth", "reports"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "irs"], "did you mean 'iris'?"),
        (["--columns", "0"], "columns[0]"),
        (["--descent_steps", "10"], "descent_steps"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)


def test_too_many_coefficients_are_refused():
    with pytest.raises(ConfigError, match="data: got digits: all classes, 32 columns; expected at most 100"):
        measure(Config.model_validate({"data": ("digits",), "columns": (32,)}))
