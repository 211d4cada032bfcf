"""What every contestant computes: sizes, data and recordings of five studies.

- W1: y = φ(w x + b) fitted to 2x + 1 by SGD with ten fresh inputs a step. Recorded: the loss of every step.
- W2i: one backward pass through deep stacks at initialisation, on digits. Recorded for every layer: the norm of the
  weight gradient, the norm of the gradient by the pre-activation, the second moment of the output.
- W2t: a stack 20 deep trained on digits by SGD. Recorded: the loss of every 10th step, the norm of the weight gradient
  of every layer of every 50th, the test accuracy at the end.
- W3: least squares on diabetes by full-batch descent. Recorded: the loss of every step, the weights at the end.
- W4: a network 64-128-10 on digits by Adam. Recorded: the loss of every step, the test accuracy at the end.

A contestant is a function of one of these records that returns a dict of NumPy arrays, shaped as `RESULTS` says; layers
that a shallower stack does not have are NaN. Weights are normal with the stated variance, biases zero, all float32.
Stacks on digits have as many inputs as hidden units, so that all hidden layers have one shape.
"""

import math
from typing import NamedTuple

import numpy as np

CLASSES = 10
RESULTS = {
    "W1": {"loss": ("activation", "rate", "seed", "step")},
    "W2i": dict.fromkeys(
        ("weight_gradient", "signal", "second_moment"), ("depth", "activation", "initialiser", "seed", "layer")
    ),
    "W2t": {
        "loss": ("activation", "rate", "seed", "record"),
        "weight_gradient": ("activation", "rate", "seed", "record", "layer"),
        "accuracy": ("activation", "rate", "seed"),
    },
    "W3": {"loss": ("rate", "step"), "weights": ("rate", "column")},
    "W4": {"loss": ("seed", "step"), "accuracy": ("seed",)},
}


class Line(NamedTuple):
    """W1. Weight LeCun normal (variance 1), bias zero; inputs standard normal; mean squared error."""

    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu")
    rates: tuple[float, ...] = tuple(np.geomspace(1e-3, 1.0, 8).tolist())
    seeds: int = 128
    steps: int = 100
    batch: int = 10


class Initialisation(NamedTuple):
    """W2i. The same batch of digits for every network; softmax cross-entropy, averaged."""

    features: np.ndarray
    labels: np.ndarray
    depths: tuple[int, ...] = (2, 5, 10, 20, 50)
    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu")
    initialisers: tuple[str, ...] = ("lecun_normal", "glorot_normal", "he_normal")
    seeds: int = 32


class Digits(NamedTuple):
    """Rows standardised by the training part."""

    features: np.ndarray
    labels: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray


class Training(NamedTuple):
    """W2t. Each row once an epoch, the remainder of an epoch dropped; `initialiser` for all."""

    data: Digits
    depth: int = 20
    initialiser: str = "glorot_normal"
    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu")
    rates: tuple[float, ...] = tuple(np.geomspace(0.01, 0.3, 4).tolist())
    seeds: int = 8
    steps: int = 500
    batch: int = 32
    loss_every: int = 10
    gradient_every: int = 50


class Regression(NamedTuple):
    """W3. Columns standardised, the first one constant; targets as they are; from zero; mean squared error."""

    features: np.ndarray
    targets: np.ndarray
    rates: tuple[float, ...] = tuple(np.geomspace(1e-3, 1.0, 64).tolist())
    steps: int = 1500


class Ensemble(NamedTuple):
    """W4. ReLU, He normal; Adam with its usual constants; the remainder of an epoch dropped."""

    data: Digits
    width: int = 128
    initialiser: str = "he_normal"
    rate: float = 1e-3
    seeds: int = 64
    epochs: int = 20
    batch: int = 64


def deviation(initialiser: str, inputs: int, outputs: int) -> float:
    """Return the standard deviation of the weights of a layer."""
    variances = {"lecun_normal": 1 / inputs, "glorot_normal": 2 / (inputs + outputs), "he_normal": 2 / inputs}
    return math.sqrt(variances[initialiser])


def digits() -> Digits:
    """Load digits, 1437 rows to train and 360 to test."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    pixels, labels = pixels[order], labels[order].astype(np.int32)
    mean, spread = pixels[:1437].mean(axis=0), pixels[:1437].std(axis=0)
    features = ((pixels - mean) / np.where(spread > 0, spread, 1)).astype(np.float32)
    return Digits(features[:1437], labels[:1437], features[1437:], labels[1437:])


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """Load diabetes, standardised, with a constant column before the others."""
    from sklearn.datasets import load_diabetes

    columns, targets = load_diabetes(return_X_y=True)
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    features = np.concatenate([np.ones((len(columns), 1)), columns], axis=1)
    return features.astype(np.float32), targets.astype(np.float32)


def workload(name: str, scale: float = 1.0) -> NamedTuple:
    """Make a workload; `scale` below 1 shrinks the number of seeds, rates and steps, and of the deepest stacks."""

    def part(count: int, least: int = 2) -> int:
        return max(least, min(count, math.ceil(count * scale)))

    if name == "W1":
        return Line(seeds=part(128), steps=part(100, 10))
    if name == "W2i":
        data = digits()
        depths = Initialisation._field_defaults["depths"][: part(5)]
        return Initialisation(data.features[:128], data.labels[:128], depths=depths, seeds=part(32))
    if name == "W2t":
        return Training(digits(), seeds=part(8), steps=50 * part(10, 1))
    if name == "W3":
        rates = np.geomspace(1e-3, 1.0, part(64, 4)).tolist()
        return Regression(*diabetes(), rates=tuple(rates), steps=part(1500, 20))
    if name == "W4":
        return Ensemble(digits(), seeds=part(64), epochs=part(20))
    raise ValueError(f"workload: expected one of {', '.join(RESULTS)}, got {name!r}")
