from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim import descent, lbfgs, minimise, steepest_descent
from calcdl.optim.solver import (
    CONVERGED,
    DIVERGED,
    LINE_SEARCH_FAILED,
    NON_FINITE,
    STALLED,
    STATUSES,
    STEP_LIMIT,
    Info,
    Solver,
)


def square(x):
    return jnp.sum(x**2)


@jax.custom_jvp
def lying(x):
    """A square whose derivative has the wrong sign."""
    return jnp.sum(x**2)


lying.defjvp(lambda primals, tangents: (square(*primals), -2 * jnp.sum(primals[0] * tangents[0])))


def test_descent_on_a_square_is_the_one_of_the_textbook():
    found = minimise(square, jnp.float64(3.0), descent("sgd", 0.1), steps=20, trace=["value", "params"])
    np.testing.assert_allclose(found.trace.value, 9 * 0.64 ** np.arange(21), rtol=1e-12)
    np.testing.assert_allclose(found.trace.params, 3 * 0.8 ** np.arange(21), rtol=1e-12)
    assert found.trace.gradient_norm is None
    assert (int(found.status), int(found.steps)) == (STEP_LIMIT, 20)
    assert found.verdict.startswith("step limit: ")
    assert found.value == square(found.params)


@pytest.mark.parametrize("trace", [(), ("value", "gradient_norm")])
def test_it_ends_where_the_gradient_is_within_the_tolerance(trace):
    found = minimise(square, jnp.float64(3.0), descent("sgd", 0.1), steps=200, tolerance=1e-3, trace=trace)
    # |g_k| = 6 * 0.8^k is below 1e-3 from k = 39 on.
    assert (int(found.status), int(found.steps)) == (CONVERGED, 39)
    np.testing.assert_allclose(found.params, 3 * 0.8**39, rtol=1e-12)
    if trace:
        np.testing.assert_array_equal(found.trace.value[39:], found.value)
        np.testing.assert_allclose(found.trace.gradient_norm[:40], 6 * 0.8 ** np.arange(40), rtol=1e-12)


@pytest.mark.parametrize(
    ("objective", "start", "solver", "status"),
    [
        (square, 3.0, descent("sgd", 1.5), DIVERGED),
        (lambda x: x**3, -1.0, descent("sgd", 0.1), DIVERGED),
        (lambda x: x - jnp.log(x), 0.1, descent("sgd", 0.02), STEP_LIMIT),
        (lambda x: jnp.sqrt(x), 0.01, descent("sgd", 1.0), NON_FINITE),
        (lambda x: jnp.log(x), -1.0, descent("sgd", 1.0), NON_FINITE),
        (lambda x: 1e8 + 3 * (x - 0.1) ** 2, 3.0, steepest_descent(line_search="backtracking"), STALLED),
        (lying, 3.0, lbfgs(), LINE_SEARCH_FAILED),
    ],
)
def test_how_it_ends_is_said(objective, start, solver, status):
    found = minimise(objective, jnp.float64(start), solver, steps=40, tolerance=0.0)
    assert int(found.status) == status
    assert found.verdict == STATUSES[status]
    assert jnp.isfinite(found.params)
    if jnp.isfinite(objective(jnp.float64(start))):
        assert found.value == objective(found.params)


def test_the_last_finite_parameters_are_kept():
    found = minimise(jnp.sqrt, jnp.float64(0.01), descent("sgd", 1.0), steps=40, trace=["value"])
    assert (float(found.params), int(found.steps)) == (0.01, 0)
    np.testing.assert_array_equal(found.trace.value, np.full(41, 0.1))


def test_no_steps_only_look_at_the_start():
    found = minimise(square, jnp.float32(3.0), descent("sgd", 0.1), steps=0)
    assert (float(found.params), float(found.value), float(found.gradient_norm), int(found.steps)) == (3, 9, 6, 0)


def test_lanes_end_each_in_its_own_way_and_keep_their_numbers():
    def ended(rate, trace=()):
        return minimise(square, jnp.float64(3.0), descent("sgd", rate), steps=200, tolerance=1e-6, trace=trace)

    rates = jnp.array([0.01, 0.3, 0.5, 1.5])
    found = jax.jit(jax.vmap(ended))(rates)
    np.testing.assert_array_equal(found.status, [STEP_LIMIT, CONVERGED, CONVERGED, DIVERGED])
    assert found.steps[2] == 1
    for lane, rate in enumerate(rates):
        alone = ended(rate)
        np.testing.assert_allclose(found.params[lane], alone.params, rtol=1e-12)
        assert found.steps[lane] == alone.steps
    traced = jax.jit(jax.vmap(partial(ended, trace=("value",))))(rates)
    np.testing.assert_allclose(traced.value, found.value, rtol=1e-12)


def test_a_traced_run_is_differentiable_backwards():
    def end(rate):
        return minimise(square, jnp.float64(3.0), descent("sgd", rate), steps=3, tolerance=0.0, trace=["value"]).value

    # 9 (1 - 2 r)^6, whose derivative is -108 (1 - 2 r)^5.
    assert float(jax.grad(end)(0.1)) == pytest.approx(-108 * 0.8**5, rel=1e-12)


def test_what_a_solver_says_of_itself_ends_the_run():
    def step(objective, params, state):
        value, gradient = jax.value_and_grad(objective)(params)
        info = Info(value, gradient, -gradient / 4, jnp.where(state == 3, jnp.int32(STALLED), jnp.int32(-1)))
        return params - gradient / 4, state + 1, info

    found = minimise(square, jnp.float64(1.0), Solver(lambda _: jnp.int32(0), step), steps=10)
    assert (int(found.status), int(found.steps), float(found.params)) == (STALLED, 3, 0.125)
    assert found.state == 3


def test_bad_arguments_are_refused():
    run = partial(minimise, square, jnp.float32(1.0), descent("sgd", 0.1))
    for steps in (-1, 2.0, True):
        with pytest.raises(ValueError, match="steps: expected a whole number"):
            run(steps=steps)
    for tolerance in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="tolerance: expected a number of at least 0"):
            run(steps=1, tolerance=tolerance)
    with pytest.raises(ValueError, match="trace: expected any of value, gradient_norm, params, got 'loss'"):
        run(steps=1, trace=["loss"])
