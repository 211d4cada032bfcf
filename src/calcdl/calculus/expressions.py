"""Formulas as text: one walk over a closed grammar, which makes a JAX function or a SymPy expression of them.

The grammar is in `grammar`. A text reaches `FUNCTIONS`, `CONSTANTS` and its own names, nothing else. What has no
variable in it is computed once, in float64, and refused if it has no finite value; so SymPy meets no tower of powers.
Values keep the dtype of the inputs. For complex inputs, which serve derivatives by complex steps, comparisons, abs,
sign, floor, ceil, min, max, relu and cbrt choose their branch by the real part; erf, erfc, gamma, loggamma refuse them.

Derivatives at a kink: 0 for abs, sign and relu; the mean of both sides for min and max; for `where` that of its branch.
"""

import functools
import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact

from calcdl.calculus.elementary import FUNCTIONS, forward_differentiated, real_part
from calcdl.calculus.grammar import COMPARISON, Node, compared, read, walk
from calcdl.calculus.grammar import ExpressionError as ExpressionError
from calcdl.types import Array

# A power of more bits becomes a float in SymPy, which would write out every digit.
_LARGEST_POWER = 100_000


class Expression:
    """A formula; `expression(*values)` evaluates it. Equal and hashed by text, variables and parameters.

    Attributes:
        text: as it was written.
        variables: the names by which one differentiates.
        parameters: further names; a call takes the values of variables and parameters, in this order.
        tree: the formula as nodes.
    """

    __slots__ = ("__weakref__", "parameters", "text", "tree", "variables")

    def __init__(self, text: str, variables: tuple[str, ...], parameters: tuple[str, ...], tree: Node) -> None:
        self.text, self.variables, self.parameters, self.tree = text, variables, parameters, tree

    def __call__(self, *values: Inexact[Array, "*shape"] | float) -> Inexact[Array, "*shape"]:
        """Value at scalars or arrays: of their common shape and dtype, integers counting as the default float."""
        names = self.variables + self.parameters
        if len(values) != len(names):
            wanted = f"{len(names)} values ({', '.join(names)})" if names else "no values"
            raise TypeError(f'expression "{self.text}" takes {wanted}, got {len(values)}')
        dtype, shape = jnp.result_type(*values, 1.0), jnp.broadcast_shapes(*(jnp.shape(value) for value in values))
        arrays = [jnp.broadcast_to(_array(value, dtype), shape) for value in values]
        return jnp.broadcast_to(
            _array(_evaluate(self.tree, dict(zip(names, arrays, strict=True)), dtype), dtype), shape
        )

    def symbolic(self, *by: str) -> Any:
        """SymPy expression in real symbols, with decimals as exact fractions; differentiated by each name given."""
        import sympy

        return functools.reduce(lambda f, name: f.diff(_symbol(name, sympy)), by, _symbolic(self.tree, sympy))

    def latex(self, *by: str) -> str:
        """LaTeX of the symbolic form."""
        import sympy

        return str(sympy.latex(self.symbolic(*by)))

    def __eq__(self, other: object) -> bool:
        """Whether text, variables and parameters are the same."""
        return isinstance(other, Expression) and repr(self) == repr(other)

    def __hash__(self) -> int:
        """Hash of text, variables and parameters."""
        return hash(repr(self))

    def __repr__(self) -> str:
        """Return the call of `parse` that makes this expression."""
        return f"parse({self.text!r}, {self.variables!r}, {self.parameters!r})"


def parse(text: str, variables: Sequence[str] | None = ("x",), parameters: Sequence[str] = ()) -> Expression:
    """Read a formula.

    `"3*x1**2 + 5*exp(x2)"  ->  f(x1, x2) = 3 x1² + 5 exp(x2)`

    `where(condition, a, b)` has the derivatives of the branch that it takes, of every order and in both modes. With
    `jnp.where`, an infinite slope of the other branch makes the gradient NaN.

    Args:
        text: at most 2,000 characters, nested at most 50 deep.
        variables: the names that may occur, in the order of the call; None takes those in the text, sorted.
        parameters: further names, which follow the variables in the call.

    Returns:
        The expression: a pure function of as many scalars or arrays as there are names.

    Raises:
        ExpressionError: the text is not in the grammar; the message has column, what was expected and the remedy.
        ValueError: a name is no name, occurs twice, or is that of a function or constant.

    Example:
        >>> import jax
        >>> f = parse("3*x1**2 + 5*exp(x2)", variables=None)
        >>> f.variables, float(f(2.0, 0.0)), float(jax.grad(f)(2.0, 0.0)), f.symbolic("x2")
        (('x1', 'x2'), 17.0, 12.0, 5*exp(x2))
        >>> try:
        ...     parse("3x + 1")
        ... except ExpressionError as error:
        ...     print(error)
        expression "3x + 1", column 2: expected an operator or the end, got "x"; write 3*x

    Reference: Pratt 1973, Top down operator precedence.
    """
    if variables is None:
        variables = [name for name in read(text, None)[1] if name not in parameters]
    tree, _ = read(text, (*variables, *parameters))
    return Expression(text, tuple(variables), tuple(parameters), tree)


def _array(value: Any, dtype: Any) -> Array:
    with np.errstate(over="ignore"):  # a large literal is infinite in half precision
        return jnp.asarray(value, dtype)


def _evaluate(tree: Node, values: dict[str, Array], dtype: Any) -> Any:
    def known(node: Node) -> Any:
        if node.kind == "where":
            return _where(node, values, dtype)
        return values.get(node.value) if node.kind == "name" and node.constant is None else node.constant

    def apply(node: Node, operands: list[Any]) -> Any:
        if node.kind == "power":
            return _power(node, *operands)
        arrays = [_array(operand, dtype) for operand in operands]
        if node.kind == "call":
            return FUNCTIONS[node.value].value(*arrays)
        parts = [COMPARISON[sign](one, other) for sign, one, other in compared(node, [real_part(x) for x in arrays])]
        return functools.reduce(operator.and_, parts)

    return walk(tree, known, apply)


def _power(node: Node, base: Any, exponent: Any) -> Any:
    if isinstance(exponent, float) and exponent.is_integer() and abs(exponent) < 1 << 15:
        return base ** int(exponent)
    return jnp.exp(exponent) if node.children[0].value == "e" else jnp.power(base, exponent)


def _where(node: Node, values: dict[str, Array], dtype: Any) -> Array:
    names = sorted(_names_in(node) & values.keys())

    def chosen(*arrays: Array) -> Array:
        local = dict(zip(names, arrays, strict=True))
        mask, one, other = (_evaluate(child, local, dtype) for child in node.children)
        return jnp.where(mask, _array(one, dtype), _array(other, dtype))

    return forward_differentiated(chosen)(*(values[name] for name in names)) if names else chosen()


def _names_in(node: Node) -> set[str]:
    return {node.value} if node.kind == "name" else {name for child in node.children for name in _names_in(child)}


def _symbol(name: str, sympy: Any) -> Any:
    return sympy.Symbol(name, real=True)


def _symbolic(tree: Node, sympy: Any) -> Any:
    def known(node: Node) -> Any:
        if node.kind == "number":
            return sympy.Rational(*Fraction(node.value).as_integer_ratio())
        if node.kind != "name":
            return None
        constants = {"pi": sympy.pi, "e": sympy.E, "inf": sympy.oo}
        return _symbol(node.value, sympy) if node.constant is None else constants[node.value]

    def apply(node: Node, operands: list[Any]) -> Any:
        if node.kind == "power":
            return _symbolic_power(sympy, *operands)
        if node.kind == "where":
            return sympy.Piecewise((operands[1], operands[0]), (operands[2], True))
        if node.kind == "call":
            return FUNCTIONS[node.value].symbolic(sympy, *operands)
        return sympy.And(*(sympy.Rel(one, other, sign) for sign, one, other in compared(node, operands)))

    return walk(tree, known, apply)


def _symbolic_power(sympy: Any, base: Any, exponent: Any) -> Any:
    bits = sum(number.p.bit_length() + number.q.bit_length() for number in base.atoms(sympy.Rational))
    is_large = exponent.is_Rational and bits * abs(exponent) > _LARGEST_POWER
    return sympy.Pow(base.evalf(30) if is_large else base, exponent)
