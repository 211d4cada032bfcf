"""calcdl: how does calculus drive deep learning?

Rooms of pure functions, which work under `jax.jit`, `jax.grad` and `jax.vmap` on any pytree:

- `calcdl.calculus`: limits, derivatives, chain rule, integrals, each with an error estimate; expressions from text.
- `calcdl.nn`: activations, initialisers, dense stacks, losses, penalties.
- `calcdl.data`: bundled, user-supplied and synthetic data sets; batches drawn inside compiled loops.
- `calcdl.optim`: the solver contract, gradient descent with any Optax rule, linear least squares.
- `calcdl.theory`: mean-field predictions for deep random networks.
- `calcdl.diagnostics`: probes of gradients and activations, layer by layer.
- `calcdl.train`: one training run as one pure function of a key.
- `calcdl.study`: thousands of runs of any pure function, as a few compiled programs.

The laboratory, which owns every side effect, is `calcdl.lab` and `calcdl.experiments`.
"""

__version__ = "0.1.0"
