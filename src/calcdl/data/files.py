"""A user's own CSV or NPZ file, checked before anything is computed.

A file is refused, in one line that names the place and the remedy, where a study of it would go wrong in
silence: missing or infinite numbers, text among numbers, columns that are constant or combinations of others,
labels that are not 0..classes-1 (an integer cross-entropy accepts a label of -1 without a word).
"""

import csv
import io
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calcdl.data.dataset import Dataset, TargetKind
from calcdl.types import DataError

Choice = Literal["raise", "keep"]
Columns = Mapping[str, Sequence[Any]]
Place = Callable[[int], str]


def read_file(
    path: Path,
    target: str | None = None,
    kind: TargetKind | None = None,
    *,
    constant: Choice = "raise",
    collinear: Choice = "raise",
) -> Dataset:
    r"""Read a CSV or NPZ file into a data set whose rows are all train rows.

    A CSV file has a header row, then one row of numbers an example; commas, semicolons, tabs or bars separate
    the cells. An NPZ file has arrays `features` (rows, columns), `targets` (rows) and, if wanted,
    `feature_names`; or else one array of length rows a column.

    Args:
        path: a file that ends in .csv, .tsv, .txt or .npz.
        target: the column (or array) to predict; by default the one called "target" or "targets".
        kind: "regression" or "classification"; by default classification where the target is text. Labels
            given as numbers must be 0..classes-1; labels given as text are numbered in sorted order.
        constant: whether constant columns are refused ("raise") or kept ("keep").
        collinear: whether columns that are exact combinations of others are refused or kept.

    Returns:
        The data set, features in float64.

    Raises:
        DataError: the file is missing or its contents cannot be used.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "children.csv"
        >>> _ = path.write_text("age;height\n1;75\n2;86\n3;96\n")
        >>> read_file(path, target="height").features.tolist()
        [[1.0], [2.0], [3.0]]
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path (it is taken from {Path.cwd()})")
    try:
        columns, place = READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected text in UTF-8, got {error.reason}; save it as UTF-8") from error
    except (OSError, csv.Error, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a readable, undamaged file") from error
    dataset = _assemble(path, columns, place, target, kind)
    _check_columns(path, dataset, constant, collinear)
    return dataset


def _read_csv(path: Path) -> tuple[Columns, Place]:
    text = path.read_text(encoding="utf-8-sig")
    delimiter = max(",;\t|", key=text.lstrip().partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows, lines = [], []
    for cells in reader:
        if any(cell.strip() for cell in cells):
            rows.append([cell.strip() for cell in cells])
            lines.append(reader.line_num)
    if not rows:
        raise DataError(f"{path}: the file is empty; expected a header row and at least two rows of numbers")
    header = rows.pop(0)
    if all(_is_number(cell) for cell in header):
        raise DataError(f"{path}: line {lines[0]} holds numbers only; put a row with the columns' names above it")
    doubled = [cell for cell in header if header.count(cell) > 1 or not cell]
    if doubled:
        fault = f"column name {doubled[0]!r} stands twice" if doubled[0] else "a column has no name"
        raise DataError(f"{path}: line {lines[0]}: {fault}; give every column a name of its own")
    for line, row in zip(lines[1:], rows, strict=True):
        if len(row) != len(header):
            wanted = f"expected {len(header)} cells as in the header, got {len(row)}"
            raise DataError(f"{path}: line {line}: {wanted}; complete or drop the row")
    columns = {name: [row[index] for row in rows] for index, name in enumerate(header)}
    return columns, lambda row: f"line {lines[row + 1]}"


def _read_npz(path: Path) -> tuple[Columns, Place]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: cannot be read ({reason}); store plain arrays by numpy.savez") from error
    names = arrays.pop("feature_names", None)
    features = arrays.pop("features", None)
    if features is not None:
        if features.ndim != 2:
            raise DataError(f"{path}: array 'features': expected shape (rows, columns), got {features.shape}")
        count = features.shape[1]
        titles = [f"feature {index}" for index in range(count)] if names is None else [*map(str, names.ravel())]
        if len(titles) != count or len({*titles, *arrays}) != count + len(arrays):
            raise DataError(f"{path}: array 'feature_names': expected {count} names of their own, got {titles}")
        arrays = {**dict(zip(titles, features.T, strict=True)), **arrays}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 1:
        wanted = "expected one number a row in every array, all of one length"
        raise DataError(f"{path}: {wanted}, got shapes {shapes}; reshape or drop the odd one")
    return arrays, lambda row: f"row {row}"


def _assemble(path: Path, columns: Columns, place: Place, target: str | None, kind: TargetKind | None) -> Dataset:
    wanted = _target_name(path, columns, target)
    names = tuple(name for name in columns if name != wanted)
    cells = columns[wanted]
    if len(cells) < 2 or not names:
        found = f"{len(cells)} row(s) and {len(names)} column(s) beside the target"
        raise DataError(f"{path}: expected at least two rows and one column, got {found}; give more data")
    features = np.stack([_numbers(path, name, columns[name], place) for name in names], axis=1)
    numeric = any(_is_number(cell) for cell in cells)
    classes: tuple[str, ...] = ()
    if kind == "regression" or (kind is None and numeric):
        targets = _numbers(path, wanted, cells, place)
        if np.ptp(targets) == 0:
            raise DataError(f"{path}: column {wanted!r} is {targets[0]:g} in every row; choose another target")
    elif numeric:
        targets = _labels(path, wanted, _numbers(path, wanted, cells, place), place)
        classes = tuple(str(label) for label in range(targets.max() + 1))
    else:
        classes, targets = _text_labels(path, wanted, [str(cell) for cell in cells], place)
    return Dataset(
        name=path.stem,
        features=features,
        targets=targets,
        feature_names=names,
        target_name=wanted,
        target_kind="classification" if classes else "regression",
        classes=classes,
        train=np.arange(len(cells)),
        validation=np.arange(0),
        test=np.arange(0),
        source=f"the file {path.name}, {len(cells)} rows",
    )


def _target_name(path: Path, columns: Columns, target: str | None) -> str:
    usual = [name for name in ("target", "targets") if name in columns]
    if target is None and usual:
        return usual[0]
    if target is not None and target in columns:
        return target
    listed = ", ".join(map(repr, columns))
    if target is None:
        raise DataError(f"{path}: no column is called 'target'; name the one to predict: {listed}")
    near = get_close_matches(target, columns, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"{path}: target: expected one of {listed}, got {target!r}{meant}")


def _numbers(path: Path, name: str, cells: Sequence[Any], place: Place) -> np.ndarray:
    for row, cell in enumerate(cells):
        if not _is_number(cell):
            got = repr(str(cell)) if str(cell) else "an empty cell"
            raise DataError(
                f"{path}: {place(row)}, column {name!r}: expected a number, got {got}; "
                f"correct it, or drop the row or the column"
            )
    values = np.asarray([float(cell) for cell in cells], np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise DataError(
            f"{path}: {place(bad[0])}, column {name!r}: expected a finite number, got {values[bad[0]]}; "
            f"fill in or drop the {bad.size} row(s) like it"
        )
    return values


def _text_labels(path: Path, name: str, cells: Sequence[str], place: Place) -> tuple[tuple[str, ...], np.ndarray]:
    if "" in cells:
        where = f"{place(cells.index(''))}, column {name!r}"
        raise DataError(f"{path}: {where}: expected a class, got an empty cell; fill in or drop the row")
    names, labels = np.unique(np.asarray(cells), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"{path}: column {name!r}: every label is {cells[0]!r}; expected at least two classes")
    return tuple(names.tolist()), labels.astype(np.int32)


def _labels(path: Path, name: str, values: np.ndarray, place: Place) -> np.ndarray:
    remedy = "number the classes 0..classes-1, or write them as text"
    bad = np.flatnonzero((values < 0) | (values != np.floor(values)))
    if bad.size:
        where = f"{place(bad[0])}, column {name!r}"
        raise DataError(f"{path}: {where}: expected a label 0, 1, 2, ..., got {values[bad[0]]:g}; {remedy}")
    present = np.unique(values)
    missing = np.flatnonzero(present != np.arange(len(present)))
    if missing.size:
        found = f"label {present[-1]:g} is there but label {missing[0]} is not"
        raise DataError(f"{path}: column {name!r}: {found}; {remedy}")
    if len(present) < 2:
        raise DataError(f"{path}: column {name!r}: every label is 0; expected at least two classes")
    return values.astype(np.int32)


def _check_columns(path: Path, dataset: Dataset, constant: Choice, collinear: Choice) -> None:
    features, names = dataset.features, dataset.feature_names
    epsilon = np.finfo(np.float64).eps
    largest = np.abs(features).max(axis=0)
    scaled = features / np.where(largest > 0, largest, 1.0)
    still = np.ptp(scaled, axis=0) <= 4 * epsilon
    if constant == "raise" and still.any():
        column = int(np.flatnonzero(still)[0])
        found = f"column {names[column]!r} is {features[0, column]:g} in every row"
        raise DataError(f"{path}: {found}; drop it, there is nothing to learn from it")
    if collinear == "keep" or still.all():
        return
    moving = np.flatnonzero(~still)
    if len(moving) >= len(features):
        found = f"{len(moving)} columns but only {len(features)} rows, so some columns are combinations of others"
        raise DataError(f"{path}: {found}; give more rows or fewer columns")
    centred = scaled[:, moving] - scaled[:, moving].mean(axis=0)
    norms = np.linalg.norm(centred, axis=0)
    corner = np.linalg.qr(centred / norms).R
    # The file's numbers are rounded, which weighs more the less of a column is left after centring.
    rounding = epsilon * max(centred.shape) * float((np.sqrt(len(features)) / norms).max())
    dependent = np.flatnonzero(np.abs(np.diag(corner)) <= 8 * rounding)
    if dependent.size:
        column = int(dependent[0])
        weights = np.linalg.lstsq(corner[:column, :column], corner[:column, column], rcond=None)[0]
        others = [names[moving[index]] for index in np.flatnonzero(np.abs(weights) > 1e-6)]
        listed = ", ".join(map(repr, others[:4])) + (" and others" if len(others) > 4 else "")
        found = f"column {names[moving[column]]!r} is an exact linear combination of {listed}"
        raise DataError(f"{path}: {found}; drop one of them")


def _is_number(cell: Any) -> bool:
    if not isinstance(cell, str):
        return isinstance(cell, float | int | np.floating | np.integer | np.bool_)
    try:
        float(cell)
    except ValueError:
        return False
    # Python reads 1_000 as a number; whoever wrote it in a table of numbers meant a name.
    return "_" not in cell


READERS: dict[str, Callable[[Path], tuple[Columns, Place]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_csv,
    ".npz": _read_npz,
}
