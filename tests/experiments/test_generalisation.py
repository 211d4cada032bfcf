import numpy as np
import pytest

from calcdl.experiments.generalisation import EXPERIMENT, Config, check, entropy, gap, measure, remedied, show
from calcdl.lab.config import read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "generalisation.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "generalisation.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 10
    assert all(verdict.holds for verdict in verdicts), verdicts


def test_contradictions_are_noticed(config, results):
    wrong = results.copy(deep=True)
    for name in ("loss", "accuracy"):
        wrong[name][...] = results[name].isel(setting=1, step=-1).values[None, :, None] + 1
    assert [verdict.holds for verdict in check(config, wrong)] == [False] * 10


def test_a_run_that_diverged_is_no_evidence(config, results):
    wrong = results.copy(deep=True)
    wrong["status"][0, 0] = 1
    verdicts = check(config, wrong)
    assert not any(verdict.holds for verdict in verdicts)
    assert all("1 of 21 runs diverged" in verdict.evidence for verdict in verdicts)


def test_settings_share_rows_and_first_weights(results):
    first = results.loss.isel(step=0, setting=[0, 1]).values
    assert np.ptp(first, axis=0).max() < np.ptp(first, axis=1).min()


def test_early_stopping_keeps_the_step_that_the_rows_for_that_choose(config, results):
    (early,) = [one for name, one in remedied(config, results).items() if name.startswith("early")]
    held_out = results.loss.sel(part="validation").isel(setting=0)
    np.testing.assert_array_equal(early.loss.sel(part="validation"), held_out.min("step"))
    np.testing.assert_array_equal(gap(early), early.loss.sel(part="test") - early.loss.sel(part="train"))


@pytest.mark.parametrize(("wrong", "expected"), [(0.0, 0.0), (0.2, 0.866890), (1 - 1e-12, np.log(10))])
def test_entropy_of_a_label(wrong, expected):
    right = 1 - wrong + wrong / 10
    direct = -sum(p * np.log(p) for p in [right, *[wrong / 10] * 9] if p > 0)
    found = entropy(Config(wrong=wrong))
    assert found == pytest.approx(expected, abs=1e-5)
    assert found == pytest.approx(direct, abs=1e-12)


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["training", "gaps"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "12"], "multiple of record_every = 5"),
        (["--dropout-rates", "1"], "dropout_rates[0]"),
        (["--seeds", "1"], "seeds"),
        (["--rows", "5000"], "rows"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)
