import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.differences import SCHEMES, best_step, complex_step, difference_quotient, error_curve
from calcdl.calculus.expressions import parse


@pytest.mark.parametrize("name", SCHEMES)
def test_order_and_constant_of_the_error(name):
    scheme = SCHEMES[name]
    steps = jnp.array([2.0**-3, 2.0**-4])
    curve = error_curve(jnp.exp, 0.5, steps, scheme=name)
    order = float(jnp.log2(curve.error[0] / curve.error[1]))
    assert order == pytest.approx(scheme.order, rel=0.05)
    np.testing.assert_allclose(curve.error[1], curve.truncation[1], rtol=0.05)
    assert sum(scheme.weights) == pytest.approx(0)
    assert sum(w * o for w, o in zip(scheme.weights, scheme.offsets, strict=True)) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_best_steps_of_the_truths(truths, dtype):
    text = truths("extras.json")["orders"]["fd"]
    word = {jnp.float64: "float64", jnp.float32: "float32"}[dtype]
    said = re.search(word + r": ([^;.]*?(?:\.[^;.]*)*)[;.]", text).group(1)
    numbers = [float(part) for part in re.findall(r"\d\.?\d*e-?\d+", said)]
    assert len(numbers) == 3
    # The truths give powers of epsilon; the minimum of the two-term model has a factor near one beside it.
    for name, expected in zip(("forward", "central", "five_point"), numbers, strict=True):
        assert 0.9 < float(best_step(name, dtype)) / expected < 1.5


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_the_bottom_of_the_u_is_near_the_predicted_step(name, dtype):
    xs = jnp.linspace(0.5, 1.5, 101).astype(dtype)
    order = SCHEMES[name].order
    steps = jnp.geomspace(1e-10, 1.0, 121)

    def errors(x):
        return error_curve(jnp.exp, x, steps, scheme=name).error

    typical = jnp.sqrt(jnp.mean(jax.jit(jax.vmap(errors))(xs) ** 2, axis=0))
    predicted = float(best_step(name, jnp.dtype(dtype)))  # of exp value and curvature are equal
    measured = float(steps[jnp.nanargmin(typical)])
    assert 1 / 3 < measured / predicted < 3, order


def test_a_step_of_none_is_chosen_by_curvature():
    steep = float(difference_quotient(lambda x: jnp.sin(1000 * x), 1.0))
    assert steep == pytest.approx(1000 * np.cos(1000), rel=1e-6)
    assert float(difference_quotient(lambda x: 3 * x + 1, 2.0)) == pytest.approx(3, rel=1e-9)


def test_the_step_that_is_divided_by_is_the_step_that_is_taken():
    # 1 + 0.0035 is 1 or 1.0078125 in bfloat16: divided by 0.0035 the slope of x would be 0 or 2.2.
    x = jnp.bfloat16(1)
    for step in (0.0078, 0.0101, 0.0175):
        assert float(difference_quotient(lambda x: x, x, step, scheme="forward")) == 1.0


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_complex_step_truths(truths, dtype):
    records = {record["id"]: record for record in truths("derivatives.json")["scalar"]}
    tolerance = {jnp.float64: 1e-13, jnp.float32: 2e-6}[dtype]
    for name in ("exp_n1", "sin_n1", "squire_trapp_pi4", "log_near0b", "sqrt_near0"):
        record = records[name]
        at = dtype(float(parse(str(record["x"]), ())()))
        got = complex_step(parse(record["f"]), at)
        assert got.dtype == dtype
        assert abs(float(got) / float(record["value"]) - 1) <= tolerance, name


def test_what_drops_the_imaginary_part_is_refused():
    with pytest.raises(TypeError, match="complex"):
        complex_step(jnp.abs, 1.0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: difference_quotient(jnp.sin, 1.0, 0.1, scheme="upwind"), "forward, backward, central, five_point"),
        (lambda: difference_quotient(jnp.sin, 1.0, 0.0), "positive"),
        (lambda: best_step("upwind", jnp.float32), "scheme"),
        (lambda: error_curve(jnp.sin, 1.0, jnp.ones(2), scheme="upwind"), "scheme"),
    ],
)
def test_bad_arguments_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()
