"""The initialisation that fits each activation, as prescriptions."""
from __future__ import annotations

import math
from collections.abc import Iterable

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, ParameterRecord, Recording
from gradcheck_doctor.rules.flow import bias, phi, weight

SCHEME = {"he": "he normal", "lecun": "lecun normal", "glorot": "glorot uniform"}
TITLE = {"he normal": "He (kaiming) normal", "lecun normal": "LeCun normal", "glorot uniform": "Glorot (xavier) uniform"}


def right_scheme(activations: Iterable[Operation]) -> tuple[str, str, float]:
    """(scheme, activation, negative slope) for a run, by the activation met most often in it."""
    ops = [o for o in activations if phi(o) is not None]
    if not ops:
        return "glorot uniform", "none", 0.0
    names = [o.op for o in ops]
    common = max(dict.fromkeys(names), key=names.count)
    chosen = next(o for o in ops if o.op == common)
    theory = phi(chosen)
    assert theory is not None
    slope = float(chosen.attributes.get("negative_slope", 0.01 if common == "leaky_relu" else 0.25 if common == "prelu" else 0.0))
    return SCHEME[theory.right_init], common, slope


def drawn_by(record: ParameterRecord, scheme: str) -> bool:
    """The weight has `scheme` already, normal or uniform."""
    family = scheme.partition(" ")[0]
    return record.scheme in (f"{family} normal", f"{family} uniform", f"{family} truncated normal")


def _started(recording: Recording, layer: Operation, scheme: str) -> bool:
    """Weight and bias of a layer are as `initialise` would draw them, or as near as makes no difference."""
    record, offset = weight(recording, layer), bias(recording, layer)
    return record is not None and drawn_by(record, scheme) and (offset is None or offset.scheme.startswith(("zeros", "torch default")))


def initialise(recording: Recording, layers: Iterable[Operation], activations: Iterable[Operation], *, safety: str = "safe") -> tuple[Prescription, ...]:
    """Re-draw the weights of `layers` with the scheme that their activation needs; nothing where all of them have it."""
    layers = tuple(layers)
    modules = tuple(dict.fromkeys(o.module for o in layers))
    scheme, name, slope = right_scheme(activations)
    if layers and all(_started(recording, layer, scheme) for layer in layers):
        return ()
    what = f"{len(modules)} layers" if len(modules) > 1 else modules[0] or "the weights" if modules else "the layer"
    return (Prescription("initialise", f"Initialise {what} with {TITLE[scheme]}" + (f" for {name}" if name != "none" else ""), safety=safety, kind="init", modules=modules,
                        arguments={"scheme": scheme, "activation": name, "slope": slope, "zero_bias": True}),)


def fitting(record: ParameterRecord, scheme: str) -> bool:
    """The weight has the spread that `scheme` asks for, within a factor of 2 in variance (sampling, fan_in against fan_out)."""
    if record.gain is None or not record.fan_in or not record.fan_out:
        return True
    target = {"he normal": 2.0, "lecun normal": 1.0, "glorot uniform": 2.0 * record.fan_in / (record.fan_in + record.fan_out)}[scheme]
    slack = 1.25 if scheme == "lecun normal" else 1.6
    slack += 3.0 * math.sqrt(2.0 / max(record.count, 1))
    return record.orthogonal or drawn_by(record, scheme) or 1.0 / slack <= record.gain**2 / target <= slack
