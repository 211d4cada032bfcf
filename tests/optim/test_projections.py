"""Projections against closed forms and their own definition; proximal descent against the lasso."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim.descent import descent
from calcdl.optim.projections import PROJECTIONS, projected, projection
from calcdl.optim.proximal import (
    PROXIMALS,
    proximal_box,
    proximal_descent,
    proximal_elastic_net,
    proximal_l1,
    proximal_squared_l2,
    soft_threshold,
)
from calcdl.optim.solver import CONVERGED, minimise

NORMAL = np.array([1.0, -2.0, 2.0])
GIVEN = {
    "box": {"lower": np.array([-1.0, 0.0, 0.25]), "upper": 0.5},
    "hyperplane": {"a": NORMAL, "b": 0.5},
    "halfspace": {"a": NORMAL, "b": 0.5},
    "box_section": {"lower": np.array([-1.0, 0.0, 0.25]), "upper": 0.5, "a": NORMAL, "b": 0.5},
}
CONVEX = [name for name in PROJECTIONS if "sphere" not in name]
POINT = np.array([1.5, -0.75, 0.3])


def inside(name, points):
    """Whether points lie in the set, from its definition."""
    size = {"l1": np.abs(points).sum(-1), "l2": np.sqrt((points**2).sum(-1)), "linf": np.abs(points).max(-1)}
    near, kind = 1e-6, name.split("_")[0]
    if name.endswith("ball"):
        return size[kind] <= 1 + near
    if name.endswith("sphere"):
        return np.abs(size[kind] - 1) <= near
    return {
        "non_negative": lambda: (points >= 0).all(-1),
        "box": lambda: ((points >= GIVEN["box"]["lower"] - near) & (points <= 0.5 + near)).all(-1),
        "hypercube": lambda: ((points >= 0) & (points <= 1)).all(-1),
        "simplex": lambda: (points >= 0).all(-1) & (np.abs(points.sum(-1) - 1) <= near),
        "hyperplane": lambda: np.abs(points @ NORMAL - 0.5) <= near,
        "halfspace": lambda: points @ NORMAL <= 0.5 + near,
        "box_section": lambda: inside("box", points) & inside("hyperplane", points),
    }[name]()


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_is_the_nearest_point_of_the_set(name):
    project = jax.jit(projection(name, **GIVEN.get(name, {})))
    nearest = np.asarray(project(jnp.asarray(POINT)))
    assert inside(name, nearest)
    np.testing.assert_allclose(project(jnp.asarray(nearest)), nearest, atol=1e-15)
    others = np.asarray(jax.vmap(project)(jnp.asarray(np.random.default_rng(0).normal(size=(2000, 3)))))
    assert inside(name, others).all()
    assert np.linalg.norm(POINT - nearest) <= np.linalg.norm(POINT[None] - others, axis=1).min() + 1e-12
    if name in CONVEX:
        # What characterises the nearest point of a convex set: the set lies beyond the plane through it.
        assert ((others - nearest) @ (POINT - nearest)).max() <= 1e-12


def test_projections_against_closed_forms():
    point = jnp.asarray(POINT)
    np.testing.assert_allclose(projection("simplex")(point), [1.0, 0.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(projection("simplex", scale=2.0)(point), [1.6, 0.0, 0.4], atol=1e-15)
    np.testing.assert_allclose(projection("l1_ball")(point), [0.875, -0.125, 0.0], atol=1e-15)
    np.testing.assert_allclose(projection("l2_ball", scale=0.5)(point), POINT / np.linalg.norm(POINT) / 2, rtol=1e-14)
    gap = (0.5 - POINT @ NORMAL) / 9
    np.testing.assert_allclose(projection("hyperplane", a=NORMAL, b=0.5)(point), POINT + gap * NORMAL, rtol=1e-14)


@jax.jit
@jax.vmap
def cut(point, lower, upper, a, b):
    return projection("box_section", lower=lower, upper=upper, a=a, b=b)(point)


def test_where_a_plane_cuts_a_box():
    signs = np.where(np.arange(40) % 3, 1.0, -1.0)
    points = np.random.default_rng(2).normal(size=(9, 40)) * np.repeat([1e-3, 1.0, 1e3], 3)[:, None]
    ends = np.array([[0.0, np.inf, 1.0], [-np.inf, np.inf, 0.5], [0.0, 0.25, 0.0]] * 3)
    normals = np.array([np.ones(40), signs, signs] * 3)
    found = np.asarray(cut(points, *ends[:, :2].T, normals, ends[:, 2]))
    for place, (point, one) in enumerate(zip(points, found, strict=True)):
        near = 1e-12 * np.abs(point).max()
        assert one @ normals[place] == pytest.approx(ends[place, 2], abs=100 * near)
        if place % 3 == 0:
            np.testing.assert_allclose(one, projection("simplex")(jnp.asarray(point)), rtol=0, atol=near)
        if place % 3 == 1:
            np.testing.assert_allclose(one, projection("hyperplane", a=signs, b=0.5)(jnp.asarray(point)), atol=near)
        # What a support vector machine asks for: some at either bound, the others moved alike.
        moved = ((point - one) * normals[place])[(one > 0) & (one < ends[place, 1])]
        assert place % 3 == 1 or np.abs(moved - moved[:1]).max(initial=0.0) <= near


@pytest.mark.parametrize(
    ("a", "b", "nearest"),
    [
        ([1.0, 1.0, 1.0], 3.0, [1, 1, 1]),  # a corner is all that the plane touches
        ([1.0, 1.0, 1.0], 5.0, [1, 1, 1]),  # and from here on not even that
        ([1.0, 1.0, 1.0], -2.0, [0, 0, 0]),
        ([1.0, 0.0, -1.0], 2.0, [1, 0, 0]),
        ([0.0, 0.0, 2.0], 1.0, [1, 0, 0.5]),  # the plane leaves two entries alone
    ],
)
def test_planes_that_touch_or_miss_a_box_or_are_along_it(a, b, nearest):
    found = cut(POINT[None], np.zeros((1, 3)), np.ones((1, 3)), np.array([a]), np.array([b]))
    np.testing.assert_allclose(found[0], nearest, atol=1e-12)


def test_the_section_of_a_box_has_derivatives():
    def section(point, b):
        lower = jnp.asarray(GIVEN["box_section"]["lower"])
        return cut(point[None], lower[None], jnp.full((1, 3), 0.5), jnp.asarray(NORMAL)[None], b[None])[0]

    near, b = jnp.array([0.2, 0.1, -2.0]), jnp.asarray(0.5)
    # Two are free and move along the plane, the third is at its bound.
    np.testing.assert_allclose(section(near, b), [0.2, 0.1, 0.25], atol=1e-14)
    unit, expected = NORMAL[:2] / np.linalg.norm(NORMAL[:2]), np.zeros((3, 3))
    expected[:2, :2] = np.eye(2) - np.outer(unit, unit)
    for jacobian in (jax.jacrev, jax.jacfwd):
        by_point, by_offset = jacobian(section, argnums=(0, 1))(near, b)
        np.testing.assert_allclose(by_point, expected, atol=1e-14)
        np.testing.assert_allclose(by_offset, [0.2, -0.4, 0.0], atol=1e-14)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_keeps_structure_and_dtypes(name):
    given = dict(GIVEN.get(name, {}))
    for field in PROJECTIONS[name].trees:
        value = np.broadcast_to(given[field], 3)
        given[field] = {"a": value[:2], "b": value[2]}
    tree = {"a": jnp.asarray(POINT[:2], jnp.float32), "b": jnp.asarray(POINT[2], jnp.bfloat16)}
    found = projection(name, **given)(tree)
    assert {part: leaf.dtype for part, leaf in found.items()} == {"a": jnp.float32, "b": jnp.bfloat16}
    whole = projection(name, **GIVEN.get(name, {}))(jnp.asarray(POINT))
    np.testing.assert_allclose(np.append(found["a"], found["b"]), whole, atol=5e-3)


def test_projected_descent_ends_at_the_nearest_point_and_knows_it():
    target = jnp.asarray(POINT)
    for solver in (descent("sgd", 0.2), descent("momentum", 0.05)):
        found = minimise(
            lambda p: jnp.sum((p - target) ** 2), jnp.ones(3), projected(solver, projection("simplex")), steps=500
        )
        assert int(found.status) == CONVERGED
        np.testing.assert_allclose(found.params, [1.0, 0.0, 0.0], atol=1e-7)


def test_the_gradient_mapping_is_the_step_over_the_rate():
    solver = projected(descent("sgd", 0.1), projection("non_negative"), rate=0.1)
    start = jnp.asarray([1.0, 0.05])
    moved, _, info = solver.step(lambda p: p @ jnp.asarray([2.0, 3.0]), start, solver.init(start))
    np.testing.assert_allclose(moved, [0.8, 0.0], atol=1e-15)
    np.testing.assert_allclose(info.gradient, [2.0, 0.5], rtol=1e-12)
    np.testing.assert_allclose(info.update, [-0.2, -0.05], rtol=1e-12)


def test_bad_projections_are_refused_by_name():
    for name, given, message in [
        ("cube", {}, "projection: expected one of non_negative"),
        ("simplex", {"scale": 0.0}, r"scale: expected a finite number in \(0, inf\)"),
        ("simplex", {"size": 1.0}, "projection simplex: no hyperparameter 'size'"),
        ("box", {"lower": 0.0}, "projection box: expected the hyperparameter 'upper', got none"),
        ("box", {"lower": np.array([0.0, 2.0]), "upper": 1.0}, "lower: expected no bound above the upper one"),
        ("box", {"lower": float("nan"), "upper": 1.0}, "lower: expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            projection(name, **given)
    with pytest.raises(ValueError, match="rate: expected"):
        projected(descent("sgd", 0.1), projection("simplex"), rate=0.0)
    with pytest.raises(ValueError, match="learning_rate: expected"):
        proximal_descent(0.0, proximal_l1(1.0))
    with pytest.raises(ValueError, match="strength: expected"):
        proximal_l1(-1.0)


def test_soft_threshold_is_that_of_the_book():
    x = jnp.asarray([-2.0, -0.5, 0.0, 0.5, 2.0])
    np.testing.assert_array_equal(soft_threshold(x, 0.75), [-1.25, 0.0, 0.0, 0.0, 1.25])
    np.testing.assert_array_equal(jax.vmap(jax.grad(soft_threshold), (0, None))(x, 0.75), [1, 0, 0, 0, 1])
    assert soft_threshold(x.astype(jnp.bfloat16), 0.75).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", PROXIMALS)
def test_a_proximal_map_minimises_what_it_says(name):
    given = {"elastic_net": (0.4, 0.3), "box": (-0.2, 0.5)}.get(name, (0.4,))
    pair = PROXIMALS[name](*given)
    rate, point = 0.5, jnp.asarray([1.1, -0.1, -0.9])
    grid = jnp.linspace(*(given if name == "box" else (-1.5, 1.5)), 300001)
    found = pair.map(jnp.asarray(rate), point)
    cost = rate * jax.vmap(pair.penalty)(grid)[:, None] + (grid[:, None] - point[None]) ** 2 / 2
    np.testing.assert_allclose(found, grid[jnp.argmin(cost, axis=0)], atol=1e-5)


@pytest.fixture(scope="module")
def regression():
    rng = np.random.default_rng(1)
    basis, _ = np.linalg.qr(rng.normal(size=(30, 5)))
    return basis * np.sqrt(30), rng.normal(size=30) + basis @ np.array([8.0, -4.0, 0.5, 0.0, 2.0])


def sum_of_squares(features, targets):
    return lambda w: jnp.sum((targets - features @ w) ** 2) / (2 * len(targets))


@pytest.mark.parametrize("accelerated", [False, True])
def test_the_lasso_of_orthogonal_columns_is_the_soft_threshold_of_least_squares(regression, accelerated):
    features, targets = map(jnp.asarray, regression)
    solver = proximal_descent(0.3, proximal_l1(0.2), accelerated=accelerated)
    found = jax.jit(
        lambda start: minimise(sum_of_squares(features, targets), start, solver, steps=300, tolerance=1e-10)
    )(jnp.zeros(5))
    exact = soft_threshold(features.T @ targets / 30, 0.2)
    assert int(found.status) == CONVERGED
    assert 0 < int((exact == 0).sum()) < 5
    np.testing.assert_allclose(found.params, exact, atol=1e-9)
    np.testing.assert_array_equal(found.params == 0, exact == 0)
    whole = sum_of_squares(features, targets)(exact) + 0.2 * jnp.abs(exact).sum()
    assert float(found.value) == pytest.approx(float(whole), rel=1e-12)


def test_acceleration_reaches_the_elastic_net_of_scikit_learn_sooner(regression):
    from sklearn.linear_model import ElasticNet

    features, targets = regression[0] @ np.diag([3.0, 1.0, 0.4, 0.3, 0.2]) + 0.1 * regression[0][:, ::-1], regression[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = ElasticNet(alpha=0.1, l1_ratio=0.7, fit_intercept=False, tol=1e-13, max_iter=100000)
        theirs.fit(features, targets)
    rate = 1 / np.linalg.eigvalsh(features.T @ features / 30)[-1]
    # There the penalty is alpha (ratio |w| + (1 - ratio) w^2 / 2).
    penalty = proximal_elastic_net(0.07, 0.015)
    steps = []
    for accelerated in (False, True):
        solver = proximal_descent(rate, penalty, accelerated=accelerated)
        found = minimise(sum_of_squares(*map(jnp.asarray, (features, targets))), jnp.zeros(5), solver, steps=5000)
        assert int(found.status) == CONVERGED
        np.testing.assert_allclose(found.params, theirs.coef_, atol=1e-6)
        steps.append(int(found.steps))
    assert steps[1] < steps[0] / 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("accelerated", [False, True])
def test_proximal_steps_keep_dtypes_and_map_over_strengths(dtype, accelerated):
    def run(strength):
        params = {"a": jnp.ones(2, dtype), "b": jnp.asarray(2.0, dtype)}
        solver = proximal_descent(0.25, proximal_l1(strength), accelerated=accelerated)

        def advance(carry, _):
            moved, state, info = solver.step(lambda p: jnp.sum((p["a"] - 3) ** 2) + p["b"] ** 2, *carry)
            return (moved, state), info

        return jax.lax.scan(advance, (params, solver.init(params)), None, length=30)

    (params, _), info = jax.jit(jax.vmap(run))(jnp.asarray([0.0, 2.0], jnp.float32))
    assert params["a"].dtype == dtype
    assert {info.gradient["b"].dtype, info.update["b"].dtype, info.value.dtype} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(params["a"].astype(jnp.float32), [[3.0, 3.0], [2.0, 2.0]], rtol=1e-2)


def test_squared_penalty_and_box_in_descent():
    ridge = minimise(
        lambda p: (p - 3) ** 2, jnp.asarray(0.0), proximal_descent(0.4, proximal_squared_l2(0.5)), steps=200
    )
    assert float(ridge.params) == pytest.approx(2.0, abs=1e-7)
    assert float(ridge.value) == pytest.approx(3.0, abs=1e-7)
    boxed = minimise(
        lambda p: jnp.sum((p - 3) ** 2),
        jnp.asarray([9.0, 1.0]),
        proximal_descent(0.4, proximal_box(0.0, 2.0)),
        steps=50,
    )
    np.testing.assert_allclose(boxed.params, [2.0, 2.0])
    assert (float(boxed.value), int(boxed.status)) == (2.0, CONVERGED)
