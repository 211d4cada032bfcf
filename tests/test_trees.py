from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import trees


class Pair(NamedTuple):
    left: object
    right: object


@pytest.fixture
def tree():
    return {"b": Pair(jnp.array([1.0, 2.0]), [jnp.array(3.0)]), "a": (jnp.array([[4.0]]), None)}


def test_names_are_dotted_and_in_the_order_of_the_leaves(tree):
    assert trees.names(tree) == ("a.0", "b.left", "b.right.0")
    assert trees.names(jnp.ones(2)) == ("",)
    assert trees.names({}) == ()


def test_map_with_names(tree):
    seen = trees.map_with_names(lambda name, leaf: (name, leaf.shape), tree)
    assert seen == {"b": Pair(("b.left", (2,)), [("b.right.0", ())]), "a": (("a.0", (1, 1)), None)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dot_and_norm_are_those_of_the_long_vector(tree, dtype):
    left = jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
    right = jax.tree.map(lambda leaf: leaf - 5, left)
    flat_left, flat_right = np.array([4.0, 1.0, 2.0, 3.0]), np.array([-1.0, -4.0, -3.0, -2.0])
    batch = jax.tree.map(lambda leaf: np.stack([leaf, 3 * leaf]), left)
    compiled = jax.jit(lambda one, other, many: (trees.dot(one, other), trees.norm(one), jax.vmap(trees.norm)(many)))(
        left, right, batch
    )
    product, length, lengths = compiled
    assert product == pytest.approx(flat_left @ flat_right, rel=1e-6)
    assert length == pytest.approx(np.linalg.norm(flat_left), rel=1e-6)
    np.testing.assert_allclose(lengths, length * np.array([1, 3]), rtol=1e-6)
    assert {found.dtype for found in compiled} == {np.dtype(dtype)}
    gradient = jax.jit(jax.grad(trees.norm))(left)
    np.testing.assert_allclose(gradient["b"].left, np.array([1, 2]) / np.linalg.norm(flat_left), rtol=1e-6)


def test_dot_and_norm_need_no_compilation(tree):
    left = jax.tree.map(lambda leaf: leaf.astype(np.float32), tree)
    assert trees.dot(left, left) == pytest.approx(30, rel=1e-6)
    assert trees.norm(left) == pytest.approx(30**0.5, rel=1e-6)


def test_empty_trees_and_half_precision():
    assert trees.dot({}, {}) == trees.norm({}) == 0
    ones = jnp.ones(4096, jnp.bfloat16)
    assert trees.dot(ones, ones) == 4096
    assert trees.norm([ones]) == 64
    assert trees.norm([jnp.full(100_000, 300.0, jnp.float16)]).dtype == jnp.float32
    mixed = trees.norm([jnp.ones(3, jnp.float32), jnp.ones(1, jnp.float64)])
    assert mixed == 2
    assert mixed.dtype == np.float64


def test_bad_trees_are_named():
    with pytest.raises(ValueError, match="right must have the structure of left"):
        trees.dot({"a": jnp.ones(2)}, [jnp.ones(2)])
    with pytest.raises(ValueError, match=r"right must have the shape \(2,\) at 'a', as left; got \(3,\)"):
        trees.dot({"a": jnp.ones(2)}, {"a": jnp.ones(3)})
    for function in (trees.norm, trees.array_norm, lambda leaf: trees.dot(leaf, leaf)):
        with pytest.raises(TypeError, match="leaves must be floating point, got int"):
            function(jnp.arange(3))


@pytest.mark.parametrize("size", [1e-37, 1e-35, 1e-22, 1e-10, 1.0, 1e19, 1e30, 5e37])
def test_array_norm_neither_overflows_nor_vanishes(size):
    x = jnp.array([[3.0, -4.0], [0.0, 5.0]], jnp.float32) * np.float32(size)
    for function in (trees.array_norm, jax.jit(trees.array_norm, static_argnums=1)):
        np.testing.assert_allclose(function(x, 1), np.float32([5, 5]) * np.float32(size), rtol=1e-6)
        np.testing.assert_allclose(function(x, -2), np.float32([3, np.sqrt(41)]) * np.float32(size), rtol=1e-6)
    assert trees.array_norm(x[:1]) == pytest.approx(5 * size, rel=1e-6)
    assert trees.norm({"a": x[0, 0], "b": x[0, 1]}) == pytest.approx(5 * size, rel=1e-6)
    for gradient in (jax.grad(trees.array_norm)(x[0]), jax.jit(jax.grad(trees.array_norm))(x[0])):
        np.testing.assert_allclose(gradient, [0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e160, 1e300])
def test_array_norm_in_float64(size):
    x = np.array([3.0, -4.0]) * size
    assert trees.array_norm(x) == pytest.approx(5 * size, rel=1e-15)
    np.testing.assert_allclose(jax.grad(trees.array_norm)(x), [0.6, -0.8], rtol=1e-15)


def test_zeros_have_norm_and_gradient_zero():
    zeros = jnp.zeros((2, 3), jnp.float32)
    assert trees.array_norm(zeros) == 0
    np.testing.assert_array_equal(jax.grad(trees.array_norm)(zeros), zeros)
    np.testing.assert_array_equal(jax.grad(lambda tree: trees.norm(tree))([zeros])[0], zeros)
    assert np.isfinite(jax.hessian(trees.array_norm)(zeros)).all()
    rows = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(jax.grad(lambda x: trees.array_norm(x, 1).sum())(rows), [[0, 0], [0.6, 0.8]])
    assert trees.array_norm(jnp.zeros((0, 3)), 0).tolist() == [0, 0, 0]


def test_second_derivative_of_the_norm():
    x = jnp.array([1.0, -2.0, 2.0])
    expected = np.eye(3) / 3 - np.outer(x, x) / 27
    np.testing.assert_allclose(jax.hessian(trees.array_norm)(x), expected, atol=1e-15)


def test_infinite_and_missing_entries_show():
    assert trees.array_norm(jnp.array([1.0, -jnp.inf])) == jnp.inf
    assert np.isnan(trees.array_norm(jnp.array([1.0, jnp.nan, jnp.inf])))
    assert np.isnan(trees.norm({"a": jnp.ones(2), "b": jnp.array(jnp.nan)}))


def test_split_and_join_are_inverse():
    tree = {
        "w": jnp.ones(2),
        "n": 3,
        "rate": 0.5,
        "key": jax.random.key(0),
        "none": None,
        "t": "a",
        "x": [np.ones(1)],
    }
    floating, rest = trees.split_floating(tree)
    assert trees.names(floating) == ("rate", "w", "x.0")
    assert trees.names(rest) == ("key", "n", "t")
    joined = trees.join_floating(floating, rest)
    assert jax.tree.structure(joined) == jax.tree.structure(tree)
    assert all(one is other for one, other in zip(jax.tree.leaves(joined), jax.tree.leaves(tree), strict=True))
    gradient = jax.grad(lambda part: trees.join_floating(part, rest)["w"].sum())(floating)
    assert gradient["n"] is None
    with pytest.raises(ValueError, match="must not share a place"):
        trees.join_floating({"a": 1.0}, {"a": 2})
