"""A run of nested scans is the plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.data import fresh, full_batch, minibatches
from calcdl.optim import descent, frozen
from calcdl.train import Problem, _records_in_block, accumulated, learned_penalty, make_run

ROWS = np.arange(24, dtype=np.float64).reshape(12, 2) / 10


def problem(batches, dtype=jnp.float64):
    return Problem(
        init=lambda key: {"w": jax.random.normal(key, (2,), dtype)},
        loss=lambda params, x: jnp.mean(jnp.square(x @ params["w"] - 1.0)),
        batches=batches,
    )


def plain_loop(problem, rate, steps, key):
    init_key, batch_key = jax.random.split(key)
    params, losses, seen = problem.init(init_key), [], []
    schedule = problem.batches.prepare(batch_key, 0, steps)
    for step in range(steps):
        batch = problem.batches.take(jax.tree.map(lambda leaf: leaf[step], schedule))  # noqa: B023
        loss, gradient = jax.value_and_grad(problem.loss)(params, batch)
        params = jax.tree.map(lambda w, g: w - rate * g, params, gradient)
        losses.append(float(loss))
        seen.append(float(jnp.linalg.norm(gradient["w"])))
    return params, np.array(losses), np.array(seen)


BATCHES = {
    "full": lambda: full_batch(jnp.asarray(ROWS)),
    "mini": lambda: minibatches(jnp.asarray(ROWS), 5),
    "fresh": lambda: fresh(lambda key, count: jax.random.normal(key, (count, 3, 2), jnp.float64)),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("record_every", [1, 4])
def test_a_run_is_the_plain_loop(name, record_every, key):
    task = problem(BATCHES[name]())
    norm = lambda objective, params, info: jnp.linalg.norm(info.gradient["w"])  # noqa: E731
    run = make_run(task, descent("sgd", 0.02), steps=12, record_every=record_every, probes={"norm": norm})
    trace = jax.jit(run)(key)
    params, losses, seen = plain_loop(task, 0.02, 12, key)
    np.testing.assert_allclose(trace.params["w"], params["w"], rtol=1e-12)
    np.testing.assert_allclose(trace.loss, losses.reshape(-1, record_every).mean(1), rtol=1e-12)
    np.testing.assert_allclose(trace.probes["norm"], seen[record_every - 1 :: record_every], rtol=1e-12)
    assert (int(trace.status), int(trace.diverged_at)) == (0, -1)


def test_blocks_change_nothing(key, monkeypatch):
    task = problem(BATCHES["mini"]())
    one = make_run(task, descent("sgd", 0.02), steps=60, record_every=2)(key)
    monkeypatch.setattr("calcdl.train.BULK_STEPS", 3)
    other = make_run(task, descent("sgd", 0.02), steps=60, record_every=2)(key)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-13)


def test_a_probe_sees_the_batch_of_its_step_and_the_parameters_after_it(key):
    task = problem(BATCHES["mini"]())
    probe = lambda objective, params, info: (info.value, objective(params), params["w"] - info.update["w"])  # noqa: E731
    trace = make_run(task, descent("sgd", 0.02), steps=6, record_every=3, probes={"p": probe})(key)
    before, after, start = trace.probes["p"]
    assert (after < before).all()
    value = [task.loss({"w": w}, b) for w, b in zip(start, _batches(task, key, 6)[2::3], strict=True)]
    np.testing.assert_allclose(before, value, rtol=1e-12)


def _batches(task, key, steps):
    schedule = task.batches.prepare(jax.random.split(key)[1], 0, steps)
    return [task.batches.take(jax.tree.map(lambda leaf: leaf[step], schedule)) for step in range(steps)]  # noqa: B023


def test_divergence_is_dated_and_stays_in_its_lane(key):
    task = problem(BATCHES["full"](), jnp.float32)
    task = task._replace(loss=lambda params, x: jnp.mean(jnp.square(x.astype(jnp.float32) @ params["w"] - 1.0)))
    run = lambda rate: make_run(task, descent("sgd", rate), steps=200)(key)  # noqa: E731
    rates = jnp.array([0.01, 10.0, 0.02], jnp.float32)
    traces = jax.vmap(run)(rates)
    assert traces.status.tolist() == [0, 1, 0]
    first = int(np.argmin(np.isfinite(np.asarray(traces.loss[1]))))
    assert int(traces.diverged_at[1]) == first
    calm = jax.vmap(run)(rates.at[1].set(0.015))
    np.testing.assert_array_equal(traces.loss[0], calm.loss[0])
    np.testing.assert_array_equal(traces.params["w"][2], calm.params["w"][2])


def test_a_last_step_that_leaves_the_numbers_is_seen(key):
    task = Problem(lambda key: jnp.float32(1e30), lambda x, _: x, full_batch(()))
    trace = make_run(task, descent("sgd", 3e38)._replace(), steps=1)(key)
    assert int(trace.status) == 0
    cliff = task._replace(loss=lambda x, _: jnp.float32(0.5) * jnp.float32(1e38) * x)
    assert (int(make_run(cliff, descent("sgd", 1e10), steps=1)(key).diverged_at)) in (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected a positive integer, got 0"),
        ({"steps": True}, "steps"),
        ({"steps": 10, "record_every": 3}, "multiple of record_every=3, got 10"),
        ({"steps": 10, "record_every": 0}, "record_every"),
    ],
)
def test_bad_counts_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_run(problem(BATCHES["full"]()), descent("sgd", 0.1), **options)


def test_blocks_hold_an_epoch_of_draws_and_divide_the_run():
    assert _records_in_block(100, 1, 1) == 100
    assert _records_in_block(1000, 1, 1) == 100
    assert _records_in_block(1000, 10, 200) == 20
    assert _records_in_block(7, 1, 1000) == 7


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_batch_in_parts_is_the_batch(dtype, key):
    rows = jnp.asarray(ROWS, dtype)
    whole = problem(minibatches(rows, 6), dtype)
    traces = [jax.jit(make_run(task, descent("sgd", 0.02), steps=8))(key) for task in (whole, accumulated(whole, 3))]
    tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
    np.testing.assert_allclose(traces[0].loss, traces[1].loss, rtol=tolerance)
    np.testing.assert_allclose(traces[0].params["w"], traces[1].params["w"], rtol=tolerance)
    assert traces[1].params["w"].dtype == traces[1].loss.dtype == dtype


def test_a_batch_in_parts_needs_less_memory():
    def loss(params, x):
        return jnp.mean(jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params)[0] ** 2)

    task = Problem(lambda key: jnp.zeros((8, 16, 16)), loss, full_batch(jnp.zeros((512, 16))))

    def memory(task):
        compiled = jax.jit(jax.grad(task.loss)).lower(task.init(None), jnp.zeros((512, 16))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(accumulated(task, 16)) < memory(task) / 4


def test_parts_that_do_not_divide_are_named():
    task = problem(full_batch(jnp.asarray(ROWS)))
    with pytest.raises(ValueError, match="parts: expected a positive integer, got 0"):
        accumulated(task, 0)
    with pytest.raises(ValueError, match="parts: expected a divisor of the batch size 12, got 5"):
        accumulated(task, 5).loss({"w": jnp.ones(2)}, jnp.asarray(ROWS))


TOWARDS = np.array([[3.0, 1.0, -2.0], [0.5, -1.5, 1.0]])


def ridge(strength, dtype=jnp.float64, solver=None, groups=False):
    """L is nearest at TOWARDS, V nearer to 0 by a factor: 0.4, or one for each row, which has its own strength."""
    towards = jnp.asarray(TOWARDS, dtype)
    held = towards * jnp.asarray([[0.5], [0.1]] if groups else 0.4, dtype)
    return learned_penalty(
        Problem(lambda key: jnp.zeros((2, 3), dtype), lambda w, x: jnp.sum((w - x) ** 2) / 2, full_batch(towards)),
        solver or descent("sgd", 0.5),
        (lambda w: {"a": w[0] @ w[0] / 2, "b": w[1] @ w[1] / 2}) if groups else lambda w: jnp.sum(w**2) / 2,
        strength,
        lambda w: jnp.sum((w - held) ** 2) / 2,
        descent("sgd", 0.2),
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_penalty_is_learned_to_the_best_of_a_ridge_with_equal_curvatures(dtype, key):
    # w = x / (1 + strength) is nearest to 0.4 x at strength 1.5; curvatures are equal, so one step ahead is enough.
    run = jax.jit(jax.vmap(lambda strength: make_run(*ridge(strength, dtype), steps=200)(key)))
    trace = run(jnp.array([0.01, 1.0, 2.5], dtype))
    np.testing.assert_allclose(jnp.exp(trace.params.log_strength), 1.5, rtol=1e-9 if dtype == jnp.float64 else 1e-5)
    assert trace.params.log_strength.dtype == trace.params.params.dtype == trace.loss.dtype == dtype


def test_each_group_has_its_own_strength(key):
    task, solver = ridge({"a": 1.0, "b": 1.0}, solver=descent("sgd", 0.15), groups=True)
    found = jax.jit(make_run(task, solver, steps=2000))(key).params.log_strength
    np.testing.assert_allclose([jnp.exp(found["a"]), jnp.exp(found["b"])], [1.0, 9.0], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_strengths_follow_the_derivative_of_the_held_out_loss_through_a_step(name):
    task, solver = ridge(0.7, solver=descent(name, 0.3))
    batch = jnp.asarray(TOWARDS)
    objective = lambda p: task.loss(p, batch)  # noqa: E731
    at, state, _ = solver.step(objective, task.init(None), solver.init(task.init(None)))

    def held_out(log):
        moved, _, _ = solver.step(objective, at._replace(log_strength=log), state)
        return jnp.sum((moved.params - 0.4 * TOWARDS) ** 2) / 2

    _, _, info = solver.step(objective, at, state)
    difference = (held_out(at.log_strength + 1e-6) - held_out(at.log_strength - 1e-6)) / 2e-6
    np.testing.assert_allclose(info.gradient.log_strength, difference, rtol=1e-7)
    np.testing.assert_allclose(info.update.log_strength, -0.2 * info.gradient.log_strength, rtol=1e-12)
    np.testing.assert_allclose(info.gradient.params, jax.grad(objective)(at).params, rtol=1e-12)


def test_a_learned_penalty_stands_beside_the_other_options(key):
    plain = ridge(0.5)
    held = frozen(plain[1], ["log_strength"])
    trace = make_run(plain[0], held, steps=100)(key)
    np.testing.assert_allclose(trace.params.params, TOWARDS / 1.5, rtol=1e-9)
    np.testing.assert_allclose(jnp.exp(trace.params.log_strength), 0.5, rtol=1e-12)
    rows = problem(minibatches(jnp.asarray(ROWS), 6))
    added = (descent("sgd", 0.02), lambda p: p["w"] @ p["w"], 0.1, lambda p: rows.loss(p, jnp.asarray(ROWS[:3])))
    pair = [learned_penalty(one, *added, descent("sgd", 0.1)) for one in (rows, accumulated(rows, 3))]
    whole, parts = (make_run(*one, steps=5)(key) for one in pair)
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-12)
    np.testing.assert_allclose(parts.params.log_strength, whole.params.log_strength, rtol=1e-12)


def test_strengths_that_cannot_be_are_named():
    with pytest.raises(ValueError, match=r"strength: expected numbers above 0, got 0\.0"):
        ridge(0.0)
    with pytest.raises(ValueError, match="strength: expected one number a penalty"):
        ridge({"a": 1.0}, groups=True)[0].init(None)
