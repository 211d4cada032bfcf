"""The chain rule, link by link: along a composition, and back through a network.

- `chain`: the factors of a composition are matrices. Their product may be taken from the input (forward mode), from the
  output (backward mode, cheap for one output) or in the order of least cost.
- `backpropagate`: the backward order in a network, where a factor is a weight matrix times the slopes of activations.

Records keep their names as keys, in order, and so pass through `jax.jit` and `jax.vmap`.
"""

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.calculus.derivatives import derivative, jacobian
from calcdl.calculus.expressions import Expression
from calcdl.trees import array_norm
from calcdl.types import Array, Scalar

Function = Callable[..., Array]
Links = Sequence[Function | tuple[str, Function]] | Mapping[str, Function]
ByName = OrderedDict[str, Array]

_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Chain(NamedTuple):
    """A composition at one input. Matrices are [outputs, inputs] of the link or links that they belong to.

    Attributes:
        values: the input, then the output of every link.
        jacobians: J_k, the local Jacobian of each link.
        forward: J_k ... J_1, accumulated from the input.
        backward: J_n ... J_k, accumulated from the output; one row, the adjoint, where the output is a scalar.
    """

    values: tuple[Array, ...]
    jacobians: ByName
    forward: ByName
    backward: ByName

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the links, from the input on."""
        return tuple(self.jacobians)

    @property
    def jacobian(self) -> Float[Array, "outputs inputs"]:
        """Jacobian of the whole composition, J_n ... J_1."""
        return self.backward[self.names[0]]

    @property
    def gradient(self) -> Float[Array, "*shape"]:
        """Gradient of a scalar output, of the shape of the input."""
        if self.jacobian.shape[-2] != 1:
            raise ValueError(f"gradient needs a scalar output, got {self.jacobian.shape[-2]} outputs; see jacobian")
        return self.jacobian.reshape(self.values[0].shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of scalars: of the input, then of the output of every link."""
        matrices = list(self.jacobians.values())
        return (matrices[0].shape[-1], *(matrix.shape[-2] for matrix in matrices))

    @property
    def forward_cost(self) -> int:
        """Multiplications of scalars to take the product from the input on."""
        first, *rest = self.sizes
        return sum(first * one * other for one, other in itertools.pairwise(rest))

    @property
    def backward_cost(self) -> int:
        """Multiplications of scalars to take the product from the output on."""
        *rest, last = self.sizes
        return sum(last * one * other for one, other in itertools.pairwise(rest))

    @property
    def cheapest(self) -> tuple[int, str]:
        """Least number of multiplications, and the order that needs it, such as `(c (b a))`."""
        return _cheapest(self.sizes, self.names)


def chain(links: Links, x: Float[Array, "*shape"] | float) -> Chain:
    """Follow a composition and its Jacobians.

    `d(f_n ∘ ... ∘ f_1)/dx = J_n ... J_1`,  `J_k = df_k/dx` at the output of f_{k-1}

    Args:
        links: functions of one array, the first to be applied first; with names as a dict or as pairs (name, function).
        x: the input, a floating-point array of any shape. Arrays are flattened in the Jacobians.

    Returns:
        Values, local Jacobians and running products from both ends; costs are properties.

    Raises:
        ValueError: there is no link, or two have one name.

    Example:
        >>> links = {"square": lambda x: x**2, "sum": jnp.sum}
        >>> result = chain(links, jnp.array([1.0, 3.0]))
        >>> print(result.gradient, result.forward_cost, result.backward_cost, result.cheapest)
        [2. 6.] 4 4 (4, '(sum square)')

    Reference: Griewank and Walther 2008, Evaluating derivatives, chapters 3 and 14.
    """
    named = _named(links)
    values = [jnp.asarray(x, jnp.result_type(x, 1.0))]
    jacobians: ByName = OrderedDict()
    for name, link in named:
        values.append(jnp.asarray(link(values[-1])))
        jacobians[name] = jacobian(_flat(link, values[-2].shape))(values[-2].ravel())
    forward: ByName = OrderedDict()
    backward: list[Array] = []
    for name, matrix in jacobians.items():
        forward[name] = _product(matrix, forward[next(reversed(forward))]) if forward else matrix
    for matrix in reversed(jacobians.values()):
        backward.append(_product(backward[-1], matrix) if backward else matrix)
    return Chain(tuple(values), jacobians, forward, OrderedDict(zip(jacobians, reversed(backward), strict=True)))


class Row(NamedTuple):
    """One link: its name, numbers of inputs and outputs, norms of its Jacobian and of the products that end in it."""

    name: str
    inputs: int
    outputs: int
    jacobian_norm: Scalar
    forward_norm: Scalar
    backward_norm: Scalar


def table(result: Chain) -> tuple[Row, ...]:
    """List the links with the Frobenius norms of their factors.

    `‖J_k‖`,  `‖J_k ... J_1‖`,  `‖J_n ... J_k‖`

    Args:
        result: what `chain` returned.

    Returns:
        One row a link, from the input on; the norms have the leading axes that `jax.vmap` gave the Jacobians.

    Example:
        >>> for row in table(chain({"double": lambda x: 2 * x, "square": lambda x: x**2}, 3.0)):
        ...     print(row.name, row.inputs, row.outputs, *(float(norm) for norm in row[3:]))
        double 1 1 2.0 2.0 24.0
        square 1 1 12.0 24.0 12.0
    """
    matrices = (result.jacobians, result.forward, result.backward)
    sizes = zip(result.names, result.sizes, result.sizes[1:], strict=False)
    return tuple(Row(*row, *(array_norm(matrix[row[0]], axis=(-2, -1)) for matrix in matrices)) for row in sizes)


class Backpropagation(NamedTuple):
    """Back-propagation through layers 1 to L, each entry from the input on; a signal is an array [batch, units].

    Attributes:
        loss: mean over the batch.
        pre_activations: z_l.
        activations: a_0 = x, then a_l.
        slopes: φ'(z_l).
        deltas: δ_l, derivative of each example's loss by its z_l.
        gradients: derivatives of the loss by the parameters, in their structure.
        ratios: ‖δ_l‖ / ‖δ_{l+1}‖ for l = 1 to L - 1, over batch and units; the product of the next two.
        weight_factors: ‖δ_{l+1} W_{l+1}ᵀ‖ / ‖δ_{l+1}‖.
        slope_factors: ‖δ_l‖ / ‖δ_{l+1} W_{l+1}ᵀ‖. A factor is 0 where the signal has died out before.
    """

    loss: Scalar
    pre_activations: tuple[Array, ...]
    activations: tuple[Array, ...]
    slopes: tuple[Array, ...]
    deltas: tuple[Array, ...]
    gradients: Any
    ratios: Float[Array, " factors"]
    weight_factors: Float[Array, " factors"]
    slope_factors: Float[Array, " factors"]


def backpropagate(
    layers: Sequence[Function | tuple[Function, Function]],
    params: Sequence[Any],
    x: Float[Array, "batch inputs"],
    loss: Callable[[Array], Array],
) -> Backpropagation:
    """Back-propagation written out.

    `z_l = a_{l-1} W_l + b_l`,  `a_l = φ_l(z_l)`;
    `δ_L = ∂loss/∂a_L φ_L'(z_L)`,  `δ_l = (δ_{l+1} W_{l+1}ᵀ) φ_l'(z_l)`;
    `∂loss/∂W_l = mean of a_{l-1}ᵀ δ_l`,  `∂loss/∂b_l = mean of δ_l`

    Args:
        layers: the element-wise activation of each layer, or a pair of it and its derivative.
        params: weight [in, out] and bias [out] of each layer, as a pair or as {"weight": ..., "bias": ...}.
        x: one example a row.
        loss: takes the outputs [batch, out] and returns the loss of each example [batch].

    Returns:
        Signals, gradients and factors of each layer.

    Raises:
        ValueError: layers and params differ in number, x is no matrix, or the loss is not of shape [batch].

    Example:
        >>> params = [{"weight": jnp.array([[2.0]]), "bias": jnp.array([0.0])}] * 2
        >>> layers = [(jnp.tanh, lambda z: 1 - jnp.tanh(z) ** 2), (lambda z: z, jnp.ones_like)]
        >>> result = backpropagate(layers, params, jnp.array([[0.0]]), lambda y: (y[:, 0] - 1) ** 2 / 2)
        >>> print(result.deltas[0], result.gradients[1]["bias"], result.ratios)
        [[-2.]] [-1.] [2.]

    Reference: Rumelhart, Hinton and Williams 1986, Learning representations by back-propagating errors, eq. 4-7.
    """
    if len(layers) != len(params) or not layers or x.ndim != 2:
        raise ValueError(
            "layers and params must be of one length, at least 1, and x a matrix [batch, inputs]; "
            f"got {len(layers)} layers, {len(params)} params and x of shape {x.shape}"
        )
    pairs = [(one["weight"], one["bias"]) if isinstance(one, Mapping) else (one[0], one[1]) for one in params]
    activations, pre_activations, slopes = [x], [], []
    for layer, (weight, bias) in zip(layers, pairs, strict=True):
        function, slope_of = layer if isinstance(layer, tuple) else (layer, derivative(layer))
        z = _product(activations[-1], weight) + bias[None, :]
        pre_activations.append(z)
        slopes.append(slope_of(z))
        activations.append(function(z))
    losses, pull_back = jax.vjp(loss, activations[-1])
    if losses.shape != x.shape[:1]:
        raise ValueError(f"loss must return one number an example, shape {x.shape[:1]}, got {losses.shape}")
    deltas: list[Array] = [pull_back(jnp.ones_like(losses))[0] * slopes[-1]]
    arriving: list[Array] = []
    for (weight, _), slope in zip(pairs[:0:-1], slopes[-2::-1], strict=True):
        arriving.insert(0, _product(deltas[0], weight.T))
        deltas.insert(0, arriving[0] * slope)
    gradients = []
    for one, signal, delta in zip(params, activations[:-1], deltas, strict=True):
        pair = _product(signal.T, delta) / x.shape[0], jnp.mean(delta, axis=0)
        gradients.append(dict(zip(("weight", "bias"), pair, strict=True)) if isinstance(one, Mapping) else pair)
    norms, arrived = _norms(deltas, x.dtype), _norms(arriving, x.dtype)
    return Backpropagation(
        jnp.mean(losses),
        tuple(pre_activations),
        tuple(activations),
        tuple(slopes),
        tuple(deltas),
        tuple(gradients),
        _ratios(norms[:-1], norms[1:]),
        _ratios(arrived, norms[1:]),
        _ratios(norms[:-1], arrived),
    )


def _named(links: Links) -> list[tuple[str, Function]]:
    if isinstance(links, Mapping):
        named = list(links.items())
    else:
        named = []
        for number, link in enumerate(links, 1):
            text = f"{number}: {link.text}" if isinstance(link, Expression) else str(number)
            named.append(link if isinstance(link, tuple) else (text, link))
    names = [name for name, _ in named]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"links must be at least one, with names that differ, got {', '.join(names) or 'none'}")
    return named


def _flat(link: Function, shape: tuple[int, ...]) -> Function:
    return lambda vector: jnp.ravel(link(vector.reshape(shape)))


def _cheapest(sizes: tuple[int, ...], names: tuple[str, ...]) -> tuple[int, str]:
    @functools.cache
    def best(first: int, last: int) -> tuple[int, str]:
        if first == last:
            return 0, names[first]
        options = []
        for middle in range(first, last):
            (right_cost, right), (left_cost, left) = best(first, middle), best(middle + 1, last)
            cost = left_cost + right_cost + sizes[first] * sizes[middle + 1] * sizes[last + 1]
            options.append((cost, f"({left} {right})"))
        return min(options)

    return best(0, len(names) - 1)


def _norms(signals: Sequence[Array], dtype: Any) -> Array:
    return jnp.stack([array_norm(signal) for signal in signals]) if signals else jnp.zeros(0, dtype)


def _ratios(upper: Array, lower: Array) -> Array:
    return jnp.where(lower > 0, upper / jnp.where(lower > 0, lower, 1), 0)
