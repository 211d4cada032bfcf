import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim import alternating, descent, extragradient, frozen
from calcdl.theory import stability
from calcdl.theory.games import as_objective, field, fitted_step, last_between, leading, step_matrix

RATE = 0.3
# Two players with a vector and a number, of losses that are not opposed, with their equilibrium at 0.
CURVE, PULL, BACK = jnp.array([[2.0, 0.5], [0.5, 1.0]]), jnp.array([1.0, -2.0]), jnp.array([0.5, 1.5])
LOSSES = {
    "one": lambda p: p["one"] @ CURVE @ p["one"] / 2 + p["two"] * (PULL @ p["one"]) + p["two"] ** 3,
    "two": lambda p: 0.4 * p["two"] ** 2 - p["two"] * (BACK @ p["one"]),
}
JACOBIAN = np.block([[-np.asarray(CURVE), -np.asarray(PULL)[:, None]], [np.asarray(BACK)[None], np.array([[-0.8]])]])
REST = {"one": jnp.zeros(2), "two": jnp.zeros(())}


def at_rest(solver):
    game = as_objective(LOSSES)

    @jax.jit
    def matrix():
        settled = solver.step(game, REST, solver.init(REST))[:2]
        return step_matrix(lambda params, state: solver.step(game, params, state)[:2], *settled)

    return np.asarray(matrix())


def test_the_field_is_minus_each_players_own_slope():
    params = {"one": jnp.array([1.0, -1.0]), "two": jnp.array(0.5)}
    v = jax.jit(field(LOSSES))(params)
    np.testing.assert_allclose(v["one"], -(CURVE @ params["one"] + 0.5 * PULL), rtol=1e-14)
    np.testing.assert_allclose(v["two"], -(0.8 * 0.5 - BACK @ params["one"]), rtol=1e-14)
    with pytest.raises(ValueError, match=r"expected one for each of the players \['one', 'two'\], got \['one'\]"):
        field({"one": LOSSES["one"]})(params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_an_objective_has_the_field_for_slope_and_its_jacobian_for_curvature(dtype):
    game = as_objective({name: lambda p, loss=loss: loss(p).astype(p["two"].dtype) for name, loss in LOSSES.items()})
    params = {"one": jnp.array([1.0, -1.0], dtype), "two": jnp.array(0.5, dtype)}
    value, slope = jax.jit(jax.value_and_grad(game))(params)
    assert value.dtype == slope["two"].dtype == dtype
    assert float(value) == pytest.approx(float(LOSSES["one"](params) + LOSSES["two"](params)), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-5), slope, jax.jit(field(LOSSES))(params))
    bend = jax.jit(jax.jacfwd(jax.grad(game)))(REST)
    np.testing.assert_allclose(bend["one"]["two"], PULL, rtol=1e-12)
    np.testing.assert_allclose(bend["two"]["one"], -BACK, rtol=1e-12)


def test_steps_of_solvers_are_the_matrices_they_stand_for():
    identity, h = np.eye(3), RATE
    first, second = (identity + h * np.diag(rows) @ JACOBIAN for rows in ([1, 1, 0], [0, 0, 1]))
    sgd = descent("sgd", h)
    np.testing.assert_allclose(at_rest(sgd), identity + h * JACOBIAN, atol=1e-14)
    turns = alternating(frozen(sgd, ["two"]), frozen(sgd, ["one"]))
    np.testing.assert_allclose(at_rest(turns), second @ first, atol=1e-14)
    np.testing.assert_allclose(
        at_rest(extragradient(h)), identity + h * JACOBIAN + h**2 * JACOBIAN @ JACOBIAN, atol=1e-14
    )
    momentum = at_rest(descent("momentum", h, momentum=0.5))
    blocks = np.block([[identity + h * JACOBIAN, -h * 0.5 * identity], [-JACOBIAN, 0.5 * identity]])
    radius = float(stability.spectral_radius(jnp.asarray(blocks)))
    assert momentum.shape == (6, 6)
    assert float(stability.spectral_radius(jnp.asarray(momentum))) == pytest.approx(radius, rel=1e-9)


def test_a_path_shows_the_step_that_made_it():
    step = np.array([[0.9, -0.3], [0.4, 0.8]])
    path = [np.array([1e-3, 2e-3])]
    for _ in range(60):
        path.append(step @ path[-1])
    places = last_between(jnp.asarray(np.array(path)), 1e-9, 1.0, 10)
    assert float(jnp.linalg.norm(places[0])) == pytest.approx(1, rel=1e-14)
    found = np.asarray(fitted_step(places))
    np.testing.assert_allclose(found, step, atol=1e-12)
    assert leading(found) == pytest.approx(0.85 + 1j * np.sqrt(0.12 - 0.05**2), rel=1e-12)


def test_where_one_direction_is_left_the_other_has_the_factor_zero():
    places = 0.5 ** np.arange(8.0)[:, None] * np.array([[3.0, 4.0]])
    found = np.asarray(fitted_step(jnp.asarray(places)))
    assert np.sort(np.abs(np.linalg.eigvals(found))) == pytest.approx([0, 0.5], abs=1e-14)
    assert leading(found) == pytest.approx(0.5, rel=1e-14)


def test_places_of_after_the_range_are_left_out():
    path = jnp.asarray(10.0 ** -np.arange(12.0)[:, None] * np.array([[1.0, 0.0]]))
    assert np.asarray(last_between(path, 1e-6, 2.0, 3))[:, 0] == pytest.approx([1, 0.1, 0.01], rel=1e-12)
    assert not np.asarray(last_between(0 * path, 1e-6, 2.0, 3)).any()


def test_leading_takes_many_and_what_is_not_finite():
    many = np.array([[[1.0, 1.0], [-1.0, 1.0]], [[-3.0, 0.0], [0.0, 2.0]], [[np.nan, 0.0], [0.0, np.inf]]])
    found = leading(many[:2])
    assert found == pytest.approx([1 + 1j, -3 + 0j])
    assert leading(np.full((2, 2), np.nan)) == 0
