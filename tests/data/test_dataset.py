import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl.data import (
    Dataset,
    fresh,
    full_batch,
    load,
    minibatches,
    polynomial_features,
    rows,
    split,
    standardise,
    together,
)
from calcdl.types import DataError


def made_up(rows=20, columns=3, labels=None):
    generator = np.random.default_rng(3)
    none = np.arange(0)
    return Dataset(
        name="made up",
        features=generator.normal(5.0, 2.0, (rows, columns)),
        targets=generator.normal(size=rows) if labels is None else np.asarray(labels, np.int32),
        feature_names=tuple("abcdefgh"[:columns]),
        target_name="y",
        target_kind="regression" if labels is None else "classification",
        classes=() if labels is None else tuple("xyz"[: max(labels) + 1]),
        train=np.arange(rows),
        validation=none,
        test=none,
        source="a generator",
    )


@pytest.mark.parametrize("name", ["iris", "diabetes"])
def test_a_split_is_a_partition_and_repeats(name):
    parts = split(load(name), 0.2, 0.1, seed=4)
    rows = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(rows) == list(range(len(parts.targets)))
    again, other = split(load(name), 0.2, 0.1, seed=4), split(load(name), 0.2, 0.1, seed=5)
    np.testing.assert_array_equal(parts.test, again.test)
    assert not np.array_equal(parts.test, other.test)
    assert len(parts.validation) == round(0.2 * len(parts.targets))


def test_a_split_keeps_the_proportion_of_each_class():
    labels = [0] * 40 + [1] * 10 + [2] * 10
    parts = split(made_up(60, labels=labels), 0.2, 0.1)
    assert np.bincount(parts.targets[parts.validation]).tolist() == [8, 2, 2]
    assert np.bincount(parts.targets[parts.test]).tolist() == [4, 1, 1]


@pytest.mark.parametrize(
    ("fractions", "error", "words"),
    [
        ((-0.1, 0.1), ValueError, "validation: expected a fraction"),
        ((0.1, 1.0), ValueError, "test: expected a fraction"),
        ((True, 0.1), ValueError, "validation: expected a fraction"),
        ((0.6, 0.4), ValueError, "nothing is left to train on"),
        ((float("nan"), 0.1), ValueError, "validation: expected a fraction"),
    ],
)
def test_bad_fractions_are_refused(fractions, error, words):
    with pytest.raises(error, match=words):
        split(made_up(), *fractions)


def test_a_class_too_small_to_split_is_named():
    with pytest.raises(DataError, match=r"2 row\(s\) of class 'y' are too few"):
        split(made_up(22, labels=[0] * 20 + [1] * 2), 0.2, 0.2)


def test_statistics_come_from_train_rows_only():
    parts = split(made_up(50), 0.2, 0.2)
    moved = parts._replace(features=parts.features.copy())
    moved.features[parts.test] += 1e3
    scaled, statistics = standardise(moved)
    np.testing.assert_array_equal(statistics.mean, parts.features[parts.train].mean(axis=0))
    np.testing.assert_allclose(scaled.features[parts.train].mean(axis=0), 0, atol=1e-13)
    np.testing.assert_allclose(scaled.features[parts.train].std(axis=0, ddof=0), 1, rtol=1e-13)
    np.testing.assert_allclose(scaled.features * statistics.scale + statistics.mean, moved.features)


@pytest.mark.parametrize("dtype", ["float32", np.float64])
@pytest.mark.parametrize("labels", [None, [0, 1] * 10])
def test_rows_of_a_part_have_the_dtypes_of_compiled_code(labels, dtype):
    dataset = split(made_up(labels=labels), validation=0.3, test=0.2)
    for part in ("train", "validation", "test"):
        x, y = rows(dataset, part, dtype)
        chosen = getattr(dataset, part)
        np.testing.assert_array_equal(x, dataset.features[chosen].astype(dtype))
        np.testing.assert_array_equal(y, dataset.targets[chosen].astype(y.dtype))
        assert (x.dtype, y.dtype) == (np.dtype(dtype), np.dtype(dtype if labels is None else "int32"))
    with pytest.raises(ValueError, match="part: expected train, validation or test, got 'held_out'"):
        rows(dataset, "held_out")


def test_constant_columns_are_named_or_kept():
    data = made_up()
    data.features[:, 1] = 0.1
    with pytest.raises(DataError, match=r"1 column\(s\) are constant over the train rows \('b'\)"):
        standardise(data)
    kept, statistics = standardise(data, constant="keep")
    assert (kept.features[:, 1] == 0).all()
    assert statistics.scale[1] == 1
    assert np.isfinite(standardise(load("digits"), constant="keep")[0].features).all()
    with pytest.raises(ValueError, match="constant: expected 'raise' or 'keep', got 'drop'"):
        standardise(data, constant="drop")


def test_polynomial_features_are_all_monomials_and_independent():
    data = made_up(30)
    data.features[:, 2] = np.arange(30) % 2
    cubic = polynomial_features(data, 3)
    a, b, c = data.features.T
    assert cubic.feature_names[:3] == ("a", "b", "c")
    assert "c^2" not in cubic.feature_names
    for name, column in {"a^2*b": a * a * b, "a*b*c": a * b * c, "b^3": b**3}.items():
        np.testing.assert_allclose(cubic.features[:, cubic.feature_names.index(name)], column)
    # All 19 monomials of 3 columns, less those with c^2 or c^3: c^2, a c^2, b c^2, c^3.
    assert cubic.features.shape == (30, 15)
    assert np.linalg.matrix_rank(cubic.features) == 15
    np.testing.assert_array_equal(polynomial_features(data, 1).features, data.features)


def test_polynomial_degrees_are_checked():
    for degree in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="degree: expected a whole number of at least 1"):
            polynomial_features(made_up(), degree)
    huge = made_up()
    huge.features[0, 0] = 1e200
    with pytest.raises(DataError, match=r"column 'a\^2' overflows"):
        polynomial_features(huge, 2)


@pytest.mark.parametrize(("rows", "batch_size"), [(10, 3), (12, 4), (7, 7), (5, 1), (300, 8)])
def test_each_row_comes_at_most_once_an_epoch(key, rows, batch_size):
    batches = minibatches(jnp.arange(rows), batch_size)
    assert batches.epoch == rows // batch_size
    schedule = batches.prepare(key, 0, 3 * batches.epoch)
    assert schedule.dtype == jnp.int32
    epochs = schedule.reshape(3, -1)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == batches.epoch * batch_size
        assert set(epoch.tolist()) <= set(range(rows))
    if rows > 5:
        assert not jnp.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("batch_size", [3, 20])
def test_windows_of_minibatches_agree(key, batch_size):
    batches = minibatches(jnp.arange(20), batch_size)
    whole = batches.prepare(key, 0, 50)
    window = jax.jit(batches.prepare, static_argnums=2)
    for first in (0, 1, 5, 6, 13, 29):
        for count in (1, 7):
            np.testing.assert_array_equal(window(key, jnp.int32(first), count), whole[first : first + count])


def test_orders_are_uniform_and_reach_every_row(key):
    batches = minibatches(jnp.arange(5), 5)
    orders = np.asarray(batches.prepare(key, 0, 5000))
    counts = np.stack([np.bincount(orders[:, place], minlength=5) for place in range(5)])
    standard_error = np.sqrt(5000 * 0.2 * 0.8)
    assert np.abs(counts - 1000).max() < 4 * standard_error
    # Beyond 2^11 rows one sort has too few random bits: rows that tie must not stay in order.
    (large,) = minibatches(jnp.zeros(70_000), 70_000).prepare(key, 0, 1)
    assert sorted(large.tolist()) == list(range(70_000))
    in_order = np.mean(large[:-1] < large[1:])
    # Neighbouring comparisons are dependent: their mean has variance 1 / (12 n), not 1 / (4 n).
    assert abs(in_order - 0.5) < 4 * np.sqrt(1 / (12 * 70_000))


def test_x64_changes_no_order(key):
    batches = minibatches(jnp.arange(100), 10)
    with jax.enable_x64(False):
        narrow = np.asarray(batches.prepare(jax.random.key(0), 3, 25))
    np.testing.assert_array_equal(batches.prepare(key, 3, 25), narrow)


def test_take_gathers_rows_of_every_array(key):
    features, labels = jnp.arange(24.0).reshape(8, 3), jnp.arange(8)
    batches = minibatches({"x": features, "y": labels}, 4)
    batch = batches.take(batches.prepare(key, 0, 1)[0])
    np.testing.assert_array_equal(batch["x"], features[batch["y"]])


@pytest.mark.parametrize("kind", ["full", "mini", "fresh"])
def test_a_scan_over_lanes_equals_one_lane(key, kind):
    rows = jnp.arange(12.0).reshape(6, 2)
    batches = {
        "full": full_batch(rows),
        "mini": minibatches(rows, 2),
        "fresh": fresh(lambda key, count: jax.random.normal(key, (count, 2, 2), jnp.float32)),
    }[kind]

    def run(key):
        schedule = batches.prepare(key, 4, 9)
        return jax.lax.scan(lambda carry, entry: (carry, batches.take(entry)), 0, schedule)[1]

    keys = jax.random.split(key, 3)
    lanes = jax.jit(jax.vmap(run))(keys)
    np.testing.assert_array_equal(lanes, jax.lax.map(run, keys))
    assert jnp.array_equal(lanes[0], lanes[1]) == (kind == "full")


def test_windows_of_fresh_batches_agree_and_never_repeat(key):
    batches = fresh(lambda key, count: {"x": jax.random.normal(key, (count, 4), jnp.float32)})
    whole = batches.prepare(key, 0, 30)["x"]
    np.testing.assert_array_equal(batches.prepare(key, 11, 7)["x"], whole[11:18])
    assert len(np.unique(whole)) == whole.size


@pytest.mark.parametrize("batch_size", [0, -1, 11, 2.0, True])
def test_bad_batch_sizes_are_refused(batch_size):
    with pytest.raises(ValueError, match=r"batch_size: expected a whole number from 1 to the 10 rows at hand, got"):
        minibatches(jnp.arange(10), batch_size)


def test_arrays_of_unequal_rows_are_refused():
    with pytest.raises(ValueError, match="arrays: expected one number of rows"):
        minibatches((jnp.arange(3), jnp.arange(4)), 2)
    with pytest.raises(ValueError, match="arrays: expected one number of rows"):
        minibatches(jnp.float32(1), 1)


def test_batches_drawn_together_are_those_drawn_alone(key):
    rows = minibatches(jnp.arange(12.0), 5)
    noise = fresh(lambda key, count: jax.random.normal(key, (count, 2)))
    both, keys = together(rows, noise), jax.random.split(key)
    schedule = both.prepare(key, 3, 4)
    alone = rows.prepare(keys[0], 3, 4), noise.prepare(keys[1], 3, 4)
    for step in range(4):
        at = [jax.tree.map(lambda leaf, step=step: leaf[step], part) for part in (schedule, *alone)]
        found = both.take(at[0])
        np.testing.assert_array_equal(found[0], rows.take(at[1]))
        np.testing.assert_array_equal(found[1], noise.take(at[2]))
    assert both.epoch == rows.epoch
    with pytest.raises(ValueError, match="parts: expected at least one, got none"):
        together()
