import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from calcdl.optim import OPTIMISERS, descent
from calcdl.theory import stability
from calcdl.theory.stability import STATUSES, largest_stable_step, preconditioned_limit, spectral_radius, update_matrix

# Trace, running mean without correction, weight decay: (trace, mean, decay) and the limit known by hand, if any.
CHAIN = [
    ((0.0, 0.0, 0.0), 2.0),
    ((0.5, 0.0, 0.0), 3.0),
    ((0.9, 0.0, 0.0), 3.8),
    ((0.99, 0.0, 0.0), 3.98),
    ((0.0, 0.5, 0.0), 6.0),
    ((0.0, 0.9, 0.0), 38.0),
    ((0.0, 0.0, 0.25), 1.6),
    ((0.0, 0.9, 0.01), 2 / (0.1 / 1.9 + 0.01)),
    ((0.5, 0.5, 0.0), None),
    ((0.9, 0.5, 0.1), None),
    ((0.9, 0.9, 0.0), None),
    ((0.99, 0.3, 0.01), None),
]
MEAN = 1.9 / 0.1  # what a running mean with 0.9 keeps of an alternating gradient is the inverse
NESTEROV_MEAN = 1 / (0.9 / MEAN + 0.1)
# At curvature 1, by hand: 2 over what each rule makes of an alternating gradient while its second moment rests.
LIMITS = {
    "sgd": 2.0,
    "momentum": 3.8,
    "nesterov": 3.8 / 2.8,
    "optimistic_gradient_descent": 2 / 3,
    "adagrad": 2 * np.sqrt(0.1 + 1e-7),
    "adadelta": 2.0,
    "rmsprop": 2e-4,
    "rmsprop_momentum": 3.8e-4,
    "adam": 2e-8 * MEAN,
    "adamw": 2e-8 * MEAN,
    "nadam": 2e-8 * NESTEROV_MEAN,
    "nadamw": 2e-8 * NESTEROV_MEAN,
    "amsgrad": 2e-8 * MEAN,
    "adamax": 2e-8 * MEAN,
    "adamaxw": 2e-8 * MEAN,
    "adabelief": 2 * np.sqrt(1e-16 / (1 - 0.999)) * MEAN,
    "radam": 2e-8 * MEAN,
    "yogi": 2 * (np.sqrt(1e-6) + 1e-3) * MEAN,
    "optimistic_adam": 2e-8 * NESTEROV_MEAN / 3,
    "adan": 2 * (np.sqrt(1e-8) + 1e-8) / (0.02 / 1.98 + 0.08 * 2 * 0.08 / 1.92),
    "adopt": 2e-6 * MEAN,
    "ademamix": 2e-8 / (1 / MEAN + 5 * 1e-4 / 1.9999),
    "lars": 3.8 / 1e-3,
    "novograd": 3.8e-6,
    "muon": 2e-8 * NESTEROV_MEAN,
    "sm3": 2e-4 * MEAN,
    "adafactor": 2e-15 / 1e-3,
}
NONE = {
    "polyak_sgd": stability.UNLIMITED,
    "fromage": stability.UNLIMITED,
    "sign_sgd": stability.NOT_PROPORTIONAL,
    "signum": stability.NOT_PROPORTIONAL,
    "rprop": stability.NOT_PROPORTIONAL,
    "lion": stability.NOT_PROPORTIONAL,
    "lamb": stability.NOT_ADDITIVE,
    "madgrad": stability.CHANGING,
    "prodigy": stability.NOT_FINITE,
}


# Those that share their arithmetic with another entry here or with a chain: simulated, but not compiled once more.
TWINS = {
    *("sgd", "momentum", "nesterov", "optimistic_gradient_descent", "rmsprop", "adam", "adamw", "nadam", "nadamw"),
    *("amsgrad", "adamax", "adamaxw", "muon"),
}
OLD = {"yogi": 20_000, "adan": 20_000, "radam": 20_000}  # the corrections of the first steps last longer


def first_border(trace, mean, decay):
    """By the roots of the characteristic polynomial, first on a fine grid."""

    def stable(rate):
        free = np.polymul(np.polymul([1, rate * decay - 1], [1, -trace]), [1, -mean])
        return np.max(np.abs(np.roots(np.polyadd(free, [rate * (1 - mean), 0, 0])))) < 1

    grid = np.geomspace(1e-3, 1e3, 400)
    index = next(index for index, rate in enumerate(grid) if not stable(rate))
    lower, upper = grid[index - 1], grid[index]
    for _ in range(50):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if stable(middle) else (lower, middle)
    return lower


def build(name, rate):
    rule = OPTIMISERS[name]
    return rule.build(rate, **{key: field.default for key, field in rule.hyperparameters.items()})


def test_the_limit_of_a_linear_chain_is_its_closed_form():
    def chain(rate, trace, mean, decay):
        smooth = optax.chain(optax.trace(trace), optax.ema(mean, debias=False), optax.add_decayed_weights(decay))
        return optax.chain(smooth, optax.scale_by_learning_rate(rate))

    numbers = jnp.array([numbers for numbers, _ in CHAIN])
    found = jax.vmap(lambda given: largest_stable_step(lambda rate: chain(rate, *given)))(numbers)
    assert set(found.status.tolist()) == {stability.LIMITED}
    for product, (given, limit) in zip(found.product, CHAIN, strict=True):
        border = first_border(*given)
        assert float(product) == pytest.approx(border, rel=1e-6), given
        assert limit is None or border == pytest.approx(limit, rel=1e-9)


def test_curvature_scales_the_rate_in_the_dtype_given():
    def make(rate):
        return optax.sgd(rate, momentum=0.9, nesterov=True)

    curvature = jnp.array([1e-3, 1.0, 7.0, 1e4], jnp.float32)
    found = jax.jit(jax.vmap(lambda curvature: largest_stable_step(make, curvature=curvature)))(curvature)
    assert found.learning_rate.dtype == jnp.float32
    assert np.asarray(found.learning_rate * curvature) == pytest.approx(3.8 / 2.8, rel=1e-4)
    assert np.asarray(found.product) == pytest.approx(3.8 / 2.8, rel=1e-4)


def test_every_status_is_reached():
    kinds = {
        stability.LIMITED: lambda rate, g, p, mean, count: -rate * g,
        stability.NOT_PROPORTIONAL: lambda rate, g, p, mean, count: -rate * jnp.sign(g),
        stability.NOT_ADDITIVE: lambda rate, g, p, mean, count: -rate * jnp.where(p == 0, mean, p * jnp.sign(p * mean)),
        stability.CHANGING: lambda rate, g, p, mean, count: -rate * jnp.sqrt(count) * g,
        stability.NOT_FINITE: lambda rate, g, p, mean, count: -rate * g**2 / jnp.abs(g),
        stability.UNLIMITED: lambda rate, g, p, mean, count: -p / 2 - 0 * rate,
        stability.UNSTABLE: lambda rate, g, p, mean, count: rate * g,
    }
    assert sorted(kinds) == list(range(len(STATUSES)))

    def make(rate, kind):
        def update(g, state, params):
            mean, count = 0.9 * state[0] + g, state[1] + 1
            choices = [kinds[one](rate, g, params, mean, count) for one in sorted(kinds)]
            return jnp.select([kind == one for one in sorted(kinds)], choices), (mean, count)

        return optax.GradientTransformation(lambda params: (jnp.zeros_like(params), jnp.int32(0)), update)

    found = jax.vmap(lambda kind: largest_stable_step(lambda rate: make(rate, kind)))(jnp.arange(len(STATUSES)))
    assert found.status.tolist() == list(range(len(STATUSES)))
    assert found.learning_rate.tolist() == pytest.approx([2.0, np.inf, 0, 0, 0, 0, 0], rel=1e-6)
    assert jax.tree.map(lambda leaf: leaf[1], found).verdict == STATUSES[1]


def test_the_border_of_every_kind_of_optimiser_is_where_the_theory_has_it():
    assert LIMITS.keys().isdisjoint(NONE)
    assert LIMITS.keys() | NONE.keys() == OPTIMISERS.keys()
    shares = jnp.array([0.999, 1.001])

    @jax.jit
    def radii():
        return {
            name: jax.vmap(
                lambda share, name=name: spectral_radius(update_matrix(lambda r: build(name, r), share * LIMITS[name]))
            )(shares)
            for name in LIMITS.keys() - TWINS
        }

    for name, (below, above) in radii().items():
        assert 0.9 < below < 1 < above, name


def test_the_border_of_every_optimiser_is_where_simulated_runs_have_it():
    # By the solver that users run, from a start so small that nothing but the linear part is seen.
    @jax.jit
    def ends():
        return {
            name: jax.vmap(lambda share, name=name: run(name, share * LIMITS[name]))(jnp.array([0.99, 1.01]))
            for name in LIMITS
        }

    def run(name, rate):
        solver = descent(name, rate)

        def step(_, carry):
            x, state, far = carry
            x, state, _ = solver.step(lambda x: x[0] ** 2 / 2, x, state)
            return x, state, jnp.maximum(far, jnp.abs(x[0]))

        start = jnp.array([1e-60])
        x, _, far = jax.lax.fori_loop(0, OLD.get(name, 2000), step, (start, solver.init(start), start[0]))
        return jnp.abs(x[0]), far

    for name, (last, far) in ends().items():
        assert last[0] < 1e-61, name
        assert far[1] > 1e-52, name


def test_the_matrix_is_the_rule():
    # At an extreme point, where no difference of two runs would give it: the columns are exact.
    found = jax.jit(lambda rate: update_matrix(lambda r: optax.adam(r, b1=0.5, eps=1e-8), rate, curvature=2.0))(1e-9)
    wanted = np.array([[1 - 1e-9 / 1e-8 * 0.5 * 2, -1e-9 / 1e-8 * 0.5, 0], [0.5 * 2, 0.5, 0], [0, 0, 0]])
    assert np.asarray(found) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_spectral_radius_is_the_largest_magnitude_of_the_eigenvalues(key, dtype):
    matrices = jax.random.normal(key, (20, 5, 5), dtype) * 10.0 ** jnp.arange(-10, 10, dtype=dtype)[:, None, None]
    found = jax.jit(spectral_radius)(matrices)
    assert found.dtype == dtype
    wanted = np.max(np.abs(np.linalg.eigvals(np.asarray(matrices, np.float64))), axis=-1)
    assert np.asarray(found) == pytest.approx(wanted, rel=1e-5 if dtype == jnp.float32 else 1e-9)


def test_spectral_radius_of_special_matrices():
    special = jnp.stack(
        [jnp.zeros((2, 2)), jnp.array([[0.0, 1], [0, 0]]), jnp.array([[1.0, 1e9], [0, 1]]), jnp.full((2, 2), jnp.nan)]
    )
    assert spectral_radius(special).tolist() == pytest.approx([0, 0, 1, np.inf], rel=1e-9)


def test_preconditioned_limit():
    assert np.asarray(preconditioned_limit(jnp.array([0.0, 0.5, 0.9]))) == pytest.approx([2, 6, 38])


@pytest.mark.parametrize("curvature", [0.0, -1.0, np.inf, np.nan])
def test_a_curvature_that_is_not_positive_is_refused(curvature):
    with pytest.raises(ValueError, match="curvature: expected a finite number above 0"):
        largest_stable_step(optax.sgd, curvature=curvature)
    with pytest.raises(ValueError, match="curvature"):
        update_matrix(optax.sgd, 0.1, curvature=curvature)


def test_a_curvature_with_axes_is_refused():
    with pytest.raises(ValueError, match=r"curvature: expected a scalar, got shape \(2,\); map"):
        largest_stable_step(optax.sgd, curvature=jnp.ones(2))
