"""A classifier whose hidden units start with weights of their own."""
import torch
from torch import nn


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(20, 64)
        self.output = nn.Linear(64, 3)
        nn.init.kaiming_normal_(self.hidden.weight)

    def forward(self, x):
        return self.output(torch.relu(self.hidden(x)))


example_inputs = (torch.randn(128, 20), torch.randint(0, 3, (128,)))
loss_fn = nn.CrossEntropyLoss()
