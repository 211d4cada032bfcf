import errno
import json
import os
import pty
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np
import parabola
import pytest
import xarray
from parabola import EXPERIMENT

from calcdl import study
from calcdl.lab import cli, files, store
from calcdl.lab.cli import main
from calcdl.types import Verdict

RUNS = Path("runs/parabola")
BARE = EXPERIMENT._replace(show=lambda config, results: {})  # drawing takes longest


def only_run():
    (path,) = RUNS.iterdir()
    return path


def bits(path):
    with xarray.open_dataset(path / "study.nc", engine="h5netcdf") as results:
        return {name: variable.values.tobytes() for name, variable in results.variables.items()}


def batches(path):
    return {file.name: file.stat().st_mtime_ns for file in (path / "batches").glob("*.npz")}


def test_a_run_leaves_everything_and_says_so(capsys):
    assert main(EXPERIMENT, ["--execution.width", "4"]) == 0
    path = only_run()
    for name in ("config.toml", "environment.json", "study.nc", "verdicts.json", "report.html"):
        assert (path / name).stat().st_size
    assert {file.name for file in (path / "figures").iterdir()} == {"distance.svg", "distance.png"}
    said, told = capsys.readouterr()
    assert "holds:          rates below 2 converge (measured" in said
    assert "runs of descents: 12 of 16 ok, 4 diverged" in said
    assert said.splitlines()[-1] == f"report: {path / 'report.html'}"
    assert told.splitlines()[-1].startswith("descents: 16 of 16 lanes")
    environment = json.loads((path / "environment.json").read_bytes())
    assert environment["experiment"] == "parabola"
    assert environment["x64"] is False
    assert environment["matmul_precision"] == "highest"
    assert environment["studies"]["descents"]["dtype"] == "float32"
    verdicts = json.loads((path / "verdicts.json").read_bytes())
    assert verdicts["exit_code"] == 0
    assert verdicts["studies"]["descents"] == {"total": 16, "ok": 12, "diverged": 4, "failed": 0, "not_run": 0}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--bound", "0"], 1, None),
        (["--bound", "nan"], 1, None),
        (["--rates", "0"], 2, "error: --rates[0]: got 0; expected a number > 0"),
        (["nowhere.toml"], 2, "error: nowhere.toml: no such file"),
        (["--rate", "1"], 2, "error: --rate: unknown flag; did you mean '--rates'?"),
        (["--publish"], 2, "error: --publish: no folder experiments/parabola here"),
        (["--fault", "value"], 2, "error: parabola: momentum: expected a number below 1, got 1.5"),
        (["--fault", "data"], 3, "error: parabola: column 'age': row 3 is NaN; drop the row"),
        (["--fault", "nan"], 5, None),
        (["--fault", "nan", "--bound", "0"], 5, None),
        (["--resume", "nowhere"], 6, "error: nowhere: no such run directory; give one from runs/<name>/"),
        (["--report", "nowhere"], 6, "error: nowhere: no such run directory"),
        (["--fault", "defect"], 70, "error: parabola: ZeroDivisionError: division by zero in two lines; --debug"),
        (["--fault", "check"], 70, "error: parabola: check failed with KeyError: 'no such variable'; results are kept"),
    ],
)
def test_exit_codes(arguments, code, said, capsys):
    assert main(BARE, [*arguments, "--quiet"]) == code
    told = capsys.readouterr().err
    assert told.startswith(f"calcdl: {said}" if said else "")
    assert told.count("\n") == (1 if said else 0)
    assert "Traceback" not in told
    assert RUNS.exists() == (code in (0, 1, 5) or "check" in arguments)


def test_debug_adds_the_traceback(capsys):
    assert main(BARE, ["--fault", "data", "--debug"]) == 3
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.splitlines()[-1].startswith("calcdl: error: parabola: column 'age'")


def test_a_failed_check_can_be_made_good_from_what_is_stored(capsys):
    assert main(BARE, ["--fault", "check", "--quiet"]) == 70
    mended = BARE._replace(check=lambda config, results: (Verdict("c", True, 0.0, 1.0, "e"),))
    before = batches(only_run())
    assert main(mended, ["--report", str(only_run())]) == 0
    assert batches(only_run()) == before
    assert "holds:" in capsys.readouterr().out


def test_a_value_that_is_nan_supports_no_claim(capsys):
    lying = BARE._replace(check=lambda config, results: (Verdict("c", True, float("nan"), 1.0, "e"),))
    assert main(lying, ["--quiet"]) == 1
    assert "does not hold:" in capsys.readouterr().out


def test_settings_of_jax_are_as_they_were():
    before = dict(jax.config.values)
    seen = []

    def measure(config, run):
        seen.append((jax.config.values["jax_enable_x64"], jax.config.values["jax_default_matmul_precision"]))
        return parabola.measure(config, run)

    assert main(BARE._replace(measure=measure), ["--precision", "float64", "--quiet"]) == 0
    assert main(BARE._replace(measure=measure), ["--quiet"]) == 0
    assert seen == [(True, "highest"), (False, "highest")]
    assert dict(jax.config.values) == before
    kinds = {store.load_results(path).distance.dtype for path in RUNS.iterdir()}
    assert kinds == {np.dtype(np.float32), np.dtype(np.float64)}


def test_a_dry_run_prints_the_plan_and_leaves_nothing(capsys):
    assert main(BARE, ["--dry-run", "--runs", "elsewhere"]) == 0
    said, told = capsys.readouterr()
    assert "study descents: 16 lanes" in said
    assert told == ""
    assert list(Path().iterdir()) == []


def test_a_dry_run_follows_an_experiment_that_looks_between_its_studies(capsys):
    def twice(config, run):
        first = parabola.measure(config, run)
        axes = [study.axis("scale", [1.0, 2.0])]
        return run(lambda key, scale: {"y": scale}, axes, name=f"after_{first.distance.ndim}_axes")

    assert main(BARE._replace(measure=twice), ["--dry-run"]) == 0
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("study")] == [
        "study descents",
        "study after_2_axes",
    ]
    wrong = BARE._replace(measure=lambda config, run: parabola.measure(config, run).nothing)
    assert main(wrong, ["--dry-run"]) == 70
    assert "AttributeError" in capsys.readouterr().err


def test_resuming_a_complete_run_computes_nothing_and_keeps_the_bits(monkeypatch, capsys):
    assert main(BARE, ["--execution.width", "4"]) == 0
    path = only_run()
    before, files_before = bits(path), batches(path)
    monkeypatch.setattr(study.runner, "run_batch", None)
    assert main(BARE, ["--resume", str(path), "--execution.workers", "2"]) == 0
    assert bits(path) == before
    assert batches(path) == files_before
    assert len(files_before) > 1


@pytest.mark.parametrize("damage", ["flip", "torn"])
def test_resuming_a_damaged_run_computes_what_is_lost(damage, capsys):
    assert main(BARE, ["--execution.width", "4", "--quiet"]) == 0
    path = only_run()
    before, files_before = bits(path), batches(path)
    journal = path / "batches/journal.jsonl"
    lost = json.loads(journal.read_text().splitlines()[-1])["file"]
    if damage == "flip":
        (path / "batches" / lost).write_bytes(b"PK")
    else:
        journal.write_bytes(journal.read_bytes()[:-30])
    assert main(BARE, ["--resume", str(path), "--quiet"]) == 0
    assert bits(path) == before
    assert {name for name, when in batches(path).items() if when != files_before[name]} == {lost}
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("calcdl: note: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rates", "0.1"], "ran with rates = [0.1, 0.5, 1.5, 3.0], this start asks for [0.1]"),
        (["--descent.steps", "21"], "ran with descent.steps = 20, this start asks for 21"),
        (["other.toml"], "ran with seeds = [0, 1, 2, 3], this start asks for [7]"),
    ],
)
def test_resuming_with_another_configuration_is_refused(arguments, said, capsys):
    Path("other.toml").write_text("seeds = [7]")
    assert main(BARE, ["--quiet"]) == 0
    path = only_run()
    assert main(BARE, [*arguments, "--resume", str(path)]) == 6
    assert f"calcdl: error: {path}: {said}" in capsys.readouterr().err


def test_resuming_elsewhere_or_otherwise_is_refused(monkeypatch, capsys):
    assert main(BARE, ["--quiet"]) == 0
    path = only_run()
    assert main(BARE._replace(name="other"), ["--resume", str(path)]) == 6
    assert "holds a run of parabola, not of other" in capsys.readouterr().err
    mark = study.Plan.fingerprint
    monkeypatch.setattr(study.Plan, "fingerprint", lambda plan: {**mark(plan), "device_kind": "abacus"})
    assert main(BARE, ["--resume", str(path)]) == 6
    assert "began with device_kind = cpu, this start has abacus" in capsys.readouterr().err
    (path / "config.toml").write_text("rates = [0]")
    assert main(BARE, ["--resume", str(path)]) == 6
    assert "it was written by another version" in capsys.readouterr().err


def test_a_directory_in_use_is_busy(capsys):
    assert main(BARE, ["--quiet"]) == 0
    path = only_run()
    with store.hold(path):
        for option in ("--resume", "--report"):
            assert main(BARE, [option, str(path)]) == 6
            assert "in use by another process; wait for it" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_storage(capsys):
    Path("runs").write_text("")
    assert main(BARE, []) == 4
    told = capsys.readouterr().err
    assert told.startswith("calcdl: error: runs")
    assert told.count("\n") == 1
    assert "choose a writable place with --runs DIR" in told


def fail_when(monkeypatch, module, suffix, after=0):
    """Let the disk be full for files of some kind, after some of them."""
    write, seen = files.write, []

    def refuse(path, data):
        if path.name.endswith(suffix):
            seen.append(path)
            if len(seen) > after:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(module, "write", refuse)


def test_a_disk_that_fills_in_mid_study_keeps_what_is_finished(monkeypatch, capsys):
    arguments = ["--execution.width", "4", "--execution.workers", "1"]
    assert main(BARE, [*arguments, "--runs", "whole", "--quiet"]) == 0
    with monkeypatch.context() as patch:
        fail_when(patch, store, ".npz", after=2)
        assert main(BARE, [*arguments, "--quiet"]) == 4
    path = only_run()
    told = capsys.readouterr().err
    assert "No space left on device; what is finished is kept; free some space" in told
    assert f"--resume {path}" in told
    assert len(batches(path)) == 2
    before = batches(path)
    assert main(BARE, ["--resume", str(path), "--quiet"]) == 0
    assert before.items() <= batches(path).items()
    (whole,) = Path("whole/parabola").iterdir()
    assert bits(path) == bits(whole)


def test_a_disk_that_fills_at_the_page_keeps_the_results(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        fail_when(patch, cli, ".html")
        assert main(BARE, ["--quiet"]) == 4
    path = only_run()
    assert f"--report {path}" in capsys.readouterr().err
    assert main(BARE, ["--report", str(path)]) == 0
    assert (path / "report.html").exists()


def test_the_page_is_made_again_without_measuring(capsys):
    assert main(BARE, ["--quiet"]) == 0
    path = only_run()
    before = (path / "report.html").read_bytes(), bits(path), batches(path)
    (path / "report.html").unlink()
    assert main(BARE._replace(measure=None), ["--report", str(path)]) == 0
    assert ((path / "report.html").read_bytes(), bits(path), batches(path)) == before
    (path / "study.nc").unlink()
    capsys.readouterr()
    assert main(BARE, ["--report", str(path)]) == 6
    assert "has no study.nc yet; finish or mend the run with --resume" in capsys.readouterr().err


def test_parts_of_a_run_make_the_whole(capsys):
    arguments = ["--execution.width", "4", "--quiet"]
    assert main(BARE, [*arguments, "--runs", "whole"]) == 0
    for part in ("1/2", "2/2"):
        assert main(BARE, [*arguments, "--shard", part]) == 0
    path = only_run()
    journals = [path.read_text().count("\n") for path in (path / "batches").glob("journal.*.jsonl")]
    assert journals == [len(batches(path)) / 2] * 2
    assert path.name.startswith("shared-")
    assert not (path / "study.nc").exists()
    assert f"python -m calcdl.experiments.parabola --resume {path}" in capsys.readouterr().out
    before = batches(path)
    assert main(BARE, ["--resume", str(path), "--quiet"]) == 0
    assert batches(path) == before
    (whole,) = Path("whole/parabola").iterdir()
    assert bits(path) == bits(whole)


def test_one_study_name_serves_one_study(capsys):
    def twice(config, run):
        parabola.measure(config, run)
        return parabola.measure(config, run)

    assert main(BARE._replace(measure=twice), ["--quiet"]) == 2
    assert "study 'descents': expected a name of its own" in capsys.readouterr().err


def test_an_interrupt_before_anything_is_kept_says_so(capsys):
    def interrupted(config, run):
        raise KeyboardInterrupt

    assert main(BARE._replace(measure=interrupted), []) == 75
    assert capsys.readouterr().err == "calcdl: interrupted; nothing was lost, start again\n"
    assert not RUNS.exists()


SLOW = ["--execution.width", "1", "--execution.workers", "1", "--descent.steps", "4000000"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_resumes_to_the_same_bits(start, number, capsys):
    process = start(*SLOW)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        journals = list(RUNS.glob("*/batches/journal.jsonl"))
        if journals and journals[0].read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.01)
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    path = only_run()
    journal = [json.loads(line)["file"] for line in (path / "batches/journal.jsonl").read_text().splitlines()]
    before = {name: when for name, when in batches(path).items() if name in journal}
    assert process.returncode == 75, told
    assert 2 <= len(before) < 16
    line = told.splitlines()[-1]
    assert line.startswith(f"calcdl: interrupted; {len(before)} finished batches are kept, go on with: ")
    assert line.endswith(f"python -m calcdl.experiments.parabola --resume {path}")
    assert "Traceback" not in told
    assert main(BARE, ["--resume", str(path), "--quiet"]) == 0
    assert before.items() <= batches(path).items()
    assert main(BARE, [*SLOW, "--runs", "whole", "--quiet"]) == 0
    (whole,) = Path("whole/parabola").iterdir()
    assert bits(path) == bits(whole)


def test_a_reader_who_leaves_stops_nothing(start):
    process = start("--quiet")
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0
    assert told == ""
    assert (only_run() / "report.html").exists()


def test_bad_input_help_and_plans_cost_no_heavy_import(start):
    heavy = {"matplotlib", "jinja2", "h5netcdf", "h5py", "sklearn", "scipy", "sympy"}
    cases = {"--help": 0, "--rates=0": 2, "--dry-run": 0}
    running = {words: start(words, LOADED="1") for words in cases}
    for words, process in running.items():
        said, told = process.communicate(timeout=60)
        assert process.returncode == cases[words], told
        loaded = set(json.loads(said.splitlines()[-1]))
        assert not loaded & heavy
        assert words == "--dry-run" or "xarray" not in loaded


def test_a_terminal_sees_one_moving_line(monkeypatch):
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(cli.sys, "stderr", terminal)
        assert main(BARE, ["--execution.width", "4"]) == 0
    told = os.read(leader, 65536).decode()
    os.close(leader)
    assert told.count("\n") == 1
    assert "[####################] descents: 16 of 16 lanes" in told.split("\r")[-2]


def test_main_leaves_signals_alone_in_a_thread():
    before, codes = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: codes.append(main(BARE, ["--dry-run"])))
    thread.start()
    thread.join()
    assert codes == [0]
    assert signal.getsignal(signal.SIGTERM) is before


def test_publish_keeps_numbers_and_figures_in_the_notebook(capsys):
    folder = Path("experiments/parabola")
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# By hand\n<!-- results -->\nold\n<!-- end of results -->\nAfter.\n")
    assert main(EXPERIMENT, ["--publish", "--quiet"]) == 0
    text = (folder / "README.md").read_text()
    assert text.startswith("# By hand\n<!-- results -->\n| claim | verdict | measured | bound |")
    assert "| rates below 2 converge | holds |" in text
    assert "![Distance at the end against the rate.](distance.svg)" in text
    assert text.endswith("<!-- end of results -->\nAfter.\n")
    assert "\nold\n" not in text
    (number,) = json.loads((folder / "reference.json").read_bytes())
    assert (number["claim"], number["holds"], number["threshold"]) == ("rates below 2 converge", True, 1.0)
    svg = (folder / "distance.svg").read_bytes()
    assert main(EXPERIMENT, ["--publish", "--report", str(only_run())]) == 0
    assert (folder / "distance.svg").read_bytes() == svg
    (folder / "README.md").write_text("# By hand, no block\n")
    assert main(EXPERIMENT, ["--publish", "--report", str(only_run())]) == 0
    assert (folder / "README.md").read_text() == "# By hand, no block\n"
    assert "README.md has no lines <!-- results -->" in capsys.readouterr().err
