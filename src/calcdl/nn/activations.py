"""Activation functions: element-wise, with values and derivatives that stay finite and accurate in the tails.

Every function takes pre-activations x of any shape and floating dtype and returns an array of that shape and
dtype; anything else raises TypeError. At a kink in 0 the derivative is the one from the left, so relu'(0) = 0; at
the kinks of the hard sigmoid it is 0. A config names a member of `ACTIVATIONS`; code calls the function.

The usual forms lose the tails: in float32 `s (1 - s)` is 0 above 17, where s' is 4e-8, and `1 - tanh²` above 9; the
cube in the tanh form of GELU overflows into NaN gradients; the second derivatives of erf, gelu and mish are NaN at
the largest number. Such functions carry their own rule here; the others are those of `jax.nn`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.types import Array

SELU_SCALE = 1.0507009873554804934
SELU_ALPHA = 1.6732632423543772848
LEAKY_SLOPE = 0.01

Elementwise = Callable[[Array], Array]

_ROOT_2_OVER_PI = math.sqrt(2 / math.pi)


class Activation(NamedTuple):
    """An activation and what is known of it.

    Attributes:
        function: `(x) -> y`, or `(x, slope) -> y` where a slope is learned.
        derivative: dy/dx in closed form, of the same arguments.
        lipschitz: the least upper bound of |dy/dx|; with a learned slope, while that stays within -1 and 1.
        learned: the value at which a learned slope starts; None where nothing is learned.
    """

    function: Callable[..., Array]
    derivative: Callable[..., Array]
    lipschitz: float
    learned: float | None = None


def identity(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Identity, for a linear network.

    `f(x) = x`

    >>> print(identity(jnp.array([-1.0, 2.0])))
    [-1.  2.]
    """
    return _floating(x)


def sigmoid(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Logistic function.

    `f(x) = 1 / (1 + exp(-x))`,  `f' = f(x) f(-x)`

    >>> round(float(sigmoid(1.0)), 4)
    0.7311
    """
    return _logistic(_floating(x))


def hard_sigmoid(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Sigmoid made of three straight pieces, with kinks at -3 and 3.

    `f(x) = min(max(x + 3, 0), 6) / 6`

    >>> print(hard_sigmoid(jnp.array([-4.0, 0.0, 1.5, 4.0])))
    [0.   0.5  0.75 1.  ]
    """
    return jax.nn.hard_sigmoid(_floating(x))


def tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Hyperbolic tangent.

    `f(x) = (exp(x) - exp(-x)) / (exp(x) + exp(-x))`,  `f' = 1 / cosh²(x)`

    >>> round(float(tanh(0.5)), 4)
    0.4621
    """
    return _tanh(_floating(x))


def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Rectified linear unit.

    `f(x) = max(x, 0)`,  `f'(0) = 0`

    >>> print(relu(jnp.array([-1.0, 0.0, 2.0])))
    [0. 0. 2.]

    Reference: Nair and Hinton 2010, Rectified linear units improve restricted Boltzmann machines.
    """
    return jax.nn.relu(_floating(x))


def leaky_relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Rectified linear unit that lets a hundredth of the negative side through.

    `f(x) = x where x > 0, else 0.01 x`,  `f'(0) = 0.01`

    >>> print(leaky_relu(jnp.array([-1.0, 0.0, 2.0])))
    [-0.01  0.    2.  ]

    Reference: Maas, Hannun and Ng 2013, Rectifier nonlinearities improve neural network acoustic models.
    """
    return prelu(x, LEAKY_SLOPE)


def prelu(x: Float[Array, "*shape"], slope: Float[Array, ""] | float) -> Float[Array, "*shape"]:
    """Rectified linear unit with a learned slope on the negative side.

    `f(x, a) = x where x > 0, else a x`,  `df/dx(0) = a`,  `df/da = min(x, 0)`

    Args:
        x: pre-activations.
        slope: a, a scalar or an array with the rank of x.

    >>> print(prelu(jnp.array([-1.0, 0.0, 2.0]), 0.25))
    [-0.25  0.    2.  ]

    Reference: He et al. 2015, arXiv:1502.01852, eq. 1.
    """
    x = _floating(x)
    negative = jnp.where(x > 0, 0, x)
    return jnp.where(x > 0, x, jnp.asarray(slope, x.dtype) * negative)


def elu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exponential linear unit.

    `f(x) = x where x > 0, else exp(x) - 1`

    >>> round(float(elu(-1.0)), 4)
    -0.6321

    Reference: Clevert, Unterthiner and Hochreiter 2016, arXiv:1511.07289, eq. 15.
    """
    x = _floating(x)
    return jnp.where(x > 0, x, _expm1(jnp.where(x > 0, 0, x)))


def selu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Scaled exponential linear unit: keeps mean 0 and variance 1 from layer to layer.

    `f(x) = λ x where x > 0, else λ α (exp(x) - 1)`,  `f'(0) = λ α`

    >>> round(float(selu(1.0)), 4)
    1.0507

    Reference: Klambauer et al. 2017, arXiv:1706.02515, eq. 2 and 14.
    """
    x = _floating(x)
    return SELU_SCALE * jnp.where(x > 0, x, SELU_ALPHA * _expm1(jnp.where(x > 0, 0, x)))


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Gaussian error linear unit.

    `f(x) = x Φ(x)`,  `f' = Φ(x) + x φ(x)`, with Φ and φ the normal distribution and its density

    >>> round(float(gelu(-1.0)), 4)
    -0.1587

    Reference: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    x = _floating(x)
    return x * _normal_distribution(x)


def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Gaussian error linear unit with Φ approximated, within 4.8e-4 of `gelu`.

    `f(x) = x (1 + tanh u) / 2 = x s(2 u)`,  `u = sqrt(2 / π) (x + 0.044715 x³)`

    >>> round(float(gelu_tanh(-1.0)), 4)
    -0.1588

    Reference: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    x = _floating(x)
    z = _until_saturated(x)
    return x * _logistic(2 * _ROOT_2_OVER_PI * (z + 0.044715 * z**3))


def silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Sigmoid linear unit, also called swish.

    `f(x) = x s(x)`,  `f' = s(x) (1 + x s(-x))`, with s the sigmoid

    >>> round(float(silu(-1.0)), 4)
    -0.2689

    Reference: Ramachandran, Zoph and Le 2017, arXiv:1710.05941.
    """
    x = _floating(x)
    return x * _logistic(x)


def softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Smooth rectifier, the integral of the sigmoid.

    `f(x) = log(1 + exp(x))`,  `f' = s(x)`, with s the sigmoid

    >>> round(float(softplus(0.0)), 4)
    0.6931

    Reference: Dugas et al. 2001, Incorporating second-order functional knowledge.
    """
    return _softplus(_floating(x))


def softsign(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Sigmoid whose tails decay like a power.

    `f(x) = x / (1 + |x|)`,  `f' = 1 / (1 + |x|)²`

    >>> print(softsign(jnp.array([-1.0, 0.0, 3.0])))
    [-0.5   0.    0.75]

    Reference: Glorot and Bengio 2010, Understanding the difficulty of training deep networks, section 3.
    """
    return _softsign(_floating(x))


def mish(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Self-gated smooth rectifier.

    `f(x) = x tanh(log(1 + exp(x)))`

    >>> round(float(mish(-1.0)), 4)
    -0.3034

    Reference: Misra 2019, arXiv:1908.08681.
    """
    x = _floating(x)
    return x * _tanh(_softplus(x))


def erf(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Error function, the sigmoid for which mean-field integrals have closed forms.

    `f(x) = 2 / sqrt(π) ∫_0^x exp(-t²) dt`,  `f' = 2 / sqrt(π) exp(-x²)`

    >>> round(float(erf(0.5)), 4)
    0.5205

    Reference: Williams 1997, Computing with infinite networks, eq. 11.
    """
    return jax.lax.erf(_until_saturated(_floating(x)))


def _floating(x: Any) -> Array:
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"x must be floating point, got {array.dtype}; convert it with x.astype(jnp.float32)")
    return array


def _with_derivative(value: Elementwise, slope: Elementwise) -> Elementwise:
    function = jax.custom_jvp(value)
    function.defjvps(lambda tangent, _, x: tangent * slope(x))
    return function


def _until_saturated(x: Array) -> Array:
    # exp(-x²/2) is 0 beyond 40 in every dtype; to go on would only overflow the squares in the derivatives.
    return jnp.clip(x, -40, 40)


def _normal_distribution(x: Array) -> Array:
    return jax.lax.erfc(-math.sqrt(0.5) * _until_saturated(x)) / 2


def _normal_density(x: Array) -> Array:
    return jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _logistic_value(x: Array) -> Array:
    decay = jnp.exp(-jnp.abs(x))
    return jnp.where(x >= 0, 1, decay) / (1 + decay)


def _logistic_slope_value(x: Array) -> Array:
    decay = jnp.exp(-jnp.abs(x))
    return decay / (1 + decay) / (1 + decay)


def _tanh_slope_value(x: Array) -> Array:
    decay = jnp.exp(-2 * jnp.abs(x))
    return 4 * decay / (1 + decay) / (1 + decay)


def _softsign_slope(x: Array) -> Array:
    inverse = 1 / (1 + jnp.abs(x))
    return inverse * inverse


# Each rule is accurate in both tails and is built of functions that carry such rules, so every order is.
_logistic_slope: Elementwise = _with_derivative(_logistic_slope_value, lambda x: -_logistic_slope(x) * _tanh(x / 2))
_logistic: Elementwise = _with_derivative(_logistic_value, _logistic_slope)
_tanh_slope: Elementwise = _with_derivative(_tanh_slope_value, lambda x: -2 * _tanh(x) * _tanh_slope(x))
_tanh: Elementwise = _with_derivative(jnp.tanh, _tanh_slope)
_softplus: Elementwise = _with_derivative(jax.nn.softplus, _logistic)
_expm1: Elementwise = _with_derivative(jnp.expm1, jnp.exp)
_softsign: Elementwise = _with_derivative(jax.nn.soft_sign, _softsign_slope)


def _sech_squared(x: Array) -> Array:
    return 1 / jnp.cosh(x) ** 2


def _step(x: Array, left: float, right: float) -> Array:
    return jnp.where(x > 0, jnp.full_like(x, right), jnp.full_like(x, left))


def _selu_derivative(x: Array) -> Array:
    return SELU_SCALE * jnp.where(x > 0, 1, SELU_ALPHA * jnp.exp(jnp.minimum(x, 0)))


def _gelu_tanh_derivative(x: Array) -> Array:
    z = _until_saturated(x)
    u = _ROOT_2_OVER_PI * (z + 0.044715 * z**3)
    slope = _ROOT_2_OVER_PI * (1 + 3 * 0.044715 * z**2)
    return _logistic(2 * u) + z / 2 * slope * _sech_squared(u)


def _mish_derivative(x: Array) -> Array:
    gate = _softplus(x)
    return jnp.tanh(gate) + x * _logistic(x) * _sech_squared(gate)


# The closed forms are written apart from the rules above, so that jax.grad can be checked against them.
ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(identity, jnp.ones_like, 1.0),
    "sigmoid": Activation(sigmoid, lambda x: _logistic(x) * _logistic(-x), 0.25),
    "hard_sigmoid": Activation(hard_sigmoid, lambda x: _step(3 - jnp.abs(x), 0.0, 1 / 6), 1 / 6),
    "tanh": Activation(tanh, _sech_squared, 1.0),
    "relu": Activation(relu, lambda x: _step(x, 0.0, 1.0), 1.0),
    "leaky_relu": Activation(leaky_relu, lambda x: _step(x, LEAKY_SLOPE, 1.0), 1.0),
    "prelu": Activation(prelu, lambda x, slope: jnp.where(x > 0, 1, jnp.asarray(slope, x.dtype)), 1.0, 0.25),
    "elu": Activation(elu, lambda x: jnp.exp(jnp.minimum(x, 0)), 1.0),
    "selu": Activation(selu, _selu_derivative, SELU_SCALE * SELU_ALPHA),
    "gelu": Activation(
        gelu,
        lambda x: _normal_distribution(x) + x * _normal_density(x),
        (1 + math.erf(1)) / 2 + math.exp(-1) / math.sqrt(math.pi),
    ),
    "gelu_tanh": Activation(gelu_tanh, _gelu_tanh_derivative, 1.12899306865877),
    "silu": Activation(silu, lambda x: _logistic(x) * (1 + x * _logistic(-x)), 1.09983932012887),
    "softplus": Activation(softplus, lambda x: 1 / (1 + jnp.exp(-x)), 1.0),
    "softsign": Activation(softsign, lambda x: (1 + jnp.abs(x)) ** -2.0, 1.0),
    "mish": Activation(mish, _mish_derivative, 1.08849816125173),
    "erf": Activation(erf, lambda x: 2 / math.sqrt(math.pi) * jnp.exp(-(x**2)), 2 / math.sqrt(math.pi)),
}
