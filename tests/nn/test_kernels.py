"""Kernels against scikit-learn's; the machine against exact solutions, its bounds, and corners looked at one by one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import pairwise

from calcdl.nn import kernels
from calcdl.nn.kernels import KERNELS, best_offset, decision, dual_value, gram, machine, of_width

THEIRS = {
    "linear": ({}, lambda x, z: pairwise.linear_kernel(x, z)),
    "polynomial": (
        {"degree": 2, "scale": 0.5, "offset": 0.3},
        lambda x, z: pairwise.polynomial_kernel(x, z, degree=2, gamma=0.5, coef0=0.3),
    ),
    "rbf": ({"width": 1.5}, lambda x, z: pairwise.rbf_kernel(x, z, gamma=1 / (2 * 1.5**2))),
    "laplace": ({"width": 1.5}, lambda x, z: pairwise.laplacian_kernel(x, z, gamma=1 / 1.5)),
    "sigmoid": ({"scale": 0.5, "offset": 0.3}, lambda x, z: pairwise.sigmoid_kernel(x, z, gamma=0.5, coef0=0.3)),
}
X = np.random.default_rng(0).normal(size=(9, 3))
Y = np.array([1.0, -1, 1, 1, -1, -1, 1, -1, -1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", KERNELS)
def test_gram_matrices_are_those_of_scikit_learn(name, dtype):
    settings, theirs = THEIRS[name]
    kernel = partial(KERNELS[name], **settings)
    rows = jnp.asarray(X, dtype)
    found = jax.jit(partial(gram, kernel))(rows, rows[:4])
    assert found.dtype == dtype
    np.testing.assert_allclose(found, theirs(X, X[:4]), rtol=2e-5 if dtype == np.float32 else 1e-12, atol=1e-6)
    whole = np.asarray(gram(kernel, rows), np.float64)
    np.testing.assert_array_equal(whole, whole.T)
    if name != "sigmoid":
        assert np.linalg.eigvalsh(whole)[0] > -1e-5


@pytest.mark.parametrize("name", KERNELS)
def test_slopes_are_differences_and_finite_for_the_same_example(name):
    kernel = partial(KERNELS[name], **THEIRS[name][0])
    one, other, step = X[0], X[1], 1e-6
    slope = jax.grad(kernel)(one, other)
    unit = np.eye(3) * step
    differences = [(kernel(one + u, other) - kernel(one - u, other)) / (2 * step) for u in unit]
    np.testing.assert_allclose(slope, differences, rtol=1e-6, atol=1e-8)
    assert np.isfinite(jax.grad(kernel)(one, one)).all()
    if name == "laplace":
        np.testing.assert_array_equal(jax.grad(kernel)(one, one), 0)


def test_a_width_is_the_unit_of_the_columns():
    for name, settings in (
        ("rbf", {"width": 2.0}), ("laplace", {"width": 2.0}), ("polynomial", {"scale": 0.25}), ("linear", {}),
    ):  # fmt: skip
        known = KERNELS[name](X[0], X[1], **settings)
        np.testing.assert_allclose(of_width(name, 2.0)(X[0], X[1]), known, rtol=1e-13)


def test_settings_outside_their_range_are_refused():
    for call, message in (
        (lambda: kernels.rbf(X[0], X[1], width=0.0), "width must be positive, got 0.0"),
        (lambda: of_width("laplace", -1.0)(X[0], X[1]), "width must be positive, got -1.0"),
        (lambda: kernels.polynomial(X[0], X[1], degree=0), "degree must be a whole number of at least 1, got 0"),
        (lambda: kernels.polynomial(X[0], X[1], degree=1.5), "degree must be"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_two_points_have_the_exact_machine(truths):
    for known in truths("sklearn_refs.json")["svm_tiny"]:
        rows, labels = jnp.asarray(known["X"], jnp.float64), jnp.asarray(known["y"], jnp.float64)
        found = jax.jit(machine)(jnp.asarray(known["alpha"]), labels, gram(kernels.linear, rows), 10.0)
        weights = np.asarray(rows).T @ (known["alpha"] * np.asarray(labels))
        np.testing.assert_allclose(weights, known["w"], rtol=1e-15)
        assert float(found.offset) == known["b"]
        assert 2 / np.linalg.norm(weights) == pytest.approx(known["margin"], rel=1e-15)
        assert float(found.primal) == float(found.dual) == pytest.approx(0.5 * weights @ weights, rel=1e-15)
        np.testing.assert_allclose(found.margins, 1.0, rtol=1e-15)


def test_the_best_offset_is_that_of_a_fine_grid():
    scores = np.random.default_rng(3).normal(size=(6, 9))
    found = jax.jit(jax.vmap(best_offset, (0, None)))(scores, Y)
    grid = np.linspace(-6, 6, 120_001)
    for score, offset in zip(scores, np.asarray(found), strict=True):
        sums = np.maximum(1 - Y * (score + grid[:, None]), 0).sum(axis=1)
        least = np.maximum(1 - Y * (score + offset), 0).sum()
        assert least <= sums.min() + 1e-12
    # Where a whole interval is best, its middle.
    assert float(best_offset(jnp.array([-3.0, 3.0]), jnp.array([-1.0, 1.0]))) == 0.0


def test_no_dual_value_exceeds_a_primal_one_and_slopes_are_the_formula():
    matrix, rng = gram(of_width("rbf", 1.0), jnp.asarray(X)), np.random.default_rng(1)
    feasible = rng.uniform(0, 0.5, size=(40, 9))
    feasible[:, Y > 0] *= (feasible[:, Y < 0].sum(1) / feasible[:, Y > 0].sum(1))[:, None]
    penalty = float(feasible.max())

    @jax.jit
    def look(rows, labels):
        slopes = jax.jacfwd(jax.grad(dual_value), argnums=0), jax.grad(dual_value, argnums=(0, 2))
        seen = jax.vmap(lambda a: machine(a, labels, matrix, penalty))(rows)
        return seen, *(slope(rows[0], labels, matrix) for slope in slopes)

    seen, curvature, (slope, by_matrix) = look(jnp.asarray(feasible), jnp.asarray(Y))
    assert float(seen.dual.max()) <= float(seen.primal.min())
    signed = feasible[0] * Y
    np.testing.assert_allclose(slope, 1 - Y * (np.asarray(matrix) @ signed), rtol=1e-13)
    np.testing.assert_allclose(curvature, -np.outer(Y, Y) * matrix, rtol=1e-13)
    np.testing.assert_allclose(by_matrix, -np.outer(signed, signed) / 2, rtol=1e-13)


def test_scores_are_sums_over_the_rows():
    a, z = np.linspace(0, 1, 9), X[:2] + 1.0
    kernel = of_width("rbf", 0.7)
    found = decision(jnp.asarray(a), jnp.asarray(Y), gram(kernel, jnp.asarray(z), jnp.asarray(X)), 0.25)
    known = [0.25 + sum(a[i] * Y[i] * kernel(one, X[i]) for i in range(9)) for one in z]
    np.testing.assert_allclose(found, known, rtol=1e-13)
    half = decision(jnp.asarray(a, jnp.float32), jnp.asarray(Y, jnp.float32), jnp.asarray(gram(kernel, X), jnp.float32))
    assert half.dtype == jnp.float32
