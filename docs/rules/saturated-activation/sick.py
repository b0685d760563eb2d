"""uniform_ without bounds draws from [0, 1): on pixels every sum is near 200, and every tanh unit at +1, where its slope is 0."""
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 64)
        self.fc2 = nn.Linear(64, 10)
        nn.init.uniform_(self.fc1.weight)

    def forward(self, x):
        hidden = torch.tanh(self.fc1(x.flatten(1)))  # sick: GD202
        return self.fc2(hidden)


example_inputs = (torch.rand(64, 1, 28, 28), torch.randint(0, 10, (64,)))
loss_fn = nn.CrossEntropyLoss()
