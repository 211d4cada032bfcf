import jax
import numpy as np
import pytest

from calcdl import data, study
from calcdl.experiments.support_vectors import EXPERIMENT, Config, check, gram_of, measure, prepare, show, train
from calcdl.lab.config import ConfigError, read
from calcdl.nn import kernels

CLAIMS = 11


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "support_vectors.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "support_vectors.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == CLAIMS
    assert all(verdict.holds for verdict in verdicts), verdicts


def test_contradictions_are_noticed(config, results):
    wrong = results.copy(deep=True)
    wrong["way_lower"][1, -1] = 1.01 * wrong.way_upper[1, -1]
    wrong["machines_dual"][0, 0] *= 0.99
    wrong["subgradient_value"][...] = 10.0
    wrong["machines_margins"][0, 0, :2] = [3.0, -1.0]
    wrong["machines_multipliers"][0, 0, :2] = [0.05, 0.0]
    wrong["smooth_least"][0, 0, 0] *= 1 + 1e-9
    wrong["smooth_weights"][0, 0, 0, 0] += 1e-5
    wrong["choice_error"][...] = 0.99
    assert [verdict.holds for verdict in check(config, wrong)] == [False] * CLAIMS


def test_a_measurement_that_is_lost_is_no_evidence(config, results):
    wrong = results.copy(deep=True)
    for name in ("machines_dual", "machines_margins", "smooth_least", "smooth_weights", "choice_error"):
        wrong[name][...] = np.nan
    held = [verdict.holds for verdict in check(config, wrong)]
    assert not any(held[place] for place in (1, 3, 4, 5, 7, 8, 9, 10))


def test_the_linear_machine_is_the_one_on_record(truths):
    (known,) = [one for one in truths("sklearn_refs.json")["refs"] if one["id"] == "breast_cancer_std_svc_linear_C0.1"]
    dataset = data.load("breast_cancer")
    x, y = data.standardise(dataset)[0].features, 2.0 * dataset.targets - 1
    gram = gram_of("linear", 1.0, x)
    found = jax.jit(train, static_argnums=3)(gram, y, known["C"], 6000, 1e-13).params
    seen = kernels.machine(found, y, gram, known["C"])
    # Its own gap is 1.5e-8 of the value; the dual one, which errs by squares, is exact to all its digits.
    assert float(seen.dual) == pytest.approx(known["dual"], rel=1e-11)
    assert float(seen.primal) == pytest.approx(known["primal"], rel=2e-8)
    assert float(seen.primal - seen.dual) <= 1e-10
    np.testing.assert_allclose(x.T @ (np.asarray(found) * y), known["coef"], rtol=0, atol=1e-6)
    assert float(seen.offset) == pytest.approx(known["intercept"], abs=1e-6)
    assert int((found > 1e-8 * known["C"]).sum()) == known["n_support"]
    assert int((found > (1 - 1e-8) * known["C"]).sum()) == known["n_bounded"]


def test_spirals_are_no_matter_for_a_plane(results):
    drawn = study.part(results, "drawn")
    wrong = (drawn.margins <= 0).sum("row").sel(table=1, penalty=1.0)
    assert int(wrong.sel(kernel="linear")) > 5 * int(wrong.sel(kernel="rbf"))


def test_the_second_class_is_the_positive_one(config):
    turned = config.model_copy(update={"classes": ("virginica", "versicolor")})
    np.testing.assert_array_equal(prepare(config).targets, 1 - prepare(turned).targets)
    assert prepare(config).features.shape == (100, 4)


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["boundaries", "duality", "choice"]
    assert all(figure.axes for figure in figures.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training.penalties", "0"], "training.penalties[0]"),
        (["--training.kernel", "sigmoid"], "training.kernel"),
        (["--choice.train", "1"], "choice.train"),
        (["--precision", "float32"], "precision"),
        (["--data", "iris"], "classes: got []; expected two of setosa, versicolor, virginica"),
        (["--data", "iris", "--classes", "setosa", "rosa"], "classes: got ['setosa', 'rosa']"),
    ],
)
def test_bad_values_end_in_one_line_and_code_two(flags, message, refused):
    assert message in refused(EXPERIMENT, flags)


def test_too_many_rows_are_refused(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("x,target\n" + "\n".join(f"{row},{'ab'[row % 2]}" for row in range(3001)))
    with pytest.raises(ConfigError, match="got 3,001 rows; expected at most 3,000"):
        prepare(Config(data=str(path)))
