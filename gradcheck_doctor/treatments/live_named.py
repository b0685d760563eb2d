"""Treatments that can be asked for by name although no finding prescribes them."""
from __future__ import annotations

from torch import nn

from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.treatments.live_initialise import LAYERS, SPECIAL
from gradcheck_doctor.treatments.live_patient import Patient

DRAWS = ("he normal", "he uniform", "lecun normal", "lecun uniform", "glorot normal", "glorot uniform")
WHOLE = {"fold-norm": "Fold the normalisation into the layers", "input-norm": "BatchNorm as first layer", "standardise-input": "Standardise the input",
         "clip-by-norm": "Clip the gradient by norm", "add-parameters": "Give the optimizer the missing parameters", "insert-norm": "Normalise behind the hidden layers",
         "drop-bias": "Drop biases in front of a batch normalisation"}


def canonical(name: str) -> str:
    """"init-he-normal" is short for "initialise-he-normal"."""
    return "initialise" + name[4:] if name == "init" or name.startswith("init-") else name


def means(name: str, prescription: Prescription) -> bool:
    """Whether a name in `only` means this prescription: its id, or the front part of it."""
    asked = canonical(name)
    return prescription.id == asked or prescription.id.startswith(asked + "-")


def by_name(patient: Patient, name: str) -> Prescription | None:
    """The prescription for the whole model, None where only a finding can say what to do.

    Raises:
        ConfigError: there is no treatment of that name.
    """
    from gradcheck_doctor.treatments.live_plan import LIVE

    asked = canonical(name)
    schemes = {f"initialise-{s.replace(' ', '-')}": s for s in (*DRAWS, *SPECIAL)}
    if asked == "initialise":
        return Prescription("initialise", "Initialise every layer for its activation", "safe", "init", _layers(patient), arguments={"scheme": "he normal"})
    if asked in schemes:
        scheme = schemes[asked]
        chosen = {"orthogonal": _of(patient, nn.RNNBase, nn.RNNCellBase), "forget gate bias": _of(patient, nn.LSTM, nn.LSTMCell), "class prior": ()}.get(scheme)
        return Prescription("initialise", f"Initialise: {scheme}", "safe", "init", _layers(patient) if chosen is None else chosen,
                            arguments={"scheme": scheme, "forced": True})
    if asked in WHOLE:
        return Prescription(asked, WHOLE[asked], modules=_standing(patient, asked))
    if not any(asked == t or asked.startswith(t + "-") for t in LIVE):
        raise ConfigError(f"there is no treatment {name!r}; known: {', '.join(sorted({*LIVE, *schemes}))}")
    return None


def _layers(patient: Patient) -> tuple[str, ...]:
    return _of(patient, *LAYERS)


def _standing(patient: Patient, name: str) -> tuple[str, ...]:
    if name == "insert-norm":
        return _layers(patient)
    if name != "drop-bias":
        return ()
    paths = [p for p in _layers(patient) for o in patient.operations(p) if any(u.op in ("batch_norm", "instance_norm") for u in patient.users(o))]
    return tuple(dict.fromkeys(paths))


def _of(patient: Patient, *types: type[nn.Module]) -> tuple[str, ...]:
    return tuple(n for n, m in patient.model.named_modules() if isinstance(m, types))
