from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import diagnostics, study
from calcdl.diagnostics.health import decay, in_words
from calcdl.experiments import gradient_vanishing
from calcdl.experiments.gradient_vanishing import EXPERIMENT, Config, check, measure, predict, settings, show
from calcdl.lab.config import ConfigError, read
from calcdl.nn import stack
from calcdl.nn.activations import ACTIVATIONS
from calcdl.nn.initialisers import INITIALISERS


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "gradient_vanishing.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "gradient_vanishing.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 3
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert "vanishes: a layer passes on 0.3" in verdicts[0].evidence


def test_a_wrong_theory_is_noticed(config, results, monkeypatch):
    monkeypatch.setitem(gradient_vanishing.WEIGHT_VARIANCE, "he", 3.0)
    assert not all(verdict.holds for verdict in check(config, results))


def test_shallow_networks_are_padded_and_all_layers_measured(config, results):
    signal = study.part(results, "initialisation").signal
    assert signal.sizes["layer"] == 20
    assert np.isnan(signal.sel(depth=5).values[..., 5:]).all()
    assert (signal.sel(depth=20) > 0).all()


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["signal_by_layer", "factors", "training", "gradient_over_time"]
    assert all(figure.axes for figure in figures.values())


def test_predictions_are_those_of_the_initialisation_table(truths):
    rows = truths("dl_theory.json")["init_table"]
    names = {"LeCun/Glorot (sw2=1)": "glorot_normal", "He (sw2=2)": "he_normal"}
    checked = 0
    for row in rows:
        if row["phi"] in ("sigmoid", "relu", "tanh"):
            asymptotic, finite = predict(row["phi"], names[row["init"]], 50)
            assert asymptotic == pytest.approx(row["grad_norm_factor"], rel=1e-9)
            if (row["phi"], names[row["init"]]) != ("tanh", "glorot_normal"):
                assert finite == pytest.approx(asymptotic, rel=1e-3)
            checked += 1
    assert checked == 6


def test_a_critical_network_nears_its_limit_like_one_over_depth():
    gaps = [1 - predict("tanh", "glorot_normal", depth)[1] for depth in (50, 100, 200)]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.15)
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)


def test_an_initialiser_without_theory_has_no_prediction():
    assert np.isnan(predict("tanh", "normal", 10)).all()


def signals_of(width, reduce, key):
    network = stack(12, width, 10, ACTIVATIONS["sigmoid"], INITIALISERS["glorot_normal"], tap=diagnostics.tap)
    x = jax.random.normal(jax.random.key(9), (16, 8), jnp.float32)
    loss = diagnostics.capture(lambda params: reduce(jnp.square(network.apply(params, x))), gradient_vanishing.SEEN)
    return diagnostics.signal_norms(diagnostics.by_layer(loss(network.init(key, (8,))).taps, "preactivation").cotangent)


@pytest.mark.parametrize(
    ("width", "reduce"),
    [(32, jnp.sum), (32, lambda losses: 1e4 * jnp.mean(losses)), (64, jnp.mean)],
    ids=["summed", "scaled", "wider"],
)
def test_no_convention_changes_the_verdict(width, reduce):
    keys = jax.random.split(jax.random.key(1), 6)
    usual = decay(np.asarray(jax.vmap(partial(signals_of, 32, jnp.mean))(keys)))
    other = decay(np.asarray(jax.vmap(partial(signals_of, width, reduce))(keys)))
    assert in_words(usual).startswith("vanishes")
    assert in_words(other).startswith("vanishes")
    assert other.factor == pytest.approx(usual.factor, rel=1e-5 if width == 32 else 0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initialisation": {"batch": 5000}}, "initialisation.batch: got 5000; expected at most"),
        ({"training": {"batch": 5000}}, "training.batch: got 5000"),
    ],
)
def test_a_batch_larger_than_the_data_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        measure(Config.model_validate(change))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training.steps", "30"], "multiple of training.record_every = 20"),
        (["--training.learning-rates", "0.1", "0"], "learning_rates[1]"),
        (["--training.learning-rates", "nan"], "learning_rates[0]"),
        (["--initialisation.depths", "-1"], "depths[0]"),
        (["--initialisation.widths", "0"], "widths[0]"),
        (["--initialisation.seeds", "1", "1"], "seeds[1]"),
        (["--initialisation.seeds", "4294967296"], "seeds[0]"),
        (["--initialisation.activations", "rely"], "relu"),
        (["--training.depht", "3"], "depth"),
        (["--data", "digit"], "digits"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused, tmp_path):
    error = refused(EXPERIMENT, flags)
    assert message in error
    assert error.startswith("calcdl: error: ")
    assert not (tmp_path / "runs").exists()


def test_widths_below_the_gate_have_a_wider_gate(config, results):
    assert {setting.width for setting in settings(config, results)} == {64}
    assert gradient_vanishing._gate(64) == pytest.approx(0.12)
    assert gradient_vanishing._gate(256) == gradient_vanishing._gate(512) == 0.03
