import math

import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import study
from calcdl.experiments import integrals
from calcdl.experiments.integrals import EXPERIMENT, LEADING, Config, check, measure, show
from calcdl.lab.cli import main
from calcdl.lab.config import ConfigError, build, read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "integrals.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "integrals.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 11
    assert all(verdict.holds for verdict in verdicts), verdicts


@pytest.mark.parametrize(
    ("name", "change", "claim"),
    [
        ("exhaustion_inscribed", lambda x: x - 1e-3, "as Archimedes found"),
        ("exhaustion_circumscribed", lambda x: math.pi + (x - math.pi) ** 0.9, "by the number of sides: order 2"),
        ("quadrature_value", lambda x: x + 1e-3, "the orders of left"),
        ("quadrature_leading", lambda x: -x, "Euler-Maclaurin"),
        ("quadrature_value", lambda x: x + 1e-13, "Gauss has all digits"),
        ("regions_value", lambda x: x * (1 + 1e-11), "by antiderivatives"),
        ("regions_value", lambda x: x.where(x.regions_way != "polar", 1.5), "the same in Cartesian"),
        ("chance_value", lambda x: x + 0.3, "like samples^-1/2"),
        ("chance_value", lambda x: x + 0.3, "quasi-Monte Carlo"),
        ("chance_standard_error", lambda x: x / 2, "95 % interval"),
    ],
)
def test_what_contradicts_a_claim_is_noticed(config, results, name, change, claim):
    verdicts = check(config, results.assign({name: change(results[name])}))
    assert [verdict.claim for verdict in verdicts if claim in verdict.claim and not verdict.holds]


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["exhaustion", "quadrature", "chance"]
    assert all(figure.axes and figure.get_label() for figure in figures.values())


def test_polygons_are_those_of_trigonometry(results):
    circle = study.part(results, "exhaustion")
    angle = np.pi / circle.sides
    assert np.allclose(circle.inscribed, circle.sides * np.sin(angle), rtol=1e-14)
    assert np.allclose(circle.circumscribed, circle.sides * np.tan(angle), rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "limits", "value"),
    [
        ("exp(x)", [("x", 0.0, 1.0)], math.e - 1),
        ("abs(x - 0.3)", [("x", 0.0, 1.0)], 0.29),
        ("x**2 + y**2", [("x", -1.0, 1.0), ("y", -1.0, 1.0)], 8 / 3),
        ("x*y", [("x", 0.0, 1.0), ("y", 0.0, 2.0)], 1.0),
    ],
)
def test_closed_forms(text, limits, value):
    assert integrals.by_antiderivatives(text, limits) == pytest.approx(value, rel=1e-15)


def test_what_has_no_antiderivative_is_said_to_have_none():
    assert math.isnan(integrals.by_antiderivatives("x**x", [("x", 0.0, 1.0)]))


def test_orders_are_read_off_above_the_floor():
    sizes = np.array([2.0, 4.0, 8.0, 16.0, 32.0])
    errors = np.array([*(3 * sizes[:4] ** -3), 1e-3])
    assert integrals.order(sizes, 1 + errors, 1.0) != pytest.approx(3, rel=0.05)
    assert integrals.order(sizes[:4], 1 - errors[:4], 1.0) == pytest.approx(3)
    assert integrals.order(sizes[[0, 1, 2, 4]], 1 + errors[[0, 1, 2, 4]], 1.0, 1e-6) == pytest.approx(3)
    assert math.isnan(integrals.order(sizes, 1 + errors, 1.0, 1e-4))


def test_first_terms_of_the_error_are_exact_where_there_is_no_second():
    section = Config().quadrature.model_copy(update={"smooth": "x**2", "panels": (2, 4), "limits": (0.0, 3.0)})
    leading = dict(zip(integrals.RULES, integrals.leading_errors(section), strict=True))
    for rule in ("midpoint", "trapezoid"):
        for at, count in enumerate((2, 4)):
            assert leading[rule][at] == pytest.approx(float(integrals.RULES[rule](jnp.square, 0.0, 3.0, count)) - 9)
    assert leading["simpson"].tolist() == [0.0, 0.0]
    assert np.isnan(leading["gauss_legendre"]).all()
    assert {*LEADING} == {*integrals.RULES} - {"gauss_legendre"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sampler", integrals.SAMPLERS)
def test_samples_keep_the_precision(sampler, dtype, key):
    box = {"integrand": "x*y", "box": ((0.0, 0.0), (1.0, 1.0))}
    found = integrals.sample(key, sampler=sampler, samples=1024, dtype=dtype, **box)
    assert {value.dtype for value in found.values()} == {jnp.dtype(dtype)}
    assert abs(float(found["value"]) - 0.25) < 4.5 * float(found["standard_error"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"quadrature": {"smooth": "2x"}}, r"quadrature.smooth: got '?\"?2x.*write 2\*x"),
        ({"quadrature": {"rough": ("x", "y + 1")}}, r"quadrature.rough\[1\]"),
        ({"quadrature": {"panels": (2, 3)}}, r"quadrature.panels\[1\]: got 3"),
        ({"volume": {"integrand": "x + z"}}, "volume.integrand.*formula in x, y"),
        ({"volume": {"samples": (64, 100)}}, r"volume.samples\[1\]: got 100"),
        ({"doublings": 3}, "doublings: got 3"),
    ],
)
def test_what_cannot_be_run_is_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        build(Config, table)


def test_a_dry_run_compiles_nothing(configs, capsys, tmp_path):
    assert main(EXPERIMENT, [str(configs / "integrals.quick.toml"), "--dry-run", "--runs", str(tmp_path)]) == 0
    assert "study chance: 384 lanes" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
