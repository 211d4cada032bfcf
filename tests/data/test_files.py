import numpy as np
import pytest

from calcdl.data import load
from calcdl.types import DataError

GOOD = "a,b,target\n1,2,3\n2,1,5\n4,7,6\n3,3,1\n"


def written(tmp_path, text, name="data.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_table_is_read(tmp_path, separator):
    data = load(written(tmp_path, GOOD.replace(",", separator)))
    assert data.feature_names == ("a", "b")
    assert data.target_name == "target"
    assert data.target_kind == "regression"
    np.testing.assert_array_equal(data.features, [[1, 2], [2, 1], [4, 7], [3, 3]])
    np.testing.assert_array_equal(data.targets, [3, 5, 6, 1])
    assert data.source == "the file data.csv, 4 rows"


def test_quotes_blank_lines_and_marks_of_order_are_understood(tmp_path):
    text = '\ufeff"a, in cm" , b ,y\r\n\r\n 1 ,"2",3\r\n2,1,5\r\n4,7,6\r\n1e0,-3.5,6\r\n'
    data = load(written(tmp_path, text), target="y")
    assert data.feature_names == ("a, in cm", "b")
    assert data.features[3].tolist() == [1.0, -3.5]


def test_text_targets_are_classes_in_sorted_order(tmp_path):
    text = "a,b,kind\n1,2,dog\n2,1,cat\n4,7,dog\n3,3,bird\n"
    data = load(written(tmp_path, text), target="kind")
    assert data.target_kind == "classification"
    assert data.classes == ("bird", "cat", "dog")
    assert data.targets.tolist() == [2, 1, 2, 0]
    assert data.targets.dtype == np.int32


def test_whole_numbers_are_labels_only_where_asked(tmp_path):
    path = written(tmp_path, "a,b,target\n1,2,0\n2,1,1\n4,7,2.0\n3,3,1\n")
    assert load(path).target_kind == "regression"
    data = load(path, kind="classification")
    assert data.classes == ("0", "1", "2")
    assert data.targets.tolist() == [0, 1, 2, 1]


BAD = {
    "empty": ("", {}, "the file is empty"),
    "commas only": (",,\n,,\n", {}, "the file is empty"),
    "header only": ("a,b,target\n", {}, "got 0 row(s) and 2 column(s)"),
    "one row": ("a,b,target\n1,2,3\n", {}, "expected at least two rows and one column, got 1 row(s)"),
    "target only": ("target\n1\n2\n", {}, "0 column(s) beside the target"),
    "open quote": ('a,b,target\n1,"2,3\n4,5,6\n', {}, "line 3: expected 3 cells as in the header, got 2"),
    "open last quote": ('a,target\n3,4\n5,7\n1,"2\n4,5\n', {}, "line 5, column 'target': expected"),
    "long cell": ("a,target\n1," + "2" * 200_000 + "\n2,3\n", {}, "cannot be read (field larger than"),
    "no header": ("1,2,3\n4,5,6\n", {}, "line 1 holds numbers only; put a row with the columns' names above it"),
    "ragged": ("a,b,target\n1,2,3\n\n4,5\n", {}, "line 4: expected 3 cells as in the header, got 2"),
    "doubled name": ("a,a,target\n1,2,3\n2,2,2\n", {}, "column name 'a' stands twice"),
    "no name": ("a,,target\n1,2,3\n2,2,2\n", {}, "a column has no name"),
    "NaN": (GOOD.replace("7", "nan"), {}, "line 4, column 'b': expected a finite number, got nan"),
    "Inf": (GOOD.replace("7", "-inf"), {}, "line 4, column 'b': expected a finite number, got -inf"),
    "empty cell": (GOOD.replace("7", ""), {}, "line 4, column 'b': expected a number, got an empty cell"),
    "text": (GOOD.replace("7", "high"), {}, "line 4, column 'b': expected a number, got 'high'"),
    "underscore": (GOOD.replace("7", "1_000"), {}, "got '1_000'"),
    "NaN target": (GOOD.replace("6", "NaN"), {}, "line 4, column 'target': expected a finite number, got nan"),
    "mixed target": (GOOD.replace("6", "six"), {}, "line 4, column 'target': expected a number, got 'six'"),
    "unknown target": (GOOD, {"target": "traget"}, "got 'traget'; did you mean 'target'?"),
    "no target": (
        GOOD.replace("target", "height"),
        {},
        "no column is called 'target'; name the one to predict: 'a', 'b'",
    ),
    "constant": ("a,b,target\n1,2,3\n2,2,5\n4,2,6\n3,2,1\n", {}, "column 'b' is 2 in every row; drop it"),
    "constant target": ("a,b,target\n1,2,3\n2,1,3\n4,5,3\n3,9,3\n", {}, "column 'target' is 3 in every row"),
    "wide": ("a,b,c,target\n1,2,5,3\n2,1,3,5\n4,3,3,4\n", {}, "3 columns but only 3 rows"),
    "label -1": (
        GOOD.replace("6", "-1"),
        {"kind": "classification"},
        "line 4, column 'target': expected a label 0, 1, 2, ..., got -1",
    ),
    "label 1.5": (
        GOOD.replace("6", "1.5"),
        {"kind": "classification"},
        "line 4, column 'target': expected a label 0, 1, 2, ..., got 1.5",
    ),
    "labels from 1": ("a,target\n1,1\n3,2\n2,1\n", {"kind": "classification"}, "label 2 is there but label 0 is not"),
    "gap": ("a,target\n1,0\n3,3\n2,1\n", {"kind": "classification"}, "label 3 is there but label 2 is not"),
    "one label": ("a,target\n1,0\n3,0\n2,0\n", {"kind": "classification"}, "every label is 0; expected at least two"),
    "one class": ("a,target\n1,x\n3,x\n2,x\n", {}, "every label is 'x'; expected at least two classes"),
    "empty class": ("a,target\n1,x\n3,\n2,y\n", {}, "line 3, column 'target': expected a class, got an empty cell"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_files_are_refused_in_one_line_with_the_place(tmp_path, fault):
    text, arguments, words = BAD[fault]
    path = written(tmp_path, text)
    with pytest.raises(DataError) as caught:
        load(path, **arguments)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_dependent_columns_are_named(tmp_path):
    generator = np.random.default_rng(0)
    a, b, c = generator.normal(1e4, 1.0, (3, 60))
    rows = np.stack([a, b, c, 0.1 * a - 3 * c + 7, a * b], axis=1)
    names = "a,b,c,d,target"
    path = tmp_path / "dependent.csv"
    np.savetxt(path, rows, delimiter=",", header=names, comments="", fmt="%.17g")
    with pytest.raises(DataError, match=r"column 'd' is an exact linear combination of 'a', 'c'; drop one of them"):
        load(path)
    assert load(path, collinear="keep").features.shape == (60, 4)
    rows[:, 3] += generator.normal(0, 1e-7, 60)
    np.savetxt(path, rows, delimiter=",", header=names, comments="", fmt="%.17g")
    assert load(path).features.shape == (60, 4)


def test_constant_columns_may_be_kept(tmp_path):
    path = written(tmp_path, "a,b,target\n1,2,3\n2,2,5\n4,2,6\n3,2,1\n")
    assert load(path, constant="keep").features[:, 1].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("name", ["Longley", "Wampler1", "Norris", "Pontius"])
def test_nearly_dependent_columns_of_certified_problems_pass(tmp_path, truths, name):
    record = truths(f"nist/{name}.json")
    x = np.array(record["x"])
    columns = x if x.ndim == 2 else np.stack([x**power for power in range(1, record["degree"] + 1)], axis=1)
    np.savez(tmp_path / "nist.npz", features=columns, targets=np.array(record["y"]))
    assert load(tmp_path / "nist.npz").features.shape == columns.shape


def test_arrays_are_read_whole_or_by_column(tmp_path):
    x, y = np.random.default_rng(1).normal(size=(6, 2)), np.arange(6.0)
    np.savez(tmp_path / "whole.npz", features=x, targets=y, feature_names=np.array(["u", "v"]))
    np.savez(tmp_path / "columns.npz", u=x[:, 0], v=x[:, 1], y=y)
    whole, columns = load(tmp_path / "whole.npz"), load(tmp_path / "columns.npz", target="y")
    assert whole.feature_names == columns.feature_names == ("u", "v")
    np.testing.assert_array_equal(whole.features, columns.features)
    np.testing.assert_array_equal(whole.targets, columns.targets)
    np.savez(tmp_path / "text.npz", features=x, targets=np.array(list("xyxyxy")))
    assert load(tmp_path / "text.npz").classes == ("x", "y")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"features": np.ones(4), "targets": np.ones(4)}, "array 'features': expected shape (rows, columns), got (4,)"),
        ({"features": np.ones((4, 2)), "targets": np.ones(3)}, "expected one number a row in every array"),
        ({"features": np.ones((4, 2)), "targets": np.ones((4, 1))}, "expected one number a row in every array"),
        ({"features": np.ones((4, 2)), "targets": np.ones(4), "feature_names": np.array(["a"])}, "expected 2 names"),
        ({"features": np.ones((4, 2)), "targets": np.array([1, 2, "x", {}], object)}, "cannot be read"),
        ({"features": np.full((4, 2), 1j), "targets": np.arange(4)}, "row 0, column 'feature 0': expected a number"),
        (
            {"features": np.full((4, 2), np.nan), "targets": np.arange(4)},
            "row 0, column 'feature 0': expected a finite",
        ),
        ({}, "expected one number a row in every array"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "bad.npz")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent\.csv: no such file; check the path"):
        load(tmp_path / "absent.csv")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(DataError, match=r"torn\.npz: cannot be read"):
        load(tmp_path / "torn.npz")
    np.save(tmp_path / "one.npy", np.arange(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match=r"one\.npz: cannot be read"):
        load(tmp_path / "one.npz")
    (tmp_path / "latin.csv").write_bytes("gr\xf6sse,target\n1,2\n2,3\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv: expected text in UTF-8"):
        load(tmp_path / "latin.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: no such file"):
        load(tmp_path / "folder.csv")
