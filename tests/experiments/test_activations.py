from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import study
from calcdl.experiments import activations
from calcdl.experiments.activations import (
    BOUNDED,
    EXPERIMENT,
    KINKS,
    RANGES,
    Config,
    bound,
    check,
    curve,
    identity_loss,
    line_run,
    measure,
    show,
)
from calcdl.lab import panels
from calcdl.lab.cli import main
from calcdl.lab.config import ConfigError, read
from calcdl.nn.activations import ACTIVATIONS


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "activations.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


@pytest.fixture
def changed(config, results):
    """Verdicts by their claim's first words, after something was done to one variable of the results."""

    def judge(name, change):
        other = results.assign({name: change(results[name])})
        return {verdict.claim: verdict.holds for verdict in check(config, other)}

    return judge


def test_the_default_file_is_the_default(configs):
    assert read(configs / "activations.toml", Config) == Config()


def test_the_large_file_is_a_configuration_of_the_whole_zoo(configs):
    large = read(configs / "activations.large.toml", Config)
    assert large.line.activations == large.digits.activations == tuple(ACTIVATIONS)


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 6
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert "61 points from -6 to 6, 3 at kinks left out" in verdicts[0].evidence
    assert "as a V" in verdicts[3].evidence
    assert "prelu 4" in verdicts[5].evidence


@pytest.mark.parametrize(
    ("name", "change", "claim"),
    [
        ("curves_gradient", lambda x: x + 3e-6, "the slope by jax.grad is the closed form"),
        (
            "curves_gradient",
            lambda x: x.where(x.curves_activation != "tanh"),
            "the slope by jax.grad is the closed form",
        ),
        ("line_loss", lambda x: x * 4, "the mean loss of the identity"),
        ("line_loss", lambda x: x.where(x.line_step != 1), "the mean loss of the identity"),
        ("line_expected_loss", lambda x: x * 0, "no run gets below the least loss"),
        ("line_expected_loss", lambda x: x + 1, "gets below the bound of ReLU"),
        ("line_status", lambda x: x * 0 + 1, "gets below the bound of ReLU"),
        ("digits_steps_to_target", lambda x: x * 0 + 10, "sigmoid needs more steps than tanh"),
        ("digits_steps_to_target", lambda x: x * 0 - 1, "sigmoid needs more steps than tanh"),
        ("digits_status", lambda x: x * 0 + 1, "bounded activations do not diverge"),
    ],
)
def test_what_contradicts_a_claim_is_noticed(changed, name, change, claim):
    assert [text for text, holds in changed(name, change).items() if claim in text and not holds]


def test_kinks_are_left_out_and_nothing_else(changed):
    def at(place):
        return lambda x: x.where(~((x.curves_activation == "prelu") & (abs(x.curves_x - place) < 1e-9)), 9.0)

    assert all(changed("curves_gradient", at(0.0)).values())
    assert not all(changed("curves_gradient", at(0.2)).values())


def test_sigmoid_that_never_arrives_needs_more_steps(changed):
    def never(steps):
        return steps.where(steps.digits_activation != "sigmoid", -1)

    assert all(changed("digits_steps_to_target", never).values())


def test_what_was_not_run_is_not_judged(config, results):
    lonely = config.model_copy(
        update={
            "line": config.line.model_copy(update={"activations": ("leaky_relu",)}),
            "digits": config.digits.model_copy(update={"activations": ("elu",)}),
        }
    )
    assert len(check(lonely, results)) == 1


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    names = ["curves", "line", "line_by_step", "digits", "digits_by_step", "dead", "saturated", "prelu"]
    assert list(figures) == names
    assert all(figure.axes and figure.get_label() for figure in figures.values())
    titles = [axes.get_title(loc="left") for axes in figures["digits_by_step"].axes]
    assert titles == ["sigmoid", "tanh", "prelu (0 of 4 runs)"]


def test_lost_runs_are_counted_and_not_averaged(results):
    digits = study.part(results, "digits")
    lost = digits.status != 0
    assert lost.sel(activation="prelu").all()
    assert np.isnan(panels.median(digits.accuracy.isel(step=-1), ~lost).sel(activation="prelu")).all()
    assert (digits.steps_to_target.where(lost, -1) == -1).sum() >= lost.sum()
    assert not (lost & (digits.steps_to_target >= 0)).any()


def test_steps_to_the_target_are_the_first_record_at_or_below_it(config, results):
    digits = study.part(results, "digits")
    for place in np.ndindex(digits.steps_to_target.shape):
        loss, status = digits.held_out_loss.values[place], digits.status.values[place]
        below = np.flatnonzero(loss <= config.digits.target_loss)
        expected = digits.step.values[below[0]] if len(below) and status == 0 else -1
        assert digits.steps_to_target.values[place] == expected


def test_only_a_learned_slope_moves(results):
    for name in ("line", "digits"):
        slope = study.part(results, name).slope
        assert (slope.where(slope.activation != "prelu", 0) == 0).all()
    slope = study.part(results, "line").slope.sel(activation="prelu", learning_rate=0.01)
    assert abs(slope.isel(step=0) - 0.25).max() < 0.1 < abs(slope.isel(step=-1) - 0.25).max()


FAR = np.concatenate([np.linspace(-60, 60, 240_001), [-1e4, 1e4]])
NEAR = np.linspace(-6.0005, 6.0005, 12_002)


@pytest.fixture(scope="module")
def zoo():
    """Values on `FAR` and slopes on `NEAR` of every activation, by its name, from one program."""

    @jax.jit
    def program(far, near):
        learned = {name: () if unit.learned is None else (unit.learned,) for name, unit in ACTIVATIONS.items()}
        return {
            name: (unit.function(far, *learned[name]), unit.derivative(near, *learned[name]))
            for name, unit in ACTIVATIONS.items()
        }

    return jax.tree.map(np.asarray, program(FAR, NEAR))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_ranges_are_those_of_the_functions(zoo, activation):
    values, _ = zoo[activation]
    least, greatest = RANGES.get(activation, (-np.inf, np.inf))
    assert values.min() >= least
    assert values.max() <= greatest
    assert values.min() == pytest.approx(least, abs=2e-4) if np.isfinite(least) else values.min() <= -100
    assert values.max() == pytest.approx(greatest, abs=2e-4) if np.isfinite(greatest) else values.max() >= 1e4
    assert (activation in BOUNDED) == bool(np.isfinite(values).all() and abs(values).max() <= 1)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_kinks_are_where_the_slope_jumps(zoo, activation):
    _, slope = zoo[activation]
    jumps = np.flatnonzero(np.abs(np.diff(slope)) > 0.01)
    assert NEAR[jumps] + 5e-4 == pytest.approx(KINKS.get(activation, ()), abs=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("activation", ["tanh", "prelu"])
def test_a_curve_is_value_and_slope(activation, dtype, key):
    one = curve(key, x=jnp.asarray(0.7, dtype), activation=activation)
    assert {value.dtype for value in one.values()} == {jnp.dtype(dtype)}
    assert float(one["gradient"]) == pytest.approx(
        float(one["derivative"]), rel=1e-13 if dtype == jnp.float64 else 2e-6
    )
    h = 1e-5
    ahead, behind = (curve(key, x=jnp.asarray(0.7 + s, jnp.float64), activation=activation)["value"] for s in (h, -h))
    assert float(one["gradient"]) == pytest.approx(float(ahead - behind) / (2 * h), rel=2e-6)


def lines(key, rates, dtype=jnp.float32, **fixed):
    return jax.jit(jax.vmap(lambda rate: line_run(key, learning_rate=rate, **fixed)))(jnp.asarray(rates, dtype))


@pytest.mark.parametrize("activation", ["relu", "prelu"])
def test_the_expected_loss_is_that_of_many_inputs(activation, key):
    run = lines(key, [1e-30], jnp.float64, activation=activation, steps=1, batch=100_000)
    assert float(run["expected_loss"][0]) == pytest.approx(float(run["loss"][0, 0]), rel=0.02)


def test_without_noise_the_identity_follows_the_recursion_alone(key):
    losses = lines(key, [0.1], activation="identity", steps=10, batch=10_000)["loss"][0]
    shape = identity_loss(0.1, 10, 10_000)
    assert np.asarray(losses / losses[0]) == pytest.approx(shape / shape[0], rel=0.05)


def test_dead_units_keep_the_mean_square_of_the_target(results):
    losses = study.part(results, "line").expected_loss.sel(activation="relu")
    assert np.isclose(losses, 5.0, atol=1e-3).any()
    assert losses.min() == pytest.approx(bound("relu"), abs=1e-3)


def test_a_run_that_overflows_on_its_way_is_no_failure(key):
    run = lines(key, [1.0, 1e37], activation="gelu", steps=1, batch=1)
    assert np.isfinite(run["expected_loss"][0])
    assert run["status"].tolist() == [0, 0]
    assert run["expected_loss"][1] == np.inf


def test_precision_is_that_of_the_rate(key):
    run = lines(key, [0.1], activation="prelu", steps=2, batch=3)
    floating = [value for value in run.values() if jnp.issubdtype(value.dtype, jnp.floating)]
    assert {value.dtype for value in floating} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digits": {"batch": 1439}}, "digits.batch: got 1439; expected at most the 1438 training rows"),
        ({"digits": {"steps": 7}}, "steps"),
        ({"line": {"learning_rates": (0.1, 0.0)}}, "learning_rates"),
        ({"line": {"seeds": (1, 1)}}, "distinct"),
        ({"curves": {"points": 1}}, "points"),
        ({"curves": {"reach": 0.0}}, "reach"),
        ({"digits": {"activations": ("rulu",)}}, "relu"),
        ({"digits": {"depth": 0}}, "depth"),
    ],
)
def test_what_cannot_be_run_is_refused(change, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        measure(Config.model_validate(change), run=None)


def test_a_dry_run_compiles_nothing(configs, capsys, tmp_path):
    file = str(configs / "activations.toml")
    assert main(EXPERIMENT, [file, "--dry-run", "--runs", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for line in ("study curves: 3856 lanes", "study line: 8192 lanes", "study digits: 192 lanes"):
        assert line in told
    assert not list(tmp_path.iterdir())


def test_one_layer_has_one_learned_slope_and_a_lost_run_reached_nothing(config):
    fixed = {"activation": "prelu", "depth": 1, "width": 4, "initialiser": "he_normal", "steps": 12, "record_every": 1}
    rows = activations.digits_rows(config)
    train = partial(activations.digits_run, jax.random.key(0), **rows, batch=8, target_loss=1e20, **fixed)
    run = jax.jit(jax.vmap(lambda rate: train(learning_rate=rate)))(jnp.asarray([0.1, 1e4], jnp.float32))
    assert run["slope"].shape == run["dead"].shape == (2, 12, 1)
    assert run["status"].tolist() == [0, 1]
    assert run["held_out_loss"][1, 0] < 1e20
    assert run["steps_to_target"].tolist() == [1, -1]
