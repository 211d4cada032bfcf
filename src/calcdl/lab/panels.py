"""Panels: figures of many settings, laid out by the axes of a study.

`multiples` draws a panel a value of one axis and a band a value of another; `table` writes one number a setting where a
reader wants the numbers. Both show only runs that ended and say how many did not.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from calcdl.lab import plots

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DARK = 0.6


def multiples(
    values: "xarray.DataArray",
    status: "xarray.DataArray",
    *,
    across: str,
    by: str,
    along: str,
    y: str,
    caption: str,
    over: str = "seed",
    columns: int = 4,
    limits: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> tuple["Figure", list["Axes"]]:
    """Draw small multiples: a panel for each value of one axis, in it a band for each value of another.

    Args:
        values: what was measured, with the four dimensions named here.
        status: status of every run; of runs whose status is not 0 nothing is drawn, and the panel's title counts them.
        across: dimension whose values are the panels.
        by: dimension whose values are the bands, the same colours in all panels.
        along: dimension that is the abscissa, with its coordinate.
        y: label of the ordinate, with its unit.
        caption: the sentence under the figure.
        over: dimension of the runs.
        columns: most panels in a row.
        limits: ends of the ordinate, by default those of the data.
        logarithmic: whether the ordinate is logarithmic.

    Returns:
        The figure, and its panels in the order of `across`.
    """
    places, names = values[across].values, [_word(value) for value in values[by].values]
    figure, panels = grid(len(places), columns, caption=caption)
    for number, (axes, place) in enumerate(zip(panels, places, strict=True)):
        chosen, states = (one.sel({across: place}) if across in one.dims else one for one in (values, status))
        for position, value in enumerate(values[by].values):
            ok = states.sel({by: value}) == 0 if by in states.dims else states == 0
            samples = chosen.sel({by: value}).isel({over: np.flatnonzero(ok)})
            if samples.sizes[over]:
                plots.band(axes, values[along], samples, over=over, label=names[position], position=position)
        if logarithmic:
            plots.logarithmic(axes)
        lost = f" ({int((states == 0).sum())} of {states.size} runs)" if (states != 0).any() else ""
        left = y if number % columns == 0 else ""
        title = str(place) if values[across].dtype.kind in "OUT" else f"{across.replace('_', ' ')} {_word(place)}"
        plots.finish(axes, x=along.replace("_", " "), y=left, title=f"{title}{lost}", legend="none")
    if limits is not None:
        panels[0].set_ylim(*limits)
    legend(figure, names, title=by.replace("_", " "))
    return figure, panels


def grid(count: int, columns: int = 4, *, caption: str) -> tuple["Figure", list["Axes"]]:
    """Return a figure of equal panels with one y range, and its panels in reading order.

    Args:
        count: how many panels.
        columns: most panels in a row.
        caption: the sentence under the figure.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    width, height = 1.9 + 2.5 * columns, 0.5 + 2.3 * rows
    figure, panels = plots.figure(rows, columns, share_y=True, caption=caption, width=width, height=height)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    return figure, list(panels.flat[:count])


def legend(figure: "Figure", names: Sequence[str], title: str, *, markers: bool = False) -> None:
    """Write one legend for all panels, beside them.

    Args:
        figure: where to write.
        names: names in the order of their colours.
        title: what they are.
        markers: show them with their `look`, markers included.
    """
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], label=name, **(look(position) if markers else {"color": plots.colour(position)}))
        for position, name in enumerate(names)
    ]
    figure.legend(handles=lines, loc="outside right upper", title=title, frameon=False, fontsize="small")


def look(position: int) -> dict[str, Any]:
    """Return colour and marker of the setting at a position along its axis, a pair of its own for each of 64."""
    return {"color": plots.colour(position), "marker": plots.marker(position + position // len(plots.COLOURS))}


def median(values: "xarray.DataArray", good: "xarray.DataArray", over: str = "seed") -> "xarray.DataArray":
    """Return the median over the runs that are good, NaN where fewer than half of them are.

    Args:
        values: one number a run.
        good: which runs count.
        over: dimension of the runs.
    """
    return values.where(good).median(over).where(good.mean(over) >= 0.5)


def table(
    axes: "Axes",
    values: "xarray.DataArray",
    good: "xarray.DataArray",
    *,
    form: str,
    title: str,
    limits: tuple[float, float],
    over: str = "seed",
) -> None:
    """Write the `median` of every setting in a cell, on a shade that tells it, with the count where not all are good.

    Args:
        axes: where to draw.
        values: one number a run: rows, columns and runs.
        good: which runs count.
        form: how a number is written, such as "{:.2f}".
        title: what the numbers are, with their unit.
        limits: the numbers that are white and darkest, in either order.
        over: dimension of the runs.
    """
    middle, counts, total = median(values, good, over), good.sum(over), good.sizes[over]
    row_names, column_names = (middle[dimension].values for dimension in middle.dims)
    shades = (middle.where(np.isfinite(middle)).values - limits[0]) / (limits[1] - limits[0])
    axes.imshow(shades, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(column_names)), [_word(name) for name in column_names])
    axes.set_yticks(range(len(row_names)), [_word(name) for name in row_names])
    axes.tick_params(length=0)
    counted = counts.transpose(*middle.dims).values
    told = {}
    for cell, value in np.ndenumerate(middle.values):
        number = form.format(value) if np.isfinite(value) else ""
        told[cell] = f"{number} ({counted[cell]}/{total})".lstrip() if counted[cell] < total else number
    # A letter is half as wide as high, and about 280 points are left for the cells of a row.
    size = min(8.5, 560 / (len(column_names) * max(map(len, told.values()))))
    for cell, text in told.items():
        ink = "white" if shades[cell] > _DARK else "black"
        axes.text(cell[1], cell[0], text, ha="center", va="center", color=ink, fontsize=size)
    plots.finish(axes, x=str(middle.dims[1]).replace("_", " "), y="", title=title, legend="none")


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
