r"""The Dirac-GAN in closed form: the smallest game of a generator and a discriminator.

The data are one point, 0, the generator is one point, θ, and the discriminator one slope, D(x) = ψ x. Near (0, 0) all
losses of `calcdl.nn.adversarial.GAMES` give

    v = (a ψ, -a θ),    a = 1/2 for logistic losses, 1 for a critic.

Damping adds -d_θ θ and -d_ψ ψ: a penalty γ/2 of the squared slope of D at the data is d_ψ = γ, noise of variance s² on
both points is d_ψ = s²/2 for logistic losses (`logit_slopes`), a penalty c/2 of |v|² is c a² for both. Each rule is a
point of one grid,

    x_{k+1} = x_k + b (x_k - x_{k-1}) + h ((1 + o) v_k - o v_{k-1}),

with momentum b and optimism o, both players at once or the generator after the discriminator; `recurrence` has its
characteristic polynomial, `penalty_range` says for descent where all its roots are within the unit circle.

Reference: Mescheder, Geiger and Nowozin 2018, Which training methods for GANs do actually converge?, arXiv:1801.04406;
Gidel et al. 2019, Negative momentum for improved game dynamics, arXiv:1807.04740, for momentum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Complex, Float

from calcdl.types import Array, Scalar

Number = Float[Array, ""] | float

TURNS = ("simultaneous", "alternating")


def losses(
    real: Callable[[Array], Array], fake: Callable[[Array], Array], generator: Callable[[Array], Array],
    noise: Float[Array, " rows"],
) -> dict[str, Callable[[Any], Scalar]]:  # fmt: skip
    r"""Make the losses of both players, whole, as `games.field` wants them.

    $$ L_D = \mathrm{mean}\, l_R(\psi z) + l_F(\psi (\theta + z)), \quad
       L_G = \mathrm{mean}\, l_G(\psi (\theta + z)) $$

    Args:
        real: the discriminator's loss by the logit of the data, as in `calcdl.nn.adversarial.Game`.
        fake: that of a generated point.
        generator: the generator's.
        noise: z, what is added to both points; one 0 for none.

    Returns:
        By player, of the parameters `{"discriminator": ψ, "generator": θ}`.

    Example:
        >>> critic = losses(jnp.negative, jnp.positive, jnp.negative, jnp.zeros(1))
        >>> {name: float(loss({"discriminator": 2.0, "generator": 3.0})) for name, loss in critic.items()}
        {'discriminator': 6.0, 'generator': -6.0}
    """

    def logit(params: Any) -> Array:
        logits: Array = params["discriminator"] * (params["generator"] + noise)
        return logits

    def discriminator(params: Any) -> Scalar:
        return jnp.mean(real(params["discriminator"] * noise) + fake(logit(params)))

    return {"discriminator": discriminator, "generator": lambda params: jnp.mean(generator(logit(params)))}


def logit_slopes(
    real: Callable[[Array], Array], fake: Callable[[Array], Array], generator: Callable[[Array], Array], dtype: Any
) -> tuple[Scalar, Scalar]:
    r"""Return what the Dirac-GAN near its equilibrium knows of its losses: one slope and one curvature.

    $$ a = \sqrt{|l_G'(0)\, l_F'(0)|}, \quad l_R''(0) + l_F''(0) $$

    Args:
        real: the discriminator's loss by the logit of the data, as in `calcdl.nn.adversarial.Game`.
        fake: that of a generated point.
        generator: the generator's.
        dtype: of the numbers.

    Returns:
        a, and by how much noise of variance 1 on both points damps the discriminator.

    Example:
        >>> [float(x) for x in logit_slopes(lambda a: jax.nn.softplus(-a), jax.nn.softplus, jnp.negative, jnp.float32)]
        [0.7071067690849304, 0.5]
    """
    origin = jnp.zeros((), dtype)
    slope = jnp.sqrt(jnp.abs(jax.grad(generator)(origin) * jax.grad(fake)(origin)))
    return slope, jax.grad(jax.grad(lambda a: real(a) + fake(a)))(origin)


def flow_eigenvalues(slope: Number, damping: Number) -> Complex[Array, " 2"]:
    r"""Return the eigenvalues of the Dirac-GAN in continuous time, about its equilibrium.

    $$ \lambda = -d/2 \pm \sqrt{d^2 / 4 - a^2} $$

    Args:
        slope: a, that of the generator's loss by the logit.
        damping: d_ψ.

    Returns:
        Both; imaginary without damping: the flow turns in circles and comes no nearer.

    Example:
        >>> [f"{complex(value):.2f}" for value in flow_eigenvalues(0.5, 0.6)]
        ['-0.30+0.40j', '-0.30-0.40j']

    Reference: Mescheder, Geiger and Nowozin 2018, arXiv:1801.04406, lemmas 2.2 and 4.1.
    """
    a, d = _arrays(slope, damping)
    root = jnp.sqrt((d**2 / 4 - a**2).astype(jnp.result_type(a, jnp.complex64)))
    return jnp.stack([-d / 2 + root, -d / 2 - root])


def recurrence(
    turns: str,
    learning_rate: Number,
    slope: Number,
    damping: tuple[Number, Number] = (0.0, 0.0),
    *,
    momentum: Number = 0.0,
    optimism: Number = 0.0,
    look_ahead: bool = False,
) -> Float[Array, " 5"]:
    r"""Return the characteristic polynomial of a rule on the Dirac-GAN, about its equilibrium.

    $$ (q + h d_\theta r)(q + h d_\psi r) + h^2 a^2 r^2 z^t, \quad q = (z - 1)(z - b), \quad r = (1 + o) z - o $$

    with t = 1 where the generator moves after the discriminator, else 0. To look ahead is `1 + h A + h² A²`, A that of
    the field; a player alone in its turn sees only its own damping ahead, d becomes d (1 - h d), a becomes a (1 - h d).

    Args:
        turns: one of `TURNS`.
        learning_rate: h.
        slope: a.
        damping: d_θ and d_ψ.
        momentum: b, of either sign.
        optimism: o: 1 for the optimistic gradient, which extrapolates it by its last change.
        look_ahead: whether the gradient is taken a step ahead, extragradient; without momentum and optimism.

    Returns:
        Its coefficients, that of z⁴ first, which is 1; its roots are the factors a step, and 0 where there is no state.

    Raises:
        ValueError: no such order of turns.

    Example:
        >>> recurrence("simultaneous", 0.5, 1.0).tolist()
        [1.0, -2.0, 1.25, 0.0, 0.0]
    """
    alternates = _alternates(turns)
    h, a, first, second, b, o = _arrays(learning_rate, slope, *damping, momentum, optimism)
    one, pull = jnp.ones_like(h), (h * a) ** 2
    first, second = h * first, h * second
    if look_ahead and not alternates:
        trace, determinant = -(first + second), first * second + pull
        squares = trace**2 - 2 * determinant
        product = 1 + trace + squares + determinant * (1 + trace + determinant)
        return jnp.stack([one, -(2 + trace + squares), product, 0 * one, 0 * one])
    if look_ahead:
        pull, first, second = pull * (1 - first) * (1 - second), first * (1 - first), second * (1 - second)
    q, r = jnp.stack([one, -1 - b, b]), jnp.stack([jnp.zeros_like(h), 1 + o, -o])
    turned = pull * jnp.convolve(r, r, precision="highest")
    damped = jnp.convolve(q + first * r, q + second * r, precision="highest")
    return damped + (jnp.roll(turned, -1) if alternates else turned)


def companion(polynomial: Float[Array, " terms"]) -> Float[Array, "degree degree"]:
    r"""Return the matrix whose eigenvalues are the roots of a polynomial.

    $$ z^n + c_1 z^{n-1} + \dots + c_n = 0 \iff \det(z - C) = 0 $$

    Args:
        polynomial: the coefficients, that of the highest power first, which is 1.

    Returns:
        C, of which `stability.spectral_radius` gives the largest root's modulus.

    Example:
        >>> companion(jnp.array([1.0, -3.0, 2.0])).tolist()
        [[3.0, -2.0], [1.0, 0.0]]
    """
    below = jnp.eye(len(polynomial) - 1, dtype=polynomial.dtype)[:-1]
    return jnp.concatenate([-polynomial[None, 1:], below])


def penalty_range(turns: str, learning_rate: Number, slope: Number) -> tuple[Scalar, Scalar]:
    r"""Return the damping of the discriminator between which gradient descent on the Dirac-GAN converges.

    $$ h a^2 < \gamma < 2 / h + h a^2 / 2 \text{ at once}, \quad 0 < \gamma < 2 / h - h a^2 / 2 \text{ in turn} $$

    In turn no penalty is too small. Both ranges are empty from h = 2 / a on.

    Args:
        turns: one of `TURNS`.
        learning_rate: h.
        slope: a.

    Returns:
        The ends; where the range is empty the upper one is not above the lower.

    Raises:
        ValueError: no such order of turns.

    Example:
        >>> [[float(end) for end in penalty_range(turns, 1.0, 0.5)] for turns in TURNS]
        [[0.25, 2.125], [0.0, 1.875]]
    """
    alternates = _alternates(turns)
    h, a = _arrays(learning_rate, slope)
    pull = h * a**2
    return (jnp.zeros_like(pull), 2 / h - pull / 2) if alternates else (pull, 2 / h + pull / 2)


def non_saturating_distance(turns: str, learning_rate: Number, start: Number, steps: Any) -> Array:
    r"""Return the distance from the equilibrium at which the non-saturating Dirac-GAN is after some steps.

    $$ 1 / r^2 = \frac{1}{2 h} + \Big(\frac{1}{r_0^2} - \frac{1}{2 h}\Big) e^{-h^2 k / 4} \text{ at once}, \quad
       \frac{1}{r_0^2} + \frac{h k}{8} \text{ in turn} $$

    Descent at once drives outwards: r² grows by `h² r² / 4` a step. The non-saturating field is not quite at right
    angles to the place and pulls inwards, by `2 h θψ tanh(θψ / 2)`, on the mean over a turn `h r⁴ / 8`. Both are in
    balance at `r = √(2 h)`. In turn, as in continuous time, only the pull is left: it arrives, but at no rate.

    Args:
        turns: one of `TURNS`.
        learning_rate: h.
        start: r_0.
        steps: k, of any shape.

    Returns:
        The mean over a turn, for small h and r.

    Raises:
        ValueError: no such order of turns.

    Example:
        >>> print(non_saturating_distance("simultaneous", 0.02, 1.0, jnp.array([0.0, 1e6])).round(3).tolist()[0])
        1.0
    """
    alternates = _alternates(turns)
    h, r, k = _arrays(learning_rate, start, steps)
    if alternates:
        return (1 / r**2 + h * k / 8) ** -0.5
    kept = jnp.exp(-(h**2) * k / 4)
    return (kept / r**2 + (1 - kept) / (2 * h)) ** -0.5


def _alternates(turns: str) -> bool:
    if turns not in TURNS:
        raise ValueError(f"turns: expected one of {', '.join(TURNS)}, got {turns!r}")
    return turns == "alternating"


def _arrays(*numbers: Any) -> tuple[Array, ...]:
    dtype = jnp.promote_types(jnp.result_type(*numbers, 1.0), jnp.float32)
    return tuple(jnp.asarray(number, dtype) for number in numbers)
