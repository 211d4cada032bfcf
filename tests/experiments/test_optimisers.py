import numpy as np
import pytest

from calcdl.experiments.optimisers import DISTINCT, EXPERIMENT, OPTIMISERS, SELECTED, Config, check, measure, show
from calcdl.lab.cli import main
from calcdl.lab.config import ConfigError, build, read
from calcdl.theory import stability


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "optimisers.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


@pytest.fixture
def judged(config, results):
    def judge(name, change):
        return [verdict.holds for verdict in check(config, results.assign({name: change(results[name])}))]

    return judge


def test_the_default_file_is_the_default(configs):
    assert read(configs / "optimisers.toml", Config) == Config()
    assert {*DISTINCT, *SELECTED} <= {*OPTIMISERS}


def test_the_large_file_names_them_all(configs):
    config = read(configs / "optimisers.all.toml", Config)
    for section in (config.limits, config.classics, config.digits):
        assert section.optimisers == tuple(OPTIMISERS)


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 4
    assert all(verdict.holds for verdict in verdicts), verdicts


def test_limits_are_measured_and_predicted_by_curvature(results):
    limits = results.limits_measured.to_series()
    assert limits["momentum"] == pytest.approx(3.8 / 3, rel=3e-3)
    assert limits["adam"] == pytest.approx(3.8e-7 / 3, rel=3e-3)
    assert limits["lion"] == 0
    assert limits["polyak_sgd"] == np.inf
    kinds = [stability.LIMITED, stability.LIMITED, stability.NOT_PROPORTIONAL, stability.UNLIMITED]
    assert results.limits_kind.values.tolist() == kinds


def test_costs_are_those_of_the_state(results):
    assert results.digits_copies.values == pytest.approx([2], abs=2e-3)
    assert (results.digits_milliseconds > 0).all()


@pytest.mark.parametrize(
    ("claim", "name", "change"),
    [
        (0, "limits_measured", lambda rate: rate * 1.02),
        (1, "limits_measured", lambda rate: rate.where(np.isfinite(rate), 1e6)),
        (2, "classics_end", lambda end: end.where(end.classics_optimiser != "sgd", 1e-9)),
        (3, "digits_accuracy", lambda accuracy: accuracy * 0.5),
    ],
)
def test_a_claim_that_is_not_so_is_seen(judged, claim, name, change):
    assert judged(name, change) == [number != claim for number in range(4)]


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["sensitivity", "limits", "digits", "by_step", "paths_1", "costs"]
    assert all(figure.get_label() for figure in figures.values())


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"limits": {"optimisers": ("adm",)}}, r"limits\.optimisers\[0\].*'adam'"),
        ({"classics": {"functions": ("x + z",)}}, r"classics\.functions\[0\].*z"),
        ({"classics": {"steps": (1,)}}, r"classics\.steps.*2 values"),
        ({"digits": {"steps": 155}}, r"digits\.steps.*record_every"),
    ],
)
def test_bad_values_are_refused_by_place(table, said):
    with pytest.raises(ConfigError, match=said):
        build(Config, table)


def test_a_bad_flag_ends_with_the_code_of_bad_usage(capsys):
    assert main(EXPERIMENT, ["--limits.curvature", "-1"]) == 2
    assert "limits.curvature" in capsys.readouterr().err
