"""Three ReLU layers with PyTorch's default weights: not what ReLU asks for, but over so few layers without effect."""
import torch
from torch import nn

model = nn.Sequential(
    nn.Linear(32, 64),  # sick: GD102 info
    nn.ReLU(),
    nn.Linear(64, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
)
example_inputs = (torch.randn(128, 32), torch.randint(0, 10, (128,)))
loss_fn = nn.CrossEntropyLoss()
