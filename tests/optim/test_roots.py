import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim.roots import CONVERGED, JUMP, LEVEL, METHODS, NO_SIGN_CHANGE, NON_FINITE, STEP_LIMIT, find_root

ORDERS = {"newton": 2.0, "secant": (1 + math.sqrt(5)) / 2, "bisection": 1.0}
STARTS = {"newton": 3.0, "secant": (3.0, 2.8), "bisection": (1.0, 3.0)}


def cubic(x):
    return x**3 - 2 * x - 5


@pytest.mark.parametrize("method", METHODS)
def test_a_simple_root_is_found_with_the_order_of_the_method(method):
    found = jax.jit(lambda start: find_root(cubic, start, method))(STARTS[method])
    exact = max(np.roots([1.0, 0.0, -2.0, -5.0]), key=lambda root: root.real).real
    assert int(found.status) == CONVERGED
    np.testing.assert_allclose(found.root, exact, rtol=1e-14)
    assert abs(float(found.order) - ORDERS[method]) < 0.15
    assert found.iterates[-1] == found.root
    if method == "bisection":
        np.testing.assert_allclose(found.errors[:40], 2 * 0.5 ** np.arange(1, 41), rtol=1e-3)
    assert abs(found.errors[int(found.steps)]) < 1e-14
    assert found.verdict.startswith("converged")


@pytest.mark.parametrize("method", METHODS)
def test_float32_and_vmap(method):
    def root(target):
        start = {"newton": 2.0, "secant": (1.0, 2.0), "bisection": (0.0, 4.0)}[method]
        return find_root(lambda x: x**2 - target, jax.tree.map(jnp.float32, start), method)

    targets = jnp.array([0.25, 2.0, 9.0], jnp.float32)
    found = jax.jit(jax.vmap(root))(targets)
    assert found.root.dtype == found.order.dtype == jnp.float32
    assert np.asarray(found.status).tolist() == [CONVERGED] * 3
    np.testing.assert_allclose(found.root, np.sqrt(targets), rtol=1e-6)


def test_a_double_root_is_approached_linearly():
    found = jax.jit(lambda start: find_root(lambda x: (x - 1) ** 2, start, "newton", steps=80))(2.0)
    assert int(found.status) == CONVERGED
    assert abs(float(found.order) - 1) < 0.05


def test_a_tolerance_ends_earlier():
    found = jax.jit(lambda start: find_root(cubic, start, "bisection", tolerance=1e-3))((1.0, 3.0))
    assert int(found.steps) < 13
    assert abs(float(found.residual)) < 0.05


@pytest.mark.parametrize(
    ("f", "start", "method", "status"),
    [
        (lambda x: x**2 + 1, (-1.0, 2.0), "bisection", NO_SIGN_CHANGE),
        (lambda x: x**2 + 1, 0.0, "newton", LEVEL),
        (lambda x: x**2 + 1, (-1.0, 1.0), "secant", LEVEL),
        (lambda x: x**2 + 1, 0.3, "newton", STEP_LIMIT),
        (lambda x: jnp.log(x), 3.0, "newton", NON_FINITE),
        (lambda x: 1 / (x - 0.3), (-1.0, 2.0), "bisection", JUMP),
        (lambda x: x - 2, (2.0, 5.0), "bisection", CONVERGED),
        (lambda x: x - 2, (0.0, 2.0), "secant", CONVERGED),
    ],
)
def test_endings_are_told_apart(f, start, method, status):
    found = jax.jit(lambda start: find_root(f, start, method))(start)
    assert int(found.status) == status
    assert np.isfinite(found.root)


@pytest.mark.parametrize(
    ("start", "method", "options", "said"),
    [
        (1.0, "halley", {}, "method: expected one of newton, secant, bisection"),
        ((1.0, 2.0), "newton", {}, "start: expected one number for newton, got 2"),
        (1.0, "bisection", {}, "start: expected two numbers for bisection, got 1"),
        (1.0, "newton", {"steps": 1}, "steps: expected a whole number of at least 2"),
        (1.0, "newton", {"tolerance": -1.0}, "tolerance: expected a number of at least 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(start, method, options, said):
    with pytest.raises(ValueError, match=said):
        find_root(cubic, start, method, **options)
