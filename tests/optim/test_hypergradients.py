import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim import descent, hypergradient, lbfgs, trained, unrolled
from calcdl.optim.hypergradients import METHODS
from calcdl.optim.solver import CONVERGED, STEP_LIMIT


@pytest.fixture(scope="module")
def ridge():
    """Rows to train and to validate on, and the closed form of the validation loss by the logarithm of the penalty."""
    generator = np.random.default_rng(0)
    x, y, held_x, held_y = (jnp.asarray(generator.normal(size=size)) for size in ((20, 3), 20, (10, 3), 10))

    def training(weights, h):
        return jnp.mean((x @ weights - y) ** 2) / 2 + jnp.exp(h["penalty"]) * jnp.sum(weights**2) / 2

    def validation(weights, _):
        return jnp.mean((held_x @ weights - held_y) ** 2)

    def closed(penalty):
        weights = jnp.linalg.solve(x.T @ x / 20 + jnp.exp(penalty) * jnp.eye(3), x.T @ y / 20)
        return validation(weights, None)

    return training, validation, closed


@pytest.mark.parametrize("method", METHODS)
def test_all_ways_give_the_closed_form_of_ridge(ridge, method):
    training, validation, closed = ridge
    found = jax.jit(jax.vmap(lambda penalty: hypergradient(
        validation, training, jnp.zeros(3), {"penalty": penalty},
        solver=lambda _: lbfgs() if method == "implicit" else descent("sgd", 0.4), steps=400, method=method,
        tolerance=1e-11,
    )))(jnp.array([-2.0, 0.0]))  # fmt: skip
    value, slope = jax.vmap(jax.value_and_grad(closed))(jnp.array([-2.0, 0.0]))
    np.testing.assert_allclose(found.value, value, rtol=1e-10)
    np.testing.assert_allclose(found.gradient["penalty"], slope, rtol=1e-8)
    assert (found.gradient_norm < 1e-11).all()
    assert (found.status == CONVERGED).all()


@pytest.mark.parametrize("method", ["unrolled", "forward"])
def test_the_derivative_by_the_learning_rate_is_that_of_the_law(method):
    # f_k = c (1 - r c)^(2 k) x^2 / 2, so df_k/dr = -k c^2 (1 - r c)^(2 k - 1) x^2, at steps that are no square.
    curvature, steps, start = 3.0, 7, 1.5
    found = hypergradient(
        lambda x, _: curvature * x**2 / 2, lambda x, _: curvature * x**2 / 2, jnp.float64(start), jnp.float64(0.1),
        solver=lambda rate: descent("sgd", rate), steps=steps, method=method,
    )  # fmt: skip
    law = -steps * curvature**2 * (1 - 0.1 * curvature) ** (2 * steps - 1) * start**2
    assert float(found.gradient) == pytest.approx(law, rel=1e-12)
    assert int(found.status) == STEP_LIMIT
    assert float(found.gradient_norm) == pytest.approx(curvature * 0.7**7 * start, rel=1e-12)


def test_the_minimum_forgets_the_learning_rate_but_not_the_loss():
    def training(x, h):
        return h["weight"] * (x - 2) ** 2 + x**2

    found = hypergradient(
        lambda x, h: x * h["weight"], training, jnp.float64(0.0), {"rate": jnp.float64(0.2), "weight": jnp.float64(1)},
        solver=lambda h: descent("sgd", h["rate"]), steps=200, method="implicit", tolerance=1e-12,
    )  # fmt: skip
    # x = 2 w / (1 + w), v = x w: dv/dw = x + 2 w / (1 + w)^2.
    assert float(found.gradient["rate"]) == 0
    assert float(found.gradient["weight"]) == pytest.approx(1.5, rel=1e-12)


def test_memory_grows_with_the_root_of_the_steps():
    def bytes_of(steps, remember):
        path = unrolled(lambda x, h: h * jnp.sum(jnp.cos(x)), jnp.ones(1000), lambda h: descent("sgd", 0.1),
                        steps=steps, remember=remember)  # fmt: skip
        program = jax.jit(jax.grad(lambda h: jnp.sum(path(h)[0]))).lower(1.0).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert bytes_of(6400, False) / bytes_of(100, False) < 10  # 8 = sqrt(64)
    assert bytes_of(6400, True) / bytes_of(100, True) > 50
    assert bytes_of(6400, False) < bytes_of(6400, True) / 20


def test_the_minimum_as_a_function_has_derivatives_both_ways():
    best = trained(
        lambda x, h: jnp.sum(h * (x - 1) ** 2 + x**2), jnp.zeros(2), lambda h: descent("sgd", 0.2), steps=300
    )
    h = jnp.array([0.5, 2.0])
    ways = jax.jit(lambda h: (best(h)[0], jax.jacfwd(best, has_aux=True)(h)[0], jax.jacrev(best, has_aux=True)(h)[0]))
    value, *slopes = ways(h)
    np.testing.assert_allclose(value, h / (1 + h), rtol=1e-7)
    for slope in slopes:
        np.testing.assert_allclose(slope, np.diag(1 / (1 + h) ** 2), atol=1e-6)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"method: expected one of unrolled, forward, implicit, got 'reverse'"):
        hypergradient(None, None, 1.0, 1.0, solver=None, steps=1, method="reverse")
    with pytest.raises(ValueError, match="steps: expected a positive integer, got 0"):
        hypergradient(None, None, 1.0, 1.0, solver=None, steps=0)
