import jax
import jax.numpy as jnp
import pytest

from calcdl.calculus import limits
from calcdl.calculus.smoothness import (
    CORNER,
    DIFFERENTIABLE,
    ONE_SIDED,
    OSCILLATES,
    STATUSES,
    STEEP,
    differentiability,
)


def squeezed(power):
    return lambda x: jnp.where(x == 0, 0.0, x**power * jnp.sin(1 / jnp.where(x == 0, 1.0, x)))


def elu(x):
    return jnp.where(x > 0, x, jnp.expm1(x))


CASES = {
    "abs": (jnp.abs, 0.0, 1, CORNER),
    "relu": (lambda x: jnp.maximum(x, 0), 0.0, 1, CORNER),
    "xsin1x": (squeezed(1), 0.0, 1, OSCILLATES),
    "x2sin1x": (squeezed(2), 0.0, 1, DIFFERENTIABLE),
    "x_abs_x": (lambda x: x * jnp.abs(x), 0.0, 1, DIFFERENTIABLE),
    "x_abs_x, second": (lambda x: x * jnp.abs(x), 0.0, 2, CORNER),
    "elu1": (elu, 0.0, 1, DIFFERENTIABLE),
    "elu1, second": (elu, 0.0, 2, CORNER),
    "abs elsewhere": (lambda x: jnp.abs(x - 123.456), 123.456, 1, CORNER),
    "cbrt": (jnp.cbrt, 0.0, 1, STEEP),
    "step": (lambda x: jnp.where(x > 0, 1.0, 0.0), 0.0, 1, STEEP),
    "sqrt": (jnp.sqrt, 0.0, 1, STEEP),
    "root of the cube": (lambda x: x * jnp.sqrt(x), 0.0, 1, ONE_SIDED),
    "sin": (jnp.sin, 0.3, 1, DIFFERENTIABLE),
}


IN_FLOAT32 = ("relu", "xsin1x", "elu1, second", "cbrt", "sin")


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, jnp.float64) for name in CASES] + [(name, jnp.float32) for name in IN_FLOAT32]
)
def test_verdicts(name, dtype):
    f, x, order, expected = CASES[name]
    assert STATUSES[int(differentiability(f, dtype(x), order).status)] == STATUSES[expected]


def test_truths(truths):
    for record in truths("derivatives.json")["not_differentiable"]:
        f, x, _, _ = CASES[record["id"]]
        found = differentiability(f, float(x))
        left, right = found.quotient.approaches.value
        if record["exists"]:
            assert abs(float(found.value) - record["value"]) <= float(found.error) < 1e-9
        for side, key in ((left, "left"), (right, "right")):
            if isinstance(record.get(key), int):
                assert abs(float(side) - record[key]) < 1e-9
        if "oscillates" in str(record.get("left")):
            assert all(found.quotient.approaches.status == limits.OSCILLATES)
    kink = differentiability(elu, 0.0, order=2).quotient.approaches.value
    assert kink.tolist() == pytest.approx([1, 0], abs=1e-9)


def test_it_batches():
    found = jax.jit(jax.vmap(lambda a: differentiability(lambda x: jnp.abs(x - a), 1.0).status))(jnp.array([0.0, 1.0]))
    assert found.tolist() == [DIFFERENTIABLE, CORNER]


@pytest.mark.parametrize("order", [0, 1.5])
def test_a_bad_order_is_refused(order):
    with pytest.raises(ValueError, match="order"):
        differentiability(jnp.sin, 0.0, order)
