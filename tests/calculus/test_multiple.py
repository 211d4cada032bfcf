import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.integrals import line_integral
from calcdl.calculus.multiple import integrate_box, integrate_region


def arc(*x):
    return jnp.sqrt(jnp.maximum(1 - sum(value**2 for value in x), 0))


def one(*x):
    return jnp.ones(())


def normal(x, y):
    return jnp.exp(-(x**2 - x * y + y**2) / 1.5) / (2 * math.pi * math.sqrt(0.75))


LINE = (-math.inf, math.inf)
UNIT = (0.0, 1.0)
# The torus in cylindrical coordinates: z, radius, angle.
REGIONS = {
    "swap": (lambda x, y: jnp.sin(y**2), [UNIT, (lambda x: x, 1.0)]),
    "gauss2": (lambda x, y: jnp.exp(-(x**2) - y**2), [LINE, LINE]),
    "disc_gauss": (lambda x, y: jnp.exp(-(x**2) - y**2), [(-1.0, 1.0), (lambda x: -arc(x), arc)]),
    "tri": (lambda x, y: x**2 * y, [UNIT, (0.0, lambda x: 1 - x)]),
    "simplex4": (
        one,
        [UNIT, (0.0, lambda x: 1 - x), (0.0, lambda x, y: 1 - x - y), (0.0, lambda x, y, z: 1 - x - y - z)],
    ),
    "boxint2": (lambda x, y: jnp.sqrt(x**2 + y**2), [UNIT, UNIT]),
    "cone": (
        lambda z, x, y: z,
        [
            UNIT,
            (lambda z: z - 1, lambda z: 1 - z),
            (lambda z, x: -jnp.sqrt((1 - z) ** 2 - x**2), lambda z, x: jnp.sqrt((1 - z) ** 2 - x**2)),
        ],
    ),
    "torus": (
        lambda z, r, angle: r,
        [
            (-0.5, 0.5),
            (lambda z: 2 - jnp.sqrt(0.25 - z**2), lambda z: 2 + jnp.sqrt(0.25 - z**2)),
            (0.0, 2 * math.pi),
        ],
    ),
    "ball2": (one, [(-1.0, 1.0), (lambda x: -arc(x), arc)]),
    "ball3": (one, [(-1.0, 1.0), (lambda x: -arc(x), arc), (lambda x, y: -arc(x, y), arc)]),
    "cos_sum_2": (lambda x, y: jnp.cos(x + y), [UNIT, UNIT]),
    "genz_oscillatory_2": (lambda x, y: jnp.cos(0.6 * math.pi + x / 2 + y), [UNIT, UNIT]),
    "genz_gaussian_2": (lambda x, y: jnp.exp(-((x - 0.3) ** 2) / 4 - (y - 0.3) ** 2), [UNIT, UNIT]),
    "orthant2": (normal, [(0.0, math.inf), (0.0, math.inf)]),
}
# Products of one-dimensional integrals and volumes of balls.
MORE = {
    "ball4": (one, [(-1.0, 1.0), (lambda x: -arc(x), arc), (lambda *x: -arc(*x), arc), (lambda *x: -arc(*x), arc)],
              math.pi**2 / 2, 1e-10),
    "product peak": (
        lambda *x: math.prod(1 / (0.25 + (value - 0.3) ** 2) for value in x), [UNIT] * 3,
        (2 * (math.atan(1.4) + math.atan(0.6))) ** 3, 1e-12,
    ),
    "corner": (lambda x, y: 1 / jnp.sqrt(x * y), [UNIT, UNIT], 4.0, 1e-6),
    "kink": (lambda x, y: jnp.exp(-2 * abs(x - 0.3) - 2 * abs(y - 0.3)), [UNIT, UNIT],
             ((2 - math.exp(-0.6) - math.exp(-1.4)) / 2) ** 2, 1e-2),
    "gauss3": (lambda x, y, z: jnp.exp(-(x**2) - y**2 - z**2), [LINE] * 3, math.pi**1.5, 1e-8),
    "half line": (lambda x, y: jnp.exp(-x - y) / jnp.sqrt(y), [(0.0, math.inf)] * 2, math.sqrt(math.pi), 1e-8),
}  # fmt: skip


def test_every_truth_is_here(truths):
    assert {row["id"] for row in truths("integrals.json")["multiple"]} == {*REGIONS, "green_area"}


@pytest.mark.parametrize("name", list(REGIONS))
def test_truths(name, truths):
    (row,) = [row for row in truths("integrals.json")["multiple"] if row["id"] == name]
    result = jax.jit(lambda: integrate_region(*REGIONS[name]))()
    expected = float(row["value"])
    assert result.value == pytest.approx(expected, rel=1e-12)
    assert abs(float(result.value) - expected) <= result.error < 1e-8
    assert result.verdict == "converges"


@pytest.mark.parametrize("name", list(MORE))
def test_closed_forms(name):
    f, limits, expected, tolerance = MORE[name]
    result = jax.jit(lambda: integrate_region(f, limits))()
    assert result.value == pytest.approx(expected, rel=tolerance)
    assert abs(float(result.value) - expected) <= result.error


def test_area_by_green(truths):
    (row,) = [row for row in truths("integrals.json")["multiple"] if row["id"] == "green_area"]

    def astroid(t):
        return jnp.stack([jnp.cos(t) ** 3, jnp.sin(t) ** 3])

    cusps = [math.pi / 2, math.pi, 3 * math.pi / 2]
    area = line_integral(lambda r: jnp.stack([-r[1], r[0]]) / 2, astroid, 0.0, 2 * math.pi, breakpoints=cusps)
    assert area.value == pytest.approx(float(row["value"]), rel=1e-12)


def test_boxes_transform():
    def volume(side, rate):
        return integrate_box(lambda x: jnp.exp(rate * jnp.sum(x)), jnp.zeros(2), jnp.stack([side, 2 * side]))

    def expected(side, rate):
        return jnp.expm1(rate * side) * jnp.expm1(2 * rate * side) / rate**2

    sides = jnp.array([0.5, 1.0])
    np.testing.assert_allclose(jax.jit(jax.vmap(volume, (0, None)))(sides, 0.7).value, expected(sides, 0.7), rtol=1e-13)
    by = jax.jit(jax.grad(lambda side, rate: volume(side, rate).value, (0, 1)))(0.8, 0.7)
    np.testing.assert_allclose(by, jax.grad(expected, (0, 1))(0.8, 0.7), rtol=1e-12)


def test_float32():
    zeros, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
    result = jax.jit(lambda: integrate_box(lambda x: jnp.cos(jnp.sum(x)), zeros, ones))()
    assert result.value.dtype == result.error.dtype == jnp.float32
    assert abs(float(result.value) - 0.4967514482834218) <= result.error < 1e-4


def test_bad_boxes_are_named():
    with pytest.raises(ValueError, match="limits must be of 1 to 4 variables, got 5"):
        integrate_box(jnp.sum, np.zeros(5), np.ones(5))
    with pytest.raises(ValueError, match="upper must have as many entries as lower, 2; got 3"):
        integrate_box(jnp.sum, np.zeros(2), np.ones(3))
    with pytest.raises(ValueError, match="nodes must be at least 8, got 2"):
        integrate_box(jnp.sum, np.zeros(2), np.ones(2), nodes=2)
