"""Constrained problems as data: polynomials of four variables, so that one compiled program solves them all."""

import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from calcdl.calculus.expressions import parse

VARIABLES, EQUALITIES, INEQUALITIES, TERMS, POWERS = 4, 2, 3, 16, 5
LOGARITHM = "log(1+x[0]**2)"


class Polynomial(NamedTuple):
    coefficients: np.ndarray
    exponents: np.ndarray  # one-hot by [term, power, variable]


class Problem(NamedTuple):
    """min objective(x) with equality(x) = 0, inequality(x) >= 0, the bounds apart.

    There are two variables more than any problem has: an equality that is not there says that one of them is 0.
    """

    objective: Polynomial
    logarithm: np.ndarray
    constraints: Polynomial  # equalities first
    missing: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    start: np.ndarray


def polynomial(text):
    names = [f"x{i}" for i in range(VARIABLES)]
    formula = parse(re.sub(r"x\[(\d)\]", r"x\1", text), names).symbolic()
    by_name = {str(symbol): symbol for symbol in formula.free_symbols}
    symbols = [by_name.get(name) for name in names]
    import sympy

    terms = sympy.Poly(formula, *(one or sympy.Symbol(f"none{i}") for i, one in enumerate(symbols))).terms()
    coefficients, exponents = np.zeros(TERMS), np.zeros((TERMS, POWERS, VARIABLES))
    exponents[:, 0] = 1
    for i, (powers, coefficient) in enumerate(terms):
        coefficients[i] = float(coefficient)
        exponents[i] = np.eye(POWERS)[list(powers)].T
    return Polynomial(coefficients, exponents)


def evaluate(formula, x):
    x = x[:VARIABLES]
    square = x * x
    powers = jnp.stack([jnp.ones_like(x), x, square, square * x, square * square])
    factors = jnp.einsum("...pv,pv->v...", formula.exponents, powers)
    return jnp.sum(formula.coefficients * factors[0] * factors[1] * factors[2] * factors[3], axis=-1)


def problem(record):
    """Make a problem of a record of the file of truths, or of one like it."""
    n = len(record["x0"])
    objective, equalities, inequalities = record["objective"], record.get("eq", []), record.get("ineq", [])
    # Variables that the problem does not have are drawn to 0.
    unused = "".join(f"+x[{i}]**2" for i in range(n, VARIABLES))
    padding = [0.0] * (VARIABLES + EQUALITIES - n)
    equalities_filled = [*equalities, *["0"] * (EQUALITIES - len(equalities))]
    constraints = [*equalities_filled, *inequalities, *["1"] * (INEQUALITIES - len(inequalities))]
    return Problem(
        polynomial(objective.replace(LOGARITHM, "0") + unused),
        np.array(float(LOGARITHM in objective)),
        Polynomial(*map(np.stack, zip(*map(polynomial, constraints), strict=True))),
        np.arange(EQUALITIES) >= len(equalities),
        np.array([*(record.get("lb") or [-np.inf] * n), *(-np.inf for _ in padding)]),
        np.array([*(record.get("ub") or [np.inf] * n), *(np.inf for _ in padding)]),
        np.array([*record["x0"], *padding], float),
    )


def value(problem, x):
    pinned = x[VARIABLES:]
    return evaluate(problem.objective, x) + problem.logarithm * jnp.log1p(x[0] ** 2) + pinned @ pinned


def equality(problem, x):
    there = evaluate(Polynomial(*(part[:EQUALITIES] for part in problem.constraints)), x)
    return jnp.where(problem.missing, x[VARIABLES:], there)


def inequality(problem, x):
    return evaluate(Polynomial(*(part[EQUALITIES:] for part in problem.constraints)), x)


# What an honest solver must not call solved, each with what it should say.
HOPELESS = {
    "a constraint whose gradient vanishes": ("UNQUALIFIED", {"objective": "x[0]", "eq": ["x[0]**2"], "x0": [1]}),
    "a curve of them": ("UNQUALIFIED", {"objective": "x[0]**2+x[0]+x[1]**2", "eq": ["(x[0]+x[1]-1)**2"], "x0": [1, 3]}),
    "a constraint given twice": (
        "UNQUALIFIED",
        {"objective": "x[0]**2+x[1]**2", "eq": ["x[0]+x[1]-1", "2*x[0]+2*x[1]-2"], "x0": [2, 0]},
    ),
    "the cusp of Kuhn and Tucker": (
        "UNQUALIFIED",
        {"objective": "-x[0]", "ineq": ["(1-x[0])**3-x[1]", "x[1]"], "x0": [0.3, 0.3]},
    ),
    "three lines through a corner": (
        "UNQUALIFIED",
        {"objective": "x[0]+x[1]", "ineq": ["x[0]", "x[1]", "x[0]+x[1]"], "x0": [1, 1]},
    ),
    "half planes that do not meet": (
        "INFEASIBLE",
        {"objective": "x[0]**2+x[1]**2", "ineq": ["x[0]-1", "-x[0]"], "x0": [2, 0]},
    ),
    "a square below 0": ("INFEASIBLE", {"objective": "x[0]", "eq": ["x[0]**2+1"], "x0": [2]}),
    "bounds the wrong way round": (
        "INFEASIBLE",
        {"objective": "(x[0]-1)**2+x[1]**2", "lb": [2, 2], "ub": [1, 1], "x0": [2, 0]},
    ),
    "a slope without end": ("DIVERGED", {"objective": "x[0]", "ub": [1], "x0": [0]}),
    "a saddle without end": ("DIVERGED", {"objective": "-x[0]**2+x[1]**2", "eq": ["x[1]-1"], "x0": [1, 2]}),
}
