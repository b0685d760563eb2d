"""He initialisation for ReLU in front of a LeakyReLU with a slope of 0.5."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(64, 128),
    nn.LeakyReLU(0.5),  # sick: GD210 info
    nn.Linear(128, 5),
)
nn.init.kaiming_normal_(model[0].weight, nonlinearity="relu")

example_inputs = (torch.randn(128, 64), torch.randint(0, 5, (128,)))
loss_fn = nn.CrossEntropyLoss()
