import numpy as np
import pytest

from calcdl.experiments.gradient_descent import EXPERIMENT, LEAVES, MONOTONE, Config, check, measure, show
from calcdl.lab.cli import main
from calcdl.lab.config import ConfigError, build, read

BOWL, SADDLE = "(x - 1)**2 + 10*(y + x)**2", "x**2 - y**2"


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "gradient_descent.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


@pytest.fixture
def judged(config, results):
    def judge(name, change):
        return [verdict.holds for verdict in check(config, results.assign({name: change(results[name])}))]

    return judge


def test_the_default_file_is_the_default(configs):
    assert read(configs / "gradient_descent.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 5
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert "9, 5.76, 3.686, 2.359" in verdicts[0].evidence


def test_the_parabola_is_the_one_of_the_lesson(results):
    one = results.sel(descents_function="x**2")
    steps = np.arange(31)
    assert one.descents_value.values[:31] == pytest.approx(9 * 0.64**steps, rel=1e-12)
    assert one.descents_x.values[:31, 0] == pytest.approx(3 * 0.8**steps, rel=1e-12)
    assert float(one.descents_border) == pytest.approx(1, rel=1e-3)


def test_the_bowl_is_found_and_the_saddle_is_none(results):
    bowl, saddle = (results.sel(descents_function=name) for name in (BOWL, SADDLE))
    assert bowl.descents_minimum.values == pytest.approx([1, -1])
    # The Hessian is [[22, 20], [20, 20]].
    assert bowl.descents_curvature.values == pytest.approx(np.linalg.eigvalsh([[22, 20], [20, 20]]))
    assert not saddle.descents_is_minimum
    assert saddle.descents_is_quadratic
    assert np.isposinf(saddle.descents_border)


@pytest.mark.parametrize(
    ("claim", "name", "change"),
    [
        (0, "value", lambda value: value * (1 + 1e-10)),
        (1, "border", lambda border: border * 1.02),
        (2, "factor", lambda factor: factor * 1.02),
        (3, "kind", lambda kind: kind.where(kind != LEAVES, MONOTONE)),
        (4, "best_factor", lambda factor: factor + 0.02),
    ],
)
def test_a_claim_that_is_not_so_is_seen(judged, claim, name, change):
    assert judged(f"descents_{name}", change) == [number != claim for number in range(5)]


def test_without_a_minimum_only_the_closed_form_is_judged(config, results):
    saddles = results.assign(descents_is_minimum=results.descents_is_minimum & False)
    assert len(check(config, saddles)) == 1


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["regimes", "paths", "surfaces", "losses", "pace"]
    assert all(figure.get_label() for figure in figures.values())


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"curves": {"functions": ("3x",)}}, r"curves\.functions\[0\].*3\*x"),
        ({"fields": {"functions": ("x + z",)}}, r"fields\.functions\[0\].*z"),
        ({"curves": {"steps": (1,)}}, r"curves\.steps.*2 values"),
        ({"fields": {"functions": ("x**2", *"abcd")}}, r"fields\.functions"),
    ],
)
def test_bad_values_are_refused_by_place(table, said):
    with pytest.raises(ConfigError, match=said):
        build(Config, table)


def test_a_bad_flag_ends_with_the_code_of_bad_usage(capsys):
    assert main(EXPERIMENT, ["--sweep.steps", "0"]) == 2
    assert "sweep.steps" in capsys.readouterr().err
