"""Cures outside the model that a live optimizer can take: rates, epsilon, groups, clipping, freezing."""
from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Finding, Prescription
from gradcheck_doctor.treatments.live_journal import Journal
from gradcheck_doctor.treatments.live_patient import Patient


def learning_rate(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """Every group's rate changes by the same factor; that of a schedule (`initial_lr`) too."""
    _needed(patient)
    new = float(prescription.arguments["lr"])
    old = float(prescription.arguments.get("old") or max(_value(g["lr"]) for o in patient.optimizers.all for g in o.param_groups))
    if old <= 0 or new <= 0:
        raise TreatmentRefused(f"a rate of {old:g} can't be changed by a factor")
    for group in (g for o in patient.optimizers.all for g in o.param_groups):
        journal.table(group)
        for key in ("lr", "initial_lr"):
            if key in group:
                value = group[key] * (new / old)
                group[key] = new if not isinstance(value, torch.Tensor) and abs(value - new) < 1e-12 + 1e-9 * new else value
    return f"set the learning rate from {old:g} to {new:g}; a scheduler made before keeps its own base_lrs"


def adam_epsilon(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """eps back to its default."""
    return _set(patient, journal, "eps", float(prescription.arguments.get("eps", 1e-8)))


def weight_decay(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """Less weight decay."""
    return _set(patient, journal, "weight_decay", float(prescription.arguments["weight_decay"]), only_larger=True)


def momentum(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """Less momentum; what has gathered in the buffers decays with it."""
    return _set(patient, journal, "momentum", float(prescription.arguments["momentum"]), only_larger=True)


def _set(patient: Patient, journal: Journal, key: str, value: float, *, only_larger: bool = False) -> str:
    _needed(patient)
    groups = [g for o in patient.optimizers.all for g in o.param_groups if key in g and (g[key] > value if only_larger else g[key] != value)]
    if not groups:
        raise TreatmentRefused(f"no group of the optimizer has another {key}")
    for group in groups:
        journal.table(group)
        group[key] = value
    return f"set {key} to {value:g}"


def add_parameters(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """The trainable parameters that no optimizer holds, as a group with the optimizer's defaults."""
    _needed(patient)
    optimizer = patient.optimizers.all[0]
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TreatmentRefused("LBFGS cannot take another parameter; build it from all of them")
    paths = prescription.modules or ("",)
    missing = [p for path in paths for p in patient.module(path).parameters() if p.requires_grad and patient.optimizers.holding(p) is None]
    missing = list({id(p): p for p in missing}.values())
    if not missing:
        raise TreatmentRefused("the optimizer holds all of them already")
    journal.sequence(optimizer.param_groups)
    for parameter in missing:
        journal.note(parameter, lambda p=parameter: optimizer.state.pop(p, None))  # type: ignore[misc]
    optimizer.add_param_group({"params": missing})
    return f"gave {len(missing)} parameters to the optimizer as a new group"


def clip_by_norm(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """The gradient is clipped by norm in front of every step, after a scaler has unscaled it."""
    _needed(patient)
    limit = float(prescription.arguments.get("max_norm", 1.0))
    for optimizer in patient.optimizers.all:
        handle = optimizer.register_step_pre_hook(_Clip(limit))
        journal.note(optimizer, handle.remove)
    return f"clip the gradient by norm {limit:g} in front of each step, by a hook of this optimizer object"


class _Clip:
    """Clips what the optimizer is about to use."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], self.limit)


def freeze(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """requires_grad_(False) for these modules; gradients that were gathered are dropped, or the optimizer would still apply them."""
    if not prescription.modules or prescription.modules == ("",):
        raise TreatmentRefused("which part is to be frozen is not known from this report")
    chosen = [p for path in prescription.modules for p in patient.module(path).parameters() if p.requires_grad]
    trainable = [p for p in patient.model.parameters() if p.requires_grad]
    if not chosen:
        raise TreatmentRefused("it is frozen already")
    if len({id(p) for p in chosen}) == len(trainable):
        raise TreatmentRefused("nothing would be left to train")
    for parameter in chosen:
        journal.trainable(parameter)
        parameter.requires_grad_(False)
        parameter.grad = None
    return f"froze {len(chosen)} parameters of {', '.join(prescription.modules[:3])}"


def _needed(patient: Patient) -> None:
    if not patient.optimizers:
        raise TreatmentRefused("it is a change of the optimizer: pass optimizer=")


def _value(number: Any) -> float:
    return float(number)


def batchnorm_momentum(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """Another momentum for the running statistics of these batch normalisations."""
    momentum = float(prescription.arguments["momentum"])
    norms = [m for path in prescription.modules if isinstance(m := patient.module(path), nn.modules.batchnorm._NormBase)]
    if not norms:
        raise TreatmentRefused("no batch normalisation was found there")
    for norm in norms:
        journal.note(norm, lambda norm=norm, old=norm.momentum: setattr(norm, "momentum", old))  # type: ignore[misc]
        norm.momentum = momentum
    return f"set the momentum of {len(norms)} batch normalisation{'s' if len(norms) > 1 else ''} to {momentum:g}"


LIVE = {"batchnorm-momentum": batchnorm_momentum, "learning-rate": learning_rate, "adam-epsilon": adam_epsilon, "weight-decay": weight_decay, "momentum": momentum,
        "add-parameters": add_parameters, "clip-by-norm": clip_by_norm, "freeze": freeze, "freeze-backbone": freeze}
