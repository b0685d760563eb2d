"""Three ReLU layers with He weights."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(32, 64),
    nn.ReLU(),
    nn.Linear(64, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
)
for layer in model[::2]:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

example_inputs = (torch.randn(128, 32), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
