"""Execution: how the lanes of a program run, by a fixed rule of device and model size, never by a timing."""

import math
import os
from typing import Any, Literal, NamedTuple

import jax

Strategy = Literal["map", "vmap"]

CACHE_BYTES = 2**20
NARROWEST_ON_CPU, WIDEST_ON_CPU = 16, 256
WIDEST_MAP = 32
BATCHES_A_CORE = 8
SMALL_PRODUCT = 2**13
DEVICE_MEMORY = 2**30
# Level 3 compiles several times longer than level 2, and what it compiles runs no faster.
CPU_COMPILER_OPTIONS = {"xla_backend_optimization_level": 2, "xla_cpu_prefer_vector_width": 512}


class Cost(NamedTuple):
    """Size of one lane, read off its traced program.

    Attributes:
        operations: floating-point operations in matrix products.
        bytes: the largest array that the lane holds, inputs and outputs included.
        batched_products: whether batching lanes would make batched products of small matrices.
        factorises: whether it factorises matrices, which a CPU does one after another.
    """

    operations: float
    bytes: int
    batched_products: bool
    factorises: bool = False


class Execution(NamedTuple):
    """How the lanes of a program run.

    Attributes:
        strategy: ``"vmap"`` runs a batch as one wide computation, ``"map"`` one lane after another.
        seeds: seeds a batch.
        settings: settings a batch, which share the draws of each seed.
        workers: batches that run at once on the host.
        devices: devices that share a batch.
    """

    strategy: Strategy
    seeds: int
    settings: int
    workers: int
    devices: int

    @property
    def width(self) -> int:
        """Lanes a batch."""
        return self.seeds * self.settings

    def recorded(self) -> dict[str, Any]:
        """Return what the bits of the result, or the division into batches, depend on."""
        return {name: value for name, value in self._asdict().items() if name != "workers"}


def choose(
    cost: Cost,
    seeds: int,
    settings: int,
    branches: int,
    *,
    strategy: str = "auto",
    width: int = 0,
    workers: int = 0,
) -> Execution:
    """Choose how lanes run.

    On a CPU, ``vmap`` in batches that fit the second-level cache and give every core one, except that lanes follow one
    another (``map``) where matrices are factorised, or where batching would turn matrix products into batched products
    of small matrices. Elsewhere one ``vmap`` as wide as memory allows, shared by all local devices. Under ``vmap``
    sides of a batch are powers of two, so that a few more values on an axis rarely change the width.

    Args:
        cost: size of one lane.
        seeds: seeds of the study.
        settings: settings of the study beside the seeds.
        branches: branches of the program.
        strategy: ``"auto"`` or the caller's choice.
        width: lanes a batch, or 0 for the rule's.
        workers: threads, or 0 for as many as cores; changes no bit.

    Returns:
        The choice.

    Raises:
        ValueError: an unknown strategy, a negative width or number of workers.

    Example:
        >>> choose(Cost(0.0, 64, False), seeds=128, settings=8, branches=3, workers=2).settings
        8
    """
    if strategy not in ("auto", "map", "vmap"):
        raise ValueError(f"strategy: expected 'auto', 'map' or 'vmap', got {strategy!r}")
    for name, value in (("width", width), ("workers", workers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name}: expected 0 (chosen by rule) or a positive integer, got {value!r}")
    on_cpu = jax.default_backend() == "cpu"
    devices = 1 if on_cpu else jax.local_device_count()
    cores = (os.cpu_count() or 1) if on_cpu else 1
    workers = workers or cores
    lanes = seeds * settings
    if strategy == "map" or (strategy == "auto" and on_cpu and (cost.batched_products or cost.factorises)):
        width = width or max(1, min(WIDEST_MAP, math.ceil(lanes * branches / (BATCHES_A_CORE * cores))))
        settings_side = min(settings, max(1, width // seeds))
        return Execution("map", min(seeds, max(1, width // settings_side)), settings_side, workers, 1)
    if not width:
        width = max(1, (CACHE_BYTES if on_cpu else DEVICE_MEMORY) // max(1, cost.bytes))
        a_core = max(NARROWEST_ON_CPU, _power_of_two_above(math.ceil(lanes / cores)))
        width = min(width, WIDEST_ON_CPU, a_core) if on_cpu else width
    settings_side = min(_power_of_two_above(settings), _power_of_two_below(width))
    seeds_side = min(_power_of_two_above(seeds), _power_of_two_below(width // settings_side))
    if seeds >= devices:
        seeds_side = math.ceil(seeds_side / devices) * devices
    else:
        settings_side = math.ceil(settings_side / devices) * devices
    return Execution("vmap", seeds_side, settings_side, workers, devices)


def _power_of_two_above(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _power_of_two_below(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)
