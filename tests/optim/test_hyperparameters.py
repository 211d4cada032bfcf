import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim.hyperparameters import check_names, check_value, choose


@pytest.mark.parametrize("value", [None, True, False, "0.1", 1j, np.bool_(True), [None], object(), jnp.array(True)])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match=r"rate: expected a finite number in \(0, inf\), got"):
        check_value("rate", value, "(0, inf)")


@pytest.mark.parametrize(
    "value",
    [
        0,
        0.0,
        -1e-3,
        float("inf"),
        float("nan"),
        np.float32(-1),
        jnp.float32(0),
        np.array([0.1, np.nan]),
        (0.1, 0),
        np.array([]),
    ],
)
def test_numbers_outside_the_interval_are_refused(value):
    with pytest.raises(ValueError, match=r"rate: expected a finite number in \(0, inf\), got"):
        check_value("rate", value, "(0, inf)")


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        ("[0, 1)", (0, 0.5, np.float32(0.25)), (1, 1.0, -1e-9)),
        ("(0, 1]", (1, 1e-9), (0, 1.0001)),
        ("(-inf, inf)", (-5, 0, 1e300), (float("inf"), -float("inf"))),
        ("[1, inf)", (1, 7), (0.99,)),
    ],
)
def test_the_ends_of_an_interval_belong_to_it_or_not(bounds, inside, outside):
    for value in inside:
        check_value("x", value, bounds)
        check_value("x", jnp.asarray(value, jnp.float64), bounds)
    for value in outside:
        with pytest.raises(ValueError, match="x: expected a finite number"):
            check_value("x", value, bounds)


def test_traced_values_pass():
    def through(value):
        check_value("x", value, "(0, 1)")
        return value

    assert jax.jit(through)(5.0) == 5.0


def test_names_are_checked_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"plan: no hyperparameter 'stepz'; expected one of steps, final; did you mean 'steps'\?"
    ):
        check_names("plan", {"stepz": 1}, {"steps": 1, "final": 2})
    with pytest.raises(ValueError, match="plan: no hyperparameter 'x'; it has none"):
        check_names("plan", {"x": 1}, {})
    with pytest.raises(ValueError, match=r"what: expected one of adam, sgd, got None"):
        choose("what", None, {"adam": 1, "sgd": 2})
    assert choose("what", "sgd", {"adam": 1, "sgd": 2}) == 2
