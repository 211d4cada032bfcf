"""Plots: one style, with measurements as bands over seeds and theory as dashed lines over them.

Figures are made without pyplot, so nothing is global. Colours are those of Okabe and Ito, which every common kind
of colour vision tells apart; they are given by position, so that a setting keeps its colour from figure to figure.
"""

import io
import math
import warnings
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "lines.linewidth": 1.6,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "svg.hashsalt": "calcdl",
}


def figure(
    rows: int = 1,
    columns: int = 1,
    *,
    caption: str = "",
    width: float = 7.0,
    height: float | None = None,
    share_x: bool = False,
    share_y: bool = False,
) -> tuple["Figure", "np.ndarray[Any, Any]"]:
    """Return an empty figure in the house style.

    Args:
        rows: panels from top to bottom.
        columns: panels from left to right.
        caption: the sentence under the figure: what to see in it.
        width: inches.
        height: inches; by default 3.2 a row, 4.2 for a single panel.
        share_x: one x range for all panels.
        share_y: one y range for all panels.

    Returns:
        The figure, and its axes as an array [rows, columns].

    >>> panel = figure()[1][0, 0]
    >>> panel.set_xlabel("step").get_text()
    'step'
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        size = (width, height or (4.2 if rows == columns == 1 else 3.2 * rows))
        made = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(made)
        panels = made.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y)
    made.set_label(caption)
    return made, panels


def colour(position: int) -> str:
    """Return the colour of the setting at a position along its axis.

    >>> colour(0) == colour(len(COLOURS))
    True
    """
    return COLOURS[position % len(COLOURS)]


def marker(position: int) -> str:
    """Return the marker of the setting at a position along its axis, for readers without colour."""
    return _MARKERS[position % len(_MARKERS)]


def band(
    axes: "Axes",
    x: ArrayLike,
    samples: Any,
    *,
    over: int | str = -1,
    label: str = "",
    position: int = 0,
    markers: bool = False,
) -> None:
    """Draw the median of samples as a line and their quartiles as a band.

    Samples that are not finite are left out; where there are any, the label says how many are drawn.

    Args:
        axes: where to draw.
        x: abscissae.
        samples: an array, or a labelled one, with the abscissae along one of two axes.
        over: the axis of the samples: its number, or its name in a labelled array.
        label: name in the legend.
        position: position of the setting, which gives its colour.
        markers: mark the points too.
    """
    number = samples.get_axis_num(over) if isinstance(over, str) else over
    table = np.moveaxis(np.asarray(samples, dtype=np.float64), number, -1)
    finite = np.isfinite(table)
    lower, median, upper = _quartiles(np.where(finite, table, np.nan))
    if not finite.all():
        label = f"{label} ({finite.sum():,} of {finite.size:,} finite)".strip()
    shade, mark = colour(position), marker(position) if markers else ""
    x = np.asarray(x)
    axes.plot(x, median, color=shade, label=label or None, marker=mark, markersize=4)
    axes.fill_between(x, lower, upper, color=shade, alpha=0.2, linewidth=0)


def _quartiles(table: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)
        quartiles: np.ndarray = np.nanquantile(table, (0.25, 0.5, 0.75), axis=-1)
    return quartiles


def theory(axes: "Axes", x: ArrayLike, y: ArrayLike, *, label: str = "theory") -> None:
    """Draw a prediction, dashed and black, over the measurements.

    Args:
        axes: where to draw.
        x: abscissae.
        y: predicted values.
        label: name in the legend; "" for every line after the first.
    """
    axes.plot(np.asarray(x), np.asarray(y), "--", color="#000000", linewidth=1.2, label=label or None, zorder=3)


def threshold(axes: "Axes", value: float, label: str = "", *, along: Literal["x", "y"] = "y") -> None:
    """Draw a stated bound as a dotted line across the panel, if it is a finite number."""
    if math.isfinite(value):
        line = axes.axhline if along == "y" else axes.axvline
        line(value, color="#555555", linestyle=":", linewidth=1.2, label=label or None)


def logarithmic(axes: "Axes", which: Literal["x", "y", "xy"] = "y") -> None:
    """Make axes logarithmic, after drawing; an axis without positive values stays linear.

    Args:
        axes: the panel.
        which: "x", "y" or "xy".
    """
    from matplotlib.ticker import FuncFormatter

    smallest = {"x": axes.dataLim.minposx, "y": axes.dataLim.minposy}
    for name in which:
        if math.isfinite(smallest[name]) and np.isfinite(axes.dataLim.get_points()).all():
            (axes.set_xscale if name == "x" else axes.set_yscale)("log")
            lower, upper = axes.get_xlim() if name == "x" else axes.get_ylim()
            if upper < 15 * lower:  # powers of ten alone would leave the axis without numbers
                shown = "123456789" if upper < 3 * lower else "1235"
                plain = FuncFormatter(lambda value, _, shown=shown: f"{value:g}" if f"{value:e}"[0] in shown else "")
                ticks = axes.xaxis if name == "x" else axes.yaxis
                ticks.set_major_formatter(plain)
                ticks.set_minor_formatter(plain)


def finish(
    axes: "Axes",
    *,
    x: str,
    y: str,
    title: str = "",
    legend: Literal["inside", "right", "none"] = "inside",
) -> None:
    """Label a panel, with units in the labels, and say so where there is nothing to see.

    Args:
        axes: the panel.
        x: label of the abscissa, with its unit.
        y: label of the ordinate, with its unit.
        title: what tells this panel from its neighbours.
        legend: where the legend stands; "right" keeps long ones off the data.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title)
        if axes.get_legend_handles_labels()[1] and legend != "none":
            place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if legend == "right" else {"loc": "best"}
            axes.legend(**place)
        if not axes.dataLim.width >= 0:
            axes.text(0.5, 0.5, "nothing finite to draw", transform=axes.transAxes, ha="center")


class Drawing(NamedTuple):
    """A figure, drawn.

    Attributes:
        caption: the sentence under it.
        svg: an SVG file whose text is text.
        png: a PNG file.
    """

    caption: str
    svg: bytes
    png: bytes


def render(name: str, drawn: "Figure") -> Drawing:
    """Draw a figure as files: the same figure gives the same bytes.

    Args:
        name: its name, which stands for a missing caption.
        drawn: the figure.

    Returns:
        The files.
    """
    import matplotlib

    svg, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        # laid out once: laying out again for the second file would shift everything by a hair
        drawn.draw_without_rendering()
        drawn.set_layout_engine("none")
        drawn.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        drawn.savefig(png, format="png", metadata={"Software": None})
    caption = str(drawn.get_label()) or name.replace("_", " ").capitalize()
    return Drawing(caption, svg.getvalue(), png.getvalue())
