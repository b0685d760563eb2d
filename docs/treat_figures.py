"""The table of treat.md: what `doctor.treat` does to classic cases. `python docs/treat_figures.py` prints it (half a minute)."""
from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import gradcheck_doctor as doctor

STEPS = 200


def mlp(activation: Callable[[], nn.Module], depth: int = 20, width: int = 64) -> nn.Sequential:
    return nn.Sequential(*[m for _ in range(depth - 1) for m in (nn.Linear(width, width), activation())], nn.Linear(width, 10))


class Recurrent(nn.Module):
    """Reads the sample 20 times, scaled from -1 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(64, 64, batch_first=True), nn.Linear(64, 10)
        nn.init.normal_(self.rnn.weight_hh_l0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.unsqueeze(1) * torch.linspace(-1, 1, 20)[:, None])[0][:, -1])


def normal(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def dead(model: nn.Sequential) -> nn.Module:
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.bias, -30.0)
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "20 x ReLU, default init": (lambda: mlp(nn.ReLU), False), "20 x tanh, default init": (lambda: mlp(nn.Tanh), False),
    "20 x sigmoid, default init": (lambda: mlp(nn.Sigmoid), True), "20 x SELU, default init": (lambda: mlp(nn.SELU), False),
    "5 x ReLU, N(0, 1)": (lambda: normal(mlp(nn.ReLU, 5)), False), "4 x ReLU, biases -30": (lambda: dead(mlp(nn.ReLU, 4)), False),
    "nn.RNN, recurrence N(0, 1)": (Recurrent, False), "softmax in front of cross_entropy": (lambda: nn.Sequential(*mlp(nn.ReLU, 3), nn.Softmax(1)), True)}


def trained(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Loss of a copy after Adam at 1e-3."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return nn.functional.cross_entropy(model(x), y).item()


if __name__ == "__main__":
    print(f"| model | treatment | unsafe | gradient, decades from first to last layer | loss after {STEPS} steps |\n|---|---|---|---|---|")
    for name, (make, unsafe) in CASES.items():
        torch.manual_seed(0)
        x = torch.randn(1024, 64)
        y = nn.Linear(64, 10)(x).argmax(1)
        model = make()
        before = trained(model, x, y)
        done = doctor.treat(model, batch=(x, y), loss=nn.functional.cross_entropy, unsafe=unsafe)
        a, b = (v["gradient_decades"] for v in (done[0].verified.before, done[0].verified.after))
        print(f"| {name} | {', '.join(c.treatment for c in done)} | {'yes' if unsafe else ''} | {a:.1f} → {b:.1f} | {before:.3g} → {trained(model, x, y):.3g} |")
