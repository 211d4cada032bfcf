"""Publish: the small part of a run that is kept in git, beside the notebook page written by hand."""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from calcdl.lab.config import ConfigError
from calcdl.lab.files import storage, to_json, write
from calcdl.lab.plots import Drawing
from calcdl.lab.report import number
from calcdl.types import Verdict

_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"
_FIGURES = 2


def folder(name: str) -> Path:
    """Return the notebook folder of an experiment in the current directory.

    Raises:
        ConfigError: it is not there.
    """
    found = Path("experiments") / name
    if not found.is_dir():
        raise ConfigError(f"--publish: no folder {found} here; call from the root of the repository")
    return found


def publish(name: str, verdicts: Sequence[Verdict], figures: Mapping[str, Drawing]) -> tuple[Path, str]:
    """Write the numbers, the first figures and the results block of the README.

    Args:
        name: the experiment.
        verdicts: what came of its claims.
        figures: its drawn figures; the first two are kept.

    Returns:
        The folder, and a remark if the README has no place for results.

    Raises:
        ConfigError: the folder is not there.
        StorageError: a file cannot be written.
    """
    place = folder(name)
    kept = dict(islice(figures.items(), _FIGURES))
    numbers = [
        {"claim": one.claim, "holds": one.holds, "value": one.value, "threshold": one.threshold} for one in verdicts
    ]
    with storage(place, "make it writable"):
        write(place / "reference.json", to_json(numbers))
        for key, drawing in kept.items():
            write(place / f"{key}.svg", drawing.svg)
        readme = place / "README.md"
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        pattern = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
        if not pattern.search(text):
            return place, f"{readme} has no lines {_BEGIN} and {_END}; its results were left alone"
        write(readme, pattern.sub(lambda _: _block(verdicts, kept), text, count=1).encode())
    return place, ""


def _block(verdicts: Sequence[Verdict], figures: Mapping[str, Drawing]) -> str:
    lines = [_BEGIN, "| claim | verdict | measured | bound |", "|---|---|---|---|"]
    for one in verdicts:
        word = "holds" if one.holds else "**does not hold**"
        claim = one.claim.replace("|", "\\|")
        lines.append(f"| {claim} | {word} | {number(one.value)} | {number(one.threshold)} |")
    for key, drawing in figures.items():
        lines += ["", f"![{drawing.caption}]({key}.svg)", "", f"*{drawing.caption}*"]
    return "\n".join([*lines, _END])
