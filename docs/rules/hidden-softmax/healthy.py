"""ReLU between the layers; the softmax is part of the loss."""
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(20, 64)
        self.fc2 = nn.Linear(64, 5)

    def forward(self, x):
        x = F.relu(self.fc1(x))
        return self.fc2(x)


example_inputs = (torch.randn(128, 20), torch.randint(0, 5, (128,)))
loss_fn = nn.CrossEntropyLoss()
