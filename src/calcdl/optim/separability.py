r"""Whether logistic or softmax regression without a penalty has an optimum at all.

    L(W) = Σ_i log Σ_k exp(a_ik - a_iy),    a = x W,    margins m_ik = a_iy - a_ik for k ≠ y

Where some W has margins that are all positive, the loss falls to 0 along the ray t W and no W attains it: the weights
of any descent grow without end while its gradient becomes as small as one likes, so a tolerance on the gradient is no
evidence of an optimum. What is evidence, is one of two certificates, of which exactly one exists:

| certificate | says |
|---|---|
| directions W with all margins at least 0 and not all 0 | no optimum: along W the loss falls for ever |
| numbers λ_ik > 0 whose sum of λ_ik ∂m_ik / ∂W is 0 | an optimum exists |

Descent itself finds them: the first are its weights, the second the probabilities p_ik of the wrong classes, for which
that sum is minus the gradient.

`certificate` reads them off the weights at which a descent ended and is pure JAX; `decide` asks a linear programme, on
the host. A gradient that is small but not 0 proves an optimum too. Along a W of the first kind the numbers p_ik m_ik,
none of them negative, sum to at most |gradient| |W|; their sum is at least the root of the sum of their squares, which
is at least s |W|, where s is the smallest singular value of the linear map from W to p_ik m_ik. So there is no such W
if |gradient| < s.

Reference: Albert and Anderson, On the existence of maximum likelihood estimates in logistic regression models,
Biometrika 71 (1984) 1; Konis, Linear programming algorithms for detecting separated data, Oxford (2007).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from calcdl.trees import array_norm
from calcdl.types import Array, Scalar

OVERLAPPING, SEPARABLE, QUASI_SEPARABLE, UNDECIDED = range(4)
STATUSES = (
    "an optimum exists: the classes overlap",
    "no optimum: the classes are separable, so the loss falls to 0 as the weights grow without end",
    "no optimum: some rows are separable and the others do not mind, so the loss falls as the weights grow without end",
    "undecided: these weights prove neither; descend further, or ask the linear programme (decide)",
)


class Certificate(NamedTuple):
    """What some weights prove.

    Attributes:
        status: index in `STATUSES`.
        margin: the least margin over rows and other classes, in nats; above 0 all rows are separated.
        gradient_norm: the norm of the gradient of the sum of the losses.
        bound: the norm below which an optimum is proved to exist.
    """

    status: Int[Array, ""]
    margin: Scalar
    gradient_norm: Scalar
    bound: Scalar

    @property
    def verdict(self) -> str:
        """What is proved, in a sentence; outside `jax.jit`."""
        return STATUSES[int(self.status)]


class Decision(NamedTuple):
    """What the data themselves say.

    Attributes:
        status: index in `STATUSES`, never undecided.
        separated: by row and other class, which margins are positive along some direction in which none is negative.
        weights: such a direction, 0 where the classes overlap.
    """

    status: int
    separated: Bool[np.ndarray, "rows others"]
    weights: Float[np.ndarray, "columns ..."]

    @property
    def verdict(self) -> str:
        """What is decided, in a sentence."""
        return STATUSES[self.status]


def certificate(
    weights: Float[Array, "columns ..."],
    features: Float[Array, "rows columns"],
    label: Int[Array, " rows"],
    counted: Bool[Array, " rows"] | None = None,
) -> Certificate:
    r"""Read off weights, wherever a descent ended, whether the loss without a penalty has an optimum.

    $$ \min m_{ik} > 0 \Rightarrow \text{none}, \qquad |\nabla L| < s_{min}(W \mapsto p_{ik} m_{ik})
       \Rightarrow \text{one} $$

    Both are proofs, with an allowance for rounding. Columns that are combinations of others are harmless.

    Args:
        weights: W; of two classes a vector is enough, whose products are the logits of label 1.
        features: x, with a column of ones if there is an intercept.
        label: y, from 0 on.
        counted: which rows take part; by default all.

    Returns:
        The certificate.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> x, y = jnp.array([[1.0, -1.0], [1.0, 0.5], [1.0, 2.0]]), jnp.array([0, 1, 1])
        >>> certificate(jnp.array([0.0, 1.0]), x, y).verdict
        'no optimum: the classes are separable, so the loss falls to 0 as the weights grow without end'
        >>> certificate(jnp.array([0.0, 0.0]), x, jnp.array([1, 0, 1])).verdict
        'an optimum exists: the classes overlap'
    """
    _check(np.shape(weights), np.shape(features), np.shape(label))
    precision = jnp.finfo(features.dtype).eps
    inside = jnp.ones(label.shape, bool) if counted is None else counted
    x = jnp.where(inside[:, None], features, 0)
    free = np.array([[0.0], [1.0]]) if weights.ndim == 1 else contrasts(weights.shape[1])
    classes = jnp.asarray(free, x.dtype)
    both = weights if weights.ndim == 2 else weights[:, None] @ classes.T
    logits = x @ both
    right = label[:, None] == jnp.arange(len(classes), dtype=label.dtype)[None, :]
    others = inside[:, None] & ~right
    gap = jnp.sum(jnp.where(right, logits, 0), axis=1, keepdims=True) - logits
    rounding = 2 * (x.shape[1] + 2) * precision * jnp.max(jnp.abs(x) @ jnp.abs(both), axis=1, keepdims=True)
    separated = jnp.all(jnp.where(others, gap > rounding, True))
    chance = jnp.where(others, jax.nn.softmax(logits, axis=1), 0)
    # What is pulled from the wrong classes is pushed to the right one.
    pull = chance - jnp.where(right, jnp.sum(chance, axis=1, keepdims=True), 0)
    gradient = array_norm(x.T @ pull @ classes)
    noise = (sum(x.shape) + 2) * precision * array_norm(jnp.abs(x).T @ jnp.abs(pull))
    apart = classes[label][:, None, :] - classes[None, :, :]
    pulls = (chance[..., None] * apart)[:, :, None, :] * x[:, None, :, None]
    bound = _smallest(pulls.reshape(chance.size, -1), x)
    status = jnp.where(gradient + noise < bound, OVERLAPPING, UNDECIDED)
    status = jnp.where(separated, SEPARABLE, status).astype(jnp.int32)
    return Certificate(status, jnp.min(jnp.where(others, gap, jnp.inf)), gradient, bound)


def decide(features: Float[np.ndarray, "rows columns"], label: Int[np.ndarray, " rows"]) -> Decision:
    r"""Decide whether the loss without a penalty has an optimum, by a linear programme on the host.

    $$ \max \sum_{ik} s_{ik} \quad \text{with} \quad s_{ik} \le m_{ik}(W), \quad 0 \le s_{ik} \le 1 $$

    Directions add up, so at the maximum s is 1 for every margin that any admissible direction makes positive, else 0.

    Args:
        features: x, with a column of ones if there is an intercept.
        label: y, from 0 on; the largest says how many classes there are.

    Returns:
        The decision; its direction is a vector for two classes, else one column a class.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes.
        RuntimeError: the linear programme was not solved, for instance because numbers in it are of very unequal size.

    Example:
        >>> x = np.array([[1.0, -1.0], [1.0, 0.5], [1.0, 0.5], [1.0, 2.0]])
        >>> found = decide(x, np.array([0, 0, 1, 1]))
        >>> found.verdict[:35], found.separated.ravel().tolist()
        ('no optimum: some rows are separable', [True, False, False, True])
    """
    from scipy import sparse
    from scipy.optimize import linprog

    rows, columns = _check((), np.shape(features), np.shape(label))
    classes = int(np.max(label)) + 1
    if classes < 2 or np.min(label) < 0:
        raise ValueError(f"label: expected at least two classes, numbered from 0, got {sorted({*np.ravel(label)})}")
    # The sizes of the columns do not matter for the decision, but for the tolerances of the programme.
    scale = np.abs(features).max(axis=0)
    x = sparse.csr_array(features / np.where(scale > 0, scale, 1))
    if classes == 2:
        margins = sparse.csr_array(sparse.diags_array(2.0 * label - 1) @ x)
    else:
        margins = sparse.vstack([_margins(x, label, classes, step) for step in range(1, classes)], format="csr")
    size = margins.shape[0]
    programme = linprog(
        np.concatenate([np.zeros(margins.shape[1]), -np.ones(size)]),
        A_ub=sparse.hstack([-margins, sparse.eye_array(size)], format="csc"),
        b_ub=np.zeros(size),
        bounds=[(None, None)] * margins.shape[1] + [(0, 1)] * size,
        method="highs",
    )
    if programme.status != 0:
        raise RuntimeError(f"linear programme: {programme.message}; standardise the columns")
    separated = programme.x[-size:].reshape(-1, rows).T > 0.5
    weights = programme.x[:-size].reshape((columns,) if classes == 2 else (classes, columns))
    weights = np.where(separated.any(), weights / np.where(scale > 0, scale, 1), 0).T
    status = SEPARABLE if separated.all() else QUASI_SEPARABLE if separated.any() else OVERLAPPING
    return Decision(status, separated, weights)


def shortest(features: Float[np.ndarray, "rows columns"], label: Int[np.ndarray, " rows"]) -> float:
    r"""Return the length of the shortest weights with margins of at least 1, of two classes; 0 where there are none.

    $$ |\hat w| = \min |w| \quad \text{with} \quad \pm x_i w \ge 1 $$

    Gradient descent without a penalty has |W(t)| = |ŵ| log t + O(1), and 1 / |ŵ| is the widest margin. Found by its
    multipliers: the least squares solution u >= 0 of [z, 1]' u = (0, ..., 0, 1), where z are the rows with their signs.

    Args:
        features: x, with a column of ones if there is an intercept, which then counts as a weight.
        label: y, 0 or 1.

    Returns:
        The length, in units of 1 / feature.

    Example:
        >>> round(shortest(np.array([[1.0, 0.5], [1.0, -0.5]]), np.array([1, 0])), 9)
        2.0

    Reference:
        Lawson and Hanson, Solving least squares problems (1974), chapter 23; Soudry et al., The implicit bias of
        gradient descent on separable data, J. Machine Learning Research 19 (2018) 70, theorem 3.
    """
    from scipy.optimize import nnls

    _check((), np.shape(features), np.shape(label))
    margins = (2.0 * label - 1)[:, None] * features
    rows, goal = np.insert(margins, margins.shape[1], 1.0, axis=1).T, np.append(np.zeros(margins.shape[1]), 1.0)
    residual = rows @ nnls(rows, goal)[0] - goal
    compatible = np.linalg.norm(residual) > np.sqrt(np.finfo(np.float64).eps)
    return float(np.linalg.norm(residual[:-1] / residual[-1])) if compatible else 0.0


def contrasts(classes: int) -> Float[np.ndarray, "classes free"]:
    """Return what turns free logits into one a class: a shift that all classes share changes no margin.

    Helmert's contrasts: orthonormal columns of sum 0, each a class against the mean of those before it.

    Args:
        classes: how many, at least 2.

    Returns:
        The matrix, with one column less than classes.

    Example:
        >>> contrasts(3).round(3).tolist()
        [[0.707, 0.408], [-0.707, 0.408], [0.0, -0.816]]
    """
    rows = np.tril(np.ones((classes, classes)), -1) - np.diag(np.arange(classes))
    unit: np.ndarray = (rows[1:] / np.linalg.norm(rows[1:], axis=1, keepdims=True)).T
    return unit


def _margins(x: Any, label: np.ndarray, classes: int, step: int) -> Any:
    """Return the matrix that turns weights, class by class, into the margins over the class `step` further on."""
    from scipy import sparse

    rows, order = len(label), np.arange(len(label))
    own, other = (
        sparse.csr_array((np.ones(rows), (order, which)), (rows, classes))
        for which in (label, (label + step) % classes)
    )
    chosen = own - other
    parts = [sparse.diags_array(chosen[:, [one]].toarray().ravel()) @ x for one in range(classes)]
    return sparse.hstack(parts, format="csr")


def _smallest(pulls: Array, x: Array) -> Scalar:
    """Return the smallest singular value along directions that change some product with a row, less its rounding."""
    own = jnp.linalg.svd(x, compute_uv=False)
    idle = x.shape[1] - jnp.sum(own > max(x.shape) * jnp.finfo(x.dtype).eps * own[0], dtype=jnp.int32)
    values = jnp.linalg.svd(pulls, compute_uv=False)
    last = (x.shape[1] - idle) * (pulls.shape[1] // x.shape[1]) - 1
    return values[last] - max(pulls.shape) * jnp.finfo(x.dtype).eps * values[0]


def _check(weights: tuple[int, ...], features: tuple[int, ...], label: tuple[int, ...]) -> tuple[int, int]:
    if len(features) != 2 or label != features[:1] or weights[:1] not in ((), features[1:]):
        expected = f"(rows, columns) for labels of shape {label}" + f" and weights of shape {weights}" * bool(weights)
        raise ValueError(f"features: expected {expected}, got shape {features}")
    return features[0], features[1]
