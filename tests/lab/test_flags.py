from typing import Annotated

import pytest
from pydantic import Field

from calcdl.lab.config import AxisOf, ConfigError, Count, ExperimentConfig, OneOf, Rate, Section, Seeds, write
from calcdl.lab.flags import Options, configure, parse


class Training(Section):
    steps: Count = Field(default=50, description="steps of descent")
    clip: Rate | None = Field(default=None, description="largest gradient norm")


class Config(ExperimentConfig):
    rates: AxisOf[Rate] = Field(default=(0.1, 0.2), description="learning rates")
    activation: Annotated[str, OneOf(("relu", "tanh"))] = Field(default="relu", description="the nonlinearity")
    seeds: Seeds = Field(default=tuple(range(20)), description="seeds")
    centred: bool = Field(default=True, description="whether to centre")
    title: str = Field(default="", description="any text")
    pairs: tuple[tuple[float, float], ...] = Field(default=(), description="only in a file")
    training: Training = Field(default=Training(), description="training")


def reading(*arguments):
    command = parse(Config, arguments, program="python -m x", doc="A question?")
    return configure(Config, command.file, command.flags), command


def test_flags_lie_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("rates = [1, 2]\ntitle = 'a'\n[training]\nsteps = 7\n")
    config, command = reading(
        str(file), "--training.steps", "9", "--seeds", "3", "1", "--centred", "false", "--title=1"
    )
    assert command.file == file
    assert config == Config(rates=(1.0, 2.0), title="1", seeds=(3, 1), centred=False, training=Training(steps=9))


def test_flags_may_follow_or_lack_a_file_and_use_dashes():
    config, _ = reading("--training.clip", "0.5", "--rates=0.3")
    assert (config.training.clip, config.rates) == (0.5, (0.3,))
    assert reading("--training.clip", "none")[0] == Config()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--rates nan", "--rates[0]: got nan; expected a finite number"),
        ("--rates inf", "--rates[0]: got inf; expected a finite number"),
        ("--rates 0.1 -1", "--rates[1]: got -1; expected a number > 0"),
        ("--rates 0", "--rates[0]: got 0; expected a number > 0"),
        ("--rates", "--rates: got []; expected at least 1"),
        ("--rates none", '--rates[0]: got "none"; expected a number'),
        ("--rates 0.1 0.1", "--rates[1]: got 0.1; expected distinct values"),
        ("--rates 0.1 x.toml", '--rates[1]: got "x.toml"; expected a number'),
        ("--seeds 1 -1", "--seeds[1]: got -1; expected a number >= 0"),
        ("--training.steps 1.5", "--training.steps: got 1.5; expected a whole number"),
        ("--training.steps True", '--training.steps: got "True"; expected a whole number'),
        ("--training.steps", "--training.steps: got no value; expected one value"),
        ("--training.steps 1 2", "--training.steps: got 1 2; expected one value"),
        ("--centred yes", '--centred: got "yes"; expected true or false'),
        ("--activation tahn", "expected one of relu, tanh; did you mean 'tanh'?"),
        ("--training.step 1", "--training.step: unknown flag; did you mean '--training.steps'?"),
        ("--steps 1", "--steps: unknown flag; did you mean '--training.steps'?"),
        ("--training 1", "--training: unknown flag"),
        ("--resum x", "--resum: unknown flag; did you mean '--resume'?"),
        ("--no-dry-run", "--no_dry_run: unknown flag; did you mean '--dry_run'?"),
        ("-x", "--x: unknown flag; expected one of --precision"),
        ("--pairs 1 2", "--pairs: unknown flag"),
        ("a.toml b.toml", "b.toml: a second CONFIG.toml"),
        ("nowhere.toml", "nowhere.toml: no such file"),
        ("--resume", "--resume: got no value; expected DIR"),
        ("--shard 0/2", "--shard: got 0/2; expected I/N"),
        ("--shard 3/2", "--shard: got 3/2; expected I/N"),
        ("--shard two", "--shard: got two; expected I/N"),
        ("--report a --resume b", "--report: cannot go with --resume"),
        ("--publish --shard 1/2", "--publish: cannot go with --shard"),
    ],
)
def test_a_bad_word_is_refused_in_one_line(words, said, capsys):
    with pytest.raises(ConfigError) as refusal:
        reading(*words.split())
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert capsys.readouterr() == ("", "")


def test_options_are_read_apart_from_the_configuration(tmp_path):
    config, command = reading("--dry-run", "--runs", "there", "--shard", "2/3", "--quiet", "--debug")
    assert config == Config()
    assert command.options == Options(
        dry_run=True, runs=tmp_path.__class__("there"), shard=(2, 3), quiet=True, debug=True
    )
    assert reading()[1].options == Options()


def test_help_shows_the_values_of_the_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "x.toml"
    file.write_text("rates = [0.25]\n[training]\nsteps = 77\n")
    assert parse(Config, [str(file), "--help"], program="python -m x", doc="A question?").helped
    said = capsys.readouterr().out
    for part in ("python -m x", "A question?", "(default: 77)", "(default: 0.25)", "steps of descent", "relu|tanh"):
        assert part in said
    assert "(default: 0 1 2 ... 19, 20 values)" in said
    assert "pairs" not in said


def test_help_for_a_bad_file_is_refused(tmp_path):
    (tmp_path / "x.toml").write_text("rates = [0]")
    with pytest.raises(ConfigError, match="got 0; expected a number > 0"):
        reading(str(tmp_path / "x.toml"), "--help")


def test_a_value_in_the_place_of_a_table_is_refused_with_its_file(tmp_path):
    (tmp_path / "x.toml").write_text("training = 3")
    with pytest.raises(ConfigError, match=r"x.toml: training: got 3; expected a table"):
        reading(str(tmp_path / "x.toml"), "--training.steps", "3")


def test_a_setting_may_not_be_named_like_an_option():
    class Clash(ExperimentConfig):
        runs: Count = Field(default=3, description="how many")

    with pytest.raises(TypeError, match=r"Clash.runs: the name of a flag of the laboratory"):
        parse(Clash, [], program="x", doc="")


def test_every_value_survives_the_round_through_flags(tmp_path):
    written = reading("--rates", "1e-05", "3e+16", "--title", "-")[0]
    (tmp_path / "y.toml").write_text(write(written))
    assert reading(str(tmp_path / "y.toml"))[0] == written
