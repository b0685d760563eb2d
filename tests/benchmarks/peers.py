"""What users would pick instead: each written the way its users write it."""
from __future__ import annotations

import importlib.util
import os
import tempfile
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from tests.benchmarks.protocol import Tool


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]


def _first(value: Any) -> Tensor | None:
    """The first floating tensor of a module's output."""
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


class MeanGradients(Tool):
    name = "mean-gradient snippet"
    covers = "mean |gradient| of each weight; plotted after backward"

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model

    def after_backward(self) -> None:
        self.rows = [(n, p.grad.abs().mean().item()) for n, p in self.model.named_parameters() if p.grad is not None and "bias" not in n]


class GradNorm(Tool):
    name = "Lightning grad_norm"
    covers = "norm of each parameter's gradient, and the total"

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.norms = _lightning_grad_norm()

    def after_backward(self) -> None:
        self.logged = {k: float(v) for k, v in self.norms(self.model).items()}


def _lightning_grad_norm() -> Any:
    if importlib.util.find_spec("lightning") is not None:
        from lightning.pytorch.utilities import grad_norm
    else:
        from pytorch_lightning.utilities import grad_norm
    return lambda model: grad_norm(model, norm_type=2)


class ItemHooks(Tool):
    name = "hook with .item() per layer"
    covers = "mean, std, zero share of each leaf's output, norm of its gradient; whole tensors"

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self.handles = [module.register_forward_hook(self._hook(name)) for name, module in _leaves(model)]

    def _hook(self, name: str) -> Any:
        row = self.rows.setdefault(name, {})

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            value = _first(output)
            if value is None:
                return
            seen = value.detach()
            row.update(mean=seen.mean().item(), std=seen.std().item(), zeros=(seen == 0).float().mean().item())
            if value.requires_grad:
                value.register_hook(lambda gradient: row.update(gradient=gradient.norm().item()))
        return hook

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


class Histograms(Tool):
    name = "histogram callback"
    covers = "64-bin histogram of input and output of each leaf; whole tensors, no gradients"

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.rows: dict[str, Any] = {}
        self.handles = [module.register_forward_hook(self._hook(name)) for name, module in _leaves(model)]

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for side, value in (("in", _first(args)), ("out", _first(output))):
                if value is not None:
                    self.rows[f"{side}/{name}"] = numpy.histogram(value.detach().cpu().numpy(), bins=64)
        return hook

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


class Wandb(Tool):
    """`wandb.watch` with everything on, offline; one run of wandb serves all variants."""

    covers = "64-bin histograms of parameters and of their gradients; whole tensors, no activations"
    run: Any = None

    def __init__(self, every: int) -> None:
        self.every = every
        self.name = f"wandb.watch(log='all', log_freq={every})"

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if Wandb.run is None:
            import wandb
            os.environ.setdefault("WANDB_SILENT", "true")
            self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            Wandb.run = wandb.init(mode="offline", project="benchmark", dir=self.folder.name, settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True, save_code=False))
        self.model = model
        Wandb.run.watch(model, log="all", log_freq=self.every)

    def after_step(self, loss: Tensor) -> None:
        Wandb.run.log({"loss": loss.item()})

    def close(self) -> None:
        Wandb.run.unwatch(self.model)


def available() -> list[Tool]:
    """Those whose package is installed."""
    tools: list[Tool] = [MeanGradients(), ItemHooks(), Histograms()]
    if importlib.util.find_spec("lightning") is not None or importlib.util.find_spec("pytorch_lightning") is not None:
        tools.insert(1, GradNorm())
    if importlib.util.find_spec("wandb") is not None:
        tools += [Wandb(1), Wandb(10), Wandb(100)]
    return tools
