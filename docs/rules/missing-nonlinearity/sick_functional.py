"""Three linear layers in a row, no activation anywhere."""
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(20, 64)
        self.fc2 = nn.Linear(64, 64)  # sick: GD204
        self.fc3 = nn.Linear(64, 5)

    def forward(self, x):
        return self.fc3(self.fc2(self.fc1(x)))


example_inputs = (torch.randn(128, 20), torch.randint(0, 5, (128,)))
loss_fn = nn.CrossEntropyLoss()
