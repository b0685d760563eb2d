"""Losses by what they say of their targets, under the names that a recording gives them."""
from __future__ import annotations

#: Targets are numbers on a scale; 0 at best.
REGRESSION = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
#: Activations whose values are read as probabilities.
PROBABILITIES = ("softmax", "sigmoid", "hardsigmoid", "gumbel_softmax")
