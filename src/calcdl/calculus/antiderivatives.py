"""Indefinite integrals, by SymPy where it can."""

from typing import Any


def antiderivative(expression: Any, variable: Any) -> Any | None:
    """Find a function whose derivative is the given one.

    `d/dx F(x) = f(x)`

    Rational functions, what substitution and integration by parts reach, and the decidable part of Risch's algorithm
    are tried; the open-ended searches, which may not come back, are not.

    Args:
        expression: f, a SymPy expression.
        variable: x, a SymPy symbol.

    Returns:
        F, a SymPy expression without a constant of integration, or None where none was found.

    Raises:
        TypeError: the variable is not a SymPy symbol.

    Example:
        >>> from sympy import Symbol, exp
        >>> x = Symbol("x")
        >>> antiderivative(x * exp(x), x).factor()
        (x - 1)*exp(x)
        >>> antiderivative(x**x, x) is None
        True
    """
    import sympy

    if not isinstance(variable, sympy.Symbol):
        raise TypeError(f"variable must be a SymPy symbol, got {variable!r}")
    expression = sympy.sympify(expression)
    plain = {"heurisch": False, "meijerg": False, "manual": False, "risch": False}
    first = [plain] if expression.is_rational_function(variable) else []
    for way in (*first, {"manual": True}, {"risch": True}):
        try:
            found = sympy.integrate(expression, variable, **way)
        except NotImplementedError:
            continue
        if not found.has(sympy.Integral):
            return found
    return None
