"""Configuration: one frozen model an experiment, checked whole before anything is compiled.

An experiment derives its `Config` from `ExperimentConfig` and its tables from `Section`; every field is
written `Field(default=..., description="...")`. Values come from a TOML file, flags lie on top, and both are
checked together, once, strictly: true is no whole number and "0.1" is no number, while a TOML `1` may stand
where a number is due. TOML lists become tuples.

Every value of an axis is checked by the type of the axis (`AxisOf[Rate]` names `rates[3]` when the fourth
value is wrong). A rule that joins fields must hold for *every* value of the axes it reads: write it as a
model validator that walks them and raises `refuse(path, got, expected)` at the first value that would fail:

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        for place, size in enumerate(self.batch_sizes):
            if size > self.rows:
                raise refuse(f"batch_sizes[{place}]", size, f"at most rows = {self.rows}")
        return self
"""

import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from calcdl.lab.refusals import choices, dotted, expected, nearest
from calcdl.lab.refusals import refuse as refuse
from calcdl.lab.toml import ConfigError as ConfigError
from calcdl.lab.toml import read_table, show, to_toml

_INDEX = re.compile(r"\[\d+\]")
_INT32_MAX = 2**31 - 1
_FLOAT32_RANGE = (2.0**-126, (2 - 2.0**-23) * 2.0**127)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for place, value in enumerate(values):
        if value in values[:place]:
            first = values.index(value)
            raise refuse(f"[{place}]", value, f"distinct values, and [{first}] is the same already")
    return values


Finite = Annotated[float, Field(allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=_INT32_MAX)]
Depth = Annotated[int, Field(ge=0, le=_INT32_MAX)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Value = TypeVar("Value")
Config = TypeVar("Config", bound="Section")
AxisOf = Annotated[tuple[Value, ...], Field(min_length=1), AfterValidator(_distinct)]
Seeds = AxisOf[Seed]


@dataclass(frozen=True)
class OneOf:
    """Marks a string field that must be one of some names: `Annotated[str, OneOf(ACTIVATIONS)]`.

    Attributes:
        names: the names, or a dict whose keys they are.
    """

    names: Iterable[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let pydantic refuse any other name, with the nearest one in the message."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str) -> str:
        names = tuple(self.names)
        if name not in names:
            raise refuse("", name, choices(name, names))
        return name


@dataclass(frozen=True)
class Readable:
    """Marks a string field that some reader must understand: `Annotated[str, Readable(parse, "a formula in x")]`.

    Attributes:
        reader: takes the text; what it cannot read it refuses with a `ValueError`.
        wanted: what is expected, in a few words.
    """

    reader: Callable[[str], object]
    wanted: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let pydantic refuse any other text, with the reader's own words in the message."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, text: str) -> str:
        try:
            self.reader(text)
        except ValueError as error:
            raise refuse("", text, f"{self.wanted}; {error}") from None
        return text


class Section(BaseModel):
    """A table of a configuration: frozen, strict, without unknown keys, every field described."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", validate_default=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a field without a description where the class is written."""
        for name, field in cls.model_fields.items():
            if not field.description:
                raise TypeError(f"{cls.__name__}.{name} lacks a description: Field(default=..., description=...)")


class Execution(Section):
    """How lanes are laid on the devices; 0 and "auto" leave it to the fixed rule of `study`."""

    strategy: Literal["auto", "map", "vmap"] = Field(
        default="auto", description="how the lanes of a batch are computed: one by one or vectorised"
    )
    width: int = Field(default=0, ge=0, le=_INT32_MAX, description="lanes in a batch, 0 for the rule's choice")
    workers: int = Field(default=0, ge=0, le=1024, description="threads that compute batches, 0 for the rule's choice")


class ExperimentConfig(Section):
    """What every experiment can be told; an experiment adds fields of its own, each with a default."""

    precision: Literal["float32", "float64"] = Field(default="float32", description="type of all floating numbers")
    execution: Execution = Field(default=Execution(), description="how the lanes are laid on the devices")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a field without a default too: an experiment runs without a file."""
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            if field.is_required():
                raise TypeError(f"{cls.__name__}.{name} lacks a default: Field(default=..., description=...)")

    @model_validator(mode="after")
    def _representable(self) -> Self:
        """Refuse a number that float32 would turn into 0 or infinity."""
        low, high = _FLOAT32_RANGE
        if self.precision == "float32":
            for path, value in _numbers(_plain(self)):
                if value != 0 and math.isfinite(value) and not low <= abs(value) <= high:
                    limits = f'a size from {low:.3g} to {high:.3g} in float32, or precision = "float64"'
                    raise refuse(path, value, limits)
        return self


def write(config: Section) -> str:
    """Return a configuration as TOML text that names every value and reads back as an equal one.

    Args:
        config: any configuration.

    Returns:
        TOML text.

    >>> print(write(Execution(width=64)), end="")
    strategy = "auto"
    width = 64
    workers = 0
    """
    return "\n".join(_table(config, "")) + "\n"


def read(path: Path | str, model: type[Config]) -> Config:
    """Read a configuration from a TOML file.

    Args:
        path: the file.
        model: the experiment's configuration class.

    Returns:
        A frozen, fully checked configuration; what the file leaves out has its default.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or a value out of range, in one line.
    """
    return build(model, read_table(path), file=str(path))


def build(model: type[Config], table: Mapping[str, Any], *, file: str = "", flags: Container[str] = ()) -> Config:
    """Check raw values and freeze them into a configuration.

    Args:
        model: the configuration class.
        table: raw values by name; tables within are dicts, lists are tuples.
        file: where the values come from, for messages.
        flags: dotted paths whose value comes from a flag instead.

    Returns:
        The configuration.

    Raises:
        ConfigError: the first thing wrong with the values, in one line.
    """
    try:
        return model.model_validate(dict(table))
    except ValidationError as refusal:
        error = refusal.errors(include_url=False)[0]
        context = error.get("ctx", {})
        path = dotted(error["loc"], table)
        if inner := context.get("path", ""):
            path += inner if inner.startswith("[") or not path else f".{inner}"
        flag = next((name for name in _prefixes(path) if name in flags), None)
        where = f"--{path}" if flag else ": ".join(part for part in (file, path) if part)
        got = context["shown"] if error["type"] == "refused" else show(error["input"])
        if error["type"] == "extra_forbidden":
            what = f"unknown key; {nearest(_INDEX.sub('', path), _known(model))}"
        else:
            what = f"got {got}; expected {expected(error)}"
        raise ConfigError(f"{where}: {what}") from None


def values(config: Section) -> dict[str, Any]:
    """Return every value of a configuration by its dotted path, in order.

    >>> values(Execution())
    {'strategy': 'auto', 'width': 0, 'workers': 0}
    """
    return {path: _reach(config, path) for path in _paths(type(config))}


def fields(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted path and pydantic's description of every value, those of nested tables included."""
    for name, field in model.model_fields.items():
        if _is_section(field.annotation):
            yield from fields(cast(type[Section], field.annotation), f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _paths(model: type[Section]) -> tuple[str, ...]:
    return tuple(path for path, _ in fields(model))


def _known(model: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield every dotted path that a file may hold, keys of tables in lists included."""
    for name, field in model.model_fields.items():
        inner = [part for part in (field.annotation, *get_args(field.annotation)) if _is_section(part)]
        if inner:
            yield from _known(inner[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _reach(config: Section, path: str) -> Any:
    for name in path.split("."):
        config = dict(config)[name]
    return config


def _fields(section: Section) -> Iterator[tuple[str, Any]]:
    """Yield what TOML can write: it has no null, so a field left at its default of None is left out."""
    for name, value in section:
        if value is not None:
            yield name, value
        elif type(section).model_fields[name].get_default(call_default_factory=True) is not None:
            raise TypeError(f"{type(section).__name__}.{name}: TOML cannot write None; make it the default")


def _plain(value: Any) -> Any:
    match value:
        case Section():
            return {name: _plain(item) for name, item in _fields(value)}
        case tuple():
            return tuple(_plain(item) for item in value)
        case Mapping():
            return {name: _plain(item) for name, item in value.items()}
    return value


def _table(section: Section, prefix: str) -> Iterator[str]:
    pairs = list(_fields(section))
    for name, value in pairs:
        if not isinstance(value, Section):
            yield f"{name} = {to_toml(_plain(value))}"
    for name, value in pairs:
        if isinstance(value, Section):
            yield f"\n[{prefix}{name}]"
            yield from _table(value, f"{prefix}{name}.")


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    match value:
        case float():
            yield path, value
        case tuple():
            for place, item in enumerate(value):
                yield from _numbers(item, f"{path}[{place}]")
        case Mapping():
            for name, item in value.items():
                yield from _numbers(item, f"{path}.{name}" if path else name)


def _prefixes(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
