"""Minimisation: one contract for every method, and what there is to choose from.

- `Solver(init, step)` is the contract; `minimise` runs one to a tolerance and says by a `Solution` where it ended and
  why, `calcdl.train` runs one on minibatches. `Info` is what a step lets an observer see.
- `descent` makes a solver from a name in `OPTIMISERS`, with a `schedule` from `SCHEDULES`, clipping and
  weight decay. Prefer "sgd" where theory is to be compared, "momentum" where the problem is ill conditioned
  and the gradient exact, "adam" or "adamw" for deep networks. `averaged` returns the mean of any solver's iterates,
  `frozen` keeps some parameters as they are, `alternating` takes the steps of several solvers in turn.
- `lbfgs` and `steepest_descent` search for their own rate: prefer `lbfgs` for any smooth objective without noise,
  `bfgs` or `newton` for up to some hundred parameters; `newton` is the one that tells saddles from minima.
- `least_squares` fits residuals, by `levenberg_marquardt` unless told otherwise (`gauss_newton`, `dogleg`), and
  `standard_errors` says how well the data determine the fit. `find_root` is for one equation in one unknown.
- `minimise_constrained` takes equalities, inequalities and bounds, and returns multipliers and the residuals of the
  conditions of a solution (`kkt_residuals` at any point); its rounds are the solver `augmented_lagrangian`. For a
  simple set prefer `projected` with a `projection`, for a penalty with a corner `proximal_descent`.
- `hypergradient` differentiates a validation loss by what steers training: "forward" for a handful of
  hyperparameters, "unrolled" for many, "implicit" where training ends at a minimum.
- `extragradient` takes the slope a step ahead: for games, where descent turns instead of arriving.
- `function_space` descends on predictions instead of parameters: gradient boosting of any loss with any weak learner.
- `separability` says whether a classifier without a penalty has an optimum at all, which no small gradient proves.
- `linear_least_squares` is the closed form: prefer it to any descent where the model is linear and the data
  fit in memory; "qr" unless the columns may be dependent, then "svd".
"""

from calcdl.optim import function_space as function_space
from calcdl.optim import separability as separability
from calcdl.optim.alternation import alternating as alternating
from calcdl.optim.augmented_lagrangian import augmented_lagrangian as augmented_lagrangian
from calcdl.optim.averaging import Averaged as Averaged
from calcdl.optim.averaging import averaged as averaged
from calcdl.optim.constrained import ConstrainedSolution as ConstrainedSolution
from calcdl.optim.constrained import ConstrainedTrace as ConstrainedTrace
from calcdl.optim.constrained import minimise_constrained as minimise_constrained
from calcdl.optim.descent import descent as descent
from calcdl.optim.extragradient import extragradient as extragradient
from calcdl.optim.freezing import frozen as frozen
from calcdl.optim.hypergradients import Hypergradient as Hypergradient
from calcdl.optim.hypergradients import hypergradient as hypergradient
from calcdl.optim.hypergradients import trained as trained
from calcdl.optim.hypergradients import unrolled as unrolled
from calcdl.optim.hyperparameters import Hyperparameter as Hyperparameter
from calcdl.optim.kkt import KKT as KKT
from calcdl.optim.kkt import Multipliers as Multipliers
from calcdl.optim.kkt import kkt_residuals as kkt_residuals
from calcdl.optim.line_search import LINE_SEARCHES as LINE_SEARCHES
from calcdl.optim.line_search import lbfgs as lbfgs
from calcdl.optim.line_search import steepest_descent as steepest_descent
from calcdl.optim.linear import METHODS as METHODS
from calcdl.optim.linear import LeastSquares as LeastSquares
from calcdl.optim.linear import digits_warning as digits_warning
from calcdl.optim.linear import linear_least_squares as linear_least_squares
from calcdl.optim.nonlinear_least_squares import SumOfSquares as SumOfSquares
from calcdl.optim.nonlinear_least_squares import Uncertainty as Uncertainty
from calcdl.optim.nonlinear_least_squares import dogleg as dogleg
from calcdl.optim.nonlinear_least_squares import gauss_newton as gauss_newton
from calcdl.optim.nonlinear_least_squares import least_squares as least_squares
from calcdl.optim.nonlinear_least_squares import levenberg_marquardt as levenberg_marquardt
from calcdl.optim.nonlinear_least_squares import standard_errors as standard_errors
from calcdl.optim.optimisers import OPTIMISERS as OPTIMISERS
from calcdl.optim.optimisers import Optimiser as Optimiser
from calcdl.optim.optimisers import check_hyperparameters as check_hyperparameters
from calcdl.optim.projections import PROJECTIONS as PROJECTIONS
from calcdl.optim.projections import projected as projected
from calcdl.optim.projections import projection as projection
from calcdl.optim.proximal import PROXIMALS as PROXIMALS
from calcdl.optim.proximal import Proximal as Proximal
from calcdl.optim.proximal import proximal_box as proximal_box
from calcdl.optim.proximal import proximal_descent as proximal_descent
from calcdl.optim.proximal import proximal_elastic_net as proximal_elastic_net
from calcdl.optim.proximal import proximal_l1 as proximal_l1
from calcdl.optim.proximal import proximal_projection as proximal_projection
from calcdl.optim.proximal import proximal_squared_l2 as proximal_squared_l2
from calcdl.optim.proximal import soft_threshold as soft_threshold
from calcdl.optim.quasi_newton import bfgs as bfgs
from calcdl.optim.roots import Root as Root
from calcdl.optim.roots import find_root as find_root
from calcdl.optim.schedules import SCHEDULES as SCHEDULES
from calcdl.optim.schedules import Schedule as Schedule
from calcdl.optim.schedules import schedule as schedule
from calcdl.optim.second_order import newton as newton
from calcdl.optim.solver import STATUSES as STATUSES
from calcdl.optim.solver import Info as Info
from calcdl.optim.solver import Solution as Solution
from calcdl.optim.solver import Solver as Solver
from calcdl.optim.solver import Trace as Trace
from calcdl.optim.solver import minimise as minimise
