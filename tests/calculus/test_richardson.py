import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.derivatives import derivative
from calcdl.calculus.expressions import parse
from calcdl.calculus.richardson import finite_difference, slopes

# Smooth, saturated, resonant with round steps, buried in a large constant, and with most digits lost on the way.
FUNCTIONS = (
    lambda x: 1 / (1 + 25 * x**2),
    jnp.tanh,
    lambda x: jnp.sin(32 * jnp.pi * x),
    lambda x: 1e6 + jnp.sin(x),
    lambda x: (1 + x * 1e-3) ** 2 - 1,
    lambda x: jnp.exp(-(x**2)),
    lambda x: jnp.log(x**2 + 1e-3),
)
POINTS = (-3.1, -0.53, 0.0, 1e-7, 0.25, 0.9, 1.0, 2.6, 18.6, -71.3)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_scalar_truths_by_differences(truths, dtype):
    key = {jnp.float64: "rtol_fd_float64", jnp.float32: "rtol_fd_float32"}[dtype]
    records = [record for record in truths("derivatives.json")["scalar"] if record[key] is not None]
    for order in {record["order"] for record in records}:
        group = [record for record in records if record["order"] == order]
        functions = [parse(record["f"]) for record in group]
        at = jnp.array([float(parse(str(record["x"]), ())()) for record in group], dtype)

        def estimate(number, x, functions=functions, order=order):
            return finite_difference(lambda x: jnp.stack([f(x) for f in functions])[number], x, order=order)

        found = jax.jit(jax.vmap(estimate))(jnp.arange(len(group)), at)
        for record, value, error in zip(group, found.value, found.error, strict=True):
            off = abs(float(value) - float(record["value"]))
            assert off <= record[key] * abs(float(record["value"])), record["id"]
            assert off <= float(error), record["id"]


@pytest.mark.parametrize(("dtype", "order"), [(jnp.float64, 1), (jnp.float64, 2), (jnp.float32, 1)])
def test_errors_are_not_understated(dtype, order):
    xs = jnp.asarray(POINTS, dtype)

    def chosen(number):
        return lambda x: jnp.stack([f(x) for f in FUNCTIONS])[number]

    exact = jax.jit(jax.vmap(lambda number, x: derivative(chosen(number), order)(x)))
    numbers, points = (part.ravel() for part in jnp.meshgrid(jnp.arange(len(FUNCTIONS)), xs, indexing="ij"))
    found = jax.jit(jax.vmap(lambda number, x: finite_difference(chosen(number), x, order=order)))(numbers, points)
    off = np.abs(np.asarray(found.value, np.float64) - np.asarray(exact(numbers, points.astype(jnp.float64))))
    allowed = np.asarray(found.error, np.float64)
    worst = np.argmax(off / allowed)
    assert np.all(off <= 1.5 * allowed), (int(numbers[worst]), float(points[worst]), off[worst] / allowed[worst])
    assert np.mean(off > allowed) <= 0.05


@pytest.mark.parametrize(("side", "order"), [("left", 1), ("right", 2)])
def test_one_side_stays_on_its_side(side, order):
    sign = {"left": -1.0, "right": 1.0}[side]
    f = lambda x: jnp.where(sign * x >= 0, jnp.exp(x), jnp.nan)  # noqa: E731
    found = jax.jit(lambda x: finite_difference(f, x, order=order, side=side))(0.0)
    assert abs(float(found.value) - 1) <= float(found.error) < 1e-5


def test_slopes_of_a_kink_differ_and_those_of_a_smooth_function_do_not():
    found = slopes(lambda x: jnp.maximum(x - 1, 0) + x**2, 1.0)
    assert abs(float(found.left.value) - 2) <= float(found.left.error) < 1e-8
    assert abs(float(found.right.value) - 3) <= float(found.right.error) < 1e-8
    smooth = slopes(jnp.sin, 0.4)
    for one in smooth:
        assert abs(float(one.value) - np.cos(0.4)) <= float(one.error) < 1e-8


def test_nothing_finite_gives_nan_and_an_infinite_error():
    found = finite_difference(lambda x: x * jnp.nan, 1.0)
    assert np.isnan(found.value)
    assert np.isinf(found.error)


@pytest.mark.parametrize(
    ("keywords", "said"), [({"order": 0}, "order"), ({"order": 7}, "order"), ({"side": "up"}, "side")]
)
def test_bad_arguments_are_refused(keywords, said):
    with pytest.raises(ValueError, match=said):
        finite_difference(jnp.sin, 1.0, **keywords)
