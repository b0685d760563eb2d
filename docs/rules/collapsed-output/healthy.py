"""Tokens and positions reach the head."""
import torch
from torch import nn


class SentenceClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(1000, 32)
        self.positions = nn.Embedding(64, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        x = self.tokens(tokens) + self.positions(positions)
        return self.head(x.mean(dim=1))


example_inputs = (torch.randint(0, 1000, (64, 16)), torch.randint(0, 5, (64,)))
loss_fn = nn.CrossEntropyLoss()
