import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.nn.losses import (
    LOSSES,
    absolute_error,
    binary_cross_entropy,
    hinge,
    huber,
    softmax_cross_entropy,
    squared_error,
    squared_hinge,
)

NAMES = list(LOSSES)
PAIRED = [name for name in NAMES if name != "softmax_cross_entropy"]
SCORES = [-2.3, -0.4, 0.7, 1.6, 3.1]
TARGETS = {
    "squared_error": [0.5, -1.5, 0.9, 4.0, 3.0],
    "absolute_error": [0.5, -1.5, 0.9, 4.0, 3.0],
    "huber": [0.5, -1.5, 0.9, 4.0, 3.0],
    "binary_cross_entropy": [0, 1, 1, 0, 1],
    "hinge": [-1, 1, -1, 1, 1],
    "squared_hinge": [-1, 1, -1, 1, 1],
}
LOGITS = np.array([[1.0, 2.0, 3.0], [-0.4, 0.2, -3.0], [5.0, 4.9, 1.0]])
LABELS = np.array([2, 0, 1])


def arguments(name, dtype):
    if name == "softmax_cross_entropy":
        return jnp.asarray(LOGITS, dtype), jnp.asarray(LABELS)
    return jnp.asarray(SCORES, dtype), jnp.asarray(TARGETS[name])


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


EXPECTED = {
    "squared_error": lambda p, t: ((p - t) ** 2, 2 * (p - t)),
    "absolute_error": lambda p, t: (abs(p - t), np.sign(p - t)),
    "huber": lambda p, t: (
        np.where(abs(p - t) <= 1, (p - t) ** 2 / 2, abs(p - t) - 0.5),
        np.where(abs(p - t) <= 1, p - t, np.sign(p - t)),
    ),
    "binary_cross_entropy": lambda a, y: (-np.log(np.where(y == 1, sigmoid(a), sigmoid(-a))), sigmoid(a) - y),
    "hinge": lambda f, y: (np.maximum(0, 1 - y * f), np.where(y * f < 1, -y, 0)),
    "squared_hinge": lambda f, y: (np.maximum(0, 1 - y * f) ** 2, -2 * y * np.maximum(0, 1 - y * f)),
}


def softmax_expected(logits, labels):
    exponential = np.exp(logits)
    probability = exponential / exponential.sum(1, keepdims=True)
    chosen = np.eye(3)[labels]
    return -np.log((probability * chosen).sum(1)), probability - chosen


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_the_closed_forms(name, dtype):
    prediction, target = arguments(name, dtype)
    expected = softmax_expected if name == "softmax_cross_entropy" else EXPECTED[name]
    value, gradient = expected(np.asarray(prediction, np.float64), np.asarray(target))
    tolerance = 1e-14 if dtype == np.float64 else 2e-6
    loss = LOSSES[name]
    eager = loss(prediction, target)
    assert eager.dtype == dtype
    for result in (eager, jax.jit(loss)(prediction, target), jax.vmap(loss)(prediction, target)):
        np.testing.assert_allclose(result, value, rtol=tolerance, atol=tolerance)
    by_prediction = jax.jit(jax.grad(lambda p: loss(p, target).sum()))(prediction)
    assert by_prediction.dtype == dtype
    np.testing.assert_allclose(by_prediction, gradient, rtol=tolerance, atol=tolerance)


def test_saturated_output(truths):
    for row in truths("dl_theory.json")["saturated_output"]["rows"]:
        a = float(row["a"])
        by_squares = jax.grad(lambda a: squared_error(jax.nn.sigmoid(a), 1.0) / 2)(a)
        by_entropy = jax.grad(lambda a: binary_cross_entropy(a, 1))(a)
        # The record gives 12 digits.
        assert by_squares == pytest.approx(row["mse_grad"], rel=1e-11)
        assert by_entropy == pytest.approx(row["bce_grad"], rel=1e-11)
        assert by_squares / by_entropy == pytest.approx(row["ratio"], rel=1e-11)
        assert jax.grad(lambda a: binary_cross_entropy(a, 1))(np.float32(a)) == pytest.approx(row["bce_grad"], rel=2e-6)


def test_generator_gradients(truths):
    for row in truths("dl_theory.json")["gan"]["gen_gradient"]:
        logit = float(row["D_logit"])
        saturating = jax.grad(lambda a: -binary_cross_entropy(a, 0))(logit)
        assert saturating == pytest.approx(row["saturating"], rel=1e-11)
        assert jax.grad(lambda a: binary_cross_entropy(a, 1))(logit) == pytest.approx(row["nonsaturating"], rel=1e-11)


def test_softmax_record(truths):
    record = truths("dl_theory.json")["softmax"]
    logits = jnp.array(record["logits"], float)
    gradient, hessian = jax.grad(softmax_cross_entropy), jax.hessian(softmax_cross_entropy)
    probability = gradient(logits, 0) + jnp.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(probability, record["p"], rtol=1e-11)
    covariance = np.diag(probability) - np.outer(probability, probability)
    np.testing.assert_allclose(hessian(logits, 0), covariance, atol=1e-15)
    assert softmax_cross_entropy(jnp.zeros(10), 3) == pytest.approx(2.302585093, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_stay_finite(dtype):
    largest = np.finfo(dtype).max
    logit = jnp.asarray([-largest, -1e4, -100, 0, 100, 1e4, largest], dtype)
    for label in (0, 1, 0.25):
        labels = jnp.full(logit.shape, label)
        loss = binary_cross_entropy(logit, labels)
        gradient = jax.grad(lambda a, y=labels: binary_cross_entropy(a, y).sum())(logit)
        assert np.all(np.isfinite(loss))
        np.testing.assert_allclose(gradient, jax.nn.sigmoid(logit) - labels.astype(dtype), atol=1e-6)
    logits = jnp.asarray([[largest / 4, -largest / 4, 0], [1e8, 1e8 - 64, -1e8], [-np.inf, 0, 1]], dtype)
    for label, expected in ((jnp.array([0, 1, 2]), [0, 64, np.log1p(np.exp(-1))]), (jnp.array([1, 0, 1]), None)):
        loss, gradient = jax.value_and_grad(lambda a, y=label: softmax_cross_entropy(a, y).sum())(logits)
        assert np.isfinite(loss)
        assert np.all(np.isfinite(gradient))
        if expected is not None:
            np.testing.assert_allclose(softmax_cross_entropy(logits, label), expected, rtol=1e-6)


def test_rare_mistakes_keep_their_size_in_float32():
    # 1 - sigmoid(30) is 0 in float32; exp(-30) is not.
    loss, gradient = jax.value_and_grad(binary_cross_entropy)(np.float32(30), 1)
    assert loss == pytest.approx(np.exp(-30.0), rel=1e-5)
    assert gradient == pytest.approx(-np.exp(-30.0), rel=1e-5)


@pytest.mark.parametrize("label", [-1, 3, -3, 2**31 - 1])
def test_an_index_out_of_range_is_not_a_number(label):
    labels = jnp.array([0, label, 2])
    loss = softmax_cross_entropy(jnp.asarray(LOGITS), labels)
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
    gradient = jax.grad(lambda a: softmax_cross_entropy(a, labels).sum())(jnp.asarray(LOGITS))
    np.testing.assert_array_equal(np.isnan(gradient).all(1), [False, True, False])
    assert np.isfinite(gradient[jnp.array([0, 2])]).all()


@pytest.mark.parametrize(
    ("name", "labels", "bad"),
    [
        ("binary_cross_entropy", [0, 1, -1, 2, 1.01], [False, False, True, True, True]),
        ("hinge", [1, -1, 0, 2, 0.5], [False, False, True, True, True]),
        ("squared_hinge", [1, -1, 0, 2, 0.5], [False, False, True, True, True]),
    ],
)
def test_a_label_that_is_none_is_not_a_number(name, labels, bad):
    scores, labels = jnp.array(SCORES), jnp.array(labels)
    np.testing.assert_array_equal(np.isnan(LOSSES[name](scores, labels)), bad)
    gradient = jax.grad(lambda a: LOSSES[name](a, labels).sum())(scores)
    np.testing.assert_array_equal(np.isnan(gradient)[:3], bad[:3])


def test_subgradients_and_curvature():
    assert jax.grad(absolute_error)(1.0, 1.0) == 0
    assert jax.grad(hinge)(1.0, 1.0) == 0
    assert jax.grad(squared_hinge)(1.0, 1.0) == 0
    assert jax.grad(huber)(1.0, 0.0) == 1
    assert jax.grad(jax.grad(huber))(0.0, 0.0) == 1
    assert jax.grad(jax.grad(huber))(0.3, 0.0) == 1
    assert jax.grad(jax.grad(huber))(1.3, 0.0) == 0
    assert huber(3.0, 0.0, 2.0) == pytest.approx(4.0)
    assert np.isfinite(huber(np.float32(1e30), np.float32(0)))
    assert jax.grad(huber)(np.float32(1e30), np.float32(0)) == 1


@pytest.mark.parametrize("name", PAIRED)
def test_shapes_must_agree(name):
    with pytest.raises(ValueError, match=r"target must have the shape of the prediction, \(4, 1\), got \(4,\)"):
        LOSSES[name](jnp.ones((4, 1)), jnp.ones(4))
    assert LOSSES[name](jnp.ones((4, 1)), 1.0).shape == (4, 1)


@pytest.mark.parametrize("name", NAMES)
def test_integer_predictions_are_refused(name):
    with pytest.raises(TypeError, match="must be floating point, got int"):
        LOSSES[name](jnp.ones((3, 2), int), jnp.ones(3, int))


def test_softmax_arguments_are_checked():
    with pytest.raises(ValueError, match=r"label must have shape \(3,\)"):
        softmax_cross_entropy(jnp.ones((3, 2)), jnp.ones((3, 1), int))
    with pytest.raises(TypeError, match="label must be of integers, got float"):
        softmax_cross_entropy(jnp.ones((3, 2)), jnp.ones(3))
    for delta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="delta must be positive"):
            huber(1.0, 0.0, delta)
