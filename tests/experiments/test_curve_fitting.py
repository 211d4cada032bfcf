import numpy as np
import pytest

from calcdl.experiments.curve_fitting import EXPERIMENT, Config, best, check, measure, observed, show
from calcdl.lab.cli import main
from calcdl.lab.config import ConfigError, build, read
from calcdl.study import part
from calcdl.types import DataError


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "curve_fitting.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "curve_fitting.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 4
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert "a = " in verdicts[0].evidence


def test_the_fit_is_near_the_truth_and_no_fit_is_better(config, results):
    chosen = best(part(results, "fits"))
    off = (chosen.parameters - list(config.observations.truth)) / chosen.errors
    assert float(np.abs(off).max()) < 4
    assert float(chosen.value[-1]) == float(results["fits_value"].isel(fits_step=-1).min())
    band = part(results, "band")
    assert bool((band.error_of_new > band.error).all())


@pytest.mark.parametrize(
    ("claim", "name", "change"),
    [
        (0, "fits_parameters", lambda p: p.where(p.fits_factor == 1, p * 1.001)),
        (1, "fits_cosine", lambda cosine: cosine + 1e-3),
        (2, "again_parameters", lambda p: p + 0.4 * (p - p.mean("again_seed"))),
    ],
)
def test_a_claim_that_is_not_so_is_seen(config, results, claim, name, change):
    held = [verdict.holds for verdict in check(config, results.assign({name: change(results[name])}))]
    assert not held[claim]
    assert all(held[:claim])


def test_intervals_that_are_too_short_are_seen(config, results):
    short = results.assign(again_errors=results["again_errors"] / 2)
    assert [verdict.holds for verdict in check(config, short)] == [True, True, True, False]


def test_what_the_data_do_not_determine_is_said(config, results):
    told = check(config, results.assign(fits_told=results["fits_told"] * 0 + 2))
    assert [verdict.holds for verdict in told] == [True, True, False]
    assert told[-1].evidence.startswith("rank deficient")


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures)[:2] == ["fit", "scatter"]
    assert all(figure.get_label() for figure in figures.values())


def test_a_file_is_read_by_the_names_of_its_columns(tmp_path, capsys):
    file = tmp_path / "growth.csv"
    file.write_text("day,height,depth\n0,1.0,5\n1,0.9,7\n2,0.7,6\n3,0.65,9\n4,0.6,8\n")
    table = {"file": str(file), "target": "height", "column": "day"}
    x, y, *names = observed(build(Config, {"observations": table}))
    assert names == ["day", "height"]
    assert x.tolist() == [0, 1, 2, 3, 4]
    assert y.tolist() == [1.0, 0.9, 0.7, 0.65, 0.6]
    with pytest.raises(ConfigError, match=r"observations\.column: got ''; expected one of day, depth"):
        observed(build(Config, {"observations": table | {"column": ""}}))
    flags = ["--observations.file", str(file), "--observations.target", "height", "--observations.column", "day"]
    model = ["--model.formula", "u*exp(-v*x)", "--model.parameters", "u", "v", "--model.start", "1", "1"]
    assert main(EXPERIMENT, [*flags, *model, "--dry-run"]) == 0, capsys.readouterr().err


def test_too_few_rows_are_refused(configs):
    table = read(configs / "curve_fitting.quick.toml", Config).model_dump()
    table["observations"]["rows"] = 3
    with pytest.raises(DataError, match="3 rows for 3 parameters"):
        measure(build(Config, table))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"model": {"formula": "a + b*z"}}, r"model\.formula.*a formula in x, a, b, c"),
        ({"model": {"start": (1.0, 2.0)}}, r"model\.start.*3 numbers"),
        ({"observations": {"truth": (1.0,)}}, r"observations\.truth.*3 numbers"),
    ],
)
def test_bad_values_are_refused_by_place(table, said):
    with pytest.raises(ConfigError, match=said):
        build(Config, table)


def test_a_bad_flag_ends_with_the_code_of_bad_usage(capsys):
    assert main(EXPERIMENT, ["--confidence", "2"]) == 2
    assert "confidence" in capsys.readouterr().err
