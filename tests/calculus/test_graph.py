import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.expressions import parse
from calcdl.calculus.graph import graph, paths

TOLERANCE = {jnp.float32: 2e-6, jnp.float64: 1e-12}

# u = x² + y z with x = a b, y = a + b, z = a - b: u = a² b² + a² - b², in an order that must be sorted first.
NODES = {
    "u": (lambda x, y, z: x**2 + y * z, ("x", "y", "z")),
    "x": (lambda a, b: a * b, ("a", "b")),
    "y": (parse("a + b", ("a", "b")), ("a", "b")),
    "z": (lambda a, b: a - b, ("a", "b")),
}


def total(inputs):
    return graph(NODES, inputs).values["u"]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_graph_of_three_paths(dtype):
    a, b = 1.5, -0.75
    inputs = {"a": jnp.array(a, dtype), "b": jnp.array(b, dtype)}
    wanted = {"a": 2 * a * b**2 + 2 * a, "b": 2 * a**2 * b - 2 * b, "x": 2 * a * b, "y": a - b, "z": a + b, "u": 1.0}
    for run in (functools.partial(graph, NODES), jax.jit(functools.partial(graph, NODES)))[dtype == jnp.float32 :]:
        result = run(inputs)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(result))
        assert float(result.values["u"]) == a**2 * b**2 + a**2 - b**2
        assert next(iter(result.adjoints)) == list(result.values)[-1] == "u"
        for name, value in wanted.items():
            np.testing.assert_allclose(result.adjoints[name], value, rtol=TOLERANCE[dtype])
        for name in inputs:
            np.testing.assert_allclose(result.tangents[name]["u"], wanted[name], rtol=TOLERANCE[dtype])
            ways = paths(result, name)
            assert {way.names for way in ways} == {(name, middle, "u") for middle in "xyz"}
            np.testing.assert_allclose(sum(way.product for way in ways), wanted[name], rtol=TOLERANCE[dtype])
        assert {name: float(edge) for name, edge in result.edges["z"].items()} == {"a": 1, "b": -1}
    for name, value in jax.grad(total)(inputs).items():
        np.testing.assert_allclose(value, wanted[name], rtol=TOLERANCE[dtype])


def test_graph_under_vmap():
    inputs = {"a": jnp.linspace(-1, 1, 5), "b": jnp.linspace(0, 2, 5)}
    result = jax.vmap(lambda inputs: graph(NODES, inputs))(inputs)
    wanted = jax.vmap(jax.grad(total))(inputs)
    for name in inputs:
        np.testing.assert_allclose(result.adjoints[name], wanted[name], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(
            sum(way.product for way in paths(result, name)), wanted[name], rtol=1e-12, atol=1e-12
        )


def test_an_argument_taken_twice_and_an_output_in_between():
    nodes = {"square": (jnp.multiply, ("a", "a")), "v": (jnp.sin, ("square",)), "unused": (jnp.cos, ("a",))}
    result = graph(nodes, {"a": 3.0}, output="square")
    assert float(result.edges["square"]["a"]) == float(result.adjoints["a"]) == 6
    assert float(result.adjoints["v"]) == float(result.adjoints["unused"]) == 0
    np.testing.assert_allclose(result.tangents["a"]["v"], 6 * np.cos(9.0), rtol=1e-12)
    assert [way.names for way in paths(result, "a", "v")] == [("a", "square", "v")]
    assert [way.names for way in paths(result, "a")] == [("a", "square")]
    assert paths(result, "unused", "v") == ()
    assert paths(result, "a", "a")[0].product == 1


@pytest.mark.parametrize(
    ("nodes", "output", "message"),
    [
        ({"u": (jnp.sin, ("c",))}, None, "'u' takes 'c', which is neither a node nor an input of: a, u"),
        ({"u": (jnp.sin, ("v",)), "v": (jnp.sin, ("u",))}, "u", "cycle (u -> v -> u|v -> u -> v)"),
        ({"a": (jnp.sin, ("a",))}, None, "must differ in their names, got 'a' in both"),
        ({"u": (jnp.sin, ("a",)), "v": (jnp.sin, ("a",))}, None, "output must be one of a, u, v; got u, v"),
        ({"u": (jnp.sin, ("a",))}, "w", "output must be one of a, u; got w"),
        ({}, None, "output must be one of a; got none"),
        ({"u": (lambda a: jnp.stack([a, a]), ("a",))}, None, r"'u' must be a scalar, got shape \(2,\)"),
    ],
)
def test_bad_graphs_are_refused(nodes, output, message):
    with pytest.raises(ValueError, match=message):
        graph(nodes, {"a": 1.0}, output)


def test_too_many_paths_are_refused():
    nodes = {}
    for layer in range(10):
        below = ("a", "a") if layer == 0 else (f"p{layer - 1}", f"q{layer - 1}")
        nodes |= {f"p{layer}": (jnp.add, below), f"q{layer}": (jnp.subtract, below)}
    nodes["u"] = (jnp.add, ("p9", "q9"))
    result = jax.jit(lambda a: graph(nodes, {"a": a}))(1.0)
    np.testing.assert_allclose(result.adjoints["a"], result.tangents["a"]["u"], rtol=1e-12)
    with pytest.raises(ValueError, match="at most 1000 paths, got 1024; take adjoints or tangents"):
        paths(result, "a")
    with pytest.raises(ValueError, match="start and end must be among a, p0, q0"):
        paths(result, "w")
