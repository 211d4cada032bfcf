import numpy as np
import pytest

from calcdl.lab import landscapes, plots

PATH = np.array([[2.0, 1.0], [1.0, 0.5], [0.0, 0.0]])


def bowl(points):
    return points[0] ** 2 + 3 * points[1] ** 2


def slope(points):
    return np.stack([2 * points[0], 6 * points[1]])


def test_a_square_holds_its_points_and_is_square():
    mesh = landscapes.square(PATH, margin=0.25, count=5)
    assert mesh.shape == (2, 5, 5)
    assert np.ptp(mesh[0]) == np.ptp(mesh[1]) == 3.0
    assert mesh[0].min() == -0.5
    assert np.isfinite(landscapes.square(np.zeros((1, 2)))).all()


def test_a_plane_shows_paths_goals_and_arrows_downhill():
    figure, (axes, hidden) = landscapes.grid(2, 2, side=3.0, caption="one")
    landscapes.plane(axes, bowl, [PATH, PATH / 2], gradient=slope, goals=[np.zeros(2)])
    assert figure.get_label() == "one"
    drawn = [line.get_xydata() for line in axes.get_lines()]
    assert any(len(line) == 3 and (line == PATH).all() for line in drawn)
    arrows = next(one for one in axes.collections if hasattr(one, "U"))
    points = arrows.get_offsets()
    assert (arrows.U * points[:, 0] <= 0).all()
    assert (arrows.V * points[:, 1] <= 0).all()
    # A constant has no levels and no slope, and is drawn all the same.
    landscapes.plane(hidden, lambda points: 0 * points[0], [PATH], gradient=lambda points: 0 * points)
    assert plots.render("x", figure).png


def test_a_grid_hides_what_is_left_over():
    _, panels = landscapes.grid(5, 3, side=2.0, caption="")
    assert len(panels) == 5
    assert [axes.get_visible() for axes in panels[0].get_figure().axes] == [True] * 5 + [False]


@pytest.mark.parametrize(("scale", "said"), [(1.0, "bowl"), (1e9, "bowl\n(height: logarithm)")])
def test_a_surface_says_when_its_height_is_a_logarithm(scale, said):
    figure, (axes,) = landscapes.grid(1, 1, side=3.0, caption="")
    landscapes.surface(axes, lambda points: scale * bowl(points), PATH, title="bowl")
    assert [one.get_title() for one in figure.axes] == [said]
