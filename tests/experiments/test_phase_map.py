import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import study
from calcdl.experiments import phase_map
from calcdl.experiments.phase_map import (
    DEEPER,
    EXPERIMENT,
    INSIDE,
    SHALLOWER,
    Config,
    accuracies,
    border,
    check,
    groups,
    initial,
    measure,
    outputs,
    show,
)
from calcdl.lab.config import read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "phase_map.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "phase_map.toml", Config) == Config()
    assert len(groups(read(configs / "phase_map.full.toml", Config).networks)) == 2


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert [verdict.holds for verdict in verdicts] == [True] * 3, verdicts
    found = border(config, results)
    assert np.sum(found.where == INSIDE) >= 4
    assert np.all(np.diff(found.scale[:5]) > 0)


def painted(config, results, accuracy):
    """The results, with another accuracy in each cell [depth, weight_variance]."""
    other = results.copy(deep=True)
    (name,) = groups(config.networks)
    other[f"{name}_accuracy"][:] = np.asarray(accuracy, np.float32)[:, :, None, None]
    return other


def test_the_border_is_found_between_depths(config, results):
    guess, depths = results.attrs["guess"], np.array(config.networks.depths)
    half = guess + np.array([0.75, 0.25]) * (1 - guess)
    columns = [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, *half, 0, 0], [1, 0, 0, 1, 0]]
    found = border(config, painted(config, results, np.maximum(np.transpose(columns), guess)))
    assert found.where.tolist() == [SHALLOWER, INSIDE, INSIDE, DEEPER, INSIDE, INSIDE]
    assert found.level == pytest.approx((1 + guess) / 2, rel=1e-6)
    middle = np.sqrt(depths[:-1] * depths[1:])
    expected = [depths[0], middle[0], middle[2], depths[-1], middle[1], middle[3]]
    np.testing.assert_allclose(found.depth, expected, rtol=1e-6)


def test_contradictions_are_noticed(config, results):
    shallow_first = painted(config, results, accuracies(config, results)[:, ::-1])
    assert [verdict.holds for verdict in check(config, shallow_first)] == [False, False, False]
    follows = check(config, painted(config, results, np.ones((5, 6))))[0]
    assert not follows.holds
    assert follows.evidence.startswith("not judged: borders in the map 0, deeper 6")


def test_a_failed_run_is_a_guess(config, results):
    broken = results.copy(deep=True)
    (name,) = groups(config.networks)
    broken[f"{name}_status"][0] = 1
    broken[f"{name}_accuracy"][0] = np.nan
    np.testing.assert_allclose(accuracies(config, broken)[0], results.attrs["guess"])
    assert "6 of 30 runs diverged" in check(config, broken)[1].evidence


def test_depth_as_data_is_a_shallower_network(key, config):
    @jax.jit
    def build(key):
        return initial(key, inputs=5, weight_variance=jnp.float32(1.5), deepest=4, networks=config.networks)

    params, x = build(key), np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)
    assert float(np.var(params["hidden"]["bias"])) == pytest.approx(0.05, rel=0.5)
    apply = jax.jit(lambda depth: outputs(params, x, depth=depth, activation="tanh"))
    for depth in (1, 3, 4):
        layers = [params["first"], *({k: v[row] for k, v in params["hidden"].items()} for row in range(depth - 1))]
        a = x
        for layer in layers:
            a = np.tanh(a @ np.asarray(layer["weight"]) + np.asarray(layer["bias"])[None])
        expected = a @ np.asarray(params["readout"]["weight"]) + np.asarray(params["readout"]["bias"])[None]
        np.testing.assert_allclose(apply(jnp.int32(depth)), expected, rtol=1e-4, atol=1e-5)


def test_depths_are_grouped():
    assert groups(Config().networks) == {"to_21": (3, 4, 5, 7, 9, 12, 16, 21), "to_64": (28, 37, 48, 64)}


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["phase_map", "border"]
    assert all(figure.axes for figure in figures.values())
    assert study.part(results, "to_24").sizes == {"depth": 5, "weight_variance": 6, "learning_rate": 1, "seed": 1}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--networks.depths", "5", "3"], "increasing"),
        (["--networks.activation", "relu"], "networks.activation"),
        (["--training.batch", "2000"], "at most 1000"),
        (["--networks.weight-variances", "1", "-1"], "weight_variances"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)


def test_the_edge_is_where_the_scale_peaks(config):
    assert phase_map.edge(config.networks) == pytest.approx(1.76095464, rel=1e-6)
    below, above = phase_map.scales(config.networks, (1.7, 1.82))
    assert min(below, above) > 50
