"""The laboratory as one command: `python -m calcdl list | run NAME ... | report DIR | doctor`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from calcdl.experiments import (
    activations,
    adversarial,
    autoencoder,
    blocks,
    boosting,
    calibration,
    chain_rule,
    classification,
    constrained,
    cures,
    curve_fitting,
    derivatives,
    dirac_gan,
    discriminator,
    generalisation,
    gradient_descent,
    gradient_vanishing,
    hypergradients,
    integrals,
    likelihood,
    limits,
    linear_autoencoder,
    linear_regression,
    losses,
    optimisers,
    phase_map,
    regularisation,
    second_order,
    sensitivity,
    separation,
    support_vectors,
)
from calcdl.lab import environment, store
from calcdl.lab.cli import DIRECTORY, DONE, STORAGE, Experiment, complain, guarded, main, say
from calcdl.lab.config import ConfigError
from calcdl.lab.refusals import nearest

USAGE = """usage: python -m calcdl COMMAND

  list               the experiments and the question of each
  run NAME [...]     run an experiment; run NAME --help says what it can be told
  report DIR [...]   make the page of a finished run again from its stored results
  doctor             what is installed, on what it runs, and where it writes"""

EXPERIMENTS: dict[str, Experiment] = {
    "activations": activations.EXPERIMENT,
    "adversarial": adversarial.EXPERIMENT,
    "autoencoder": autoencoder.EXPERIMENT,
    "blocks": blocks.EXPERIMENT,
    "boosting": boosting.EXPERIMENT,
    "calibration": calibration.EXPERIMENT,
    "chain_rule": chain_rule.EXPERIMENT,
    "classification": classification.EXPERIMENT,
    "constrained": constrained.EXPERIMENT,
    "cures": cures.EXPERIMENT,
    "curve_fitting": curve_fitting.EXPERIMENT,
    "derivatives": derivatives.EXPERIMENT,
    "dirac_gan": dirac_gan.EXPERIMENT,
    "discriminator": discriminator.EXPERIMENT,
    "generalisation": generalisation.EXPERIMENT,
    "gradient_descent": gradient_descent.EXPERIMENT,
    "gradient_vanishing": gradient_vanishing.EXPERIMENT,
    "hypergradients": hypergradients.EXPERIMENT,
    "integrals": integrals.EXPERIMENT,
    "likelihood": likelihood.EXPERIMENT,
    "limits": limits.EXPERIMENT,
    "linear_autoencoder": linear_autoencoder.EXPERIMENT,
    "linear_regression": linear_regression.EXPERIMENT,
    "losses": losses.EXPERIMENT,
    "optimisers": optimisers.EXPERIMENT,
    "phase_map": phase_map.EXPERIMENT,
    "regularisation": regularisation.EXPERIMENT,
    "second_order": second_order.EXPERIMENT,
    "sensitivity": sensitivity.EXPERIMENT,
    "separation": separation.EXPERIMENT,
    "support_vectors": support_vectors.EXPERIMENT,
}


def command(arguments: Sequence[str]) -> int:
    """Do what a command line says.

    Args:
        arguments: the words after `python -m calcdl`.

    Returns:
        The exit code: see `calcdl.lab.cli`.
    """
    return guarded(lambda: _command(arguments), "calcdl", debug="--debug" in arguments)


def _command(arguments: Sequence[str]) -> int:
    word, *rest = arguments or ("--help",)
    if word in ("-h", "--help"):
        say(USAGE)
        return DONE
    if word not in ("list", "run", "report", "doctor"):
        raise ConfigError(f"{word}: unknown command; {nearest(word, ('list', 'run', 'report', 'doctor'))}")
    if word in ("run", "report") and not rest:
        raise ConfigError(f"{word}: got nothing; expected {'a name' if word == 'run' else 'a run directory'}")
    if word == "run":
        return main(_experiment(rest[0]), rest[1:])
    if word == "report":
        return _report(rest[0], rest[1:])
    if rest:
        raise ConfigError(f"{rest[0]}: unexpected; {word} takes nothing")
    return _list() if word == "list" else _doctor()


def _experiment(name: str) -> Experiment:
    if name not in EXPERIMENTS:
        raise ConfigError(f"{name}: unknown experiment; {nearest(name, EXPERIMENTS)}")
    return EXPERIMENTS[name]


def _report(folder: str, rest: Sequence[str]) -> int:
    store.check(Path(folder))
    name = store.environment(Path(folder)).get("experiment")
    if name not in EXPERIMENTS:
        complain(f"error: {folder}: holds a run of {name}, which is no experiment here; start a new run")
        return DIRECTORY
    return main(EXPERIMENTS[name], ["--report", folder, *rest])


def _list() -> int:
    width = max(map(len, EXPERIMENTS), default=0)
    for name, experiment in sorted(EXPERIMENTS.items()):
        say(f"{name:<{width}}  {experiment.doc.strip().splitlines()[0]}")
    return DONE


def _doctor() -> int:
    found = environment.describe()
    cache = environment.cache_directory()
    runs = Path("runs")
    writable = environment.writable(runs)
    lines = {
        "calcdl": found["calcdl"],
        "python": f"{found['python']} on {found['platform']}",
        "packages": ", ".join(f"{name} {version}" for name, version in found["packages"].items()),
        "devices": f"{found['device_count']} x {found['device_kind']} ({found['device']})",
        "processors": found["processors"],
        "float64": 'on request: precision = "float64"',
        "compiled": cache or "not kept: no writable cache directory; set JAX_COMPILATION_CACHE_DIR",
        "runs": f"{runs.absolute()}{'' if writable else ': not writable; choose another place with --runs DIR'}",
    }
    for name, value in lines.items():
        say(f"{name:<11} {value}")
    return DONE if writable else STORAGE


if __name__ == "__main__":
    raise SystemExit(command(sys.argv[1:]))
