"""Standard deviations and bounds of the initialisations that theory prescribes."""
from __future__ import annotations

import math

#: A normal cut at two standard deviations keeps this share of its standard deviation.
TRUNCATED_STD = 0.8796256610342398


def he_std(fan_in: int, negative_slope: float = 0.0) -> float:
    """Standard deviation that keeps the variance of pre-activations through a (leaky) ReLU layer.

    sqrt(2 / ((1 + a^2) fan_in)), a = negative_slope.  Source: He et al. (2015), arXiv:1502.01852.

    >>> round(he_std(512), 4)
    0.0625
    """
    return math.sqrt(2.0 / ((1.0 + negative_slope**2) * fan_in))


def glorot_std(fan_in: int, fan_out: int, gain: float = 1.0) -> float:
    """Standard deviation that balances forward and backward variance of a linear or tanh layer.

    gain sqrt(2 / (fan_in + fan_out)).  Source: Glorot and Bengio (2010).

    >>> round(glorot_std(100, 100), 4)
    0.1
    """
    return gain * math.sqrt(2.0 / (fan_in + fan_out))


def lecun_std(fan_in: int) -> float:
    """Standard deviation that keeps the variance of a linear layer, and the fixed point of SELU.

    sqrt(1 / fan_in).  Sources: LeCun et al. (1998); Klambauer et al. (2017), arXiv:1706.02515.

    >>> lecun_std(100)
    0.1
    """
    return math.sqrt(1.0 / fan_in)


def uniform_bound(std: float) -> float:
    """Bound r of the uniform distribution on (-r, r) with standard deviation `std`: sqrt(3) std.

    >>> round(uniform_bound(he_std(6)), 4)
    1.0
    """
    return math.sqrt(3.0) * std


def torch_default_std(fan_in: int) -> float:
    """Standard deviation of torch's default Linear and Conv init, kaiming_uniform_ with a = sqrt(5): sqrt(1 / (3 fan_in)).

    >>> round(torch_default_std(300), 4)
    0.0333
    """
    return math.sqrt(1.0 / (3.0 * fan_in))
