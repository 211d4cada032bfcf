import numpy as np
import pytest

from calcdl import study
from calcdl.experiments.losses import EXPERIMENT, Config, by_logit, check, expected_steps, measure, show
from calcdl.lab.config import ConfigError, read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "losses.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "losses.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 5
    assert all(verdict.holds for verdict in verdicts), verdicts


def test_contradictions_are_noticed(config, results):
    wrong = results.copy(deep=True)
    wrong["gradients_gradient"][:, 0] *= np.array([1.0, 1 + 1e-5])
    wrong["gradients_softmax"][0, 0] *= 1 + 1e-5
    wrong["unit_steps"][0, 0] *= 2
    wrong["networks_accuracy"] = wrong.networks_accuracy[::-1].assign_coords(networks_loss=wrong.networks_loss)
    wrong["lines_intercept_error"][...] = 0.1
    wrong["lines_slope_error"][...] = 0.1
    assert [verdict.holds for verdict in check(config, wrong)] == [False] * 5


def test_a_unit_that_never_arrives_is_no_evidence(config, results):
    wrong = results.copy(deep=True)
    wrong["unit_steps"][...] = -1
    (verdict,) = [one for one in check(config, wrong) if "steps" in one.claim]
    assert not verdict.holds
    assert "0 of 4 descents arrived" in verdict.evidence


def test_gradients_of_saturated_outputs_are_those_on_record(truths, key):
    for row in truths("dl_theory.json")["saturated_output"]["rows"]:
        for loss, name in (("squared_error", "mse_grad"), ("cross_entropy", "bce_grad")):
            assert by_logit(key, loss=loss, logit=np.float64(row["a"]))["gradient"] == pytest.approx(
                row[name], rel=1e-9
            )


def test_times_are_those_in_closed_form(config):
    end, rate = float(np.log(0.2 / 0.8)), config.logits.learning_rate
    for start in (1.0, 4.0):
        linear = start - end + np.exp(-end) - np.exp(-start)
        cubic = 3 * (start - end) + np.exp(start) - np.exp(end) + 3 * (np.exp(-end) - np.exp(-start))
        cubic += (np.exp(-2 * end) - np.exp(-2 * start)) / 2
        assert expected_steps(config, "cross_entropy", start) == pytest.approx(linear / rate, rel=1e-12)
        assert expected_steps(config, "squared_error", start) == pytest.approx(cubic / rate, rel=1e-12)


def test_more_outliers_are_the_same_rows_and_others(results):
    lines = study.part(results, "lines")
    away = np.abs(lines.intercept_error.sel(loss="squared_error"))
    assert float(away.sel(share=0.2).median()) == pytest.approx(0.2 * 20 * 0.3, rel=0.25)
    assert float(away.sel(share=0.0).max()) < 0.1


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["gradients", "training", "outliers"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--networks.steps", "15"], "multiple of networks.record_every = 10"),
        (["--lines.shares", "0.6"], "lines.shares[0]"),
        (["--networks.seeds", "1"], "networks.seeds"),
        (["--logits.starts", "0"], "logits.starts[0]"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match=r"networks.batch: got 5000; expected at most the"):
        measure(Config.model_validate({"networks": {"batch": 5000}}))
