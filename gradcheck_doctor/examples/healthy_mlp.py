"""The same network, cured: He initialisation keeps signal and gradient level."""
import torch
from torch import nn


def build_model(depth=20, width=64):
    layers = [nn.Linear(32, width), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


generator = torch.Generator().manual_seed(0)
example_inputs = (torch.randn(128, 32, generator=generator), torch.randint(0, 10, (128,), generator=generator))
loss_fn = nn.CrossEntropyLoss()
