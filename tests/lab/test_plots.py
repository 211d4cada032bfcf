import matplotlib
import numpy as np
import pytest
import xarray

from calcdl.lab import plots


def line(axes, number=0):
    return axes.lines[number].get_ydata()


def test_a_band_is_median_and_quartiles():
    panel = plots.figure()[1][0, 0]
    samples = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 20.0, 30.0, 40.0, 50.0]])
    plots.band(panel, [0, 1], samples, label="a")
    np.testing.assert_array_equal(line(panel), [3.0, 30.0])
    corners = panel.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in corners} >= {(0.0, 2.0), (0.0, 4.0), (1.0, 20.0), (1.0, 40.0)}
    assert panel.lines[0].get_label() == "a"


def test_what_is_not_finite_is_left_out_and_counted():
    panel = plots.figure()[1][0, 0]
    plots.band(panel, [0, 1], [[1.0, 3.0, np.nan], [np.inf, 5.0, 7.0]], label="a")
    np.testing.assert_array_equal(line(panel), [2.0, 6.0])
    assert panel.lines[0].get_label() == "a (4 of 6 finite)"


@pytest.mark.parametrize("order", [("x", "seed"), ("seed", "x")])
def test_a_labelled_array_is_summarised_over_a_name(order):
    panel = plots.figure()[1][0, 0]
    samples = xarray.DataArray([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]], dims=("x", "seed")).transpose(*order)
    plots.band(panel, [0, 1], samples, over="seed")
    np.testing.assert_array_equal(line(panel), [2.0, 4.0])


def test_theory_is_dashed_and_bounds_are_dotted():
    panel = plots.figure()[1][0, 0]
    plots.theory(panel, [0, 1], [1, 2])
    plots.threshold(panel, 1.5, "bound")
    plots.threshold(panel, float("nan"), "no bound")
    assert [drawn.get_linestyle() for drawn in panel.lines] == ["--", ":"]


def test_axes_are_logarithmic_only_where_something_is_positive():
    panels = plots.figure(1, 3)[1][0]
    plots.theory(panels[0], [1, 2], [1, 10])
    plots.theory(panels[1], [1, 2], [-1, 0])
    for panel in panels:
        plots.logarithmic(panel, "xy")
    assert [panel.get_yscale() for panel in panels] == ["log", "linear", "linear"]
    assert [panel.get_xscale() for panel in panels] == ["log", "log", "linear"]


def test_nothing_finite_is_said_instead_of_drawn():
    figure, panels = plots.figure()
    plots.band(panels[0, 0], [0, 1], np.full((2, 3), np.nan), label="a")
    plots.logarithmic(panels[0, 0])
    plots.finish(panels[0, 0], x="step", y="loss", legend="right")
    drawing = plots.render("empty", figure)
    assert b"nothing finite to draw" in drawing.svg
    assert b"a (0 of 6 finite)" in drawing.svg


def test_the_same_figure_gives_the_same_files_with_text_as_text():
    def draw():
        figure, panels = plots.figure(1, 2, caption="What to see.")
        for panel in panels[0]:
            plots.band(panel, [1, 2, 3], np.arange(12.0).reshape(3, 4), label="relu", markers=True)
            plots.logarithmic(panel)
            plots.finish(panel, x="step", y="loss", title="a title", legend="right")
        return figure

    figure = draw()
    drawing = plots.render("loss_curves", figure)
    assert plots.render("loss_curves", figure) == drawing == plots.render("loss_curves", draw())
    assert drawing.png.startswith(b"\x89PNG")
    assert b">a title</text>" in drawing.svg
    assert b"<dc:date>" not in drawing.svg
    assert drawing.caption == "What to see."
    assert plots.render("loss_curves", plots.figure()[0]).caption == "Loss curves"


def test_no_setting_of_matplotlib_changes():
    before = dict(matplotlib.rcParams)
    figure, panels = plots.figure(2, 1, share_x=True)
    plots.finish(panels[0, 0], x="x", y="y")
    plots.render("x", figure)
    assert dict(matplotlib.rcParams) == before


def test_colours_and_markers_go_by_position():
    assert len(set(plots.COLOURS)) == len(plots.COLOURS)
    assert plots.colour(1) == plots.colour(1 + len(plots.COLOURS))
    assert plots.marker(0) != plots.marker(1)
