import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim import alternating, descent, frozen, minimise, newton
from calcdl.optim.solver import CONVERGED, RUNNING, STALLED, Solver

MATRIX = jnp.array([[3.0, 1.0, 0.5], [1.0, 2.0, -0.4], [0.5, -0.4, 1.5]])
TARGET = jnp.array([1.0, -2.0, 0.5])
START = {"first": jnp.zeros(2), "last": jnp.zeros(1)}


def quadratic(params):
    x = jnp.concatenate([params["first"], params["last"]])
    return x @ MATRIX @ x / 2 - TARGET @ x


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_step_is_a_step_of_each_from_where_the_last_one_left(name):
    parts = [frozen(descent(name, 0.1), ["last"]), frozen(descent(name, 0.3), ["first"])]
    turns = alternating(*parts)
    state, params = turns.init(START), START
    by_hand, states = START, [part.init(START) for part in parts]
    for _ in range(3):
        params, state, info = jax.jit(lambda p, s: turns.step(quadratic, p, s))(params, state)
        before, slopes = by_hand, []
        for place, part in enumerate(parts):
            slopes.append(jax.grad(quadratic)(by_hand))
            by_hand, states[place], _ = part.step(quadratic, by_hand, states[place])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), params, by_hand)
        np.testing.assert_allclose(info.gradient["first"], slopes[0]["first"], rtol=1e-13)
        np.testing.assert_allclose(info.gradient["last"], slopes[1]["last"], rtol=1e-13)
        np.testing.assert_allclose(info.update["last"], by_hand["last"] - before["last"], rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(info.value, quadratic(before), rtol=1e-13)


def test_block_coordinate_descent_arrives():
    turns = alternating(frozen(newton(), ["last"]), frozen(newton(), ["first"]))
    found = jax.jit(lambda start: minimise(quadratic, start, turns, steps=200, tolerance=1e-8))(START)
    assert found.status == CONVERGED
    np.testing.assert_allclose(
        jnp.concatenate([found.params["first"], found.params["last"]]), jnp.linalg.solve(MATRIX, TARGET), rtol=1e-7
    )


def test_it_goes_on_while_one_of_them_can():
    rests = Solver(
        lambda params: (),
        lambda objective, params, state: (
            params, state, descent("sgd", 1.0).step(objective, params, descent("sgd", 1.0).init(params))[2]._replace(
                status=jnp.int32(STALLED)))
    )  # fmt: skip
    moves = descent("sgd", 0.1)
    for solvers, status in (((rests, moves), RUNNING), ((moves, rests), RUNNING), ((rests, rests), STALLED)):
        turns = alternating(*solvers)
        assert int(turns.step(quadratic, START, turns.init(START))[2].status) == status


def test_simultaneous_and_alternating_moves_of_a_game_differ_as_they_should():
    # min over a, max over b of a b: at once it spirals out by sqrt(1 + h^2) a step, in turn it stays on an ellipse.
    def game(p):
        return p["a"] * jax.lax.stop_gradient(p["b"]) - jax.lax.stop_gradient(p["a"]) * p["b"]

    start, rate = {"a": jnp.array(1.0), "b": jnp.array(0.0)}, 0.1
    at_once, in_turn = (
        minimise(game, start, solver, steps=500, tolerance=0.0).params
        for solver in (
            descent("sgd", rate),
            alternating(frozen(descent("sgd", rate), ["b"]), frozen(descent("sgd", rate), ["a"])),
        )
    )
    np.testing.assert_allclose(at_once["a"] ** 2 + at_once["b"] ** 2, (1 + rate**2) ** 500, rtol=1e-10)
    invariant = in_turn["a"] ** 2 + in_turn["b"] ** 2 - rate * in_turn["a"] * in_turn["b"]
    np.testing.assert_allclose(invariant, 1.0, rtol=1e-10)


def test_no_solver_is_refused():
    with pytest.raises(ValueError, match="solvers: expected at least one"):
        alternating()
