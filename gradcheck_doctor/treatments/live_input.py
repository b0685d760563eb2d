"""Inputs brought to mean 0 and standard deviation 1 inside the model, where they can be seen."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Finding, Prescription
from gradcheck_doctor.treatments.live_initialise import LAYERS
from gradcheck_doctor.treatments.live_journal import Journal
from gradcheck_doctor.treatments.live_norm import BATCH
from gradcheck_doctor.treatments.live_patient import Patient
from gradcheck_doctor.treatments.live_tree import alike, enrol, insert


class Standardise(nn.Module):
    """(x - mean) / std per feature, with figures taken once from a batch; kept in buffers, so the checkpoint holds them.

    Args:
        batch: (samples, features), (samples, length, features) or (samples, channels, ...).
        axis: of the features: -1 for a Linear, 1 for a convolution. A feature that does not vary is only centred.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, batch: Tensor, axis: int = -1) -> None:
        super().__init__()
        others = [i for i in range(batch.dim()) if i != axis % batch.dim()]
        values = batch.detach().double()
        std = values.std(others, unbiased=False, keepdim=True)
        std = torch.where(std > 1e-8 * values.abs().amax(others, keepdim=True), std, torch.ones_like(std))
        self.register_buffer("mean", values.mean(others, keepdim=True)[:1].to(batch.dtype))
        self.register_buffer("std", std[:1].to(batch.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def input_norm(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """BatchNorm in front of the layer that the input meets first."""
    path, layer = _entry(patient, prescription)
    operation = next((o for o in patient.operations(path) if o.category == "layer"), None)
    shape = operation.input_shapes[0] if operation is not None and operation.input_shapes else ()
    if isinstance(layer, nn.Linear):
        norm: nn.Module = nn.BatchNorm1d(layer.in_features) if len(shape) in (0, 2) else nn.LayerNorm(layer.in_features)
    else:
        norm = BATCH[len(layer.kernel_size)](layer.in_channels)
    norm = alike(norm, layer)
    enrol(patient, norm, layer.parameters(), journal)
    insert(patient, path, norm, journal, front=True)
    return f"put {type(norm).__name__} in front of {path}, so that it normalises the input"


def standardise_input(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """Fixed mean and standard deviation of the batch's features in front of the first layer."""
    path, layer = _entry(patient, prescription)
    inputs = patient.batch[0] if isinstance(patient.batch, (tuple, list)) and len(patient.batch) == 1 else patient.batch
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise TreatmentRefused("the figures come from the data: pass batch= with one floating tensor as input")
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        patient.forward()
    finally:
        handle.remove()
    if not seen:
        raise TreatmentRefused(f"{path} did not run on this batch")
    insert(patient, path, Standardise(seen[0], -1 if isinstance(layer, nn.Linear) else 1).train(layer.training), journal, front=True, word="standardise")
    return f"put a standardisation with the figures of this batch in front of {path}"


def _entry(patient: Patient, prescription: Prescription) -> tuple[str, Any]:
    path = prescription.modules[0] if prescription.modules else _first_layer(patient)
    layer = patient.module(path)
    if not isinstance(layer, LAYERS):
        raise TreatmentRefused(f"the input first meets {path or 'the model'}, a {type(layer).__name__}; standardise the data in front of it")
    if len([o for o in patient.operations(path) if o.category == "layer"]) > 1:
        raise TreatmentRefused(f"{path} is called several times in one forward; standardise the data in front of it")
    return path, layer


def _first_layer(patient: Patient) -> str:
    if patient.recording is not None:
        path = next((o.module for o in patient.recording.operations if o.category == "layer"), "")
    else:
        path = next((n for n, m in patient.model.named_modules() if isinstance(m, LAYERS)), "")
    return path


LIVE = {"input-norm": input_norm, "standardise-input": standardise_input}
