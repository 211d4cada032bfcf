import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.diagnostics.forward_order import uses, with_taps
from calcdl.diagnostics.taps import capture

WEIGHT, DEEP, X = np.ones((3, 3)), np.ones((4, 3, 3)), np.ones((2, 3))


def order(function, params, x=X):
    """Names in the order of use, those without a place left out, and the stacked ones among them."""
    flat, structure = jax.tree.flatten(params)
    program = jax.make_jaxpr(lambda flat, x: function(jax.tree.unflatten(structure, flat), x))(flat, x)
    found = dict(zip(sorted(params), uses(program, [True] * len(flat) + [False]), strict=False))
    used = sorted((use.place, name) for name, use in found.items() if use.place)
    return [name for _, name in used], [name for name, use in found.items() if use.stacked]


def deep(params, x, body):
    h, _ = jax.lax.scan(body, x @ params["z_first"], (params["hidden_b"], params["hidden_a"]))
    return jnp.sum(h @ params["a_readout"])


def test_the_order_is_that_of_use_not_of_names():
    params = dict.fromkeys(["a", "b", "c", "unused", "thrown_away"], WEIGHT)

    def loss(p, x):
        penalty = sum(jnp.sum(weight**2) for name, weight in p.items() if name != "unused")
        (x @ p["thrown_away"]).sum()
        return penalty * 0.1 + jnp.sum(jax.nn.relu(x @ (2 * p["c"]).T) @ p["a"] @ p["b"])

    assert order(loss, params) == (["c", "a", "b", "thrown_away"], [])
    assert order(lambda p, x: jnp.sum(x @ p["b"]), {"a": WEIGHT, "b": WEIGHT}) == (["b"], [])


@pytest.mark.parametrize("wrap", [lambda body: body, jax.jit, jax.checkpoint], ids=["plain", "jit", "checkpoint"])
def test_what_a_scan_runs_over_is_stacked_and_ordered_inside(wrap):
    params = {"a_readout": WEIGHT, "hidden_a": DEEP, "hidden_b": DEEP, "z_first": WEIGHT}
    body = wrap(lambda h, row: (jnp.tanh(h @ row[0]) @ row[1], None))
    found = wrap(lambda params, x: deep(params, x, body))
    assert order(found, params) == (["z_first", "hidden_b", "hidden_a", "a_readout"], ["hidden_a", "hidden_b"])


def test_parameters_used_in_every_step_are_not_stacked():
    # A recurrent network: the data are scanned over, and the carry starts from zeros.
    def loss(p, x):
        h, _ = jax.lax.scan(lambda h, row: (jnp.tanh(h @ p["b"] + row @ p["a"]), None), jnp.zeros(3), x)
        return jnp.sum(h * p["out"])

    assert order(loss, {"a": WEIGHT, "b": WEIGHT, "out": np.ones(3)}) == (["b", "a", "out"], [])


def test_data_that_are_closed_over_are_data_too():
    program = jax.make_jaxpr(lambda late, early: jnp.sum(jnp.asarray(X) @ early @ late))(WEIGHT, WEIGHT)
    late, early = uses(program, [True, True])
    assert early.place < late.place
    assert [one.place for one in uses(jax.make_jaxpr(jnp.multiply)(2.0, 3.0), [True, True])] == [(), ()]


def test_one_compiled_function_for_several_layers_has_a_tap_in_each():
    layer = jax.jit(lambda weight, h: jax.nn.relu(h @ weight))
    weights = [place * WEIGHT for place in (1.0, 2.0, 3.0)]

    def loss(weights, x):
        for weight in weights:
            x = layer(weight, x)
        return jnp.sum(x)

    program = jax.make_jaxpr(loss)(weights, X)
    found = uses(program, [True, True, True, False])[:3]
    tapped = with_taps(program, {one.equation: str(place) for place, one in enumerate(found)})
    seen = jax.jit(capture(lambda weights, x: tapped(*weights, x)[0]))(weights, X)
    np.testing.assert_allclose(seen.value, jnp.sum(X @ WEIGHT @ WEIGHT @ WEIGHT * 6))
    for place, expected in enumerate((54.0, 9.0, 1.0)):
        np.testing.assert_allclose(seen.taps[str(place)].cotangent, np.full((2, 3), expected))
