import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.optim import descent
from calcdl.theory.dynamics import (
    METHODS,
    contraction,
    iterates,
    largest_product,
    stationary_variance,
    steepest_descent_worst_case,
    tuning,
)

CURVATURE = jnp.array([1.0, 10.0, 100.0])
BY_TRUTH = {"gd": "gradient_descent", "heavy_ball": "heavy_ball", "nesterov": "nesterov"}


def matrix(method, rate, curvature, momentum):
    kept = 1 - rate * curvature
    shift = momentum * kept if METHODS[method].look_ahead else momentum
    return np.array([[kept + shift, -shift], [1.0, 0.0]])


def test_iterates_of_the_truths(truths):
    for run in truths("dl_theory.json")["quadratic"]["explicit"]["runs"]:
        method = BY_TRUTH[run["method"].split("(")[0]]
        found = iterates(method, jnp.ones(3), CURVATURE, run["eta"], run["steps"], run.get("beta", 0.0))
        assert np.asarray(found) == pytest.approx(run["x"], rel=1e-9, abs=1e-12), run["method"]


def test_rates_of_the_truths(truths):
    names = {"gradient_descent": "gd", "heavy_ball": "heavy_ball_norm", "nesterov": "nesterov"}
    for row in truths("dl_theory.json")["quadratic"]["tables"]:
        for method, name in (names | {"nesterov_optimal": "nesterov_opt"}).items():
            best = tuning(method, 1.0, row["kappa"])
            assert float(best.rate) == pytest.approx(row[name], rel=1e-9)
            if method == "heavy_ball":
                assert float(best.momentum) == pytest.approx(row["heavy_ball_beta"], rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_the_tuning_reaches_its_rate_and_no_other_is_better(method):
    low, high = 2.0, 300.0
    best = tuning(method, low, high)
    curvatures = jnp.geomspace(low, high, 200)

    def worst(rate, momentum):
        return float(jnp.max(contraction(method, rate, curvatures, momentum)))

    assert worst(best.learning_rate, best.momentum) == pytest.approx(float(best.rate), abs=1e-7)
    # "nesterov" is not tuned for quadratics: there it may keep only its learning rate.
    shares = (1.0,) if method == "nesterov" else (0.99, 1.01)
    for share in shares:
        for other in (0.99, 1.01):
            momentum = min(0.9999, float(best.momentum) * other)
            assert worst(best.learning_rate * share, momentum) > float(best.rate) - 1e-7


@pytest.mark.parametrize("method", METHODS)
def test_contraction_is_the_spectral_radius_and_1_at_the_border(method):
    for momentum in (0.0, 0.5, 0.9) if METHODS[method].has_momentum else (0.0,):
        for rate in (1e-3, 0.1, 0.39, 0.5, 0.6):
            found = contraction(method, rate, CURVATURE, momentum)
            wanted = [np.max(np.abs(np.linalg.eigvals(matrix(method, rate, c, momentum)))) for c in (1, 10, 100)]
            assert np.asarray(found) == pytest.approx(wanted, rel=1e-7)
        border = float(largest_product(method, momentum))
        assert float(contraction(method, border / 10, 10.0, momentum)) == pytest.approx(1, rel=1e-12)
        assert float(contraction(method, 1.01 * border / 10, 10.0, momentum)) > 1
        assert float(contraction(method, 0.99 * border / 10, 10.0, momentum)) < 1


@pytest.mark.parametrize(
    ("method", "optimiser"), [("gradient_descent", "sgd"), ("heavy_ball", "momentum"), ("nesterov", "nesterov")]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_iterates_are_those_of_the_solver(method, optimiser, dtype):
    rate, momentum, steps = 0.015, 0.0 if method == "gradient_descent" else 0.8, 30
    curvature = CURVATURE.astype(dtype)
    start = jnp.array([1.0, -2.0, 0.5], dtype)
    solver = descent(optimiser, rate, **({"momentum": momentum} if momentum else {}))

    @jax.jit
    def both():
        def step(carry, _):
            params, state, _ = solver.step(lambda x: jnp.sum(curvature * x**2) / 2, *carry)
            return (params, state), params

        _, path = jax.lax.scan(step, (start, solver.init(start)), length=steps)
        return path, iterates(method, start, curvature, rate, jnp.arange(steps + 2), momentum)

    path, exact = both()
    assert exact.dtype == dtype
    # Optax keeps the points at which Nesterov takes the gradient.
    ahead = exact + (momentum if method == "nesterov" else 0) * jnp.diff(exact, axis=0, prepend=exact[:1])
    assert np.asarray(ahead[1:-1]) == pytest.approx(
        np.asarray(path), rel=1e-3 if dtype == jnp.float32 else 1e-9, abs=1e-5 if dtype == jnp.float32 else 1e-15
    )


def test_iterates_may_be_far_traced_and_differentiated():
    assert float(iterates("gradient_descent", jnp.ones(1), jnp.ones(1), 1e-6, 10**9)[0]) == pytest.approx(0, abs=1e-300)
    far = iterates("gradient_descent", jnp.ones(1), jnp.ones(1), 1e-6, 10**6)
    assert float(far[0]) == pytest.approx((1 - 1e-6) ** 10**6, rel=1e-9)
    # f = λ x² / 2 by the learning rate: -k λ² (1 - η λ)^(2 k - 1) x_0².
    steps, curvature, start = 7, 3.0, 2.0

    def loss(rate):
        return (
            curvature
            * iterates("gradient_descent", jnp.array([start]), jnp.array([curvature]), rate, steps)[0] ** 2
            / 2
        )

    for rate in (0.1, 0.5, 0.9):
        wanted = -steps * curvature**2 * (1 - rate * curvature) ** (2 * steps - 1) * start**2
        assert float(jax.jit(jax.grad(loss))(rate)) == pytest.approx(wanted, rel=1e-9)
    table = jax.jit(lambda k: iterates("heavy_ball", jnp.ones(2), jnp.ones(2), 0.1, k, 0.5))(
        jnp.ones((2, 3), jnp.int32)
    )
    assert table.shape == (2, 3, 2)


def test_steepest_descent_takes_its_exact_steps():
    kappa = 7.0
    hessian = np.diag([1.0, kappa])
    found = np.asarray(steepest_descent_worst_case(kappa, jnp.arange(6)))
    x = np.array([kappa, 1.0])
    for row in found:
        assert row == pytest.approx(x, rel=1e-12)
        gradient = hessian @ x
        x = x - (gradient @ gradient) / (gradient @ hessian @ gradient) * gradient


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_stationary_variance_is_the_fixed_point_and_that_of_runs(key, momentum):
    rate, curvature, noise = 0.3, 1.5, 4.0
    found = float(stationary_variance(rate, curvature, noise, momentum))
    # Second moments of (x_k, x_{k-1}) by their linear equation, an independent route.
    step = matrix("heavy_ball", rate, curvature, momentum)
    source = np.array([rate**2 * noise, 0, 0, 0])
    moments = np.linalg.solve(np.eye(4) - np.kron(step, step), source)
    assert found == pytest.approx(moments[0], rel=1e-12)
    draws = np.sqrt(noise) * jax.random.normal(key, (300, 4000), jnp.float64)

    @jax.jit
    def simulate(draws):
        def one(carry, noise):
            x, before = carry
            return (x - rate * (curvature * x + noise) + momentum * (x - before), x), None

        zeros = jnp.zeros(draws.shape[1])
        return jax.lax.scan(one, (zeros, zeros), draws)[0][0]

    runs = np.asarray(simulate(draws))
    assert abs(np.mean(runs**2) - found) < 5 * found * np.sqrt(2 / runs.size)
    assert float(stationary_variance(2 * (1 + momentum) / curvature, curvature, noise, momentum)) == np.inf


def test_numbers_keep_float32():
    one = jnp.float32(1)
    assert tuning("heavy_ball", one, 3 * one).rate.dtype == jnp.float32
    assert contraction("nesterov", one / 3, one, one / 2).dtype == jnp.float32
    assert stationary_variance(one, one, one, one / 2).dtype == jnp.float32
    assert steepest_descent_worst_case(one * 3, 4).dtype == jnp.float32
    assert largest_product("nesterov", one / 2).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iterates("newton", jnp.ones(1), jnp.ones(1), 0.1, 3), "method: expected one of gradient_descent"),
        (lambda: iterates("gradient_descent", jnp.ones(1), jnp.ones(1), 0.1, -3), "steps: expected whole numbers"),
        (lambda: contraction("gradient_descent", 0.1, 1.0, 0.5), "momentum: gradient_descent has none"),
        (lambda: tuning("heavy_ball", 2.0, 1.0), "smallest: expected curvatures with 0 < smallest <= largest"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
