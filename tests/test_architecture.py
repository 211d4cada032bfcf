"""The import table and the house rules, held from the source; each rule is also fed planted violations."""

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "calcdl"

BASICS = ("types", "trees")
TOOLKIT_ROOMS = ("calculus", "study", "nn", "data", "optim", "theory", "diagnostics", "train")
EVERYTHING = (*BASICS, *TOOLKIT_ROOMS, "lab")
MAY_IMPORT = {
    "": (),
    "types": (),
    "trees": ("types",),
    "calculus": BASICS,
    "study": (),
    "nn": BASICS,
    "data": BASICS,
    "optim": (*BASICS, "calculus"),
    "theory": (*BASICS, "calculus"),
    "diagnostics": (*BASICS, "calculus"),
    "train": (*BASICS, "data.dataset", "optim.solver"),
    "lab": ("", *BASICS, "study", "diagnostics.health"),
    "experiments": ("", *EVERYTHING),
    "__main__": ("", *EVERYTHING, "experiments"),
}
TOOLKIT = (*BASICS, *TOOLKIT_ROOMS)

LONGEST_MODULE = 400
LONGEST_FUNCTION = 60
NAMES_THAT_SAY_NOTHING = {"utils", "util", "core", "common", "base", "helpers", "misc", "_src"}
REFLECTION = {"getattr", "eval", "exec", "__import__", "importlib", "runpy", "pkgutil"}
NOT_REFLECTION = {"importlib.metadata", "importlib.resources"}

READERS = {"pathlib", "open", "np.load", "np.loadtxt", "np.genfromtxt"}
EFFECTS = READERS | {
    *("print", "input", "breakpoint", "time", "datetime", "random", "secrets", "os", "io", "sys", "shutil"),
    *("tempfile", "subprocess", "socket", "logging", "matplotlib", "np.random", "numpy.random"),
    *("np.save", "np.savez", "np.savetxt", "jax.debug.print", "jax.config.update"),
}
SEEDED = "np.random.default_rng"
# The user's file must be read somewhere; the number of cores decides how many threads run, never what they compute.
EXEMPT = {
    "data.files": READERS | {"io"},
    "data.real": {"pathlib", "os"},
    "study.execution": {"os"},
}

# Makers of functions and constants: with records and types, all that may be called on import of a toolkit module.
PURE_CALLS = {
    *("frozenset", "tuple", "dict", "range", "zip", "float", "partial", "functools.partial", "namedtuple", "dataclass"),
    "re.compile",
    *("math.sqrt", "math.log", "math.exp", "math.erf", "math.ldexp"),
    *("jax.jit", "jax.vmap", "jax.grad", "jax.custom_jvp", "jax.custom_vjp", "_with_derivative"),
}
# Tables of quadrature edges; a memory of what has been compiled, as `jax.jit` has one.
EXEMPT_CALLS = {"calculus.quadrature": {"np.arange", "np.concatenate"}, "study.compiled": {"lru_cache"}}
PURE_METHODS = {"defjvp", "defjvps", "defvjp"}


def read_modules() -> dict[str, str]:
    """Source by dotted name below calcdl: "" is the package itself, "nn" a room's `__init__`."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


MODULES = read_modules()
PACKAGES = {name for name in MODULES if (SOURCE / Path(*name.split(".")) / "__init__.py").exists()} | {""}
TOOLKIT_MODULES = [name for name in MODULES if name.split(".")[0] in TOOLKIT]


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def starts_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def imported(source: str, module: str, modules: Mapping[str, str], packages: set[str]) -> Iterator[str]:
    """Full names of what a module imports, wherever in it; for calcdl, the module that is meant."""
    absolute = f"calcdl.{module}".rstrip(".").split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = node.module or ""
            if node.level:
                above = absolute[: len(absolute) - node.level + (module in packages)]
                stem = ".".join([*above, stem] if stem else above)
            for alias in node.names:
                full = f"{stem}.{alias.name}"
                is_module = starts_with(stem, "calcdl") and full.removeprefix("calcdl.") in modules
                yield full if is_module or not starts_with(stem, "calcdl") else stem


def neighbours(source: str, module: str, modules: Mapping[str, str], packages: set[str]) -> set[str]:
    names = imported(source, module, modules, packages)
    return {name.removeprefix("calcdl").removeprefix(".") for name in names if starts_with(name, "calcdl")}


def forbidden_imports(modules: Mapping[str, str], packages: set[str]) -> list[str]:
    wrong = []
    for module, source in modules.items():
        room = module.split(".")[0]
        if room not in MAY_IMPORT:
            wrong.append(f"{module}: this room has no row in the table")
            continue
        for target in sorted(neighbours(source, module, modules, packages)):
            own = room != "" and starts_with(target, room)
            allowed = any(target == other or (other and starts_with(target, other)) for other in MAY_IMPORT[room])
            wrong += [] if own or allowed else [f"{module}: imports calcdl.{target}"]
    return wrong


def cycle(modules: Mapping[str, str], packages: set[str]) -> list[str]:
    graph = {name: neighbours(source, name, modules, packages) for name, source in modules.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def too_long(source: str) -> list[str]:
    lines = len(source.splitlines())
    wrong = [f"module: {lines} lines"] if lines > LONGEST_MODULE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:  # what explains a function does not make it long
                length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            wrong += [f"{node.name}: {length} lines"] if length > LONGEST_FUNCTION else []
    return wrong


def mentions(source: str, forbidden: set[str], allowed: set[str] = frozenset()) -> list[str]:
    """Names used or imported that lie at or below a forbidden one, in the order of the source."""
    nodes = list(ast.walk(ast.parse(source)))
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    names = []
    for node in nodes:
        if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner:
            names.append((node.lineno, dotted(node)))
        elif isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return [
        f"line {line}: {name}"
        for line, name in sorted(set(names))
        if any(starts_with(name, one) for one in forbidden) and not any(starts_with(name, one) for one in allowed)
    ]


def evaluated_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: no body of a function, but its defaults and decorators."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in dotted(node.test):
        return
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        defaults = [*node.args.defaults, *(one for one in node.args.kw_defaults if one)]
        children = defaults if isinstance(node, ast.Lambda) else [*defaults, *node.decorator_list]
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from evaluated_on_import(child)


def calls_on_import(source: str, allowed: set[str] = frozenset()) -> list[str]:
    wrong = []
    for node in evaluated_on_import(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            last = name.rsplit(".", 1)[-1]
            makes_a_record = last.strip("_")[:1].isupper()
            if not (makes_a_record or name in PURE_CALLS | allowed or last in PURE_METHODS):
                wrong.append(f"line {node.lineno}: {ast.unparse(node.func)}")
    return wrong


def public_functions(source: str, module: str, init: str) -> list[ast.FunctionDef]:
    """Functions that a room's `__init__` hands on, one by one or with their whole module."""
    room, _, inside = module.partition(".")
    nodes = [node for node in ast.walk(ast.parse(init)) if isinstance(node, ast.ImportFrom)]
    whole = not inside or any(
        node.module == f"calcdl.{room}" and inside in [alias.name for alias in node.names] for node in nodes
    )
    names = {alias.name for node in nodes if node.module == f"calcdl.{module}" for alias in node.names}
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return [one for one in functions if one.name in names or (whole and not one.name.startswith("_"))]


def without_doctest(source: str, module: str, init: str) -> list[str]:
    functions = public_functions(source, module, init)
    return [one.name for one in functions if ">>> " not in (ast.get_docstring(one) or "")]


def names_that_say_nothing(modules: Mapping[str, str]) -> list[str]:
    hidden = [name for name in modules if name.startswith("_") or "._" in name]
    empty = [name for name in modules if NAMES_THAT_SAY_NOTHING & set(name.split("."))]
    return [name for name in hidden if name != "__main__"] + empty


def places(root: Path) -> dict[str, set[str]]:
    """The four places where the name of an experiment must stand."""
    return {
        "src": {path.stem for path in (root / "src/calcdl/experiments").glob("*.py")} - {"__init__"},
        "configs": {path.name.split(".")[0] for path in (root / "configs").glob("*.toml")},
        "configs, default": {path.stem for path in (root / "configs").glob("*.toml") if "." not in path.stem},
        "experiments": {path.parent.name for path in (root / "experiments").glob("*/README.md")},
        "experiments, folders": {path.name for path in (root / "experiments").iterdir() if path.is_dir()},
        "tests": {path.stem.removeprefix("test_") for path in (root / "tests/experiments").glob("test_*.py")},
    }


# The rules, on the source as it is.


def test_rooms_import_what_the_table_allows():
    assert forbidden_imports(MODULES, PACKAGES) == []


def test_no_import_cycles():
    assert cycle(MODULES, PACKAGES) == []


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_short(module):
    assert too_long(MODULES[module]) == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_reached_by_its_name_in_a_string(module):
    assert mentions(MODULES[module], REFLECTION, NOT_REFLECTION) == []


@pytest.mark.parametrize("module", TOOLKIT_MODULES)
def test_toolkit_has_no_side_effects(module):
    assert mentions(MODULES[module], EFFECTS, EXEMPT.get(module, set()) | {SEEDED}) == []
    assert f"{SEEDED}()" not in MODULES[module]


@pytest.mark.parametrize("module", TOOLKIT_MODULES)
def test_toolkit_computes_nothing_on_import(module):
    assert calls_on_import(MODULES[module], EXEMPT_CALLS.get(module, set())) == []


@pytest.mark.parametrize("module", TOOLKIT_MODULES)
def test_public_functions_have_a_doctest(module):
    assert without_doctest(MODULES[module], module, MODULES.get(module.split(".")[0], "")) == []


def test_modules_are_named_for_what_they_hold():
    assert names_that_say_nothing(MODULES) == []
    assert {name.rpartition(".")[0] for name in MODULES} <= PACKAGES


def test_one_name_in_four_places():
    found = places(ROOT)
    assert found["src"]
    assert all(names == found["src"] for names in found.values()), found


# The rules, on planted violations.

SMALL = dict.fromkeys(["", "types", "nn", "nn.activations", "optim", "optim.descent", "optim.solver"], "")


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("nn.layers", "from calcdl.optim import descent"),
        ("nn.layers", "import calcdl.optim.descent as d"),
        ("nn.layers", "from calcdl import optim"),
        ("nn.layers", "from ..optim import descent"),
        ("nn", "from ..optim.descent import descent"),
        ("nn.layers", "def f():\n    from calcdl.optim import descent"),
        ("study", "from calcdl import types"),
        ("train", "from calcdl.optim.descent import descent"),
        ("train", "from calcdl.optim import Solver"),
        ("lab", "from calcdl.nn import layers"),
        ("types", "import calcdl"),
        ("", "from calcdl.optim import descent"),
        ("novelty", "import jax"),
    ],
)
def test_a_planted_import_is_seen(module, line):
    modules = {**SMALL, module: line}
    assert len(forbidden_imports(modules, {"", "nn", "optim"})) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("train", "from calcdl.optim import solver"),
        ("train", "from .optim.solver import Solver"),
        ("nn", "from .layers import stack"),
        ("nn.layers", "from . import activations\nfrom calcdl.types import Array"),
        ("experiments.x", "import calcdl.nn\nfrom calcdl import __version__, optim"),
        ("study", "import calcdlx"),
    ],
)
def test_an_allowed_import_passes(module, line):
    modules = {**SMALL, module: line}
    assert forbidden_imports(modules, {"", "nn", "optim"}) == []


def test_a_planted_cycle_is_seen():
    modules = {"nn": "from .layers import stack", "nn.layers": "def f():\n    import calcdl.nn"}
    assert set(cycle(modules, {"nn"})) == {"nn", "nn.layers"}
    assert cycle({**modules, "nn.layers": "import jax"}, {"nn"}) == []


def test_planted_length_is_seen():
    body = "\n".join(f"    x = {i}" for i in range(LONGEST_FUNCTION))
    assert too_long(f"def f():\n{body}\n") == ["f: 61 lines"]
    assert too_long(f'def f():\n    """One.\n\n    Two.\n    """\n{body}\n') == ["f: 61 lines"]
    assert too_long("x = 1\n" * (LONGEST_MODULE + 1)) == ["module: 401 lines"]
    assert too_long("x = 1\n" * LONGEST_MODULE) == []


@pytest.mark.parametrize(
    "line", ["getattr(a, 'b')", "eval('1')", "exec('')", "import importlib", "from runpy import run_path"]
)
def test_planted_reflection_is_seen(line):
    assert len(mentions(line, REFLECTION, NOT_REFLECTION)) == 1
    allowed = "from importlib import metadata\nimport importlib.resources"
    assert mentions(allowed, REFLECTION, NOT_REFLECTION) == []


@pytest.mark.parametrize(
    "line",
    ["print(1)", "import time", "from os import path", "np.random.rand()", "def f():\n    import random"],
)
def test_a_planted_side_effect_is_seen(line):
    assert len(mentions(line, EFFECTS)) >= 1
    assert mentions("import operator\nx = jax.random.key\ny = a.open", EFFECTS) == []


@pytest.mark.parametrize(
    "line", ["x = jnp.zeros(3)", "def f(x=np.ones(2)): ...", "@register('f')\ndef f(): ...", "x = f()()"]
)
def test_a_planted_call_on_import_is_seen(line):
    assert len(calls_on_import(line)) >= 1
    allowed = "x = Activation(f, math.sqrt(2.0))\ndef f(): jnp.zeros(3)\nf.defjvp(g)\nh = lambda: g()"
    assert calls_on_import(allowed) == []


def test_a_missing_doctest_is_seen():
    source = 'def f():\n    """One."""\ndef g():\n    """One.\n\n    >>> 1\n    1\n    """\ndef h(): ...'
    assert without_doctest(source, "train", "") == ["f", "h"]
    assert without_doctest(source, "nn.x", "from calcdl.nn import x as x") == ["f", "h"]
    assert without_doctest(source, "nn.x", "from calcdl.nn.x import f, g") == ["f"]
    assert without_doctest(source, "nn.x", "") == []


def test_an_empty_name_is_seen():
    names = {"nn.utils": "", "_hidden.x": "", "nn.layers": "", "__main__": ""}
    assert names_that_say_nothing(names) == ["_hidden.x", "nn.utils"]


def test_a_missing_place_is_seen(tmp_path):
    names = (
        "src/calcdl/experiments/x.py",
        "configs/x.toml",
        "configs/x.wide.toml",
        "experiments/x/README.md",
    )
    for path in names:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "configs/y.wide.toml").touch()
    found = places(tmp_path)
    for place in ("src", "configs, default", "experiments", "experiments, folders"):
        assert found[place] == {"x"}
    assert found["configs"] == {"x", "y"}
    assert found["tests"] == set()
