r"""Nonlinear least squares: the residuals' Jacobian stands in for the Hessian.

    f(p) = 1/2 |r(p)|²,    ∇f = Jᵀ r,    ∇²f ≈ Jᵀ J

What is left out, Σ r_i ∇²r_i, is small where the fit is good.

Three ways to use it, each by Optimistix's descent and search:

- `gauss_newton`: s = -J⁺ r, the whole step, always taken. Quadratic convergence near a good fit; elsewhere it may
  diverge.
- `levenberg_marquardt`: s = -(Jᵀ J + λ D²)⁻¹ Jᵀ r, solved by QR of (J, √λ D), never as normal equations; λ falls while
  the steps keep their promise, down to Gauss-Newton, and rises towards gradient descent otherwise. The one to prefer.
- `dogleg`: from the step of steepest descent to that of Gauss-Newton, as far as a trust region reaches.

D holds the norms of the columns of J, the largest seen so far: the steps do not depend on the units of the parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, Int

from calcdl.calculus.derivatives import jacobian
from calcdl.optim.solver import Info, Solution, Solver, minimise
from calcdl.optim.trials import FALLING, first_accepted, outcome
from calcdl.optim.vectors import Vector, flatten
from calcdl.trees import array_norm, widen
from calcdl.types import Array, Objective, Params, Scalar

Residuals = Callable[[Params], Any]
_FIRST_SIZE = 100.0  # 1/λ at the start, where D² is the diagonal of Jᵀ J
_LARGEST_SIZE = 1e16
_GOOD = 0.75  # the share of the promised gain above which the size grows

UNCERTAINTIES = (
    "every parameter is determined by the data",
    "no noise level: there are no more residuals than parameters; more data are needed",
    "rank deficient: the data do not determine every parameter; those with an infinite standard error can be changed "
    "together without changing the fit",
    "not finite: a residual or a derivative is infinite or NaN at these parameters",
)
DETERMINED, SATURATED, DEFICIENT, NOT_FINITE = range(4)


@dataclass(frozen=True)  # no tuple, of which jax.jit could not keep a weak reference
class SumOfSquares:
    """Half the sum of squares of residuals, the objective that the solvers here take.

    Attributes:
        residuals: function of the parameters; it returns a pytree of arrays.
    """

    residuals: Residuals

    def __call__(self, params: Params) -> Scalar:
        """Evaluate `1/2 Σ r_i²`."""
        residuals, _ = ravel_pytree(widen(self.residuals(params)))
        return jnp.sum(residuals**2) / 2


class _State(NamedTuple):
    size: Scalar  # 1/λ, or the share of Gauss-Newton's step that the trust region reaches
    scale: Array  # D
    promise: Scalar  # of the last step


class Uncertainty(NamedTuple):
    """What the data say of the parameters of a fit, under independent noise of one variance.

    Attributes:
        standard_errors: standard deviations, the structure of the parameters; infinite where the data say nothing.
        covariance: matrix over the parameters as one vector, in the order of `jax.tree.leaves`; where the rank is
            deficient, of the directions that are determined.
        noise: standard deviation of the residuals, `sqrt(Σ r² / (m - n))`.
        rank: how many directions are determined.
        status: index in `UNCERTAINTIES`.
    """

    standard_errors: Params
    covariance: Float[Array, "n n"]
    noise: Scalar
    rank: Int[Array, ""]
    status: Int[Array, ""]

    @property
    def verdict(self) -> str:
        """The statement, for one fit, outside `jax.jit`."""
        return UNCERTAINTIES[int(self.status)]


def gauss_newton(residuals: Residuals) -> Solver:
    r"""Make Gauss-Newton's method: the whole step to where the linearised residuals are smallest.

    $$ p_{k+1} = p_k - J^+ r $$

    Where columns of J are dependent, the shortest step (in the units of D) is taken.

    Args:
        residuals: function of the parameters; it returns a pytree of arrays.

    Returns:
        A solver whose objective must be `SumOfSquares(residuals)`.

    Example:
        >>> residuals = lambda p: jnp.exp(p * jnp.array([0.0, 1.0])) - jnp.array([1.0, 2.0])
        >>> solver = gauss_newton(residuals)
        >>> found = minimise(SumOfSquares(residuals), jnp.float32(0.0), solver, steps=10)
        >>> round(float(found.params), 5)
        0.69315
    """
    import lineax
    import optimistix

    descent: Any = optimistix.NewtonDescent(linear_solver=lineax.AutoLinearSolver(well_posed=False))
    return _solver(residuals, descent, optimistix.LearningRate(1.0))


def levenberg_marquardt(residuals: Residuals) -> Solver:
    r"""Make the method of Levenberg and Marquardt: Gauss-Newton's step, damped as much as it must be.

    $$ p_{k+1} = p_k - (J^T J + \lambda D^2)^{-1} J^T r $$

    Args:
        residuals: function of the parameters; it returns a pytree of arrays.

    Returns:
        A solver whose objective must be `SumOfSquares(residuals)`. One step ends where the sum is lower.

    Example:
        >>> residuals = lambda p: jnp.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]])
        >>> found = least_squares(residuals, jnp.array([-1.2, 1.0]), levenberg_marquardt, steps=50)
        >>> [round(float(entry), 3) for entry in found.params]
        [1.0, 1.0]

    Reference:
        More, The Levenberg-Marquardt algorithm: implementation and theory, Lecture Notes in Mathematics 630 (1978).
    """
    import lineax
    import optimistix

    descent: Any = optimistix.DampedNewtonDescent(linear_solver=lineax.QR())
    return _solver(residuals, descent, optimistix.ClassicalTrustRegion(high_cutoff=_GOOD), _FIRST_SIZE)


def dogleg(residuals: Residuals) -> Solver:
    """Make Powell's dogleg: a path from steepest descent to Gauss-Newton, as far as a trust region reaches.

    `s = -a ∇f` (the Cauchy point) `... -J⁺ r`

    Args:
        residuals: function of the parameters; it returns a pytree of arrays.

    Returns:
        A solver whose objective must be `SumOfSquares(residuals)`. One step ends where the sum is lower.

    Example:
        >>> residuals = lambda p: jnp.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]])
        >>> found = least_squares(residuals, jnp.array([-1.2, 1.0]), dogleg, steps=50)
        >>> [round(float(entry), 3) for entry in found.params]
        [1.0, 1.0]

    Reference:
        Powell, A new algorithm for unconstrained optimization, in Nonlinear Programming (1970).
    """
    import lineax
    import optimistix

    descent: Any = optimistix.DoglegDescent(linear_solver=lineax.AutoLinearSolver(well_posed=False))
    return _solver(residuals, descent, optimistix.ClassicalTrustRegion(high_cutoff=_GOOD))


def least_squares(
    residuals: Residuals,
    params: Params,
    solver: Callable[[Residuals], Solver] = levenberg_marquardt,
    *,
    steps: int = 200,
    tolerance: float | Scalar | None = None,
    trace: Sequence[str] = (),
) -> Solution:
    r"""Fit parameters so that residuals are small.

    $$ \min_p \tfrac12 \sum_i r_i(p)^2 $$

    Args:
        residuals: function of the parameters; it returns a pytree of arrays.
        params: where to start, a pytree of floating-point arrays.
        solver: what makes a solver of residuals.
        steps: how many steps at most.
        tolerance: as in `minimise`; 0 goes on until rounding hides what is left.
        trace: as in `minimise`.

    Returns:
        Where the fit ended and why; its value is half the sum of squares.

    Raises:
        ValueError: as in `minimise`.

    Example:
        >>> x, y = jnp.array([0.0, 1.0, 2.0, 3.0]), jnp.array([2.0, 1.0, 0.5, 0.25])
        >>> model = lambda p: p["height"] * jnp.exp(-p["rate"] * x)
        >>> start = {"height": jnp.float32(1.0), "rate": jnp.float32(1.0)}
        >>> found = least_squares(lambda p: model(p) - y, start)
        >>> {name: round(float(value), 3) for name, value in found.params.items()}
        {'height': 2.0, 'rate': 0.693}
    """
    objective: Any = SumOfSquares(residuals)
    return minimise(objective, params, solver(residuals), steps=steps, tolerance=tolerance, trace=trace)


def standard_errors(residuals: Residuals, params: Params) -> Uncertainty:
    r"""Tell how well the data determine the parameters of a fit.

    $$ C = \frac{|r|^2}{m - n} (J^T J)^{-1}, \quad \sigma_i = \sqrt{C_{ii}} $$

    By singular values of J with its columns scaled, not by normal equations.

    Args:
        residuals: function of the parameters, observed minus fitted or the other way round.
        params: the fitted parameters.

    Returns:
        Standard errors, covariance, the noise, and a statement on what is not determined.

    Example:
        >>> y = jnp.array([1.0, 2.0, 4.0, 5.0])
        >>> told = standard_errors(lambda mean: y - mean, jnp.float32(3.0))
        >>> round(float(told.standard_errors), 5), told.verdict
        (0.91287, 'every parameter is determined by the data')
    """
    vector = flatten(params)
    found, matrix = _linearised(residuals, vector)
    rows, columns = matrix.shape
    scale = array_norm(matrix, axis=0)
    scale = jnp.where(scale > 0, scale, 1)
    finite = jnp.all(jnp.isfinite(matrix)) & jnp.all(jnp.isfinite(found))
    scaled = jnp.where(finite, matrix / scale[None, :], 0)
    _, singular, directions = jnp.linalg.svd(scaled, full_matrices=True)
    singular = jnp.zeros(columns, scaled.dtype).at[: len(singular)].set(singular)
    kept = singular > max(rows, columns) * jnp.finfo(scaled.dtype).eps * singular[0]
    rank = jnp.sum(kept, dtype=jnp.int32)
    freedom = rows - columns
    noise = array_norm(found) / max(freedom, 1) ** 0.5 if freedom > 0 else jnp.full((), jnp.inf, found.dtype)
    root = jnp.where(kept[:, None], directions / jnp.where(kept, singular, 1)[:, None], 0) / scale[None, :]
    # Which parameters take part in a direction that no residual notices.
    free = jnp.sum(jnp.where(kept[:, None], 0, directions**2), axis=0) > jnp.finfo(scaled.dtype).eps ** 0.5
    spread = jnp.where(free | ~finite, jnp.inf, noise * array_norm(root, axis=0))
    status = jnp.int32(DETERMINED if freedom > 0 else SATURATED)
    status = jnp.where(rank < columns, jnp.int32(DEFICIENT), status)
    status = jnp.where(finite, status, jnp.int32(NOT_FINITE))
    covariance = (noise * root).T @ (noise * root) if freedom > 0 else jnp.full((columns, columns), jnp.inf)
    return Uncertainty(vector.wide(spread), covariance.astype(found.dtype), noise, rank, status)


def _linearised(residuals: Residuals, vector: Vector) -> tuple[Array, Array]:
    def flat(entries: Array) -> Array:
        return _flat(residuals, vector.wide(entries), entries.dtype)

    return flat(vector.entries), jacobian(flat)(vector.entries)


def _flat(residuals: Residuals, params: Params, dtype: Any) -> Array:
    return ravel_pytree(residuals(params))[0].astype(dtype)


def _solver(residuals: Residuals, descent: Any, search: Any, first: float = 1.0) -> Solver:
    import lineax
    import optimistix

    searches = not isinstance(search, optimistix.LearningRate)

    def init(params: Params) -> _State:
        entries = flatten(params).entries
        unknown = jnp.full((), jnp.inf, entries.dtype)
        return _State(jnp.asarray(first, entries.dtype), jnp.zeros_like(entries), unknown)

    def step(objective: Objective, params: Params, state: _State) -> tuple[Params, _State, Info]:
        if not isinstance(objective, SumOfSquares) or objective.residuals is not residuals:
            raise TypeError(
                "objective: expected SumOfSquares of the residuals that this solver was made for, got "
                f"{objective!r}; call least_squares, or minimise(SumOfSquares(residuals), ...)"
            )
        vector = flatten(params)
        x = vector.entries
        found, matrix = _linearised(residuals, vector)
        norms = array_norm(matrix, axis=0)
        scale = jnp.maximum(state.scale, jnp.where(jnp.isfinite(norms), norms, 0))
        unit = jnp.where(scale > 0, scale, 1)
        scaled = lineax.MatrixLinearOperator(matrix / unit[None, :])
        here = optimistix.FunctionInfo.ResidualJac(found, scaled)

        def evaluate(step: Array) -> tuple[Any, Array]:
            trial = vector.round(x + step / unit)
            there = optimistix.FunctionInfo.Residual(_flat(residuals, vector.wide(trial), x.dtype))
            return there, jnp.any(trial != x)

        search_state = jax.tree.map(lambda _: state.size, search.init(x, here))
        trial = first_accepted(descent, search, here, search_state, state.size, evaluate, x)
        value, gradient = jnp.sum(found**2) / 2, found @ matrix
        moved = jnp.where(trial.accepted, vector.round(x + trial.step / unit), x)
        moves, tries_on = trial.first / unit, searches | (jnp.abs(trial.promise) < FALLING * state.promise)
        status = outcome(trial.accepted, trial.promise, value, trial.noise, moves=moves, x=x, tries_on=tries_on)
        size = jax.tree.leaves([trial.search_state, state.size])[0]
        size = jnp.where(trial.accepted, jnp.minimum(size, _LARGEST_SIZE), state.size)
        info = Info(value, vector.rounded(gradient), vector.rounded(moved - x), status)
        after = _State(size, jnp.where(trial.accepted, scale, state.scale), jnp.abs(trial.promise))
        return vector.rounded(moved), after, info

    return Solver(init, step)
