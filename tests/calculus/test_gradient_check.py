import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus.gradient_check import AGREES, DIFFERS, HIDDEN, KINK, check_gradient, compare_gradient

DTYPES = ["bfloat16", "float16", "float32", "float64"]


@jax.custom_jvp
def planted(x):
    return jnp.sin(x)


@planted.defjvp
def _(primals, tangents):
    (x,), (tangent,) = primals, tangents
    return planted(x), jnp.cos(x).at[3].multiply(1.01) * tangent


def network(dtype, activation=jnp.tanh):
    keys = jax.random.split(jax.random.key(0), 4)
    x, y, w, v = (jax.random.normal(k, s, jnp.float32).astype(dtype)
                  for k, s in zip(keys, [(8, 2), (8,), (2, 3), (3,)], strict=True))  # fmt: skip
    loss = lambda p: jnp.mean((activation(x @ p["w"] + p["b"][None, :]) @ p["v"] - y) ** 2)  # noqa: E731
    return loss, {"w": w, "b": jnp.zeros(3, dtype), "v": v}


@pytest.mark.parametrize("dtype", DTYPES)
def test_smooth_passes_and_one_percent_in_one_entry_does_not(dtype):
    loss, params = network(dtype)
    params |= {"angle": jnp.linspace(-1, 1, 7).astype(dtype)}
    check = check_gradient(lambda p: loss(p) + jnp.sum(planted(p["angle"])), params)
    leaf, *smooth = check.leaves
    assert [(leaf.name, leaf.counts) for leaf in smooth] == [
        ("b", (3, 0, 0, 0)), ("v", (3, 0, 0, 0)), ("w", (6, 0, 0, 0))]  # fmt: skip
    assert {leaf.dtype for leaf in check.leaves} == {dtype}
    assert all(leaf.rounding <= 32 * float(jnp.finfo(dtype).eps) for leaf in smooth)
    assert not check.passes
    assert leaf.counts == (6, 1, 0, 0)
    assert leaf.worst == (3,)
    assert (leaf.analytic, leaf.numeric) == pytest.approx((1.01, 1.0), abs=1e-6)
    assert "angle[3]" in check.verdict
    assert "numeric (differences)" in str(check)


def test_without_x64_it_is_as_sharp():
    with jax.enable_x64(False):
        check = check_gradient(lambda x: jnp.sum(planted(x)), jnp.linspace(-1, 1, 7))
        assert check.leaves[0].counts == (6, 1, 0, 0)
        assert jnp.zeros(()).dtype == jnp.float32


def test_kinks_pass_where_the_gradient_lies_between_the_slopes():
    x = jnp.array([0.0, 0.5, -0.5])
    check = check_gradient(lambda x: jnp.sum(jax.nn.relu(x)), x)
    assert check.passes
    assert check.leaves[0].counts == (2, 0, 1, 0)
    beyond = check_gradient(lambda x: jnp.sum(jax.nn.relu(x)), x, gradient=lambda x: jnp.where(x >= 0, 1.5, 0.0))
    assert beyond.leaves[0].counts == (1, 2, 0, 0)
    check = check_gradient(*network("float32", jax.nn.relu))
    assert check.passes
    assert "agrees in 12 of 12 entries" in check.verdict


def test_a_gradient_by_hand_is_judged():
    f = lambda x: jnp.sum(x**3)  # noqa: E731
    x = jnp.array([[1.0, -2.0], [0.5, 3.0]])
    assert check_gradient(f, x, gradient=lambda x: 3 * x**2).passes
    assert check_gradient(f, x, gradient=lambda x: -3 * x**2).leaves[0].counts[DIFFERS] == 4
    assert not check_gradient(f, x, gradient=lambda x: jnp.full_like(x, jnp.nan)).passes


def test_noise_hides_and_is_said():
    f = lambda x: jnp.sum(1e16 + x)  # noqa: E731
    check = check_gradient(f, jnp.array([0.3]), gradient=lambda x: jnp.array([1.0]))
    assert check.passes
    assert check.leaves[0].counts[HIDDEN] == 1
    assert "hidden by the noise" in check.verdict


def test_leaves_that_are_not_floating_are_left_alone():
    check = check_gradient(lambda p: p["scale"] * p["count"], {"scale": jnp.array(2.0), "count": 3})
    assert [leaf.name for leaf in check.leaves] == ["scale"]
    assert check.leaves[0].numeric == pytest.approx(3)


def test_overflow_of_a_narrow_dtype_fails():
    check = check_gradient(lambda x: jnp.sum(x**4), jnp.array([30.0], jnp.float16))
    assert not check.passes
    assert "not finite in float16" in check.verdict


def test_it_batches():
    xs = jnp.array([[0.1, 0.2], [1.0, 0.0]])
    found = jax.jit(jax.vmap(lambda x: compare_gradient(lambda x: jnp.sum(jnp.abs(x)), x)))(xs)
    np.testing.assert_array_equal(found.status, [[AGREES, AGREES], [AGREES, KINK]])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: check_gradient(jnp.sin, jnp.ones(2)), "scalar"),
        (lambda: check_gradient(lambda x: 1.0, 3), "floating"),
        (lambda: check_gradient(jnp.sum, jnp.ones(2), gradient=lambda x: (x, x)), "structure"),
    ],
)
def test_bad_arguments_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()
