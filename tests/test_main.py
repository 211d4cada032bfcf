import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from calcdl import __main__ as command_line
from calcdl import study
from calcdl.__main__ import EXPERIMENTS, command
from calcdl.lab.cli import Experiment
from calcdl.lab.config import AxisOf, ExperimentConfig, Rate
from calcdl.types import Verdict


class Config(ExperimentConfig):
    rates: AxisOf[Rate] = Field(default=(0.5,), description="rates")


def measure(config, run=study.run):
    return run(lambda key, rate: {"y": 2 * rate}, [study.axis("rate", config.rates)], name="doubles")


def check(config, results):
    return (Verdict("doubles", bool((results.y == 2 * results.rate).all()), 0.0, 0.0, "all"),)


@pytest.fixture
def doubling(tmp_path, monkeypatch):
    experiment = Experiment("doubling", "Does it double?\n\nMore.", Config, measure, check, lambda *_: {})
    monkeypatch.setattr(command_line, "EXPERIMENTS", {"doubling": experiment})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return experiment


def test_the_dict_names_its_experiments():
    assert all(name == experiment.name for name, experiment in EXPERIMENTS.items())


def test_list_gives_names_and_questions(doubling, capsys):
    assert command(["list"]) == 0
    assert capsys.readouterr().out == "doubling  Does it double?\n"


def test_run_and_report(doubling, capsys):
    assert command(["run", "doubling", "--quiet", "--rates", "0.25"]) == 0
    (path,) = Path("runs/doubling").iterdir()
    page = (path / "report.html").read_bytes()
    (path / "report.html").unlink()
    assert command(["report", str(path)]) == 0
    assert (path / "report.html").read_bytes() == page
    assert capsys.readouterr().out.count("holds:") == 2


def test_a_run_of_an_unknown_experiment_is_no_page(doubling, monkeypatch, capsys):
    assert command(["run", "doubling", "--quiet"]) == 0
    (path,) = Path("runs/doubling").iterdir()
    monkeypatch.setattr(command_line, "EXPERIMENTS", {})
    assert command(["report", str(path)]) == 6
    assert "holds a run of doubling, which is no experiment here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["lst"], 2, "lst: unknown command; did you mean 'list'?"),
        (["run", "doublin"], 2, "doublin: unknown experiment; did you mean 'doubling'?"),
        (["run"], 2, "run: got nothing; expected a name"),
        (["run", "doubling", "--rates", "0"], 2, "--rates[0]: got 0; expected a number > 0"),
        (["report"], 2, "report: got nothing; expected a run directory"),
        (["report", "nowhere"], 6, "nowhere: no such run directory"),
        (["list", "x"], 2, "x: unexpected; list takes nothing"),
    ],
)
def test_a_bad_command_is_one_line(doubling, words, code, said, capsys):
    assert command(words) == code
    told = capsys.readouterr().err
    assert told.startswith(f"calcdl: error: {said}")
    assert told.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_usage(doubling, words, capsys):
    assert command(words) == 0
    assert capsys.readouterr().out.startswith("usage: python -m calcdl COMMAND")


def test_doctor_fits_one_screen(doubling, monkeypatch, capsys):
    assert command(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") <= 24
    for part in ("calcdl ", "python ", "jax ", "devices ", "cpu", "float64 ", "cache", "runs "):
        assert part in said
    Path("runs").write_text("")
    assert command(["doctor"]) == 4
    assert "not writable; choose another place with --runs DIR" in capsys.readouterr().out


def test_the_module_runs_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "calcdl", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage:")
