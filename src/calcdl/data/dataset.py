"""A data set as one record, its split and scaling, and batches drawn inside a compiled loop.

The record is NumPy and lives outside compiled code; `Batches` are pure functions and live inside. A loop asks
once for the schedule of a window of steps, which holds all of the window's randomness, and then takes one
batch a step:

    schedule = batches.prepare(key, first_step, count)      # leaves have leading axis `count`
    batch = batches.take(jax.tree.map(lambda leaf: leaf[k], schedule))

A schedule of minibatches holds row numbers only: a thousand runs side by side share one copy of the rows.
"""

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from calcdl.types import Array, DataError, Key

TargetKind = Literal["regression", "classification"]
Batch = Any
Schedule = Any


class Dataset(NamedTuple):
    """Rows of features with a target, names, a split, and where they come from.

    Attributes:
        name: how the data set is called.
        features: one row an example, in the unit of each column.
        targets: floats (regression) or int32 labels 0..classes-1 (classification).
        feature_names: one name a column.
        target_name: what is predicted, with its unit if it has one.
        target_kind: "regression" or "classification".
        classes: names of the labels in their order; empty for regression.
        train: row numbers to fit on; all rows until `split` is called.
        validation: row numbers to choose by.
        test: row numbers to report on.
        source: where the data come from, in a sentence.
    """

    name: str
    features: Float[np.ndarray, "rows columns"]
    targets: Float[np.ndarray, " rows"] | Int[np.ndarray, " rows"]
    feature_names: tuple[str, ...]
    target_name: str
    target_kind: TargetKind
    classes: tuple[str, ...]
    train: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation"]
    test: Int[np.ndarray, " test"]
    source: str


class Statistics(NamedTuple):
    """What `standardise` subtracted from each column and divided it by, in the column's unit."""

    mean: Float[np.ndarray, " columns"]
    scale: Float[np.ndarray, " columns"]


class Batches(NamedTuple):
    """Batches for a compiled loop, without state: the batch of step k depends on the key and on k alone.

    Attributes:
        prepare: `(key, first_step, count) -> schedule` for steps first_step .. first_step + count - 1; every
            leaf has leading axis `count`. All randomness is drawn here, in bulk. `count` is a Python integer,
            `first_step` may be traced. Two windows agree on every step that they share.
        take: `slice of the schedule at one step -> batch`.
        epoch: steps in an epoch; 1 where an epoch has no meaning.
    """

    prepare: Callable[[Key, Array | int, int], Schedule]
    take: Callable[[Schedule], Batch]
    epoch: int


def split(dataset: Dataset, validation: float = 0.15, test: float = 0.15, *, seed: int = 0) -> Dataset:
    """Shuffle the rows and divide them into train, validation and test.

    Each part gets round(fraction * rows) rows, class by class for classification, so that every part holds
    every class in the proportion of the whole; the train rows are what remains. Row numbers of a part are
    ascending.

    Args:
        dataset: any data set; a former split is forgotten.
        validation: fraction of the rows in [0, 1).
        test: fraction of the rows in [0, 1).
        seed: seed of `numpy.random.default_rng`; the same seed gives the same split.

    Returns:
        The data set with other row numbers; the arrays are shared.

    Raises:
        ValueError: a fraction outside [0, 1), or both together leave nothing to train on.
        DataError: too few rows (of a class) to give every part one.

    Example:
        >>> from calcdl.data import load
        >>> parts = split(load("iris"), validation=0.2, test=0.2)
        >>> len(parts.train), len(parts.validation), len(parts.test)
        (90, 30, 30)
    """
    for name, fraction in (("validation", validation), ("test", test)):
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
            raise ValueError(f"{name}: expected a fraction in [0, 1), got {fraction!r}")
    if validation + test >= 1:
        total = f"{validation:g} + {test:g}"
        raise ValueError(f"validation + test: expected less than 1, got {total}; nothing is left to train on")
    generator = np.random.default_rng(seed)
    rows = np.arange(len(dataset.targets))
    groups = [rows]
    if dataset.target_kind == "classification":
        groups = [np.flatnonzero(dataset.targets == label) for label in range(len(dataset.classes))]
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for label, group in enumerate(groups):
        order = generator.permutation(group)
        held_out = [max(round(part * len(group)), int(part > 0)) for part in (validation, test)]
        if sum(held_out) >= len(group):
            whose = f" of class {dataset.classes[label]!r}" if dataset.classes else ""
            raise DataError(
                f"{dataset.name}: {len(group)} row(s){whose} are too few to hold out {validation:g} and {test:g} "
                f"of them; give more rows or smaller fractions"
            )
        for part, chosen in zip(parts, np.split(order, np.cumsum(held_out)), strict=True):
            part.append(chosen)
    held, tested, fitted = (np.sort(np.concatenate(part)) for part in parts)
    return dataset._replace(train=fitted, validation=held, test=tested)


def standardise(dataset: Dataset, *, constant: Literal["raise", "keep"] = "raise") -> tuple[Dataset, Statistics]:
    r"""Centre and scale every column by its mean and standard deviation over the train rows.

    $$ z_{ij} = (x_{ij} - \mu_j) / \sigma_j, \quad \mu_j, \sigma_j \text{ over train rows, with divisor } n $$

    Args:
        dataset: the data set; only its train rows enter the statistics.
        constant: what to do with a column that is constant over the train rows (a blank pixel): "raise" or
            "keep", which centres it and leaves its scale 1.

    Returns:
        The data set with other features, and the statistics, to apply to rows that come later.

    Raises:
        DataError: a constant column, named, where `constant="raise"`.
        ValueError: an unknown choice of `constant`.

    Example:
        >>> from calcdl.data import load
        >>> scaled, statistics = standardise(load("wine"))
        >>> bool(abs(scaled.features.std(axis=0) - 1).max() < 1e-12)
        True
    """
    if constant not in ("raise", "keep"):
        raise ValueError(f"constant: expected 'raise' or 'keep', got {constant!r}")
    fitted = dataset.features[dataset.train]
    still = np.ptp(fitted, axis=0) == 0
    if constant == "raise" and still.any():
        names = ", ".join(repr(dataset.feature_names[column]) for column in np.flatnonzero(still)[:3])
        raise DataError(
            f"{dataset.name}: {still.sum()} column(s) are constant over the train rows ({names}); "
            f"drop them, or pass constant='keep'"
        )
    # The mean of equal numbers is not always that number again: a constant column is centred by its value.
    mean = np.where(still, fitted[0], fitted.mean(axis=0))
    scale = np.where(still, 1.0, fitted.std(axis=0))
    return dataset._replace(features=(dataset.features - mean) / scale), Statistics(mean, scale)


def rows(
    dataset: Dataset, part: Literal["train", "validation", "test"] = "train", dtype: DTypeLike = np.float32
) -> tuple[Float[np.ndarray, "part columns"], Float[np.ndarray, " part"] | Int[np.ndarray, " part"]]:
    """Return features and targets of one part, in the dtypes of compiled code.

    Args:
        dataset: the data set.
        part: which rows.
        dtype: of the features, and of targets that are numbers; labels are int32.

    Returns:
        The features and the targets.

    Raises:
        ValueError: an unknown part.

    Example:
        >>> from calcdl.data import load
        >>> x, y = rows(split(load("iris")), "test")
        >>> x.shape, x.dtype, y.dtype
        ((24, 4), dtype('float32'), dtype('int32'))
    """
    if part not in ("train", "validation", "test"):
        raise ValueError(f"part: expected train, validation or test, got {part!r}")
    chosen = dataset._asdict()[part]
    kind = np.int32 if dataset.target_kind == "classification" else dtype
    return dataset.features[chosen].astype(dtype), dataset.targets[chosen].astype(kind)


def polynomial_features(dataset: Dataset, degree: int) -> Dataset:
    r"""Replace the columns by all their monomials of degree 1 to `degree`, products between columns included.

    $$ x_1^{a_1} \cdots x_n^{a_n}, \quad 1 \le a_1 + \dots + a_n \le \text{degree} $$

    A power a_j is left out where column j has no more than a_j distinct values over the train rows: it would
    be a combination of the column's lower powers (the square of a 0/1 column is the column).

    Args:
        dataset: the data set.
        degree: largest total degree, at least 1; 1 changes nothing.

    Returns:
        The data set with more columns, named like "age*bmi^2".

    Raises:
        ValueError: the degree is not a whole number of at least 1.
        DataError: a monomial overflows.

    Example:
        >>> from calcdl.data import load
        >>> polynomial_features(load("iris"), 2).feature_names[4]
        'sepal length (cm)^2'
    """
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
        raise ValueError(f"degree: expected a whole number of at least 1, got {degree!r}")
    distinct = [len(np.unique(column)) for column in dataset.features[dataset.train].T]
    columns, names = [], []
    for total in range(1, degree + 1):
        for factors in combinations_with_replacement(range(len(distinct)), total):
            powers = {column: factors.count(column) for column in factors}
            if total > 1 and any(power >= distinct[column] for column, power in powers.items()):
                continue
            name = "*".join(
                dataset.feature_names[column] + (f"^{power}" if power > 1 else "") for column, power in powers.items()
            )
            with np.errstate(over="ignore"):
                values = np.prod([dataset.features[:, column] ** power for column, power in powers.items()], axis=0)
            if not np.isfinite(values).all():
                raise DataError(
                    f"{dataset.name}: column {name!r} overflows; scale the columns first or lower the degree"
                )
            columns.append(values)
            names.append(name)
    return dataset._replace(features=np.stack(columns, axis=1), feature_names=tuple(names))


def full_batch(arrays: Any) -> Batches:
    """Let every step see all rows.

    Args:
        arrays: a pytree of arrays, handed out as it is.

    Returns:
        Batches without randomness; an epoch is one step.

    Example:
        >>> batches = full_batch(jnp.arange(3))
        >>> batches.take(batches.prepare(jax.random.key(0), 0, 5)[4]).tolist()
        [0, 1, 2]
    """
    return Batches(lambda key, first_step, count: _steps(first_step, count), lambda step: arrays, 1)


def minibatches(arrays: Any, batch_size: int) -> Batches:
    """Let every step see the next `batch_size` rows of a random order, which is drawn anew for every epoch.

    An epoch is rows // batch_size steps; no row comes twice in it, and the rows % batch_size rows at the end
    of its order are not seen in it. The order of epoch e depends on `jax.random.fold_in(key, e)` alone.

    Args:
        arrays: a pytree of arrays with the same number of rows, Python or traced; shared, never copied into
            the schedule.
        batch_size: rows a step.

    Returns:
        Batches whose schedule is the row numbers, int32 of shape (count, batch_size).

    Raises:
        ValueError: the arrays differ in rows, or the batch size is no whole number from 1 to the number of
            rows.

    Example:
        >>> batches = minibatches((jnp.arange(6), jnp.arange(6) ** 2), batch_size=3)
        >>> schedule = batches.prepare(jax.random.key(0), 0, batches.epoch)
        >>> sorted(schedule.ravel().tolist())
        [0, 1, 2, 3, 4, 5]
    """
    sizes = sorted({np.shape(leaf)[:1] for leaf in jax.tree.leaves(arrays)})
    if len(sizes) != 1 or not sizes[0]:
        raise ValueError(f"arrays: expected one number of rows, the same in all, got {sizes}")
    ((rows,),) = sizes
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= rows:
        raise ValueError(f"batch_size: expected a whole number from 1 to the {rows} rows at hand, got {batch_size!r}")
    epoch = rows // batch_size

    def prepare(key: Key, first_step: Array | int, count: int) -> Array:
        first = jnp.asarray(first_step, jnp.int32)
        # A window of `count` steps touches at most this many epochs, wherever it starts.
        epochs = first // epoch + jnp.arange((count + epoch - 2) // epoch + 1, dtype=jnp.int32)
        orders = jax.vmap(lambda index: _permutation(jax.random.fold_in(key, index), rows))(epochs)
        batches = orders[:, : epoch * batch_size].reshape(-1, batch_size)
        return jax.lax.dynamic_slice_in_dim(batches, first % epoch, count)

    def take(chosen: Array) -> Batch:
        return jax.tree.map(lambda array: jnp.take(array, chosen, axis=0, mode="clip"), arrays)

    return Batches(prepare, take, epoch)


def fresh(sampler: Callable[[Key, int], Batch]) -> Batches:
    """Let every step see new rows, drawn for it alone.

    The batch of step k is `sampler(jax.random.fold_in(key, k), 1)` without its leading axis; a window draws
    all its steps at once.

    Args:
        sampler: `(key, count) -> batch`, a pytree whose leaves have leading axis `count`.

    Returns:
        Batches whose schedule is the batches themselves.

    Example:
        >>> batches = fresh(lambda key, count: jax.random.normal(key, (count, 10), jnp.float32))
        >>> batches.prepare(jax.random.key(0), 0, 100).shape
        (100, 10)
    """

    def draw(key: Key) -> Batch:
        return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), sampler(key, 1))

    def prepare(key: Key, first_step: Array | int, count: int) -> Batch:
        return jax.vmap(lambda step: draw(jax.random.fold_in(key, step)))(_steps(first_step, count))

    return Batches(prepare, lambda batch: batch, 1)


def together(*parts: Batches) -> Batches:
    """Join batches that are drawn side by side, such as rows and the noise that is added to them.

    `(b_1, b_2, ...)` at every step, each part with a key of its own

    Args:
        parts: at least one; the first one says how many steps an epoch has.

    Returns:
        Batches that are tuples.

    Raises:
        ValueError: no part.

    Example:
        >>> rows, noise = full_batch(jnp.ones(2)), fresh(lambda key, count: jax.random.normal(key, (count, 3)))
        >>> both = together(rows, noise)
        >>> schedule = both.prepare(jax.random.key(0), 0, 4)
        >>> [part.shape for part in both.take(jax.tree.map(lambda leaf: leaf[0], schedule))]
        [(2,), (3,)]
    """
    if not parts:
        raise ValueError("parts: expected at least one, got none")

    def prepare(key: Key, first_step: Array | int, count: int) -> Schedule:
        keys = jax.random.split(key, len(parts))
        return tuple(part.prepare(own, first_step, count) for part, own in zip(parts, keys, strict=True))

    def take(schedule: Schedule) -> Batch:
        return tuple(part.take(own) for part, own in zip(parts, schedule, strict=True))

    return Batches(prepare, take, parts[0].epoch)


def _steps(first_step: Array | int, count: int) -> Array:
    return jnp.asarray(first_step, jnp.int32) + jnp.arange(count, dtype=jnp.int32)


def _permutation(key: Key, rows: int) -> Array:
    """Order rows 0..rows-1 at random: sort words with random bits above and the row number below.

    One sort of plain words is several times cheaper on the CPU than the sort of pairs in
    `jax.random.permutation`. Rows that draw the same bits keep their order, so sorts are repeated until that
    happens to less than one pair of rows on average.
    """
    bits = max((rows - 1).bit_length(), 1)
    mask = np.uint32(2**bits - 1)

    def shuffle(key: Key) -> Array:
        noise = jax.random.bits(key, (rows,), jnp.uint32)
        return jax.lax.sort((noise & ~mask) | jnp.arange(rows, dtype=jnp.uint32)) & mask

    first, *others = jax.random.split(key, -(-(2 * bits - 1) // (32 - bits)))
    order = shuffle(first)
    for other in others:
        order = order[shuffle(other)]
    return order.astype(jnp.int32)
