"""The engine: every lane gets its own point and key, whatever the division into programs and batches."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from calcdl.study import axis, collect, execute, interval, join, part, plan, run, summarise

SEEDS = (3, 0, 7, 2**32 - 1, 11)


def simulate(key, *, size, kind, rate, offset):
    """Touch every kind of axis: a shape, a branch, a datum, a key, something shared."""
    noise = jax.random.normal(key, (size,), jnp.float32)
    shaped = {"plain": noise, "square": noise**2}[kind]
    return {"values": rate * shaped + offset, "total": rate * jnp.sum(shaped), "count": jnp.int32(size)}


AXES = (
    axis("rate", [0.5, 1.0, 2.0]),
    axis("size", [2, 4], static=True),
    axis("seed", SEEDS),
    axis("kind", ["plain", "square"]),
)


def simulated(axes=AXES, **options):
    return run(
        simulate,
        axes,
        name="simulated",
        shared={"offset": jnp.float32(10.0)},
        dimensions={"values": ("cell",)},
        **options,
    )


@pytest.fixture(scope="module")
def results():
    return simulated()


def test_every_lane_is_the_function_of_its_point(results):
    import zlib

    for rate in (0.5, 2.0):
        for seed in SEEDS:
            for size in (2, 4):
                for kind in ("plain", "square"):
                    key = jax.random.fold_in(
                        jax.random.key(np.uint32(seed), impl="threefry2x32"), np.uint32(zlib.crc32(b"simulated"))
                    )
                    expected = simulate(key, size=size, kind=kind, rate=np.float32(rate), offset=np.float32(10.0))
                    lane = results.sel(rate=rate, seed=seed, size=size, kind=kind)
                    np.testing.assert_allclose(lane["values"].values[:size], expected["values"], rtol=1e-6)
                    np.testing.assert_allclose(lane.total, expected["total"], rtol=1e-6, atol=1e-6)


def test_the_result_is_labelled(results):
    assert results["values"].dims == ("rate", "size", "seed", "kind", "cell")
    assert results.seed.values.tolist() == list(SEEDS)
    assert results.kind.values.tolist() == ["plain", "square"]
    assert results["values"].dtype == np.float32
    assert results.attrs["study"] == "simulated"


def test_ragged_outputs_are_padded_with_nan_and_not_called_failed(results):
    assert np.isnan(results["values"].sel(size=2).isel(cell=[2, 3])).all()
    assert not np.isnan(results["values"].sel(size=4)).any()
    assert (results.status == 0).all()


def test_all_settings_share_the_draws_of_a_seed(results):
    plain = results.total.sel(kind="plain")
    np.testing.assert_allclose(plain.sel(rate=2.0), 4 * plain.sel(rate=0.5), rtol=1e-6)


@pytest.mark.parametrize("strategy", ["map", "vmap"])
@pytest.mark.parametrize("width", [1, 4, 6, 64])
def test_the_division_into_batches_changes_no_more_than_last_bits(results, strategy, width):
    divided = simulated(strategy=strategy, width=width, workers=1)
    for name in results:
        np.testing.assert_allclose(divided[name], results[name], rtol=1e-6, err_msg=name)


def test_map_has_the_same_bits_at_every_width():
    one, other = simulated(strategy="map", width=1), simulated(strategy="map", width=7)
    np.testing.assert_array_equal(one["values"], other["values"])


@pytest.mark.parametrize("strategy", ["map", "vmap"])
def test_more_values_on_an_axis_change_no_other_lane(strategy):
    few = (axis("rate", [0.5, 1.0, 2.0]), axis("size", [4], static=True), axis("kind", ["plain"]), axis("seed", SEEDS))
    more = (axis("rate", [0.5, 1.0, 2.0, 3.0]), *few[1:3], axis("seed", (9, *SEEDS, 12)))
    narrow, wide = simulated(few, strategy=strategy), simulated(more, strategy=strategy)
    common = wide.sel(rate=narrow.rate, seed=narrow.seed)
    np.testing.assert_array_equal(common["values"], narrow["values"])


def test_one_program_a_shape_holds_all_branches():
    todo = plan(simulate, AXES, shared={"offset": 0.0})
    assert [program.statics for program in todo.programs] == [{"size": 2}, {"size": 4}]
    assert [branch["kind"] for branch in todo.programs[0].branches] == ["plain", "square"]
    assert todo.lanes == 3 * 2 * 5 * 2
    assert sum(batch.lanes for batch in todo.batches) == todo.lanes


def test_planning_compiles_nothing(monkeypatch):
    monkeypatch.setattr("jax.stages.Lowered.compile", lambda *_, **__: pytest.fail("compiled"))
    assert plan(simulate, AXES, shared={"offset": 0.0}).summary()[0].startswith("study study: 60 lanes in 2 programs")


def test_branches_of_different_shape_stay_apart():
    def differing(key, kind):
        return {"values": jnp.ones(2) if kind == "short" else jnp.ones(3)}

    table = run(differing, [axis("kind", ["short", "long"])])
    assert np.isnan(table["values"].sel(kind="short").values).tolist() == [False, False, True]


def test_a_study_without_axes_is_one_run():
    assert float(run(lambda key: {"y": jnp.float32(2.0)}, []).y) == 2.0


@pytest.mark.parametrize("strategy", ["map", "vmap"])
def test_a_lane_that_fails_changes_no_bit_of_its_neighbours(strategy):
    def root(key, x):
        return {"y": jnp.sqrt(x) + jax.random.normal(key, (), jnp.float32)}

    seeds = axis("seed", range(3))
    good = run(root, [axis("x", [1.0, 2.0, 3.0]), seeds], strategy=strategy, name="root")
    bad = run(root, [axis("x", [1.0, -2.0, 3.0]), seeds], strategy=strategy, name="root")
    assert bad.status.sel(x=-2.0).values.tolist() == [2, 2, 2]
    assert (bad.status.sel(x=[1.0, 3.0]) == 0).all()
    np.testing.assert_array_equal(bad.y.sel(x=[1.0, 3.0]), good.y.sel(x=[1.0, 3.0]))


def test_an_announced_divergence_is_no_failure():
    def announced(key, x):
        return {"y": jnp.where(x > 1, jnp.nan, x), "status": (x > 1).astype(jnp.int32)}

    assert run(announced, [axis("x", [1.0, 2.0])]).status.values.tolist() == [0, 1]


def test_summaries_count_what_they_leave_out():
    def announced(key, x):
        value = x + jax.random.key_data(key)[1].astype(jnp.float32) * 0
        return {"y": jnp.where(x > 2, jnp.nan, value), "status": (x > 2).astype(jnp.int32)}

    table = run(announced, [axis("x", [1.0, 2.0, 3.0])])
    summary = summarise(table.y, table.status, "x")
    assert float(summary.middle) == 1.5
    assert (int(summary.ok), int(summary.total)) == (2, 3)


def test_an_interval_holds_the_mean_of_normal_draws_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, 5)).astype(np.float32)
    for confidence in (0.95, 0.5):
        found = interval(xarray.DataArray(draws, dims=("trial", "seed")), confidence=confidence)
        share = float((abs(found.mean - 3.0) <= found.half).mean())
        assert abs(share - confidence) < 4 * (confidence * (1 - confidence) / 4000) ** 0.5
        assert found.mean.dtype == np.float64
        assert found.half.dims == ("trial",)


def test_shared_rows_widen_an_interval():
    values = xarray.DataArray([1.0, 2.0, 4.0, 8.0], dims="division")
    alone, shared = interval(values, "division"), interval(values, "division", shared=0.5)
    np.testing.assert_allclose(shared.half, alone.half * (1 + 4 / 2) ** 0.5, rtol=1e-14)
    assert float(shared.mean) == float(alone.mean)


def test_an_interval_does_not_swallow_a_failure_nor_invent_a_spread():
    values = xarray.DataArray([[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]], dims=("kind", "seed"))
    found = interval(values)
    assert np.isnan(found.mean).values.tolist() == np.isnan(found.half).values.tolist() == [True, False]
    alone = interval(values.isel(seed=[2]))
    assert alone.mean.values.tolist() == [3.0, 3.0]
    assert np.isnan(alone.half).all()
    with pytest.raises(ValueError, match="confidence: expected a number between 0 and 1, got 95"):
        interval(values, confidence=95)


def test_finished_batches_are_not_run_again():
    def count(key, x):
        return {"y": x}

    todo = plan(count, [axis("x", [1.0, 2.0, 3.0, 4.0])], width=1, strategy="map")
    first = execute(todo)
    seen = []
    kept = {number: {**arrays, "y": np.full_like(arrays["y"], 9.0)} for number, arrays in first.items() if number != 2}
    again = execute(todo, kept, lambda batch, arrays: seen.append(batch.number))
    assert seen == [2]
    assert collect(todo, again).y.values.tolist() == [9.0, 9.0, 3.0, 9.0]


def test_missing_batches_are_not_run_and_not_numbers():
    todo = plan(lambda key, x: {"y": x, "n": jnp.int32(1)}, [axis("x", [1.0, 2.0])], width=1, strategy="map")
    table = collect(todo, {0: execute(todo)[0]})
    assert table.status.values.tolist() == [0, 3]
    assert np.isnan(table.y.values).tolist() == [False, True]


def test_an_error_inside_the_function_surfaces_and_keeps_what_was_done():
    with pytest.raises(ZeroDivisionError):
        run(lambda key, n: {"y": jnp.float32(1 / n)}, [axis("n", [0], static=True)])


def test_an_interrupt_keeps_the_batches_already_computed():
    todo = plan(lambda key, x: {"y": x}, [axis("x", [float(x) for x in range(8)])], width=1, strategy="map", workers=1)
    kept = {}

    def interrupted(batch, arrays):
        kept[batch.number] = arrays
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(todo, {}, interrupted)
    assert len(kept) >= 2
    assert collect(todo, execute(todo, kept)).y.values.tolist() == [float(x) for x in range(8)]


def precisions(key, *, x):
    return {"given": x, "made": jnp.ones(()), "product": jnp.full((2, 2), x) @ jnp.full((2, 2), 1 / 3)}


@pytest.mark.parametrize("strategy", ["vmap", "map"])
def test_settings_of_jax_hold_wherever_a_study_runs(strategy):
    axes = [axis("x", [1.0, 2.0])]
    with jax.enable_x64(False), jax.default_matmul_precision("highest"):
        narrow = plan(precisions, axes, strategy=strategy)
    with ThreadPoolExecutor(1) as pool:
        tables = [
            collect(narrow, execute(narrow)),
            collect(narrow, execute(narrow, executor=pool)),
            collect(narrow, {}),
        ]
    wide = run(precisions, axes, strategy=strategy, dtype="float64")
    for name in ("given", "made", "product"):
        assert [table[name].dtype for table in tables] == [np.float32] * 3
        assert wide[name].dtype == np.float64
    np.testing.assert_allclose(tables[0].product, wide.product, rtol=1e-6)
    assert narrow.fingerprint()["matmul_precision"] == "highest"


def test_a_dtype_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="dtype: expected 'float32' or 'float64', got 'float16'"):
        plan(precisions, [axis("x", [1.0])], dtype="float16")
    with jax.enable_x64(False), pytest.raises(ValueError, match="dtype: 'float64' needs 64-bit numbers"):
        plan(precisions, [axis("x", [1.0])], dtype="float64")


def test_batches_go_to_any_executor(results):
    todo = plan(
        simulate, AXES, name="simulated", shared={"offset": jnp.float32(10.0)}, dimensions={"values": ("cell",)}
    )
    pickle.dumps(todo._replace(function=None))
    with ThreadPoolExecutor(1) as pool:
        spread = collect(todo, execute(todo, executor=pool))
    np.testing.assert_array_equal(spread["values"], results["values"])


@pytest.mark.parametrize("side", ["seeds", "settings"])
def test_devices_share_a_batch(results, side):
    todo = plan(
        simulate,
        AXES,
        name="simulated",
        shared={"offset": jnp.float32(10.0)},
        dimensions={"values": ("cell",)},
        strategy="vmap",
    )
    assert jax.device_count() == 2
    wide = {"seeds": {"seeds": 8, "settings": 3}, "settings": {"seeds": 5, "settings": 4}}[side]
    programs = tuple(
        program._replace(execution=program.execution._replace(devices=2, **wide)) for program in todo.programs
    )
    batches = tuple(
        todo.batches[0]._replace(number=number, program=number, seeds=range(5), settings=range(3))
        for number in range(2)
    )
    todo = todo._replace(programs=programs, batches=batches)
    np.testing.assert_allclose(collect(todo, execute(todo))["values"], results["values"], rtol=1e-6)


def test_a_second_study_of_the_same_recipe_compiles_nothing(results, monkeypatch):
    monkeypatch.setattr("jax.stages.Lowered.compile", lambda *_, **__: pytest.fail("compiled again"))
    again = simulated((AXES[0], AXES[1], axis("seed", (8, *SEEDS[1:])), AXES[3]))
    np.testing.assert_array_equal(again["values"].isel(seed=range(1, 5)), results["values"].isel(seed=range(1, 5)))


def test_a_function_that_cannot_be_looked_up_still_runs():
    from functools import partial

    shift = partial(lambda key, x, by: {"y": x + by["value"]}, by={"value": 1.0})
    assert run(shift, [axis("x", [1.0, 2.0])]).y.values.tolist() == [2.0, 3.0]


def test_a_wide_batch_holds_all_branches_and_a_following_one_a_single_branch():
    wide, following = (plan(simulate, AXES, shared={"offset": 0.0}, strategy=name) for name in ("vmap", "map"))
    assert {batch.branches for batch in wide.batches} == {range(2)}
    assert {batch.branches for batch in following.batches} == {range(1), range(1, 2)}


def test_an_output_of_some_branches_is_missing_in_the_others():
    def learned(key, kind):
        return {"y": jnp.float32(1.0), **({"slope": jnp.arange(2.0)} if kind == "learned" else {})}

    table = run(learned, [axis("kind", ["plain", "learned"])])
    assert np.isnan(table.slope.sel(kind="plain")).all()
    assert table.slope.sel(kind="learned").values.tolist() == [0.0, 1.0]
    assert (table.status == 0).all()


def test_wide_branches_draw_once_for_all(monkeypatch):
    made, original = [], jax.stages.Lowered.compile
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *a, **k: made.append(original(*a, **k)) or made[-1])

    def loops(kinds):
        axes = [axis("rate", [1.0]), axis("size", [65], static=True), axis("seed", range(4)), axis("kind", kinds)]
        run(simulate, axes, shared={"offset": 0.0}, strategy="vmap")
        return made[-1].as_text().count("while(")

    assert loops(["plain", "square"]) == loops(["plain"]) > 0


def test_the_fingerprint_names_what_bits_depend_on(results):
    base = plan(simulate, AXES, shared={"offset": 0.0}).fingerprint()
    assert base != plan(simulate, AXES, shared={"offset": 1.0}).fingerprint()
    assert base != plan(simulate, AXES, shared={"offset": 0.0}, width=2).fingerprint()
    assert base == plan(simulate, AXES, shared={"offset": 0.0}, workers=1).fingerprint()
    assert {"jax", "device_kind", "device_count", "programs"} <= set(base)


@pytest.mark.parametrize(
    ("axes", "options", "message"),
    [
        ([axis("x", [1.0]), axis("x", [2.0])], {}, "used once"),
        ([axis("x", [1.0])], {"shared": {"x": 1.0}}, "shared argument"),
        ([axis("key", [1.0])], {}, "not 'key'"),
        ([axis("x", [1.0])], {"strategy": "pmap"}, "'auto', 'map' or 'vmap'"),
        ([axis("x", [1.0])], {"width": -1}, "width"),
        ([axis("x", [1.0])], {"workers": True}, "workers"),
    ],
)
def test_bad_plans_are_refused(axes, options, message):
    with pytest.raises(ValueError, match=message):
        plan(lambda key, x: {"y": x}, axes, **options)


def test_matrix_products_follow_one_another_and_scalars_run_wide():
    def product(key, x):
        weight = x * jax.random.normal(key, (64, 64), jnp.float32)
        return {"y": jnp.sum(weight @ weight)}

    axes = [axis("x", [1.0, 2.0]), axis("seed", range(4))]
    assert plan(product, axes).programs[0].execution.strategy == "map"
    assert plan(lambda key, x: {"y": x**2}, axes).programs[0].execution.strategy == "vmap"

    def shared_product(key, x, matrix):
        return {"y": jnp.sum((matrix @ (x * jnp.ones(64))) ** 2)}

    shared = {"matrix": np.ones((512, 64), np.float32)}
    assert plan(shared_product, axes, shared=shared).programs[0].execution.strategy == "vmap"


def test_join_names_everything_by_study_and_part_undoes_it(results):
    other = run(lambda key, rate: {"y": rate}, [axis("rate", [0.5, 1.0, 2.0]), axis("seed", [1])], name="other")
    joined = join(first=results, second=other)
    assert joined.first_values.dims == ("first_rate", "first_size", "first_seed", "first_kind", "first_cell")
    assert joined.second_y.dims == ("second_rate", "second_seed")
    assert part(joined, "second").identical(other)
    assert part(joined, "first").identical(results)
    with pytest.raises(ValueError, match="'third'"):
        part(joined, "third")


DRAW = """
import jax, numpy as np
jax.config.update("jax_enable_x64", {x64})
from calcdl.study import axis, run
axes = [axis("x", [0.5]), axis("seed", [5, 2**32 - 1])]
table = run(lambda key, x: {{"y": x * jax.random.normal(key, (3,), np.float32)}}, axes)
print(table.y.dtype, table.y.values.tobytes().hex())
"""


def test_x64_changes_no_float32_draw():
    outputs = [
        subprocess.run([sys.executable, "-c", DRAW.format(x64=x64)], capture_output=True, text=True, check=True).stdout
        for x64 in (False, True)
    ]
    assert outputs[0].startswith("float32")
    assert outputs[0] == outputs[1]


def factorised(key, x, kind="qr"):
    matrix = jax.random.normal(key, (4, 3), jnp.float32) + x
    return {"y": jnp.sum(matrix) if kind == "sum" else jnp.linalg.qr(matrix)[1][0, 0]}


@pytest.mark.parametrize(
    ("strategy", "kinds", "alone"), [("vmap", ["sum"], 0), ("vmap", ["sum", "qr"], 4), ("auto", ["qr"], 0)]
)
def test_programs_that_factorise_batches_run_one_at_a_time(monkeypatch, strategy, kinds, alone):
    # Two at once would wait for each other's threads for ever.
    entered = []

    class Lock:
        def __enter__(self):
            entered.append(self)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr("calcdl.study.compiled.ONE_AT_A_TIME", Lock())
    axes = [axis("kind", kinds), axis("x", [0.0, 1.0]), axis("seed", range(4))]
    results = run(factorised, axes, strategy=strategy, width=2, workers=2)
    assert len(entered) == alone
    assert (results.status == 0).all()


def test_lanes_that_factorise_follow_one_another():
    assert plan(factorised, [axis("x", [0.0, 1.0])]).programs[0].execution.strategy == "map"
    assert plan(partial(factorised, kind="sum"), [axis("x", [0.0, 1.0])]).programs[0].execution.strategy == "vmap"
