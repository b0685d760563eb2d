"""How a signal and a gradient change from layer to layer, expected from the weights alone."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from gradcheck_doctor.theory.activations import Activation


def backward_gain(weight_gain: float, activation: Activation | None) -> float:
    """Factor by which one layer changes the rms of the gradient: sqrt(chi_1), chi_1 = sigma_w^2 E[phi'^2].

    `weight_gain` is sigma_w = sqrt(Var(w) fan_in). Source: Schoenholz et al. (2017), arXiv:1611.01232.
    """
    return weight_gain * math.sqrt(activation.slope_moment if activation is not None else 1.0)


def forward_gain(weight_gain: float, activation: Activation | None) -> float:
    """Factor by which one layer changes the rms of a unit-variance pre-activation: sigma_w sqrt(E[phi^2])."""
    return weight_gain * math.sqrt(activation.second_moment if activation is not None else 1.0)


def expected_attenuation(layers: Iterable[tuple[float, Activation | None]]) -> tuple[float, float]:
    """(forward, backward) factor over a run of layers, each a weight gain and the activation in front of it.

    >>> from gradcheck_doctor.theory.activations import activation
    >>> forward, backward = expected_attenuation([(3**-0.5, activation("relu"))] * 6)
    >>> round(backward, 4)
    0.0046
    """
    forward = backward = 1.0
    for gain, phi in layers:
        forward *= forward_gain(gain, phi)
        backward *= backward_gain(gain, phi)
    return forward, backward


def hanin_beta(widths: Sequence[int]) -> float:
    """Sum of 1 / width over the hidden layers of a ReLU run: gradients of large beta vary by e^beta from draw to draw.

    Source: Hanin (2018), arXiv:1801.03744.

    >>> hanin_beta([5] * 16)
    3.2
    """
    return round(sum(1.0 / w for w in widths), 12)
