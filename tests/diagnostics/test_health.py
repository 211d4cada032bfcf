import math

import numpy as np
import pytest

from calcdl.diagnostics.health import Decay, decay, in_words, settled_layers


def signal(factor, runs=8, depth=20, noise=0.05, seed=3):
    jitter = np.random.default_rng(seed).normal(0, noise, (runs, depth))
    return np.exp(np.log(factor) * (depth - np.arange(1, depth + 1)) + jitter)


def test_the_factor_is_found_within_its_interval():
    found = decay(signal(0.8))
    assert found.lower < 0.8 < found.upper
    assert found.upper - found.lower < 0.02
    assert found.factor == pytest.approx(0.8, rel=0.01)


def test_the_interval_is_students_over_runs():
    slopes = np.log(np.array([0.5, 0.6, 0.8]))
    exact = np.exp(np.outer(slopes, np.arange(9.0, -1.0, -1.0)))
    found = decay(exact)
    mean, error = slopes.mean(), slopes.std(ddof=1) / math.sqrt(3) * 4.302652729911275
    assert found.factor == pytest.approx(math.exp(mean), rel=1e-9)
    assert found.lower == pytest.approx(math.exp(mean - error), rel=1e-9)
    assert found.upper == pytest.approx(math.exp(mean + error), rel=1e-9)


def test_it_covers_the_truth_about_nineteen_times_in_twenty():
    hits = sum(decay(signal(0.9, seed=seed)).lower < 0.9 < decay(signal(0.9, seed=seed)).upper for seed in range(200))
    # 190 expected, standard deviation 3.1
    assert 178 <= hits <= 200


@pytest.mark.parametrize("scale", [1e-12, 128.0, 1e20])
def test_no_scale_of_the_loss_changes_a_verdict(scale):
    assert in_words(decay(scale * signal(0.8))) == in_words(decay(signal(0.8)))


def test_layers_that_settle_do_not_count():
    disturbed = signal(0.8, noise=0.0)
    disturbed[:, :4] *= 50
    disturbed[:, -1] *= 7
    assert decay(disturbed).factor == pytest.approx(0.8, rel=1e-9)
    assert settled_layers(20) == range(4, 19)


def test_words_follow_the_interval():
    assert in_words(decay(signal(0.8))).startswith("vanishes")
    assert in_words(decay(signal(1.25))).startswith("explodes")
    assert in_words(decay(signal(1.0))).startswith("is kept")


def test_words_give_the_share_with_two_digits():
    assert "1/2,400 of the last" in in_words(Decay(0.5, 0.4, 0.6, 1 / 2412, 3, 3))
    assert "receives 3.5 times the last" in in_words(Decay(1.5, 1.4, 1.6, 3.46, 3, 3))
    assert "1/3.0e+27 of" in in_words(Decay(0.2, 0.1, 0.3, 1 / 2.95e27, 3, 3))


def test_runs_without_a_signal_are_counted_not_averaged():
    broken = signal(0.8)
    broken[0, 0] = 0.0
    broken[1, 3] = np.nan
    found = decay(broken)
    assert (found.runs, found.total) == (6, 8)
    assert "(6 of 8 runs)" in in_words(found)
    silent = decay(np.zeros((4, 5)))
    assert math.isnan(silent.factor)
    assert "0 of 4 runs" in in_words(silent)


def test_one_run_gives_no_interval_and_no_verdict():
    found = decay(signal(0.8)[:1])
    assert (found.lower, found.upper) == (0.0, math.inf)
    assert in_words(found).startswith("cannot be judged: 1 of 1 runs")


def test_a_table_is_needed():
    with pytest.raises(ValueError, match=r"\[runs, depth\]"):
        decay(np.ones(5))
