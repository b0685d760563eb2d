"""A model, a batch for it and a loss: everything a probe needs."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from gradcheck_doctor.observe.provenance import ConstructionLog


@dataclass(frozen=True)
class Target:
    """`compute_loss(model)` runs the forward on the batch and gives a scalar; `choices` is printed in the report's probe section."""

    name: str
    model: nn.Module
    compute_loss: Callable[[nn.Module], Tensor]
    optimizer_factory: Callable[[nn.Module], Optimizer] | None = None
    log: ConstructionLog | None = None
    seed: int = 0
    synthetic: bool = False
    choices: Mapping[str, Any] = field(default_factory=dict)
