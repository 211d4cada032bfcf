"""Constrained minimisation against problems solved to forty digits, closed forms, and problems without a solution."""

import constrained_problems as problems
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim import solver as statuses
from calcdl.optim.augmented_lagrangian import augmented_lagrangian
from calcdl.optim.constrained import TRACES, minimise_constrained
from calcdl.optim.kkt import KKT, Multipliers, kkt_residuals
from calcdl.optim.line_search import lbfgs
from calcdl.optim.solver import CONVERGED, STATUSES, minimise


def solve(problem):
    return minimise_constrained(
        lambda x: problems.value(problem, x),
        problem.start,
        equality=lambda x: problems.equality(problem, x),
        inequality=lambda x: problems.inequality(problem, x),
        lower=problem.lower,
        upper=problem.upper,
        steps=20,
        inner_steps=40,
    )


def stacked(records):
    return jax.tree.map(lambda *parts: np.stack(parts), *map(problems.problem, records))


@pytest.fixture(scope="module")
def batch(truths):
    """All problems, solvable or not, side by side: none disturbs another."""
    records = truths("constrained.json")["problems"]
    found = jax.jit(jax.vmap(solve))(stacked([*records, *(record for _, record in problems.HOPELESS.values())]))
    return records, jax.tree.map(np.asarray, found)


def test_every_problem_of_the_book_is_solved_with_its_multipliers(batch):
    records, found = batch
    for i, record in enumerate(records):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        assert one.verdict == STATUSES[CONVERGED], record["name"]
        np.testing.assert_allclose(one.value, record["f_star"], rtol=1e-12, atol=1e-12, err_msg=record["name"])
        assert max(map(float, one.kkt)) < 1e-11
        kinds = {"eq": one.multipliers.equality, "ineq": one.multipliers.inequality}
        kinds |= {"lb": one.multipliers.lower, "ub": one.multipliers.upper}
        expected = {kind: np.zeros_like(values) for kind, values in kinds.items()}
        for name, value in record["multipliers"].items():
            expected[name.rstrip("0123456789")][int(name[-1])] = value
        for kind, values in kinds.items():
            np.testing.assert_allclose(values, expected[kind], atol=1e-9, err_msg=f"{record['name']} {kind}")


@pytest.mark.parametrize(("number", "name"), list(enumerate(problems.HOPELESS)), ids=list(problems.HOPELESS))
def test_what_cannot_be_solved_is_said(batch, number, name):
    records, found = batch
    one = jax.tree.map(lambda leaf: leaf[len(records) + number], found)
    expected = getattr(statuses, problems.HOPELESS[name][0])
    assert one.verdict == STATUSES[expected]
    if expected == statuses.INFEASIBLE:
        # The least violation: halfway between the half planes, and where x^2 + 1 is least.
        least = {"half planes that do not meet": 0.5, "a square below 0": 0.0, "bounds the wrong way round": 1.5}[name]
        assert float(one.params[0]) == pytest.approx(least, abs=1e-7)
        assert float(one.kkt.feasibility) > 0.4
    if expected == statuses.UNQUALIFIED:
        assert float(one.kkt.feasibility) < 1e-7


def on_a_line(total, dtypes=(jnp.float64, jnp.float64), **options):
    """min x^2 + 2 y^2 on x + y = total: x = 2 total / 3, y = total / 3, multiplier 4 total / 3."""
    return minimise_constrained(
        lambda p: p["x"] ** 2 + 2 * p["y"][0] ** 2,
        {"x": jnp.asarray(3.0, dtypes[0]), "y": jnp.asarray([-2.0], dtypes[1])},
        equality=lambda p: {"line": p["x"] + p["y"] - total},
        lower={"x": -jnp.inf, "y": jnp.asarray([-50.0], dtypes[1])},
        **options,
    )


def test_trees_and_dtypes_are_kept():
    found = jax.jit(lambda total: on_a_line(total, (jnp.float32, jnp.bfloat16)))(jnp.float32(1.5))
    assert (found.params["x"].dtype, found.params["y"].dtype) == (jnp.float32, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves((found.multipliers, found.kkt))} == {jnp.dtype(jnp.float32)}
    assert found.multipliers.equality["line"].shape == found.params["y"].shape == (1,)
    assert found.multipliers.inequality is None
    assert found.multipliers.upper is None
    np.testing.assert_array_equal(found.multipliers.lower["x"], 0)
    assert float(found.params["x"]) == pytest.approx(1.0, rel=5e-7)
    assert float(found.params["y"][0]) == 0.5
    assert float(found.multipliers.equality["line"][0]) == pytest.approx(2.0, rel=5e-7)
    assert found.verdict == STATUSES[CONVERGED]


@pytest.fixture(scope="module")
def moved_line():
    """A run with its trace, and what it changes by when the line moves."""

    def run(total):
        return on_a_line(total, trace=TRACES, steps=12, penalty=1.0)

    total = jnp.float64(1.5)
    return jax.jit(lambda total: jax.jvp(run, (total,), (jnp.ones_like(total),)))(total)


def test_the_trace_shows_the_multiplier_converge_round_by_round(moved_line):
    found, _ = moved_line
    multipliers = found.trace.multipliers.equality["line"][:, 0]
    assert multipliers.shape == (13,)
    # On a quadratic each round divides the error by 1 + rho c, with c = 1/2 + 1/4 of the inverse of the Hessian;
    # rho = 1 does not bring the violation to a quarter, and 10 follows.
    left = 1 / np.cumprod([1, 1.75, 1.75, 8.5, 8.5])
    np.testing.assert_allclose(multipliers[:5], 2.0 * (1 - left), rtol=1e-7)
    np.testing.assert_allclose(found.trace.kkt.feasibility[:5], [0.5, *(1.5 * left[1:])], rtol=1e-7)
    np.testing.assert_allclose(found.trace.value[0], 17.0)
    assert found.trace.params["y"].shape == (13, 1)


def test_the_multiplier_is_the_derivative_of_the_minimum(moved_line):
    found, slope = moved_line
    np.testing.assert_allclose(
        [found.value, found.multipliers.equality["line"][0], slope.value], [1.5, 2, 2], rtol=1e-12
    )
    got = [slope.params["x"], slope.params["y"][0], slope.multipliers.equality["line"][0]]
    np.testing.assert_allclose(got, [2 / 3, 1 / 3, 4 / 3], rtol=1e-12)


def disc(parameters):
    """Nearest point of a disc of a radius to a centre's right, in a half plane."""
    radius, least, slope = parameters
    return minimise_constrained(
        lambda p: (p[0] - 3) ** 2 + slope * (p[1] + 2) ** 2 + jnp.exp(0.1 * p[0] * p[1]),
        jnp.asarray([0.2, 0.3]),
        inequality=lambda p: radius**2 - p @ p,
        lower=jnp.stack([jnp.asarray(-9.0), least]),
    )


def test_derivatives_through_active_inequalities_are_those_of_differences():
    def solved(parameters):
        found = disc(parameters)
        return (found.params, found.multipliers, found.value), (found.multipliers, found.value, found.params)

    at, step = jnp.asarray([2.0, -0.5, 0.7]), 1e-5
    points = jnp.concatenate([at[None], at[None] + step * jnp.eye(3), at[None] - step * jnp.eye(3)])
    slopes, (multipliers, values, params) = jax.jit(jax.vmap(jax.jacrev(solved, has_aux=True)))(points)
    found = (params, multipliers, values)
    for one, leaf in zip(jax.tree.leaves(slopes), jax.tree.leaves(found), strict=True):
        difference = np.moveaxis((leaf[1:4] - leaf[4:]) / (2 * step), 0, -1)
        np.testing.assert_allclose(one[0], difference, rtol=1e-7, atol=1e-8)
    # The wall's price is per unit of its place, the disc's per unit by which the square of its radius is less.
    price, wall = multipliers.inequality[0], multipliers.lower[0]
    assert min(price, wall[1]) > 0.1
    assert wall[0] == 0
    np.testing.assert_allclose(slopes[2][0, :2], [-2 * 2.0 * price, wall[1]], rtol=1e-12)


def test_a_round_is_a_step_of_a_solver_like_any_other():
    solver = augmented_lagrangian(lambda p: p["a"] + p["b"] - 1, lambda p: p["a"] - 0.75, inner=lbfgs(), penalty=20.0)
    start = {"a": jnp.asarray(2.0), "b": jnp.asarray(0.0)}
    found = jax.jit(
        lambda start: minimise(lambda p: p["a"] ** 2 + p["b"] ** 2, start, solver, steps=40, tolerance=1e-7)
    )(start)
    assert found.verdict == STATUSES[CONVERGED]
    np.testing.assert_allclose([found.params["a"], found.params["b"]], [0.75, 0.25], atol=1e-6)
    # grad f = (1.5, 0.5) = 0.5 (1, 1) + 1 (1, 0)
    np.testing.assert_allclose(
        [found.state.multipliers.equality, found.state.multipliers.inequality], [0.5, 1.0], atol=1e-5
    )


def test_residuals_are_measured_at_any_point():
    @jax.jit
    def measure(point, multipliers):
        return kkt_residuals(
            lambda p: p @ p,
            point,
            multipliers,
            equality=lambda p: p[0] + p[1] - 1,
            inequality=lambda p: p[0],
            upper=2.0,
        )

    exact = measure(jnp.asarray([0.5, 0.5]), Multipliers(1.0, 0.0, upper=jnp.zeros(2)))
    assert exact == KKT(0, 0, 0, 0)
    wrong = measure(jnp.asarray([3.0, -1.0]), Multipliers(1.0, -0.5, upper=jnp.asarray([2.0, 0.0])))
    # grad f = (6, -2) against 1 (1, 1) - 0.5 (1, 0) + 2 (-1, 0); 3 exceeds 2 by 1; 2 (2 - 3) and -0.5 times 3.
    np.testing.assert_allclose(wrong, [7.5, 1.0, 2.0, 0.5])


def test_bad_arguments_are_refused_by_name():
    def run(start=2.0, **options):
        return minimise_constrained(lambda p: p**2, jnp.asarray(start), **options)

    for options, message in [
        ({"trace": ["gradient"]}, "trace: expected any of value, kkt, multipliers, params, got 'gradient'"),
        ({"penalty": 0.0}, r"penalty: expected a finite number in \(0, inf\), got 0.0"),
        ({"tolerance": -1.0}, r"tolerance: expected a finite number in \[0, inf\)"),
        ({"steps": -1}, "steps: expected a whole number"),
        ({"lower": {"a": 1.0}}, "lower: expected a number or a tree of the structure"),
        ({"upper": jnp.zeros(3)}, r"upper: expected the shape \(\), got \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(**options)
    with pytest.raises(TypeError, match=r"inequality: expected a function of floating-point .* c\(x\) >= 0, got bool"):
        run(inequality=lambda p: p > 0)
    with pytest.raises(TypeError, match="params: expected floating-point leaves, got int"):
        run(start=2)
    with pytest.raises(ValueError, match="penalty: expected"):
        augmented_lagrangian(penalty=-1.0)
