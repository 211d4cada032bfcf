"""Does descent on a parabola converge below a rate of 2?

Question. Where does descent on x^2 / 2 stop converging?

Mathematics. A step is

    x' = (1 - rate) x

so the distance shrinks by :math:`|1 - \\eta|`.

Claim. Rates below 2 converge.
"""

import json
import os
import signal
import sys
from typing import Any

import jax
import jax.numpy as jnp
from pydantic import Field

from calcdl import study
from calcdl.lab import plots
from calcdl.lab.cli import Experiment, main
from calcdl.lab.config import AxisOf, Count, ExperimentConfig, Rate, Section, Seeds
from calcdl.types import DataError, Verdict


class Descent(Section):
    steps: Count = Field(default=20, description="steps of descent")


class Config(ExperimentConfig):
    rates: AxisOf[Rate] = Field(default=(0.1, 0.5, 1.5, 3.0), description="learning rates")
    seeds: Seeds = Field(default=(0, 1, 2, 3), description="one start a seed")
    bound: float = Field(default=1.0, description="what the distance must stay below")
    fault: str = Field(default="", description="what goes wrong, if anything")
    descent: Descent = Field(default=Descent(), description="how to descend")


def measure(config: Config, run: Any = study.run) -> Any:
    if config.fault == "data":
        raise DataError("column 'age': row 3 is NaN; drop the row")
    if config.fault == "value":
        raise ValueError("momentum: expected a number below 1, got 1.5")
    if config.fault == "defect":
        raise ZeroDivisionError("division by zero\nin two lines")

    def descend(key: Any, rate: Any) -> dict[str, Any]:
        start = jax.random.uniform(key, (), rate.dtype, 1.0, 2.0)
        end = jax.lax.fori_loop(0, config.descent.steps, lambda _, x: (1 - rate) * x, start)
        distance = jnp.where(config.fault == "nan", jnp.nan, jnp.abs(end) / start)
        return {"distance": distance, "status": (jnp.abs(end) > start).astype(jnp.int8)}

    axes = [study.axis("rate", config.rates), study.axis("seed", config.seeds)]
    return run(descend, axes, name="descents")


def check(config: Config, results: Any) -> tuple[Verdict, ...]:
    if config.fault == "check":
        raise KeyError("no such variable")
    worst = float(results.distance.where(results.rate < 2).max())
    return (Verdict("rates below 2 converge", worst < config.bound, worst, config.bound, "largest distance"),)


def show(config: Config, results: Any) -> dict[str, Any]:
    figure, panels = plots.figure(caption="Distance at the end against the rate.")
    plots.band(panels[0, 0], results.rate, results.distance.transpose("rate", "seed"), over="seed", label="descent")
    plots.theory(panels[0, 0], results.rate, abs(1 - results.rate) ** config.descent.steps)
    plots.logarithmic(panels[0, 0], "y")
    plots.finish(panels[0, 0], x="rate", y="distance")
    return {"distance": figure}


EXPERIMENT = Experiment("parabola", __doc__, Config, measure, check, show)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script in the background has its children ignore it
    jax.config.update("jax_num_cpu_devices", int(os.environ.get("DEVICES", "1")))
    code = main(EXPERIMENT)
    if "LOADED" in os.environ:
        print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
    raise SystemExit(code)
