import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import nn
from calcdl.experiments import cures
from calcdl.experiments.cures import (
    ALONE,
    CURES,
    EXPERIMENT,
    JOINT,
    NONE,
    PARTS,
    Config,
    Cure,
    Effect,
    agreement,
    check,
    effects,
    factors,
    measure,
    show,
    told_apart,
    worth,
)
from calcdl.lab.cli import main
from calcdl.lab.config import read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "cures.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def at(gain, half=0.001):
    return Effect(gain, gain - half, gain + half, 0.1 + gain)


def test_the_default_file_is_the_default_and_tries_every_cure(configs):
    assert read(configs / "cures.toml", Config) == Config()
    assert {NONE, *Config().cures} == set(CURES)


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 4
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert "1 of 1 pairs" in verdicts[0].evidence
    assert verdicts[2].value == pytest.approx(math.log(10), abs=0.02)
    assert "skip connection" in verdicts[3].evidence


def test_what_contradicts_a_claim_is_noticed(config, results):
    def judge(**changed):
        return [verdict.holds for verdict in check(config, results.assign(changed))]

    second = results.seed.isin(config.second_seeds)
    swapped = results.sel(cure=[NONE, "residual", "orthogonal"]).accuracy.values
    reverse = results.accuracy.where(~second, results.accuracy.copy(data=swapped))
    assert judge(accuracy=reverse) == [False, False, True, False]
    assert judge(accuracy=results.accuracy * 0.8) == [True, True, True, False]
    assert judge(held_out_loss=results.held_out_loss - 0.1) == [True, True, False, True]
    assert judge(accuracy=results.accuracy * 0 + 0.1)[0] is False, "nothing is told apart"


def test_the_rate_is_chosen_on_the_other_set(config, results):
    second = results.seed.isin(config.second_seeds)
    lucky = (results.cure == "orthogonal") & (results.learning_rate == 1.0) & second
    first, found = effects(config, results.assign(accuracy=results.accuracy.where(~lucky, 0.9)))
    assert found["orthogonal"].gain < 0.05, "what one set gains at a rate that the other did not choose is no effect"
    assert first["orthogonal"].gain < 0.05


def test_an_effect_is_the_mean_of_pairs_with_its_interval(config, results):
    one = results.isel(learning_rate=[0])
    gains = (worth(one).sel(cure="residual") - worth(one).sel(cure=NONE)).sel(seed=list(config.first_seeds))
    gains = gains.values.ravel()
    found = effects(config, one)[0]["residual"]
    assert found.gain == pytest.approx(gains.mean())
    assert found.upper - found.gain == pytest.approx(4.302652729911275 * gains.std(ddof=1) / math.sqrt(3))
    assert found.lower + found.upper == pytest.approx(2 * found.gain)


def test_a_lost_run_is_worth_a_guess(results):
    lost = results.assign(status=results.status * 0 + 1, accuracy=results.accuracy * np.nan)
    assert (worth(lost) == 0.1).all()


def test_pairs_whose_intervals_come_close_are_tied():
    assert told_apart(at(0.5), at(0.4)) == 1
    assert told_apart(at(0.4), at(0.5)) == -1
    assert told_apart(at(0.5), at(0.489)) == 0, "closer than the margin"
    assert told_apart(at(0.5, 0.1), at(0.4)) == 0


def test_the_order_of_ties_does_not_count():
    first = {"a": at(0.8), "b": at(0.4), "c": at(0.001), "d": at(0.0)}
    assert agreement(first, {"a": at(0.7), "b": at(0.5), "c": at(0.0), "d": at(0.001)}) == (5, 5, 0)
    assert agreement(first, {"a": at(0.4), "b": at(0.8), "c": at(0.0), "d": at(0.001)}) == (5, 4, 1)
    wide = at(0.38, 0.3)
    assert agreement(first, {"a": wide, "b": at(0.4), "c": at(0.0), "d": at(0.0)}) == (5, 4, 0)


def test_the_slopes_lose_what_the_skip_connection_gives_back(results):
    passed, bare, mended = factors(results), cures.parts(results, NONE), cures.parts(results, "residual")
    assert passed[NONE] == pytest.approx(0.24, abs=0.02)
    assert math.exp(bare["activation"]) <= 0.25
    assert bare["normalisation"] == bare["skip"] == mended["normalisation"] == 0
    assert passed["residual"] == pytest.approx(1.0, abs=0.05)
    assert mended["skip"] > 1


def test_a_normalised_step_has_one_length_in_every_layer():
    descent = cures.solver(Cure(normalised=True, rate=0.5), jnp.float32(0.2), 10)
    start = {"first": jnp.full(2, 3.0, jnp.float32), "hidden": jnp.eye(3, 2, dtype=jnp.float32)}

    @jax.jit
    def step(size):
        return descent.step(lambda p: size * (p["first"].sum() + (p["hidden"] ** 2).sum() / 2), start, ())

    moved, _, info = step(jnp.float32(1e-20))
    assert info.update["first"].tolist() == pytest.approx([-0.1 / math.sqrt(2)] * 2)
    assert info.update["hidden"].tolist() == [pytest.approx(row) for row in ([-0.1, 0], [0, -0.1], [0, 0])]
    assert moved["hidden"][0, 0] == pytest.approx(0.9)
    assert step(jnp.float32(0))[0]["first"].tolist() == [3.0, 3.0]


def test_a_low_rate_is_warmed_up_and_a_long_gradient_clipped():
    def first_step(cure, rate=1.0):
        descent = cures.solver(cure, jnp.float32(rate), 100)
        return -float(descent.step(lambda p: 50.0 * p, jnp.float32(0.0), descent.init(jnp.float32(0.0)))[2].update)

    assert first_step(CURES[NONE]) == pytest.approx(50)
    assert first_step(CURES["low, warmed-up rate"]) == pytest.approx(50 * 0.1 / 30, rel=1e-5)
    assert first_step(CURES["clipped gradient"]) == pytest.approx(1)


def test_orthogonal_weights_are_drawn_one_after_another(key):
    drawn = jax.vmap(lambda key: cures.orthogonal(key, (4, 4), 2.0))(jax.random.split(key, 3))
    assert np.einsum("nij,nkj->nik", drawn, drawn) == pytest.approx(np.broadcast_to(4 * np.eye(4), (3, 4, 4)), abs=1e-5)
    assert len(np.unique(np.round(drawn, 4))) == drawn.size


def test_every_cure_names_what_there_is():
    for name, cure in CURES.items():
        assert cure.activation in nn.ACTIVATIONS
        assert cure.initialiser in nn.INITIALISERS
        assert cure.normalisation in nn.NORMALISATIONS
        changed = sum(one != other for one, other in zip(cure, CURES[NONE], strict=True))
        assert changed == 0 if name == NONE else changed >= 2 if name in JOINT else changed >= 1
    assert not {*ALONE} & {*JOINT}


def test_batch_norm_is_judged_by_the_statistics_of_training_rows(config, monkeypatch):
    def look_only(problem, descent, *, probes, **sizes):
        return lambda key: SimpleNamespace(
            probes={"look": probes["look"](None, problem.init(key), None)}, status=0, diverged_at=-1
        )

    monkeypatch.setattr(cures, "make_run", look_only)
    known, held_out = cures.rows(config).values()
    sizes = {"depth": 2, "width": 4, "steps": 1, "record_every": 1, "batch": 8}

    @jax.jit
    def look(rows):
        chosen = {"cure": "batch norm", "learning_rate": jnp.float32(0.1)}
        return cures.train(jax.random.key(0), known, rows, **chosen, **sizes)["held_out_loss"]

    # By the statistics of the rows judged, the same row twice would be 0 in every unit, whichever it is.
    row = held_out[0][:1].repeat(2, axis=0)
    labels = held_out[1][:2] * 0
    assert look((row, labels)) != look((row + 1, labels))


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["ranking", "factor", "training"]
    assert all(figure.axes and figure.get_label() for figure in figures.values())
    names = [label.get_text() for label in figures["ranking"].axes[0].get_yticklabels()]
    assert names == [NONE, "orthogonal", "residual"]


def test_a_single_cure_has_no_ranking(config, results):
    lonely = config.model_copy(update={"cures": ("orthogonal",)})
    verdicts = check(lonely, results.sel(cure=[NONE, "orthogonal"]))
    assert [verdict.holds for verdict in verdicts] == [True, False]
    joint = config.model_copy(update={"cures": ("relu + he",)})
    renamed = results.sel(cure=[NONE, "residual"]).assign_coords(cure=[NONE, "relu + he"])
    assert len(check(joint, renamed)) == 1


def test_a_dry_run_compiles_nothing(configs, capsys, tmp_path):
    assert main(EXPERIMENT, [str(configs / "cures.toml"), "--dry-run", "--runs", str(tmp_path)]) == 0
    assert "study cures: 576 lanes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cures", "relo"], "relu"),
        (["--first-seeds", "0", "1"], "first_seeds"),
        (["--second-seeds", "5", "6", "7"], "not among first_seeds"),
        (["--steps", "15"], "multiple of record_every = 10"),
        (["--batch", "1439"], "at most the 1438 training rows"),
        (["--batch", "1"], "batch"),
        (["--depth", "4"], "depth"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)


def test_precision_is_that_of_the_config(config, results):
    assert config.precision == "float32"
    assert {results[name].dtype for name in ("accuracy", "held_out_loss", *PARTS)} == {np.dtype("float32")}
