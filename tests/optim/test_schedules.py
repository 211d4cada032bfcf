import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim import SCHEDULES, schedule

OPTIONS = {
    "constant": {},
    "warmup": {"warmup_steps": 5},
    "linear": {"steps": 20, "final": 0.1},
    "cosine": {"steps": 20, "final": 0.1},
    "warmup_cosine": {"steps": 20, "warmup_steps": 4, "final": 0.05},
    "exponential": {"steps": 10, "factor": 0.5},
    "step": {"every": 6, "factor": 0.1},
    "piecewise": {"boundaries": (3, 9), "factors": (0.5, 0.2)},
    "inverse_sqrt": {"steps": 4},
}

EXPECTED = {
    "constant": {0: 1, 100: 1},
    "warmup": {0: 0.2, 1: 0.4, 4: 1, 5: 1, 100: 1},
    "linear": {0: 1, 10: 0.55, 20: 0.1, 50: 0.1},
    "cosine": {0: 1, 5: 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 10: 0.55, 20: 0.1, 50: 0.1},
    "warmup_cosine": {0: 0.25, 3: 1, 4: 1, 12: 0.525, 20: 0.05, 99: 0.05},
    "exponential": {0: 1, 10: 0.5, 20: 0.25, 5: 0.5**0.5},
    "step": {0: 1, 5: 1, 6: 0.1, 11: 0.1, 12: 0.01},
    "piecewise": {0: 1, 2: 1, 3: 0.5, 8: 0.5, 9: 0.1, 50: 0.1},
    "inverse_sqrt": {0: 1, 4: 1, 16: 0.5, 64: 0.25},
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_multipliers_are_as_defined_and_keep_the_dtype(name, dtype):
    multiplier = schedule(name, **OPTIONS[name])
    steps = jnp.asarray(list(EXPECTED[name]), dtype)
    values = jax.jit(jax.vmap(multiplier))(steps)
    assert values.dtype == dtype
    np.testing.assert_allclose(values, list(EXPECTED[name].values()), rtol=1e-6 if dtype == jnp.float32 else 1e-14)
    assert float(multiplier(steps[0])) == pytest.approx(float(values[0]), rel=1e-6)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if OPTIONS[name]])
def test_options_may_be_traced(name):
    options = {option: jnp.asarray(value, jnp.float32) for option, value in OPTIONS[name].items()}
    traced = jax.jit(lambda options: schedule(name, **options)(jnp.float32(7)))(options)
    assert float(traced) == pytest.approx(float(schedule(name, **OPTIONS[name])(jnp.float32(7))), rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_options_are_checked(name):
    with pytest.raises(ValueError, match=f"schedule {name}: no hyperparameter 'period'"):
        schedule(name, **OPTIONS[name], period=3)
    for option in OPTIONS[name]:
        for bad in (0 if option != "final" else 2, -1, float("nan"), float("inf")):
            value = (bad, bad) if name == "piecewise" else bad
            with pytest.raises(ValueError, match=f"schedule {name}: {option}: expected a finite number"):
                schedule(name, **(OPTIONS[name] | {option: value}))
        if option != "final":
            with pytest.raises(ValueError, match=f"schedule {name}: {option}: expected a number in .*, got none"):
                schedule(name, **{other: value for other, value in OPTIONS[name].items() if other != option})


def test_unknown_schedules_and_unequal_pieces_are_refused():
    with pytest.raises(
        ValueError, match=r"schedule: expected one of constant, .* got 'cosin'; did you mean 'cosine'\?"
    ):
        schedule("cosin", steps=10)
    with pytest.raises(ValueError, match="expected as many factors as boundaries"):
        schedule("piecewise", boundaries=(1, 2), factors=(0.5,))
