"""Modules that are exchanged, inserted or removed in a live model, at every place that holds them."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import nn

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.treatments.live_journal import Journal
from gradcheck_doctor.treatments.live_patient import Patient

WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule", "DataParallel")


def swap(patient: Patient, path: str, new: nn.Module, journal: Journal) -> None:
    """Put `new` wherever the module at `path` is held.

    Raises:
        TreatmentRefused: it is the model itself, or something that is not a module table holds it too.
    """
    old = patient.module(path)
    for parent, name in places(patient, path, old):
        journal.table(parent._modules)
        parent._modules[name] = new


def insert(patient: Patient, path: str, new: nn.Module, journal: Journal, *, front: bool = False, word: str = "norm") -> None:
    """Put `new` behind (or in front of) the module at `path`.

    In an nn.Sequential that is called as a whole it becomes an entry `<name>_<word>`, so that all other names stay; elsewhere the module is
    replaced by nn.Sequential(layer=..., norm=...).
    """
    old = patient.module(path)
    found = places(patient, path, old)
    whole = {id(p) for p, _ in found if _chained(patient, p)}
    wrapped = nn.Sequential(OrderedDict([(word, new), ("layer", old)] if front else [("layer", old), (word, new)])).train(old.training)
    for parent, name in found:
        journal.table(parent._modules)
        if id(parent) not in whole:
            parent._modules[name] = wrapped
            continue
        entries = list(parent._modules.items())
        spot = [n for n, _ in entries].index(name) + (0 if front else 1)
        entries.insert(spot, (_free(parent, f"{name}_{word}"), new))
        parent._modules.clear()
        parent._modules.update(entries)


def alike(new: nn.Module, old: nn.Module) -> nn.Module:
    """A new module with the device, dtype and mode of the one beside it."""
    tensor = next((t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()), None)
    if tensor is not None:
        new.to(device=tensor.device, dtype=tensor.dtype)
    return new.train(old.training)


def enrol(patient: Patient, new: nn.Module, beside: Iterable[nn.Parameter], journal: Journal) -> None:
    """Give the parameters of a new module to the optimizer."""
    neighbours = sorted(beside, key=lambda p: p.dim())    # a bias is in the group that norms belong to, where decay is split
    patient.optimizers.add(new.parameters(), neighbours, journal)


def places(patient: Patient, path: str, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """(parent, name) of every entry that holds a module.

    Raises:
        TreatmentRefused: the structure may not be changed here.
    """
    if not path:
        raise TreatmentRefused("the layer is the model itself; put it into an nn.Sequential to treat it")
    wrapper = next((type(m).__name__ for m in patient.model.modules() if type(m).__name__ in WRAPPERS or isinstance(m, torch.jit.ScriptModule)), None)
    if wrapper is not None:
        raise TreatmentRefused(f"the model is wrapped ({wrapper}); treat it before it is compiled or distributed")
    for owner in patient.model.modules():
        for name, value in vars(owner).items():
            held = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else (value,)
            if name not in ("_modules", "_parameters", "_buffers") and any(v is module for v in held):
                raise TreatmentRefused(f"the plain attribute {name} of {type(owner).__name__} holds {path} too; change it in the source")
    record = patient.recording.module.get(path) if patient.recording is not None else None
    if record is not None and record.calls == 0 or isinstance(patient.modules.get(path.rpartition(".")[0]), nn.MultiheadAttention):
        raise TreatmentRefused(f"{path} is not called as a module: its parent uses its weights directly")
    found = [(parent, name) for parent in patient.model.modules() for name, child in parent._modules.items() if child is module]
    if not found:
        raise TreatmentRefused(f"{path} was replaced by an earlier change")
    return found


def _chained(patient: Patient, parent: nn.Module) -> bool:
    """An nn.Sequential whose own forward ran: nothing depends on the number of its entries."""
    if not isinstance(parent, nn.Sequential) or type(parent).forward is not nn.Sequential.forward or patient.recording is None:
        return False
    names = [n for n, m in patient.model.named_modules(remove_duplicate=False) if m is parent]
    return any((r := patient.recording.module.get(n)) is not None and r.calls > 0 for n in names)


def _free(parent: nn.Module, name: str) -> str:
    while name in parent._modules:
        name += "_"
    return name
