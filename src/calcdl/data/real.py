"""Real data by name: the sets that come with scikit-learn (nothing is downloaded), or a user's file by path."""

import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from calcdl.data.dataset import Dataset, TargetKind
from calcdl.data.files import READERS, Choice, read_file


class Bundled(NamedTuple):
    """A data set that comes with scikit-learn.

    Attributes:
        read: builds the record; imports scikit-learn when called.
        description: rows, columns and target, in a sentence.
    """

    read: Callable[[], Dataset]
    description: str


def load(
    name: str | os.PathLike[str],
    target: str | None = None,
    kind: TargetKind | None = None,
    *,
    constant: Choice = "raise",
    collinear: Choice = "raise",
) -> Dataset:
    """Load a bundled data set by name, or a CSV or NPZ file by path; all rows are train rows until `split`.

    Args:
        name: a key of `DATASETS`, or a path that ends in .csv, .tsv, .txt or .npz (see
            `calcdl.data.read_file`).
        target: the column to predict in a file, by default the one called "target"; bundled sets have theirs.
        kind: "regression" or "classification"; by default what the bundled set is, and for a file
            classification where the target is text.
        constant: whether constant columns of a file are refused ("raise") or kept ("keep").
        collinear: whether columns of a file that are combinations of others are refused or kept.

    Returns:
        The data set, features in float64.

    Raises:
        ValueError: an unknown name or choice, with the valid ones and the nearest.
        DataError: the file is missing or its contents cannot be used; the message names the place and the
            remedy.

    Example:
        >>> load("iris").features.shape, load("iris").classes
        ((150, 4), ('setosa', 'versicolor', 'virginica'))
    """
    for argument, value, valid in (
        ("kind", kind, (None, "regression", "classification")),
        ("constant", constant, ("raise", "keep")),
        ("collinear", collinear, ("raise", "keep")),
    ):
        if value not in valid:
            raise ValueError(f"{argument}: expected one of {', '.join(map(repr, valid))}, got {value!r}")
    if str(name) in DATASETS:
        dataset = DATASETS[str(name)].read()
        if kind not in (None, dataset.target_kind) or target not in (None, dataset.target_name):
            own = f"a {dataset.target_kind} of {dataset.target_name!r}"
            raise ValueError(f"{name}: this data set is {own}, got {kind=}, {target=}; leave both out")
        return dataset
    path = Path(name).expanduser()
    if path.suffix.lower() not in READERS:
        near = get_close_matches(str(name), DATASETS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        valid_names = f"{', '.join(DATASETS)} or a file that ends in {', '.join(READERS)}"
        raise ValueError(f"data set: expected one of {valid_names}, got {str(name)!r}{meant}")
    return read_file(path, target, kind, constant=constant, collinear=collinear)


def _from_scikit_learn(
    bunch: Any, name: str, kind: TargetKind, target_name: str, source: str, unit: float = 1.0
) -> Dataset:
    classification = kind == "classification"
    return Dataset(
        name=name,
        features=np.asarray(bunch.data, np.float64) / unit,
        targets=np.asarray(bunch.target, np.int32 if classification else np.float64),
        feature_names=tuple(str(column) for column in bunch.feature_names),
        target_name=target_name,
        target_kind=kind,
        classes=tuple(str(label) for label in bunch.target_names) if classification else (),
        train=np.arange(len(bunch.target)),
        validation=np.arange(0),
        test=np.arange(0),
        source=f"{source}; shipped with scikit-learn",
    )


def _diabetes(scaled: bool) -> Dataset:
    from sklearn.datasets import load_diabetes

    return _from_scikit_learn(
        load_diabetes(scaled=scaled),
        "diabetes" if scaled else "diabetes_raw",
        "regression",
        "disease progression after one year",
        "Efron, Hastie, Johnstone and Tibshirani, Least angle regression, Annals of Statistics 32 (2004) 407",
    )


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    source = "8x8 images of handwritten digits, pixels divided by 16; Alpaydin and Kaynak, UCI (1998)"
    return _from_scikit_learn(load_digits(), "digits", "classification", "digit", source, unit=16.0)


def _breast_cancer() -> Dataset:
    from sklearn.datasets import load_breast_cancer

    source = "Wolberg, Mangasarian, Street and Street, Breast Cancer Wisconsin (Diagnostic), UCI (1995)"
    return _from_scikit_learn(load_breast_cancer(), "breast_cancer", "classification", "diagnosis", source)


def _wine() -> Dataset:
    from sklearn.datasets import load_wine

    source = "chemical analysis of wines from three growers; Aeberhard and Forina, UCI (1991)"
    return _from_scikit_learn(load_wine(), "wine", "classification", "grower", source)


def _iris() -> Dataset:
    from sklearn.datasets import load_iris

    source = "Fisher, The use of multiple measurements in taxonomic problems, Annals of Eugenics 7 (1936) 179"
    return _from_scikit_learn(load_iris(), "iris", "classification", "species", source)


DATASETS: dict[str, Bundled] = {
    "diabetes": Bundled(
        lambda: _diabetes(scaled=True),
        "442 rows, 10 columns centred and scaled to unit norm over all rows; regression",
    ),
    "diabetes_raw": Bundled(
        lambda: _diabetes(scaled=False), "the same 442 rows in their own, very unequal units; regression"
    ),
    "digits": Bundled(_digits, "1797 rows, 64 pixels in [0, 1], some of them blank throughout; 10 classes"),
    "breast_cancer": Bundled(_breast_cancer, "569 rows, 30 columns in their own units; 2 classes"),
    "wine": Bundled(_wine, "178 rows, 13 columns in their own units; 3 classes"),
    "iris": Bundled(_iris, "150 rows, 4 columns in cm; 3 classes"),
}
