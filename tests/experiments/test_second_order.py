import numpy as np
import pytest

from calcdl.experiments.second_order import EXPERIMENT, Config, check, critical_points, measure, pairs, show
from calcdl.lab.cli import main
from calcdl.lab.config import ConfigError, build, read
from calcdl.study import part


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "second_order.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "second_order.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 6
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert "Newton 1.9" in verdicts[1].evidence or "Newton 2.0" in verdicts[1].evidence


def test_critical_points_are_those_on_record(results, truths):
    record = next(one for one in truths("classics.json")["critical_points"] if one["name"] == "himmelblau")
    found = critical_points(part(results, "basins"))
    assert [kind for _, kind in found] == sorted(point["index"] for point in record["points"])
    for point in record["points"]:
        assert min(np.abs(place - point["x"]).max() for place, kind in found if kind == point["index"]) < 1e-3


def test_all_that_know_curvature_end_at_the_minimum(results):
    errors = results["race_error"].isel(race_step=-1).sel(race_solver=["BFGS", "Newton"])
    assert float(errors.max()) < 1e-12
    assert float(results["race_seconds"].min()) > 0


def test_pairs_are_of_falling_errors_above_the_rounding():
    before, after = pairs(np.array([[1.0, 1e-2, 1e-4, 1e-8, 1e-16, 0.0]]))
    assert before.tolist() == [-2, -4]
    assert after.tolist() == [-4, -8]


@pytest.mark.parametrize(
    ("claim", "name", "change"),
    [
        (3, "basins_kind", lambda kind: kind.where(kind == 3, 0)),
        (4, "basins_kind", lambda kind: kind.where(kind.basins_curvature == "raw", 1)),
        (5, "roots_order", lambda order: order * 1.1),
    ],
)
def test_a_claim_that_is_not_so_is_seen(config, results, claim, name, change):
    held = [verdict.holds for verdict in check(config, results.assign({name: change(results[name])}))]
    assert held == [number != claim for number in range(6)]


def test_an_order_that_is_not_so_is_seen(config, results):
    errors = results["race_error"]
    straight = errors.sel(race_solver="gradient descent")
    bent = errors.where(errors.race_solver != "Newton", straight)
    held = [verdict.holds for verdict in check(config, results.assign(race_error=bent))]
    assert held == [True, False, True, True, True, True]
    flat = check(config, results.assign(race_error=errors * 0 + 1))
    assert len(flat) == 3  # where no error falls there is no order to tell


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures)[:2] == ["convergence", "basins"]
    assert all(figure.get_label() for figure in figures.values())


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"race": {"residuals": ("10*(x2 - x1",)}}, r"race\.residuals\[0\].*formula in x1 and x2"),
        ({"race": {"solvers": ("newton",)}}, r"race\.solvers\[0\].*Newton"),
        ({"basins": {"function": "x + y"}}, r"basins\.function"),
    ],
)
def test_bad_values_are_refused_by_place(table, said):
    with pytest.raises(ConfigError, match=said):
        build(Config, table)


def test_a_bad_flag_ends_with_the_code_of_bad_usage(capsys):
    assert main(EXPERIMENT, ["--race.learning-rate", "-1"]) == 2
    assert "race.learning_rate" in capsys.readouterr().err
