import pytest
import sympy

from calcdl.calculus.antiderivatives import antiderivative

X = sympy.Symbol("x", positive=True)
A = sympy.Symbol("a", positive=True)


@pytest.mark.parametrize(
    "f",
    [
        X**3 - 4 * X - 5,
        1 / (X**2 + A**2),
        (X + 1) / (X**3 + X),
        X * sympy.exp(-A * X),
        sympy.exp(-(X**2)),
        sympy.log(X) ** 2,
        sympy.sin(X) ** 2,
        X * sympy.cos(X),
        sympy.sqrt(1 - X**2),
        sympy.tanh(X),
    ],
    ids=str,
)
def test_the_derivative_leads_back(f):
    found = antiderivative(f, X)
    difference = (sympy.diff(found, X) - f).subs(A, sympy.Rational(7, 5))
    for point in (0.2, 0.7):
        assert abs(sympy.N(difference.subs(X, point))) < 1e-12


@pytest.mark.parametrize("f", [X**X, sympy.sin(sympy.exp(X**2)), sympy.sqrt(1 + sympy.sin(X) ** 3)], ids=str)
def test_what_cannot_be_done_is_said(f):
    assert antiderivative(f, X) is None


def test_a_variable_must_be_a_symbol():
    with pytest.raises(TypeError, match="variable must be a SymPy symbol, got 'x'"):
        antiderivative(X, "x")
