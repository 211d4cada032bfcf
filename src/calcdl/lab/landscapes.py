"""Landscapes: functions of two variables as filled contours and as surfaces, with the paths taken on them.

Levels are quantiles of what is shown, so that a steep wall leaves the valley its contours.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from calcdl.lab import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Function = Callable[[np.ndarray], Any]

_LEVELS, _FIRST, _MARKS, _STEEP, _POINTS = 16, 50, 300, 1e5, 121


def grid(count: int, columns: int, *, side: float, caption: str) -> tuple["Figure", list["Axes"]]:
    """Return a figure of panels with ranges of their own, and its panels in reading order.

    Args:
        count: how many panels.
        columns: most panels in a row.
        side: inches of a panel.
        caption: the sentence under the figure.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    width, height = 0.6 + side * columns, 0.6 + side * rows
    figure, panels = plots.figure(rows, columns, caption=caption, width=width, height=height)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    return figure, list(panels.flat[:count])


def square(points: np.ndarray, *, margin: float = 0.3, count: int = _POINTS) -> np.ndarray:
    """Return a square mesh about some points.

    Args:
        points: what must be inside, one pair a row.
        margin: how much further it reaches on every side, as a share of the side.
        count: points along a side.

    Returns:
        The mesh, first and second coordinates of its points [2, count, count].

    >>> square(np.array([[0.0, 0.0], [2.0, 1.0]]), margin=0.5, count=3)[1, :, 0].tolist()
    [-1.5, 0.5, 2.5]
    """
    lower, upper = points.min(axis=0), points.max(axis=0)
    half, middle = (0.5 + margin) * max(*(upper - lower), 1e-3), (lower + upper) / 2
    return np.stack(np.meshgrid(*(np.linspace(centre - half, centre + half, count) for centre in middle)))


def plane(
    axes: "Axes", function: Function, paths: Sequence[np.ndarray], *, gradient: Function | None = None,
    goals: Sequence[np.ndarray] = (), mesh: np.ndarray | None = None, first: int = 1,
) -> None:  # fmt: skip
    """Draw paths from white dots over filled contours, dark where the function is low.

    Args:
        axes: where to draw.
        function: takes points [2, ...] and returns the values there, finite.
        paths: one pair a row each; their colours follow their order.
        gradient: takes points [2, count] and returns the gradients there [2, count]; where it is given arrows show
            the negative gradient, the longest a tenth of the panel and others by the fourth root of their length.
        goals: points to mark by a star.
        mesh: what to show, by default a `square` about the paths and goals.
        first: position of the first path, which gives its colour.
    """
    from matplotlib.colors import BoundaryNorm

    x, y = mesh = square(np.concatenate([*paths, *(goal[None] for goal in goals)])) if mesh is None else mesh
    value = np.asarray(function(mesh))
    levels = np.unique(np.quantile(value, np.linspace(0, 1, _LEVELS)))
    if len(levels) > 2:
        # Flat colours as pixels, lines as every second point has them: all as outlines is a file of a megabyte.
        axes.set_rasterization_zorder(0)
        colours = BoundaryNorm(levels, 256)
        axes.contourf(x, y, value, levels=levels, cmap="viridis", norm=colours, antialiased=False, zorder=-1)
        some = np.s_[::2, ::2]
        axes.contour(x[some], y[some], value[some], levels=levels, colors="white", linewidths=0.4, alpha=0.6)
    if gradient is not None:
        every = x.shape[0] // 10
        points = mesh[:, every // 2 :: every, every // 2 :: every].reshape(2, -1)
        arrows = -np.asarray(gradient(points))
        size = np.linalg.norm(arrows, axis=0)
        arrows = arrows / np.where(size == 0, 1, size) * (size / max(size.max(), 1e-300)) ** 0.25 * 0.09 * np.ptp(x)
        axes.quiver(*points, *arrows, color="white", alpha=0.85, angles="xy", scale_units="xy", scale=1, width=0.004)
    for position, path in enumerate(paths):
        shown = _thinned(path)
        axes.plot(*shown.T, ".-", color=plots.colour(first + position), linewidth=1.2, markersize=5)
        axes.plot(*path[0], "o", color="white", markeredgecolor="black", zorder=4)
    for goal in goals:
        axes.plot(*goal, "*", color="#F0E442", markeredgecolor="black", markersize=12, zorder=4)
    axes.grid(False)
    axes.set_aspect("equal")
    axes.set_xlim(x.min(), x.max())
    axes.set_ylim(y.min(), y.max())


def surface(panel: "Axes", function: Function, path: np.ndarray, *, title: str) -> None:
    """Replace a panel by a surface with a path on it, its height as a logarithm where it spans 1e5 or more.

    Args:
        panel: the flat panel, which is removed.
        function: takes points [2, ...] and returns the values there, finite.
        path: one pair a row.
        title: what tells this panel from its neighbours.
    """
    figure: Any = panel.get_figure()
    place = panel.get_subplotspec()
    panel.remove()
    axes = figure.add_subplot(place, projection="3d", computed_zorder=False)
    mesh, shown = square(path), _thinned(path)
    value, height = np.asarray(function(mesh)), np.asarray(function(shown.T))
    least = min(value.min(), height.min())
    if steep := np.ptp(value) > _STEEP:
        value, height = np.log1p(value - least), np.log1p(height - least)
    axes.plot_surface(*mesh, value, cmap="viridis", alpha=0.75, linewidth=0, zorder=1, rcount=40, ccount=40)
    axes.plot(*shown.T, height, ".-", color=plots.colour(1), linewidth=1.2, markersize=4, zorder=2)
    axes.view_init(elev=48, azim=-60)
    axes.set(xlabel="x", ylabel="y", title=title + ("\n(height: logarithm)" if steep else ""))


def _thinned(path: np.ndarray) -> np.ndarray:
    """Return a long path without most of its later points: its first steps are the long ones."""
    late = path[_FIRST :: max(1, len(path) // _MARKS)]
    return np.concatenate([path[:_FIRST], late, path[-1:]]) if len(path) > _MARKS else path
