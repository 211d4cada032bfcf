"""Prose: docstrings as HTML, for the page."""

import re
from html import escape
from html.entities import html5

# where TeX and HTML name a character differently; "" is left out
_NAMES = {
    "partial": "part", "infty": "infin", "to": "rarr", "neq": "ne", "cdot": "middot", "ldots": "hellip",
    "dots": "hellip", "cdots": "ctdot", "quad": "emsp", "left": "", "right": "", "mathrm": "",
}  # fmt: skip


def prose(text: str) -> str:
    r"""Return plain text as HTML: paragraphs, lists of "- " lines, indented blocks as they are, `code`.

    >>> prose("The rule\n\n    x' = -g\n\nuses `grad`.")
    '<p>The rule</p>\n<pre>x&#x27; = -g</pre>\n<p>uses <code>grad</code>.</p>'
    """
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.split("\n")
        if not block.strip():
            continue
        if all(line.startswith("    ") for line in lines if line.strip()):
            indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
            blocks.append("<pre>" + escape("\n".join(line[indent:] for line in lines)) + "</pre>")
        elif lines[0].lstrip().startswith("- "):
            items = re.split(r"^\s*- ", block, flags=re.MULTILINE)[1:]
            blocks.append("<ul>" + "".join(f"<li>{_words(item)}</li>" for item in items) + "</ul>")
        else:
            blocks.append(f"<p>{_words(block)}</p>")
    return "\n".join(blocks)


def _words(text: str) -> str:
    text = re.sub(r"^(Question|Mathematics|Claim|Command|Reference)([.:])", r"<strong>\1\2</strong>", escape(text))
    text = re.sub(r":math:`([^`]+)`", lambda found: f"<i>{mathematics(found[1])}</i>", " ".join(text.split()))
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", text)


def mathematics(tex: str) -> str:
    r"""Return one line of TeX as HTML; of a name that it does not know it leaves the letters.

    >>> mathematics(r"\sqrt{\chi_1} \approx q^*")
    '√(χ<sub>1</sub>) ≈ q<sup>*</sup>'
    >>> mathematics(r"\mathrm{diag}(p) \cdots \|x\|")
    'diag(p) ⋯ ‖x‖'
    """
    text = re.sub(r"\\(?!sqrt|frac)([A-Za-z]+)", lambda found: _character(found[1]), tex)
    text = re.sub(r"\\[,;! ]", " ", text).replace(r"\|", "‖")
    for _ in range(4):  # from the innermost braces outwards
        text = re.sub(r"\\sqrt\s*\{([^{}]*)\}|\\sqrt\s*(\w)", lambda found: f"√({found[1] or found[2]})", text)
        text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"(\1)/(\2)", text)
        text = re.sub(r"_(?:\{([^{}]*)\}|([\w*]))", lambda found: f"<sub>{found[1] or found[2]}</sub>", text)
        text = re.sub(r"\^(?:\{([^{}]*)\}|(\S))", lambda found: f"<sup>{found[1] or found[2]}</sup>", text)
    return re.sub(r"[{}]", "", text)


def _character(name: str) -> str:
    known = _NAMES.get(name, name)
    return html5.get(f"{known};", known)
