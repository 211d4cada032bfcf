import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.nn.regularisers import REGULARISERS, elastic_net, l1, l2

EXPECTED = {
    "l1": lambda w: (np.abs(w).sum(), np.sign(w)),
    "l2": lambda w: ((w**2).sum(), 2 * w),
    "elastic_net": lambda w: (0.5 * np.abs(w).sum() + 0.25 * (w**2).sum(), 0.5 * np.sign(w) + 0.5 * w),
}
FLAT = np.array([3.0, -4.0, 0.0, 0.5, -0.25])


def tree(dtype):
    return {"layers": [jnp.asarray(FLAT[:2], dtype), (jnp.asarray(FLAT[2:], dtype).reshape(3, 1),)]}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", list(REGULARISERS))
def test_values_and_gradients_are_the_closed_forms(name, dtype):
    penalty, weights = REGULARISERS[name], tree(dtype)
    value, gradient = EXPECTED[name](FLAT)
    for result in (penalty(weights), jax.jit(penalty)(weights)):
        assert result.dtype == dtype
        assert result.shape == ()
        np.testing.assert_allclose(result, value, rtol=1e-6)
    leaves = jax.tree.leaves(jax.grad(penalty)(weights))
    np.testing.assert_allclose(np.concatenate([leaf.ravel() for leaf in leaves]), gradient, rtol=1e-6)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), weights)
    np.testing.assert_allclose(jax.vmap(penalty)(batch)[0], value, rtol=1e-6)


@pytest.mark.parametrize("name", list(REGULARISERS))
def test_leaves_without_size_are_passed_over(name):
    penalty = REGULARISERS[name]
    weights = {"w": jnp.array([1.0, -2.0]), "steps": jnp.array(7), "key": jax.random.key(0), "none": None}
    assert penalty(weights) == penalty({"w": jnp.array([1.0, -2.0])})
    assert penalty({}) == 0
    assert penalty(jnp.ones(1000, jnp.bfloat16) * 3).dtype == jnp.float32


def test_the_ratio_of_elastic_net_runs_from_half_of_l2_to_l1():
    weights = tree(np.float64)
    assert elastic_net(weights, 1.0) == l1(weights)
    assert elastic_net(weights, 0.0) == l2(weights) / 2
    by_ratio = jax.grad(lambda ratio: elastic_net(weights, ratio))(0.3)
    assert by_ratio == pytest.approx(float(l1(weights) - l2(weights) / 2))
    assert elastic_net(tree(np.float32), jnp.asarray(0.5, jnp.float64)).dtype == np.float32
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="l1_ratio must lie in 0 to 1"):
            elastic_net(weights, ratio)
