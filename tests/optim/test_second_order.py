import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CLASSICS, RESIDUALS, himmelblau, is_solved

from calcdl.optim.nonlinear_least_squares import SumOfSquares, levenberg_marquardt
from calcdl.optim.quasi_newton import bfgs
from calcdl.optim.second_order import CURVATURES, SOLVES, newton
from calcdl.optim.solver import CONVERGED, LINE_SEARCH_FAILED, NON_FINITE, STALLED, minimise

SOLVERS = {"levenberg_marquardt": levenberg_marquardt, "bfgs": lambda _: bfgs(), "newton": lambda _: newton()}


def test_problems_agree_with_the_values_on_record(truths):
    records = {record["name"]: record for record in truths("mgh.json")["problems"]}
    assert set(records) == set(RESIDUALS)
    starts = {name: jnp.array(record["x0"], float) for name, record in records.items()}
    found = jax.jit(lambda starts: {name: SumOfSquares(RESIDUALS[name])(x) for name, x in starts.items()})(starts)
    for name, record in records.items():
        np.testing.assert_allclose(2 * found[name], record["f_x0"], rtol=1e-13)
    records = {record["name"]: record for record in truths("classics.json")["functions"]}
    assert set(records) == set(CLASSICS)
    starts = {name: jnp.array(record["x0"], float) for name, record in records.items()}
    found = jax.jit(lambda starts: {name: jax.value_and_grad(CLASSICS[name])(x) for name, x in starts.items()})(starts)
    for name, record in records.items():
        value, slope = found[name]
        np.testing.assert_allclose(value, record["f_x0"], rtol=1e-13)
        np.testing.assert_allclose(slope, record["grad_x0"], rtol=1e-12, atol=1e-14)


def padded(function, n, rows, columns):
    """Write residuals of n parameters as `rows` residuals of `columns`: those beyond are their own residuals."""

    def residuals(x):
        found = function(x[:n])
        return jnp.concatenate([found, x[n:], jnp.zeros(rows - found.size - columns + n, x.dtype)])

    return residuals


# One program for each solver, which chooses among the problems: one for each problem would take minutes to compile.
@pytest.mark.parametrize("solver", SOLVERS)
def test_more_garbow_hillstrom_from_the_standard_starts(truths, solver):
    # Newton solves all sixteen too; its program of the larger ones takes half a minute to compile.
    records = [one for one in truths("mgh.json")["problems"] if solver != "newton" or one["n"] <= 3]
    columns = max(record["n"] for record in records)
    rows = max(record["m"] - record["n"] for record in records) + columns
    branches = [padded(RESIDUALS[record["name"]], record["n"], rows, columns) for record in records]

    def solve(job):
        which, x = job

        def residuals(x):
            return jax.lax.switch(which, branches, x)

        found = minimise(SumOfSquares(residuals), x, SOLVERS[solver](residuals), steps=500, tolerance=0.0)
        return found.params, 2 * found.value

    starts = np.array([record["x0"] + [0.0] * (columns - record["n"]) for record in records])
    points, values = jax.jit(lambda jobs: jax.lax.map(solve, jobs))((np.arange(len(records)), starts))
    for record, x, value in zip(records, np.asarray(points), np.asarray(values), strict=True):
        assert is_solved(record, x[: record["n"]], value), (record["name"], x, value)


def test_where_newton_goes_depends_on_what_is_done_about_the_curvature(truths):
    record = next(one for one in truths("classics.json")["critical_points"] if one["name"] == "himmelblau")
    saddles = np.array([point["x"] for point in record["points"] if point["kind"] == "saddle"])
    minima = np.array([point["x"] for point in record["points"] if point["kind"] == "minimum"])
    starts = jnp.array([*(saddles + 0.15), [1.0, 1.0]])
    for curvature in CURVATURES:
        solver = newton(curvature=curvature)
        found = jax.jit(jax.vmap(lambda x, solver=solver: minimise(himmelblau, x, solver, steps=60)))(starts)
        assert np.all(np.asarray(found.status) == CONVERGED)
        near = np.abs(np.asarray(found.params)[:4, None] - (saddles if curvature == "raw" else minima)).max(-1)
        assert np.all(near.min(1) < 1e-7), curvature


@pytest.mark.parametrize("solve", SOLVES)
def test_trees_of_any_dtype_keep_structure_and_dtype(solve):
    def bowl(params):
        square = jnp.sum((params["a"] - 3) ** 2 * jnp.array([1.0, 9.0], params["a"].dtype))
        return square.astype(jnp.float32) + (params["b"] + 1).astype(jnp.float32) ** 4

    start = {"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros((), jnp.float32)}
    found = jax.jit(lambda start: minimise(bowl, start, newton(solve=solve), steps=25))(start)
    assert {name: leaf.dtype for name, leaf in found.params.items()} == {"a": jnp.bfloat16, "b": jnp.float32}
    assert int(found.status) in (CONVERGED, STALLED)
    np.testing.assert_allclose(found.params["a"].astype(float), 3, rtol=1e-2)


MATRIX = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 2.0]])
OFFSET = np.array([1.0, -2.0, 0.5])


def bowl(x):
    return x @ MATRIX @ x / 2 - OFFSET @ x


@pytest.mark.parametrize("curvature", CURVATURES)
def test_one_step_solves_a_quadratic(curvature):
    solver, x = newton(curvature=curvature), jnp.array([5.0, -7.0, 2.0])
    moved, _, info = jax.jit(lambda x: solver.step(bowl, x, solver.init(x)))(x)
    np.testing.assert_allclose(info.gradient, MATRIX @ x - OFFSET, rtol=1e-12)
    np.testing.assert_allclose(info.update, moved - x, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(moved, jnp.linalg.solve(MATRIX, OFFSET), rtol=1e-10)


def test_conjugate_gradients_solve_a_quadratic_to_the_end():
    found = jax.jit(lambda x: minimise(bowl, x, newton(solve="cg"), steps=20))(jnp.array([5.0, -7.0, 2.0]))
    assert int(found.status) == CONVERGED
    assert int(found.steps) < 8
    np.testing.assert_allclose(found.params, jnp.linalg.solve(MATRIX, OFFSET), rtol=1e-7)


def test_endings_are_told_apart():
    wrong = jax.custom_jvp(lambda x: x**2)
    wrong.defjvp(lambda primals, tangents: (primals[0] ** 2, -2 * primals[0] * tangents[0] + 0 * primals[0] ** 3))
    runs = {
        LINE_SEARCH_FAILED: (wrong, 3.0, newton(curvature="absolute")),
        STALLED: (lambda x: 1e6 + (x - 0.1) ** 4 + 0.31 * (x - 0.7) ** 4 + 0.7 * (x - 1.9) ** 4, 2.1, newton()),
        NON_FINITE: (lambda x: x, 3.0, newton(curvature="raw")),
    }
    for status, (f, start, solver) in runs.items():
        run = jax.jit(lambda x, f=f, solver=solver: minimise(f, x, solver, steps=20, tolerance=0.0).status)
        assert int(run(jnp.float32(start))) == status


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"solve": "lu"}, "solve: expected one of cholesky, cg"),
        ({"curvature": "abs"}, "curvature: expected one of shift, absolute, raw"),
        ({"solve": "cg", "curvature": "raw"}, "curvature: expected shift where solve is cg"),
        ({"curvature": "raw", "line_search": True}, "line_search: expected False where curvature is raw"),
        ({"damping": -1.0}, "damping: expected a finite number"),
        ({"cg_steps": 0}, "cg_steps: expected a whole number"),
    ],
)
def test_bad_options_are_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        newton(**options)


def test_damping_shortens_the_step_and_may_be_mapped_over():
    def first(damping):
        solver, x = newton(damping=damping, line_search=False), jnp.float64(3.0)
        return solver.step(lambda x: x**2, x, solver.init(x))[0]

    np.testing.assert_allclose(jax.jit(jax.vmap(first))(jnp.array([0.0, 2.0])), [0.0, 1.5], atol=1e-15)


def test_classics_end_at_a_known_minimum(truths):
    told = truths("classics.json")
    records = {record["name"]: record for record in told["functions"]}
    others = {one["name"]: [at for at in one["points"] if at["kind"] == "minimum"] for one in told["critical_points"]}
    names = [name for name, record in records.items() if record["global_minima"] and name != "rastrigin_5"]

    def objective(x, index):
        # One program for all: what a function does not use is drawn to 0.
        return jax.lax.switch(index, [
            lambda x, f=CLASSICS[name], n=records[name]["n"]: f(x[:n]) + jnp.sum(x[n:] ** 2) for name in names
        ], x)  # fmt: skip

    starts = jnp.stack(
        [jnp.pad(jnp.asarray(records[name]["x0"], float), (0, 4 - records[name]["n"])) for name in names]
    )
    found = jax.jit(jax.vmap(lambda x, index: minimise(lambda x: objective(x, index), x, bfgs(), steps=300)))(
        starts, jnp.arange(len(names))
    )
    for lane, name in enumerate(names):
        record, x = records[name], np.asarray(found.params[lane])[: records[name]["n"]]
        known = [{"x": place, "f": record["f_star"]} for place in record["global_minima"]]
        known += [*record["local_minima"], *others.get(name, [])]
        reached = min(known, key=lambda one, x=x: np.abs(np.array(one["x"]) - x).max())
        np.testing.assert_allclose(x, reached["x"], rtol=1e-6, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found.value[lane], reached["f"], rtol=1e-8, atol=1e-8, err_msg=name)


def test_critical_points_have_the_index_on_record(truths):
    for record in truths("classics.json")["critical_points"]:
        points = jnp.asarray([point["x"] for point in record["points"]])
        f = CLASSICS[record["name"]]
        slopes, bends = jax.jit(lambda x, f=f: (jax.vmap(jax.grad(f))(x), jax.vmap(jax.hessian(f))(x)))(points)
        sizes = np.linalg.eigvalsh(bends)
        np.testing.assert_allclose(slopes, 0, atol=1e-11)
        np.testing.assert_allclose(sizes, [point["hess_eigs"] for point in record["points"]], rtol=1e-9)
        assert list((sizes < 0).sum(axis=1)) == [point["index"] for point in record["points"]]
