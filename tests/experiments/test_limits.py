import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calcdl import study
from calcdl.calculus import limits as toolkit
from calcdl.experiments.limits import EXPERIMENT, OUTCOMES, Config, Question, best, check, curve, measure, show
from calcdl.lab.cli import main
from calcdl.lab.config import ConfigError, build, read


@pytest.fixture(scope="module")
def config(configs):
    return read(configs / "limits.quick.toml", Config)


@pytest.fixture(scope="module")
def results(config):
    return measure(config)


def test_the_default_file_is_the_default(configs):
    assert read(configs / "limits.toml", Config) == Config()


def test_every_claim_holds_on_the_quick_configuration(config, results):
    verdicts = check(config, results)
    assert len(verdicts) == 4
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert "of 5: 1 converges; 1 does not exist: the sides" in verdicts[0].evidence
    assert "that of (1 - cos(x))/x**2, x → 0" in verdicts[1].evidence
    assert "bfloat16 forward" in verdicts[2].evidence
    assert "five_point 4.00" in verdicts[3].evidence


@pytest.mark.parametrize(
    ("name", "change", "claim"),
    [
        ("limits_verdict", lambda x: x * 0 + toolkit.CONVERGES, "every limit gets its known answer"),
        ("limits_value", lambda x: x + 1e-6, "no error estimate is less"),
        ("limits_error", lambda x: x * np.nan, "no error estimate is less"),
        ("curves_best", lambda x: x * 6, "the best step is the predicted one"),
        ("curves_best", lambda x: x / 6, "the best step is the predicted one"),
        ("curves_error", lambda x: x.where(x.curves_x > 1.01), "the best step is the predicted one"),
        ("curves_error", lambda x: x**1.06, "the error shrinks with the order"),
        ("curves_error", lambda x: x * np.nan, "the error shrinks with the order"),
        ("curves_best", lambda x: x * 1e9, "the error shrinks with the order"),
    ],
)
def test_what_contradicts_a_claim_is_noticed(config, results, name, change, claim):
    verdicts = check(config, results.assign({name: change(results[name])}))
    assert [one for one in verdicts if claim in one.claim and not one.holds]


@pytest.mark.parametrize("word", list(OUTCOMES))
def test_a_limit_that_has_no_value_is_not_taken_for_one(config, results, word):
    asked = config.model_copy(update={"limits": (Question(answer=word), *config.limits[1:])})
    verdict = check(asked, results)[0]
    assert not verdict.holds
    assert "missed sin(x)/x, x → 0: converges" in verdict.evidence


def test_what_was_not_asked_is_not_judged(config, results):
    infinite = config.model_copy(update={"limits": config.limits[1:]})
    found = results.isel(limits_limit=slice(1, None)).sel(curves_dtype=["bfloat16"])
    narrow = infinite.model_copy(update={"curves": config.curves.model_copy(update={"dtypes": ("bfloat16",)})})
    assert len(check(narrow, found)) == 2


def test_figures_are_drawn(config, results):
    figures = show(config, results)
    assert list(figures) == ["u_curves", "secants", "approach", "zoom", "answers"]
    assert all(figure.axes and figure.get_label() for figure in figures.values())
    told = [text.get_text() for text in figures["secants"].axes[1].texts]
    assert {"2.30000000", "1.70000000", "2.00300000"} <= {*told}


def test_left_and_right_are_told_apart(results):
    found = study.part(results, "limits").isel(limit=1)  # 1/x
    assert (found.reached.sel(side="left").dropna("point") < 0).all()
    assert (found.reached.sel(side="right").dropna("point") > 0).all()


@pytest.mark.parametrize("scheme", ["forward", "five_point"])
def test_half_precision_is_rounded_in_a_compiled_program_too(key, scheme):
    def one(x):
        return curve(key, x=x, dtype="bfloat16", scheme=scheme, text="exp(x)", steps=97, largest=4.0)

    x = jnp.linspace(1.0, 1.9, 40, dtype=jnp.float64)
    found = jax.jit(jax.vmap(one))(x)
    # Beside round-off nothing counts at the smallest step: and its bound is nearly reached by some.
    ratio = np.asarray(found["error"] / found["round_off"])[:, 0]
    assert 0.2 < ratio.max() < 2
    assert found["error"].dtype == found["best"].dtype == jnp.float64
    assert np.ptp(np.log(found["best"])) < 0.01


def test_the_predicted_best_step_is_the_bottom_of_the_predicted_curve(results):
    curves = study.part(results, "curves")
    bottom = (curves.truncation + curves.round_off).argmin("number")
    ratio = curves.step.isel(number=bottom) / curves.best
    assert abs(np.log(ratio)).max() < np.log(1.5)
    assert best(curves)[1].shape == (2, 2)


@pytest.mark.parametrize(
    ("question", "title"),
    [
        (Question(text="1/x", side="left", answer="-inf"), "1/x, x → 0-"),
        (Question(text="1/x", at=-math.inf, answer="0"), "1/x, x → -∞"),
        (Question(text="1/n", at=math.inf, answer="0"), "1/n, n → ∞"),
        (Question(text="3", at=2.5, side="right", answer="3"), "3, x → 2.5+"),
    ],
)
def test_a_limit_is_written_on_a_line(question, title):
    assert question.title == title


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limits": ({"text": "3x"},)}, r"limits\[0\].text: got \"3x\"; expected a formula .* write 3\*x"),
        ({"limits": ({"text": "x*n"},)}, r"limits\[0\].text"),
        ({"limits": ({"text": "1/n"},)}, r"limits\[0\].at: got 0.0; expected inf, for a sequence"),
        ({"limits": ({"answer": "never"},)}, r"limits\[0\].answer: got \"never\"; expected a constant .* oscillates"),
        ({"limits": ({"at": math.nan},)}, r"limits\[0\].at"),
        ({"limits": ({"side": "top"},)}, "left"),
        ({"limits": ()}, "at least 1"),
        ({"zoomed": ("1/n",)}, r"zoomed\[0\]"),
        ({"secants": {"text": "y"}}, "secants.text"),
        ({"curves": {"dtypes": ("float8",)}}, "float16"),
        ({"curves": {"schemes": ("middle",)}}, "central"),
        ({"curves": {"text": "log(x)"}}, r"curves.text: got log\(x\), not so at -7; expected a formula"),
        ({"curves": {"text": "exp(3*x)"}}, "curves.largest_step"),
        ({"precision": "float32"}, "float64"),
    ],
)
def test_what_cannot_be_run_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        measure(build(Config, change), run=None)


def test_a_dry_run_measures_nothing(configs, capsys, tmp_path):
    assert main(EXPERIMENT, [str(configs / "limits.toml"), "--dry-run", "--runs", str(tmp_path)]) == 0
    assert "study curves: 2400 lanes" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
