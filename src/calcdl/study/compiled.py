"""Compiled: from one pure function to the cost of a lane and to an executable for a tile of lanes.

Both depend on a *recipe* alone and are remembered by it, so that running a study again in the same process traces and
compiles nothing.
"""

import math
import re
import threading
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from calcdl.study.execution import CPU_COMPILER_OPTIONS, SMALL_PRODUCT, Cost, Execution

REMEMBERED = 64
FACTORISATIONS = frozenset(
    ("cholesky", "eig", "eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "lu", "qr", "schur", "svd",
     "triangular_solve")
)  # fmt: skip
# What a CPU divides among its threads: a call of LAPACK or BLAS whose result is a batch of matrices.
BATCHED_CALL = re.compile(r'= \(?\w+\[\d+(?:,\d+){2,}\][^\n]*custom_call_target="(?:lapack|blas)_')
ONE_AT_A_TIME = threading.Lock()
Outputs = Mapping[str, Any]
Lane = Callable[[Any, Mapping[str, Any], Mapping[str, Any]], Outputs]
Executable = Callable[[range, tuple[int, int], Any, Any, Any], Sequence[Outputs]]


class Context(NamedTuple):
    """The settings of JAX that change what is compiled; a thread or process does not have its caller's by itself.

    Attributes:
        x64: whether there are 64-bit numbers.
        matmul_precision: of matrix products, None for the backend's own.
    """

    x64: bool
    matmul_precision: str | None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have these settings inside."""
        with jax.enable_x64(self.x64), jax.default_matmul_precision(self.matmul_precision):
            yield


class Recipe(NamedTuple):
    """What a compiled tile is made from.

    Attributes:
        function: the study's function; of a partial function its parts, so that equal ones are equal.
        stream: the study's name, part of every key.
        branches: static arguments of each branch.
        seeds: seeds in a tile.
        settings: name and dtype of the coordinates of a setting.
        width: settings in a tile.
        shared: structure of the shared arguments, and the shapes and dtypes of their leaves.
        context: settings of JAX, entered by whoever compiles.
    """

    function: Hashable
    stream: str
    branches: tuple[tuple[tuple[str, Any], ...], ...]
    seeds: int
    settings: tuple[tuple[str, str], ...]
    width: int
    shared: tuple[Any, tuple[tuple[tuple[int, ...], str], ...]]
    context: Context


class Parts(NamedTuple):
    """A partial function in parts that compare by value."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]


def parts(function: Any) -> Hashable:
    """Take a partial function apart; return any other as it is."""
    if isinstance(function, partial):
        return Parts(function.func, function.args, tuple(sorted(function.keywords.items())))
    whole: Hashable = function
    return whole


def context() -> Context:
    """Return the settings of whoever calls."""
    return Context(jax.config.values["jax_enable_x64"], jax.config.values["jax_default_matmul_precision"])


def _lane(recipe: Recipe, branch: int) -> Lane:
    stream = np.uint32(zlib.crc32(recipe.stream.encode()))
    found: Any = recipe.function
    function = partial(found.function, *found.arguments, **dict(found.keywords)) if isinstance(found, Parts) else found

    def lane(seed: Any, setting: Mapping[str, Any], shared: Mapping[str, Any]) -> Outputs:
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), stream)
        return dict(function(key, **setting, **dict(recipe.branches[branch]), **shared))

    return lane


def _arguments(recipe: Recipe) -> tuple[Any, ...]:
    structure, leaves = recipe.shared
    shared = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in leaves])
    settings = {name: jax.ShapeDtypeStruct((recipe.width,), dtype) for name, dtype in recipe.settings}
    return jax.ShapeDtypeStruct((recipe.seeds,), np.uint32), settings, shared


def _remembered(function: Any, recipe: Recipe, *arguments: Any) -> Any:
    """Call a function with a memory, past it where a recipe holds something that cannot be looked up."""
    try:
        hash(recipe)
    except TypeError:
        function = function.__wrapped__
    return function(recipe, *arguments)


def outline(recipe: Recipe, branch: int) -> dict[str, Any]:
    """Return shapes and dtypes of the outputs of one lane."""
    seeds, settings, shared = _arguments(recipe._replace(seeds=1, width=1))
    shapes = jax.eval_shape(partial(_table, _lane(recipe, branch)), seeds, settings, shared)
    return {name: jax.ShapeDtypeStruct(leaf.shape[2:], leaf.dtype) for name, leaf in shapes.items()}


def measure(recipe: Recipe) -> Cost:
    """Measure one lane by tracing a tile of two seeds by two settings; nothing is compiled."""
    cost: Cost = _remembered(_measure, recipe._replace(seeds=2, width=2))
    return cost


@lru_cache(maxsize=REMEMBERED)
def _measure(recipe: Recipe) -> Cost:
    jaxpr = jax.make_jaxpr(partial(_table, _lane(recipe, 0)))(*_arguments(recipe))
    lanes = 4 if recipe.settings else 2
    operations, widest, batched, factorises = 0.0, 0, False, False
    for equation, repeats in _equations(jaxpr.jaxpr, 1):
        widest = max(widest, sum(_bytes(variable.aval) for variable in equation.outvars))
        if equation.primitive.name == "dot_general":
            size, is_batched = _product(equation)
            operations += size * repeats
            batched |= is_batched and size >= lanes * SMALL_PRODUCT
        batched |= equation.primitive.name == "conv_general_dilated"
        factorises |= equation.primitive.name in FACTORISATIONS
    return Cost(operations / lanes, max(1, widest // lanes), batched, factorises)


def _equations(jaxpr: Any, repeats: int) -> Iterator[tuple[Any, int]]:
    for equation in jaxpr.eqns:
        yield equation, repeats
        inner = repeats * int(equation.params.get("length", 1)) if equation.primitive.name == "scan" else repeats
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(part):
                yield from _equations(part.jaxpr if hasattr(part, "jaxpr") else part, inner)


def _is_jaxpr(part: Any) -> bool:
    return hasattr(part, "eqns")


def _product(equation: Any) -> tuple[float, bool]:
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    size = 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    return size, bool(batch)


def _bytes(aval: Any) -> int:
    return int(math.prod(aval.shape)) * aval.dtype.itemsize if hasattr(aval, "shape") else 0


def compile_tile(recipe: Recipe, execution: Execution) -> Executable:
    """Compile a tile.

    Args:
        recipe: what it is made from.
        execution: how its lanes run.

    Returns:
        ``(branches, counts, seeds, settings, shared) -> outputs of each branch``, each with the two leading dimensions
        of the tile. Under ``map`` `branches` names one branch, and `counts` how many lanes of the tile are real.
    """
    executable: Executable = _remembered(_compile, recipe, execution)
    return executable


@lru_cache(maxsize=REMEMBERED)
def _compile(recipe: Recipe, execution: Execution) -> Executable:
    options: Any = CPU_COMPILER_OPTIONS if jax.default_backend() == "cpu" else None
    lanes = [_lane(recipe, branch) for branch in range(len(recipe.branches))]
    if execution.strategy == "vmap":
        return _compile_wide(lanes, recipe, execution, options)
    return _compile_following(lanes, recipe, options)


def _compile_wide(lanes: Sequence[Lane], recipe: Recipe, execution: Execution, options: Any) -> Executable:
    """Compile all branches of a tile as one wide computation: the compiler merges what they draw in common."""

    def all_branches(*arguments: Any) -> Any:
        return tuple(_table(lane, *arguments) for lane in lanes)

    placement = _placement(execution)
    jitted = jax.jit(all_branches, in_shardings=placement) if placement else jax.jit(all_branches)
    executable = _guarded(jitted.lower(*_arguments(recipe)).compile(compiler_options=options))
    return lambda branches, counts, *arguments: executable(*arguments)


def _compile_following(lanes: Sequence[Lane], recipe: Recipe, options: Any) -> Executable:
    """Compile a switch over those branches whose outputs have the same shapes, one lane after another."""
    arguments = (jax.ShapeDtypeStruct((2,), np.int32), *_arguments(recipe))
    branches = [jax.jit(partial(_follow, lane)) for lane in lanes]
    alike: dict[str, list[int]] = {}
    for position, branch in enumerate(branches):
        alike.setdefault(str(branch.eval_shape(*arguments)), []).append(position)
    executables = {}
    for members in alike.values():
        switch = partial(_switch, [branches[member] for member in members])
        index = jax.ShapeDtypeStruct((), np.int32)
        executable = _guarded(jax.jit(switch).lower(index, *arguments).compile(compiler_options=options))
        executables.update({member: (executable, np.int32(at)) for at, member in enumerate(members)})

    def run(branches: range, counts: tuple[int, int], *arguments: Any) -> Sequence[Outputs]:
        executable, at = executables[branches[0]]
        return [executable(at, np.asarray(counts, np.int32), *arguments)]

    return run


def _guarded(executable: Any) -> Any:
    """Let no two programs run at once that both factorise batches: on a CPU each would wait for the other's threads."""
    if jax.default_backend() != "cpu" or not BATCHED_CALL.search(executable.as_text()):
        return executable

    def alone(*arguments: Any) -> Any:
        with ONE_AT_A_TIME:
            return jax.block_until_ready(executable(*arguments))

    return alone


def _switch(branches: Sequence[Any], index: Any, *arguments: Any) -> Any:
    return branches[0](*arguments) if len(branches) == 1 else jax.lax.switch(index, branches, *arguments)


def _table(lane: Lane, seeds: Any, settings: Any, shared: Any) -> Any:
    """Run a table of lanes as one wide computation; the settings of a seed share its draws."""
    over_settings: Callable[..., Any] = jax.vmap(lane, in_axes=(None, 0, None)) if settings else partial(_alone, lane)
    return jax.vmap(over_settings, in_axes=(0, None, None))(seeds, settings, shared)


def _alone(lane: Lane, *arguments: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], lane(*arguments))


def _follow(lane: Lane, counts: Any, seeds: Any, settings: Any, shared: Any) -> Any:
    """Run a table of lanes one after another; padding is not run."""
    rows, columns = seeds.shape[0], jax.tree.leaves(settings)[0].shape[0] if settings else 1
    first = jax.tree.map(lambda leaf: leaf[0], settings)
    blank = jax.tree.map(
        lambda leaf: jnp.zeros((rows, columns, *leaf.shape), leaf.dtype), jax.eval_shape(lane, seeds[0], first, shared)
    )

    def step(at: Any, outputs: Any) -> Any:
        row, column = at // counts[1], at % counts[1]
        result = lane(seeds[row], jax.tree.map(lambda leaf: leaf[column], settings), shared)
        return jax.tree.map(lambda table, leaf: table.at[row, column].set(leaf), outputs, result)

    return jax.lax.fori_loop(0, counts[0] * counts[1], step, blank)


def _placement(execution: Execution) -> tuple[Any, Any, Any] | None:
    """Return where seeds, settings and shared arguments live: one side of the tile is divided among the devices."""
    if execution.devices == 1:
        return None
    mesh = jax.make_mesh((execution.devices,), ("runs",), axis_types=(AxisType.Auto,))
    everywhere, divided = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("runs"))
    if execution.seeds % execution.devices == 0:
        return divided, everywhere, everywhere
    return everywhere, divided, everywhere
