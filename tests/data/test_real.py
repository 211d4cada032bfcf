import subprocess
import sys

import numpy as np
import pytest

from calcdl.data import DATASETS, load

SHAPES = {
    "diabetes": (442, 10),
    "diabetes_raw": (442, 10),
    "digits": (1797, 64),
    "breast_cancer": (569, 30),
    "wine": (178, 13),
    "iris": (150, 4),
}


@pytest.mark.parametrize("name", DATASETS)
def test_bundled_sets_are_whole(name):
    data = load(name)
    assert data.name == name
    assert data.features.shape == SHAPES[name]
    assert data.features.dtype == np.float64
    assert len(set(data.feature_names)) == data.features.shape[1]
    assert np.isfinite(data.features).all()
    np.testing.assert_array_equal(data.train, np.arange(len(data.targets)))
    if data.target_kind == "classification":
        assert data.targets.dtype == np.int32
        assert sorted(set(data.targets.tolist())) == list(range(len(data.classes)))
    else:
        assert data.classes == ()
        assert data.targets.dtype == np.float64


def test_units_of_the_bundled_sets():
    assert load("digits").features.max() == 1.0
    np.testing.assert_allclose(np.linalg.norm(load("diabetes").features, axis=0), 1)
    raw = load("diabetes_raw")
    assert raw.features[:, raw.feature_names.index("age")].max() == 79
    np.testing.assert_array_equal(raw.targets, load("diabetes").targets)


def test_unknown_names_give_the_valid_and_the_nearest():
    with pytest.raises(ValueError, match=r"expected one of diabetes, .*\.npz, got 'irs'; did you mean 'iris'\?"):
        load("irs")
    with pytest.raises(ValueError, match=r"got 'data\.parquet'"):
        load("data.parquet")
    with pytest.raises(ValueError, match="kind: expected one of None, 'regression', 'classification', got 'ranking'"):
        load("iris", kind="ranking")
    with pytest.raises(ValueError, match="iris: this data set is a classification of 'species'"):
        load("iris", kind="regression")
    with pytest.raises(ValueError, match="collinear: expected one of 'raise', 'keep', got True"):
        load("iris", collinear=True)


def test_scikit_learn_is_imported_on_demand_only():
    code = "import calcdl.data, sys; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
