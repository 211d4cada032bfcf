r"""Deep linear networks: nonlinear in their weights, and solved exactly.

Two linear layers `W_2 W_1 x` that see white inputs learn each singular direction of the map from inputs to targets
alone: a plateau near 0, a quick rise, a plateau at its strength, the strong ones first. Between them lie the saddles of
the loss. What two layers conserve on the way tells how far the weights are from having started balanced.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Float

from calcdl.types import Array, Scalar

Number = Float[Array, ""] | float


class CriticalPoints(NamedTuple):
    """The kinds of critical points of a deep linear network, all but one of which are saddles.

    Attributes:
        learned: which singular directions of the target the network has; one row a kind.
        loss: its loss; the least belongs to the minima, whatever the others are.
    """

    learned: Bool[Array, "kinds directions"]
    loss: Float[Array, " kinds"]


def mode_strength(times: Float[Array, "*times"] | float, target: Number, start: Number) -> Float[Array, "*times"]:
    r"""Return how much of a singular direction a two-layer linear network has learned, by gradient flow.

    $$ \frac{du}{dt} = 2 u (s - u), \quad u(t) = \frac{s}{1 + (s / u_0 - 1) e^{-2 s t}} $$

    Inputs are white, the two layers start balanced and aligned with the target. A plateau, then a quick rise: strong
    directions are learned first.

    Args:
        times: t, in units of the time constant; steps times learning rate for gradient descent with small steps.
        target: s, the singular value of the map from inputs to targets, positive.
        start: u_0, the product of the two layers' weights at the start, positive.

    Returns:
        u, one number a time.

    Example:
        >>> print(f"{mode_strength(1.0, 3.0, 0.001):.6f}")
        0.355712

    Reference: Saxe, McClelland and Ganguli 2014, arXiv:1312.6120, equation 12.
    """
    times, target, start = _arrays(times, target, start)
    return target / (1 + (target / start - 1) * jnp.exp(-2 * target * times))


def half_rise_time(target: Number, start: Number) -> Scalar:
    r"""Return the time at which a singular direction is half learned.

    $$ t_{1/2} = \frac{\ln(s / u_0 - 1)}{2 s} $$

    Args:
        target: s, as for `mode_strength`.
        start: u_0, below s.

    Returns:
        The time; negative where more than half is there at the start.

    Example:
        >>> print(f"{half_rise_time(3.0, 0.001):.6f}")
        1.334339

    Reference: Saxe, McClelland and Ganguli 2014, arXiv:1312.6120, equation 13.
    """
    target, start = _arrays(target, start)
    return jnp.log(target / start - 1) / (2 * target)


def balancedness(
    first: Float[Array, "hidden inputs"], second: Float[Array, "outputs hidden"]
) -> Float[Array, "hidden hidden"]:
    r"""Return what gradient flow conserves in two linear layers, whatever the loss of their product.

    $$ W_1 W_1^\top - W_2^\top W_2 $$

    Args:
        first: W_1, of `W_2 W_1 x`.
        second: W_2.

    Returns:
        The conserved matrix; gradient descent changes it by the square of the learning rate per step.

    Example:
        >>> balancedness(jnp.array([[2.0, 0.0]]), jnp.array([[1.0], [1.0]])).tolist()
        [[2.0]]

    Reference: Saxe, McClelland and Ganguli 2014, arXiv:1312.6120; Arora, Cohen and Hazan 2018, arXiv:1802.06509.
    """
    return jnp.matmul(first, first.T, precision="highest") - jnp.matmul(second.T, second, precision="highest")


def critical_points(target: Float[Array, " directions"], width: int | None = None) -> CriticalPoints:
    r"""List the losses at which a deep linear network can stand still.

    $$ \nabla L = 0 \text{ for } L = \tfrac12 \lVert W_2 W_1 - S \rVert_F^2 \implies
       L = \tfrac12 \sum_{i \notin I} s_i^2 \text{ for a set } I \text{ of directions} $$

    Args:
        target: singular values of S, 16 at most.
        width: of the hidden layer, which bounds the size of I; by default wide enough for all.

    Returns:
        Every set I and its loss. All but the sets of the least loss are saddles: there are no bad local minima.

    Raises:
        ValueError: more than 16 singular values, or a negative width.

    Example:
        >>> critical_points(jnp.array([2.0, 1.0])).loss.tolist()
        [2.5, 0.5, 2.0, 0.0]

    Reference: Baldi and Hornik 1989, Neural Networks 2, 53; Kawaguchi 2016, arXiv:1605.07110.
    """
    (target,) = _arrays(target)
    count = target.shape[0]
    width = count if width is None else width
    if count > 16 or width < 0:
        raise ValueError(f"target: expected at most 16 singular values and a width of at least 0, got {count}, {width}")
    sets = [tuple(bool(index >> bit & 1) for bit in range(count)) for index in range(2**count)]
    learned = jnp.array([one for one in sets if sum(one) <= width], bool)
    return CriticalPoints(learned, jnp.sum(jnp.where(learned, 0, target[None, :] ** 2), axis=1) / 2)


def _arrays(*numbers: Number) -> tuple[Array, ...]:
    dtype = jnp.promote_types(jnp.result_type(*numbers, 1.0), jnp.float32)
    return tuple(jnp.asarray(number, dtype) for number in numbers)
