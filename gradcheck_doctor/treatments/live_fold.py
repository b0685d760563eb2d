"""Batch normalisation folded into the layer in front of it: one layer less at inference, the same output up to rounding.

y = gamma (W x + b - mean) / sqrt(var + eps) + beta is again a layer, with W' = s W and b' = s (b - mean) + beta, s = gamma / sqrt(var + eps).
"""
from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Finding, Prescription
from gradcheck_doctor.treatments.live import Change
from gradcheck_doctor.treatments.live_initialise import LAYERS
from gradcheck_doctor.treatments.live_journal import Journal
from gradcheck_doctor.treatments.live_optimizer import Optimizers
from gradcheck_doctor.treatments.live_patient import Patient
from gradcheck_doctor.treatments.live_tree import enrol, swap

NORMS = nn.modules.batchnorm._BatchNorm


def fold_norm(model: nn.Module, optimizer: Any = None) -> Change:
    """Fold every BatchNorm of a model in eval() into the Linear or convolution directly in front of it.

    The BatchNorm modules become nn.Identity, so names and positions of the others stay. `undo()` of the change gives the old model back.

    Raises:
        TreatmentRefused: the model is in training mode, or there is nothing to fold.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU()).eval()
    >>> fold_norm(model).modules
    ('1',)
    """
    journal = Journal()
    prescription = Prescription("fold-norm", "Fold the normalisation into the layer in front of it", kind="norm")
    try:
        title, folded = _fold(Patient(model, Optimizers(optimizer)), journal)
    except BaseException:
        journal.undo()
        raise
    return Change(title, prescription.id, folded, journal=journal)


def fold(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """Carry out a prescription `fold-norm`."""
    return _fold(patient, journal)[0]


def _fold(patient: Patient, journal: Journal) -> tuple[str, tuple[str, ...]]:
    if any(m.training for m in patient.model.modules() if isinstance(m, NORMS)):
        raise TreatmentRefused("folding fixes the running statistics: call model.eval() first, and fold for inference only")
    folded = []
    for layer_path, norm_path in _pairs(patient):
        layer, norm = patient.module(layer_path), patient.module(norm_path)
        if _foldable(patient, layer_path, layer, norm):
            _merge(patient, layer, norm, journal)
            swap(patient, norm_path, nn.Identity().eval(), journal)
            folded.append(norm_path)
    if not folded:
        raise TreatmentRefused("no BatchNorm with running statistics stands directly behind a Linear or convolution that is used once")
    return f"Folded {len(folded)} BatchNorm into the layers in front of them", tuple(folded)


def _pairs(patient: Patient) -> list[tuple[str, str]]:
    """(layer, norm) by data flow: traced where the forward can be traced, else as recorded, else by neighbours in an nn.Sequential."""
    try:
        graph = torch.fx.Tracer().trace(patient.model)
    except Exception:
        return _recorded(patient) if patient.recording is not None else _neighbours(patient)
    nodes = [n for n in graph.nodes if n.op == "call_module"]
    modules = [patient.module(n.target) for n in nodes]
    once = {id(m) for m in modules if sum(m is other for other in modules) == 1}
    pairs = []
    for node, module in zip(nodes, modules, strict=True):
        source = node.args[0] if node.args and isinstance(node.args[0], torch.fx.Node) else None
        if isinstance(module, NORMS) and source is not None and source.op == "call_module" and len(source.users) == 1:
            before = patient.module(str(source.target))
            if isinstance(before, LAYERS) and {id(before), id(module)} <= once:
                pairs.append((str(source.target), str(node.target)))
    return pairs


def _recorded(patient: Patient) -> list[tuple[str, str]]:
    assert patient.recording is not None
    pairs = []
    for operation in patient.recording.operations:
        users = patient.users(operation)
        if operation.category == "layer" and len(users) == 1 and users[0].op == "batch_norm":
            calls = [o for p in (operation.module, users[0].module) for o in patient.operations(p) if o.category in ("layer", "norm")]
            if len(calls) == 2 and all(o.repeats == 1 for o in calls):
                pairs.append((operation.module, users[0].module))
    return pairs


def _neighbours(patient: Patient) -> list[tuple[str, str]]:
    paths = [n for n, _ in patient.model.named_modules(remove_duplicate=False)]
    pairs = []
    for path in paths:
        parent = patient.module(path)
        if type(parent) is nn.Sequential:
            names = [f"{path}.{n}".lstrip(".") for n, m in parent._modules.items() if not isinstance(m, nn.Identity)]
            pairs += [(a, b) for a, b in zip(names, names[1:], strict=False) if isinstance(patient.module(a), LAYERS) and isinstance(patient.module(b), NORMS)]
    return [(a, b) for a, b in pairs if all(sum(patient.module(p) is patient.module(q) for q in paths) == 1 for p in (a, b))]


def _foldable(patient: Patient, path: str, layer: Any, norm: Any) -> bool:
    plain = all(n in layer._parameters for n in ("weight", "bias")) and norm.running_mean is not None and not norm._forward_hooks and not layer._forward_hooks
    return plain and not patient.other_names(layer.weight, (path,)) and (layer.bias is None or not patient.other_names(layer.bias, (path,)))


@torch.no_grad()
def _merge(patient: Patient, layer: Any, norm: Any, journal: Journal) -> None:
    """In double precision, rounded once."""
    scale = (norm.running_var.double() + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight.double())
    bias = 0.0 if layer.bias is None else layer.bias.double()
    shift = (bias - norm.running_mean.double()) * scale + (0.0 if norm.bias is None else norm.bias.double())
    journal.values(layer.weight)
    layer.weight.copy_(_scaled(layer, layer.weight.double(), scale))
    if layer.bias is not None:
        journal.values(layer.bias)
        layer.bias.copy_(shift)
    else:
        journal.table(layer._parameters)
        layer._parameters["bias"] = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
        enrol(patient, layer, (layer.weight,), journal)
    for parameter in norm.parameters(recurse=False):
        patient.optimizers.remove(parameter, journal)


def _scaled(layer: Any, weight: Tensor, scale: Tensor) -> Tensor:
    """Each output channel times its scale; transposed convolutions store (in, out / groups, ...)."""
    if "Transpose" not in type(layer).__name__:
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    groups = int(layer.groups)
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return (split * scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))).reshape(weight.shape)


LIVE = {"fold-norm": fold}
