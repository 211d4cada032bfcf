import numpy as np
import pytest

from calcdl import study
from calcdl.experiments.boosting import EXPERIMENT, SEARCHES, Config, boost, check, loss_of, measure, show
from calcdl.lab.config import ConfigError, read
from calcdl.lab.session import plans


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "boosting.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "boosting.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 5
    assert all(verdict.holds for verdict in verdicts), verdicts


def test_contradictions_are_noticed(config, results):
    wrong = results.copy(deep=True)
    wrong["regression_difference"][0, 3, 0] = 2e-6
    wrong["classification_train"].loc[{"classification_search": SEARCHES[0]}] += 2e-6
    wrong["outliers_train_loss"][0, 5, 1, 1] = 1.01 * wrong.outliers_train_loss[0, 4, 1, 1]
    wrong["regression_validation"][...] = wrong.regression_validation[:, ::-1].values
    wrong["outliers_error"][...] = wrong.outliers_error[::-1].values
    assert [verdict.holds for verdict in check(config, wrong)] == [False] * 5


def test_a_measurement_that_is_lost_is_no_evidence(config, results):
    wrong = results.copy(deep=True)
    wrong["regression_difference"][0, 0, 0] = np.nan
    wrong["outliers_train_loss"][0, 0, 0, 0] = np.nan
    held = [verdict.holds for verdict in check(config, wrong)]
    assert not held[0]
    assert not held[2]


def test_claims_that_cannot_be_tested_are_left_out(config, results):
    one_rate = results.isel(regression_learning_rate=[0], outliers_loss=[0])
    assert len(check(config, one_rate)) == 3


def test_the_best_constant_is_the_one_that_is_known(results):
    outliers, regression = study.part(results, "outliers"), study.part(results, "regression")
    np.testing.assert_allclose(regression.train.isel(stage=0) ** 2, regression.train_loss[0, 0, 0] / 332, rtol=1e-3)
    spoiled, clean = (outliers.train_loss.sel(loss="squared_error", share=share)[0] for share in (0.1, 0.0))
    moved = round(0.1 * 332) / 332
    assert (spoiled > clean * (1 + 0.8 * 100 * moved * (1 - moved))).all()


def test_a_dry_run_boosts_nothing(config, monkeypatch):
    monkeypatch.setattr("calcdl.experiments.boosting.boost", None)
    (plan,) = plans(measure, config)
    assert plan.lanes == 3


def test_a_formula_is_the_loss_that_it_writes():
    x, y, known = np.linspace(-1, 1, 24)[:, None], np.linspace(-1, 1, 24) ** 3, np.arange(24)
    settings = {"stages": 2, "rates": [0.5], "depth": 1, "leaf_rows": 3}
    path = boost("(prediction - target)**4", x, y, known, **settings)
    np.testing.assert_allclose(path.residual, -4 * (path.prediction - y) ** 3, rtol=1e-12)


def test_hubers_loss_is_linear_from_delta_on():
    loss = loss_of("huber", 3.0)
    assert float(loss(np.float64(10.0), np.float64(0.0)) - loss(np.float64(9.0), np.float64(0.0))) == 3.0


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["function_space", "stages", "line_searches", "outliers"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--curve.loss", "predicton**2"], 'unknown name "predicton"'),
        (["--outliers.losses", "squared_error", "hubr"], "outliers.losses[1]"),
        (["--regression.learning_rates", "1.5"], "regression.learning_rates[0]"),
        (["--regression.seeds", "1"], "regression.seeds"),
        (["--classification.data", "iris"], "classification.data: got 'iris' of 3 classes"),
        (["--regression.data", "diabets"], "did you mean 'diabetes'?"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)


def test_a_loss_that_does_not_fit_the_data_is_refused(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("the loss is not finite")

    monkeypatch.setattr("calcdl.optim.function_space.gradient_boosting", refuse)
    with pytest.raises(ConfigError, match=r"loss 'binary_cross_entropy': the loss is not finite"):
        boost("binary_cross_entropy")
