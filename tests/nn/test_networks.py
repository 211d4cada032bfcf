from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.diagnostics import tap
from calcdl.diagnostics.taps import capture
from calcdl.nn.activations import ACTIVATIONS
from calcdl.nn.initialisers import INITIALISERS
from calcdl.nn.networks import ARCHITECTURES, convnet, convolutional_stack, stack
from calcdl.nn.normalisation import NORMALISATIONS

TANH = ACTIVATIONS["tanh"]
PLACES = ("preactivation", "branch", "normalised", "activated")


def make(depth, activation="tanh", dtype=jnp.float64, **options):
    return stack(depth, 5, 2, ACTIVATIONS[activation], INITIALISERS["he_normal"], dtype=dtype, **options)


def draw(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def params_of(network, shape):
    """Parameters of a network drawn at random, biases, scales and shifts included, without compiling a thing."""
    shapes = jax.eval_shape(partial(network.init, shape=shape), jax.eval_shape(lambda: jax.random.key(0)))
    leaves, structure = jax.tree.flatten(shapes)
    drawn = [(0.7 * draw(*leaf.shape, seed=seed)).astype(leaf.dtype) for seed, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def layers_of(params):
    """Parameters layer by layer."""
    hidden = params.get("hidden", {"bias": np.zeros((0, 1))})
    rest = [jax.tree.map(lambda leaf: leaf[at], hidden) for at in range(len(hidden["bias"]))]  # noqa: B023
    return ([params["first"]] if "first" in params else []) + rest


def by_hand(params, x, offsets, function, normalise, residual):
    """The equation, layer after layer, with an offset added at every place of `PLACES`."""
    a, stream, seen = x, None, []
    for layer, own in zip(layers_of(params), offsets, strict=True):
        h = a @ layer["weight"] + layer["bias"][None, :]
        h = h if stream is None or residual is None else stream + residual * h
        stream = h + own["preactivation"]
        branch = stream + own["branch"]
        normalised = normalise(layer, branch) + own["normalised"]
        a = function(normalised, *([layer["slope"]] if "slope" in layer else [])) + own["activated"]
        seen.append(dict(zip(PLACES, (stream, branch, normalised, a), strict=True)))
    return a @ params["readout"]["weight"] + params["readout"]["bias"][None, :], seen


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_a_scanned_stack_is_the_loop_over_its_layers(depth):
    network, x = make(depth), draw(7, 3)
    params = params_of(network, (3,))
    y, _ = by_hand(params, x, [dict.fromkeys(PLACES, 0.0)] * depth, np.tanh, lambda layer, h: h, None)
    np.testing.assert_allclose(jax.jit(network.apply)(params, x), y, rtol=1e-11)


@pytest.mark.parametrize(("name", "residual"), [("none", 0.6), ("layer", None), ("batch", 0.6)])
def test_values_and_gradients_at_every_tap_are_those_of_the_equation(name, residual):
    depth, x, normalisation = 3, draw(6, 3), NORMALISATIONS[name](dtype=np.float64)
    network = make(depth, "prelu", normalisation=NORMALISATIONS[name], residual=residual, tap=tap)
    params = params_of(network, (3,))
    assert set(params["hidden"]) == {"weight", "bias", "slope"} | (set() if name == "none" else {"normalisation"})
    zero = [{place: np.zeros((6, 5)) for place in PLACES} for _ in range(depth)]

    def normalise(layer, h):
        return normalisation.apply(layer.get("normalisation"), h)

    def hand(params, offsets):
        y, seen = by_hand(params, x, offsets, ACTIVATIONS["prelu"].function, normalise, residual)
        return jnp.sum(y**2), seen

    @jax.jit
    def program(params):
        found = capture(lambda params: jnp.sum(network.apply(params, x) ** 2))(params)
        return found, jax.value_and_grad(hand, (0, 1), has_aux=True)(params, zero)

    found, ((value, seen), (gradient, back)) = jax.tree.map(np.asarray, program(params))
    np.testing.assert_allclose(found.value, value, rtol=1e-12)
    for one, other in zip(*map(jax.tree.leaves, (found.gradient, gradient)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)
    for place in PLACES:
        first, rest = found.taps[f"first.{place}"], found.taps[f"hidden.{place}"]
        values = np.concatenate([first.value[None], rest.value])
        cotangents = np.concatenate([first.cotangent[None], rest.cotangent])
        for layer in range(depth):
            np.testing.assert_allclose(values[layer], seen[layer][place], rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(cotangents[layer], back[layer][place], rtol=1e-9, atol=1e-11)


def test_the_gain_scales_hidden_weights_alone_and_layers_differ(key):
    def init(gain, initialiser="constant"):
        return stack(3, 4, 2, TANH, INITIALISERS[initialiser], gain).init(key, (3,))

    params = jax.jit(init)(np.float64(2.5))
    assert jax.tree.map(lambda leaf: leaf.ravel()[0], params) == {
        "first": {"weight": 2.5, "bias": 0}, "hidden": {"weight": 2.5, "bias": 0}, "readout": {"weight": 1, "bias": 0},
    }  # fmt: skip
    drawn = jax.jit(partial(init, 1.0, "normal"))()["hidden"]["weight"]
    assert not np.allclose(drawn[0], drawn[1])


def test_a_traced_residual_is_the_fixed_one_and_changes_no_dtype():
    params, x = params_of(make(3, dtype=np.float32), (3,)), draw(4, 3, dtype=np.float32)
    both = jax.jit(lambda alpha: [make(3, residual=one).apply(params, x) for one in (alpha, 0.3)])
    traced, fixed = both(np.float64(0.3))
    assert traced.dtype == np.float32
    np.testing.assert_allclose(traced, fixed, rtol=1e-6)


def test_statistics_of_a_batch_replace_the_batch():
    network, x = make(4, normalisation=NORMALISATIONS["batch"], residual=1.0), draw(9, 3)

    @jax.jit
    def program(params):
        known = network.statistics(params, x)
        return known, [network.apply(params, *given) for given in ((x,), (x, known), (x[:1], known))]

    known, (own, given, alone) = program(params_of(network, (3,)))
    assert jax.tree.map(np.shape, known) == {"first": ((5,), (5,)), "hidden": ((3, 5), (3, 5))}
    np.testing.assert_allclose(given, own, rtol=1e-10)
    np.testing.assert_allclose(alone, own[:1], rtol=1e-10)
    for plain in (make(2), make(2, normalisation=NORMALISATIONS["layer"]), make(0)):
        assert jax.eval_shape(plain.statistics, params_of(plain, (3,)), x) == {}


@pytest.mark.parametrize("name", ["none", "batch"])
def test_the_program_does_not_grow_with_depth(name, key):
    def size(make, *shape):
        def loss(p):
            return jnp.sum(network.apply(p, jnp.ones((2, *shape))))

        network = make(normalisation=NORMALISATIONS[name], residual=1.0)
        return len(str(jax.make_jaxpr(jax.grad(loss))(jax.eval_shape(partial(network.init, shape=shape), key))))

    for made, shape in ((make, (3,)), (partial(convolutional_stack, channels=2, outputs=2, activation=TANH,
                                               initialiser=INITIALISERS["zeros"]), (3, 3, 1))):  # fmt: skip
        assert size(partial(made, 50), *shape) < 1.02 * size(partial(made, 5), *shape)


def test_a_convolutional_stack_of_single_pixels_is_a_stack():
    options = {"normalisation": NORMALISATIONS["batch"], "residual": 0.7, "dtype": np.float64}
    given = (3, 5, 2, TANH, INITIALISERS["zeros"])
    dense, conv, x = stack(*given, **options), convolutional_stack(*given, kernel=1, **options), draw(7, 4)
    params = params_of(dense, (4,))
    images = {**params}
    for where in ("first", "hidden"):
        weight = params[where]["weight"]
        images[where] = {**params[where], "weight": weight.reshape(*weight.shape[:-2], 1, 1, *weight.shape[-2:])}
    assert jax.tree.map(np.shape, images) == jax.tree.map(np.shape, params_of(conv, (1, 1, 4)))
    by_pixel, flat, rows = jax.jit(lambda: (conv.apply(images, x.reshape(7, 1, 1, 4)), dense.apply(params, x),
                                            dense.apply(params, x.reshape(7, 2, 2, 1))))()  # fmt: skip
    np.testing.assert_allclose(by_pixel, flat, rtol=1e-12)
    np.testing.assert_array_equal(rows, flat)


def test_a_convolutional_stack_sees_no_edge():
    network = convolutional_stack(2, 3, 2, TANH, INITIALISERS["zeros"], 1.0, np.float64, kernel=(7, 2))
    x, apply = draw(3, 4, 5, 2), jax.jit(network.apply)
    params = params_of(network, (4, 5, 2))
    y = apply(params, x)
    np.testing.assert_allclose(apply(params, np.roll(x, (1, 3), (1, 2))), y, rtol=1e-12)
    assert np.abs(apply(params, x[:, ::-1]) - y).max() > 1e-3


def test_a_convnet_halves_the_image_while_it_can():
    made = partial(convnet, 3, 2, 10, TANH, INITIALISERS["zeros"], dtype=np.float64)
    network, x = made(tap=tap, normalisation=NORMALISATIONS["batch"]), draw(3, 6, 5, 1)
    params = params_of(network, (6, 5, 1))
    assert params["readout"]["weight"].shape == (2, 10)
    assert params_of(made(pool=1), (6, 5, 1))["readout"]["weight"].shape == (6 * 5 * 2, 10)

    @jax.jit
    def program(params):
        known = network.statistics(params, x)
        found = capture(lambda p: jnp.sum(network.apply(p, x) ** 2))(params)
        return found, known, network.apply(params, x[:1], known), network.apply(params, x)[:1]

    (_, gradient, taps), known, alone, own = program(params)
    assert all(np.isfinite(layer["weight"]).all() and layer["weight"].any() for layer in gradient.values())
    assert [taps[f"layer_{at}.activated"].value.shape[1:3] for at in (1, 2, 3)] == [(6, 5), (3, 2), (1, 1)]
    np.testing.assert_allclose(known["layer_2"].mean, taps["layer_2.branch"].value.mean((0, 1, 2)), rtol=1e-11)
    np.testing.assert_allclose(alone, own, rtol=1e-10)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_keeps_its_dtype_under_jit_vmap_and_grad(name):
    def loss(params, x):
        return jnp.mean(network.apply(params, x) ** 2)

    for dtype in (jnp.bfloat16, np.float32, np.float64):
        network = ARCHITECTURES[name](2, 3, 4, ACTIVATIONS["prelu"], INITIALISERS["he_normal"], dtype=dtype,
                                      normalisation=NORMALISATIONS["batch"])  # fmt: skip
        x, params = draw(2, 5, 4, 4, 1).astype(dtype), params_of(network, (4, 4, 1))
        # Tracing finds what would not fit; values are held elsewhere.
        program = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))
        values, gradients = jax.eval_shape(program, params, x)
        assert {leaf.dtype for leaf in jax.tree.leaves((params, values, gradients))} == {np.dtype(dtype)}
        assert values.shape == (2,)
        assert jax.tree.map(lambda leaf: (2, *leaf.shape), params) == jax.tree.map(lambda leaf: leaf.shape, gradients)


def test_float32_does_not_depend_on_x64():
    network = make(3, dtype=np.float32, normalisation=NORMALISATIONS["layer"], residual=3**-0.5)
    params, x = params_of(network, (3,)), draw(4, 3, dtype=np.float32)
    wide = np.asarray(jax.jit(network.apply)(params, x))
    with jax.enable_x64(False):
        narrow = np.asarray(jax.jit(network.apply)(params, x))
    assert wide.dtype == narrow.dtype == np.float32
    np.testing.assert_array_equal(wide, narrow)


@pytest.mark.parametrize(
    ("field", "value"), [("depth", -1), ("depth", True), ("width", 0), ("outputs", 0), ("depth", 2.0)]
)
def test_bad_sizes_are_refused_by_name(field, value):
    sizes = {"depth": 2, "width": 5, "outputs": 2, field: value}
    with pytest.raises(ValueError, match=f"{field}: expected an integer"):
        stack(**sizes, activation=TANH, initialiser=INITIALISERS["zeros"])
    for make_images in (convolutional_stack, convnet):
        images = {"channels" if name == "width" else name: size for name, size in sizes.items()}
        with pytest.raises(ValueError, match=": expected an integer"):
            make_images(**images, activation=TANH, initialiser=INITIALISERS["zeros"])


def test_other_bad_arguments_are_refused_by_name():
    for residual in (True, "1", float("nan"), float("inf")):
        with pytest.raises(ValueError, match="residual: expected None or a finite number"):
            make(2, residual=residual)
    with pytest.raises(ValueError, match="normalisation: expected a member of NORMALISATIONS"):
        make(2, normalisation="batch")
    with pytest.raises(ValueError, match="pool: expected an integer"):
        convnet(1, 2, 2, TANH, INITIALISERS["zeros"], pool=0)
