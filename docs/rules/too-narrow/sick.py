"""Twelve ReLU layers of ten units, rightly initialised: how far its gradient gets is decided by the draw of its weights."""
import torch
from torch import nn


def build_model(depth=12, width=10):
    layers = [nn.Linear(8, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]  # sick: GD107
    model = nn.Sequential(*layers, nn.Linear(width, 1))
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return model


example_inputs = (torch.randn(128, 8), torch.randn(128, 1))
loss_fn = nn.MSELoss()
