import numpy as np
import pytest

from calcdl.calculus.smoothness import CORNER, DIFFERENTIABLE
from calcdl.experiments.derivatives import EXPERIMENT, Config, check, measure, show
from calcdl.lab.cli import main
from calcdl.lab.config import ConfigError, build, read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "derivatives.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


@pytest.fixture
def judged(config, results):
    def judge(name, change):
        return [verdict.holds for verdict in check(config, results.assign({name: change(results[name])}))]

    return judge


def test_the_default_file_is_the_default(configs):
    assert read(configs / "derivatives.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 5
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert "f'(1) = 4" in verdicts[0].evidence


def test_the_norm_has_a_corner_at_the_origin_only(results):
    assert (results["point_verdict"] == CORNER).all()
    assert results["point_left"].values == pytest.approx(-1)
    assert results["point_right"].values == pytest.approx(1)
    lengths = results["fields_length"]
    assert np.isfinite(lengths).sum() == lengths.size - 1
    np.testing.assert_allclose(lengths.values[np.isfinite(lengths.values)], 1, rtol=1e-14)


@pytest.mark.parametrize(
    ("claim", "name", "change"),
    [
        (0, "curves_automatic", lambda slope: slope * (1 + 1e-12)),
        (1, "curves_difference", lambda slope: slope + 1e-6),
        (2, "gaps_gap", lambda gap: gap + 1e-4),
        (3, "fields_uphill", lambda slope: -slope),
        (3, "fields_steepest", lambda slope: slope * 1.01),
        (4, "point_verdict", lambda verdict: verdict * 0 + DIFFERENTIABLE),
    ],
)
def test_a_claim_that_is_not_so_is_seen(judged, claim, name, change):
    assert judged(name, change) == [number != claim for number in range(5)]


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures)[:2] == ["tangents", "gradients"]
    assert all(figure.get_label() for figure in figures.values())


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"curves": {"functions": ("3x",), "at": (1.0,)}}, r"curves\.functions\[0\].*3\*x"),
        ({"fields": {"functions": ("x1 + y",)}}, r"fields\.functions\[0\].*y"),
        ({"curves": {"at": (1.0,)}}, r"curves\.at.*3 numbers"),
    ],
)
def test_bad_formulas_are_refused_by_place(table, said):
    with pytest.raises(ConfigError, match=said):
        build(Config, table)


def test_a_bad_flag_ends_with_the_code_of_bad_usage(capsys):
    assert main(EXPERIMENT, ["--curves.reach", "-1"]) == 2
    assert "curves.reach" in capsys.readouterr().err
