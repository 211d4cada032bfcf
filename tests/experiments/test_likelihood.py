import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import study
from calcdl.experiments import likelihood
from calcdl.experiments.likelihood import Config, check, measure, show
from calcdl.lab.config import ConfigError, build, read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "likelihood.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "likelihood.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 5
    assert all(verdict.holds for verdict in verdicts), verdicts


@pytest.mark.parametrize(
    ("name", "change", "claim"),
    [
        ("curves_area", lambda x: x * (1 + 1e-9), "areas"),
        ("draws_counts", lambda x: x.roll(draws_bin=1), "histogram"),
        ("normal_estimate", lambda x: x + 1e-9, "normal model"),
        ("normal_estimate", lambda x: x.where(x.normal_offset > 0), "normal model"),
        ("logistic_score", lambda x: x + 1e-4, "the score of the fit is 0"),
        ("logistic_oracle", lambda x: x + 1e-5, "scikit-learn"),
    ],
)
def test_what_contradicts_a_claim_is_noticed(config, results, name, change, claim):
    verdicts = check(config, results.assign({name: change(results[name])}))
    assert [verdict.claim for verdict in verdicts if claim in verdict.claim and not verdict.holds]


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["change_of_variables", "logistic", "normal"]
    assert all(figure.axes and figure.get_label() for figure in figures.values())


def test_standard_errors_of_the_normal_model_are_the_known_ones(results):
    normal = study.part(results, "normal")
    rows, scale = normal.sizes["row"], np.exp(float(normal.closed[1]))
    assert np.allclose(normal.standard_error, [scale / rows**0.5, (2 * rows) ** -0.5], rtol=1e-9)


def test_the_moved_density_is_the_log_normal_one(results):
    from scipy.stats import lognorm

    curves = study.part(results, "curves")
    assert np.allclose(curves.density_y, lognorm(0.6).pdf(curves.y), rtol=1e-12)


def test_a_falling_map_keeps_areas_and_histogram(config):
    falling = config.density.model_copy(update={"transform": "exp(-x)", "inverse": "-log(y)", "mean": 0.3})
    edges = likelihood.edges_of(falling)
    chances = likelihood.bin_probabilities(falling, edges)
    assert chances.sum() == pytest.approx(1, abs=1e-14)
    mirrored = falling.model_copy(update={"transform": "exp(x)", "inverse": "log(y)", "mean": -0.3})
    assert chances == pytest.approx(likelihood.bin_probabilities(mirrored, edges), abs=1e-14)


def test_several_features_are_fitted_as_scikit_learn_does(config):
    wider = config.likelihood.model_copy(update={"features": ("mean radius", "mean texture")})
    rows = likelihood.observations(config.model_copy(update={"likelihood": wider}))
    shared = {name: rows[name] for name in ("features", "labels")}
    found = jax.jit(lambda key, **rows: likelihood.fit_logistic(key, steps=2, **rows))(jax.random.key(0), **shared)
    assert np.allclose(found["estimate"], likelihood.sklearn_fit(**shared), atol=1e-6)
    assert found["path"].shape == (3, 3)


def test_a_start_that_is_too_wide_is_lost_and_says_so(key):
    values = jax.random.normal(key, (100,), jnp.float64) + 2
    starts = jnp.asarray([0.9, 3.0])
    found = jax.jit(
        jax.vmap(lambda share: likelihood.fit_normal(key, values, offset=starts[0] - 0.3, share=share, steps=3))
    )(starts)
    assert found["status"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"likelihood": {"column": "mean smothness"}}, "likelihood.column: got 'mean smothness'.*'mean smoothness'"),
        ({"likelihood": {"features": ("radius",)}}, r"likelihood.features\[0\]: got 'radius'"),
        (
            {"likelihood": {"data": "iris", "column": "sepal length (cm)", "features": ("sepal width (cm)",)}},
            "set of 2",
        ),
        ({"density": {"transform": "exp(y)"}}, r'density: expression "exp\(y\)"'),
        ({"density": {"transform": "x**2"}}, "density.transform: got 'x\\*\\*2'; expected a map that rises or falls"),
        ({"density": {"inverse": "log(y) + 0.1"}}, "density.inverse.*the inverse of exp"),
    ],
)
def test_what_cannot_be_run_is_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        measure(build(Config, table))
