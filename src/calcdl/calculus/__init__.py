"""Calculus: limits, derivatives, the chain rule and integrals of plain functions, each with its error.

- `limits`: `limit` gives a value, infinity or "does not exist", an error estimate and the evidence. `sequences` does
  the same for sequences and series, `limits.path_limit` for several variables.
- `derivatives`: of any order, partial, directional, Jacobian, Hessian and its products with vectors, Taylor
  polynomials, tangents, all by automatic differentiation. `smoothness` asks whether a derivative exists.
- `richardson`: derivatives from values alone, with an error; `differences`: single difference quotients and their error
  against the step. `gradient_check.check_gradient` sets what a program says its gradient is beside what its values say.
- `chain`: a composition link by link, products in both orders, back-propagation written out; `graph`: the chain rule
  of several variables, path by path.
- `integrals`: `integrate` chooses the method and says when there is no integral; `quadrature`: fixed rules and
  `gaussian_expectation`; `multiple`: over regions of up to four variables; `sampling`: Monte Carlo for more;
  `antiderivatives`: in closed form, where SymPy finds one.
- `expressions`: a text such as "3*x**2 - 4*x" as a JAX function and as a SymPy expression.

What most programs need is at hand here: `calculus.limit`, `calculus.derivative`, `calculus.integrate`, ...
"""

from calcdl.calculus import antiderivatives as antiderivatives
from calcdl.calculus import chain as chain
from calcdl.calculus import derivatives as derivatives
from calcdl.calculus import differences as differences
from calcdl.calculus import expressions as expressions
from calcdl.calculus import gradient_check as gradient_check
from calcdl.calculus import graph as graph
from calcdl.calculus import integrals as integrals
from calcdl.calculus import limits as limits
from calcdl.calculus import multiple as multiple
from calcdl.calculus import quadrature as quadrature
from calcdl.calculus import richardson as richardson
from calcdl.calculus import sampling as sampling
from calcdl.calculus import sequences as sequences
from calcdl.calculus import smoothness as smoothness
from calcdl.calculus.antiderivatives import antiderivative as antiderivative
from calcdl.calculus.derivatives import derivative as derivative
from calcdl.calculus.derivatives import directional_derivative as directional_derivative
from calcdl.calculus.derivatives import gradient as gradient
from calcdl.calculus.derivatives import hessian as hessian
from calcdl.calculus.derivatives import hessian_vector_product as hessian_vector_product
from calcdl.calculus.derivatives import jacobian as jacobian
from calcdl.calculus.derivatives import partial_derivative as partial_derivative
from calcdl.calculus.derivatives import tangent_line as tangent_line
from calcdl.calculus.derivatives import tangent_plane as tangent_plane
from calcdl.calculus.derivatives import taylor as taylor
from calcdl.calculus.expressions import parse as parse
from calcdl.calculus.gradient_check import check_gradient as check_gradient
from calcdl.calculus.integrals import integrate as integrate
from calcdl.calculus.limits import limit as limit
from calcdl.calculus.quadrature import gaussian_expectation as gaussian_expectation
from calcdl.calculus.richardson import finite_difference as finite_difference
from calcdl.calculus.smoothness import differentiability as differentiability
