"""The initialisation that fits each activation, as prescriptions."""
from __future__ import annotations

from collections.abc import Iterable

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation
from gradcheck_doctor.rules.flow import phi

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


def initialise(layers: Iterable[Operation], activations: Iterable[Operation], *, safety: str = "safe") -> Prescription:
    """Re-draw the weights of `layers` with the scheme that their activation needs."""
    modules = tuple(dict.fromkeys(o.module for o in layers))
    scheme, name, slope = right_scheme(activations)
    what = f"{len(modules)} layers" if len(modules) > 1 else modules[0] if modules else "the layer"
    return Prescription("initialise", f"Initialise {what} with {TITLE[scheme]} for {name}", safety=safety, kind="init", modules=modules,
                        arguments={"scheme": scheme, "activation": name, "slope": slope, "zero_bias": True})
