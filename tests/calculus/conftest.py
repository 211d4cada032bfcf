"""What is compiled here runs a few times, so compiling fast matters more than running fast."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def compile_fast():
    """Leave out what XLA takes longest for; the numbers must not depend on it."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
