import numpy as np
import pytest

from calcdl.study import axis
from calcdl.study.axes import points


def test_numbers_are_data_and_texts_are_code():
    assert not axis("learning_rate", [0.1, 1]).static
    assert axis("activation", ["relu"]).is_code
    assert axis("bias", [True, False]).is_code
    depth = axis("depth", [2, 5], static=True)
    assert depth.static
    assert not depth.is_code


def test_numpy_values_become_plain():
    assert axis("x", np.array([1.5, 2.5])).values == (1.5, 2.5)
    assert all(type(value) is float for value in axis("x", np.array([1.5, 2.5])).values)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("x", [], "at least one value"),
        ("x", [1.0, 2.0, 1.0], "1.0 twice"),
        ("activation", ["relu", "relu"], "'relu' twice"),
        ("x", [1.0, float("nan")], r"'x'\[1\]: expected a finite number"),
        ("x", [float("inf")], r"'x'\[0\]"),
        ("seed", [-1], "0..2\\*\\*32-1"),
        ("seed", [2**32], "0..2\\*\\*32-1"),
        ("seed", [0.5], "0..2\\*\\*32-1"),
        ("seed", [3, 3], "3 twice"),
        ("not a name", [1.0], "Python identifier"),
    ],
)
def test_bad_values_are_refused_by_place(name, values, message):
    with pytest.raises(ValueError, match=message):
        axis(name, values)


def test_an_axis_of_data_takes_numbers_only():
    with pytest.raises(TypeError, match="static=True"):
        axis("x", ["a"], static=False)


def test_the_largest_seed_is_accepted():
    assert axis("seed", [2**32 - 1]).values == (2**32 - 1,)


def test_points_vary_the_last_axis_fastest():
    combinations = points([axis("a", [1, 2]), axis("b", ["x", "y"])])
    assert [tuple(point.values()) for point in combinations] == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert points([]) == ({},)
