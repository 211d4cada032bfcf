"""Results: the outputs of batches as one labelled array, where no summary swallows a run that failed."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from calcdl.study.axes import SEED, Axis
from calcdl.study.compiled import outline
from calcdl.study.program import Arrays, Function, Plan, plan, recipe
from calcdl.study.runner import DIVERGED, FAILED, NOT_RUN, OK, STATUSES, execute

if TYPE_CHECKING:
    import xarray


class Interval(NamedTuple):
    """A mean with its interval, from `mean` less `half` to `mean` plus `half`.

    Attributes:
        mean: the mean.
        half: half of the length of its interval, in the same unit.
    """

    mean: "xarray.DataArray"
    half: "xarray.DataArray"


def run(
    function: Function,
    axes: Sequence[Axis],
    *,
    name: str = "study",
    shared: Mapping[str, Any] | None = None,
    dimensions: Mapping[str, tuple[str, ...]] | None = None,
    dtype: str = "float32",
    strategy: str = "auto",
    width: int = 0,
    workers: int = 0,
) -> "xarray.Dataset":
    """Run a pure function over every combination of the values of some axes.

    Args:
        function: pure function of one run, ``(key, **point, **shared) -> dict of arrays``. The key depends on the
            seed and the study's name alone, so all settings see the same random numbers.
        axes: distinct axes, in the order of the result's dimensions.
        name: the study's name, part of every run's key.
        shared: arguments that every run shares, as arrays or pytrees of them.
        dimensions: for each output the names of its dimensions beyond the run's own.
        dtype: ``"float32"`` or ``"float64"``, the dtype of floating coordinates.
        strategy: ``"vmap"``, ``"map"`` or ``"auto"``: see `calcdl.study.execution.choose`.
        width: lanes a batch, 0 for the rule's.
        workers: threads that run batches, 0 for the rule's.

    Returns:
        The outputs with the axes as coordinates, and a ``status`` for every run: 0 ok, 1 diverged (as the function's
        own output ``status`` says), 2 failed (a NaN that it did not announce), 3 not run.

    Raises:
        ValueError: an empty or repeated axis, an unknown strategy.
        TypeError: a function that does not return a dict of arrays.

    Example:
        >>> from calcdl.study import axis
        >>> table = run(lambda key, x, n: {"y": n * x**2}, [axis("n", [1.0, 10.0]), axis("x", [2.0, 3.0])])
        >>> table.y.sel(n=10).values.tolist()
        [40.0, 90.0]
    """
    todo = plan(
        function,
        axes,
        name=name,
        shared=shared,
        dimensions=dimensions,
        dtype=dtype,
        strategy=strategy,
        width=width,
        workers=workers,
    )
    return collect(todo, execute(todo))


def collect(plan: Plan, outputs: Mapping[int, Arrays]) -> "xarray.Dataset":
    """Lay the outputs of batches out along the axes of the plan.

    Outputs whose sizes differ between programs (one value a layer, say) are padded with NaN at their end; so are
    batches that did not run.

    Args:
        plan: the study.
        outputs: outputs by index of the batch; any may be missing.

    Returns:
        The labelled results.

    Example:
        >>> from calcdl.study import axis
        >>> todo = plan(lambda key, x: {"y": x}, [axis("x", [2.0, 3.0])])
        >>> int(collect(todo, {}).status.min())
        3
    """
    import xarray

    tables = {
        name: _table(plan, outputs, name, shape, dtype) for name, (shape, dtype) in _layout(plan, outputs).items()
    }
    tables["status"] = np.nan_to_num(tables["status"], nan=NOT_RUN).astype(np.int8)
    variables = {}
    for name, table in tables.items():
        trailing = table.shape[4:]
        named = plan.dimensions.get(name, tuple(f"{name}_{position}" for position in range(len(trailing))))
        if len(named) != len(trailing):
            raise ValueError(f"dimensions[{name!r}]: expected {len(trailing)} names, got {named!r}")
        variables[name] = ((*(one.name for one in plan.axes), *named), _by_axes(plan, table))
    dataset = xarray.Dataset(
        variables,
        coords={one.name: list(one.values) for one in plan.axes},
        attrs={"study": plan.name, "fingerprint": json.dumps(plan.fingerprint())},
    )
    dataset["status"].attrs = {
        "flag_values": [OK, DIVERGED, FAILED, NOT_RUN],
        "flag_meanings": " ".join(STATUSES),
    }
    return dataset


def _layout(plan: Plan, outputs: Mapping[int, Arrays]) -> dict[str, tuple[tuple[int, ...], Any]]:
    shapes: dict[str, list[tuple[int, ...]]] = {}
    dtypes: dict[str, list[Any]] = {}
    samples: list[Mapping[str, Any]] = [
        {name: (array.shape[3:], array.dtype) for name, array in arrays.items()} for arrays in outputs.values()
    ]
    if len(outputs) < len(plan.batches):
        for program in plan.programs:
            for branch in range(len(program.branches)):
                with plan.context.entered():
                    shapes_of_one = outline(recipe(plan, program), branch)
                known = {name: (leaf.shape, leaf.dtype) for name, leaf in shapes_of_one.items()}
                samples.append({**known, "status": ((), np.dtype(np.int8))})
    for sample in samples:
        for name, (shape, dtype) in sample.items():
            shapes.setdefault(name, []).append(shape)
            dtypes.setdefault(name, []).append(dtype)
    for name, found in shapes.items():
        if len({len(shape) for shape in found}) > 1:
            raise ValueError(f"output {name!r}: expected one number of dimensions in all programs, got {set(found)}")
    return {
        name: (tuple(max(sizes) for sizes in zip(*found, strict=True)), np.result_type(*dtypes[name]))
        for name, found in shapes.items()
    }


def _table(plan: Plan, outputs: Mapping[int, Arrays], name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    first = plan.programs[0]
    settings = plan.lanes // (len(plan.programs) * len(first.branches) * len(plan.seeds))
    sides = (len(plan.programs), len(first.branches), settings, len(plan.seeds))
    whole = len(outputs) == len(plan.batches) and all(
        name in arrays and arrays[name].shape[3:] == shape for arrays in outputs.values()
    )
    if not whole and not np.issubdtype(dtype, np.floating):
        dtype = np.float64
    table = np.empty((*sides, *shape), dtype) if whole else np.full((*sides, *shape), np.nan, dtype)
    for batch in plan.batches:
        if batch.number in outputs and name in outputs[batch.number]:
            array = np.swapaxes(outputs[batch.number][name], 1, 2)
            tile = [slice(side.start, side.stop) for side in (batch.branches, batch.settings, batch.seeds)]
            table[batch.program][(*tile, *(slice(size) for size in array.shape[3:]))] = array
    return table


def _by_axes(plan: Plan, table: np.ndarray) -> np.ndarray:
    order = [one for one in plan.axes if one.static and not one.is_code]
    order += [one for one in plan.axes if one.is_code]
    order += [*plan.setting_axes, *(one for one in plan.axes if one.name == SEED)]
    trailing = table.shape[4:]
    table = table.reshape((*(len(one.values) for one in order), *trailing))
    moved = [order.index(one) for one in plan.axes]
    return table.transpose(*moved, *range(len(order), table.ndim))


def summarise(values: "xarray.DataArray", status: "xarray.DataArray", over: str = SEED) -> "xarray.Dataset":
    """Summarise runs by their quartiles, with the number of runs that the quartiles rest on.

    Args:
        values: one variable of a study.
        status: the study's status; runs whose status is not 0 do not enter the quartiles.
        over: the dimension to summarise.

    Returns:
        ``middle`` (the median), ``lower`` and ``upper`` quartile, and the counts ``ok`` and ``total``.

    Example:
        >>> from calcdl.study import axis
        >>> table = run(lambda key, x: {"y": x}, [axis("x", [1.0, 2.0, 6.0])])
        >>> float(summarise(table.y, table.status, "x").middle)
        2.0
    """
    import xarray

    good = values.where(status == OK)
    quartiles = good.quantile([0.25, 0.5, 0.75], dim=over)
    return xarray.Dataset(
        {
            "lower": quartiles.sel(quantile=0.25, drop=True),
            "middle": quartiles.sel(quantile=0.5, drop=True),
            "upper": quartiles.sel(quantile=0.75, drop=True),
            "ok": (status == OK).sum(over),
            "total": xarray.ones_like(status).sum(over),
        }
    )


def interval(
    values: "xarray.DataArray", over: str = SEED, confidence: float = 0.95, *, shared: float = 0.0
) -> Interval:
    r"""Return the mean of runs with its interval after Student.

    $$ \bar x \pm t_{n-1, (1 + c) / 2} \, s \sqrt{1 / n + r}, \quad s^2 = \frac{1}{n - 1} \sum_i (x_i - \bar x)^2 $$

    Args:
        values: what was measured, with a NaN where a run failed: it makes mean and interval NaN.
        over: the dimension along which values are draws.
        confidence: c, between 0 and 1.
        shared: r, 0 for independent draws; where they come from divisions of the same rows, how many rows are tested
            for one that is trained on.

    Returns:
        The mean and half of the interval, along the other dimensions; the half is NaN for a single run.

    Raises:
        ValueError: a confidence outside (0, 1).

    Example:
        >>> from calcdl.study import axis
        >>> table = run(lambda key, x: {"y": x}, [axis("x", [1.0, 2.0, 6.0])])
        >>> found = interval(table.y, "x")
        >>> print(f"{float(found.mean):.2f} ± {float(found.half):.2f}")
        3.00 ± 6.57

    Reference: Student (1908), The probable error of a mean, Biometrika 6; Nadeau and Bengio (2003), Inference for the
    generalization error, Machine Learning 52, for shared rows.
    """
    from scipy.special import stdtrit

    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    count = values.sizes[over]
    wide = values.astype(np.float64)
    spread = wide.std(over, ddof=1, skipna=False) if count > 1 else wide.mean(over) * np.nan
    reach = stdtrit(count - 1, (1 + confidence) / 2) * (1 / count + shared) ** 0.5
    return Interval(wide.mean(over, skipna=False), spread * reach)


def join(**studies: "xarray.Dataset") -> "xarray.Dataset":
    """Put several studies into one data set: every variable and dimension is named after its study.

    Args:
        studies: results by name.

    Returns:
        One data set, for instance with ``training_loss`` along ``training_seed``; `part` takes it apart again.

    Example:
        >>> from calcdl.study import axis
        >>> one = run(lambda key, x: {"y": x}, [axis("x", [1.0, 2.0])])
        >>> two = run(lambda key, x: {"y": x}, [axis("x", [3.0])])
        >>> sorted(join(a=one, b=two).dims)
        ['a_x', 'b_x']
    """
    import xarray

    parts = [one.rename({old: f"{name}_{old}" for old in (*one.variables, *one.dims)}) for name, one in studies.items()]
    joined = xarray.merge(parts, combine_attrs="override", join="exact", compat="equals")
    joined.attrs = {f"{name}_{key}": value for name, one in studies.items() for key, value in one.attrs.items()}
    return joined


def part(results: "xarray.Dataset", name: str) -> "xarray.Dataset":
    """Return one of several joined studies, under the names that it had by itself.

    Args:
        results: what `join` returned.
        name: the study's name there.

    Returns:
        The study.

    Raises:
        ValueError: no variable is named after that study.

    Example:
        >>> from calcdl.study import axis
        >>> one = run(lambda key, x: {"y": x}, [axis("x", [1.0, 2.0])])
        >>> part(join(a=one), "a").y.values.tolist()
        [1.0, 2.0]
    """
    own = results[[variable for variable in results.data_vars if str(variable).startswith(f"{name}_")]]
    if not own:
        raise ValueError(
            f"study {name!r}: expected the name of a joined study, got variables {list(results.data_vars)}"
        )
    renamed = own.rename({old: str(old).removeprefix(f"{name}_") for old in (*own.variables, *own.dims)})
    prefix = f"{name}_"
    renamed.attrs = {key.removeprefix(prefix): value for key, value in results.attrs.items() if key.startswith(prefix)}
    return renamed
