from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.quadrature import gauss_hermite
from calcdl.nn import variational
from calcdl.nn.variational import Coder, bound, kl_to_standard_normal, log_binomial, log_normal, surrogate

# z -> image is cubic, so that gradients of expectations are known by quadrature.
CUBIC = Coder(
    init=lambda key: {"mean": jnp.float64(0.5), "log_deviation": jnp.float64(-0.7)},
    encode=lambda p, x: (p["mean"] * x, p["log_deviation"] * jnp.ones_like(x)),
    decode=lambda p, z: z**3,
    log_density=lambda p, output, x: -jnp.sum((output - x) ** 2, axis=-1),
)


def test_kl_is_that_on_record(truths):
    rows = truths("dl_theory.json")["vae"]["rows"]
    assert len(rows) == 6
    for row in rows:
        found = kl_to_standard_normal(jnp.float64(row["mu"]), jnp.log(jnp.float64(row["sigma"])))
        assert float(found) == pytest.approx(row["kl"], rel=1e-9, abs=1e-11)


def test_kl_keeps_its_digits_near_a_standard_normal_in_float32():
    small = 1e-3
    found = float(kl_to_standard_normal(jnp.float32(small), jnp.float32(small)))
    assert found == pytest.approx((small**2 + np.expm1(2 * small) - 2 * small) / 2, rel=1e-4)


def test_kl_is_the_mean_of_the_log_ratio():
    mean, log_deviation = jnp.float64(-1.5), jnp.log(jnp.float64(2.0))
    by_quadrature = gauss_hermite(
        lambda z: log_normal(z, mean, log_deviation) - log_normal(z, 0.0, 0.0), mean=-1.5, scale=2.0
    )
    assert float(kl_to_standard_normal(mean, log_deviation)) == pytest.approx(float(by_quadrature), rel=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_probabilities_of_all_counts_add_up_to_one(dtype):
    share = jnp.arange(17, dtype=dtype) / 16
    for logit in (-3.0, 0.0, 2.0):
        found = jnp.exp(log_binomial(jnp.full(17, logit, dtype), share, 16))
        assert found.dtype == dtype
        assert float(found.sum()) == pytest.approx(1, rel=1e-4 if dtype == jnp.float32 else 1e-12)
        assert float((found * share).sum()) == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-4)


@pytest.mark.parametrize("estimator", variational.ESTIMATORS)
def test_every_estimator_has_the_gradient_of_the_expectation(estimator):
    params, x, baseline = CUBIC.init(None), jnp.array([[0.8]]), jnp.array([-0.3])
    slope = jax.jit(jax.grad(partial(surrogate, estimator, CUBIC)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = weights / weights.sum()
    by_node = jax.vmap(lambda e: slope(params, x, e[None, None], baseline))(jnp.asarray(nodes))

    def elbo(params):
        terms = jax.vmap(lambda e: bound(CUBIC, params, x, e[None, None]))(jnp.asarray(nodes))
        return -jnp.sum(jnp.asarray(weights) * terms.sum(axis=(1, 2)))

    exact = jax.grad(elbo)(params)
    for name in params:
        assert float(weights @ by_node[name]) == pytest.approx(float(exact[name]), rel=1e-9)


def test_bad_arguments_are_named():
    given = (CUBIC, CUBIC.init(None), jnp.ones((1, 1)), jnp.ones((1, 1)))
    with pytest.raises(ValueError, match="estimator: expected one of reparameterised"):
        surrogate("pathwise", *given)
    with pytest.raises(ValueError, match="baseline: expected one number a row"):
        surrogate("score function, baseline", *given)
