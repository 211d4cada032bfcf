import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import study
from calcdl.experiments import constrained
from calcdl.experiments.constrained import BOOK, Config, check, measure, show
from calcdl.lab.config import ConfigError, build, read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "constrained.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "constrained.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 11
    assert all(verdict.holds for verdict in verdicts), verdicts


@pytest.mark.parametrize(
    ("name", "change", "claim"),
    [
        ("plane_kkt", lambda x: x + 1e-7, "grad f is the sum"),
        ("plane_point", lambda x: x + 1e-7, "x + y: point"),
        ("plane_multipliers", lambda x: x - 1e-7, "x + y: multiplier"),
        ("plane_expected", lambda x: x / 1.1, "a round shrinks the error"),
        ("plane_slope", lambda x: -x, "differentiated through the conditions"),
        ("plane_difference", lambda x: x + 1e-3, "by the quotient of differences"),
        ("book_value_error", lambda x: x + 1e-7, "least value known in closed form"),
        ("book_violation", lambda x: x + 1e-7, "no constraint is violated"),
        ("book_price_error", lambda x: x + 1e-4, "multipliers known in closed form"),
        ("dice_kkt", lambda x: x + 1e-6, "greatest entropy"),
        ("simplex_kkt", lambda x: x + 1e-6, "are the nearest"),
        ("plane_ended", lambda x: x + 1, "every run says"),
    ],
)
def test_what_contradicts_a_claim_is_noticed(config, results, name, change, claim):
    changed = results[name].copy(data=change(results[name].values))
    verdicts = check(config, results.assign({name: changed}))
    assert [verdict.claim for verdict in verdicts if claim in verdict.claim and not verdict.holds]


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["multipliers", "rounds", "uses"]
    assert all(figure.axes and figure.get_label() for figure in figures.values())


def test_the_price_of_the_circle_is_its_closed_form(results):
    # On x^2 + y^2 = 2 + b with x = -1/2 the least value is -1/2 - sqrt(7/4 + b).
    shifted = study.part(results, "plane").isel(penalty=0)
    height = np.sqrt(1.75 + shifted["shift"])
    np.testing.assert_allclose(shifted.value, -0.5 - height, rtol=1e-12)
    np.testing.assert_allclose(shifted.multipliers[:, 0], -1 / (2 * height), rtol=1e-10)


@pytest.mark.parametrize("name", BOOK)
def test_problems_become_tables_that_say_the_same(name):
    known = BOOK[name]
    curved, slopes, levels, lower, _, solution, prices = constrained.read_known(known)
    point = np.array([0.3, -0.7, 1.1, 0.4])
    used = np.arange(4) < len(known.solution)
    parts = levels + slopes @ point + (curved @ point) @ point / 2
    texts = (known.objective, *known.inequality)
    exact = [float(constrained.parse(text, constrained.VARIABLES)(*jnp.asarray(point))) for text in texts]
    exact[0] += (point[~used] ** 2).sum()
    np.testing.assert_allclose(parts[: len(exact)], exact, rtol=1e-13)
    np.testing.assert_array_equal(np.isfinite(lower), used & np.isfinite(known.lower))
    at = levels + slopes @ solution + (curved @ solution) @ solution / 2
    assert (at[1:] > -1e-12).all()
    np.testing.assert_allclose(prices * at[1:], 0, atol=1e-12)


def test_factors_are_read_off_above_rounding(results):
    rounds = study.part(results, "plane").sel(shift=0)
    number = rounds["round"] + 0 * rounds.penalty
    prices = rounds.multipliers + 0.1 ** number.clip(None, 6)
    made = rounds.assign(prices=prices.transpose("penalty", "round", "constraint"), used=0 * rounds.used + 6)
    errors, factor = constrained.factors(made)
    np.testing.assert_allclose(factor, 0.1, rtol=1e-6)
    assert int(np.isfinite(errors).sum()) == 7 * errors.sizes["penalty"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"plane": {"objective": "2x"}}, r"plane.objective: got '?\"?2x.*write 2\*x"),
        ({"plane": {"equality": ("x + z",)}}, r"plane.equality\[0\].*formula in x, y"),
        ({"plane": {"equality": ()}}, "plane.equality: got .*without one see gradient_descent"),
        ({"plane": {"shifts": (1.0,)}}, "plane.shifts: got .*0 among them"),
        ({"plane": {"solution": (1.0,)}}, r"plane.solution: got .*\[\] or a list of 2"),
        ({"plane": {"multipliers": (1.0, 2.0)}}, r"plane.multipliers: got .*\[\] or a list of 1"),
        ({"plane": {"penalties": (0.0,)}}, r"plane.penalties\[0\]"),
        ({"book": ("HS53",)}, r"book\[0\].*HS35"),
        ({"means": (6.0,)}, r"means\[0\]"),
    ],
)
def test_what_cannot_be_run_is_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        build(Config, table)
