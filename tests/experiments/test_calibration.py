import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import study
from calcdl.experiments.calibration import EXPERIMENT, Config, check, chosen, measure, show, truth
from calcdl.lab.config import ConfigError, read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "calibration.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "calibration.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 4
    assert all(verdict.holds for verdict in verdicts), verdicts


def test_contradictions_are_noticed(config, results):
    wrong = results.copy(deep=True)
    wrong["path_gap"][0, 0, 0] = 1e-7
    wrong["path_norm"][...] = wrong.path_norm[:, ::-1].values
    wrong["path_loss"][..., 2] = wrong.path_loss[:, ::-1, :, 2].values * np.array([0.1, 1, 1, 1])[:, None]
    wrong["path_error"][...] = 1 - wrong.path_error
    wrong["path_error"][:, 0] = 0
    assert [verdict.holds for verdict in check(config, wrong)] == [False] * 4


def test_parts_are_half_and_quarters_of_the_rows(results):
    path = study.part(results, "path")
    assert (path.events.sum("bin") == 142).all()
    np.testing.assert_allclose(path.happened.sum("bin"), 89)  # benign, in the same share as in the whole
    assert float(chosen(path)[0]) in (0.1, 3.0)


def test_true_probabilities_have_the_error_that_chance_gives(key):
    logits = jax.random.normal(key, (3000, 3), jnp.float64)
    y = jax.random.categorical(jax.random.fold_in(key, 1), logits)
    found = truth(key, logits, y, jnp.ones(3000))
    assert float(found["error"]) == pytest.approx(float(found["error_if_true"]), abs=0.01)
    assert float(truth(key, 4 * logits, y, jnp.ones(3000))["error"]) > 5 * float(found["error_if_true"])


def test_rows_that_do_not_count_change_nothing(key):
    logits, y = jnp.array([[0.0, 1.0], [0.0, -2.0], [0.0, 9.0]]), jnp.array([1, 1, 0])
    found = truth(key, logits, y, jnp.array([1.0, 1.0, 0.0]))
    assert float(found["events"].sum()) == 2.0
    p = 1 / (1 + np.exp(-np.array([1.0, -2.0])))
    assert float(found["error"]) == pytest.approx((1 - p).mean())


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["reliability", "errors", "losses"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "irs"], "did you mean 'iris'?"),
        (["--divisions", "2"], "divisions"),
        (["--strengths", "1", "2"], "strengths"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)


def test_too_many_coefficients_are_refused():
    with pytest.raises(ConfigError, match="data: got 'digits'; expected sets with at most 100 coefficients"):
        measure(Config.model_validate({"data": ("digits",), "divisions": 3}))
