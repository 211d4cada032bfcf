"""Environment: the settings of JAX that the laboratory makes, and what a run ran on."""

import contextlib
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import calcdl

PACKAGES = ("jax", "jaxlib", "optax", "numpy", "scikit-learn", "xarray", "matplotlib", "pydantic")


@contextlib.contextmanager
def settings(precision: str) -> Iterator[None]:
    """Set JAX up for a run, and put everything back afterwards.

    Products run in full precision: accelerators would otherwise round factors to ten bits. Compiled programs
    are kept on disk for the next start; a cache that cannot be read or written is never an error.

    Args:
        precision: "float32" or "float64".
    """
    wanted: dict[str, Any] = {
        "jax_enable_x64": precision == "float64",
        "jax_default_matmul_precision": "highest",
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_compilation_cache_dir": cache_directory(),
    }
    before = {name: jax.config.values[name] for name in wanted}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
        _update(wanted)
        try:
            yield
        finally:
            _update(before)


def _update(values: dict[str, Any]) -> None:
    update: Callable[[str, Any], None] = jax.config.update
    for name, value in values.items():
        update(name, value)


def cache_directory() -> str | None:
    """Return where compiled programs are kept: the user's choice, else their cache folder if writable."""
    chosen: str | None = jax.config.values["jax_compilation_cache_dir"]
    if chosen is not None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return chosen
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calcdl" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


def describe() -> dict[str, Any]:
    """Return versions, devices and settings as plain data."""
    devices = jax.devices()
    return {
        "calcdl": calcdl.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "device": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "x64": jax.config.values["jax_enable_x64"],
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def writable(folder: Path) -> bool:
    """Say whether files can be made in a folder, or in the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
