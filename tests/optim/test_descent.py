import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from calcdl.optim import OPTIMISERS, check_hyperparameters, descent, schedule

# Shifted and asymmetric: no coordinate's minimum is 0 and no two curvatures agree.
CURVATURE = {"w": np.array([1.0, 4.0, 0.25]), "m": np.array([[1.0, 3.0], [2.0, 0.5]])}
MINIMUM = {"w": np.array([-1.0, 3.0, 1.5]), "m": np.array([[1.0, 2.0], [-1.0, 0.5]])}
START = {"w": np.array([2.0, -1.0, 0.5]), "m": np.array([[0.3, 0.2], [0.1, -0.4]])}


def quadratic(dtype):
    curvature, minimum, start = (
        jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree) for tree in (CURVATURE, MINIMUM, START)
    )

    def objective(params):
        terms = jax.tree.map(lambda p, m, c: jnp.sum(c * (p - m) ** 2) / 2, params, minimum, curvature)
        return sum(jax.tree.leaves(terms))

    return objective, start


def run(optimiser, learning_rate, steps, dtype=jnp.float64, **others):
    objective, params = quadratic(dtype)
    solver = descent(optimiser, learning_rate, **others)

    def advance(carry, _):
        params, state, info = solver.step(objective, *carry)
        return (params, state), info.value

    (params, state), values = jax.lax.scan(advance, (params, solver.init(params)), None, length=steps)
    return params, state, values


def reference(optimiser, learning_rate, steps, **hyperparameters):
    """Optax's own loop."""
    rule = (
        {
            "momentum": optax.sgd,
            "nesterov": partial(optax.sgd, nesterov=True),
            "optimistic_adam": optax.optimistic_adam_v2,
            "polyak_sgd": lambda rate, **others: optax.polyak_sgd(rate, **others),
            "rmsprop_momentum": optax.rmsprop,
            "prodigy": lambda rate, b1, b2, **others: optax.contrib.prodigy(rate, betas=(b1, b2), **others),
        }.get(optimiser)
        or getattr(optax, optimiser, None)
        or getattr(optax.contrib, optimiser)
    )
    transformation = optax.with_extra_args_support(rule(learning_rate, **hyperparameters))
    objective, params = quadratic(jnp.float64)
    state = transformation.init(params)
    for _ in range(steps):
        value, gradient = jax.value_and_grad(objective)(params)
        update, state = transformation.update(gradient, state, params, value=value)
        params = optax.apply_updates(params, update)
    return params


@pytest.mark.parametrize("name", OPTIMISERS)
def test_with_all_numbers_traced_it_is_optax(name):
    fields = {field: value.default for field, value in OPTIMISERS[name].hyperparameters.items()}
    # Not the defaults, so that two fields changed for one another are seen.
    others = {field: value * 0.97**place for place, (field, value) in enumerate(fields.items(), start=1)}
    ours, theirs = jax.jit(lambda rate, others: (run(name, rate, 2, **others)[0], reference(name, rate, 2, **others)))(
        jnp.float64(1e-2), others
    )
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


def dtypes_made(jaxpr):
    """Collect the dtypes that the equations of a program make, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.dtype for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from dtypes_made(inner)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_step_with_all_options_keeps_dtypes_and_structure_and_is_not_widened_by_x64(name):
    objective, params = quadratic(jnp.bfloat16)
    options = {"clip_norm": 1.0, "weight_decay": 0.1}
    if OPTIMISERS[name].scheduled:
        options["schedule"] = schedule("cosine", steps=10)

    def step(rate, params, state):
        return descent(name, rate, **options).step(objective, params, state)

    state = descent(name, 0.01, **options).init(params)
    program, (moved, after, info) = jax.make_jaxpr(step, return_shape=True)(jnp.float32(0.01), params, state)
    assert jnp.float64 not in set(dtypes_made(program.jaxpr))
    described = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)
        for tree in (moved, info.gradient, info.update)
    ]
    assert described == [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, False), params)] * 3
    # What a scan and a jit that is called again ask for: what goes out could go in.
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), state
    )
    assert (info.value.shape, info.value.dtype) == ((), jnp.bfloat16)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_defaults_are_those_of_optax(name):
    rule = OPTIMISERS[name]
    if name in ("prodigy", "sm3", "polyak_sgd", "momentum", "nesterov", "rmsprop_momentum", "signum"):
        return
    signature = inspect.signature(rule.build).parameters
    for field, value in rule.hyperparameters.items():
        assert signature[field].default == value.default, field


@pytest.mark.parametrize("name", OPTIMISERS)
def test_bad_hyperparameters_are_refused_by_field(name):
    for rate in (None, True, "0.1"):
        with pytest.raises(TypeError, match="learning_rate: expected a finite number"):
            descent(name, rate)
    for rate in (0, 0.0, -0.1, float("inf"), float("nan"), np.float64(0), jnp.float32(-1)):
        with pytest.raises(ValueError, match=r"learning_rate: expected a finite number in \(0, inf\)"):
            descent(name, rate)
    for field, value in OPTIMISERS[name].hyperparameters.items():
        lower, upper = (float(end) for end in value.bounds[1:-1].split(","))
        below = [lower - 1e-6] if np.isfinite(lower) else []
        above = [upper + 1e-6] if np.isfinite(upper) else []
        ends = [lower] * (value.bounds[0] == "(") + [upper] * (value.bounds[-1] == ")")
        for bad in (*below, *above, *ends, float("nan")):
            with pytest.raises(ValueError, match=f"{field}: expected a finite number"):
                check_hyperparameters(name, {field: bad})
            with pytest.raises(ValueError, match=f"{field}: expected a finite number"):
                descent(name, 0.1, **{field: bad})
        check_hyperparameters(name, {field: value.default})
    with pytest.raises(
        ValueError, match=f"optimiser {name}: no hyperparameter 'learningrate'.* did you mean 'learning_rate'"
    ):
        check_hyperparameters(name, {"learningrate": 0.1})


def test_names_and_shapes_are_refused():
    with pytest.raises(ValueError, match=r"optimiser: expected one of sgd, .*, got 'Adam'; did you mean 'adam'\?"):
        descent("Adam", 0.1)
    with pytest.raises(ValueError, match=r"optimiser adam: no hyperparameter 'beta1'"):
        descent("adam", 0.1, beta1=0.9)
    with pytest.raises(ValueError, match=r"b2: expected a finite number in \[0, 1\), got 1"):
        descent("adam", 0.1, b2=1)
    with pytest.raises(
        ValueError, match=r"learning_rate: expected a scalar, got shape \(2,\); map over it by jax.vmap"
    ):
        descent("adam", jnp.asarray([0.1, 0.2]))
    with pytest.raises(ValueError, match="weight_decay: expected a finite number"):
        descent("sgd", 0.1, weight_decay=-1.0)
    with pytest.raises(ValueError, match="clip_norm: expected a finite number"):
        descent("sgd", 0.1, clip_norm=0.0)
    with pytest.raises(ValueError, match="schedule: rprop sets its own rate"):
        descent("rprop", 0.1, schedule=schedule("cosine", steps=10))


def test_values_that_round_to_a_forbidden_end_are_refused():
    solver = descent("adam", 0.1, b2=1 - 1e-9)
    solver.init(jnp.float64(1))
    with pytest.raises(ValueError, match=r"b2: expected a finite number in \[0, 1\), got 1.0"):
        solver.init(jnp.float32(1))
    with pytest.raises(ValueError, match="learning_rate: expected a finite number"):
        descent("sgd", 1e-60).init(jnp.float32(1))


def test_info_holds_value_gradient_and_update_of_the_step():
    objective, params = quadratic(jnp.float64)
    solver = descent("momentum", 0.1, clip_value=0.5)
    moved, _, info = solver.step(objective, params, solver.init(params))
    assert info.value == objective(params)
    for leaf, slope in zip(jax.tree.leaves(info.gradient), jax.tree.leaves(jax.grad(objective)(params)), strict=True):
        np.testing.assert_array_equal(leaf, slope)
    for before, after, update in zip(*map(jax.tree.leaves, (params, moved, info.update)), strict=True):
        np.testing.assert_array_equal(before + update, after)
        assert jnp.abs(update).max() <= 0.05 + 1e-15


def first_update(optimiser, gradient, start=0.0, **others):
    params = jnp.full(len(gradient), start, jnp.float64)
    solver = descent(optimiser, 0.01, **others)
    return solver.step(lambda p: jnp.sum(jnp.asarray(gradient) * p), params, solver.init(params))[2].update


@pytest.mark.parametrize(
    ("name", "others", "record"),
    [
        ("sgd", {}, "sgd"),
        ("adam", {}, "adam_eps1e8"),
        ("rmsprop", {"eps": 1e-30}, "rmsprop"),
        ("adagrad", {"initial_accumulator_value": 0.0, "eps": 1e-30}, "adagrad"),
    ],
)
def test_first_steps_are_those_of_theory(truths, name, others, record):
    truth = truths("dl_theory.json")["adaptive_first_step"]
    np.testing.assert_allclose(first_update(name, truth["g"], **others), truth[record], rtol=1e-9)


def test_trajectories_are_those_of_the_record(truths):
    def rosenbrock(p):
        return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2

    for record in truths("extras.json")["optax_trajectories"]["runs"]:
        assert record["function"] == "rosenbrock"
        solver = descent(record["optimizer"].removesuffix("_0.9"), **record["optax_kwargs"])

        def advance(carry, _, solver=solver):
            params, state, _ = solver.step(rosenbrock, *carry)
            return (params, state), params

        params = jnp.asarray(record["x0"], jnp.float64)
        path = jax.lax.scan(advance, (params, solver.init(params)), None, length=100)[1]
        for step, point in record["x"].items():
            if int(step) <= min(100, record["max_reliable_step"]):
                np.testing.assert_allclose(path[int(step) - 1], point, rtol=1e-12)


def test_clipping_by_value_comes_before_clipping_by_norm():
    gradient = [3.0, -4.0, 0.1]
    np.testing.assert_allclose(first_update("sgd", gradient, clip_value=1.0), [-0.01, 0.01, -0.001])
    norm = np.linalg.norm(gradient)
    np.testing.assert_allclose(first_update("sgd", gradient, clip_norm=0.5), -0.01 * 0.5 * np.array(gradient) / norm)
    np.testing.assert_allclose(first_update("sgd", gradient, clip_norm=6.0), -0.01 * np.array(gradient))
    both = np.array([1.0, -1.0, 0.1])
    np.testing.assert_allclose(
        first_update("sgd", gradient, clip_value=1.0, clip_norm=0.5), -0.005 * both / np.linalg.norm(both)
    )


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_clipping_by_norm_survives_extreme_gradients_and_is_differentiable(size):
    gradient = jnp.asarray([size, -size], jnp.float32)

    def moved(factor):
        params = jnp.zeros(2, jnp.float32)
        solver = descent("sgd", 0.5, clip_norm=1.0)
        return jnp.sum(solver.step(lambda p: jnp.sum(gradient * factor * p), params, solver.init(params))[2].update[:1])

    expected = {0.0: 0.0, 1e-30: -0.5e-30, 1e30: -(0.5**1.5)}[size]
    assert float(moved(jnp.float32(1))) == pytest.approx(expected, rel=1e-6)
    assert jnp.isfinite(jax.grad(moved)(jnp.float32(1)))


def test_a_gradient_that_is_not_finite_is_not_hidden_by_clipping():
    assert not np.isfinite(first_update("sgd", [np.inf, 1.0], clip_norm=1.0)).all()
    assert not np.isfinite(first_update("sgd", [np.nan, 1.0], clip_norm=1.0)).all()


def test_weight_decay_is_decoupled_where_the_optimiser_has_none():
    gradient = [0.5, -2.0]
    plain = first_update("adam", gradient, start=3.0)
    decayed = first_update("adam", gradient, start=3.0, weight_decay=0.1)
    np.testing.assert_allclose(decayed - plain, -0.01 * 0.1 * 3.0, rtol=1e-12)
    np.testing.assert_allclose(decayed, first_update("adamw", gradient, start=3.0, weight_decay=0.1), rtol=1e-14)
    np.testing.assert_array_equal(first_update("adam", gradient, start=3.0, weight_decay=0.0), plain)


@pytest.mark.parametrize("weight_decay", [None, 0.2])
def test_a_schedule_multiplies_the_rate_step_by_step(weight_decay):
    halving = schedule("step", every=1, factor=0.5)
    params = jnp.asarray([3.0], jnp.float64)
    solver = descent("sgd", 0.1, schedule=halving, weight_decay=weight_decay)
    state, rates = solver.init(params), []
    for _ in range(3):
        before = params
        params, state, info = solver.step(lambda p: jnp.sum(2 * p), params, state)
        rates.append(float(info.update[0] / -(2 + (weight_decay or 0.0) * before[0])))
    np.testing.assert_allclose(rates, [0.1, 0.05, 0.025], rtol=1e-12)


def test_half_precision_is_updated_in_float32():
    # In bfloat16 arithmetic b2 = 0.999 rounds to 1 and the second moment never forgets.
    _, state, _ = run("adam", 0.01, 3, jnp.bfloat16)
    moments = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in moments} == {jnp.dtype(jnp.float32)}
    wide, half = (run("adam", 0.1, 100, dtype)[2][-1] for dtype in (jnp.float32, jnp.bfloat16))
    assert abs(float(half) - float(wide)) < 0.05


def test_leaves_of_two_dtypes_keep_theirs():
    params = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float64)}
    solver = descent("adam", 0.1)
    step = partial(solver.step, lambda p: jnp.sum(p["a"].astype(jnp.float64) * p["b"]))
    carry = (params, solver.init(params))
    (moved, _), _ = jax.lax.scan(lambda carry, _: (step(*carry)[:2], None), carry, None, length=3)
    assert (moved["a"].dtype, moved["b"].dtype) == (jnp.float32, jnp.float64)


def test_the_learning_rate_is_differentiable_through_a_run():
    # On x^2/2 from 1, x_k = (1 - rate)^k, so d/drate of x_3^2/2 is -3 (1 - rate)^5.
    def final(rate):
        solver = descent("sgd", rate)
        params = jnp.float64(1)
        state = solver.init(params)
        for _ in range(3):
            params, state, _ = solver.step(lambda p: p**2 / 2, params, state)
        return params**2 / 2

    assert float(jax.grad(final)(0.3)) == pytest.approx(-3 * 0.7**5, rel=1e-13)


def test_optax_itself_would_climb_without_a_rate_and_break_with_b2_of_1():
    # The reason for the checks: both are accepted there.
    update, _ = optax.scale_by_learning_rate(None).update({"p": jnp.ones(1)}, optax.EmptyState())
    assert update["p"][0] != -1
    rule = optax.adam(0.1, b2=1.0)
    update, _ = rule.update(jnp.ones(1), rule.init(jnp.ones(1)))
    assert not jnp.isfinite(update).all()
