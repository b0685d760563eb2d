"""What each activation does to a standard normal signal, and which initialisation fits it.

`second_moment` is E[phi(z)^2], `slope_moment` E[phi'(z)^2] for z ~ N(0, 1); with sigma_w^2 = Var(w) fan_in one layer multiplies the
variance of the signal by about sigma_w^2 E[phi^2] and that of the gradient by sigma_w^2 E[phi'^2] (Schoenholz et al. 2017, arXiv:1611.01232).
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
NODES = 4001           # points of the quadrature; error below 1e-5 for every function of the table
REACH = 9.0            # standard deviations


@dataclass(frozen=True)
class Activation:
    """One activation function.

    `right_init` is "he", "lecun" or "glorot" (Géron, Hands-On Machine Learning, ch. 11, table of initialisations);
    `bounds` the values it can reach; `saturation` the |input| beyond which the derivative is below 1 % of its largest.
    """

    name: str
    function: Callable[[float], float]
    right_init: str
    bounds: tuple[float, float] = (-math.inf, math.inf)
    can_die: bool = False                  # exact zero with zero slope on half of the line
    saturating: bool = False
    saturation: float | None = None
    second_moment: float = 0.0
    slope_moment: float = 0.0
    zero_centred: bool = True


def moments(function: Callable[[float], float]) -> tuple[float, float]:
    """(E[phi^2], E[phi'^2]) under the standard normal, by the trapezoid rule.

    >>> [round(m, 3) for m in moments(lambda z: max(z, 0.0))]
    [0.5, 0.5]
    """
    second = slope = total = 0.0
    step = 2 * REACH / (NODES - 1)
    for i in range(NODES):
        z = -REACH + i * step
        weight = math.exp(-0.5 * z * z)
        derivative = (function(z + 1e-4) - function(z - 1e-4)) / 2e-4
        second += weight * function(z) ** 2
        slope += weight * derivative**2
        total += weight
    return second / total, slope / total


def _sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z))


def _gelu(z: float) -> float:
    return 0.5 * z * (1.0 + math.erf(z / math.sqrt(2.0)))


def _elu(z: float) -> float:
    return z if z > 0 else math.expm1(z)


def _selu(z: float) -> float:
    return SELU_SCALE * (z if z > 0 else SELU_ALPHA * math.expm1(z))


def _softplus(z: float) -> float:
    return math.log1p(math.exp(z))


_TABLE = (
    Activation("relu", lambda z: max(z, 0.0), "he", (0.0, math.inf), can_die=True, zero_centred=False),
    Activation("relu6", lambda z: min(max(z, 0.0), 6.0), "he", (0.0, 6.0), can_die=True, zero_centred=False),
    Activation("leaky_relu", lambda z: z if z > 0 else 0.01 * z, "he"),
    Activation("prelu", lambda z: z if z > 0 else 0.25 * z, "he"),
    Activation("rrelu", lambda z: z if z > 0 else 11 / 48 * z, "he"),
    Activation("elu", _elu, "he", (-1.0, math.inf)),
    Activation("celu", _elu, "he", (-1.0, math.inf)),
    Activation("selu", _selu, "lecun", (-SELU_SCALE * SELU_ALPHA, math.inf)),
    Activation("gelu", _gelu, "he"),
    Activation("silu", lambda z: z * _sigmoid(z), "he"),
    Activation("hardswish", lambda z: z * min(max(z + 3.0, 0.0), 6.0) / 6.0, "he"),
    Activation("mish", lambda z: z * math.tanh(_softplus(z)), "he"),
    Activation("softplus", _softplus, "he", (0.0, math.inf), zero_centred=False),
    Activation("tanh", math.tanh, "glorot", (-1.0, 1.0), saturating=True, saturation=2.993),
    Activation("hardtanh", lambda z: min(max(z, -1.0), 1.0), "glorot", (-1.0, 1.0), saturating=True, saturation=1.0),
    Activation("softsign", lambda z: z / (1.0 + abs(z)), "glorot", (-1.0, 1.0), saturating=True, saturation=9.0),
    Activation("sigmoid", _sigmoid, "glorot", (0.0, 1.0), saturating=True, saturation=4.585, zero_centred=False),
    Activation("hardsigmoid", lambda z: min(max(z / 6.0 + 0.5, 0.0), 1.0), "glorot", (0.0, 1.0), saturating=True, saturation=3.0,
               zero_centred=False),
)
_BY_NAME = {a.name: a for a in _TABLE}


@functools.cache
def activation(op: str, negative_slope: float | None = None) -> Activation | None:
    """The activation behind an operation's name, with its moments; None for anything else.

    `negative_slope` overrides that of leaky_relu and prelu.

    >>> activation("selu").right_init
    'lecun'
    """
    known = _BY_NAME.get(op)
    if known is None:
        return None
    if negative_slope is not None and op in ("leaky_relu", "prelu"):
        slope = negative_slope
        known = replace(known, function=lambda z: z if z > 0 else slope * z)
    second, derivative = moments(known.function)
    return replace(known, second_moment=second, slope_moment=derivative)


def names() -> tuple[str, ...]:
    """Every activation of the table."""
    return tuple(_BY_NAME)
