import re
from html.parser import HTMLParser

import parabola
import pytest

from calcdl.lab import plots, report
from calcdl.lab.prose import mathematics, prose
from calcdl.lab.session import Counts
from calcdl.types import Verdict

VERDICTS = (
    Verdict("a < b & c", True, 0.001234567, 1.0, "the <largest> of all"),
    Verdict("d", False, float("nan"), float("inf"), "nothing was finite"),
)


@pytest.fixture(scope="module")
def page():
    figure, panels = plots.figure(caption="A caption with <brackets>.")
    plots.theory(panels[0, 0], [1, 2], [1, 2])
    plots.finish(panels[0, 0], x="step", y="loss")
    return report.page(
        "parabola",
        parabola.__doc__,
        parabola.Config(rates=(0.125,)),
        verdicts=VERDICTS,
        counts={"descents": Counts(1234, 1200, 30, 3, 1)},
        figures={"curve": plots.render("curve", figure)},
        environment={"python": "3.11", "packages": {"jax": "0.10"}, "studies": {"descents": {"axes": [1] * 999}}},
    )


class Words(HTMLParser):
    """Collects text, and the tags that stay open."""

    def __init__(self):
        super().__init__()
        self.text, self.open = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else(page):
    words = Words()
    words.feed(page)
    assert words.open == []
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert not re.search(r"@import|<script|<link|<!DOCTYPE svg", page)
    assert not re.search(r"url\((?!#)", page)
    assert page.count("<svg") == 1


def test_the_page_says_what_a_reader_asks(page):
    words = Words()
    words.feed(page)
    text = " ".join(" ".join(words.text).split())
    for part in (
        "Does descent on a parabola converge below a rate of 2?",
        "a < b & c", "the <largest> of all", "✓ holds", "✗ does not hold",
        "1 of 2 claims hold.", "0.001235", "nan", "inf",
        "A caption with <brackets>.", "descents 1,234 1,200 30 3 1", "rates [0.125] learning rates",
        "descent.steps 20 steps of descent", "rates = [0.125]", "packages jax 0.",
        "python -m calcdl.experiments.parabola config.toml", "x' = (1 - rate) x", "|1 - η|",
    ):  # fmt: skip
        assert part in text
    assert text.index("Verdict") < text.index("The question") < text.index("Measurements")


def test_a_verdict_has_a_colour_of_its_own_too(page):
    assert '<span class="word holds">✓ holds</span>' in page
    assert '<span class="word fails">✗ does not hold</span>' in page


def test_prose_becomes_paragraphs_lists_and_code():
    text = "Claim. It `holds`.\n\n- one <b>\n- two\n  more\n\n    x = 1\n      y = 2\n\n\nEnd."
    assert prose(text).split("\n", 2) == [
        "<p><strong>Claim.</strong> It <code>holds</code>.</p>",
        "<ul><li>one &lt;b&gt;</li><li>two more</li></ul>",
        "<pre>x = 1\n  y = 2</pre>\n<p>End.</p>",
    ]


@pytest.mark.parametrize(
    ("tex", "html"),
    [
        (r"\chi_1^2", "χ<sub>1</sub><sup>2</sup>"),
        (r"h_{l-1}", "h<sub>l-1</sub>"),
        (r"\sqrt{q^*} z", "√(q<sup>*</sup>) z"),
        (r"\frac{\partial L}{\partial x}", "(∂ L)/(∂ x)"),
        (r"\eta \to \infty", "η → ∞"),
        (r"\left(1 - \eta\lambda\right)^k", "(1 - ηλ)<sup>k</sup>"),
        (r"\log x \cdot y", "log x · y"),
    ],
)
def test_mathematics_in_a_line(tex, html):
    assert mathematics(tex) == html
