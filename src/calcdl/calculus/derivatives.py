r"""Derivatives by automatic differentiation, at a point and as functions, and the polynomials they make.

What maps a function to a function (`derivative`, `partial_derivative`, `gradient`, `directional_derivative`,
`jacobian`, `hessian`) can be nested, compiled and batched like any other function. What belongs to a point
(`hessian_vector_product`, `taylor`, `tangent_line`, `tangent_plane`) takes the point as well.

Automatic differentiation returns a number everywhere, at a kink too: 1 for |x| at 0. Whether the derivative exists
there is a question on the limit of the difference quotient, and
`calculus.smoothness` asks it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.trees import as_floating
from calcdl.types import Array, Objective, Params, Scalar

Function = Callable[[Scalar], Scalar]


class Taylor(NamedTuple):
    """A polynomial in powers of the distance from a point; call it to evaluate it.

    Attributes:
        centre: the point.
        coefficients: `f⁽ᵏ⁾(centre) / k!` by k.
    """

    centre: Scalar
    coefficients: Float[Array, " terms"]

    def __call__(self, x: Array | float) -> Array:
        """Evaluate `Σ_k coefficients_k (x - centre)^k` by Horner's rule."""
        distance = jnp.asarray(x, self.coefficients.dtype) - self.centre
        total = jnp.zeros_like(distance)
        for coefficient in self.coefficients[::-1]:
            total = total * distance + coefficient
        return total


class Tangent(NamedTuple):
    """The linear function that touches another one; call it to evaluate it.

    Attributes:
        point: where they touch.
        value: the value there.
        slope: the derivative there, or the gradient.
    """

    point: Any
    value: Scalar
    slope: Any

    def __call__(self, x: Any) -> Array:
        """Evaluate `value + slope · (x - point)`, also on a batch along the leading axes of x."""
        x = jnp.asarray(x, self.slope.dtype)
        rise = (x - jnp.broadcast_to(self.point, x.shape)) * jnp.broadcast_to(self.slope, x.shape)
        return self.value + (rise if self.slope.ndim == 0 else jnp.sum(rise, axis=-1))


def derivative(f: Callable[[Scalar], Any], order: int = 1) -> Callable[[Scalar], Any]:
    r"""Differentiate a function of one variable, any number of times.

    $$ f^{(n)}(x) = \frac{d^n f}{dx^n} $$

    Args:
        f: function of a scalar; it may return any pytree of arrays.
        order: n, at least 0.

    Returns:
        The derivative, a function of a scalar.

    Raises:
        ValueError: order is not a whole number of at least 0.

    Example:
        >>> cubic = lambda x: x**3 - 4 * x - 5
        >>> float(derivative(cubic)(2.0)), float(derivative(cubic, 2)(2.0)), float(derivative(cubic, 4)(2.0))
        (8.0, 12.0, 0.0)
    """
    if not isinstance(order, int) or order < 0:
        raise ValueError(f"order must be a whole number of at least 0, got {order!r}")
    return lambda x: _derivatives(f, order)(as_floating(x))[-1]


def partial_derivative(f: Objective, *indices: int) -> Callable[[Float[Array, " n"]], Scalar]:
    r"""Differentiate partially, by one coordinate after another.

    $$ \frac{\partial^k f}{\partial x_{i_1} \cdots \partial x_{i_k}} $$

    Args:
        f: scalar function of a vector.
        indices: i_1 ... i_k, which coordinates; a coordinate may come more than once.

    Returns:
        The partial derivative, a function of a vector.

    Raises:
        ValueError: no index is given, or the vector has no such coordinate.

    Example:
        >>> f = lambda x: 3 * x[0] ** 2 + 5 * jnp.exp(x[1])
        >>> [float(partial_derivative(f, *by)(jnp.array([2.0, 0.0]))) for by in [(0,), (1,), (0, 0), (0, 1)]]
        [12.0, 5.0, 6.0, 0.0]
    """
    if not indices:
        raise ValueError("indices must name at least one coordinate, got none")

    def along(index: int, g: Callable[[Array], Scalar]) -> Callable[[Array], Scalar]:
        def differentiated(x: Array) -> Scalar:
            x = _vector(x)
            if not 0 <= index < len(x):
                raise ValueError(f"index must be one of the {len(x)} coordinates, 0 to {len(x) - 1}; got {index}")
            slope: Scalar = jax.jvp(g, (x,), (jnp.zeros_like(x).at[index].set(1),))[1]
            return slope

        return differentiated

    for index in indices:
        f = along(index, f)
    return f


def gradient(f: Objective) -> Callable[[Params], Params]:
    r"""Return the gradient of a scalar function of any pytree: the direction of steepest ascent, as long as the slope.

    $$ (\nabla f)_i = \frac{\partial f}{\partial x_i} $$

    Args:
        f: scalar function of a pytree of floating-point arrays.

    Returns:
        The gradient, a function that returns a pytree of the same structure.

    Example:
        >>> gradient(lambda x: 3 * x[0] ** 2 + 5 * jnp.exp(x[1]))(jnp.array([2.0, 0.0])).tolist()
        [12.0, 5.0]
    """
    return jax.grad(f)


def directional_derivative(f: Callable[[Params], Any], direction: Params) -> Callable[[Params], Any]:
    r"""Differentiate along a direction, without the whole gradient.

    $$ D_v f(x) = \lim_{t \to 0} \frac{f(x + t v) - f(x)}{t} = \nabla f(x) \cdot v $$

    Args:
        f: function of a pytree of floating-point arrays; it may return any pytree.
        direction: v, of the structure and shapes of x. It is not scaled to length one.

    Returns:
        The derivative along v, a function of x.

    Example:
        >>> float(directional_derivative(lambda x: x[0] * x[1], jnp.array([1.0, 1.0]))(jnp.array([2.0, 3.0])))
        5.0
    """

    def along(x: Params) -> Any:
        x = jax.tree.map(as_floating, x)
        tangent = jax.tree.map(lambda part, at: jnp.asarray(part, at.dtype), direction, x)
        return jax.jvp(f, (x,), (tangent,))[1]

    return along


def jacobian(f: Callable[[Float[Array, " n"]], Array]) -> Callable[[Float[Array, " n"]], Float[Array, "m n"]]:
    r"""Return the Jacobian matrix, by rows or by columns, whichever are fewer.

    $$ J_{ij} = \frac{\partial f_i}{\partial x_j} $$

    Args:
        f: function of an array; it returns an array.

    Returns:
        The Jacobian, a function of x; the axes of f(x) come first, then those of x.

    Example:
        >>> jacobian(lambda x: jnp.stack([x[0] * x[1], x[0] - x[1]]))(jnp.array([2.0, 3.0])).tolist()
        [[3.0, 2.0], [1.0, -1.0]]
    """

    def matrix(x: Array) -> Array:
        rows = jax.eval_shape(f, x).size
        found: Array = (jax.jacrev if rows < jnp.size(x) else jax.jacfwd)(f)(x)
        return found

    return matrix


def hessian(f: Objective) -> Callable[[Float[Array, " n"]], Float[Array, "n n"]]:
    r"""Return the Hessian matrix: the Jacobian of the gradient, forward over reverse.

    $$ H_{ij} = \frac{\partial^2 f}{\partial x_i \partial x_j} $$

    Args:
        f: scalar function of an array or of a pytree of arrays.

    Returns:
        The Hessian, a function of x; for a pytree, a tree of trees of blocks.

    Example:
        >>> hessian(lambda x: x[0] ** 2 * x[1])(jnp.array([1.0, 3.0])).tolist()
        [[6.0, 2.0], [2.0, 0.0]]
    """
    return jax.jacfwd(jax.grad(f))


def hessian_vector_product(f: Objective, x: Params) -> Callable[[Params], Params]:
    r"""Return the Hessian at a point as a linear map, without the matrix, for about three gradients' work a product.

    $$ H v = \frac{d}{dt} \nabla f(x + t v) \Big|_{t=0} $$

    What does not depend on v is computed once, so this is what an iterative method calls again and again.

    Args:
        f: scalar function of a pytree of floating-point arrays.
        x: the point.

    Returns:
        The map v -> H v; v has the structure, shapes and dtypes of x.

    Example:
        >>> product = hessian_vector_product(lambda x: x[0] ** 2 * x[1], jnp.array([1.0, 3.0]))
        >>> product(jnp.array([1.0, 0.0])).tolist(), product(jnp.array([0.0, 1.0])).tolist()
        ([6.0, 2.0], [2.0, 0.0])

    Reference:
        Pearlmutter (1994), Fast exact multiplication by the Hessian, Neural Computation 6.
    """
    product: Callable[[Params], Params] = jax.linearize(jax.grad(f), x)[1]
    return product


def taylor(f: Function, centre: Scalar | float, order: int) -> Taylor:
    r"""Expand a function of one variable in powers of the distance from a point.

    $$ f(x) \approx \sum_{k=0}^n \frac{f^{(k)}(a)}{k!} (x - a)^k $$

    Args:
        f: function of a scalar.
        centre: a.
        order: n, the highest power.

    Returns:
        The polynomial, which can be called.

    Raises:
        ValueError: order is not a whole number of at least 0.

    Example:
        >>> [round(float(part), 6) for part in taylor(jnp.tan, 0.0, 3).coefficients]
        [0.0, 1.0, 0.0, 0.333333]
    """
    if not isinstance(order, int) or order < 0:
        raise ValueError(f"order must be a whole number of at least 0, got {order!r}")
    centre = as_floating(centre)
    parts = jnp.stack(_derivatives(f, order)(centre))
    return Taylor(centre, parts / jnp.cumprod(jnp.maximum(jnp.arange(order + 1, dtype=parts.dtype), 1)))


def tangent_line(f: Function, x: Scalar | float) -> Tangent:
    """Draw the line through a point of a curve, with its slope.

    `t(z) = f(x) + f'(x) (z - x)`

    Args:
        f: function of a scalar.
        x: where.

    Returns:
        The line, which can be called.

    Example:
        >>> line = tangent_line(lambda x: 3 * x**2 - 4 * x, 1.0)
        >>> float(line.slope), float(line(0.0))
        (2.0, -3.0)
    """
    x = as_floating(x)
    return Tangent(x, *_derivatives(f, 1)(x))


def tangent_plane(f: Objective, x: Float[Array, " n"]) -> Tangent:
    """Lay the plane that touches the graph of a function of several variables.

    `t(z) = f(x) + ∇f(x) · (z - x)`

    Args:
        f: scalar function of a vector.
        x: where.

    Returns:
        The plane, which can be called, on a vector or on a batch [..., n].

    Example:
        >>> plane = tangent_plane(lambda x: x[0] ** 2 + x[1] ** 2, jnp.array([1.0, 2.0]))
        >>> plane.slope.tolist(), float(plane(jnp.array([0.0, 0.0])))
        ([2.0, 4.0], -5.0)
    """
    x = _vector(x)
    return Tangent(x, *jax.value_and_grad(f)(x))


def _derivatives(f: Callable[[Scalar], Any], order: int) -> Callable[[Scalar], tuple[Any, ...]]:
    """Return the function of x that returns (f, f', ..., f⁽ⁿ⁾), where what lower orders share is computed once."""
    if order == 0:
        return lambda x: (f(x),)
    lower = _derivatives(f, order - 1)

    def all_of_them(x: Scalar) -> tuple[Any, ...]:
        values, slopes = jax.jvp(lower, (x,), (jnp.ones_like(x),))
        return (*values, slopes[-1])

    return all_of_them


def _vector(x: Array) -> Array:
    x = as_floating(x)
    if x.ndim != 1:
        raise ValueError(f"x must be a vector of coordinates, got an array of shape {x.shape}")
    return x
