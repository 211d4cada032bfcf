import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import nn
from calcdl.optim.function_space import SEARCHES, boost, gradient_boosting, regression_trees, step_lengths, subsamples

X = np.linspace(-1, 1, 30)[:, None]
Y = np.sin(4 * X[:, 0]) + np.array([0.0, 0.3, -0.2] * 10)
ROWS = {
    "prediction": jnp.zeros(6), "bag": jnp.array([True] * 5 + [False]), "group": jnp.array([0, 0, 0, 1, 1, 1]),
    "target": jnp.array([1.0, 2.0, 6.0, -1.0, -3.0, 50.0]), "direction": jnp.array([2.0, 2.0, 2.0, -0.5, -0.5, -0.5]),
}  # fmt: skip

lengths = jax.jit(step_lengths, static_argnums=(0, 1, 2))


def squared(prediction, target):
    return (prediction - target) ** 2


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_squared_error_puts_the_mean_of_the_bag_into_each_group(search, dtype):
    rows = {name: jnp.asarray(part, dtype if part.dtype == float else part.dtype) for name, part in ROWS.items()}
    length = lengths(squared, search, 2, **rows)
    assert length.dtype == dtype
    np.testing.assert_allclose(length * jnp.array([2.0, -0.5], dtype), [3.0, -2.0], rtol=1e-5)


def test_absolute_error_puts_the_median_into_each_group():
    length = lengths(nn.losses.absolute_error, "minimum", 2, **ROWS)
    assert float(2 * length[0]) == pytest.approx(2.0, rel=1e-12)
    assert -3 <= float(-0.5 * length[1]) <= -1


def test_newton_is_the_step_of_logistic_regression_on_leaves():
    rows = ROWS | {"target": jnp.array([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])}
    length = lengths(nn.losses.binary_cross_entropy, "newton", 2, **rows)
    np.testing.assert_allclose(length * jnp.array([2.0, -0.5]), [0.5 / 0.75, -1.0 / 0.5], rtol=1e-12)


def test_a_minimum_at_infinity_takes_newtons_step():
    rows = ROWS | {"target": jnp.array([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])}
    length = lengths(nn.losses.binary_cross_entropy, "minimum", 2, **rows)
    np.testing.assert_allclose(length * jnp.array([2.0, -0.5]), [np.log(2), -2.0], rtol=1e-12)


def test_a_step_that_would_raise_the_loss_is_halved():
    def loss(prediction, target):  # Newton's step from 0 is 8 times too long
        return jnp.where(prediction < 1, (prediction - 8) ** 2 - 49, 100 * (prediction - 1))

    rows = ROWS | {"direction": jnp.ones(6), "group": jnp.zeros(6, jnp.int32)}
    assert lengths(loss, "newton", 1, **rows).tolist() == [1.0]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("by", ["leaf", "stage"])
@pytest.mark.parametrize("loss", [nn.losses.absolute_error, nn.losses.huber])
def test_the_loss_never_rises_and_the_start_is_the_best_constant(loss, by, search):
    path = gradient_boosting(loss, X, Y, np.arange(30), stages=8, rates=[1.0, 0.1], search=search, by=by, depth=2)
    total = path.loss.sum(axis=-1)
    assert (np.diff(total, axis=0) <= 1e-12 * total[0]).all()
    assert (total[-1] < total[0]).all()
    for shift in (-0.02, 0.02):
        assert total[0, 0] <= float(loss(path.prediction[0, 0] + shift, Y).sum()) + 1e-12


def test_the_residual_is_minus_the_gradient_and_trees_are_fitted_to_it():
    path = gradient_boosting(squared, X, Y, np.arange(20), stages=2, rates=[0.5], depth=1, leaf_rows=5)
    np.testing.assert_allclose(path.residual, 2 * (Y - path.prediction), rtol=1e-12)
    for stage, direction in enumerate(path.direction[:, 0]):
        for value in np.unique(direction):
            inside = np.flatnonzero(direction[:20] == value)
            assert len(inside) >= 5
            assert value == pytest.approx(path.residual[stage, 0, inside].mean())


def test_rows_out_of_the_bag_do_not_matter():
    known, other = np.arange(20), np.where(np.arange(30) < 20, Y, 100.0)
    one, two = (gradient_boosting(squared, X, y, known, stages=3, rates=[0.5], depth=2).prediction for y in (Y, other))
    np.testing.assert_array_equal(one, two)


def test_a_row_that_weighs_two_is_two_rows():
    weight = np.where(np.arange(30) % 3 == 0, 2.0, 1.0)
    x, y = np.concatenate([X, X[::3]]), np.concatenate([Y, Y[::3]])
    settings = {"stages": 3, "rates": [0.5], "depth": 2}
    heavy = gradient_boosting(squared, X, Y, np.arange(30), weight=weight, **settings)
    twice = gradient_boosting(squared, x, y, np.arange(40), **settings)
    np.testing.assert_allclose(heavy.prediction, twice.prediction[..., :30], rtol=1e-12)


def test_lanes_do_not_touch_each_other():
    both = gradient_boosting(squared, X, Y, np.arange(30), stages=3, rates=[1.0, 0.2], seeds=[3, 4], share=0.5, depth=2)
    one = gradient_boosting(squared, X, Y, np.arange(30), stages=3, rates=[0.2], seeds=[4], share=0.5, depth=2)
    np.testing.assert_allclose(both.prediction[:, 1:], one.prediction, rtol=1e-12)


def test_bags_depend_on_the_seed_alone():
    bags = list(subsamples(12, np.arange(2, 12), 3, [0, 1, 0], 0.3))
    assert [bag.sum(axis=1).tolist() for bag in bags] == [[10] * 3, [3] * 3, [3] * 3, [3] * 3]
    assert all((bag[0] == bag[2]).all() and not bag[:, :2].any() for bag in bags)
    assert any((bag[0] != bag[1]).any() for bag in bags[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"search": "newtn"}, "newton"), ({"by": "tree"}, "stage")],
)
def test_unknown_names_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gradient_boosting(squared, X, Y, np.arange(30), stages=1, rates=[1.0], **change)


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        boost(
            lambda f, y: jnp.log(f),
            regression_trees(X, depth=1),
            -(Y[None] ** 2) - 1,
            subsamples(30, [0, 1], 1, [0]),
            rates=[1.0],
        )
