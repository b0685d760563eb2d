"""Facts for single rules that have no place elsewhere; each key of `Recording.notes` is filled here."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gradcheck_doctor.errors import ProbeError
from gradcheck_doctor.observe.init_code import repeated, unapplied
from gradcheck_doctor.observe.scope import join
from gradcheck_doctor.observe.source import Source
from gradcheck_doctor.observe.updates import same_values
from gradcheck_doctor.records.recording import ModuleRecord

if TYPE_CHECKING:
    from gradcheck_doctor.observe.observer import Observer


def marked_compiled(modules: Iterable[nn.Module]) -> bool:
    """True when one of `modules` itself was passed through torch.compile. Looks into their dicts: asking a module for what it has not got is slow."""
    for module in modules:
        own = module.__dict__
        if ("_compiled_call_impl" in own and own["_compiled_call_impl"] is not None
                or "_compiler_ctx" in own and own["_compiler_ctx"] is not None                # how Lightning marks its modules
                or type(module).__name__ == "OptimizedModule"):
            return True
    return False


def refuse(model: nn.Module) -> None:
    """Models that can't be observed are refused at once, with what to do instead."""
    if isinstance(model, nn.DataParallel):
        raise ProbeError("torch.nn.DataParallel copies the model to threads on every step, so nothing can be attributed.\n"
                         "Watch the module inside (model.module) on one device, or use DistributedDataParallel.")
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise ProbeError("FullyShardedDataParallel (FSDP1) hides the parameters in flat ones, so no gradient belongs to a layer.\n"
                         "Use torch.distributed.fsdp.fully_shard (FSDP2), or DistributedDataParallel.")
    if type(model).__name__ == "DeepSpeedEngine":
        raise ProbeError("DeepSpeed keeps gradients outside of .grad, so they can't be measured. Watch one run with DistributedDataParallel instead.")
    if any(p.is_meta for p in model.parameters()):
        raise ProbeError("The model is on the meta device: it has shapes but no values, so there is nothing to watch.\n"
                         "Call watch after model.to_empty(device=...) and loading or initialising its weights.")


def _lag(module: Any) -> dict[str, Any]:
    """How far the running statistics of a batch normalisation are from the batches it has seen; {} where that can't be told.

    `left`: share of the start (mean 0, variance 1) in them, (1 - momentum)^n after n batches; without it they are the mean over these batches.
    `scale`: by what factor eval mode scales a channel otherwise than the batches would (1 or more), `shift`: by how many of their standard deviations it
    moves it; medians over the channels, left out where nothing of the batches is in the statistics. `untouched`: no batch was ever mixed in.
    """
    if not module.num_batches_tracked and not module.running_mean.any() and (module.running_var == 1).all():
        return {"untouched": True}
    if module.num_batches_tracked is None or module.momentum is None or not 0.0 <= module.momentum < 1.0:
        return {}
    tracked = int(module.num_batches_tracked)
    left = (1.0 - module.momentum) ** tracked
    if tracked and left > 1.0 - 1e-6 and module.running_mean.abs().max() < 1e-3 and (module.running_var - 1.0).abs().max() < 1e-3:
        return {"tracked": tracked, "left": 1.0}
    if not tracked or left < 1e-3 or left > 1.0 - 1e-6:
        return {}
    with torch.no_grad():
        variance, mean = module.running_var.double(), module.running_mean.double() / (1.0 - left)
        seen = ((variance - left) / (1.0 - left)).clamp_min(1e-12)
        scale = (variance.clamp_min(1e-12) / seen).log().abs().div(2).median().exp().item()
        shift = (left * mean.abs() / seen.sqrt()).median().item()
    return {"tracked": tracked, "left": left, "scale": scale, "shift": shift}


class Facts:
    """Gathers `Recording.notes`: batchnorm, autocast, scaled, orphans."""

    def __init__(self) -> None:
        self.batchnorm: dict[int, dict[str, Any]] = {}
        self.autocast: str | None = None
        self.scaled = False
        self.init: dict[int, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}      # number of the root -> (drawn twice, not run)
        self._modules: dict[int, nn.Module] = {}
        self._known: list[nn.Module] = []                                           # modules among which these batch normalisations are
        self._norms: list[nn.Module] = []

    def before_update(self, observer: Observer) -> None:
        for number, root in enumerate(observer.roots.roots):
            if number not in self.init:                                         # as it was before the first update
                self.init[number] = repeated([root], observer.log), unapplied([root], observer.log)
        if self._known is not (known := observer.roots.known()):
            self._known, self._norms = known, [m for m in known if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]
        for module in self._norms:
            self._batchnorm(module)
        self.autocast = next((d for d in ("float16", "bfloat16") if d in observer.dtypes and "float32" in observer.dtypes), self.autocast)

    def _batchnorm(self, module: Any) -> None:
        weight = module._parameters.get("weight")
        frozen = weight is not None and not weight.requires_grad
        row = self.batchnorm.setdefault(id(module), {"steps": 0, "frozen_steps": 0, "frozen_training_steps": 0, "eval_steps": 0, "start": None, "change": 0.0,
                                                      "follows": False})
        self._modules[id(module)] = module
        row["steps"] += 1
        row["eval_steps"] += not module.training
        if frozen:
            row["frozen_steps"] += 1
            row["frozen_training_steps"] += module.training
            mean, variance = module.running_mean.detach(), module.running_var.detach()
            if row["start"] is None:
                row["start"] = (mean.clone(), variance.clone(), weight.detach().clone())
            else:
                start_mean, start_variance, start_weight = row["start"]
                row["follows"] = row["follows"] or not same_values(start_weight, weight)         # a moving average of another network
                row["change"] = ((mean - start_mean).abs() / (start_variance + 1e-5).sqrt()).mean().item()

    def notes(self, observer: Observer, modules: tuple[ModuleRecord, ...], read: Sequence[Source]) -> dict[str, Any]:
        names = {id(module): name for module, name in observer.roots.names()}
        prefixes = observer.roots.prefixes()
        log = observer.log
        return {
            "init_repeated": [{**row, "parameter": join(prefixes[n], row["parameter"])} for n, (twice, _) in self.init.items() for row in twice],
            "init_unapplied": [{**row, "modules": [join(prefixes[n], m) for m in row["modules"]]} for n, (_, missed) in self.init.items() for row in missed],
            "clips_in_source": any(s.clips for s in read), "clip_option": next((s.clip_option for s in read if s.clip_option is not None), None),
            "divisions_by_spread": [span for s in read for span in s.spreads],
            "left_in_eval": next((s.left_in_eval for s in read if s.left_in_eval is not None), None),
            "freezing": next((s.freezing for s in read if s.freezing is not None), None),
            "batchnorm": {names[k]: {**{a: b for a, b in row.items() if a != "start"}, "evaluated": not self._modules[k].training, **_lag(self._modules[k])}
                          for k, row in self.batchnorm.items() if k in names},
            "steps_aside": observer.scope.steps_aside,
            "autocast": self.autocast, "scaled": self.scaled, "compiled": marked_compiled(m for r in observer.roots.roots for m in r.modules()),
            "orphans": [{"module": names.get(key, ""), "type": type(module).__name__,
                         "built": log.spans.get(module) if log is not None else None,
                         "parameters": [n for n, p in module.named_parameters() if p.requires_grad]}
                        for key, module in observer.roots.orphans.items()],
            "loaded": [{"module": names.get(id(m), ""), **f} for m, f in log.loaded.items()] if log is not None else [],
            "torch": torch.__version__}
