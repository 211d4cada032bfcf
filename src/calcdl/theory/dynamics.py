r"""What calculus predicts for descent on a quadratic, with and without momentum or noise.

On `f(x) = Σ λ_i x_i² / 2` every direction of the Hessian moves alone, and each rule here is one recurrence,

    x_{k+1} = y_k - η λ y_k + b (1 - s) (x_k - x_{k-1}),    y_k = x_k + s b (x_k - x_{k-1}),

with learning rate η, momentum b, and s = 0 for heavy ball, 1 for Nesterov's look-ahead; b = 0 is gradient descent. So

    (x_{k+1}, x_k) = M (x_k, x_{k-1}),    M = [[c + d, -d], [1, 0]],

with `c = 1 - η λ`, and `d = b` for heavy ball, `d = b c` for Nesterov. Iterates are powers of M and rates are
its spectral radius, in the norm of x; the loss takes their square. Runs start at rest, `x_{-1} = x_0`.

The iterates of Nesterov are the `x_k`.
Optax's `sgd(nesterov=True)` keeps the points `y_k`, at which it takes the gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from calcdl.types import Array, Scalar

Number = Float[Array, ""] | float


class Tuning(NamedTuple):
    """The best fixed hyperparameters for curvatures from a smallest to a largest, and what they reach.

    Attributes:
        learning_rate: η.
        momentum: b.
        rate: factor on the distance from the minimum, per step in the long run, of the worst direction.
    """

    learning_rate: Scalar
    momentum: Scalar
    rate: Scalar


class Method(NamedTuple):
    """A rule of descent with fixed hyperparameters.

    Attributes:
        look_ahead: s of the recurrence: 1 where the gradient is taken after the momentum, else 0.
        has_momentum: whether b may differ from 0.
        best: `(smallest, largest curvature) -> (learning rate, momentum, rate)`.
        reference: where these come from.
    """

    look_ahead: float
    has_momentum: bool
    best: Callable[[Array, Array], Tuning]
    reference: str


def iterates(
    method: str,
    start: Float[Array, " directions"],
    curvature: Float[Array, " directions"],
    learning_rate: Number,
    steps: Int[Array, "*times"] | int,
    momentum: Number = 0.0,
) -> Float[Array, "*times directions"]:
    r"""Return the exact iterates on a quadratic, at any steps, without making the steps before.

    $$ (x_k, x_{k-1}) = M^k (x_0, x_0), \quad \text{for gradient descent } x_k = (1 - \eta\lambda)^k x_0 $$

    Args:
        method: a key of `METHODS`.
        start: distance from the minimum at step 0 along every eigenvector of the Hessian.
        curvature: λ, the eigenvalues, of the same shape.
        learning_rate: η.
        steps: k, at least 0, below 2^31; may be traced.
        momentum: b.

    Returns:
        The distances at those steps, the axes of `steps` first.

    Raises:
        ValueError: an unknown method, momentum for gradient descent, a negative number of steps.

    Example:
        >>> x = iterates("gradient_descent", jnp.array([3.0]), jnp.array([2.0]), 0.1, jnp.array([0, 1, 2]))
        >>> [round(float(loss), 4) for loss in x[:, 0] ** 2]
        [9.0, 5.76, 3.6864]
    """
    if not isinstance(steps, jax.core.Tracer) and np.min(steps, initial=0) < 0:
        raise ValueError(f"steps: expected whole numbers of at least 0, got {np.min(steps)}")
    start, curvature, rate, b = _arrays(start, curvature, learning_rate, momentum)
    damping, shift = _recurrence(method, rate, curvature, momentum, b)
    bottom = jnp.broadcast_to(jnp.array([1, 0], start.dtype), (*curvature.shape, 2))
    matrix = jnp.stack([jnp.stack([damping + shift, -shift], axis=-1), bottom], axis=-2)
    count = jnp.asarray(steps, jnp.int32)
    powers = jax.vmap(lambda k: _power(matrix, k))(count.ravel())
    moved = jnp.sum(powers[..., 0, :], axis=-1) * start[None]
    return jnp.reshape(moved, (*count.shape, *start.shape))


def contraction(
    method: str, learning_rate: Number, curvature: Float[Array, "*shape"] | float, momentum: Number = 0.0
) -> Float[Array, "*shape"]:
    r"""Return the factor by which the distance from the minimum changes per step, in the long run.

    $$ \rho(M) = \begin{cases} \sqrt d & (c + d)^2 < 4 d \\ (|c + d| + \sqrt{(c + d)^2 - 4 d}) / 2 \end{cases} $$

    Args:
        method: a key of `METHODS`.
        learning_rate: η.
        curvature: λ, of one direction or of many.
        momentum: b.

    Returns:
        One factor a direction; the largest is that of the run, above 1 it diverges.

    Raises:
        ValueError: an unknown method, momentum for gradient descent.

    Example:
        >>> print(f"{contraction('gradient_descent', 0.1, 2.0):.2f} {contraction('heavy_ball', 0.1, 2.0, 0.81):.2f}")
        0.80 0.90
    """
    curvature, rate, b = _arrays(curvature, learning_rate, momentum)
    damping, shift = _recurrence(method, rate, curvature, momentum, b)
    trace = damping + shift
    discriminant = trace**2 - 4 * shift
    rotates = discriminant < 0
    root = jnp.sqrt(jnp.where(rotates | (discriminant == 0), 1, discriminant))
    real = (jnp.abs(trace) + jnp.where(discriminant == 0, 0, root)) / 2
    return jnp.where(rotates, jnp.sqrt(jnp.where(rotates, shift, 1)), real)


def largest_product(method: str, momentum: Number = 0.0) -> Scalar:
    r"""Return the learning rate times curvature up to which a method is stable.

    $$ \eta \lambda < 2 (1 + b) / (1 + 2 b s) $$

    Args:
        method: a key of `METHODS`.
        momentum: b, from 0 to below 1.

    Returns:
        2, 2 (1 + b) for heavy ball, 2 (1 + b) / (1 + 2 b) for Nesterov. `stability.largest_stable_step` finds the same
        from the code of an update rule.

    Raises:
        ValueError: an unknown method, momentum for gradient descent.

    Example:
        >>> [round(float(largest_product(method, 0.5)), 4) for method in ("heavy_ball", "nesterov")]
        [3.0, 1.5]
    """
    (b,) = _arrays(momentum)
    return 2 * (1 + b) / (1 + 2 * b * _choose(method, momentum).look_ahead)


def tuning(method: str, smallest: Number, largest: Number) -> Tuning:
    r"""Return the fixed hyperparameters that are best for the worst quadratic between two curvatures.

    $$ \frac{\kappa - 1}{\kappa + 1}, \quad \frac{\sqrt\kappa - 1}{\sqrt\kappa + 1}, \quad
       1 - \frac{1}{\sqrt\kappa}, \quad 1 - \frac{2}{\sqrt{3 \kappa + 1}}, \quad \kappa = L / \mu $$

    in the order of `METHODS`; "nesterov" has the learning rate 1 / L, which also holds for what is no quadratic.

    Args:
        method: a key of `METHODS`.
        smallest: μ, positive.
        largest: L, at least μ.

    Returns:
        Learning rate, momentum, and the rate they reach. Heavy ball comes close to its own only after many steps: at
        the two ends its matrix is defective, and the distance first grows by a factor of about κ.

    Raises:
        ValueError: an unknown method; curvatures that are not 0 < smallest <= largest.

    Example:
        >>> [round(float(tuning(method, 1.0, 100.0).rate), 4) for method in METHODS]
        [0.9802, 0.8182, 0.9, 0.8847]
    """
    concrete = not any(isinstance(number, jax.core.Tracer) for number in (smallest, largest))
    if concrete and not 0 < smallest <= largest:
        raise ValueError(f"smallest: expected curvatures with 0 < smallest <= largest, got {smallest} and {largest}")
    chosen = _choose(method, 0.0)
    low, high = _arrays(smallest, largest)
    return chosen.best(low, high)


def steepest_descent_worst_case(condition: Number, steps: Int[Array, "*times"] | int) -> Float[Array, "*times 2"]:
    r"""Return the iterates of steepest descent with exact line search from its worst start.

    $$ x_j = \left(\frac{\kappa - 1}{\kappa + 1}\right)^j (\kappa, (-1)^j), \quad
       f(x) = (x_1^2 + \kappa x_2^2) / 2 $$

    So a line search by itself does not beat the best fixed learning rate.

    Args:
        condition: κ, at least 1.
        steps: j, at least 0.

    Returns:
        The points, the axes of `steps` first.

    Example:
        >>> steepest_descent_worst_case(3.0, jnp.arange(3)).tolist()
        [[3.0, 1.0], [1.5, -0.5], [0.75, 0.25]]

    Reference: Akaike 1959, Annals of the Institute of Statistical Mathematics 11, 1.
    """
    (kappa,) = _arrays(condition)
    j = jnp.asarray(steps, jnp.int32)[..., None]
    side = jnp.concatenate([jnp.broadcast_to(kappa, j.shape), (1 - 2 * (j % 2)).astype(kappa.dtype)], axis=-1)
    return ((kappa - 1) / (kappa + 1)) ** j.astype(kappa.dtype) * side


def stationary_variance(
    learning_rate: Number, curvature: Number, noise_variance: Number, momentum: Number = 0.0
) -> Scalar:
    r"""Return the variance at which stochastic gradient descent with a fixed learning rate comes to rest.

    $$ \mathrm{Var}(x) = \frac{\eta \sigma^2 (1 + b)}{\lambda (1 - b) (2 (1 + b) - \eta \lambda)} $$

    The gradient is `λ x` plus noise that is independent from step to step; the rule is heavy ball, b = 0 plain descent.

    Args:
        learning_rate: η.
        curvature: λ, positive.
        noise_variance: σ², of the gradient.
        momentum: b, in [0, 1).

    Returns:
        The variance about the minimum; infinite from the border of stability on.

    Example:
        >>> print(f"{stationary_variance(0.1, 1.0, 1.0):.4f} {stationary_variance(0.1, 1.0, 1.0, 0.9):.4f}")
        0.0526 0.5135

    Reference: Mandt, Hoffman and Blei 2017, arXiv:1704.04289, section 4, there for small η.
    """
    rate, curvature, noise, b = _arrays(learning_rate, curvature, noise_variance, momentum)
    room = 2 * (1 + b) - rate * curvature
    variance = rate * noise * (1 + b) / (curvature * (1 - b) * jnp.where(room > 0, room, 1))
    return jnp.where(room > 0, variance, jnp.inf)


def _best_plain(low: Array, high: Array) -> Tuning:
    return Tuning(2 / (low + high), jnp.zeros_like(low + high), (high - low) / (high + low))


def _best_heavy_ball(low: Array, high: Array) -> Tuning:
    root = jnp.sqrt(low / high)
    rate = (1 - root) / (1 + root)
    return Tuning(4 / (jnp.sqrt(low) + jnp.sqrt(high)) ** 2, rate**2, rate)


def _best_nesterov(low: Array, high: Array) -> Tuning:
    root = jnp.sqrt(low / high)
    return Tuning(1 / high, (1 - root) / (1 + root), 1 - root)


def _best_nesterov_quadratic(low: Array, high: Array) -> Tuning:
    root = jnp.sqrt(3 * high / low + 1)
    return Tuning(4 / (3 * high + low), (root - 2) / (root + 2), 1 - 2 / root)


def _choose(method: str, momentum: Number) -> Method:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    chosen = METHODS[method]
    if not chosen.has_momentum and (isinstance(momentum, jax.core.Tracer) or np.any(np.asarray(momentum) != 0)):
        raise ValueError(f"momentum: {method} has none, got {momentum}; use heavy_ball or nesterov")
    return chosen


def _recurrence(method: str, rate: Array, curvature: Array, given: Number, momentum: Array) -> tuple[Array, Array]:
    """Return c and d of the module's docstring."""
    ahead = _choose(method, given).look_ahead
    kept = 1 - rate * curvature
    return kept, momentum * (ahead * kept + (1 - ahead))


def _power(matrix: Array, exponent: Array) -> Array:
    def bit(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        result, base = carry
        result = jnp.where(exponent >> index & 1, jnp.matmul(result, base, precision="highest"), result)
        # No square that is not needed: it may overflow, and spoil the derivative.
        base = jnp.where(exponent >> (index + 1) > 0, jnp.matmul(base, base, precision="highest"), base)
        return (result, base), None

    start = jnp.broadcast_to(jnp.eye(2, dtype=matrix.dtype), matrix.shape), matrix
    return jax.lax.scan(bit, start, jnp.arange(31, dtype=jnp.int32))[0][0]


def _arrays(*numbers: Any) -> tuple[Array, ...]:
    dtype = jnp.promote_types(jnp.result_type(*numbers, 1.0), jnp.float32)
    return tuple(jnp.asarray(number, dtype) for number in numbers)


METHODS: dict[str, Method] = {
    "gradient_descent": Method(0.0, False, _best_plain, "Polyak 1987, Introduction to Optimization, section 1.4"),
    "heavy_ball": Method(0.0, True, _best_heavy_ball, "Polyak 1964, USSR Comp. Math. 4, 1, theorem 9"),
    "nesterov": Method(1.0, True, _best_nesterov, "Nesterov 2004, Introductory Lectures, scheme 2.2.11"),
    "nesterov_optimal": Method(1.0, True, _best_nesterov_quadratic, "Lessard et al. 2016, arXiv:1408.3595, table 1"),
}
