"""Models of other libraries, which calcdl does not know."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from calcdl.diagnostics.inspection import inspect

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def _ranks_as_these_libraries_want_them():
    with jax.numpy_rank_promotion("allow"):
        yield


OPTIMISER = optax.sgd(1e-3, momentum=0.9)


def drawn(init, *inputs):
    """Variables of the shapes that a model of linen says it has."""
    source = np.random.default_rng(1)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: source.normal(0, 0.65, leaf.shape).astype(leaf.dtype), shapes)


def judged(loss, model, optimiser=None):
    seen = inspect(loss, model, X, optimiser=optimiser)
    assert np.isfinite(seen.loss)
    assert str(seen)
    return seen, [one.name for one in seen.parameters]


def test_linen():
    linen = pytest.importorskip("flax.linen")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            for _ in range(11):
                x = linen.tanh(linen.Dense(4)(x))
            return linen.Dense(2, name="a_readout")(linen.LayerNorm()(x))

    model = Model()
    variables = drawn(model.init, X)
    seen, found = judged(lambda variables, x: jnp.mean(jnp.square(model.apply(variables, x))), variables, OPTIMISER)
    hidden = [f"params.Dense_{place}.{leaf}" for place in range(11) for leaf in ("kernel", "bias")]
    last = ["params.LayerNorm_0.scale", "params.LayerNorm_0.bias", "params.a_readout.kernel", "params.a_readout.bias"]
    assert found == hidden + last
    assert seen.healthy


def test_linen_scanned():
    linen = pytest.importorskip("flax.linen")

    class Block(linen.Module):
        @linen.compact
        def __call__(self, h, _):
            return linen.tanh(linen.Dense(3)(h)), None

    deep = linen.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)()
    variables = drawn(deep.init, X, None)
    _, found = judged(lambda variables, x: jnp.mean(jnp.square(deep.apply(variables, x, None)[0])), variables)
    assert found == [f"params.Dense_0.{leaf}[{layer}]" for layer in range(4) for leaf in ("kernel", "bias")]


def test_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.z_first = nnx.Linear(3, 4, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
            self.norm, self.dropout = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)
            self.activation = nnx.tanh
            self.a_readout = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            x = self.z_first(x)
            for layer in self.layers:
                x = self.activation(layer(x))
            return self.a_readout(self.dropout(self.norm(x)))

    model = Model(nnx.Rngs(0))
    layers = ["z_first", "layers.0", "layers.1"]
    expected = [f"{layer}.{leaf}" for layer in layers for leaf in ("kernel", "bias")] + [
        *("norm.scale", "norm.bias", "a_readout.kernel", "a_readout.bias")
    ]
    whole, found = judged(lambda model, x: jnp.mean(jnp.square(model(x) - 1)), model, OPTIMISER)
    assert found == [*expected, "norm.mean", "norm.var"]
    (reached,) = [one for one in whole.verdicts if "every parameter" in one.claim]
    assert reached.evidence == "the loss does not use norm.mean, norm.var"

    graph, params, rest = nnx.split(model, nnx.Param, ...)
    loss = lambda params, x: jnp.mean(jnp.square(nnx.merge(graph, params, rest, copy=True)(x) - 1))  # noqa: E731
    seen, found = judged(loss, params)
    assert (found, seen.healthy) == (expected, True)
    np.testing.assert_allclose(seen.parameters[0].gradient_norm, whole.parameters[0].gradient_norm, rtol=1e-5)


def test_equinox():
    equinox = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 3)
    model = equinox.nn.Sequential(
        [
            equinox.nn.Linear(3, 8, key=keys[0]),
            equinox.nn.Lambda(jnp.tanh),
            equinox.nn.Dropout(0.5, inference=True),
            equinox.nn.MLP(8, 2, 4, 1, key=keys[1]),
        ]
    )

    def loss(model, x):
        return jnp.mean(jnp.square(jax.vmap(model)(x)))

    seen, found = judged(loss, model, OPTIMISER)
    where = ["layers.0", "layers.3.layers.0", "layers.3.layers.1"]
    assert found == [f"{one}.{leaf}" for one in where for leaf in ("weight", "bias")]
    assert seen.healthy
