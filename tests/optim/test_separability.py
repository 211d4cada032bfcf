import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim.separability import (
    OVERLAPPING,
    QUASI_SEPARABLE,
    SEPARABLE,
    STATUSES,
    UNDECIDED,
    certificate,
    contrasts,
    decide,
    shortest,
)

LINE = np.array([[1.0, -2.0], [1.0, -1.0], [1.0, 1.0], [1.0, 3.0]])
APART, MIXED, TOUCHING = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
TIED = np.array([[1.0, -2.0], [1.0, 1.0], [1.0, 1.0], [1.0, 3.0]])


prove = jax.jit(certificate)


def fitted(x, y):
    """Newton's method, 30 steps; where there is no optimum each adds 1 to the margins."""
    w = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ w))
        w -= np.linalg.solve((x.T * (p * (1 - p))) @ x, x.T @ (p - y))
    return w


@pytest.mark.parametrize(
    ("x", "y", "status", "separated"),
    [
        (LINE, APART, SEPARABLE, [True, True, True, True]),
        (LINE, MIXED, OVERLAPPING, [False] * 4),
        (TIED, TOUCHING, QUASI_SEPARABLE, [True, False, False, True]),
    ],
)
def test_a_linear_programme_decides_two_classes(x, y, status, separated):
    found = decide(x, y)
    assert found.status == status
    assert found.verdict == STATUSES[status]
    assert found.separated.ravel().tolist() == separated
    margins = (2 * y - 1) * (x @ found.weights)
    assert margins.min() >= -1e-9
    assert (margins > 0.5).tolist() == separated
    assert decide(1e6 * x, y).status == status


def test_three_classes_of_which_two_overlap_have_no_optimum():
    x = np.array([[1.0, -9.0], [1.0, 0.0], [1.0, 1.0], [1.0, 0.5], [1.0, 2.0]])
    found = decide(x, np.array([0, 1, 1, 2, 2]))
    assert found.status == QUASI_SEPARABLE
    assert found.weights.shape == (2, 3)
    # Class 0 against both others; of those two, 0 and 2 lie outside what overlaps, but no direction knows it.
    assert found.separated[0].all()
    assert found.separated[1:].sum(axis=1).tolist() == [1, 1, 1, 1]
    logits = x @ found.weights
    np.testing.assert_allclose(logits[:, 1], logits[:, 2], atol=1e-9)


def test_weights_prove_separation_by_their_margins_alone():
    found = prove(np.array([0.0, 1.0]), LINE, APART)
    assert found.status == SEPARABLE
    assert float(found.margin) == 1.0
    three = prove(np.array([[0.0, 0.0, -20.0], [-10.0, 0.0, 10.0]]), LINE, np.array([0, 0, 1, 2]))
    assert three.status == SEPARABLE
    np.testing.assert_allclose(three.margin, 10.0)


def test_a_gradient_below_the_bound_proves_an_optimum_and_no_gradient_does_on_separable_data():
    found = prove(fitted(LINE, MIXED), LINE, MIXED)
    assert found.status == OVERLAPPING
    assert found.verdict == "an optimum exists: the classes overlap"
    assert found.gradient_norm < 1e-10 < found.bound
    far = prove(fitted(TIED, TOUCHING), TIED, TOUCHING)
    assert float(far.gradient_norm) < 1e-8
    assert far.status == UNDECIDED


def test_the_bound_is_the_smallest_singular_value_of_weighted_margins(key):
    x = np.array(jax.random.normal(key, (12, 3), jnp.float64))
    y = np.arange(12) % 3
    w = jax.random.normal(jax.random.fold_in(key, 1), (3, 3), jnp.float64)
    chance = np.array(jax.nn.softmax(x @ w))
    rows = []
    for one, label, p in zip(x, y, chance, strict=True):
        for other in set(range(3)) - {label}:
            apart = np.zeros((3, 3))
            apart[:, label], apart[:, other] = one, -one
            rows.append(p[other] * apart.ravel())
    values = np.linalg.svd(np.stack(rows), compute_uv=False)
    np.testing.assert_allclose(values[6:], 0, atol=1e-12)  # one shift of all classes for each column
    found = prove(w, x, y)
    np.testing.assert_allclose(found.bound, values[5], rtol=1e-9)
    gradient = jax.grad(lambda w: -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(x @ w), y[:, None], 1)))(w)
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(gradient), rtol=1e-12)


def test_idle_columns_and_rows_that_do_not_count_change_nothing():
    w = fitted(LINE, MIXED)
    known = prove(w, LINE, MIXED)
    wide = np.insert(LINE, 2, LINE[:, 1] * 2, axis=1)
    assert prove(np.append(w, 0.0), wide, MIXED).status == OVERLAPPING
    longer, labels = np.append(LINE, [[1.0, 100.0]], axis=0), np.append(MIXED, 0)
    masked = prove(w, longer, labels, np.arange(5) < 4)
    for one, other in zip(masked, known, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert prove(w, longer, labels, np.ones(5, bool)).status != OVERLAPPING


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_certificates_are_the_same_compiled_and_in_a_batch(dtype):
    x, y = LINE.astype(dtype), MIXED.astype("int32")
    w = np.stack([np.zeros(2), fitted(LINE, MIXED)]).astype(dtype)
    batch = jax.jit(jax.vmap(lambda w: certificate(w, x, y)))(w)
    assert batch.bound.dtype == dtype
    assert batch.status.dtype == "int32"
    for place in range(2):
        one = certificate(jnp.asarray(w[place]), x, y)
        assert batch.status[place] == one.status
        np.testing.assert_allclose(batch.bound[place], one.bound, rtol=1e-4 if dtype == "float32" else 1e-10)


def test_the_shortest_weights_have_the_widest_margin():
    x = np.array([[1.0, 0.0, 2.0], [1.0, 0.0, 3.0], [1.0, 0.0, -2.0], [1.0, 0.0, -9.0]])
    # Margins of at least 1 at height 2 and -2: w = (b, 0, c) with b + 2c = 1 and -b + 2c = 1.
    assert shortest(x, np.array([1, 1, 0, 0])) == pytest.approx(0.5, rel=1e-9)
    assert shortest(LINE, MIXED) == 0.0


def test_contrasts_are_orthonormal_and_know_no_shift():
    for classes in (2, 3, 7):
        found = contrasts(classes)
        np.testing.assert_allclose(found.T @ found, np.eye(classes - 1), atol=1e-12)
        np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decide(LINE, np.zeros(4, int)), "label: expected at least two classes"),
        (lambda: decide(LINE, np.array([0, 1])), r"features: expected \(rows, columns\) for labels of shape \(2,\)"),
        (lambda: certificate(jnp.zeros(3), LINE, APART), r"weights of shape \(3,\), got shape \(4, 2\)"),
        (lambda: shortest(LINE[0], APART), "features: expected"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
