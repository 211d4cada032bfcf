import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.chain import backpropagate, chain, table
from calcdl.calculus.expressions import parse

MATRIX = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])
TOLERANCE = {jnp.float32: 2e-6, jnp.float64: 1e-12}
COMPOSITIONS = {
    "scalars": ([jnp.sin, jnp.exp, jnp.square], 0.7),
    "expressions": ([parse("x**2 + 1"), parse("log(x)"), parse("3*x")], -1.5),
    "to a scalar": ([lambda x: jnp.asarray(MATRIX, x.dtype) @ x, jnp.tanh, lambda x: jnp.sum(x**3)], [0.3, -0.2, 1.1]),
    "to a vector": ([jnp.tanh, lambda x: jnp.asarray(MATRIX, x.dtype) @ x], [0.3, -0.2, 1.1]),
    "from a scalar": ([lambda t: jnp.stack([jnp.cos(t), jnp.sin(t), t]), jnp.prod], 0.4),
    "matrices": ([lambda x: x @ x.T, lambda x: jnp.sin(x).T, jnp.trace], [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]),
    "one link": ([jnp.cosh], 0.4),
}


def composed(links):
    def function(x):
        for link in links:
            x = link(x)
        return x

    return function


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_products_are_the_jacobian(name, dtype):
    links, x = COMPOSITIONS[name][0], jnp.array(COMPOSITIONS[name][1], dtype)
    wanted = jax.jit(jax.jacobian(composed(links)))(x).reshape(-1, x.size)
    run = chain if dtype == jnp.float64 and name != "matrices" else jax.jit(chain, static_argnums=0)
    result = run(tuple(links), x)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(result))
    for product in (result.jacobian, result.forward[result.names[-1]]):
        np.testing.assert_allclose(product, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    np.testing.assert_allclose(result.values[-1], composed(links)(x), rtol=TOLERANCE[dtype])
    if result.values[-1].ndim == 0:
        assert result.gradient.shape == x.shape
        np.testing.assert_allclose(result.gradient.ravel(), wanted[0], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_running_products_meet_in_the_middle():
    links, x = COMPOSITIONS["to a scalar"][0], jnp.array(COMPOSITIONS["to a scalar"][1])
    result = chain(links, x)
    for name, following in zip(result.names, result.names[1:], strict=False):
        np.testing.assert_allclose(result.backward[following] @ result.forward[name], result.jacobian, rtol=1e-14)
    np.testing.assert_array_equal(result.forward[result.names[0]], result.jacobians[result.names[0]])
    np.testing.assert_array_equal(result.backward[result.names[-1]], result.jacobians[result.names[-1]])
    np.testing.assert_allclose(result.jacobians[result.names[0]], MATRIX)


def test_vmap_keeps_names_costs_and_gradients():
    links = {"map": lambda x: jnp.asarray(MATRIX) @ x, "a tanh": jnp.tanh, "sum": jnp.sum}
    x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    result = jax.jit(jax.vmap(lambda x: chain(links, x)))(x)
    assert result.names == ("map", "a tanh", "sum")
    np.testing.assert_allclose(result.gradient, jax.vmap(jax.grad(composed(links.values())))(x), rtol=1e-12)
    one = chain(links, x[0])
    assert (one.forward_cost, one.backward_cost, one.cheapest) == (
        result.forward_cost,
        result.backward_cost,
        result.cheapest,
    )
    assert [row.forward_norm.shape for row in table(result)] == [(4,)] * 3


def test_costs_counted_by_hand():
    # Sizes 4 -> 1 -> 5 -> 1 -> 3: forward 5*1*4 + 1*5*4 + 3*1*4, backward 3*1*5 + 3*5*1 + 3*1*4,
    # and with the inner product in the middle first: 1*5*1, then from the left 3*1*1, then 3*1*4.
    links = {
        "a": lambda x: jnp.sum(x)[None],
        "b": lambda x: jnp.repeat(x, 5),
        "c": lambda x: jnp.sum(x)[None],
        "d": lambda x: jnp.repeat(x, 3),
    }
    result = chain(links, jnp.ones(4))
    assert result.sizes == (4, 1, 5, 1, 3)
    assert (result.forward_cost, result.backward_cost) == (52, 42)
    assert result.cheapest == (20, "((d (c b)) a)")
    np.testing.assert_array_equal(result.jacobian, np.full((3, 4), 5.0))


def test_table_of_hand_counted_norms():
    rows = table(chain([("grow", lambda x: jnp.array([3.0, 4.0]) * x), ("add", jnp.sum)], 2.0))
    assert [(row.name, row.inputs, row.outputs) for row in rows] == [("grow", 1, 2), ("add", 2, 1)]
    np.testing.assert_allclose([float(row.jacobian_norm) for row in rows], [5, np.sqrt(2)])
    np.testing.assert_allclose([float(row.forward_norm) for row in rows], [5, 7])
    np.testing.assert_allclose([float(row.backward_norm) for row in rows], [7, np.sqrt(2)])


def test_names_of_links():
    assert chain([jnp.sin, parse("x**2"), ("last", jnp.cos)], 1.0).names == ("1", "2: x**2", "last")
    for links in ([], {}, [("a", jnp.sin), ("a", jnp.cos)]):
        with pytest.raises(ValueError, match="links must be at least one, with names that differ"):
            chain(links, 1.0)
    with pytest.raises(ValueError, match="gradient needs a scalar output, got 2 outputs"):
        _ = chain([jnp.sin], jnp.ones(2)).gradient


def network(dtype):
    sizes = [3, 4, 5, 2]
    keys = jax.random.split(jax.random.key(1), 7)
    params = [
        {
            "weight": jax.random.normal(keys[k], (sizes[k], sizes[k + 1]), dtype),
            "bias": jnp.full(sizes[k + 1], 0.1, dtype),
        }
        for k in range(3)
    ]
    x, targets = jax.random.normal(keys[5], (6, 3), dtype), jax.random.normal(keys[6], (6, 2), dtype)
    layers = [jnp.tanh, (jnp.sin, jnp.cos), lambda z: z]
    return layers, params, x, lambda y: jnp.sum((y - targets) ** 2, axis=1) / 2


def mean_loss(layers, params, x, loss):
    for layer, one in zip(layers, params, strict=True):
        weight, bias = (one["weight"], one["bias"]) if isinstance(one, dict) else one
        function = layer[0] if isinstance(layer, tuple) else layer
        x = function(x @ weight + bias[None, :])
    return jnp.mean(loss(x))


@functools.cache
def backpropagated():
    layers, params, x, loss = network(jnp.float64)
    return jax.jit(backpropagate, static_argnums=(0, 3))(tuple(layers), params, x, loss)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_backpropagation_is_the_gradient(dtype):
    layers, params, x, loss = network(dtype)
    if dtype == jnp.float32:
        params = [(one["weight"], one["bias"]) for one in params]
    wanted_loss, wanted = jax.jit(jax.value_and_grad(lambda params: mean_loss(layers, params, x, loss)))(params)
    result = jax.jit(backpropagate, static_argnums=(0, 3))(tuple(layers), params, x, loss)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(result))
    np.testing.assert_allclose(result.loss, wanted_loss, rtol=TOLERANCE[dtype])
    assert jax.tree.structure(list(result.gradients)) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(result.gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_factors_multiply_to_the_ratio_of_signals():
    result = backpropagated()
    norms = np.array([np.linalg.norm(delta) for delta in result.deltas])
    np.testing.assert_allclose(result.ratios, norms[:-1] / norms[1:], rtol=1e-13)
    np.testing.assert_allclose(result.weight_factors * result.slope_factors, result.ratios, rtol=1e-13)
    np.testing.assert_allclose(result.slopes[0], 1 / np.cosh(result.pre_activations[0]) ** 2, rtol=1e-12)
    assert [delta.shape for delta in result.deltas] == [(6, 4), (6, 5), (6, 2)]


def test_deltas_are_derivatives_by_pre_activations():
    layers, params, x, loss = network(jnp.float64)
    result = backpropagated()

    def from_first(z):
        return mean_loss(layers[1:], params[1:], layers[0](z), loss) * len(x)

    np.testing.assert_allclose(result.deltas[0], jax.grad(from_first)(result.pre_activations[0]), rtol=1e-12)


def test_a_dead_signal_has_factors_of_zero():
    layers, params, x, loss = network(jnp.float64)
    result = backpropagate([layers[0], lambda z: 0 * z, layers[2]], params, x, loss)
    assert result.slope_factors.tolist() == [0, 0]
    assert result.weight_factors[0] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


def test_bad_networks_are_refused():
    layers, params, x, loss = network(jnp.float64)
    for arguments in ((layers[:2], params, x, loss), ([], [], x, loss), (layers, params, x[0], loss)):
        with pytest.raises(ValueError, match=r"layers and params must be of one length.*got"):
            backpropagate(*arguments)
    with pytest.raises(ValueError, match=r"one number an example, shape \(6,\), got \(\)"):
        backpropagate(layers, params, x, lambda y: jnp.mean(y))
