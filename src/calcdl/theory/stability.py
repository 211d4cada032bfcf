r"""The largest step at which an update rule is stable, from the Optax transform itself.

Near a minimum a function is the quadratic `f(x) = λ x² / 2`, one direction at a time, and there an update rule is a
linear map of what it carries, the parameter and the floating-point entries of its state:

    z' = A(η) z,    z = (x, state),    stable if the spectral radius of A is below 1.

A is not derived by hand. The transform is asked: the state is first let settle under zero gradients with its counts
large, so that the corrections of the first steps are gone; then every entry that has settled at 0 is moved by a tiny
amount, and what comes out is a column of A. What has settled elsewhere, such as an initial accumulator, multiplies
what moves and stays. Entries that do not act on the parameter, or on which it does not act, take no part: a second
moment is of second order there.

So the limit of gradient descent is 2 / λ, and that of heavy ball 2 (1 + b) / λ. That of Adam is
2 ε (1 + b1) / (1 - b1) / λ, minute, for *at the minimum* nothing but ε divides its step; while gradients are large Adam
is judged by its preconditioned curvature instead, see `preconditioned_limit`.

A rule whose update does not shrink with the gradient, such as its sign, has no such limit, and the status says so.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from calcdl.types import Array, Scalar

Make = Callable[[Scalar], optax.GradientTransformation]
Number = Float[Array, ""] | float

LIMITED, UNLIMITED, NOT_FINITE, NOT_PROPORTIONAL, NOT_ADDITIVE, CHANGING, UNSTABLE = range(7)
STATUSES = (
    "stable below this learning rate, unstable just above it",
    "stable at every learning rate that was tried",
    "no limit: where the gradient is 0, as at the minimum, the rule gives no finite number",
    "no limit: the update does not shrink in proportion with the gradient, so near a minimum it is not linear; what it "
    "reaches is limited by the learning rate itself",
    "no limit: the update grows with the parameter and the state, but not as a sum of both, so no matrix describes it",
    "no limit: the update still changes with the count of steps when that is large, and with it what is stable",
    "no limit: no learning rate makes the parameter shrink",
)

_PER_DECADE, _LOWEST, _HIGHEST = 8, -16, 8
_ROUNDS = 5
_SQUARINGS = 40
_SETTLING = 100
_COUNTS = (2**24, 2**28)


class StableStep(NamedTuple):
    """The border of stability of an update rule.

    Attributes:
        learning_rate: the largest stable one at the curvature given; infinite where every one is, 0 where there is no
            limit of this kind.
        product: learning rate times curvature, the form in which most limits are known.
        status: index in `STATUSES`.
    """

    learning_rate: Scalar
    product: Scalar
    status: Int[Array, ""]

    @property
    def verdict(self) -> str:
        """What the number means, in a sentence; for one rule only, outside `jax.jit`."""
        return STATUSES[int(self.status)]


class _Rest(NamedTuple):
    """A state that has settled under zero gradients: its floating-point entries, all of it, and what in it counts."""

    entries: Array
    state: Any
    counting: Any


class _Seen(NamedTuple):
    """What is known between two rounds of the search; rates as logarithms."""

    lower: Scalar
    upper: Scalar
    acts: Array
    status: Array


def largest_stable_step(make: Make, *, curvature: Number = 1.0) -> StableStep:
    r"""Find the learning rate at which an update rule becomes unstable on a quadratic.

    $$ \eta^* = \sup \{ \eta : \rho(A(\eta')) < 1 \text{ for all } \eta' \le \eta \} $$

    The first border is met by a grid of 8 rates a decade, from 1e-16 to 1e8 over the curvature, and then narrowed; an
    unstable window narrower than the grid is not seen. In float64 the border is good to 1e-8, in float32 to 1e-4.

    Args:
        make: `learning_rate -> transformation`, of a traced scalar.
        curvature: λ, positive, the second derivative of the quadratic. Its dtype is that of the search.

    Returns:
        The border, or why there is none.

    Raises:
        ValueError: a curvature that is not positive.

    Example:
        >>> import optax
        >>> print(f"{largest_stable_step(lambda rate: optax.sgd(rate, momentum=0.5)).product:.3f}")
        3.000

    Reference: Cohen et al. 2021, arXiv:2103.00065, appendix B; 2022, arXiv:2207.14484, section 3.
    """
    curvature = _positive(curvature)
    found: StableStep = jax.jit(lambda curvature: _search(make, curvature))(curvature)
    return found


def update_matrix(make: Make, learning_rate: Number, *, curvature: Number = 1.0) -> Float[Array, "entries entries"]:
    r"""Linearise an update rule about the minimum of a quadratic.

    $$ z_{k+1} = A z_k, \quad z = (x, \text{state}) $$

    Args:
        make: `learning_rate -> transformation`.
        learning_rate: η.
        curvature: λ, positive.

    Returns:
        A, by the order of the leaves; rows and columns of entries that take no part are 0. It means something only
        where `largest_stable_step` finds a limit or stability everywhere.

    Raises:
        ValueError: a curvature that is not positive.

    Example:
        >>> import optax
        >>> update_matrix(lambda rate: optax.sgd(rate, momentum=0.5), 0.25, curvature=2.0).tolist()
        [[0.5, -0.125], [2.0, 0.5]]
    """
    curvature = _positive(curvature)
    rate = jnp.asarray(learning_rate, curvature.dtype)
    still = jnp.zeros((1,), rate.dtype)
    length = 1 + _entries(make(rate).init(still), rate.dtype).shape[0]
    matrix, _ = _look(make, curvature, rate, jnp.zeros((length,), bool))
    return _reduced(matrix, _acting(matrix != 0))


def spectral_radius(matrix: Float[Array, "... n n"]) -> Float[Array, "..."]:
    r"""Largest magnitude of an eigenvalue, by squaring; needs no eigenvalues and runs on any device.

    $$ \rho(A) = \lim_k \lVert A^{2^k} \rVert^{1 / 2^k} $$

    Args:
        matrix: square matrices, of floating-point numbers.

    Returns:
        One radius a matrix, good to 1e-10 in float64; infinite where an entry is not finite.

    Example:
        >>> print(f"{spectral_radius(jnp.array([[1.0, -2.0], [2.0, 1.0]])):.4f}")
        2.2361
    """
    finite = jnp.all(jnp.isfinite(matrix), axis=(-2, -1))
    power = jnp.where(finite[..., None, None], matrix, 0)

    def square(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        power, log_radius = carry
        size = jnp.max(jnp.abs(power), axis=(-2, -1))
        power = power / jnp.where(size == 0, 1, size)[..., None, None]
        log_radius = log_radius + jnp.log(size) * jnp.exp2(-index.astype(size.dtype))
        return jnp.matmul(power, power, precision="highest"), log_radius

    start = power, jnp.zeros(power.shape[:-2], power.dtype)
    _, log_radius = jax.lax.fori_loop(jnp.int32(0), jnp.int32(_SQUARINGS), square, start)
    return jnp.where(finite, jnp.exp(log_radius), jnp.inf)


def preconditioned_limit(b1: Number) -> Scalar:
    r"""Return Adam's largest learning rate times preconditioned curvature, while its second moment stands still.

    $$ \eta\, \lambda_{\max}(P^{-1/2} H P^{-1/2}) < 2 (1 + b_1) / (1 - b_1), \quad P = \mathrm{diag}(\sqrt\nu + ε) $$

    Args:
        b1: decay of the running mean of gradients, in [0, 1); 0 for RMSprop.

    Returns:
        The limit: 2 without a mean, 38 at 0.9.

    Example:
        >>> print(f"{preconditioned_limit(0.9):.2f}")
        38.00

    Reference: Cohen et al. 2022, arXiv:2207.14484, equation 3.
    """
    b1 = jnp.asarray(b1, jnp.result_type(b1, 1.0))
    return 2 * (1 + b1) / (1 - b1)


def _positive(curvature: Number) -> Array:
    if np.ndim(curvature):
        raise ValueError(f"curvature: expected a scalar, got shape {np.shape(curvature)}; map over it by jax.vmap")
    if not isinstance(curvature, jax.core.Tracer) and not (np.isfinite(curvature) and curvature > 0):
        raise ValueError(f"curvature: expected a finite number above 0, got {curvature}")
    return jnp.asarray(curvature, jnp.promote_types(jnp.result_type(curvature, 1.0), jnp.float32))


def _search(make: Make, curvature: Array) -> StableStep:
    dtype = curvature.dtype
    lanes = _PER_DECADE * (_HIGHEST - _LOWEST) + 1
    still = jnp.zeros((1,), dtype)
    length = 1 + _entries(make(jnp.ones((), dtype)).init(still), dtype).shape[0]
    lowest, highest = (jnp.asarray(decade * np.log(10), dtype) - jnp.log(curvature) for decade in (_LOWEST, _HIGHEST))
    tolerance = jnp.asarray(1e-9 if dtype == jnp.float64 else 2e-5, dtype)
    indices = jnp.arange(lanes)

    def narrow(index: Array, seen: _Seen) -> _Seen:
        logs = seen.lower + (seen.upper - seen.lower) * jnp.linspace(0, 1, lanes, dtype=dtype)
        matrices, faults = jax.vmap(lambda log: _look(make, curvature, jnp.exp(log), seen.acts))(logs)
        acts = _acting(jnp.any(matrices != 0, axis=0))
        radius = spectral_radius(jax.vmap(_reduced, in_axes=(0, None))(matrices, acts))
        unstable = radius > 1 + tolerance
        first = jnp.where(jnp.any(unstable), jnp.argmax(unstable), lanes)
        shrinks = jnp.any((indices < first) & (radius < 1 - tolerance))
        outcome = jnp.where(first == lanes, UNLIMITED, jnp.where(shrinks, LIMITED, UNSTABLE))
        outcome = jnp.where(index == 0, outcome, seen.status)
        # Where a rule is unstable already, it need not be linear.
        found = jnp.any(faults & (indices < jnp.maximum(first, 1))[:, None], axis=0)
        for fault, status in zip(found, (CHANGING, NOT_ADDITIVE, NOT_PROPORTIONAL, NOT_FINITE), strict=True):
            outcome = jnp.where(fault, status, outcome)
        end = jnp.minimum(first, lanes - 1)
        bounded = (first < lanes) | (index > 0) & (outcome == LIMITED)
        lower = jnp.where(bounded, logs[jnp.maximum(end - 1, 0)], seen.lower)
        upper = jnp.where(bounded, logs[end], seen.upper)
        return _Seen(lower, upper, acts, outcome.astype(jnp.int32))

    start = _Seen(lowest, highest, jnp.arange(length) == 0, jnp.int32(UNSTABLE))
    seen = jax.lax.fori_loop(jnp.int32(0), jnp.int32(_ROUNDS), narrow, start)
    rate = jnp.exp((seen.lower + seen.upper) / 2)
    rate = jnp.where(seen.status == LIMITED, rate, jnp.where(seen.status == UNLIMITED, jnp.inf, 0)).astype(dtype)
    return StableStep(rate, rate * curvature, seen.status)


def _look(make: Make, curvature: Array, rate: Array, acts: Array) -> tuple[Array, Array]:
    """Return the matrix at one rate, and whether what it stands for changes, adds up, is in proportion, is finite."""
    rest = _settle(make, rate)
    amount = jnp.asarray(1e-40 if rate.dtype == jnp.float64 else 1e-18, rate.dtype)
    moving = jnp.concatenate([jnp.ones((1,), bool), rest.entries == 0])
    # No two alike and of both signs, so that neither |x| nor a sum of squares passes for linear.
    mixture = jnp.where(acts & moving, jnp.cos(1.0 + 2 * jnp.arange(acts.shape[0], dtype=rate.dtype)), 0)
    points = jnp.concatenate(
        [jnp.diag(moving.astype(rate.dtype)), jnp.stack([mixture, mixture, -mixture, 8 * mixture])]
    )
    counts = jnp.where(jnp.arange(points.shape[0]) == acts.shape[0], _COUNTS[1], _COUNTS[0])

    def respond(point: Array, count: Array) -> Array:
        return _respond(make, curvature, rate, rest, amount * point, count) / amount

    responses = jax.vmap(respond)(points, counts)
    columns, (late, plain, reverse, eightfold) = responses[:-4].T, responses[-4:]
    size = jnp.abs(columns) @ jnp.abs(mixture) + jnp.abs(plain)
    near = jnp.asarray(1e-6 if rate.dtype == jnp.float64 else 1e-3, rate.dtype) * size

    def differ(one: Array, other: Array) -> Array:
        return jnp.any(acts & ~(jnp.abs(one - other) <= near))

    proportional = ~(differ(reverse, -plain) | differ(eightfold, 8 * plain))
    finite = jnp.all(jnp.isfinite(plain)) & jnp.all(jnp.isfinite(columns))
    faults = jnp.stack([differ(late, plain), differ(columns @ mixture, plain), ~proportional, ~finite])
    own = jnp.zeros_like(columns).at[0, 0].set(1)
    return columns + own, faults


def _acting(influences: Array) -> Array:
    """Return the entries that the parameter acts on and that act on it, directly or through others."""
    size = influences.shape[0]
    reach = influences | jnp.eye(size, dtype=bool)
    further = jax.lax.fori_loop(0, size, lambda _, r: jnp.any(r[:, :, None] & r[None, :, :], axis=1), reach)
    acts: Array = further[0] & further[:, 0]
    return acts


def _reduced(matrix: Array, acts: Array) -> Array:
    return jnp.where(acts[:, None] & acts[None, :], matrix, 0)


def _respond(make: Make, curvature: Array, rate: Array, rest: _Rest, point: Array, count: Array) -> Array:
    """Return the update, and the next entries, from a parameter and the entries that rest at 0."""
    x = point[:1]
    state = _fill(rest, jnp.where(rest.entries == 0, point[1:], rest.entries), count)
    update, state = _step(make(rate), curvature * x, x, curvature * x[0] ** 2 / 2, state)
    return jnp.concatenate([update, _entries(state, rate.dtype)])


def _step(rule: Any, gradient: Array, params: Array, value: Array, state: Any) -> tuple[Array, Any]:
    rule = optax.with_extra_args_support(rule)
    update, new = rule.update(gradient, state, params, value=value, grad=gradient, value_fn=lambda _: value)
    return update, jax.tree.map(lambda old, leaf: jnp.asarray(leaf, old.dtype), state, new)


def _settle(make: Make, rate: Array) -> _Rest:
    rule = make(rate)
    still = jnp.zeros((1,), rate.dtype)

    def settle(state: Any, _: None) -> tuple[Any, Any]:
        step = jax.lax.fori_loop(0, _SETTLING, lambda _, s: _step(rule, still, still, still[0], s)[1], state)
        return step, (_entries(step, rate.dtype), step)

    first = jax.tree.map(jnp.asarray, rule.init(still))
    _, (seen, later) = jax.lax.scan(settle, first, length=3)
    entries = jnp.concatenate([_entries(first, rate.dtype)[None], seen])
    # What goes to some value geometrically is there at once, by Aitken's extrapolation.
    bend = entries[3] - 2 * entries[2] + entries[1]
    limit = entries[3] - jnp.where(bend == 0, 0, (entries[3] - entries[2]) ** 2 / jnp.where(bend == 0, 1, bend))
    gone = jnp.abs(limit) <= jnp.sqrt(jnp.finfo(rate.dtype).eps) * jnp.max(jnp.abs(entries), axis=0)
    counting = jax.tree.map(lambda leaf: leaf[2] != leaf[1], later)
    return _Rest(jnp.where(gone, 0, limit), jax.tree.map(lambda leaf: leaf[2], later), counting)


def _entries(state: Any, dtype: Any) -> Array:
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(state)]
    chosen = [jnp.ravel(leaf).astype(dtype) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.concatenate([jnp.zeros((0,), dtype), *chosen])


def _fill(rest: _Rest, entries: Array, count: Array) -> Any:
    """Return the settled state with other entries and other counts."""
    leaves, structure = jax.tree.flatten(rest.state)
    filled, start = [], 0
    for leaf, counting in zip(leaves, jax.tree.leaves(rest.counting), strict=True):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            filled.append(jnp.reshape(entries[start : start + leaf.size], leaf.shape).astype(leaf.dtype))
            start += leaf.size
        elif jnp.issubdtype(leaf.dtype, jnp.integer):
            filled.append(jnp.where(counting, count.astype(leaf.dtype), leaf))
        else:
            filled.append(leaf)
    return jax.tree.unflatten(structure, filled)
