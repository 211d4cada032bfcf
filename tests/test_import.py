"""What an import brings in, counted in modules and never in seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
EVERY_MODULE = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(SOURCE.rglob("*.py"))
    if path.stem != "__main__"
]
AT_ONCE = {
    *("calcdl", "jax", "jaxlib", "jaxtyping", "optax", "numpy", "ml_dtypes", "opt_einsum"),
    *("pydantic", "pydantic_core", "typing_extensions", "typing_inspection", "annotated_types"),
}


def brought_in(statements: str) -> set[str]:
    """Modules that statements import in a fresh process, beyond those of jax, optax, numpy and pydantic.

    The process has no device, so a statement that computes with jax ends in an error. So does one that prints
    or changes the environment, the search path, the warnings or an option of jax, or leaves a thread behind.
    """
    program = f"""
import json, os, sys, threading, warnings
import jax, jaxtyping, numpy, optax, pydantic
options = lambda: (dict(os.environ), list(sys.path), list(warnings.filters), dict(jax.config.values))
state = lambda: (options(), threading.enumerate())
modules, before = set(sys.modules), state()
{statements}
assert state() == before, "the import has a side effect"
print(json.dumps(sorted(set(sys.modules) - modules)))
"""
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "no_such_platform"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def packages(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names)


def test_import_calcdl_brings_in_itself_alone():
    assert brought_in("import calcdl") == {"calcdl"}


def test_heavy_libraries_wait_for_the_function_that_needs_them():
    assert len(EVERY_MODULE) > 1
    assert packages(brought_in("\n".join(f"import {name}" for name in EVERY_MODULE))) <= AT_ONCE


@pytest.mark.parametrize("library", ["matplotlib", "xarray", "jinja2"])
def test_a_heavy_import_is_seen(library):
    assert library in packages(brought_in(f"import {library}")) - AT_ONCE


@pytest.mark.parametrize(
    ("statement", "seen"),
    [
        ("jax.numpy.zeros(3)", "no_such_platform"),
        ("os.environ['CALCDL_PLANTED'] = '1'", "side effect"),
        ("jax.config.update('jax_enable_x64', not jax.config.jax_enable_x64)", "side effect"),
        ("warnings.simplefilter('ignore')", "side effect"),
    ],
)
def test_a_planted_side_effect_is_seen(statement, seen):
    with pytest.raises(AssertionError, match=seen):
        brought_in(statement)
