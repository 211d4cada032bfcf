import math

import numpy as np
import pytest

from calcdl import study
from calcdl.experiments import blocks
from calcdl.experiments.blocks import EXPERIMENT, Config, check, measure, scale, settings, show
from calcdl.lab.config import read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "blocks.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "blocks.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 7
    assert all(verdict.holds for verdict in verdicts), verdicts
    (explosion,) = [verdict for verdict in verdicts if "explode" in verdict.claim]
    assert explosion.value == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=0.05)


def test_a_contradiction_is_noticed(config, results):
    wrong = results.copy(deep=True)
    wrong["dense_total_gain"] = wrong["dense_total_gain"] + 1e-3
    assert not check(config, wrong)[-1].holds
    wrong["dense_signal"] = wrong["dense_signal"] * np.exp(0.5 * np.arange(16))
    failed = [verdict for verdict in check(config, wrong) if not verdict.holds]
    assert [verdict.claim.split(",")[0] for verdict in failed].count("dense networks") == 4


def test_each_part_is_there_where_its_cause_is(results):
    found = study.part(results, "dense")
    plain, normalised = found.sel(normalisation="none"), found.sel(normalisation="batch")
    assert float(np.abs(plain.normalisation_gain).max()) == 0
    assert float(np.abs(normalised.normalisation_gain).min()) > 0
    assert float(np.abs(found.sel(residual="none").skip_gain).max()) == 0
    assert float(found.sel(residual="plain").skip_gain.mean()) > 0
    assert float(found.sel(activation="sigmoid").activation_gain.max()) <= math.log(0.25)


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["signal_by_layer", "attribution", "convolutional", "departures"]
    assert all(figure.axes for figure in figures.values())


def test_settings_are_predicted_where_there_is_theory(config, results):
    found = list(settings(config, results))
    assert len(found) == 9
    assert not any(math.isnan(one.predicted) for one in found)
    networks = config.convolutional
    assert blocks.predict("convolutional", "batch", "none", "relu", networks, results) is None
    assert scale("none", 16) is None
    assert scale("scaled", 16) == 0.25


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dense.batch", "3"], "dense.batch"),
        (["--dense.batch", "2000"], "at most 1000"),
        (["--convolutional.depth", "4"], "convolutional.depth"),
        (["--dense.normalisations", "bach"], "batch"),
        (["--dense.residuals", "skaled"], "scaled"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)
