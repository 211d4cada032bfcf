import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.calculus import derivatives
from calcdl.calculus.derivatives import derivative
from calcdl.calculus.expressions import parse

MATRIX = jnp.array([[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 2.0]])
VECTORS = {
    "rosenbrock_grad": lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2,
    "exp_prod": lambda x: x[0] * x[1] * x[2] + jnp.exp(x[0]) * x[1],
    "quadform": lambda x: 0.5 * x @ MATRIX @ x - jnp.array([1.0, 2.0, 3.0]) @ x,
    "det_logdet": lambda x: jnp.linalg.slogdet(x)[1],
}
# Written like this the formula subtracts 1 from exp(0.001): 1e-10 is what its own value holds.
LOST_DIGITS = {"cancel_expm1": (1e-9, None)}


def close(got, expected, relative):
    expected = np.asarray(expected, np.float64)
    assert np.all(np.abs(np.asarray(got, np.float64) - expected) <= relative * np.maximum(np.abs(expected), 1e-16)), got


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_scalar_truths_by_automatic_differentiation(truths, dtype):
    column, tolerance = {jnp.float64: (0, 1e-13), jnp.float32: (1, 2e-6)}[dtype]
    for record in truths("derivatives.json")["scalar"]:
        bound = LOST_DIGITS.get(record["id"], (tolerance, tolerance))[column]
        at = float(parse(str(record["x"]), ())())
        expected = float(record["value"])
        if bound is None or (abs(expected) < 1e-10 and dtype == jnp.float32):
            continue
        if record["id"] == "silu_m":  # the minimum: 0 to round-off
            assert abs(float(derivative(parse(record["f"]))(dtype(at)))) < 1e-15
            continue
        got = derivative(parse(record["f"]), record["order"])(dtype(at))
        assert got.dtype == dtype
        assert abs(float(got) - expected) <= bound * abs(expected), record["id"]


def test_vector_truths(truths):
    records = {record["id"]: record for record in truths("derivatives.json")["vector"]}
    for name, f in VECTORS.items():
        record = records[name]
        x = jnp.array([[4.0, 1.0], [2.0, 3.0]] if name == "det_logdet" else record["x"], float)
        close(derivatives.gradient(f)(x), record["grad"], 1e-13)
        close(jax.jit(derivatives.gradient(f))(x.astype(jnp.float32)), record["grad"], 2e-6)
        if "hess" in record:
            close(derivatives.hessian(f)(x), record["hess"], 1e-13)
    polar = records["jacobian_polar"]
    matrix = derivatives.jacobian(lambda x: jnp.stack([x[0] * jnp.cos(x[1]), x[0] * jnp.sin(x[1])]))(
        jnp.array(polar["x"])
    )
    close(matrix, polar["jac"], 1e-13)
    close(jnp.linalg.det(matrix), polar["det"], 1e-13)


def test_implicit_derivatives_of_the_circle(truths):
    (record,) = [record for record in truths("derivatives.json")["vector"] if record["id"] == "implicit_circle"]

    def slope(x, y):
        level = lambda p: p[0] ** 2 + p[1] ** 2  # noqa: E731
        across, up = derivatives.gradient(level)(jnp.stack([x, y]))
        return -across / up

    at = (jnp.array(3.0), jnp.array(4.0))
    along_curve = jax.jvp(slope, at, (jnp.array(1.0), slope(*at)))[1]
    close(slope(*at), record["dydx"], 1e-13)
    close(along_curve, record["d2ydx2"], 1e-13)


def test_taylor_truths(truths):
    functions = {"tan": jnp.tan, "tanh": jnp.tanh, "sqrt": jnp.sqrt}
    for record in truths("extras.json")["taylor"]:
        expected = np.array([float(part) for part in record["coef"]])
        found = jax.jit(partial(derivatives.taylor, functions[record["f"]], order=len(expected) - 1))(
            float(record["at"])
        )
        np.testing.assert_allclose(found.coefficients, expected, rtol=1e-13, atol=1e-15)


def test_taylor_polynomial_has_the_error_of_its_first_missing_term():
    polynomial = derivatives.taylor(jnp.exp, 0.5, 4)
    distance = 1e-2
    error = float(jnp.exp(0.5 + distance) - polynomial(0.5 + distance))
    assert error == pytest.approx(math.exp(0.5) * distance**5 / 120, rel=0.01)
    assert polynomial(jnp.array([0.5, 0.6])).shape == (2,)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_dtype_is_kept(dtype):
    x = jnp.array([0.5, 2.0], dtype)
    f = lambda x: jnp.sum(jnp.sin(x) * x)  # noqa: E731
    assert derivative(jnp.sin, 3)(x[0]).dtype == dtype
    assert derivatives.partial_derivative(f, 1, 0)(x).dtype == dtype
    assert derivatives.hessian_vector_product(f, x)(x).dtype == dtype
    assert derivatives.taylor(jnp.sin, x[0], 2).coefficients.dtype == dtype
    assert derivatives.tangent_plane(f, x)(x).dtype == dtype


def test_orders_and_partials_commute_and_agree_with_the_hessian():
    f = lambda x: jnp.exp(x[0] * x[1]) + x[0] ** 3 * x[2]  # noqa: E731
    x = jnp.array([0.3, -1.2, 2.0])
    matrix = derivatives.hessian(f)(x)
    for i in range(3):
        for j in range(3):
            close(derivatives.partial_derivative(f, i, j)(x), matrix[i, j], 1e-13)
    direction = jnp.array([1.0, 2.0, -1.0])
    close(derivatives.hessian_vector_product(f, x)(direction), matrix @ direction, 1e-13)
    close(derivatives.directional_derivative(f, direction)(x), derivatives.gradient(f)(x) @ direction, 1e-13)
    twice = derivatives.directional_derivative(derivatives.directional_derivative(f, direction), direction)
    close(twice(x), direction @ matrix @ direction, 1e-13)


def test_pytrees_and_batches():
    f = lambda p: jnp.sum(p["w"] ** 2 * p["b"])  # noqa: E731
    p = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    product = jax.jit(lambda v: derivatives.hessian_vector_product(f, p)(v))(p)
    np.testing.assert_allclose(product["w"], 6 * p["w"] + 2 * p["w"] * p["b"])
    close(product["b"], 2 * jnp.sum(p["w"] ** 2), 1e-13)
    assert derivatives.jacobian(lambda x: x[:1] ** 2)(jnp.arange(3.0)).shape == (1, 3)
    xs = jnp.linspace(-1, 1, 5)
    np.testing.assert_allclose(jax.vmap(derivative(jnp.sin, 2))(xs), -jnp.sin(xs), rtol=1e-13)
    plane = derivatives.tangent_plane(lambda x: x @ x, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(plane(jnp.array([[1.0, 2.0], [0.0, 0.0]])), [5.0, -5.0])
    line = derivatives.tangent_line(lambda x: x**3 - 1 / x, 1)
    assert (float(line.value), float(line.slope), float(line(2.0))) == (0.0, 4.0, 4.0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: derivative(jnp.sin, -1), "order"),
        (lambda: derivative(jnp.sin, 1.5), "order"),
        (lambda: derivatives.taylor(jnp.sin, 0.0, -1), "order"),
        (lambda: derivatives.partial_derivative(jnp.sum), "at least one"),
        (lambda: derivatives.partial_derivative(jnp.sum, 3)(jnp.ones(2)), "0 to 1; got 3"),
        (lambda: derivatives.partial_derivative(jnp.sum, 0)(jnp.ones((2, 2))), "vector"),
        (lambda: derivatives.tangent_plane(jnp.sum, jnp.ones((2, 2))), "vector"),
    ],
)
def test_bad_arguments_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()
