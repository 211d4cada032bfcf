"""The grammar of formulas: from a text to a tree, or to an error that has the column and the remedy.

    sum        = product (("+" | "-") product)*
    product    = signed (("*" | "/") signed)*
    signed     = ("-" | "+") signed | atom ["**" signed]
    atom       = number | name | "(" sum ")" | function "(" sum ("," sum)* ")"
               | "where" "(" comparison "," sum "," sum ")"
    comparison = sum (("<" | "<=" | ">" | ">=" | "==" | "!=") sum)+

Precedence is that of Python. What has no variable in it is computed once, in float64, and refused if it has no finite
value. The tree is read by one `walk`, whatever it makes of it.
"""

import difflib
import functools
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from calcdl.calculus.elementary import CONSTANTS, FUNCTIONS

LONGEST_TEXT = 2000
DEEPEST_NESTING = 50


class ExpressionError(ValueError):
    """A text that is not in the grammar; `column` counts from 1."""

    def __init__(self, text: str, column: int, message: str) -> None:
        shown = " ".join(text.split()) if len(text) <= 60 else " ".join(text[:57].split()) + "..."
        super().__init__(f'expression "{shown}", column {column}: {message}')
        self.column = column


class Node(NamedTuple):
    """A part of a formula: number, name, negative, sum, product, power, call or comparison.

    `value` is a literal, a name, or the operators between the children; `constant` is None if a variable is in it.
    """

    kind: str
    value: Any
    children: "tuple[Node, ...]" = ()
    constant: float | None = None


def read(text: str, names: Sequence[str] | None) -> tuple[Node, tuple[str, ...]]:
    """Read a formula in these names, or in those that it has, sorted, where names is None.

    Args:
        text: the formula.
        names: of the variables.

    Returns:
        The tree and the names.

    Raises:
        ExpressionError: the text is not in the grammar.
        ValueError: a name is no name, occurs twice, or is that of a function or constant.

    Example:
        >>> read("2*y + x", None)[1]
        ('x', 'y')
    """
    if len(text) > LONGEST_TEXT:
        raise ExpressionError(text, LONGEST_TEXT + 1, f"expected at most {LONGEST_TEXT} characters, got {len(text)}")
    tokens = tuple(_tokens(text))
    if names is None:
        names = sorted({token.text for token in tokens if token.kind == "name"} - {"where", *FUNCTIONS, *CONSTANTS})
    for name in names:
        if not (name.isascii() and name.isidentifier()):
            raise ValueError(f"variables and parameters must be names such as x or x1, got {name!r}")
        if name in FUNCTIONS or name in CONSTANTS or name == "where" or names.count(name) > 1:
            raise ValueError(f"variables and parameters must differ from functions and each other, got {name!r}")
    return _Reader(text, tokens, tuple(names)).whole(), tuple(names)


class _Token(NamedTuple):
    kind: str
    text: str
    column: int


_PATTERN = (
    r"(?P<space>\s+)|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<operator>\*\*|[<>=!]=|//|.)"
)
_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2, "sign": 3, "**": 4}
_KINDS = {"+": "sum", "-": "sum", "*": "product", "/": "product", "**": "power"}
_ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
COMPARISON = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_REMEDIES = (
    (("^", "²", "³"), "write ** for a power"),
    (("×", "·", "−"), "write * or -"),  # noqa: RUF001
    (("if", "else", "and", "or", "not"), "write where(condition, a, b), one in another for two conditions"),
    (("=",), "write == to compare"),
    (("//", "%"), "write floor(a/b)"),
    (("|",), "write abs(x)"),
    (("[", "]"), "write x0 for x[0]"),
    (("!",), "write gamma(n + 1)"),
    (("π", "√"), "write pi or sqrt(x)"),
)
_SYNONYMS = {"ln": "log", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "lgamma": "loggamma", "ceiling": "ceil"}


def _tokens(text: str) -> Iterator[_Token]:
    for match in re.finditer(_PATTERN, text, re.DOTALL | re.ASCII):
        kind, found, column = str(match.lastgroup), match.group(), match.start() + 1
        remedies = [remedy for words, remedy in _REMEDIES if found in words]
        known = kind != "operator" or found in "(,)" or found in _BINDING or found in COMPARISON
        if remedies or not known:
            remedy = (*remedies, "use numbers, names, functions, + - * / ** and parentheses")[0]
            raise ExpressionError(text, column, f'"{found}" has no meaning here; {remedy}')
        if kind != "space":
            yield _Token(kind, found, column)
    yield _Token("end", "the end", len(text.rstrip()) + 1)


def _quoted(token: _Token) -> str:
    return token.text if token.kind == "end" else f'"{token.text}"'


class _Reader:
    """Operator precedence: `formula(binding)` reads on while operators bind at least as tightly."""

    def __init__(self, text: str, tokens: tuple[_Token, ...], names: tuple[str, ...]) -> None:
        self.text, self.tokens, self.names = text, tokens, names
        self.place = self.depth = 0

    def fail(self, token: _Token, message: str) -> NoReturn:
        raise ExpressionError(self.text, token.column, message)

    @property
    def next(self) -> _Token:
        return self.tokens[self.place]

    def take(self) -> _Token:
        self.place += 1
        return self.tokens[self.place - 1]

    def expect(self, wanted: str, expected: str) -> None:
        before, token = self.tokens[self.place - 1], self.take()
        if token.text == wanted:
            return
        if token.text in COMPARISON:
            self.fail(token, f"{_quoted(token)} may stand only in the first argument of where(condition, a, b)")
        is_factor = token.kind in ("number", "name") or token.text == "("
        product = f"{before.text}*{token.text}" if before.text != ")" and token.text != "(" else "* between the factors"
        remedy = f"; write {product}" if is_factor else ""
        self.fail(token, f"expected {expected}, got {_quoted(token)}{remedy}")

    def whole(self) -> Node:
        tree = self.formula(0)
        self.expect("the end", "an operator or the end")
        return tree

    def nested(self, binding: int = 0) -> Node:
        self.depth += 1
        if self.depth > DEEPEST_NESTING:
            self.fail(self.next, f"expected at most {DEEPEST_NESTING} levels of nesting; simplify the formula")
        inner = self.formula(binding)
        self.depth -= 1
        return inner

    def formula(self, binding: int) -> Node:
        left = self.operand()
        while _BINDING.get(self.next.text, -1) >= binding:
            token = self.take()
            kind, is_power = _KINDS[token.text], token.text == "**"
            right = self.nested(_BINDING["sign"]) if is_power else self.formula(_BINDING[token.text] + 1)
            # One flat node for a + b - c, so that a long sum is no deep tree.
            operators, children = (left.value, left.children) if left.kind == kind and not is_power else ((), (left,))
            left = self.node(token, kind, (*operators, token.text), (*children, right))
        return left

    def operand(self) -> Node:
        token = self.take()
        if token.kind == "number":
            return self.literal(token)
        if token.kind == "name":
            return self.call(token) if self.next.text == "(" else self.name(token)
        if token.text == "(":
            inner = self.nested()
            self.expect(")", 'an operator or ")"')
            return inner
        if token.text not in ("+", "-"):
            self.fail(token, f'expected a number, a name, a function or "(", got {_quoted(token)}')
        inner = self.nested(_BINDING["sign"])
        return inner if token.text == "+" else self.node(token, "negative", "-", (inner,))

    def literal(self, token: _Token) -> Node:
        digits, _, exponent = token.text.lower().partition("e")
        value = float(token.text)
        if math.isinf(value) or (value == 0 and digits.strip("0.")) or len(exponent) > 4:
            self.fail(token, f"expected a number within the range of float64, got {token.text}")
        return Node("number", token.text, (), value)

    def name(self, token: _Token) -> Node:
        if token.text in self.names or token.text in CONSTANTS:
            return Node("name", token.text, (), CONSTANTS.get(token.text))
        if token.text in FUNCTIONS or token.text == "where":
            self.fail(self.next, f'expected "(", got {_quoted(self.next)}; write {token.text}(...)')
        return self.unknown(token, "name", "variables", self.names)

    def unknown(self, token: _Token, what: str, plural: str, known: Sequence[str]) -> NoReturn:
        near = difflib.get_close_matches(token.text, [*known, *CONSTANTS, *FUNCTIONS], 1)
        near = [_SYNONYMS[token.text]] if token.text in _SYNONYMS else near
        remedy = f"did you mean {near[0]}?" if near else f"the {plural} are: {', '.join(known) or 'none'}"
        self.fail(token, f'unknown {what} "{token.text}"; {remedy}')

    def call(self, token: _Token) -> Node:
        name, bracket = token.text, self.take()
        if name in self.names or name in CONSTANTS:
            self.fail(bracket, f'expected an operator, got "("; write {name}*(')
        if name not in FUNCTIONS and name != "where":
            self.unknown(token, "function", "functions", [*FUNCTIONS, "where"])
        self.depth += 3 * (name == "where")  # differentiated, a selection takes more stack than other calls
        children = [] if self.next.text == ")" else [self.comparison() if name == "where" else self.nested()]
        while children and self.next.text == ",":
            self.take()
            children.append(self.nested())
        self.expect(")", 'an operator, "," or ")"')
        self.depth -= 3 * (name == "where")
        fewest, most = (3, 3) if name == "where" else (FUNCTIONS[name].fewest, FUNCTIONS[name].most)
        if not fewest <= len(children) <= most:
            wanted = f"{fewest} or more arguments" if most > fewest else f"{fewest} argument{'s' * (fewest > 1)}"
            self.fail(token, f"{name} takes {wanted}, got {len(children)}")
        if name == "where":
            return Node("where", name, tuple(children))
        return self.node(token, "call", name, tuple(children))

    def comparison(self) -> Node:
        operators, children = [], [self.nested()]
        while self.next.text in COMPARISON:
            operators.append(self.take().text)
            children.append(self.nested())
        if not operators:
            self.fail(self.next, f"expected a comparison such as x > 0 in where, got {_quoted(self.next)}")
        return Node("comparison", tuple(operators), tuple(children))

    def node(self, token: _Token, kind: str, value: Any, children: tuple[Node, ...]) -> Node:
        node = Node(kind, value, children)
        numbers = [child.constant for child in children if child.constant is not None]
        if len(numbers) < len(children):
            return node
        try:
            constant = float(walk(node, lambda child: child.constant, _constant))
        except (ArithmeticError, ValueError):
            constant = math.nan
        if math.isnan(constant) or (math.isinf(constant) and not any(math.isinf(number) for number in numbers)):
            self.fail(token, f"{_quoted(token)} has no finite value here")
        return node._replace(constant=constant)


def walk(node: Node, known: Callable[[Node], Any], apply: Callable[[Node, list[Any]], Any]) -> Any:
    """Value of a formula, in numbers, arrays or symbols: what is known of a node, else made of its operands."""
    value = known(node)
    if value is not None:
        return value
    operands = [walk(child, known, apply) for child in node.children]
    if node.kind == "negative":
        return -operands[0]
    if node.kind not in ("sum", "product"):
        return apply(node, operands)
    terms = zip(node.value, operands[1:], strict=True)
    return functools.reduce(lambda total, term: _ARITHMETIC[term[0]](total, term[1]), terms, operands[0])


def compared(node: Node, operands: Sequence[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of neighbours in a chain of comparisons, with the operator between them."""
    return zip(node.value, operands, operands[1:], strict=False)


def _constant(node: Node, operands: list[Any]) -> float:
    return math.pow(*operands) if node.kind == "power" else FUNCTIONS[node.value].number(*operands)
