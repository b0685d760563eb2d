"""init_weights looks for convolutions, but the net is made of linear layers: nothing is initialised."""
import torch
from torch import nn


def init_weights(module):
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def build_model(depth=16, width=64):
    layers = [nn.Linear(32, width), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    return model.apply(init_weights)  # sick: GD105


example_inputs = (torch.randn(128, 32), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
