"""The calculus that the other rooms stand on.

- `integrals`: `gaussian_expectation`, the mean of any function of one normal variable, differentiable in its scale.
"""

from calcdl.calculus import integrals as integrals
