import numpy as np
import pytest
from scipy.stats import multivariate_normal

from calcdl import study
from calcdl.experiments.linear_autoencoder import (
    EXPERIMENT,
    Config,
    angle,
    check,
    divergence,
    gaps,
    integral,
    log_likelihood,
    measure,
    show,
)
from calcdl.lab.config import ConfigError, read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "linear_autoencoder.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "linear_autoencoder.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 6
    assert all(verdict.holds for verdict in verdicts), verdicts


def test_contradictions_are_noticed(config, results):
    wrong = results.copy(deep=True)
    wrong["divergence_closed"][-1, 0] += 1e-5 * wrong.divergence_closed[-1, 0]
    wrong["divergence_average"][0, -1] += 5 * wrong.divergence_error[0, -1]
    wrong["linear_elbo"][0, 0, 0] += 100
    wrong["linear_elbo"][0, 0, -1] -= 0.01
    wrong["linear_variance"][0, 0] *= 1.02
    wrong["linear_weight"][1, 1, 1, :] += 0.1
    assert [verdict.holds for verdict in check(config, wrong)] == [False] * 6


def test_a_run_that_did_not_end_is_no_evidence(config, results):
    wrong = results.copy(deep=True)
    wrong["linear_status"][0, 0] = 1
    assert [verdict.holds for verdict in check(config, wrong)] == [True, True, *[False] * 4]


def test_kl_is_that_on_record(truths, key):
    for row in truths("dl_theory.json")["vae"]["rows"]:
        found = divergence(key, centre=np.float64(row["mu"]), deviation=np.float64(row["sigma"]), draws=10)
        assert float(found["closed"]) == pytest.approx(row["kl"], abs=1e-10)
        assert integral(float(row["mu"]), float(row["sigma"])) == pytest.approx(row["kl"], abs=1e-10)


def test_the_likelihood_is_that_of_the_normal_distribution_it_stands_for():
    x = np.random.default_rng(0).normal(size=(50, 5)) * np.array([3.0, 2.0, 1.0, 0.5, 0.4])
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    modelled = np.concatenate([values[:2], np.full(3, values[2:].mean())])
    law = multivariate_normal(x.mean(axis=0), vectors @ np.diag(modelled) @ vectors.T)
    assert log_likelihood(values, 2) == pytest.approx(law.logpdf(x).mean(), rel=1e-12)


def test_angles_between_subspaces():
    first = np.eye(4)[:2]
    mixed = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]])
    tilted = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, np.cos(0.1), np.sin(0.1), 0.0]])
    assert angle(mixed, first) == pytest.approx(0, abs=1e-6)
    assert angle(tilted, first) == pytest.approx(np.degrees(0.1), rel=1e-9)
    assert np.isnan(angle(mixed * np.nan, first))


def test_numbers_that_are_not_used_stay_out(results):
    linear = study.part(results, "linear")
    assert not linear.weight.sel(latents=1).isel(latent=1).values.any()
    assert (gaps(linear).isel(record=0) > gaps(linear).isel(record=-1)).all()


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["bound"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--linear.steps", "75"], "multiple of linear.record_every = 50"),
        (["--linear.latents", "33"], "linear.latents[0]"),
        (["--linear.seeds", "1"], "linear.seeds"),
        (["--divergence.deviations", "0"], "divergence.deviations[0]"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match=r"linear.batch: got 5000; expected at most the 1797 rows"):
        measure(Config.model_validate({"linear": {"batch": 5000}}))
