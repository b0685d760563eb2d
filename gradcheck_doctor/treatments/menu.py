"""Treatments that fit any network, for the control: a prescription has to do better than what is drawn blindly from this menu."""
from __future__ import annotations

import random
from collections.abc import Iterator

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription, ReportData
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.plan import planners

LAYERS = ("linear", "conv1d", "conv2d", "conv3d")
ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu")


def blind(report: ReportData, file: str, seed: int = 0) -> Iterator[tuple[Prescription, tuple[Edit, ...]]]:
    """Prescriptions from the menu that have an edit in `file`, in an order drawn with `seed`, whatever was found."""
    menu = _menu(report)
    random.Random(seed).shuffle(menu)
    context = Context(file, report.layers)
    for prescription in menu:
        finding = Finding("", "control", "info", "", modules=prescription.modules, op=str(prescription.arguments.get("old_op", "")),
                          module=prescription.modules[0] if prescription.modules else "")
        try:
            edits = tuple(planners()[prescription.treatment](context, finding, prescription))
        except (TreatmentRefused, LookupError, ValueError):
            continue
        if edits:
            yield prescription, edits


def _menu(report: ReportData) -> list[Prescription]:
    layers = tuple(row.module for row in report.layers if row.op in LAYERS)
    menu = [Prescription("initialise", f"{scheme} everywhere", kind="init", modules=layers, arguments={"scheme": scheme})
            for scheme in ("he normal", "glorot uniform", "lecun normal")]
    menu += [Prescription("learning-rate", f"learning rate {rate:g}", kind="optimizer", arguments={"lr": rate}) for rate in (1e-1, 1e-2, 1e-3, 1e-4)]
    menu += [Prescription("insert-norm", "BatchNorm everywhere", kind="norm", modules=layers, arguments={"norm": "batch"}),
             Prescription("clip-by-norm", "clip at 1", kind="clip", arguments={"max_norm": 1.0})]
    for op in dict.fromkeys(row.op for row in report.layers if row.op in (*ACTIVATIONS, "tanh", "sigmoid", "selu")):
        modules = tuple(row.module for row in report.layers if row.op == op)
        menu += [Prescription("replace-activation", f"{to} for {op}", kind="activation", modules=modules, arguments={"to": to, "old_op": op})
                 for to in ACTIVATIONS if to != op]
    return menu
