import numpy as np
import pytest
import xarray

from calcdl.lab import panels, plots


def made(values, **coordinates):
    return xarray.DataArray(np.asarray(values, float), coords=coordinates, dims=tuple(coordinates))


@pytest.fixture
def runs():
    values = np.random.default_rng(0).normal(size=(5, 2, 3, 4))
    return made(values, activation=list("abcde"), rate=[0.1, 1.0], seed=[0, 1, 2], step=[10, 20, 30, 40])


@pytest.fixture
def status(runs):
    return (runs.isel(step=0, drop=True) * 0).astype(int)


def test_multiples_have_a_panel_a_value_and_a_band_a_value(runs, status):
    figure, drawn = panels.multiples(
        runs, status, across="activation", by="rate", along="step", y="loss (nats)", caption="See.", limits=(-1.0, 2.0)
    )
    assert [axes.get_title(loc="left") for axes in drawn] == list("abcde")
    assert [axes.get_ylabel() for axes in drawn] == ["loss (nats)", "", "", "", "loss (nats)"]
    for axes, name in zip(drawn, "abcde", strict=True):
        for line, rate, position in zip(axes.lines, (0.1, 1.0), (0, 1), strict=True):
            expected = runs.sel(activation=name, rate=rate).median("seed")
            assert line.get_ydata() == pytest.approx(expected.values)
            assert list(line.get_xdata()) == [10, 20, 30, 40]
            assert line.get_color() == plots.colour(position)
        assert axes.get_ylim() == (-1.0, 2.0)
    assert [axes.get_visible() for axes in figure.axes] == [True] * 5 + [False] * 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0.1", "1"]
    assert figure.get_label() == "See."


def test_lost_runs_are_neither_drawn_nor_passed_over_in_silence(runs, status):
    status[0, 0, 0], status[1] = 1, 2
    runs[0, 0, 0] = 1e9
    _, drawn = panels.multiples(runs, status, across="activation", by="rate", along="step", y="y", caption="")
    assert [axes.get_title(loc="left") for axes in drawn[:3]] == ["a (5 of 6 runs)", "b (0 of 6 runs)", "c"]
    assert max(drawn[0].lines[0].get_ydata()) < 10
    assert not drawn[1].lines


def test_panels_of_numbers_say_what_they_number(runs, status):
    _, drawn = panels.multiples(
        runs, status, across="rate", by="activation", along="step", y="y", caption="", columns=1
    )
    assert [axes.get_title(loc="left") for axes in drawn] == ["rate 0.1", "rate 1"]
    assert [axes.get_ylabel() for axes in drawn] == ["y", "y"]


def test_a_status_may_lack_the_dimension_of_the_panels(runs, status):
    by_layer = xarray.concat([runs, runs + 1], "layer").assign_coords(layer=[1, 2])
    one = by_layer.sel(activation="a")
    _, drawn = panels.multiples(
        one, status.sel(activation="a"), across="layer", by="rate", along="step", y="y", caption="", logarithmic=True
    )
    assert [axes.get_title(loc="left") for axes in drawn] == ["layer 1", "layer 2"]
    assert drawn[0].get_yscale() == "log"


def test_a_median_needs_half_of_the_runs():
    values = made([[1.0, 2.0, 9.0, np.nan], [1.0, 2.0, np.nan, np.nan], [5.0, np.nan, np.nan, np.nan]], x=[0, 1, 2],
                  seed=range(4))  # fmt: skip
    assert panels.median(values, values.notnull()).values == pytest.approx([2.0, 1.5, np.nan], nan_ok=True)


def test_a_median_of_nothing_warns_of_nothing():
    values = made([[np.nan, np.nan]], x=[0], seed=[0, 1])
    assert np.isnan(panels.median(values, values.notnull())).all()


def test_a_table_tells_medians_and_counts():
    values = made(
        [[[0.2, 0.4], [1.0, 8.0]], [[0.9, 0.9], [0.0, 0.0]]], activation=["a", "b"], rate=[0.1, 1.0], seed=[0, 1]
    )
    good = made([[[1, 1], [1, 0]], [[1, 1], [0, 0]]], **values.coords).astype(bool)
    figure, drawn = plots.figure()
    axes = drawn[0, 0]
    panels.table(axes, values, good, form="{:.2f}", title="accuracy", limits=(0.0, 1.0))
    told = {tuple(text.get_position()): (text.get_text(), text.get_color()) for text in axes.texts}
    assert told == {
        (0, 0): ("0.30", "black"),
        (1, 0): ("1.00 (1/2)", "white"),
        (0, 1): ("0.90", "white"),
        (1, 1): ("(0/2)", "black"),
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_xlabel() == "rate"
    plots.render("table", figure)


def test_limits_of_a_table_may_fall():
    values = made([[[10.0], [300.0]]], activation=["a"], rate=[0.1, 1.0], seed=[0])
    _, drawn = plots.figure()
    panels.table(drawn[0, 0], values, values > 0, form="{:.0f}", title="steps", limits=(300.0, 0.0))
    assert [text.get_color() for text in drawn[0, 0].texts] == ["white", "black"]


@pytest.mark.parametrize(
    ("count", "columns", "shape"), [(1, 4, (1, 1)), (4, 4, (1, 4)), (5, 4, (2, 4)), (3, 2, (2, 2))]
)
def test_a_grid_is_no_wider_than_it_must_be(count, columns, shape):
    figure, drawn = panels.grid(count, columns, caption="")
    assert len(drawn) == count
    assert drawn[0].get_subplotspec().get_gridspec().get_geometry() == shape
    assert sum(axes.get_visible() for axes in figure.axes) == count


def test_a_legend_has_the_colours_of_its_positions():
    figure, _ = panels.grid(1, caption="")
    panels.legend(figure, ["one", "two"], "which", markers=True)
    lines = figure.legends[0].get_lines()
    assert [line.get_color() for line in lines] == [plots.colour(0), plots.colour(1)]
    assert [line.get_marker() for line in lines] == [plots.marker(0), plots.marker(1)]


def test_sixty_four_settings_look_different():
    looks = {tuple(panels.look(position).values()) for position in range(64)}
    assert len(looks) == 64
    assert panels.look(3) == {"color": plots.colour(3), "marker": plots.marker(3)}
