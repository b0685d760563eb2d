"""Normalisation put in, exchanged and relieved of biases that it removes anyway."""
from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Finding, Prescription
from gradcheck_doctor.records.recording import Operation
from gradcheck_doctor.treatments.live_initialise import LAYERS
from gradcheck_doctor.treatments.live_journal import Journal
from gradcheck_doctor.treatments.live_patient import Patient
from gradcheck_doctor.treatments.live_tree import alike, enrol, insert, swap

ENOUGH = 8             # values a channel that batch statistics need (rule small-batch-norm)
BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
PER_GROUP = 16         # channels a group, Wu and He 2018, table 3


def insert_norm(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """A normalisation behind each hidden layer; without batch statistics where the batch is too small for them."""
    if prescription.arguments.get("branch"):
        raise TreatmentRefused("the residual stream needs a norm at the start of each branch; write it into the block's forward")
    kind = str(prescription.arguments.get("norm", "batch"))
    made: dict[str, int] = {}
    for path in _hidden(patient, prescription.modules):
        layer: Any = patient.module(path)
        operation = next((o for o in patient.operations(path) if o.category == "layer"), None)
        norm = alike(norm_for(layer, kind, operation.shape if operation is not None else ()), layer)
        enrol(patient, norm, layer.parameters(), journal)
        insert(patient, path, norm, journal)
        made[type(norm).__name__] = made.get(type(norm).__name__, 0) + 1
    return "inserted " + " and ".join(f"{n} {name}" for name, n in made.items()) + " behind the hidden layers"


def _hidden(patient: Patient, paths: tuple[str, ...]) -> list[str]:
    """The layers to put a norm behind; an activation stands for the layer in front of it.

    Raises:
        TreatmentRefused: there is none.
    """
    found: list[str] = []
    for path in dict.fromkeys(paths):
        if isinstance(patient.module(path), LAYERS):
            found.append(path)
        found += [f.module for o in patient.operations(path) if o.category == "activation" and (f := patient.layer_before(o)) is not None]
    kept = [p for p in dict.fromkeys(found) if isinstance(patient.module(p), LAYERS) and not _exempt(patient, p) and not _inner(patient, p)]
    if patient.recording is None and len(kept) > 1:
        kept = kept[:-1]                                   # without a recording the last one is taken for the output
    if not kept:
        raise TreatmentRefused("there is no hidden layer module that could take a normalisation")
    return kept


def _inner(patient: Patient, path: str) -> bool:
    """The output projection of nn.MultiheadAttention, whose weight its parent uses directly."""
    return isinstance(patient.modules.get(path.rpartition(".")[0]), nn.MultiheadAttention)


def _exempt(patient: Patient, path: str) -> bool:
    """Output layers, layers that are called several times, and those that have a norm behind them."""
    operations = [o for o in patient.operations(path) if o.category == "layer"]
    if not operations:
        return False
    users = patient.users(operations[0])
    return len(operations) > 1 or operations[0].repeats > 1 or patient.is_output(operations[0]) or any(u.category == "norm" for u in users)


def norm_for(layer: Any, kind: str, shape: tuple[int, ...]) -> nn.Module:
    """The normalisation that fits a layer's output.

    Args:
        layer: Linear or convolution.
        kind: batch, layer or group; batch becomes layer (Linear) or group (convolution) where the batch holds fewer than 8 values a channel.
        shape: of the output, () when unknown.

    >>> norm_for(nn.Conv2d(3, 32, 3), "batch", (2, 32, 1, 1)).num_groups
    2
    """
    if isinstance(layer, nn.Linear):
        if kind == "batch" and len(shape) == 2 and shape[0] >= ENOUGH:
            return nn.BatchNorm1d(layer.out_features)
        return nn.LayerNorm(layer.out_features)            # also for (batch, length, features), where BatchNorm1d takes the length for channels
    channels, axes = int(layer.out_channels), len(layer.kernel_size)
    if kind == "batch" and (not shape or shape[0] * math.prod(shape[2:]) >= ENOUGH and len(shape) == axes + 2):
        return BATCH[axes](channels)
    groups = 1 if kind == "layer" else next(g for g in range(max(1, channels // PER_GROUP), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def replace_norm(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """GroupNorm(1, channels) in place of BatchNorm, with the very same scale and shift."""
    paths = [p for p in dict.fromkeys(prescription.modules) if isinstance(patient.module(p), nn.modules.batchnorm._BatchNorm)]
    if not paths:
        raise TreatmentRefused("the BatchNorm modules were not found")
    for path in paths:
        old: Any = patient.module(path)
        new = alike(nn.GroupNorm(1, old.num_features, eps=old.eps, affine=old.affine), old)
        if old.affine:
            new.weight, new.bias = old.weight, old.bias
        swap(patient, path, new, journal)
    return f"replaced {len(paths)} BatchNorm by GroupNorm"


def drop_bias(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """Biases in front of a batch normalisation go; its running mean moves with them, so that evaluation gives the same."""
    dropped = []
    for path in dict.fromkeys(prescription.modules):
        layer: Any = patient.module(path)
        bias = layer._parameters.get("bias")
        if not isinstance(layer, LAYERS) or bias is None:
            continue
        norm = _norm_behind(patient, path)
        shared = patient.other_names(bias, (path,))
        if shared:
            raise TreatmentRefused(f"the bias of {path} is shared with {shared[0]}")
        if getattr(norm, "running_mean", None) is not None:
            journal.values(norm.running_mean)
            with torch.no_grad():
                norm.running_mean -= bias
        patient.optimizers.remove(bias, journal)
        journal.table(layer._parameters)
        layer._parameters["bias"] = None
        dropped.append(path)
    if not dropped:
        raise TreatmentRefused("none of the layers has a bias of its own")
    return f"dropped {len(dropped)} bias{'es' if len(dropped) > 1 else ''} that a normalisation removes again"


def _norm_behind(patient: Patient, path: str) -> Any:
    """The normalisation module that takes a layer's output and nothing else.

    Raises:
        TreatmentRefused: it can't be told which.
    """
    operations = [o for o in patient.operations(path) if o.category == "layer"]
    users = patient.users(operations[0]) if len(operations) == 1 else []
    while len(users) == 1 and users[0].category == "shape":
        users = patient.users(users[0])
    module = patient.module(users[0].module) if len(users) == 1 and users[0].category == "norm" else None
    if not isinstance(module, nn.modules.batchnorm._NormBase):
        raise TreatmentRefused(f"no normalisation module directly behind {path} is known from this report; audit the model in this process")
    if sum(o.category == "norm" for o in patient.operations(users[0].module)) > 1:
        raise TreatmentRefused(f"the normalisation behind {path} has several inputs")
    return module


def swap_dropout_norm(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """Dropout moves behind the normalisation, within the nn.Sequential that holds both."""
    path = prescription.modules[0] if prescription.modules else ""
    norm = _next_norm(patient, path)
    if norm is None:
        raise TreatmentRefused("the normalisation behind the dropout is not known from this report; audit the model in this process")
    parent, _, name = path.rpartition(".")
    other_parent, _, other = norm.module.rpartition(".")
    holder = patient.module(parent)
    if not isinstance(holder, nn.Sequential) or parent != other_parent or name not in holder._modules or other not in holder._modules:
        raise TreatmentRefused(f"{path or 'the dropout'} and {norm.module} are not in one nn.Sequential: exchange their calls in forward")
    journal.table(holder._modules)
    entries = [e for e in holder._modules.items() if e[0] != name]
    entries.insert([n for n, _ in entries].index(other) + 1, (name, patient.module(path)))
    holder._modules.clear()
    holder._modules.update(entries)
    return f"moved the dropout {path} behind the normalisation {norm.module}; names in the state dict stay"


def _next_norm(patient: Patient, path: str) -> Operation | None:
    current = next((o for o in patient.operations(path) if o.category == "dropout"), None)
    while current is not None:
        users = patient.users(current)
        current = users[0] if len(users) == 1 else None
        if current is not None and current.op == "batch_norm":
            return current
    return None


def alpha_dropout(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """AlphaDropout of the same rate in place of each Dropout behind a SELU: it keeps mean and variance."""
    chosen = set(prescription.modules)
    behind = [u for path in chosen for o in patient.operations(path) for u in patient.users(o) if u.op == "dropout"]
    paths = tuple(dict.fromkeys(o.module for o in behind if type(patient.module(o.module)) is nn.Dropout))
    if not paths:
        raise TreatmentRefused("no nn.Dropout module stands behind the SELUs; a functional dropout is exchanged in forward")
    for path in paths:
        old: Any = patient.module(path)
        swap(patient, path, nn.AlphaDropout(old.p, inplace=old.inplace).train(old.training), journal)
    return f"replaced {len(paths)} Dropout by AlphaDropout of the same rate"


LIVE = {"insert-norm": insert_norm, "replace-norm": replace_norm, "drop-bias": drop_bias, "swap-dropout-norm": swap_dropout_norm,
        "alpha-dropout": alpha_dropout}
