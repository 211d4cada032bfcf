"""Health: what a network's signals mean, in words that depend on no scale.

Multiplying the loss by a constant, summing it instead of averaging, or widening the network multiplies the signal of
every layer alike. Ratios between layers stay, so only ratios are judged here.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Decay(NamedTuple):
    """How the back-propagated signal changes from layer to layer.

    Attributes:
        factor: what one layer passes on to the layer before it; below 1 the gradient vanishes, above 1 it explodes.
        lower: lower end of the 95 % confidence interval of `factor` over the runs.
        upper: upper end.
        share: median over the runs of first layer's signal divided by last layer's.
        runs: runs that the numbers rest on: those whose signal is a positive number in every layer.
        total: all runs.
        error: standard error of the logarithm of `factor`.
    """

    factor: float
    lower: float
    upper: float
    share: float
    runs: int
    total: int
    error: float = math.nan


def settled_layers(depth: int) -> range:
    """Return the layers between which a decay is fitted: without the first fifth, where lengths settle, and the last.

    Args:
        depth: number of layers.

    Returns:
        Positions of layers, at least two of them where there are two.

    Example:
        >>> settled_layers(50), settled_layers(2)
        (range(10, 49), range(0, 2))
    """
    return range(depth // 5, depth - 1) if depth >= 5 else range(depth)


def decay(signal: Float[np.ndarray, "runs depth"]) -> Decay:
    r"""Fit the factor that one layer passes on.

    .. math:: \log |\delta_l| = a - l \log(\text{factor}), \quad l = 1 \dots L

    by least squares in every run, over `settled_layers`; the interval is Student's over the runs.

    Args:
        signal: length of the back-propagated signal, first layer first.

    Returns:
        The decay; NaN where no run or fewer than two layers have a signal.

    Raises:
        ValueError: `signal` has not two dimensions.

    Example:
        >>> decay(np.array([[0.25, 0.5, 1.0], [0.25, 0.5, 1.0]])).factor
        0.5
    """
    signal = np.asarray(signal, np.float64)
    if signal.ndim != 2:
        raise ValueError(f"signal: expected [runs, depth], got shape {signal.shape}")
    good = signal[np.all(np.isfinite(signal) & (signal > 0), axis=1)]
    layers = np.array(settled_layers(signal.shape[1]), np.float64)
    if len(good) == 0 or len(layers) < 2:
        return Decay(math.nan, math.nan, math.nan, math.nan, len(good), len(signal))
    from scipy.special import stdtrit

    centred = layers - layers.mean()
    slopes = np.log(good[:, layers.astype(int)]) @ centred / (centred @ centred)
    error = slopes.std(ddof=1) / math.sqrt(len(slopes)) if len(slopes) > 1 else math.inf
    share = float(np.median(good[:, 0] / good[:, -1]))
    factor = math.exp(-slopes.mean())
    spread = np.exp(error * stdtrit(len(slopes) - 1, 0.975)) if len(slopes) > 1 else math.inf
    return Decay(factor, float(factor / spread), float(factor * spread), share, len(good), len(signal), float(error))


def in_words(found: Decay) -> str:
    """Say what a decay means.

    Args:
        found: the decay.

    Returns:
        A sentence without any absolute threshold: the gradient vanishes or explodes when the confidence interval of
        the factor leaves out 1.

    Example:
        >>> in_words(Decay(0.5, 0.49, 0.51, 1 / 2400, 32, 32)).split("; ")[1]
        "the first layer receives 1/2,400 of the last layer's signal"
    """
    if not found.upper < math.inf:
        return (
            f"cannot be judged: {found.runs} of {found.total} runs have a signal in every layer, "
            "and two are needed; take more seeds, or float64 where the signal is too small for float32"
        )
    verdict = "vanishes" if found.upper < 1 else "explodes" if found.lower > 1 else "is kept"
    share = f"1/{_two_digits(1 / found.share)}" if found.share < 1 else f"{_two_digits(found.share)} times"
    share += " of" if found.share < 1 else ""
    counted = "" if found.runs == found.total else f" ({found.runs} of {found.total} runs)"
    return (
        f"{verdict}: a layer passes on {found.factor:.3f} ({found.lower:.3f} to {found.upper:.3f}); "
        f"the first layer receives {share} the last layer's signal{counted}"
    )


def _two_digits(number: float) -> str:
    if number >= 1e6:
        return f"{number:.1e}"
    return f"{float(f'{number:.2g}'):,.{1 if number < 10 else 0}f}"
