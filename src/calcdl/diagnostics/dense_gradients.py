r"""Gradients of single examples in dense layers, from what taps have seen: no further pass, no gradient written out.

The gradient of one example i by the weights and biases of a layer h = x W + b is an outer product, so that inner
products of two examples' gradients are products of numbers:

    g_i = (x_i, 1) ⊗ δ_i,    g_i · g_j = (x_i · x_j + 1) (δ_i · δ_j)

With n examples and layers of width w that takes n² w operations instead of the n w² of `examples`, which knows no
layers and works for any model. Of a `nn.stack` take ``inputs = by_layer(taps, "activated").value[:-1]`` and
``cotangents = by_layer(taps, "preactivation").cotangent[1:]``.

Reference: Goodfellow 2015, arXiv:1510.01799.
"""

import jax.numpy as jnp
from jaxtyping import Float

from calcdl.trees import array_norm
from calcdl.types import Array


def layer_gradient_norms(
    inputs: Float[Array, "layers batch fan_in"], cotangents: Float[Array, "layers batch fan_out"]
) -> Float[Array, "layers batch"]:
    r"""Return the length of every example's gradient by the weights and biases of every layer.

    $$ |g_i| = \sqrt{|x_i|^2 + 1} \, |\delta_i| $$

    Args:
        inputs: x, of the layers.
        cotangents: δ, gradients by what they put out; of a mean over the batch they carry its 1/n.

    Returns:
        One length a layer and example, safe from underflow.

    Example:
        >>> lengths = layer_gradient_norms(jnp.array([[[0.0, 0.0], [3.0, 0.0]]]), jnp.array([[[2.0], [1.0]]]))
        >>> [round(float(length), 4) for length in lengths[0]]
        [2.0, 3.1623]
    """
    return jnp.sqrt(array_norm(inputs, 2) ** 2 + 1) * array_norm(cotangents, 2)


def layer_coherence(
    inputs: Float[Array, "layers batch fan_in"], cotangents: Float[Array, "layers batch fan_out"]
) -> Float[Array, " layers"]:
    r"""Return how far the examples ask for the same step, layer by layer.

    $$ \frac{1}{n (n - 1)} \sum_{i \ne j} \frac{g_i \cdot g_j}{|g_i| |g_j|} $$

    Args:
        inputs: as of `layer_gradient_norms`.
        cotangents: as of `layer_gradient_norms`.

    Returns:
        The mean cosine over the pairs whose gradients are not zero; NaN where there is no such pair.

    Example:
        >>> layer_coherence(jnp.zeros((1, 2, 1)), jnp.array([[[1.0, 0.0], [1e-30, 0.0]]])).tolist()
        [1.0]

    Reference: Balduzzi et al. 2017, arXiv:1702.08591.
    """
    lengths = array_norm(cotangents, 2)
    directions = cotangents / jnp.where(lengths > 0, lengths, 1)[..., None]
    sides = jnp.sqrt(array_norm(inputs, 2) ** 2 + 1)
    cosines = (jnp.matmul(inputs, inputs.mT) + 1) / (sides[..., :, None] * sides[..., None, :])
    cosines = cosines * jnp.matmul(directions, directions.mT)
    count = jnp.sum(lengths > 0, axis=1, dtype=lengths.dtype)
    apart = jnp.sum(cosines, axis=(1, 2)) - jnp.trace(cosines, axis1=1, axis2=2)
    return jnp.where(count > 1, apart / jnp.where(count > 1, count * (count - 1), 1), jnp.nan)


def layer_noise_scale(
    inputs: Float[Array, "layers batch fan_in"], cotangents: Float[Array, "layers batch fan_out"]
) -> Float[Array, " layers"]:
    r"""Estimate the simple noise scale of every layer: the batch size up to which larger batches save steps.

    $$ \frac{\operatorname{tr} \operatorname{Cov}(g)}{|\mathrm{E}\,g|^2} $$

    with the unbiased estimates of `noise_scale`.

    Args:
        inputs: as of `layer_gradient_norms`, of at least two examples.
        cotangents: as of `layer_gradient_norms`.

    Returns:
        The quotient a layer; infinite where no signal can be told from the noise.

    Raises:
        ValueError: fewer than two examples.

    Example:
        >>> deltas = jnp.array([1.0, 2.0, 3.0, 6.0]).reshape(1, 4, 1)
        >>> [round(float(scale), 4) for scale in layer_noise_scale(jnp.zeros((1, 4, 1)), deltas)]
        [0.5957]

    Reference: McCandlish et al. 2018, arXiv:1812.06162, appendix A.1.
    """
    count = inputs.shape[1]
    if count < 2:
        raise ValueError(f"inputs: expected at least two examples, whose gradients can differ; got {count}")
    largest = jnp.max(array_norm(cotangents, 2), axis=1)[:, None, None]
    deltas = cotangents / jnp.where(largest > 0, largest, 1)
    products = (jnp.matmul(inputs, inputs.mT) + 1) * jnp.matmul(deltas, deltas.mT)
    lengths = jnp.trace(products, axis1=1, axis2=2)
    mean = jnp.sum(products, axis=(1, 2)) / count**2
    noise = (lengths - count * mean) / (count - 1)
    signal = mean - noise / count
    return jnp.where(signal > 0, noise / jnp.where(signal > 0, signal, 1), jnp.where(noise > 0, jnp.inf, jnp.nan))
