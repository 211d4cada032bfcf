import pytest

from calcdl import study
from calcdl.experiments.hypergradients import Config, check, measure, show
from calcdl.lab.config import ConfigError, build, read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "hypergradients.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "hypergradients.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 5
    assert all(verdict.holds for verdict in verdicts), verdicts


@pytest.mark.parametrize(
    ("name", "change", "claim"),
    [
        ("ways_gradient", lambda x: x * (1 + 1e-5), "unrolled derivatives"),
        ("closed_gradient", lambda x: x * (1 + 1e-5), "implicit derivatives"),
        ("learned_validation", lambda x: x * 1.5, "descent on the validation loss"),
        ("learned_status", lambda x: x + 1, "descent on the validation loss"),
        ("memory_bytes", lambda x: x * x.memory_steps**0.5, "memory grows"),
    ],
)
def test_what_contradicts_a_claim_is_noticed(config, results, name, change, claim):
    verdicts = check(config, results.assign({name: change(results[name])}))
    assert [verdict.claim for verdict in verdicts if claim in verdict.claim and not verdict.holds]


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["agreement", "learning", "memory"]
    assert all(figure.axes and figure.get_label() for figure in figures.values())


def test_before_convergence_the_ways_differ(results):
    ways = study.part(results, "ways").gradient.isel(steps=0, penalty=0)
    unrolled, forward, implicit = (float(ways.sel(way=way)) for way in ("unrolled", "forward", "implicit"))
    assert forward == pytest.approx(unrolled, rel=1e-10)
    assert abs(implicit - unrolled) > 1e-3 * abs(unrolled)


def test_learning_lowers_the_loss_on_rows_not_used(results):
    learned = study.part(results, "learned")
    assert float(learned.test_after.mean()) < float(learned.test_before.mean())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"agreement": {"steps": (100, 10)}}, r"agreement.steps\[1\]: got 10; expected more than the 100 before it"),
        ({"memory": {"steps": (4,)}}, r"memory.steps\[0\]: got 4; expected a number >= 16"),
        ({"learning": {"learning_rates": (0.0,)}}, r"learning.learning_rates\[0\]"),
    ],
)
def test_what_cannot_be_run_is_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        build(Config, table)
