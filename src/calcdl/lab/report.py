"""Report: the one page that a run leaves, which opens from disk and needs nothing else."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calcdl.lab.config import ExperimentConfig, fields, values, write
from calcdl.lab.plots import Drawing
from calcdl.lab.prose import prose
from calcdl.lab.toml import show
from calcdl.types import Verdict

if TYPE_CHECKING:
    from calcdl.lab.session import Counts

_TEMPLATE = Path(__file__).with_name("report.html")


def page(
    name: str,
    doc: str,
    config: ExperimentConfig,
    *,
    verdicts: Sequence[Verdict],
    counts: Mapping[str, "Counts"],
    figures: Mapping[str, Drawing],
    environment: Mapping[str, Any],
) -> str:
    """Return the page of a run as one HTML file.

    Args:
        name: the experiment.
        doc: its docstring: the question on the first line, the mathematics and the claim below.
        config: what ran.
        verdicts: what came of the claims.
        counts: what came of the lanes, by study.
        figures: drawn figures by name, in order.
        environment: what it ran on.

    Returns:
        HTML with the figures in it.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    title, _, body = doc.strip().partition("\n")
    descriptions = {path: field.description for path, field in fields(type(config))}
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        title=title,
        body=Markup(prose(body)),
        verdicts=[{**verdict._asdict(), "value": number(verdict.value), "threshold": number(verdict.threshold)}
                  for verdict in verdicts],
        counts=counts,
        figures=[(key, drawing.caption, Markup(_inline(drawing.svg.decode()))) for key, drawing in figures.items()],
        settings=[(path, show(value), descriptions[path]) for path, value in values(config).items()],
        environment=[*_rows(environment)],
        toml=write(config),
    )  # fmt: skip


def number(value: float) -> str:
    """Return a number short enough for a table.

    >>> number(0.00123456), number(64.0), number(float("nan"))
    ('0.001235', '64', 'nan')
    """
    return f"{value:.4g}"


def _inline(svg: str) -> str:
    """Return an SVG file without the header that only a file of its own needs."""
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def _rows(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _rows(value, f"{prefix}{key} ")
        else:
            rows.append((f"{prefix}{key}", show(value) if isinstance(value, list) else str(value)))
    return rows
