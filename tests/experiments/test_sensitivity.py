from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from calcdl import data, study
from calcdl.calculus.quadrature import RULES
from calcdl.experiments import sensitivity
from calcdl.experiments.sensitivity import (
    EXPERIMENT,
    METHODS,
    ORDERS,
    Config,
    Maps,
    cascade,
    check,
    deletion,
    interval,
    measure,
    path_integral,
    rankings,
    show,
    similarity,
)
from calcdl.lab.cli import main
from calcdl.lab.config import ConfigError, read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "sensitivity.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


@pytest.fixture(scope="module")
def network(results):
    return study.part(results, "network")


def test_the_default_file_is_the_default(configs):
    assert read(configs / "sensitivity.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 5
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert "of 40 maps" in verdicts[0].evidence


@pytest.mark.parametrize(
    ("name", "change", "failed"),
    [
        ("network_change", lambda x: x * 1.01, [0]),
        ("network_maps", lambda x: x[:, [0] * x.sizes["network_level"]].values, [1, 2]),
        ("network_maps", lambda x: x * np.nan, [0, 1, 2]),
        ("network_deleted", lambda x: x.isel(network_order=[3, 1, 2, 0]).values, [3, 4]),
        ("network_status", lambda x: x * 0 + 1, [0, 1, 2, 3, 4]),
    ],
)
def test_what_contradicts_a_claim_is_noticed(config, results, name, change, failed):
    changed = change(results[name])
    wrong = results.assign({name: (results[name].dims, changed) if isinstance(changed, np.ndarray) else changed})
    assert [place for place, verdict in enumerate(check(config, wrong)) if not verdict.holds] == failed


def test_images_that_a_network_misread_do_not_count(config, results):
    broken = results.copy(deep=True)
    broken["network_guess"][0, 3] = 9
    broken["network_change"][0, 3] = 1e-3
    assert "39 of 40" in check(config, broken)[0].evidence
    assert check(config, broken)[0].holds


def test_midpoints_err_by_no_more_than_the_variation_of_the_slope_allows(config, network):
    nodes = np.asarray(config.maps.nodes_compared)
    bound = (network.variation / np.abs(network.change)).values[:, None] / (2 * nodes)[None, :, None]
    assert (network.error.sel(rule="midpoint").transpose("seed", "node", "image") <= bound + 1e-5).all()


def test_without_kinks_the_rules_have_their_orders(config, results):
    error = study.part(results, "smooth").error.median(("seed", "image"))
    halved = error.sel(rule="midpoint").values[:2]
    assert halved[0] / halved[1] == pytest.approx(16, rel=0.1)
    assert float(error.sel(rule="gauss_legendre").max()) < 1e-6


def test_without_biases_integrated_gradients_are_gradient_times_input(network):
    drawn = network.maps.isel(level=-1)
    difference = np.abs(drawn.sel(kind="integrated") - drawn.sel(kind="gradient x input"))
    assert float(difference.max()) < 1e-4 * float(np.abs(drawn).max())


def test_the_same_weights_give_the_same_map(network):
    for method in METHODS:
        again = similarity(network, method, sizes=False)[0][0]
        assert again.mean() > 0.85 if method == "smoothed" else again.min() > 0.99


def test_similarity_is_that_of_scipy(network):
    maps = network.maps.sel(kind="integrated").values.reshape(4, -1, 10, 64)
    drawn, other = similarity(network, "integrated", sizes=True)
    for one, first, second in (
        (drawn[1, 2, 5], maps[2, 0, 5], maps[2, 2, 5]),
        (other[0, 7], maps[0, 0, 7], maps[-1, 0, 7]),
    ):
        assert one == pytest.approx(spearmanr(np.abs(first), np.abs(second)).statistic, abs=1e-6)


def test_layers_are_drawn_anew_from_the_read_out_down():
    trained, fresh = (dict.fromkeys(("layer_1", "layer_2", "readout"), sign) for sign in ("old", "new"))
    changed = [[name for name, value in one.items() if value == "new"] for one in cascade(trained, fresh, 2)]
    assert changed == [[], ["readout"], ["layer_2", "readout"], ["layer_1", "layer_2", "readout"]]


@pytest.mark.parametrize("rule", ["midpoint", "gauss_legendre", "simpson"])
def test_a_path_is_integrated_panel_by_panel(rule):
    whole = jax.jit(partial(path_integral, lambda t: jnp.stack([3 * t**2, jnp.exp(t)]), RULES[rule], jnp.zeros(2)))
    assert whole(jnp.int32(64)).tolist() == pytest.approx([1, np.e - 1], rel=1e-4)


def test_a_linear_function_has_its_weights_as_maps(key):
    weights = jax.random.normal(key, (8, 8, 1), jnp.float32)
    images, start = jnp.ones((2, 8, 8, 1), jnp.float32), jnp.zeros((2, 8, 8, 1), jnp.float32)
    linear = lambda w, x: jnp.sum(w[None] * x, axis=(1, 2, 3))  # noqa: E731
    draw = partial(sensitivity.attribute, linear, images, start, weights, key, jnp.int32(16), maps=Maps(samples=4))
    for drawn in jax.jit(draw)():
        assert np.asarray(drawn) == pytest.approx(np.asarray(jnp.stack([weights, weights])), rel=1e-5)


def test_pixels_are_deleted_in_the_order_of_their_ranks(key):
    step = jnp.arange(64, dtype=jnp.float32).reshape(1, 8, 8, 1) - 60
    ranks = jax.jit(rankings)(key, jnp.stack([step, -step, step, 2 * step]), step)
    assert ranks.shape == (3 + sensitivity.RANDOM_ORDERS, 1, 8, 8, 1)
    assert ranks[:2, 0, 0, 0, 0].tolist() == [63, 0]
    assert (ranks[3:, 0, 7, 4, 0] == 63).all()  # equal to the baseline: deleting it would change nothing
    total = partial(jnp.sum, axis=(1, 2, 3))
    left = jax.jit(lambda step: deletion(total, step, jnp.zeros_like(step), ranks, 64))(step)
    assert np.diff(left[0, :, 0])[:3].tolist() == [-3, -2, -1]
    assert left[:, -1, 0].tolist() == [0] * len(ranks)
    assert len(ORDERS) == 4


def test_an_interval_is_over_networks_and_needs_two():
    values, good = (
        np.array([[1.0, 9.0], [3.0, 3.0], [5.0, 7.0]]),
        np.array([[True, False], [True, True], [False, False]]),
    )
    mean, half = interval(values, good)
    assert mean == 2
    assert half == pytest.approx(12.706, rel=1e-3)
    assert np.isnan(interval(values[:1], good[:1])[1])


def test_images_are_the_most_typical_ones_and_baselines_as_asked(config):
    black, mean = (
        sensitivity.rows(config.model_copy(update={"maps": Maps(images=2, baseline=name)}))
        for name in ("black", "mean")
    )
    assert black["chosen"][1].tolist() == [label for label in range(10) for _ in range(2)]
    assert not black["baseline"].any()
    assert mean["baseline"] == pytest.approx(mean["train"][0].mean(axis=0))
    dataset = data.split(data.load("digits", constant="keep", collinear="keep"), validation=0.2, test=0.0)
    assert len(mean["held_out"][1]) == len(dataset.validation)


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["maps", "randomisation", "completeness"]
    assert all(figure.axes and figure.get_label() for figure in figures.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"batch": 1439}}, "network.batch: got 1439; expected at most the 1438 training rows"),
        ({"maps": {"images": 99}}, "maps.images: got 99; expected at most the held-out ones"),
        ({"network": {"seeds": (1,)}}, "at least 2"),
        ({"maps": {"nodes": 100}}, "multiple of 16"),
        ({"maps": {"baseline": "white"}}, "black"),
    ],
)
def test_what_cannot_be_run_is_refused(change, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        measure(Config.model_validate(change), run=None)


def test_a_dry_run_compiles_nothing(configs, capsys, tmp_path):
    file = str(configs / "sensitivity.quick.toml")
    assert main(EXPERIMENT, [file, "--dry-run", "--runs", str(tmp_path)]) == 0
    assert "study network: 4 lanes" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
