"""watch(): one `with` line around any training loop."""
from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gradcheck_doctor.errors import ConfigError, ProbeError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from gradcheck_doctor.report.report import Report


class Watch:
    """What `watch` returns: attached inside `with` (or between `attach` and `detach`); `report()` at any time."""

    def __init__(self, models: list[nn.Module], optimizers: list[Optimizer], every: int | str) -> None:
        from gradcheck_doctor.observe.provenance import current_log
        from gradcheck_doctor.observe.watch import Monitor

        what = "+".join(f"{type(m).__name__}{sum(1 for _ in m.parameters())}" for m in models)
        self.monitor = Monitor(models, optimizers, every, log=current_log(), channel=f"watch {what}")

    def attach(self) -> Watch:
        """Start observing."""
        self.monitor.attach()
        return self

    def detach(self) -> None:
        """Stop observing; hooks come off. Safe to call twice."""
        self.monitor.detach()

    def __enter__(self) -> Watch:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def report(self, **options: Any) -> Report:
        """Judge what was seen so far; `select` and `ignore` as on the command line.

        In distributed training rank 0's report is about all ranks; on another rank it holds that rank's own findings and prints nothing.
        """
        from dataclasses import replace

        from gradcheck_doctor.config import Config
        from gradcheck_doctor.observe.recorded import honest
        from gradcheck_doctor.report.report import RankReport, Report
        from gradcheck_doctor.session import examine, selectors

        recording = honest(self.monitor.gathered())
        config = replace(Config(), select=selectors(options.get("select", ())), ignore=selectors(options.get("ignore", ())))
        examination = examine(recording, recording.model_class or "model", config)
        kind = RankReport if self.monitor.ranks.rank else Report
        return kind(examination.report, examination.recording)


def watch(model: nn.Module | Iterable[nn.Module], optimizer: Optimizer | Iterable[Optimizer] | None = None, *, every: int | str = "auto") -> Watch:
    """Watch the training of one model (or several) by any loop.

    Args:
        model: the model, or several (a GAN).
        optimizer: its optimizer or optimizers; others that hold the model's parameters are met when they step.
        every: observe each N-th optimizer step, or "auto": dense at the start, then rarer, within 1 % of the time (at least 4 seconds).
            Below 4, past 64 observed steps, layers are seen on a quarter of all steps, the loss and the gradient norms on the others.

    Returns:
        A context manager with `report()`. Losses, weights and random state are bit for bit those of the loop without it.

    Raises:
        ProbeError: DataParallel, or something that is no model.
        ConfigError: an optimizer that is none, or an unknown `every`.
    """
    import torch

    models = _listed(model)
    for given in models:
        if not isinstance(given, torch.nn.Module):
            raise ProbeError(f"watch needs a torch.nn.Module (or several), not {type(given).__name__}")
    optimizers = [_inner(o) for o in _listed(optimizer)] if optimizer is not None else []
    for given in optimizers:
        if not isinstance(given, torch.optim.Optimizer):
            raise ConfigError(f"the second argument of watch is the optimizer (or several), not {type(given).__name__}")
    return Watch(models, optimizers, every)


def _listed(given: Any) -> list[Any]:
    """The members of a list, tuple or other collection; a single object as the only one of a list."""
    import torch

    single = isinstance(given, (torch.nn.Module, torch.optim.Optimizer, str)) or not isinstance(given, Iterable)
    return [given] if single else list(given)


def _inner(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps, behind wrappers such as Accelerate's."""
    import torch

    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer
