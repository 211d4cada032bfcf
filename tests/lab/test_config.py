import math
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, ValidationError, model_validator

from calcdl.lab.config import (
    AxisOf,
    ConfigError,
    Count,
    Depth,
    ExperimentConfig,
    Finite,
    NonNegative,
    OneOf,
    Rate,
    Readable,
    Section,
    Seeds,
    read,
    refuse,
    values,
    write,
)

ACTIVATIONS = {"relu": 1, "tanh": 2, "sigmoid": 3}


class Curve(Section):
    expression: str = Field(default="x", description="a formula")
    weight: Rate = Field(default=1.0, description="its weight")


class Training(Section):
    steps: Count = Field(default=50, description="steps")
    batch_sizes: AxisOf[Count] = Field(default=(8, 16), description="rows a step")
    clip: Rate | None = Field(default=None, description="largest gradient norm")


class Config(ExperimentConfig):
    rates: AxisOf[Rate] = Field(default=(0.1, 0.2), description="learning rates")
    decay: NonNegative = Field(default=0.0, description="weight decay")
    shift: Finite = Field(default=0.0, description="a shift")
    bound: float = Field(default=math.inf, description="any number")
    depths: AxisOf[Depth] = Field(default=(0, 2), description="depths")
    activation: Annotated[str, OneOf(ACTIVATIONS)] = Field(default="relu", description="one")
    activations: AxisOf[Annotated[str, OneOf(ACTIVATIONS)]] = Field(default=("relu",), description="several")
    digits: Annotated[str, Readable(int, "a whole number in digits")] = Field(default="7", description="text")
    seeds: Seeds = Field(default=(0, 1), description="seeds")
    centred: bool = Field(default=True, description="whether")
    limit: Rate | Literal["auto"] = Field(default="auto", description="a member of a union")
    title: str = Field(default="", description="any text")
    rows: Count = Field(default=100, description="rows")
    training: Training = Field(default=Training(), description="training")
    curves: tuple[Curve, ...] = Field(default=(), description="a list of tables")

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        for place, size in enumerate(self.training.batch_sizes):
            if size > self.rows:
                raise refuse(f"training.batch_sizes[{place}]", size, f"at most rows = {self.rows}")
        return self


def reading(tmp_path, text):
    file = tmp_path / "x.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(file, Config)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rates = []", "rates: got []; expected at least 1"),
        ("rates = [0.1, 0]", "rates[1]: got 0; expected a number > 0"),
        ("rates = [0.1, 0.2, 0.3, -1.0]", "rates[3]: got -1.0; expected a number > 0"),
        ("rates = [inf]", "rates[0]: got inf; expected a finite number"),
        ("rates = [nan]", "rates[0]: got nan; expected a finite number"),
        ("rates = [true]", "rates[0]: got true; expected a number"),
        ('rates = ["0.1"]', 'rates[0]: got "0.1"; expected a number'),
        ('rates = ["none"]', 'rates[0]: got "none"; expected a number'),
        ("rates = [0.1, 0.2, 0.1]", "rates[2]: got 0.1; expected distinct values, and [0]"),
        ("rates = 0.1", "rates: got 0.1; expected a list"),
        ("rates = [1e-50]", "rates[0]: got 1e-50; expected a size from 1.18e-38"),
        ("shift = -1e39", "shift: got -1e+39; expected a size from"),
        ("decay = -0.1", "decay: got -0.1; expected a number >= 0"),
        ("decay = inf", "decay: got inf; expected a finite number"),
        ("limit = -1.0", "limit: got -1.0; expected a number > 0"),
        ("curves = [3]", "curves[0]: got 3; expected a table"),
        ("rows = 0", "rows: got 0; expected a number >= 1"),
        ("rows = -3", "rows: got -3; expected a number >= 1"),
        ("rows = 1.0", "rows: got 1.0; expected a whole number"),
        ("rows = true", "rows: got true; expected a whole number"),
        ("rows = 2147483648", "rows: got 2147483648; expected a number <= 2147483647"),
        ("depths = [-1]", "depths[0]: got -1; expected a number >= 0"),
        ("seeds = []", "seeds: got []; expected at least 1"),
        ("seeds = [3, 3]", "seeds[1]: got 3; expected distinct values"),
        ("seeds = [-1]", "seeds[0]: got -1; expected a number >= 0"),
        ("seeds = [4294967296]", "seeds[0]: got 4294967296; expected a number < 4294967296"),
        ('activation = "tahn"', "did you mean 'tanh'?"),
        ('activation = "tahn"', 'activation: got "tahn"; expected one of relu, tanh, sigmoid'),
        ('activations = ["relu", "sigmod"]', 'activations[1]: got "sigmod"; expected one of'),
        ("activations = [1]", "activations[0]: got 1; expected text"),
        ('digits = "7a"', 'digits: got "7a"; expected a whole number in digits; invalid literal for int()'),
        ("centred = 1", "centred: got 1; expected true or false"),
        ('precision = "float16"', 'precision: got "float16"; expected one of float32, float64; did you mean'),
        ("step = 3", "step: unknown key; did you mean 'training.steps'?"),
        ("steps = 3", "steps: unknown key; did you mean 'training.steps'?"),
        ("[training]\nstepz = 3", "training.stepz: unknown key; did you mean 'training.steps'?"),
        ("zzz = 3", "zzz: unknown key; expected one of precision, rates"),
        ("training = 3", "training: got 3; expected a table"),
        ("[training]\nclip = -1", "training.clip: got -1; expected a number > 0"),
        ("[training]\nbatch_sizes = [8, 200]", "training.batch_sizes[1]: got 200; expected at most rows = 100"),
        ("[[curves]]\nexpresion = 'x'", "curves[0].expresion: unknown key; did you mean 'curves.expression'?"),
        ("[[curves]]\nweight = 0", "curves[0].weight: got 0; expected a number > 0"),
        ("when = 2020-01-01", "when: unknown key"),
        ("title = 2020-01-01", "title: got datetime.date(2020, 1, 1); expected text"),
        ("execution.width = -1", "execution.width: got -1; expected a number >= 0"),
    ],
)
def test_a_bad_value_is_refused_by_its_path(tmp_path, text, said):
    with pytest.raises(ConfigError) as refusal:
        reading(tmp_path, text)
    assert str(refusal.value).startswith(f"{tmp_path / 'x.toml'}: ")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rates = [0.1\nrows = 3", "not valid TOML: .*line 2"),
        ("rows = 3\nrows = 4\n", "not valid TOML: .*line 2"),
        (b"title = '\xff'", "byte 9 is not UTF-8"),
        ("", "empty"),
        (" \n\n", "empty"),
        ("rows = " + "[" * 5000, "not valid TOML"),
        ("rows = " + "9" * 5000, "not valid TOML"),
    ],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        reading(tmp_path, text)


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.toml: no such file"):
        read(tmp_path / "nowhere.toml", Config)
    with pytest.raises(ConfigError, match="a directory; give the path"):
        read(tmp_path, Config)


def test_a_file_of_comments_means_the_defaults(tmp_path):
    assert reading(tmp_path, "# nothing differs\n") == Config()
    assert reading(tmp_path, b"\xef\xbb\xbfrows = 77").rows == 77


def test_whole_numbers_stand_for_numbers(tmp_path):
    config = reading(tmp_path, "rates = [1, 0.5]\ndecay = 0")
    assert config.rates == (1.0, 0.5)
    assert isinstance(config.rates[0], float)
    assert isinstance(config.decay, float)


def test_float64_takes_what_float32_cannot(tmp_path):
    assert reading(tmp_path, 'precision = "float64"\nrates = [1e-50]').rates == (1e-50,)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(bound=-math.inf, rates=(1e16, 1e-5, 0.1 + 0.2), precision="float64"),
        Config(title='a "quoted" \\ path\n\t\x00\x7f é 漢 🙂', training=Training(clip=3.0)),
        Config(curves=(Curve(expression="x^2", weight=2.0), Curve(expression="{}"))),
    ],
)
def test_what_is_written_reads_back_equal(tmp_path, config):
    assert reading(tmp_path, write(config)) == config


def test_none_is_written_only_as_a_default(tmp_path):
    class Odd(Section):
        clip: float | None = Field(default=1.0, description="clip")

    with pytest.raises(TypeError, match="clip: TOML cannot write None"):
        write(Odd(clip=None))


def test_configurations_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().rows = 3


def test_every_value_has_a_path():
    found = values(Config())
    assert found["training.batch_sizes"] == (8, 16)
    assert found["execution.strategy"] == "auto"
    assert next(iter(found)) == "precision"


def test_fields_without_description_or_default_are_refused_where_they_are_written():
    with pytest.raises(TypeError, match=r"Bare.width lacks a description"):

        class Bare(Section):
            width: int = 3

    with pytest.raises(TypeError, match=r"Needy.width lacks a default"):

        class Needy(ExperimentConfig):
            width: int = Field(description="width")
