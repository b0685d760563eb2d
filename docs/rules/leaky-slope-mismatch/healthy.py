"""He initialisation for the slope at hand."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(64, 128),
    nn.LeakyReLU(0.5),
    nn.Linear(128, 5),
)
nn.init.kaiming_normal_(model[0].weight, a=0.5)

example_inputs = (torch.randn(128, 64), torch.randint(0, 5, (128,)))
loss_fn = nn.CrossEntropyLoss()
