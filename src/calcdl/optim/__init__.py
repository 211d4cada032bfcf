"""Minimisation: one contract for every method, gradient descent by any rule, linear least squares.

- `Solver(init, step)` is the contract that `calcdl.train` runs; `Info` is what a step lets an observer see.
- `descent` makes a solver from a name in `OPTIMISERS`, with a `schedule` from `SCHEDULES`, clipping and
  weight decay. Prefer "sgd" where theory is to be compared, "momentum" where the problem is ill conditioned
  and the gradient exact, "adam" or "adamw" for deep networks.
- `linear_least_squares` is the closed form: prefer it to any descent where the model is linear and the data
  fit in memory; "qr" unless the columns may be dependent, then "svd".
"""

from calcdl.optim.descent import descent as descent
from calcdl.optim.hyperparameters import Hyperparameter as Hyperparameter
from calcdl.optim.least_squares import METHODS as METHODS
from calcdl.optim.least_squares import LeastSquares as LeastSquares
from calcdl.optim.least_squares import digits_warning as digits_warning
from calcdl.optim.least_squares import linear_least_squares as linear_least_squares
from calcdl.optim.optimisers import OPTIMISERS as OPTIMISERS
from calcdl.optim.optimisers import Optimiser as Optimiser
from calcdl.optim.optimisers import check_hyperparameters as check_hyperparameters
from calcdl.optim.schedules import SCHEDULES as SCHEDULES
from calcdl.optim.schedules import Schedule as Schedule
from calcdl.optim.schedules import schedule as schedule
from calcdl.optim.solver import Info as Info
from calcdl.optim.solver import Solver as Solver
