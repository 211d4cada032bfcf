r"""Gradients of single examples: how long they are, whether they agree, and how much of a step is noise.

Everything here takes the loss of *one* example, `loss(params, *example)`, and a batch of them. With g_i = ∇L_i:

    lengths      |g_i|                                          `gradient_norms`
    agreement    mean cosine of g_i and g_j, i ≠ j              `gradient_coherence`
    noise        tr Cov(g) / |E g|²                             `noise_scale`

Only a chunk of examples has its gradients in memory at a time. A loss that mixes examples (batch normalisation) has no
gradient of one example.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from calcdl.trees import array_norm, dot, norm, widen
from calcdl.types import Array, Params, Scalar

PARAMETERS, INPUTS = "parameters", "inputs"
BY = (PARAMETERS, INPUTS)


class NoiseScale(NamedTuple):
    """How much the gradients of single examples scatter about their mean.

    Attributes:
        scale: `noise / signal`: the batch size at which the noise of a step is as large as the step. Infinite where no
            signal can be told from the noise.
        noise: unbiased estimate of tr Cov(g), the variance of one example's gradient summed over the parameters.
        signal: unbiased estimate of |E g|², the squared norm of the expected gradient; it may come out negative.
    """

    scale: Scalar
    noise: Scalar
    signal: Scalar


class _Sums(NamedTuple):
    """What the gradients seen so far leave behind, in units of a typical length."""

    seen: Scalar
    mean: Params
    scatter: Scalar
    directions: Params
    lengthy: Scalar


def per_example_gradients(loss: Callable[..., Scalar], params: Params, *batch: Any, by: str = PARAMETERS) -> Params:
    r"""Return the gradient of every example's own loss.

    $$ g_i = \nabla L(\theta, x_i, y_i) $$

    Args:
        loss: ``(params, *example) -> scalar``, of one example.
        params: pytree of floating-point arrays.
        batch: what an example consists of, each with a leading axis of examples.
        by: "parameters", or "inputs" for the gradient by the first of the batch.

    Returns:
        A tree like the parameters, or like the first of the batch, with a leading axis of examples.

    Raises:
        ValueError: `by` is neither, or there is no batch.

    Example:
        >>> loss = lambda w, x: (w * x) ** 2
        >>> per_example_gradients(loss, jnp.float32(3.0), jnp.array([1.0, 2.0])).tolist()
        [6.0, 24.0]
        >>> per_example_gradients(loss, jnp.float32(3.0), jnp.array([1.0, 2.0]), by="inputs").tolist()
        [18.0, 36.0]
    """
    gradients: Params = jax.vmap(_of_one(loss, params, batch, by))(*batch)
    return gradients


def gradient_norms(
    loss: Callable[..., Scalar], params: Params, *batch: Any, by: str = PARAMETERS, chunk: int | None = None
) -> Float[Array, " batch"]:
    r"""Return the length of every example's gradient.

    $$ \lVert \nabla L(\theta, x_i, y_i) \rVert_2 $$

    Args:
        loss: ``(params, *example) -> scalar``, of one example.
        params: pytree of floating-point arrays.
        batch: what an example consists of, each with a leading axis of examples.
        by: "parameters", or "inputs" for the gradient by the first of the batch.
        chunk: how many examples' gradients are in memory at a time; None for all.

    Returns:
        One norm an example.

    Raises:
        ValueError: `by` is neither, there is no batch, or a chunk below 1.

    Example:
        >>> gradient_norms(lambda w, x: (w * x) ** 2, jnp.float32(-3.0), jnp.array([1.0, 2.0])).tolist()
        [6.0, 24.0]
    """
    one = _of_one(loss, params, batch, by)
    norms: Array = jax.lax.map(lambda example: norm(one(*example)), batch, batch_size=_chunk(chunk, batch))
    return norms


def gradient_coherence(
    loss: Callable[..., Scalar], params: Params, *batch: Any, by: str = PARAMETERS, chunk: int | None = None
) -> Scalar:
    r"""Return how far the gradients of different examples point the same way.

    $$ \frac{1}{n (n - 1)} \sum_{i \ne j} \frac{g_i \cdot g_j}{|g_i| |g_j|} $$

    1 where all examples ask for the same step; 0 where they have nothing to do with each other, as for the gradients by
    the inputs of a deep plain network, which are shattered.

    Args:
        loss: ``(params, *example) -> scalar``, of one example.
        params: pytree of floating-point arrays.
        batch: what an example consists of, each with a leading axis of examples.
        by: "parameters", or "inputs" for the gradient by the first of the batch.
        chunk: how many examples' gradients are in memory at a time; None for all.

    Returns:
        The mean cosine over pairs whose gradients are not zero; NaN where there is no such pair.

    Raises:
        ValueError: `by` is neither, there is no batch, or a chunk below 1.

    Example:
        >>> loss = lambda w, x: jnp.dot(w, x)
        >>> batch = jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
        >>> print(f"{gradient_coherence(loss, jnp.ones(2), batch):.4f}")
        0.3333

    Reference:
        Balduzzi et al. (2017), The shattered gradients problem, arXiv:1702.08591.
    """
    sums, _ = _accumulate(_of_one(loss, params, batch, by), batch, _chunk(chunk, batch))
    count, several = sums.lengthy, sums.lengthy > 1
    pairs = jnp.where(several, count * (count - 1), 1)
    return jnp.where(several, (dot(sums.directions, sums.directions) - count) / pairs, jnp.nan)


def noise_scale(loss: Callable[..., Scalar], params: Params, *batch: Any, chunk: int | None = None) -> NoiseScale:
    r"""Estimate the simple noise scale: the batch size up to which larger batches save steps.

    $$ \mathcal{B} = \frac{\operatorname{tr} \operatorname{Cov}(g)}{|\mathrm{E}\,g|^2}, \quad
       \widehat{\operatorname{tr} \operatorname{Cov}} = \frac{1}{n - 1} \sum_i |g_i - \bar g|^2, \quad
       \widehat{|\mathrm{E}\,g|^2} = |\bar g|^2 - \frac{1}{n} \widehat{\operatorname{tr} \operatorname{Cov}} $$

    Both estimates are unbiased; their quotient is so only as far as the signal is well above its error.

    Args:
        loss: ``(params, *example) -> scalar``, of one example.
        params: pytree of floating-point arrays.
        batch: what an example consists of, each with a leading axis of n >= 2 examples.
        chunk: how many examples' gradients are in memory at a time; None for all.

    Returns:
        The scale, and the estimates that it is made of.

    Raises:
        ValueError: fewer than two examples, no batch, or a chunk below 1.

    Example:
        >>> found = noise_scale(lambda w, x: w * x, jnp.float32(0.0), jnp.array([1.0, 2.0, 3.0, 6.0]))
        >>> print(f"{found.noise:.4f} / {found.signal:.4f} = {found.scale:.4f}")
        4.6667 / 7.8333 = 0.5957

    Reference:
        McCandlish et al. (2018), An empirical model of large-batch training, arXiv:1812.06162, appendix A.1.
    """
    one, size = _of_one(loss, params, batch, PARAMETERS), _chunk(chunk, batch)
    if len(jax.tree.leaves(batch)[0]) < 2:
        raise ValueError("batch: expected at least two examples, whose gradients can differ; got 1")
    sums, length = _accumulate(one, batch, size)
    noise = sums.scatter / (sums.seen - 1)
    signal = dot(sums.mean, sums.mean) - noise / sums.seen
    scale = jnp.where(signal > 0, noise / jnp.where(signal > 0, signal, 1), jnp.where(noise > 0, jnp.inf, jnp.nan))
    return NoiseScale(scale, noise * length**2, signal * length**2)


def _of_one(loss: Callable[..., Scalar], params: Params, batch: tuple[Any, ...], by: str) -> Callable[..., Params]:
    if by not in BY:
        raise ValueError(f"by: expected one of {', '.join(BY)}; got {by!r}")
    if not jax.tree.leaves(batch):
        raise ValueError("batch: expected at least one array with a leading axis of examples, got none")
    differentiated = jax.grad(loss, argnums=BY.index(by))
    return lambda *example: widen(differentiated(params, *example))


def _chunk(chunk: int | None, batch: tuple[Any, ...]) -> int:
    size = len(jax.tree.leaves(batch)[0])
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk: expected a whole number of at least 1, or None for all examples; got {chunk!r}")
    return size if chunk is None else min(chunk, size)


def _accumulate(one: Callable[..., Params], batch: tuple[Any, ...], chunk: int) -> tuple[_Sums, Scalar]:
    """Return what the gradients leave behind, taken chunk by chunk, and the length that they are measured in."""
    size = len(jax.tree.leaves(batch)[0])
    whole = size // chunk * chunk
    # Squares of gradients as small as those of deep networks vanish: lengths are counted in that of the first one.
    length = norm(one(*jax.tree.map(lambda part: part[0], batch)))
    length = jax.lax.stop_gradient(jnp.where((length > 0) & jnp.isfinite(length), length, 1))

    def seen(examples: tuple[Any, ...]) -> _Sums:
        sums: _Sums = _sums(jax.tree.map(lambda part: part / length, jax.vmap(one)(*examples)))
        return sums

    total = seen(jax.tree.map(lambda part: part[:chunk], batch))
    if whole > chunk:
        table = jax.tree.map(lambda part: part[chunk:whole].reshape(-1, chunk, *part.shape[1:]), batch)
        total, _ = jax.lax.scan(lambda sums, examples: (_joined(sums, seen(examples)), None), total, table)
    if whole < size:
        total = _joined(total, seen(jax.tree.map(lambda part: part[whole:], batch)))
    return total, length


@jax.jit
def _sums(gradients: Params) -> _Sums:
    leaves, structure = jax.tree.flatten(gradients)
    flat = [leaf.reshape(len(leaf), -1) for leaf in leaves]
    lengths = array_norm(jnp.stack([array_norm(rows, 1) for rows in flat]), 0)
    inverse = jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)

    def tree(rows: list[Array]) -> Params:
        return jax.tree.unflatten(
            structure, [row.reshape(leaf.shape[1:]) for row, leaf in zip(rows, leaves, strict=True)]
        )

    means = [jnp.mean(rows, axis=0) for rows in flat]
    scatter = sum(jnp.sum(jnp.square(rows - mean[None])) for rows, mean in zip(flat, means, strict=True))
    directions = [jnp.sum(rows * inverse[:, None], axis=0) for rows in flat]
    count = jnp.full_like(inverse[0], len(inverse))
    return _Sums(count, tree(means), jnp.asarray(scatter), tree(directions), jnp.sum(lengths > 0, dtype=inverse.dtype))


@jax.jit
def _joined(one: _Sums, other: _Sums) -> _Sums:
    count = one.seen + other.seen
    step = jax.tree.map(jnp.subtract, other.mean, one.mean)
    return _Sums(
        count,
        jax.tree.map(lambda mean, part: mean + part * (other.seen / count), one.mean, step),
        one.scatter + other.scatter + dot(step, step) * (one.seen * other.seen / count),
        jax.tree.map(jnp.add, one.directions, other.directions),
        one.lengthy + other.lengthy,
    )
