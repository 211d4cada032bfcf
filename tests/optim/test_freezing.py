import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from calcdl.optim import descent, frozen, lbfgs, minimise
from calcdl.optim.solver import CONVERGED

START = {"first": {"weight": jnp.array([1.0, 2.0]), "bias": jnp.array(0.5)}, "last": {"weight": jnp.array([3.0, -1.0])}}


def objective(params):
    first, last = params["first"], params["last"]
    return jnp.sum((first["weight"] * last["weight"] + first["bias"]) ** 2) + jnp.sum(last["weight"] ** 4)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_the_rest_moves_as_in_an_objective_of_its_own(name):
    solver = frozen(descent(name, 0.01), ["first.*"])
    found = jax.jit(lambda start: minimise(objective, start, solver, steps=20))(START)
    alone = minimise(
        lambda last: objective({"first": START["first"], "last": last}), START["last"], descent(name, 0.01), steps=20
    )
    np.testing.assert_allclose(found.params["last"]["weight"], alone.params["weight"], rtol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, found.params["first"], START["first"])
    assert len(jax.tree.leaves(found.state)) == len(jax.tree.leaves(alone.state))


def test_it_arrives_with_a_line_search_and_its_gradient_is_that_of_the_rest():
    found = minimise(objective, START, frozen(lbfgs(), ["*.bias", "last.*"]), steps=50, tolerance=1e-9)
    assert found.status == CONVERGED
    np.testing.assert_allclose(found.params["first"]["weight"] * START["last"]["weight"], [-0.5, -0.5], rtol=1e-7)


def test_info_tells_of_zeros_where_nothing_moves():
    solver = frozen(descent("sgd", 0.1), ["first.bias"])
    _, _, info = solver.step(objective, START, solver.init(START))
    gradient = jax.grad(objective)(START)
    assert float(info.gradient["first"]["bias"]) == float(info.update["first"]["bias"]) == 0
    np.testing.assert_allclose(info.gradient["last"]["weight"], gradient["last"]["weight"], rtol=1e-14)
    np.testing.assert_allclose(optax.tree.scale(-0.1, gradient["first"]["weight"]), info.update["first"]["weight"])


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("first.*", "expected a list of names"),
        ([], "expected a list of names"),
        (["frist.*"], "'frist.*' matches no parameter; there are: first.bias, first.weight, last.weight"),
        (["*"], "all of them frozen"),
    ],
)
def test_bad_patterns_are_named(patterns, message):
    with pytest.raises(ValueError, match="patterns: ") as error:
        frozen(descent("sgd", 0.1), patterns).init(START)
    assert message in str(error.value)
