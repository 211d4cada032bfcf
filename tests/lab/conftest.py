import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One place for compiled programs, which jax opens once a process."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, cache):
    """Every test works in a directory of its own and leaves the user's cache alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(cache):
    """Start the parabola in a process of its own."""

    def popen(*arguments, **environment):
        path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(HERE / "parabola.py"), *arguments],
            env={**os.environ, "PYTHONPATH": path, "DEVICES": "2", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return popen
