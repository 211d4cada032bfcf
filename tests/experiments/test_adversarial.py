import numpy as np
import pytest
import xarray

from calcdl import study
from calcdl.experiments.adversarial import (
    EXPERIMENT,
    PLAIN,
    PLAYS,
    Config,
    check,
    effective,
    late,
    measure,
    middling,
    show,
    stages,
)
from calcdl.lab.config import read
from calcdl.nn.adversarial import GAMES, PENALTIES


@pytest.fixture(scope="module")
def config(configs):
    """Hardly any training: what the players learn is for the published page, what is made of it is tested here."""
    quick = read(configs / "adversarial.quick.toml", Config)
    tiny = {"steps": 40, "records": 4, "width": 8, "samples": 256, "depth": 1, "batch": 16}
    mixture = quick.mixture.model_copy(update={**tiny, "seeds": (0, 1, 2)})
    digits = quick.digits.model_copy(update={**tiny, "games": ("saturating",)})
    return quick.model_copy(update={"mixture": mixture, "digits": digits})


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


@pytest.fixture
def good(results):
    """What the measurements would be if all claims held."""
    made = results.copy(deep=True)
    plain = (made.mixture_game == PLAIN).values[:, None, None, None]
    lanes = np.linspace(0, 0.1, 3)[None, None, :, None]
    made["mixture_modes"][...] = np.where(plain, 0.6, 0.9) + lanes
    made["mixture_distance"][...] = np.where(plain, 0.4, 0.2) + lanes
    made["digits_shares"][...] = 0.1
    made["digits_distance"][...] = 2 * made.digits_floor.values[..., None]
    made["digits_nearest"][...] = 1.1
    return made


def test_the_default_file_is_the_default(configs):
    assert read(configs / "adversarial.toml", Config) == Config()
    assert {rules for rules, _ in PLAYS.values()} == set(GAMES)
    assert {penalty for _, penalty in PLAYS.values()} == set(PENALTIES)


def test_claims_hold_where_they_should(config, good):
    verdicts = check(config, good)
    assert [verdict.holds for verdict in verdicts] == [True] * 5, verdicts


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("mixture_modes", 0.7, 0),
        ("mixture_distance", 0.3, 1),
        ("digits_distance", 1.0, 3),
        ("digits_nearest", 0.5, 4),
    ],
)
def test_contradictions_are_noticed(config, good, name, value, number):
    good[name][...] = value
    assert [verdict.holds for verdict in check(config, good)] == [place != number for place in range(5)]


def test_a_generator_of_two_digits_is_noticed(config, good):
    good["digits_shares"][...] = np.array([0.5, 0.5, *[0.0] * 8])
    verdict = check(config, good)[2]
    assert not verdict.holds
    assert verdict.value == pytest.approx(2)


def test_a_difference_within_the_noise_is_none(config, good):
    noise = np.array([0.3, -0.3, 0.1])[None, None, :, None] * np.array([1, -1])[:, None, None, None]
    good["mixture_modes"][...] = good.mixture_modes.values + noise
    assert not check(config, good)[0].holds


def test_a_run_that_did_not_end_is_no_evidence(config, good):
    good["mixture_status"][0, 0, 0] = 1
    good["digits_status"][0, 0, 0] = 1
    assert not any(verdict.holds for verdict in check(config, good))


def test_what_is_measured_is_in_range(config, results):
    plane, images = (study.part(results, name) for name in ("mixture", "digits"))
    assert (plane.status == 0).all()
    assert (images.status == 0).all()
    assert plane.samples.shape == (2, 1, 3, 4, 256, 2)
    assert ((plane.modes >= 0) & (plane.modes <= 1) & (plane.good <= 1)).all()
    assert (plane.distance > plane.floor).all()
    np.testing.assert_allclose(images.shares.sum("digit"), 1, rtol=1e-5)
    assert (images.accuracy > 0.95).all()
    assert ((images.samples >= 0) & (images.samples <= 1)).all()


def test_games_share_the_data_and_differ_in_what_they_make(results):
    plane = study.part(results, "mixture")
    np.testing.assert_array_equal(plane.points.isel(game=0), plane.points.isel(game=1))
    assert (plane.samples.isel(game=0) != plane.samples.isel(game=1)).any()


def test_entropy_counts_classes():
    shares = xarray.DataArray([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]], dims=("run", "digit"))
    np.testing.assert_allclose(effective(shares), [4, 1])


def test_the_second_half_and_all_rates_count(results):
    plane = study.part(results, "mixture")
    plane["modes"][...] = np.arange(4.0)
    np.testing.assert_allclose(late(plane, "modes"), 2.5)


def test_the_median_run_is_drawn(results):
    plane = study.part(results, "mixture")
    plane["distance"][...] = np.array([3.0, 1.0, 2.0])[None, None, :, None]
    assert int(middling(plane, PLAIN).seed) == 2


def test_stages_thin_out_towards_the_end():
    chosen, steps = stages(Config().digits)
    assert list(chosen) == [0, 1, 4, 9]
    assert list(steps) == [300, 600, 1500, 3000]


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["mixture", "digits", "measures"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mixture.records", "7"], "mixture.records"),
        (["--mixture.games", "saturating", "non-saturating"], "a game with a penalty"),
        (["--mixture.layout", "grid"], "a square number for a grid"),
        (["--digits.games", "hinge"], "digits.games[0]"),
        (["--digits.samples", "1000"], "digits.samples"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)
