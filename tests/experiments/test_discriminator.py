import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import rel_entr

from calcdl import study
from calcdl.experiments.discriminator import (
    CLOSED,
    EXPERIMENT,
    Config,
    check,
    jensen_shannon,
    log_densities,
    measure,
    readings,
    show,
)
from calcdl.lab.config import read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "discriminator.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def changed(results, **values):
    """Return a copy in which whole variables are other numbers."""
    other = results.copy(deep=True)
    for name, change in values.items():
        other[name][...] = change(other[name].values)
    return other


def test_the_default_file_is_the_default(configs):
    assert read(configs / "discriminator.toml", Config) == Config()


def test_every_claim_holds(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 6
    assert all(verdict.holds for verdict in verdicts), verdicts


def test_contradictions_are_noticed(config, results):
    wrong = changed(
        results,
        slopes_slope=lambda slope: slope * (1 + 1e-5),
        normals_value=lambda value: value + 1e-3,
        uniforms_reading=lambda reading: reading * 1.2,
        uniforms_slope=lambda slope: slope * 20,
    )
    assert [verdict.holds for verdict in check(config, wrong)] == [False] * 6


def test_a_discriminator_far_from_the_best_is_noticed(config, results):
    assert not check(config, changed(results, normals_value=lambda value: value - 0.01))[1].holds


def test_a_critic_that_reads_too_little_is_noticed(config, results):
    assert not check(config, changed(results, uniforms_reading=lambda reading: reading * 0.7))[4].holds


def test_a_run_that_did_not_end_is_no_evidence(config, results):
    wrong = results.copy(deep=True)
    wrong["normals_status"][0, 0] = 1
    wrong["uniforms_status"][:, 0, 0] = 1
    assert [verdict.holds for verdict in check(config, wrong)] == [True, *[False] * 5]


def test_slopes_in_closed_form_are_those_on_record(truths):
    for row in truths("dl_theory.json")["gan"]["gen_gradient"]:
        logit = np.float64(row["D_logit"])
        assert CLOSED["saturating"](logit) == pytest.approx(row["saturating"], rel=1e-9)
        assert CLOSED["non_saturating"](logit) == pytest.approx(row["nonsaturating"], rel=1e-9)


def test_the_divergence_is_the_adaptive_integral():
    log_p, log_q = (jax.jit(one) for one in log_densities(jnp.float64(1.0)))

    def integrand(x):
        p, q = np.exp(log_p(x)), np.exp(log_q(x))
        return (rel_entr(p, (p + q) / 2) + rel_entr(q, (p + q) / 2)) / 2

    expected, _ = quad(integrand, -8.0, 9.0, points=[0.0, 1.0])
    assert float(jensen_shannon(jnp.float64(1.0))) == pytest.approx(expected, abs=1e-8)
    assert quad(lambda x: np.exp(log_q(x)), -8.0, 9.0)[0] == pytest.approx(1, abs=1e-10)


def test_far_apart_the_divergence_is_log_two():
    assert float(jensen_shannon(jnp.float64(8.0))) == pytest.approx(math.log(2), abs=1e-5)


def test_readings_are_from_below(results):
    short = readings(study.part(results, "normals"))
    assert short.shape == (2, 2)
    assert (short < 1e-5).all()


def test_the_discriminator_gets_surer_and_the_saturating_slope_smaller(results):
    uniforms = study.part(results, "uniforms").sel(kind="discriminator")
    dead, alive = (np.abs(uniforms.slope.isel(loss=number)) for number in (0, 1))
    assert (dead.isel(record=-1) < dead.isel(record=0)).all()
    assert (alive.isel(record=-1) > dead.isel(record=-1) * 100).all()


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["slopes", "readings"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--judge.records", "7"], "judge.records"),
        (["--distances", "0.5"], "distances[0]"),
        (["--precision", "float32"], "float64"),
        (["--seeds", "1"], "seeds"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)
