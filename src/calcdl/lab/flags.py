"""Flags: the command line of an experiment, laid over the values of its file.

Tyro reads the words and writes `--help`; whether a value will do is decided where TOML values are, so that it
is refused in the same sentence wherever it comes from.
"""

import contextlib
import copy
import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from calcdl.lab.config import Config, ConfigError, OneOf, Section, build, fields, values
from calcdl.lab.refusals import nearest
from calcdl.lab.toml import read_table, show

_UNSET = ("\0",)
_OPTIONS = {
    "resume": ("DIR", "go on with the run in DIR: what it has finished is not computed again"),
    "runs": ("DIR", "where run directories are made"),
    "shard": ("I/N", "compute only the I-th of N parts, in a directory that the parts share"),
    "report": ("DIR", "make the page of the run in DIR again from its stored results"),
    "publish": ("", "write figures and numbers into experiments/NAME/ of the current directory"),
    "dry_run": ("", "print what would be compiled and run, and stop"),
    "quiet": ("", "no progress"),
    "debug": ("", "show the traceback of an error"),
}


class Options(NamedTuple):
    """What the laboratory is to do, beside the configuration of the experiment.

    Attributes:
        resume: a run directory to go on with.
        runs: where run directories are made.
        shard: `(i, n)` to compute only the i-th of n parts.
        report: a run directory whose page is made again.
        publish: write the notebook page's figures and numbers.
        dry_run: only print the plan.
        quiet: no progress.
        debug: tracebacks.
    """

    resume: Path | None = None
    runs: Path = Path("runs")
    shard: tuple[int, int] | None = None
    report: Path | None = None
    publish: bool = False
    dry_run: bool = False
    quiet: bool = False
    debug: bool = False


class Command(NamedTuple):
    """A command line, read but not yet checked against the configuration.

    Attributes:
        options: what the laboratory is to do.
        file: the configuration file, if one is given.
        flags: the value of each flag given, by dotted path.
        helped: `--help` was asked for and printed; there is nothing more to do.
    """

    options: Options
    file: Path | None = None
    flags: Mapping[str, Any] = {}
    helped: bool = False


def parse(model: type[Section], arguments: Sequence[str], *, program: str, doc: str) -> Command:
    """Read a command line: `[CONFIG.toml] [--flag value ...]`.

    Args:
        model: the experiment's configuration class.
        arguments: the command line after the program's name.
        program: how the program is called, for `--help`.
        doc: the experiment's docstring, for `--help`.

    Returns:
        The command.

    Raises:
        ConfigError: an unknown flag, a flag without its value, options that exclude each other.
    """
    import tyro

    shape = _shape(model, {path: _UNSET for path, _ in _flaggable(model)})
    parsed, unknown = tyro.cli(
        shape, args=list(arguments), prog=program, add_help=False, return_unknown_args=True,
        use_underscores=True, config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip
    file = Path(parsed.config_file[0]) if parsed.config_file else None
    if "-h" in unknown or "--help" in unknown:
        config = build(model, read_table(file), file=str(file)) if file else model()
        _print_help(model, config, program, doc)
        return Command(Options(), helped=True)
    _refuse_unknown(model, unknown)
    if len(parsed.config_file) > 1:
        raise ConfigError(f"{parsed.config_file[1]}: a second CONFIG.toml; give one file, before the flags")
    flags = {
        path: _value(path, field, _reach(parsed, path))
        for path, field in _flaggable(model)
        if _reach(parsed, path) != _UNSET
    }
    return Command(_options(parsed.laboratory), file, flags)


def configure(model: type[Config], file: Path | None, flags: Mapping[str, Any]) -> Config:
    """Lay flags over a file, or over the defaults, and check the whole.

    Args:
        model: the experiment's configuration class.
        file: the configuration file, if any.
        flags: values by dotted path.

    Returns:
        The configuration.

    Raises:
        ConfigError: the file or a value will not do.
    """
    origin = str(file) if file else ""
    table = read_table(file) if file else {}
    merged = copy.deepcopy(table)
    for path, value in flags.items():
        *parents, leaf = path.split(".")
        inner: Any = merged
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                return build(model, table, file=origin)  # a value where a table is due: refused there
        inner[leaf] = value
    return build(model, merged, file=origin, flags=flags)


def _flaggable(model: type[Section]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the values that a list of words can set: no tables, no lists of lists."""
    for path, field in fields(model):
        if _kinds(_element(field.annotation)) <= {bool, int, float, str, type(None)}:
            yield path, field


def _element(annotation: Any) -> Any:
    return get_args(annotation)[0] if _is_tuple(annotation) else annotation


def _is_tuple(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def _kinds(annotation: Any) -> set[type]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds(arguments[0])
    if origin in (Union, types.UnionType):
        return set().union(*map(_kinds, arguments))
    if origin is Literal:
        return {type(value) for value in arguments}
    return {annotation}


def _value(path: str, field: FieldInfo, tokens: tuple[str, ...]) -> Any:
    kinds = _kinds(_element(field.annotation))
    if _is_tuple(field.annotation):
        return tuple(_convert(token, kinds) for token in tokens)
    if len(tokens) != 1:
        got = f"got {' '.join(tokens)}" if tokens else "got no value"
        raise ConfigError(f"--{path}: {got}; expected one value (CONFIG.toml comes before the flags)")
    return _convert(tokens[0], kinds)


def _convert(token: str, kinds: set[type]) -> Any:
    """Read a word as a TOML value of one of the kinds; a word that is none of them stays a string."""
    if bool in kinds and token in ("true", "false"):
        return token == "true"
    if type(None) in kinds and token.lower() == "none":
        return None
    if str not in kinds:
        for read in (int, float):
            try:
                return read(token)
            except ValueError:
                continue
    return token


def _shape(model: type[Section], words: Mapping[str, tuple[str, ...]]) -> Any:
    """Return a dataclass of word lists for tyro, nested like the configuration, one field a flag."""
    from tyro.conf import Positional, arg

    tree: dict[str, Any] = {}
    for path, field in _flaggable(model):
        *parents, leaf = path.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        default = words[path]
        shown = " ".join(default if len(default) <= 8 else (*default[:3], "...", default[-1]))
        hint = f"(default: {shown or 'none'})" if len(default) <= 8 else f"(default: {shown}, {len(default)} values)"
        about = arg(metavar=_metavar(field), help=field.description, help_behavior_hint=hint)
        inner[leaf] = (Annotated[tuple[str, ...], about], default)
    if taken := sorted(tree.keys() & _OPTIONS.keys()):
        raise TypeError(f"{model.__name__}.{taken[0]}: the name of a flag of the laboratory; choose another")
    options = {
        name: (Annotated[tuple[str, ...], arg(metavar=metavar, help=text, help_behavior_hint="")], _UNSET)
        if metavar
        else (Annotated[bool, arg(help=text, help_behavior_hint="")], False)
        for name, (metavar, text) in _OPTIONS.items()
    }
    about = arg(metavar="[CONFIG.toml]", help="a file of values; the rest keep their defaults", help_behavior_hint="")
    file = Annotated[tuple[str, ...], Positional, about]
    shape = {"config_file": (file, ()), "settings": tree, "laboratory": options}
    return _nest("Arguments", shape, bare=("settings", "laboratory"))


def _nest(name: str, tree: Mapping[str, Any], bare: Sequence[str] = ()) -> type:
    from tyro.conf import arg

    members: list[tuple[str, Any, Any]] = []
    for key, value in tree.items():
        if isinstance(value, tuple):
            members.append((key, value[0], dataclasses.field(default=value[1])))
        else:
            inner = _nest(key, value)
            annotation = Annotated[inner, arg(name="")] if key in bare else inner
            members.append((key, annotation, dataclasses.field(default_factory=inner)))
    return dataclasses.make_dataclass(name, members)


def _metavar(field: FieldInfo) -> str:
    element = _element(field.annotation)
    names = [name for part in (*field.metadata, *get_args(element)) if isinstance(part, OneOf) for name in part.names]
    if not names and get_origin(element) is Literal:
        names = list(get_args(element))
    words = {bool: "true|false", int: "INT", float: "FLOAT", str: "TEXT", type(None): "none"}
    word = "|".join(map(str, names)) or "|".join(sorted(words[kind] for kind in _kinds(element)))
    return f"{word} ..." if _is_tuple(field.annotation) else word


def _reach(parsed: Any, path: str) -> Any:
    value = parsed.settings
    for name in path.split("."):
        value = vars(value)[name]
    return value


def _print_help(model: type[Section], config: Section, program: str, doc: str) -> None:
    import tyro

    stored = values(config)
    words = {
        path: tuple(str(item) if isinstance(item, str) else show(item) for item in value)
        if isinstance(value := stored[path], tuple)
        else (value if isinstance(value, str) else "none" if value is None else show(value),)
        for path, _ in _flaggable(model)
    }
    with contextlib.suppress(SystemExit):
        tyro.cli(
            _shape(model, words),
            args=["--help"],
            prog=program,
            description=doc,
            use_underscores=True,
            config=(tyro.conf.FlagCreatePairsOff,),
        )


def _refuse_unknown(model: type[Section], unknown: Sequence[str]) -> None:
    known = (*(path for path, _ in _flaggable(model)), *_OPTIONS)
    for word in unknown:
        if word.startswith("-"):
            flag = word.partition("=")[0].lstrip("-").replace("-", "_")
            raise ConfigError(f"--{flag}: unknown flag; {nearest(flag, known, '--')}")
    if unknown:
        raise ConfigError(f"{unknown[0]}: unexpected; give one CONFIG.toml, before the flags")


def _options(parsed: Any) -> Options:
    given: dict[str, Any] = {}
    for name, (metavar, _) in _OPTIONS.items():
        words = vars(parsed)[name]
        if words == _UNSET or words is False:
            continue
        if metavar and len(words) != 1:
            got = f"got {' '.join(words)}" if words else "got no value"
            raise ConfigError(f"--{name}: {got}; expected {metavar} (CONFIG.toml comes before the flags)")
        given[name] = _shard(words[0]) if name == "shard" else Path(words[0]) if metavar else words
    for one, other in (
        ("report", "resume"),
        ("report", "dry_run"),
        ("report", "shard"),
        ("publish", "shard"),
    ):
        if one in given and other in given:
            raise ConfigError(f"--{one}: cannot go with --{other}; leave one out")
    return Options(**given)


def _shard(word: str) -> tuple[int, int]:
    part, _, parts = word.partition("/")
    if part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts):
        return int(part), int(parts)
    raise ConfigError(f"--shard: got {word}; expected I/N with I from 1 to N, such as 2/8")
