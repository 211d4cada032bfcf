r"""Frozen parameters: a solver that leaves some of them as they are.

Fine-tuning trains the last layers of a network and keeps the others; a study of one layer keeps all others. What is
kept is chosen by name, and costs neither a gradient nor a state.
"""

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from calcdl.optim.solver import Info, Solver
from calcdl.trees import join_floating, names
from calcdl.types import Objective, Params


def frozen(solver: Solver, patterns: Sequence[str]) -> Solver:
    r"""Make a solver that moves only the parameters that no pattern matches.

    $$ \min_{p} f(p, \bar p), \quad \bar p \text{ as it was} $$

    Args:
        solver: what moves the rest; it sees an objective of the rest alone.
        patterns: names of leaves as `trees.names` gives them, such as ``"hidden.weight"``, where ``*`` stands for any
            letters: ``["first.*", "*.bias"]``.

    Returns:
        A solver of all parameters. In its info, gradient and update of what is frozen are 0.

    Raises:
        ValueError: no pattern, or one that matches no parameter, or all parameters matched; when it meets parameters.

    Example:
        >>> from calcdl.optim.descent import descent
        >>> from calcdl.optim.solver import minimise
        >>> start = {"slope": jnp.float32(1.0), "shift": jnp.float32(1.0)}
        >>> kept = frozen(descent("sgd", 0.5), ["shift"])
        >>> found = minimise(lambda p: (p["slope"] + p["shift"]) ** 2, start, kept, steps=1)
        >>> {name: float(value) for name, value in found.params.items()}
        {'shift': 1.0, 'slope': -1.0}
    """
    if isinstance(patterns, str) or not patterns:
        raise ValueError(f"patterns: expected a list of names of parameters, got {patterns!r}")

    def divide(params: Params) -> tuple[Params, Params]:
        called = names(params)
        matches = [fnmatch.filter(called, pattern) for pattern in patterns]
        if idle := [pattern for pattern, found in zip(patterns, matches, strict=True) if not found]:
            raise ValueError(f"patterns: {idle[0]!r} matches no parameter; there are: {', '.join(called)}")
        held = {name for found in matches for name in found}
        if held == set(called):
            raise ValueError("patterns: expected a parameter that is left to move, got all of them frozen")
        leaves, structure = jax.tree.flatten(params)
        moving = [None if name in held else leaf for name, leaf in zip(called, leaves, strict=True)]
        kept = [leaf if name in held else None for name, leaf in zip(called, leaves, strict=True)]
        return jax.tree.unflatten(structure, moving), jax.tree.unflatten(structure, kept)

    def init(params: Params) -> Any:
        return solver.init(divide(params)[0])

    def step(objective: Objective, params: Params, state: Any) -> tuple[Params, Any, Info]:
        moving, kept = divide(params)
        moved, state, info = solver.step(lambda part: objective(join_floating(part, kept)), moving, state)
        nothing = jax.tree.map(jnp.zeros_like, kept)
        whole = info._replace(
            gradient=join_floating(info.gradient, nothing), update=join_floating(info.update, nothing)
        )
        return join_floating(moved, kept), state, whole

    return Solver(init, step)
