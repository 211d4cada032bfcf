"""The first-order rules of Optax by name, with their hyperparameters, defaults (Optax's) and intervals.

Every rule turns a gradient into an update of the parameters and scales it by the learning rate. Most are
points of one
grid: what smooths the gradient (nothing, a trace, a running mean), what divides it (nothing, the root of a
running second moment, its sign, the norm of a layer), and how weight decay enters.

Left out, and why: `noisy_sgd` draws from a key of its own; `lbfgs` evaluates the objective along a line.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import optax

from calcdl.optim.hyperparameters import Hyperparameter, check_names, check_value, choose


class Optimiser(NamedTuple):
    """A rule by which a gradient becomes an update.

    Attributes:
        build: `(learning_rate, **hyperparameters) -> optax transformation`; the rate is a scalar or a
            function of the step.
        hyperparameters: what it takes besides the learning rate, by name.
        reference: where it was published.
        scheduled: whether the rate may change from step to step.
    """

    build: Callable[..., optax.GradientTransformation]
    hyperparameters: dict[str, Hyperparameter]
    reference: str
    scheduled: bool = True


def check_hyperparameters(optimiser: str, values: Mapping[str, Any]) -> None:
    """Check values by field, as `descent` will: the name, then that each is a finite number in its interval.

    Args:
        optimiser: a key of `OPTIMISERS`.
        values: hyperparameters by name; besides the optimiser's own, those that every one has:
            `learning_rate`, `weight_decay`, `clip_value`, `clip_norm`. Traced values pass.

    Raises:
        ValueError: an unknown optimiser or hyperparameter, with the nearest name; a number outside its
            interval.
        TypeError: a value that is no number.

    Example:
        >>> check_hyperparameters("adam", {"learning_rate": 0.001, "b2": 0.999})
        >>> check_hyperparameters("adam", {"learning_rate": 0.0})
        Traceback (most recent call last):
        ValueError: learning_rate: expected a finite number in (0, inf), got 0.0
    """
    rule: Optimiser = choose("optimiser", optimiser, OPTIMISERS)
    fields = COMMON | rule.hyperparameters
    check_names(f"optimiser {optimiser}", values, fields)
    for name, value in values.items():
        check_value(name, value, fields[name].bounds)


def _sm3(learning_rate: Any, momentum: Any) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_sm3(momentum), optax.scale_by_learning_rate(learning_rate))


def _polyak(learning_rate: Any, f_min: Any, eps: Any) -> optax.GradientTransformation:
    return optax.polyak_sgd(max_learning_rate=learning_rate, f_min=f_min, eps=eps)


def _prodigy(learning_rate: Any, b1: Any, b2: Any, **others: Any) -> optax.GradientTransformation:
    return optax.contrib.prodigy(learning_rate, betas=(b1, b2), **others)


_B1 = Hyperparameter(0.9, "[0, 1)")
_B2 = Hyperparameter(0.999, "[0, 1)")
_EPS = Hyperparameter(1e-8, "(0, inf)")
_EPS_ROOT = Hyperparameter(0.0, "[0, inf)")
_MOMENTUM = Hyperparameter(0.9, "[0, 1)")
_WEIGHT_DECAY = Hyperparameter(0.0, "[0, inf)")
_WEIGHT = Hyperparameter(1.0, "[0, inf)")
_ADAM = {"b1": _B1, "b2": _B2, "eps": _EPS, "eps_root": _EPS_ROOT}
_ADAMAX = {"b1": _B1, "b2": _B2, "eps": _EPS}

COMMON: dict[str, Hyperparameter] = {
    "learning_rate": Hyperparameter(None, "(0, inf)"),
    "weight_decay": _WEIGHT_DECAY,
    "clip_value": Hyperparameter(None, "(0, inf)"),
    "clip_norm": Hyperparameter(None, "(0, inf)"),
}

OPTIMISERS: dict[str, Optimiser] = {
    "sgd": Optimiser(optax.sgd, {}, "Robbins and Monro, Annals of Mathematical Statistics 22 (1951) 400"),
    "momentum": Optimiser(optax.sgd, {"momentum": _MOMENTUM}, "Polyak, USSR Comp. Math. 4 (1964) 1"),
    "nesterov": Optimiser(
        partial(optax.sgd, nesterov=True), {"momentum": _MOMENTUM}, "Nesterov, Soviet Math. Doklady 27 (1983) 372"
    ),
    "optimistic_gradient_descent": Optimiser(
        optax.optimistic_gradient_descent, {"alpha": _WEIGHT, "beta": _WEIGHT}, "Mokhtari et al., arXiv:1901.08511"
    ),
    "polyak_sgd": Optimiser(
        _polyak,
        {"f_min": Hyperparameter(0.0, "(-inf, inf)"), "eps": Hyperparameter(0.0, "[0, inf)")},
        "Loizou et al., arXiv:2002.10542",
        scheduled=False,
    ),
    "sign_sgd": Optimiser(optax.sign_sgd, {}, "Bernstein et al., arXiv:1802.04434"),
    "signum": Optimiser(optax.signum, {"beta": Hyperparameter(0.9, "[0, 1)")}, "Bernstein et al., arXiv:1802.04434"),
    "rprop": Optimiser(
        optax.rprop,
        {
            "eta_minus": Hyperparameter(0.5, "(0, 1)"),
            "eta_plus": Hyperparameter(1.2, "(1, inf)"),
            "min_step_size": Hyperparameter(1e-6, "(0, inf)"),
            "max_step_size": Hyperparameter(50.0, "(0, inf)"),
        },
        "Riedmiller and Braun, IEEE ICNN (1993) 586",
        scheduled=False,
    ),
    "adagrad": Optimiser(
        optax.adagrad,
        {
            "initial_accumulator_value": Hyperparameter(0.1, "[0, inf)"),
            "eps": Hyperparameter(1e-7, "(0, inf)"),
        },
        "Duchi, Hazan and Singer, JMLR 12 (2011) 2121",
    ),
    "adadelta": Optimiser(
        optax.adadelta,
        {"rho": Hyperparameter(0.9, "[0, 1)"), "eps": Hyperparameter(1e-6, "(0, inf)")},
        "Zeiler, arXiv:1212.5701",
    ),
    "rmsprop": Optimiser(
        optax.rmsprop,
        {"decay": Hyperparameter(0.9, "[0, 1)"), "eps": _EPS, "initial_scale": Hyperparameter(0.0, "[0, inf)")},
        "Tieleman and Hinton, lecture 6.5 of Neural networks for machine learning (2012)",
    ),
    "rmsprop_momentum": Optimiser(
        optax.rmsprop,
        {
            "decay": Hyperparameter(0.9, "[0, 1)"),
            "eps": _EPS,
            "initial_scale": Hyperparameter(0.0, "[0, inf)"),
            "momentum": _MOMENTUM,
        },
        "Graves, arXiv:1308.0850",
    ),
    "adam": Optimiser(optax.adam, _ADAM, "Kingma and Ba, arXiv:1412.6980"),
    "adamw": Optimiser(
        optax.adamw,
        _ADAM | {"weight_decay": Hyperparameter(1e-4, "[0, inf)")},
        "Loshchilov and Hutter, arXiv:1711.05101",
    ),
    "nadam": Optimiser(optax.nadam, _ADAM, "Dozat, ICLR workshop (2016)"),
    "nadamw": Optimiser(
        optax.nadamw, _ADAM | {"weight_decay": Hyperparameter(1e-4, "[0, inf)")}, "Dozat, ICLR workshop (2016)"
    ),
    "amsgrad": Optimiser(optax.amsgrad, _ADAM, "Reddi, Kale and Kumar, arXiv:1904.09237"),
    "adamax": Optimiser(optax.adamax, _ADAMAX, "Kingma and Ba, arXiv:1412.6980, section 7.1"),
    "adamaxw": Optimiser(
        optax.adamaxw,
        _ADAMAX | {"weight_decay": Hyperparameter(1e-4, "[0, inf)")},
        "Loshchilov and Hutter, arXiv:1711.05101",
    ),
    "adabelief": Optimiser(
        optax.adabelief,
        {
            "b1": _B1,
            "b2": _B2,
            "eps": Hyperparameter(1e-16, "(0, inf)"),
            "eps_root": Hyperparameter(1e-16, "[0, inf)"),
        },
        "Zhuang et al., arXiv:2010.07468",
    ),
    "radam": Optimiser(
        optax.radam, _ADAM | {"threshold": Hyperparameter(5.0, "(4, inf)")}, "Liu et al., arXiv:1908.03265"
    ),
    "yogi": Optimiser(
        optax.yogi, {"b1": _B1, "b2": _B2, "eps": Hyperparameter(1e-3, "(0, inf)")}, "Zaheer et al., NeurIPS (2018)"
    ),
    "optimistic_adam": Optimiser(
        optax.optimistic_adam_v2, {"alpha": _WEIGHT, "beta": _WEIGHT} | _ADAM, "Daskalakis et al., arXiv:1711.00141"
    ),
    "adan": Optimiser(
        optax.adan,
        {
            "b1": Hyperparameter(0.98, "[0, 1)"),
            "b2": Hyperparameter(0.92, "[0, 1)"),
            "b3": Hyperparameter(0.99, "[0, 1)"),
            "eps": _EPS,
            "eps_root": Hyperparameter(1e-8, "[0, inf)"),
            "weight_decay": _WEIGHT_DECAY,
        },
        "Xie et al., arXiv:2208.06677",
    ),
    "adopt": Optimiser(
        optax.contrib.adopt,
        {"b1": _B1, "b2": Hyperparameter(0.9999, "[0, 1)"), "eps": Hyperparameter(1e-6, "(0, inf)")},
        "Taniguchi et al., arXiv:2411.02853",
    ),
    "ademamix": Optimiser(
        optax.contrib.ademamix,
        {
            "b1": _B1,
            "b2": _B2,
            "b3": Hyperparameter(0.9999, "[0, 1)"),
            "alpha": Hyperparameter(5.0, "[0, inf)"),
            "eps": _EPS,
            "eps_root": _EPS_ROOT,
            "weight_decay": _WEIGHT_DECAY,
        },
        "Pagliardini, Ablin and Grangier, arXiv:2409.03137",
    ),
    "madgrad": Optimiser(
        optax.contrib.madgrad,
        {"momentum": _MOMENTUM, "eps": Hyperparameter(1e-6, "(0, inf)")},
        "Defazio and Jelassi, arXiv:2101.11075",
    ),
    "prodigy": Optimiser(
        _prodigy,
        {
            "b1": _B1,
            "b2": _B2,
            "eps": _EPS,
            "estim_lr0": Hyperparameter(1e-6, "(0, inf)"),
            "estim_lr_coef": Hyperparameter(1.0, "(0, inf)"),
            "weight_decay": _WEIGHT_DECAY,
        },
        "Mishchenko and Defazio, arXiv:2306.06101",
    ),
    "lion": Optimiser(
        optax.lion,
        {
            "b1": _B1,
            "b2": Hyperparameter(0.99, "[0, 1)"),
            "weight_decay": Hyperparameter(1e-3, "[0, inf)"),
        },
        "Chen et al., arXiv:2302.06675",
    ),
    "lars": Optimiser(
        optax.lars,
        {
            "weight_decay": _WEIGHT_DECAY,
            "trust_coefficient": Hyperparameter(1e-3, "(0, inf)"),
            "eps": Hyperparameter(0.0, "[0, inf)"),
            "momentum": _MOMENTUM,
        },
        "You, Gitman and Ginsburg, arXiv:1708.03888",
    ),
    "lamb": Optimiser(
        optax.lamb,
        _ADAM | {"eps": Hyperparameter(1e-6, "(0, inf)"), "weight_decay": _WEIGHT_DECAY},
        "You et al., arXiv:1904.00962",
    ),
    "fromage": Optimiser(
        optax.fromage, {"min_norm": Hyperparameter(1e-6, "(0, inf)")}, "Bernstein et al., arXiv:2002.03432"
    ),
    "novograd": Optimiser(
        optax.novograd,
        _ADAM
        | {
            "b2": Hyperparameter(0.25, "[0, 1)"),
            "eps": Hyperparameter(1e-6, "(0, inf)"),
            "weight_decay": _WEIGHT_DECAY,
        },
        "Ginsburg et al., arXiv:1905.11286",
    ),
    "muon": Optimiser(
        optax.contrib.muon,
        {
            "beta": Hyperparameter(0.95, "[0, 1)"),
            "eps": _EPS,
            "weight_decay": _WEIGHT_DECAY,
            "adam_b1": _B1,
            "adam_b2": _B2,
            "adam_eps_root": _EPS_ROOT,
        },
        "Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024)",
    ),
    "sm3": Optimiser(_sm3, {"momentum": _MOMENTUM}, "Anil et al., arXiv:1901.11150"),
    "adafactor": Optimiser(
        optax.adafactor,
        {
            "decay_rate": Hyperparameter(0.8, "(0, 1)"),
            "clipping_threshold": Hyperparameter(1.0, "(0, inf)"),
            "eps": Hyperparameter(1e-30, "(0, inf)"),
        },
        "Shazeer and Stern, arXiv:1804.04235",
    ),
}
