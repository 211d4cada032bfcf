r"""Adversarial training: the losses of a game, and the penalties that make it come to rest.

A discriminator D gives every x a logit a, or as a critic a height; the generator G turns noise z into x. D lowers its
loss on real and generated x, G lowers its own on the generated ones through D. `GAMES` holds the pairs of losses:

| game | discriminator | generator | ∂generator/∂a |
|---|---|---|---|
| "saturating" | -log s(a) real, -log(1 - s(a)) generated | log(1 - s(a)) | -s(a), which dies where D is sure |
| "non_saturating" | the same | -log s(a) | -(1 - s(a)), which is largest there |
| "wasserstein" | -a real, a generated | -a | -1, whatever D thinks; needs a bounded slope |

`game` makes one scalar of both, in which each player sees the other as a constant: its gradient holds each player's
own, so that one solver plays both at once, and `calcdl.optim.alternating` in turn. `PENALTIES` holds what is added to
damp the game, and `sliced_wasserstein` says how far samples are from data, for whoever is not the discriminator.

Reference: Goodfellow et al. 2014, Generative adversarial nets, arXiv:1406.2661, equation 1 and section 3;
Arjovsky, Chintala and Bottou 2017, Wasserstein GAN, arXiv:1701.07875, equation 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.nn.activations import softplus
from calcdl.types import Array, Params, Scalar

Judge = Callable[[Params, Array], Array]


class Game(NamedTuple):
    """The losses of two players, each of a logit or a critic's height, element by element.

    Attributes:
        real: the discriminator's, of the logit of a real x.
        fake: the discriminator's, of that of a generated x.
        generator: the generator's, of that of a generated x.
    """

    real: Callable[[Array], Array]
    fake: Callable[[Array], Array]
    generator: Callable[[Array], Array]


def game(
    rules: Game,
    judge: Judge,
    make: Judge,
    params: Params,
    real: Float[Array, "rows ..."],
    noise: Float[Array, "rows latents"],
) -> Scalar:
    """Sum both players' mean losses; its gradient by each player's parameters is that of its own loss.

    `L = mean real(D(x)) + mean fake(D([G(z)])) + mean generator([D](G(z)))`,  with [.] held constant

    Args:
        rules: a member of `GAMES`.
        judge: `(params, x) -> logits`, one a row: D.
        make: `(params, z) -> x`: G.
        params: `{"discriminator": ..., "generator": ...}`.
        real: x.
        noise: z.

    Returns:
        The sum.

    >>> players = {"discriminator": jnp.float32(2.0), "generator": jnp.float32(-1.0)}
    >>> def loss(params):
    ...     x, z = jnp.zeros((1,)), jnp.ones((1,))
    ...     return game(GAMES["wasserstein"], lambda d, x: d * x, lambda g, z: g * z, params, x, z)
    >>> {name: float(slope) for name, slope in jax.grad(loss)(players).items()}
    {'discriminator': -1.0, 'generator': -2.0}
    """
    held = jax.lax.stop_gradient(params)
    made = make(params["generator"], noise)
    own = rules.real(judge(params["discriminator"], real))
    own = own.mean() + rules.fake(judge(params["discriminator"], jax.lax.stop_gradient(made))).mean()
    return own + rules.generator(judge(held["discriminator"], made)).mean()


def between(
    real: Float[Array, "rows ..."], fake: Float[Array, "rows ..."], share: Float[Array, " rows"]
) -> Float[Array, "rows ..."]:
    """Take a point on the line from each real row to a generated one.

    `x = u real + (1 - u) fake`

    Args:
        real: rows.
        fake: as many.
        share: u, one a row, drawn from U(0, 1).

    Returns:
        The points.

    Raises:
        ValueError: the numbers of rows differ.

    >>> between(jnp.zeros((2, 1)), jnp.ones((2, 1)), jnp.array([1.0, 0.25])).tolist()
    [[0.0], [0.75]]

    Reference: Gulrajani et al. 2017, Improved training of Wasserstein GANs, arXiv:1704.00028, algorithm 1.
    """
    if real.shape != fake.shape or share.shape != real.shape[:1]:
        raise ValueError(
            f"real, fake, share: expected rows of one shape and a share for each, got the shapes "
            f"{real.shape}, {fake.shape} and {share.shape}"
        )
    share = share.reshape(-1, *(1,) * (real.ndim - 1))
    return share * real + (1 - share) * fake


def slope_penalty(
    judge: Callable[[Array], Array], x: Float[Array, "rows ..."], slope: Float[Array, ""] | float = 0.0
) -> Scalar:
    """Penalise the discriminator's slope by its input; the penalty's gradient is a gradient of a gradient.

    `P = mean (|∇_x D(x)| - slope)²`

    Slope 0 at real rows is the penalty R1, slope 1 at rows `between` the real and the generated that of the
    Wasserstein game.

    Args:
        judge: `x -> logits`, one a row that depends on its row alone.
        x: where.
        slope: the length of the gradient that costs nothing, in logits a unit of x.

    Returns:
        The mean over rows; where a gradient is 0, its length has the subgradient 0.

    >>> float(slope_penalty(lambda x: 3.0 * x[:, 0], jnp.ones((2, 1)), 1.0))
    4.0

    Reference: Gulrajani et al. 2017, arXiv:1704.00028, equation 3; Mescheder, Geiger and Nowozin 2018, Which training
    methods for GANs do actually converge?, arXiv:1801.04406, equation 9 (with a factor of 1/2).
    """
    gradient = jax.grad(lambda rows: jnp.sum(judge(rows)))(x).reshape(len(x), -1)
    square = jnp.sum(gradient**2, axis=1)
    flat = square == 0
    length = jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, square)))
    bend = jnp.asarray(slope, x.dtype)
    return jnp.mean(square - 2 * bend * length + bend**2)


def sliced_wasserstein(
    x: Float[Array, "rows columns"], y: Float[Array, "rows columns"], directions: Float[Array, "columns directions"]
) -> Scalar:
    """Distance of two samples, by their shadows: no eye and no discriminator is asked.

    `W = mean_v ∫ |F_x^{-1}(t) - F_y^{-1}(t)| dt`,  F the distribution of `x v`, that of `y v`

    On a line the cheapest transport keeps the order, so that the distance is that of the sorted values. Two samples of
    one distribution are not at distance 0: compare with what they have.

    Args:
        x: a sample.
        y: as many rows.
        directions: v, of length 1, one a column.

    Returns:
        The mean over directions, in the unit of x.

    Raises:
        ValueError: the samples differ in shape.

    >>> rows = jnp.array([[0.0, 0.0], [2.0, 0.0]])
    >>> float(sliced_wasserstein(rows, rows[::-1] + jnp.array([[1.0, 0.0]]), jnp.eye(2)))
    0.5

    Reference: Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures, section 2.
    """
    if x.shape != y.shape:
        raise ValueError(f"x, y: expected two samples of one shape, got {x.shape} and {y.shape}")
    return jnp.mean(jnp.abs(jnp.sort(x @ directions, axis=0) - jnp.sort(y @ directions, axis=0)))


GAMES: dict[str, Game] = {
    "saturating": Game(lambda a: softplus(-a), softplus, lambda a: -softplus(a)),
    "non_saturating": Game(lambda a: softplus(-a), softplus, lambda a: softplus(-a)),
    "wasserstein": Game(jnp.negative, jnp.asarray, jnp.negative),
}

# Each `(discriminator, real rows, generated rows, shares) -> scalar`, to be weighed.
PENALTIES: dict[str, Callable[[Callable[[Array], Array], Array, Array, Array], Scalar]] = {
    "none": lambda judge, real, fake, share: jnp.zeros((), real.dtype),
    "r1": lambda judge, real, fake, share: slope_penalty(judge, real),
    "gradient_penalty": lambda judge, real, fake, share: slope_penalty(judge, between(real, fake, share), 1.0),
}
