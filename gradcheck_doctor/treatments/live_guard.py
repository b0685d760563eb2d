"""The promise that trained or loaded weights are never drawn anew, unless asked by name."""
from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.recording import ParameterRecord
from gradcheck_doctor.theory.initialisation import glorot_std, he_std, lecun_std, torch_default_std, uniform_bound
from gradcheck_doctor.theory.schemes import TORCH_DEFAULT
from gradcheck_doctor.treatments.live_patient import Patient

WRITTEN = 24           # in-place writes that no initialisation makes (truncated normal makes 5), and 24 optimizer steps do
BATCHES = 24           # batches a BatchNorm has seen in training mode
LEAST = 8              # elements below which values say nothing
SHARE = 0.1            # share of the parameters that must look trained before the others are taken for trained too

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm) if hasattr(nn, "RMSNorm") else (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def may_draw(patient: Patient, path: str, tensors: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Raise unless the values of these parameters of the module at `path` may be replaced.

    Raises:
        TreatmentRefused: they were trained or loaded, are frozen, shared or not held as plain tensors; the message says which.
    """
    named = list(tensors)
    for name, parameter in named:
        _plain(name, parameter)
    allowed = patient.retrain is True or not isinstance(patient.retrain, bool) and path in patient.retrain
    reason = "" if allowed else next((r for name, p in named if (r := trained(patient, name, p))), "")
    if reason:
        raise TreatmentRefused(f"{path or 'the model'} is kept: {reason}. Trained or loaded weights are never initialised again unless asked by name "
                               f"(retrain=({path!r},), or only=(...) with retrain=True)")


def trained(patient: Patient, name: str, parameter: nn.Parameter) -> str:
    """Why a parameter counts as trained or loaded; empty when nothing says so."""
    if not parameter.requires_grad:
        return f"{name} is frozen (requires_grad=False), as pretrained parts are"
    if patient.optimizers.state(parameter):
        return f"the optimizer holds state for {name}, so it took steps"
    if any(getattr(o, "_opt_called", False) for o in patient.optimizers.all):
        return "the optimizer took steps under its learning rate schedule"
    loaded = _loaded(patient, name)
    if loaded is not None:
        return loaded
    if patient.steps:
        return f"the report comes from {patient.steps} training steps"
    if _new(patient, name):
        return ""
    record = patient.parameters.get(name)
    if record is not None and record.trained:
        return f"{name} follows no known initialisation"
    if reason := _model_trained(patient, parameter):
        return reason
    return f"{min(patient.changed)} has changed since the report was made (a new report says what is sick now)" if patient.changed else ""


def _model_trained(patient: Patient, parameter: nn.Parameter) -> str:
    """Evidence elsewhere in the model: one trained weight in ten says that the others are too."""
    spent = _writes_of_probes(patient)
    if parameter._version > WRITTEN + spent:
        return f"it was written to {parameter._version} times since it was made"
    seen = max((int(b) for n, b in patient.model.named_buffers() if n.endswith("num_batches_tracked") and not b.is_meta), default=0)
    if seen > BATCHES:
        return f"the model's BatchNorm layers have seen {seen} batches"
    judged = [r.name for r in patient.parameters.values() if r.count >= LEAST]
    odd = [n for n in judged if moved(patient, n)]
    if len(odd) >= max(2, SHARE * len(judged)):
        return f"{len(odd)} of {len(judged)} parameters of the model look trained ({moved(patient, odd[0])})"
    return ""


def moved(patient: Patient, name: str) -> str:
    """What about a parameter's values no initialisation explains; empty when nothing does.

    Shape and spread of a weight alone say little (200 steps of Adam leave most weights uniform or normal), so the hard facts count: default
    and uniform initialisations have a bound, biases start constant or as uniform as their layer's weight, normalisation starts constant.
    """
    record = patient.parameters.get(name)
    if record is None or record.count < LEAST:
        return ""
    if record.trained:
        return f"{name} follows no known initialisation"
    owner = patient.module(record.module)
    if isinstance(owner, NORMS):
        judged = record.role == "bias" or getattr(owner, "bias", None) is None     # DCGAN draws its scales from N(1, 0.02)
        return f"{name} is not constant, as normalisation starts" if judged and record.std > 1e-6 * max(abs(record.mean), 1.0) else ""
    if len(record.shape) >= 2:
        return _moved_weight(patient, record)
    return _moved_bias(patient, record) if record.role.startswith("bias") else ""


def _moved_weight(patient: Patient, record: ParameterRecord) -> str:
    bound = _bound(record)
    if bound and record.absmax > 1.0001 * bound:
        return f"{record.name} reaches {record.absmax:.3g}, beyond the bound {bound:.3g} of {record.scheme}"
    free = record.scheme.startswith(("normal std=", "truncated normal std=", "uniform ")) and "(torch" not in record.scheme
    offset = abs(record.mean) > 0.1 * record.std and abs(record.mean) * math.sqrt(min(record.count, 4096)) > 5.0 * record.std
    if free and offset and abs(record.mean) < 0.5 * record.std:      # uniform from 0 to 1 has 1.73
        return f"{record.name} has mean {record.mean:.2g} and standard deviation {record.std:.2g}, which no initialisation draws"
    if free and not offset and not _has_peer(patient, record):
        return f"{record.name} has a standard deviation of its own, {record.std:.3g}, that no rule explains"
    return ""


def _has_peer(patient: Patient, record: ParameterRecord) -> bool:
    """Another weight has the same spread, absolutely or for its fans: one rule made both; or it is a round number."""
    error = 3.0 * math.sqrt(1.0 / (2.0 * min(record.count, 4096)))
    others = [r for r in patient.parameters.values() if len(r.shape) >= 2 and r.count >= 200 and r is not record and r.std > 0]
    if not others or abs(record.std / float(f"{record.std:.1g}") - 1.0) <= 0.5 * error:
        return True

    def scales(r: ParameterRecord) -> tuple[float, ...]:
        fan_in, fan_out = r.fan_in or 1, r.fan_out or 1
        return (r.std, r.std * math.sqrt(fan_in), r.std * math.sqrt(fan_out), r.std * math.sqrt(fan_in + fan_out))

    own = scales(record)
    return any(abs(a / b - 1.0) <= 1.5 * error for other in others for a, b in zip(own, scales(other), strict=True))


def _moved_bias(patient: Patient, record: ParameterRecord) -> str:
    if record.std <= 1e-6 * max(abs(record.mean), 1.0) or not record.fan_in or record.gate_bias is not None:
        return ""
    error = 4.0 * math.sqrt(0.8 / (4.0 * record.count))
    weight = patient.parameters.get(record.name.removesuffix(record.role) + record.role.replace("bias", "weight"))
    if weight is not None and not weight.scheme.startswith("torch default") and abs(record.std / weight.std - 1.0) <= error and _fixed(patient, weight):
        return ""                                          # the same draw for both, as in a loop over all parameters
    fans = [f for f in (record.fan_in, record.fan_out) if f]
    if any(record.absmax <= 1.0001 / math.sqrt(f) and abs(record.std * math.sqrt(3.0 * f) - 1.0) <= error for f in fans):
        return ""
    return f"{record.name} has standard deviation {record.std:.2g}, neither constant nor the default of its layer"


def _fixed(patient: Patient, weight: ParameterRecord) -> bool:
    """All large weights have this standard deviation."""
    return all(abs(r.std / weight.std - 1.0) <= 0.1 for r in patient.parameters.values() if len(r.shape) >= 2 and r.count >= 200)


def _bound(record: ParameterRecord) -> float | None:
    """Largest value that the recognised uniform scheme can draw."""
    fan_in, fan_out = record.fan_in or 1, record.fan_out or 1
    known = {TORCH_DEFAULT: torch_default_std(fan_in), "he uniform": he_std(fan_in), "lecun uniform": lecun_std(fan_in),
             "glorot uniform": glorot_std(fan_in, fan_out)}
    std = known.get(record.scheme)
    return None if std is None else uniform_bound(std)


def _writes_of_probes(patient: Patient) -> int:
    """Throw-away steps of an audit write to the weights too (and put them back)."""
    facts = patient.recording.probe if patient.recording is not None else {}
    return 4 * sum(int(facts.get(k) or 0) for k in ("steps", "warmed"))


def _loaded(patient: Patient, name: str) -> str | None:
    for path, missing in patient.loaded.items():
        inside = name[len(path) + 1:] if path else name
        if (not path or name.startswith(path + ".")) and inside not in missing:
            return f"load_state_dict was called on {path or 'the model'}"
    return None


def _new(patient: Patient, name: str) -> bool:
    """It was missing when weights were loaded: a new head."""
    return any((name[len(path) + 1:] if path else name) in missing for path, missing in patient.loaded.items())


def _plain(name: str, parameter: Tensor) -> None:
    """Raise where a value cannot be set in place."""
    if is_lazy(parameter) or parameter.is_meta:
        raise TreatmentRefused(f"{name} has no values yet (lazy or meta); run one forward first")
    if hasattr(parameter, "to_local"):
        raise TreatmentRefused(f"{name} is sharded; treat the model before it is distributed")
    if not parameter.is_floating_point():
        raise TreatmentRefused(f"{name} holds {parameter.dtype}, which has no initialisation")
