import numpy as np
import pytest

from calcdl import study
from calcdl.experiments.dirac_gan import EXPERIMENT, Config, check, factors, measure, rules_of, show
from calcdl.lab.config import read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "dirac_gan.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "dirac_gan.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 10
    assert all(verdict.holds for verdict in verdicts), verdicts


def test_contradictions_are_noticed(config, results):
    wrong = results.copy(deep=True)
    wrong["pace_closed"][0, 0, 0, 0, 0] *= 1.001
    wrong["region_nearer"][:] = ~wrong.region_nearer
    wrong["paths_field"][0, 0, 0, 0] += 0.1
    wrong["paths_x"][0, 0, 5] *= 1.2
    wrong["paths_x"][1, 0, -100:] *= 1.1
    wrong["paths_x"][2, 0, -1] *= 1.1
    wrong["paths_x"][3, 0, -1] += 0.1
    wrong["paths_x"][4, 0, -1] *= 0.01
    wrong["paths_x"][5, 0, -1] += 1
    assert [verdict.holds for verdict in check(config, wrong)] == [False, True, *[False] * 8]
    wrong["pace_late"][0, 0, 0, 0, 0] = np.nan
    assert [verdict.holds for verdict in check(config, wrong)][:2] == [False, False]


def test_factors_without_a_cure_are_those_by_hand(results):
    seen, known = factors(study.part(results, "pace"))
    for place, slope in enumerate((0.5, 1.0)):
        turn = np.array([0.1, 0.3]) * slope
        for found in (seen, known):
            np.testing.assert_allclose(found[place, 0, 0], np.stack([1 + 1j * turn] * 2, axis=1), rtol=1e-9)
            np.testing.assert_allclose(np.abs(found[place, 1, 0]), 1, rtol=1e-9)
            np.testing.assert_allclose(2 * np.sin(np.angle(found[place, 1, 0, :, 0]) / 2), turn, rtol=1e-9)


def test_a_formula_is_a_minimax_game():
    rules = rules_of("log(1 + exp(a))")
    for one, other in zip(rules, rules_of("saturating"), strict=True):
        assert float(one(np.float64(0.7))) == pytest.approx(float(other(np.float64(0.7))), rel=1e-12)


def test_the_generators_slope_is_that_on_record(truths):
    import jax

    for row in truths("dl_theory.json")["gan"]["gen_gradient"]:
        for game, column in (("saturating", "saturating"), ("non_saturating", "nonsaturating")):
            slope = jax.grad(rules_of(game).generator)(np.float64(row["D_logit"]))
            assert float(slope) == pytest.approx(row[column], rel=1e-9)


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["portraits", "region", "pace"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pace.games", "satturating"], "pace.games[0]"),
        (["--pace.cures", "clipping"], "pace.cures[0]"),
        (["--region.side", "3"], "region.side"),
        (["--strength.momentum", "-1"], "strength.momentum"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)
