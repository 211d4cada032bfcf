import jax
import numpy as np
import pytest

from calcdl import study
from calcdl.experiments.autoencoder import (
    EXPERIMENT,
    Config,
    apart,
    check,
    chords,
    independent,
    measure,
    problem,
    show,
)
from calcdl.lab.config import ConfigError, read
from calcdl.nn.variational import Coder


@pytest.fixture(scope="module")
def config(configs):
    quick = read(configs / "autoencoder.quick.toml", Config)
    network = quick.network.model_copy(update={"depth": 0, "steps": 200, "seeds": (0, 1), "draws": 2, "batch": 32})
    return quick.model_copy(update={"network": network})


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "autoencoder.toml", Config) == Config()
    read(configs / "autoencoder.quick.toml", Config)


def test_every_claim_holds_but_the_one_that_needs_longer_training(config, results):
    verdicts = check(config, results)
    assert [verdict.holds for verdict in verdicts] == [True, True, True, False], verdicts
    better = results.copy(deep=True)
    better["networks_held_out"][...] = 50 + better.networks_held_out * 1e-3
    assert check(config, better)[-1].holds


def test_contradictions_are_noticed(config, results):
    wrong = results.copy(deep=True)
    wrong["gradients_means"][0, 0, 1] += 5 * abs(wrong.gradients_means[0, 0, 1]).max()
    wrong["gradients_variance"][0, 0, 0] *= 100
    wrong["networks_train"][0, :, 0] -= 1000
    assert [verdict.holds for verdict in check(config, wrong)] == [False] * 4


def test_a_rate_that_rises_with_its_price_is_no_minimum(config, results):
    wrong = results.copy(deep=True)
    wrong["networks_train"][...] = wrong.networks_train.values[::-1, :, ::-1]
    verdict = check(config, wrong)[2]
    assert not verdict.holds


def test_a_run_that_did_not_end_is_no_evidence(config, results):
    wrong = results.copy(deep=True)
    wrong["networks_status"][0, 0] = 1
    wrong["gradients_status"][0] = 1
    assert not any(verdict.holds for verdict in check(config, wrong))


def test_estimators_share_their_draws_and_differ_by_chance(results):
    found = study.part(results, "gradients")
    away = apart(found)
    assert away.shape == (2, 2, 2, 8)
    assert 0.5 < float((away**2).mean()) < 2
    assert (found.length > 0).all()


def test_chords_are_those_of_a_parabola(results):
    networks = study.part(results, "networks")
    rate = np.array([4.0, 1.0])[:, None] + np.zeros((2, 2))
    networks["train"][...] = np.stack([(rate - 5) ** 2, rate], axis=-1)
    assert chords(networks) == pytest.approx([5.0])


def test_beta_weighs_the_rate_and_every_step_has_new_draws(key):
    same = Coder(lambda key: (), lambda _, x: (x, 0 * x), lambda _, z: z, lambda _, z, x: -((z - x) ** 2).sum(axis=1))
    x = np.arange(8.0).reshape(4, 2)
    task = problem(same, x, 5.0, 2, 2)
    schedule = jax.jit(lambda key: task.batches.prepare(key, 0, 3))(key)
    rows, noise = jax.tree.map(np.asarray, task.batches.take(jax.tree.map(lambda leaf: leaf[1], schedule)))
    expected = np.mean((noise**2).sum(axis=1) + 5.0 * (rows**2).sum(axis=1) / 2)
    assert float(task.loss((), (rows, noise))) == pytest.approx(expected, rel=1e-12)
    assert len(np.unique(np.asarray(schedule[1]))) == 3 * 2 * 2


def test_histograms_of_pixels_give_their_own_likelihood():
    known = np.array([[0.0], [0.0], [1.0]])
    assert independent(known, np.array([[0.0], [0.5]])) == pytest.approx((np.log(3 / 20) + np.log(1 / 20)) / 2)


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["samples", "rate_distortion", "gradients"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--network.betas", "2", "1"], "network.betas[1]"),
        (["--network.betas", "2"], "network.betas"),
        (["--network.activation", "gelo"], "gelu"),
        (["--gradients.blocks", "1"], "gradients.blocks"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)


def test_a_batch_larger_than_the_data_is_refused():
    for path, values in (
        ("network.batch", {"network": {"batch": 5000}}),
        ("gradients.rows", {"gradients": {"rows": 5000}}),
    ):
        with pytest.raises(ConfigError, match=rf"{path}: got 5000; expected at most the"):
            measure(Config.model_validate(values))
