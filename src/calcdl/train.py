"""Training: one run as one pure function of a key.

A run is nested scans: blocks of steps whose batches are drawn in bulk, records inside a block, steps inside a record.
Probes are measured once a record by the middle scan, so under ``jax.vmap`` they cost nothing at the steps in between.

Options are functions of its parts: `accumulated` takes the loss of a batch in pieces that fit into memory,
`learned_penalty` adds a penalty whose strength follows a held-out loss, `optim.frozen` leaves some parameters as they
are, `optim.averaged` returns the mean of the iterates.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from calcdl.data.dataset import Batches
from calcdl.optim.solver import Info, Solver
from calcdl.types import Array, Key, Objective, Params, Probe, Scalar

OK, DIVERGED = 0, 1
BULK_STEPS = 64


class Problem(NamedTuple):
    """What is to be minimised.

    Attributes:
        init: ``key -> params``.
        loss: ``(params, batch) -> scalar``, usually a mean over the batch.
        batches: where the batch of each step comes from.
    """

    init: Callable[[Key], Params]
    loss: Callable[[Params, Any], Scalar]
    batches: Batches


class Trace(NamedTuple):
    """What a run leaves behind.

    Attributes:
        params: parameters after the last step.
        loss: mean loss of the steps of each record, each taken before its step.
        probes: measurements at the end of each record, stacked.
        status: 0, or 1 if the loss or a parameter left the finite numbers.
        diverged_at: the step at which it did, or -1.
    """

    params: Params
    loss: Float[Array, " records"]
    probes: Mapping[str, Any]
    status: Int[Array, ""]
    diverged_at: Int[Array, ""]


class Penalised(NamedTuple):
    """Parameters with the strengths of their penalties, learned together.

    Attributes:
        params: the parameters.
        log_strength: logarithms of the strengths, one a penalty.
    """

    params: Params
    log_strength: Any


def accumulated(problem: Problem, parts: int) -> Problem:
    r"""Take the loss of a batch part by part, so that only one part's activations are in memory at a time.

    $$ L(\theta, B) = \frac{1}{m} \sum_{j=1}^m L(\theta, B_j), \quad B = B_1 \cup \dots \cup B_m $$

    The gradient is the sum over the parts, each computed anew on the way back. It is that of the whole batch where the
    loss is a mean over independent examples; batch normalisation sees its part alone.

    Args:
        problem: whose loss is a mean over a batch; all leaves of a batch have the examples along their first axis.
        parts: m, a divisor of the batch size.

    Returns:
        The same problem with the loss taken in parts.

    Raises:
        ValueError: `parts` below 1; when the loss is traced, a batch that it does not divide.

    Example:
        >>> from calcdl.data import full_batch
        >>> rows = jnp.array([1.0, 2.0, 3.0, 6.0])
        >>> whole = Problem(lambda key: jnp.float32(1.0), lambda w, x: jnp.mean((w * x) ** 2), full_batch(rows))
        >>> float(whole.loss(2.0, rows)), float(accumulated(whole, 2).loss(2.0, rows))
        (50.0, 50.0)
    """
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise ValueError(f"parts: expected a positive integer, got {parts!r}")

    def loss(params: Params, batch: Any) -> Scalar:
        sizes = {len(leaf) for leaf in jax.tree.leaves(batch)}
        if uneven := [size for size in sizes if size % parts]:
            raise ValueError(f"parts: expected a divisor of the batch size {uneven[0]}, got {parts}")
        divided = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), batch)
        one = jax.checkpoint(lambda part: problem.loss(params, part))
        return jnp.mean(jax.lax.map(one, divided), axis=0)

    return problem._replace(loss=loss)


def learned_penalty(
    problem: Problem,
    solver: Solver,
    penalty: Callable[[Params], Any],
    strength: Any,
    held_out: Objective,
    steering: Solver,
) -> tuple[Problem, Solver]:
    r"""Add penalties whose strengths are learned on the way, by the gradient of a held-out loss through each step.

    $$ p_{k+1} = \mathrm{step}\Bigl(L + \sum_i e^{s_i} R_i\Bigr)(p_k), \quad
       s_{k+1} = \mathrm{steer}\bigl(s \mapsto V(p_{k+1}(s))\bigr)(s_k) $$

    The strengths see one step ahead. Where they settle, no small change of theirs would make the next step better,
    which is not quite the best end of training: there the gradient of V is weighted by the curvature, here it is not
    (`optim.hypergradient` has it in full, for a whole run or its end). A step costs about three times as much, and
    should stay stable at the strengths reached: a total curvature c needs a learning rate below 2 / c.

    Args:
        problem: whose loss L is to be penalised.
        solver: what moves the parameters; one whose step can be differentiated backwards, as those of `descent` can.
        penalty: `params -> R`, a scalar or a tree of them, one for each group that is to have its own strength.
        strength: where the strengths start, above 0; a number, or a tree like R.
        held_out: V, the loss on rows that L does not see, a function of the parameters.
        steering: what moves the logarithms of the strengths, such as `descent("adam", 0.01)`.

    Returns:
        The problem and the solver of `Penalised` parameters, for `make_run`.

    Raises:
        ValueError: a strength not above 0; when the loss is traced, a penalty of another structure.

    Example:
        >>> from calcdl.data import full_batch
        >>> from calcdl.optim import descent
        >>> pull = Problem(lambda key: jnp.float32(4.0), lambda w, _: (w - 4) ** 2 / 2, full_batch(()))
        >>> task, solver = learned_penalty(
        ...     pull, descent("sgd", 0.5), lambda w: w**2 / 2, 0.1, lambda w: (w - 2) ** 2 / 2, descent("sgd", 0.5)
        ... )
        >>> found = make_run(task, solver, steps=100)(jax.random.key(0)).params
        >>> print(f"{found.params:.3f} {jnp.exp(found.log_strength):.3f}")  # 4 / (1 + strength) is 2
        2.000 1.000

    Reference:
        Luketina, Berglund, Greff and Raiko (2016), Scalable gradient-based tuning of continuous regularization
        hyperparameters, ICML, section 2.1.
    """
    known = [leaf for leaf in jax.tree.leaves(strength) if not isinstance(leaf, jax.core.Tracer)]
    if wrong := [leaf for leaf in known if not jnp.all(jnp.asarray(leaf) > 0)]:
        raise ValueError(f"strength: expected numbers above 0, got {wrong[0]}")

    def init(key: Key) -> Penalised:
        params = problem.init(key)
        terms = penalty(params)
        wanted, got = (str(jax.tree.structure(tree)) for tree in (terms, strength))
        if wanted != got:
            raise ValueError(f"strength: expected one number a penalty, {wanted}, got {got}")
        logs = jax.tree.map(lambda one, term: jnp.log(jnp.asarray(one, term.dtype)), strength, terms)
        return Penalised(params, logs)

    def loss(whole: Penalised, batch: Any) -> Scalar:
        terms = jax.tree.map(lambda log, term: jnp.exp(log) * term, whole.log_strength, penalty(whole.params))
        return problem.loss(whole.params, batch) + sum(jax.tree.leaves(terms))

    def start(whole: Penalised) -> Any:
        return solver.init(whole.params), steering.init(whole.log_strength)

    def step(objective: Objective, whole: Penalised, state: Any) -> tuple[Penalised, Any, Info]:
        def move(logs: Any) -> Any:
            return solver.step(lambda params: objective(Penalised(params, logs)), whole.params, state[0])

        params, inner, info = move(whole.log_strength)
        logs, outer, seen = steering.step(lambda logs: held_out(move(logs)[0]), whole.log_strength, state[1])
        gradient, update = Penalised(info.gradient, seen.gradient), Penalised(info.update, seen.update)
        return Penalised(params, logs), (inner, outer), Info(info.value, gradient, update, info.status)

    return problem._replace(init=init, loss=loss), Solver(start, step)


def make_run(
    problem: Problem,
    solver: Solver,
    *,
    steps: int,
    record_every: int = 1,
    probes: Mapping[str, Probe] | None = None,
) -> Callable[[Key], Trace]:
    """Make a training run, a pure function of its key that works under ``jax.jit`` and ``jax.vmap``.

    Args:
        problem: initial parameters, loss and batches.
        solver: what takes a step.
        steps: how many steps, a multiple of `record_every`.
        record_every: steps a record.
        probes: measurements ``(objective, params, info) -> array`` of the last step of each record.

    Returns:
        ``run(key) -> Trace``. The key is divided into one for the parameters and one for the batches.

    Raises:
        ValueError: `steps` or `record_every` below 1, or `steps` no multiple of `record_every`.

    Example:
        >>> from calcdl.data import full_batch
        >>> from calcdl.optim import descent
        >>> problem = Problem(lambda key: jnp.float32(3.0), lambda x, _: x**2, full_batch(()))
        >>> trace = make_run(problem, descent("sgd", 0.1), steps=2)(jax.random.key(0))
        >>> [round(float(loss), 3) for loss in trace.loss]
        [9.0, 5.76]
    """
    for name, value in (("steps", steps), ("record_every", record_every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    if steps % record_every:
        raise ValueError(f"steps: expected a multiple of record_every={record_every}, got {steps}")
    records = steps // record_every
    records_in_block = _records_in_block(records, record_every, problem.batches.epoch)
    measured = dict(probes or {})

    def step(carry: Any, schedule: Any) -> Any:
        params, state, _ = carry
        objective = partial(_on, problem.loss, problem.batches.take(schedule))
        params, state, info = solver.step(objective, params, state)
        return (params, state, info if measured else ()), info.value

    def record(carry: Any, numbered: Any) -> Any:
        first, schedule = numbered
        carry, losses = jax.lax.scan(step, carry, schedule)
        params, _, info = carry
        objective = partial(_on, problem.loss, problem.batches.take(jax.tree.map(lambda leaf: leaf[-1], schedule)))
        readings = {name: probe(objective, params, info) for name, probe in measured.items()}
        finite = jnp.isfinite(losses)
        broken_at = jnp.where(jnp.all(finite), jnp.int32(steps), first + jnp.argmin(finite).astype(jnp.int32))
        return carry, (losses.mean(), broken_at, readings)

    def first_info(key: Key, params: Params, state: Any) -> Any:
        schedule = jax.tree.map(lambda leaf: leaf[0], problem.batches.prepare(key, 0, 1))
        return solver.step(partial(_on, problem.loss, problem.batches.take(schedule)), params, state)[2]

    def run(key: Key) -> Trace:
        init_key, batch_key = jax.random.split(key)
        params = problem.init(init_key)

        def block(carry: Any, index: Array) -> Any:
            count = records_in_block * record_every
            schedule = problem.batches.prepare(batch_key, index * count, count)
            shaped = jax.tree.map(lambda leaf: leaf.reshape(-1, record_every, *leaf.shape[1:]), schedule)
            firsts = index * count + record_every * jnp.arange(records_in_block, dtype=jnp.int32)
            return jax.lax.scan(record, carry, (firsts, shaped))

        state = solver.init(params)
        blank = jax.eval_shape(first_info, batch_key, params, state) if measured else ()
        info = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), blank)
        blocks = jnp.arange(records // records_in_block, dtype=jnp.int32)
        (params, _, _), outputs = jax.lax.scan(block, (params, state, info), blocks)
        losses, broken_at, readings = jax.tree.map(lambda leaf: leaf.reshape(records, *leaf.shape[2:]), outputs)
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
        diverged_at = jnp.min(broken_at)
        status = jnp.where((diverged_at < steps) | ~finite, jnp.int32(DIVERGED), jnp.int32(OK))
        return Trace(params, losses, readings, status, jnp.where(status == OK, jnp.int32(-1), diverged_at))

    return run


def _on(loss: Callable[[Params, Any], Scalar], batch: Any, params: Params) -> Scalar:
    return loss(params, batch)


def _records_in_block(records: int, record_every: int, epoch: int) -> int:
    wanted = max(BULK_STEPS, epoch)
    return next(
        count
        for count in range(1, records + 1)
        if records % count == 0 and (count * record_every >= wanted or count == records)
    )
