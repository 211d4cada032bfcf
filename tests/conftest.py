"""Numerics are tested in float64 with rank promotion refused, on two devices."""

import gc
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_disable_most_optimizations", True)  # what is compiled here runs a few times only

# Modules have small programs in common, which each would compile anew: a cache for each worker, which ends with it.
CACHE = tempfile.TemporaryDirectory(prefix="calcdl-cache-", ignore_cleanup_errors=True)
jax.config.update("jax_compilation_cache_dir", CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Tracing makes many objects that live on; looking through them for cycles often takes up to a twentieth of the time.
gc.set_threshold(50_000, 20, 20)

TRUTHS = Path(__file__).resolve().parents[2] / "shared" / "truths"


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def truths():
    def read(name):
        path = TRUTHS / name
        if not path.exists():
            pytest.skip(f"external truths are not at hand: {path.name}")
        return json.loads(path.read_text())

    return read


@pytest.fixture(scope="session")
def configs():
    return Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Let go of a module's compiled programs when it ends: over the whole suite they add up to gigabytes."""
    yield
    jax.clear_caches()
