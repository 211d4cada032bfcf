"""The contestants: where each one lives and what it is."""

import importlib
import importlib.util

MODULES = {
    "ours": "ours",
    "torch": "peers_torch",
    "torch_func": "peers_torch_func",
    "optax": "peers_optax",
    "jax": "peers_jax",
}
TITLES = {
    "ours": "calcdl",
    "torch": "(a) PyTorch eager",
    "torch_func": "(b) torch.func vmap",
    "optax": "(c) Optax step loop",
    "jax": "(d) raw jit(vmap(scan))",
}


def present():
    """Names of the contestants that can run here."""
    found = [name for name, module in MODULES.items() if importlib.util.find_spec(f"benchmarks.{module}")]
    has_torch = importlib.util.find_spec("torch") is not None
    return [name for name in found if has_torch or not name.startswith("torch")]


def load(name):
    """Functions of one contestant, by workload."""
    return importlib.import_module(f"benchmarks.{MODULES[name]}").WORKLOADS
