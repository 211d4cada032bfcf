import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import xarray

from calcdl import study
from calcdl.lab import files, store
from calcdl.lab.files import StorageError
from calcdl.lab.store import RunDirectoryError

OUTPUTS = {"file": np.arange(6.0).reshape(2, 3), "status": np.array([0, 1], np.int8)}


@pytest.fixture
def made(tmp_path):
    return store.create(tmp_path, "parabola", "rows = 3\n", {"experiment": "parabola"})


@pytest.fixture(scope="module")
def plan():
    axes = [study.axis("rate", [0.1, 0.2, 0.3]), study.axis("seed", [0, 1])]
    return study.plan(lambda key, rate: {"y": rate}, axes, name="descents", width=2)


def entries(run):
    return [json.loads(line) for line in (run.path / "batches" / run.journal).read_text().splitlines()]


def test_two_runs_of_one_second_have_two_directories(tmp_path, monkeypatch):
    monkeypatch.setattr(store.time, "gmtime", lambda: (2030, 1, 2, 3, 4, 5, 2, 2, 0))
    names = [store.create(tmp_path, "parabola", "rows = 3\n", {}).name for _ in range(3)]
    assert names[0].startswith("20300102-030405-")
    assert names[1:] == [f"{names[0]}-2", f"{names[0]}-3"]
    assert store.create(tmp_path, "parabola", "rows = 4\n", {}).name not in names


def test_a_file_in_place_of_the_directory_is_storage(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match=r"runs.*; choose a writable place with --runs DIR"):
        store.create(tmp_path / "runs", "parabola", "", {})
    with pytest.raises(StorageError, match="--runs DIR"):
        store.share(tmp_path / "runs", "parabola", "", {})


def test_a_held_directory_is_busy_until_it_is_let_go(made):
    with store.hold(made), pytest.raises(RunDirectoryError, match="in use by another process"), store.hold(made):
        pass
    with store.hold(made) as run:
        assert run.path == made


def test_parts_exclude_the_whole_and_themselves_but_no_other_part(made):
    with store.hold(made, (1, 2)) as one, store.hold(made, (2, 2)) as two:
        assert one.journal != two.journal
        for part in (None, (1, 2)):
            with pytest.raises(RunDirectoryError, match="in use"), store.hold(made, part):
                pass
    with store.hold(made), pytest.raises(RunDirectoryError, match="in use"), store.hold(made, (1, 2)):
        pass


def test_parts_find_the_same_directory(tmp_path):
    one = store.share(tmp_path, "parabola", "rows = 3\n", {"first": True})
    assert store.share(tmp_path, "parabola", "rows = 3\n", {"first": False}) == one
    assert store.environment(one) == {"first": True}
    assert store.share(tmp_path, "parabola", "rows = 4\n", {}) != one


@pytest.mark.parametrize("missing", ["config.toml", "environment.json", ""])
def test_what_is_no_run_directory_is_refused(made, missing):
    path = made if missing else made / "nowhere"
    (made / missing).unlink() if missing else None
    with pytest.raises(RunDirectoryError, match=missing or "no such run directory"), store.hold(path):
        pass


def test_a_directory_that_cannot_be_written_is_refused_before_anything_runs(made):
    (made / "batches").rmdir()
    (made / "batches").write_text("")
    with pytest.raises(StorageError, match="make the directory writable"), store.hold(made):
        pass


def test_what_is_committed_is_found_with_the_same_bits(made, plan):
    with store.hold(made) as run:
        store.commit(run, "descents", plan.batches[0], OUTPUTS)
        store.commit(run, "others", plan.batches[0], {"y": np.float32([np.nan])})
        found, notices = store.finished(run, "descents")
    assert notices == []
    assert list(found) == [0]
    for name, array in OUTPUTS.items():
        assert found[0][name].dtype == array.dtype
        assert found[0][name].tobytes() == array.tobytes()
    assert not list(made.rglob("*.tmp"))


def test_equal_outputs_give_equal_files(made, plan):
    with store.hold(made) as run:
        store.commit(run, "descents", plan.batches[0], OUTPUTS)
        store.commit(run, "descents", plan.batches[0], OUTPUTS)
        first, second = entries(run)
    assert first == second


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_batch_is_named_and_left_out(made, plan, damage):
    with store.hold(made) as run:
        for batch in plan.batches[:2]:
            store.commit(run, "descents", batch, OUTPUTS)
        file = run.path / "batches" / entries(run)[0]["file"]
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data if damage == "flip" else data[:-9])
        if damage == "remove":
            file.unlink()
        found, notices = store.finished(run, "descents")
        assert list(found) == [1]
        assert notices == [f"{file}: damaged or missing; the batch is computed again"]
        store.commit(run, "descents", plan.batches[0], OUTPUTS)
        found, notices = store.finished(run, "descents")
    assert sorted(found) == [0, 1]
    assert notices == []


def test_a_torn_line_costs_its_batch_alone(made, plan):
    with store.hold(made) as run:
        for batch in plan.batches[:2]:
            store.commit(run, "descents", batch, OUTPUTS)
        journal = run.path / "batches" / run.journal
        journal.write_bytes(journal.read_bytes()[:-20])
        found, notices = store.finished(run, "descents")
        assert list(found) == [0]
        assert len(notices) == 1
        assert "torn line" in notices[0]
        store.commit(run, "descents", plan.batches[2], OUTPUTS)
        assert sorted(store.finished(run, "descents")[0]) == [0, 2]


def test_a_batch_without_its_line_does_not_count(made, plan, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with store.hold(made) as run:
        store.commit(run, "descents", plan.batches[0], OUTPUTS)
        monkeypatch.setattr(store, "append", refuse)
        with pytest.raises(StorageError, match=f"No space left on device; what is finished is kept.*{made}"):
            store.commit(run, "descents", plan.batches[1], OUTPUTS)
        assert list(store.finished(run, "descents")[0]) == [0]


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    file = tmp_path / "x"
    files.write(file, b"old")

    def refuse(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            files.write(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are not listed here")
def test_every_file_and_its_folder_are_forced_to_disk_in_order(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(os, "fsync", lambda handle: steps.append(os.readlink(f"/proc/self/fd/{handle}")))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (steps.append("rename"), replace(old, new)))
    files.write(tmp_path / "x", b"new")
    assert [Path(step).name for step in steps] == [f".x.{os.getpid()}.tmp", "rename", tmp_path.name]


def test_outputs_that_files_cannot_hold_are_refused_by_name(made, plan):
    with store.hold(made) as run, pytest.raises(TypeError, match=r"study descents: y is .*cast it"):
        store.commit(run, "descents", plan.batches[0], {"y": np.array([None])})


def test_a_study_begun_otherwise_is_refused_by_its_first_difference(made, plan):
    with store.hold(made) as run:
        store.record(run, plan)
        store.record(run, plan)
        other = study.plan(plan.function, [study.axis("rate", [0.1, 0.5, 0.3]), plan.axes[1]], name="descents", width=2)
        with pytest.raises(RunDirectoryError, match=r"descents began with axes.rate\[1\] = 0.2, this start has 0.5"):
            store.record(run, other)
        with pytest.raises(RunDirectoryError, match="began with dtype = float32, this start has float64"):
            store.record(run, plan._replace(dtype="float64"))
        with pytest.raises(RunDirectoryError, match="began with batches"):
            store.record(run, plan._replace(batches=plan.batches[1:]))
        with pytest.raises(ValueError, match="expected a name of letters"):
            store.record(run, plan._replace(name="../x"))


def test_a_damaged_environment_is_refused(made):
    (made / "environment.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"environment.json: damaged"):
        store.environment(made)


def test_results_survive_with_their_bits_and_what_attributes_they_can(made):
    results = xarray.Dataset(
        {"loss": (("rate", "name"), np.float32([[1, np.nan], [np.inf, 0.1]])), "status": ("rate", np.int8([0, 1]))},
        coords={"rate": [0.1, 0.2], "name": ["tanh", "relu"]},
        attrs={"flag": True, "nothing": None, "nested": {"a": [1, 2]}, "text": "x", "number": 0.5},
    )
    store.save_results(made, results)
    found = store.load_results(made)
    assert found.loss.dtype == np.float32
    assert found.loss.values.tobytes() == results.loss.values.tobytes()
    assert found.status.values.tolist() == [0, 1]
    assert found.sel(name="relu").loss.values[1] == np.float32(0.1)
    assert found.attrs["flag"] == 1
    assert found.attrs["text"] == "x"
    assert json.loads(found.attrs["nested"]) == {"a": [1, 2]}
    assert results.attrs["flag"] is True


def test_missing_and_damaged_results_are_refused(made):
    with pytest.raises(RunDirectoryError, match=r"has no study.nc yet; finish or mend the run with --resume"):
        store.load_results(made)
    (made / "study.nc").write_bytes(b"not a file of numbers")
    with pytest.raises(RunDirectoryError, match=r"study.nc: damaged"):
        store.load_results(made)


def test_differences_are_named_by_their_path():
    assert store.difference({"a": {"b": (1, 2)}}, {"a": {"b": [1, 2]}}) is None
    assert store.difference({"a": 1}, {"a": 1, "c": 2}) == ("c", None, 2)
    assert store.difference({"a": (1,)}, {"a": (1, 2)}) == ("a", (1,), (1, 2))
