from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.diagnostics import capture, observe, tap

DEPTH, WIDTH = 4, 3
WEIGHTS = np.random.default_rng(0).normal(size=(DEPTH, WIDTH, WIDTH))
ROWS = np.random.default_rng(1).normal(size=(2, WIDTH))


def deep(weights, rows, wrap=lambda body: body):
    """A stack of layers with a tap before each activation and one at the end."""

    def layer(h, weight):
        return jnp.tanh(tap(h @ weight, "before")), None

    h, _ = jax.lax.scan(wrap(layer), rows, weights)
    return jnp.sum(tap(h, "end") ** 2)


def by_hand(weights, rows, offsets):
    h = rows
    for weight, offset in zip(weights, offsets, strict=True):
        h = jnp.tanh(h @ weight + offset)
    return jnp.sum(h**2)


def compiled(body):
    return jax.jit(body)


@pytest.mark.parametrize("wrap", [lambda body: body, jax.checkpoint, compiled], ids=["plain", "checkpoint", "jit"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_taps_in_a_scan_are_stacked_and_are_the_derivatives_by_offsets(wrap, dtype):
    weights, rows = jnp.asarray(WEIGHTS, dtype), jnp.asarray(ROWS, dtype)
    seen = jax.jit(capture(partial(deep, wrap=wrap)))(weights, rows)
    offsets = jnp.zeros((DEPTH, *ROWS.shape), dtype)
    tolerance = 1e-13 if dtype == jnp.float64 else 2e-6
    assert set(seen.taps) == {"before", "end"}
    np.testing.assert_allclose(seen.value, by_hand(weights, rows, offsets), rtol=10 * tolerance)
    np.testing.assert_allclose(seen.gradient, jax.grad(deep)(weights, rows), atol=10 * tolerance)
    expected = jax.grad(by_hand, argnums=2)(weights, rows, offsets)
    np.testing.assert_allclose(seen.taps["before"].cotangent, expected, atol=10 * tolerance)
    np.testing.assert_allclose(jnp.tanh(seen.taps["before"].value[-1]), seen.taps["end"].value, rtol=tolerance)
    np.testing.assert_allclose(seen.taps["end"].cotangent, 2 * seen.taps["end"].value, rtol=tolerance)
    assert {leaf.dtype for leaf in jax.tree.leaves(seen)} == {np.dtype(dtype)}


def test_without_capture_a_tap_is_the_identity():
    bare = jax.make_jaxpr(lambda x: jnp.sum(jnp.sin(x)))(1.0)
    tapped = jax.make_jaxpr(lambda x: jnp.sum(jnp.sin(tap(x, "x"))))(1.0)
    assert len(tapped.jaxpr.eqns) == len(bare.jaxpr.eqns) + 1
    text = jax.jit(lambda x: jnp.sin(tap(x, "x"))).lower(1.0).compile().as_text()
    assert text.count(" sine(") == 1
    np.testing.assert_array_equal(jax.vmap(jax.grad(lambda x: tap(x, "x") ** 2))(jnp.arange(3.0)), [0, 2, 4])


def test_taps_under_vmap_inside_and_outside():
    weights, rows = jnp.asarray(WEIGHTS), jnp.asarray(ROWS)

    def each(weights, rows):
        # One example at a time inside, all of them in the tap.
        return jnp.sum(jax.vmap(lambda row: tap(jnp.sin(row @ weights[0]), "feature").sum())(rows))

    seen = capture(each)(weights, rows)
    assert seen.taps["feature"].value.shape == ROWS.shape
    np.testing.assert_array_equal(seen.taps["feature"].cotangent, np.ones_like(ROWS))
    many = jax.vmap(capture(deep), in_axes=(None, 0))(weights, jnp.stack([rows, 2 * rows]))
    for lane, scale in enumerate((1, 2)):
        one = capture(deep)(weights, scale * rows)
        for name in ("before", "end"):
            np.testing.assert_allclose(many.taps[name].cotangent[lane], one.taps[name].cotangent, rtol=1e-12)


def test_what_is_captured_can_be_differentiated():
    # The cotangent of x^3 y at the tap x^2 is x y... so that of its square by y is 2 x^2 y.
    def loss(x, y):
        return tap(x**2, "square") * x * y

    def size(y):
        return capture(loss)(jnp.float64(3.0), y).taps["square"].cotangent ** 2

    assert float(jax.grad(size)(2.0)) == pytest.approx(2 * 9 * 2, rel=1e-13)


def test_custom_rules_without_a_tap_stay():
    def loss(x):
        return jnp.sum(jax.nn.relu(tap(x, "x")) + jax.nn.logsumexp(x))

    seen = capture(loss)(jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(seen.taps["x"].cotangent, [0.0, 1.0])
    np.testing.assert_allclose(seen.gradient, jax.grad(loss)(jnp.array([0.0, 1.0])), rtol=1e-14)


def test_a_custom_rule_around_a_tap_is_replaced_by_the_derivative():
    @jax.custom_jvp
    def odd(x):
        return tap(x**2, "inside")

    odd.defjvp(lambda primals, tangents: (odd(*primals), 100 * tangents[0]))
    seen = capture(lambda x: 3 * odd(x))(2.0)
    assert (float(seen.taps["inside"].cotangent), float(seen.gradient)) == (3, 12)


def test_trees_and_whole_numbers_are_tapped():
    def loss(params):
        both = tap({"a": params, "count": jnp.int32(7)}, "both")
        return both["a"] * 2

    seen = capture(loss)(1.5)
    assert {name: float(one.value) for name, one in seen.taps.items()} == {"both.a": 1.5, "both.count": 7}
    assert seen.taps["both.count"].cotangent is None


def test_nested_scans_stack_twice():
    def loss(x):
        def outer(carry, _):
            carry, rows = jax.lax.scan(lambda c, row: (tap(c * row, "step"), c), carry, jnp.array([1.0, 2.0, 0.5]))
            return carry, rows

        last, rows = jax.lax.scan(outer, x, length=2, reverse=True)
        return last + 0 * rows.sum()

    seen = capture(loss)(1.0)
    np.testing.assert_array_equal(seen.taps["step"].value, [[1, 2, 1], [1, 2, 1]])
    np.testing.assert_array_equal(seen.taps["step"].cotangent, [[1, 0.5, 1], [1, 0.5, 1]])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x: tap(tap(x, "x") * 2, "x"), "expected each name once, got 'x' twice"),
        (
            lambda x: jax.lax.cond(x > 0, lambda: tap(x, "branch"), lambda: x),
            "tap 'branch': expected outside of branch",
        ),
        (
            lambda x: jax.lax.while_loop(lambda y: y < 9, lambda y: tap(2 * y, "again"), x),
            "tap 'again': expected outside",
        ),
        (lambda x: jnp.stack([tap(x, "x"), x]), "function: expected it to return one scalar"),
        (lambda x: tap(x, ""), "name: expected a name for the tap"),
    ],
)
def test_what_no_array_can_hold_is_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        capture(loss)(1.0)


def test_only_the_taps_wanted_are_seen():
    def loss(w):
        first = tap(2 * w, "first")

        def layer(x, _):
            return tap(jnp.sin(tap(x, "before")), "after"), None

        return jax.lax.scan(layer, first, length=3)[0] ** 2

    everything, wanted = capture(loss)(0.5), capture(loss, ("after",))(0.5)
    assert set(everything.taps) == {"first", "before", "after"}
    assert set(wanted.taps) == {"after"}
    np.testing.assert_array_equal(wanted.taps["after"].value, everything.taps["after"].value)
    np.testing.assert_array_equal(wanted.taps["after"].cotangent, everything.taps["after"].cotangent)
    assert wanted.gradient == everything.gradient
    with pytest.raises(
        ValueError, match=r"names: expected taps of the function, got 'nowhere'; there are: after, before"
    ):
        capture(loss, ("nowhere",))(0.5)


def test_a_tap_that_is_not_wanted_may_stand_in_a_branch():
    def loss(w):
        chosen = jax.lax.cond(w > 0, lambda x: tap(x, "positive"), lambda x: -x, w)
        return tap(chosen, "size") ** 2

    assert capture(loss, ("size",))(-3.0).taps["size"].cotangent == 6


def test_observe_sees_the_values_alone():
    weights, rows = jnp.asarray(WEIGHTS), jnp.asarray(ROWS)
    value, seen = jax.jit(observe(lambda weights, rows: {"loss": deep(weights, rows)}))(weights, rows)
    captured = capture(deep)(weights, rows)
    np.testing.assert_allclose(value["loss"], captured.value, rtol=1e-14)
    assert set(seen) == set(captured.taps)
    for name, tapped in captured.taps.items():
        np.testing.assert_allclose(seen[name], tapped.value, rtol=1e-14)
    assert set(observe(deep, ["e*"])(weights, rows)[1]) == {"end"}
    assert observe(lambda x: x)(1.0) == (1.0, {})
    assert "cos" not in str(jax.make_jaxpr(observe(lambda x: jnp.sin(tap(x, "x"))))(1.0))
