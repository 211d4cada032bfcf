"""Programs: from axes and one pure function to a few compiled executables and their batches of lanes.

A *program* is compiled once for each combination of the static numbers (depth, width), because those set shapes.
Static names (activation, initialiser) are *branches* inside it. What remains are its *lanes*, a table of seeds by
settings, which run in *batches*: tiles of that table of one fixed width. The last tiles are padded with copies, because
under ``vmap`` the last bits of a lane depend on the width. All settings of a tile share the random draws of their seed.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calcdl.study.axes import SEED, Axis, points
from calcdl.study.compiled import Context, Recipe, context, measure, parts
from calcdl.study.execution import CPU_COMPILER_OPTIONS, Cost, Execution, choose

Function = Callable[..., Mapping[str, Any]]
Arrays = dict[str, np.ndarray]


class Program(NamedTuple):
    """What is compiled once.

    Attributes:
        statics: the static numbers of this program.
        branches: the static names of each branch.
        cost: size of one lane, read off its traced program.
        execution: how its lanes run.
    """

    statics: Mapping[str, Any]
    branches: tuple[Mapping[str, Any], ...]
    cost: Cost
    execution: Execution


class Batch(NamedTuple):
    """A tile of the table of lanes of one program: the unit of work, of storage and of resumption.

    Attributes:
        number: position in the plan.
        program: which program.
        branches: positions of its branches: one under ``map``, all of them under ``vmap``, where they share draws.
        seeds: positions of its seeds.
        settings: positions of its settings.
    """

    number: int
    program: int
    branches: range
    seeds: range
    settings: range

    @property
    def lanes(self) -> int:
        """How many lanes it holds."""
        return len(self.branches) * len(self.seeds) * len(self.settings)


class Plan(NamedTuple):
    """A study before it runs: nothing is compiled yet.

    Attributes:
        name: the study's name, also the stream of its random keys.
        function: ``(key, **point, **shared) -> dict of arrays`` for one lane.
        axes: the axes in the order of the result's dimensions.
        shared: arguments that every lane shares, as arrays or pytrees of them.
        dimensions: names of the trailing dimensions of each output.
        dtype: dtype of the floating coordinates.
        context: the settings of JAX where the plan was made, which hold wherever it runs.
        programs: what will be compiled.
        batches: what will be run.
    """

    name: str
    function: Function
    axes: tuple[Axis, ...]
    shared: Mapping[str, Any]
    dimensions: Mapping[str, tuple[str, ...]]
    dtype: str
    context: Context
    programs: tuple[Program, ...]
    batches: tuple[Batch, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the lanes, 0 where no axis names any."""
        return next((one.values for one in self.axes if one.name == SEED), (0,))

    @property
    def setting_axes(self) -> tuple[Axis, ...]:
        """The axes of data beside the seed; their product is the settings that share each seed's draws."""
        return tuple(one for one in self.axes if not one.static and one.name != SEED)

    @property
    def lanes(self) -> int:
        """How many runs the study has."""
        return math.prod(len(one.values) for one in self.axes)

    def fingerprint(self) -> dict[str, Any]:
        """Return what the bits of the result depend on beside the function, as plain data."""
        device = jax.devices()[0]
        return {
            "study": self.name,
            "axes": {one.name: list(one.values) for one in self.axes},
            "shared": _digest(self.shared),
            "dtype": self.dtype,
            "platform": device.platform,
            "device_kind": device.device_kind,
            "device_count": jax.local_device_count(),
            "jax": jax.__version__,
            "matmul_precision": str(self.context.matmul_precision),
            "compiler_options": CPU_COMPILER_OPTIONS if device.platform == "cpu" else {},
            "programs": [{**program.statics, **program.execution.recorded()} for program in self.programs],
        }

    def summary(self) -> list[str]:
        """Say in lines what would be compiled and run, and in how much memory."""
        lines = [
            f"study {self.name}: {self.lanes} lanes in {len(self.programs)} programs and {len(self.batches)} batches"
        ]
        for number, program in enumerate(self.programs):
            batches = [batch for batch in self.batches if batch.program == number]
            statics = " ".join(f"{name}={value}" for name, value in program.statics.items()) or "all shapes alike"
            execution = program.execution
            resident = program.cost.bytes * (1 if execution.strategy == "map" else execution.width)
            lines.append(
                f"  program {number + 1}: {statics}; {len(program.branches)} branches, {len(batches)} batches of "
                f"{execution.width} lanes, {execution.strategy}, about {resident * execution.workers / 2**20:.1f} MiB"
            )
        return lines


def plan(
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
) -> Plan:
    """Divide a study into programs and batches; compile nothing.

    Args:
        function: pure function of one lane, ``(key, **point, **shared) -> dict of arrays``.
        axes: distinct axes; the one named ``"seed"`` becomes the key.
        name: the study's name, part of every lane's key.
        shared: arguments that every lane shares.
        dimensions: for each output the names of its dimensions beyond the lane's own.
        dtype: ``"float32"``, or with ``jax_enable_x64`` ``"float64"``, the dtype of floating coordinates.
        strategy: ``"vmap"``, ``"map"`` (one lane after another inside a batch) or ``"auto"`` (a fixed rule).
        width: lanes a batch, 0 for the rule's.
        workers: threads that run batches, 0 for the rule's.

    Returns:
        The plan.

    Raises:
        ValueError: repeated axes, an axis named like a shared argument, an unknown strategy, a negative width, a dtype
            that there is not.

    Example:
        >>> from calcdl.study import axis
        >>> square = lambda key, x: {"y": x**2}
        >>> len(plan(square, [axis("x", [1.0, 2.0, 3.0])]).batches)
        1
    """
    shared, axes = dict(shared or {}), tuple(axes)
    names = [one.name for one in axes]
    for one in names:
        if names.count(one) > 1 or one in shared or one == "key":
            raise ValueError(f"axis {one!r}: expected a name used once and not 'key' or a shared argument's")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype: expected 'float32' or 'float64', got {dtype!r}")
    if dtype == "float64" and not context().x64:
        raise ValueError(f"dtype: {dtype!r} needs 64-bit numbers; call jax.config.update('jax_enable_x64', True) first")
    shapes = [one for one in axes if one.static and not one.is_code]
    branches = points(one for one in axes if one.is_code)
    bare = Plan(name, function, axes, shared, dict(dimensions or {}), dtype, context(), (), ())
    sides = len(bare.seeds), math.prod(len(one.values) for one in bare.setting_axes)
    programs: list[Program] = []
    batches: list[Batch] = []
    for statics in points(shapes):
        program = Program(statics, branches, Cost(0.0, 1, False), Execution("map", 1, 1, 1, 1))
        cost = measure(recipe(bare, program._replace(branches=branches[:1])))
        execution = choose(cost, *sides, len(branches), strategy=strategy, width=width, workers=workers)
        tiles = [
            (these, seeds, settings)
            for these in _ranges(len(branches), 1 if execution.strategy == "map" else len(branches))
            for settings in _ranges(sides[1], execution.settings)
            for seeds in _ranges(sides[0], execution.seeds)
        ]
        batches += [Batch(len(batches) + at, len(programs), *tile) for at, tile in enumerate(tiles)]
        programs.append(program._replace(cost=cost, execution=execution))
    return bare._replace(programs=tuple(programs), batches=tuple(batches))


def _ranges(size: int, width: int) -> list[range]:
    return [range(start, min(start + width, size)) for start in range(0, size, width)]


def recipe(plan: Plan, program: Program) -> Recipe:
    """Say what the compiled tiles of a program are made from."""
    leaves, structure = jax.tree.flatten(dict(plan.shared))
    shapes = tuple((np.shape(leaf), str(jax.dtypes.canonicalize_dtype(jnp.result_type(leaf)))) for leaf in leaves)
    return Recipe(
        function=parts(plan.function),
        stream=plan.name,
        branches=tuple(tuple({**program.statics, **names}.items()) for names in program.branches),
        seeds=program.execution.seeds,
        settings=tuple((one.name, str(np.dtype(_dtype(plan, one)))) for one in plan.setting_axes),
        width=program.execution.settings,
        shared=(structure, shapes),
        context=plan.context,
    )


def coordinates(plan: Plan, seeds: Sequence[int], settings: Sequence[int]) -> tuple[np.ndarray, Arrays]:
    """Return the seeds and the settings at some positions along the two sides of the table of lanes."""
    seed_values = np.asarray(plan.seeds, np.uint32)[list(seeds)]
    sizes = [len(one.values) for one in plan.setting_axes]
    positions = np.unravel_index(np.asarray(settings), sizes) if sizes else ()
    values = {
        one.name: np.asarray(one.values, dtype=_dtype(plan, one))[position]
        for one, position in zip(plan.setting_axes, positions, strict=True)
    }
    return seed_values, values


def _digest(shared: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(dict(shared)):
        array = np.asarray(leaf)
        digest.update(f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _dtype(plan: Plan, one: Axis) -> Any:
    return np.int32 if all(isinstance(value, int) for value in one.values) else np.dtype(plan.dtype)
