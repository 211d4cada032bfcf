import pytest

from calcdl.lab.cli import main


@pytest.fixture
def refused(capsys, tmp_path):
    """Start an experiment with flags that it must refuse, in one line and with exit code 2; return the line."""

    def line(experiment, flags):
        assert main(experiment, ["--runs", str(tmp_path / "runs"), *flags]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return line
