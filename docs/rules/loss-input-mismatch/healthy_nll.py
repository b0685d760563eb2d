"""NLLLoss on log-probabilities."""
import torch
import torch.nn.functional as F
from torch import nn


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(20, 64)
        self.output = nn.Linear(64, 5)

    def forward(self, x):
        return F.log_softmax(self.output(F.relu(self.hidden(x))), dim=1)


example_inputs = (torch.randn(128, 20), torch.randint(0, 5, (128,)))
loss_fn = nn.NLLLoss()
