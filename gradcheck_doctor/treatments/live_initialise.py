"""Drawing weights anew, each layer with what its own activation needs."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Finding, Prescription
from gradcheck_doctor.records.recording import Operation
from gradcheck_doctor.theory.activations import activation
from gradcheck_doctor.theory.fans import fans
from gradcheck_doctor.theory.initialisation import glorot_std, he_std, lecun_std, uniform_bound
from gradcheck_doctor.treatments.live_guard import may_draw
from gradcheck_doctor.treatments.live_journal import Journal
from gradcheck_doctor.treatments.live_patient import Patient

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SCHEME = {"he": "he", "lecun": "lecun", "glorot": "glorot"}
DRAWN = {"he": "normal", "lecun": "normal", "glorot": "uniform"}
WORD = {"he": "He (kaiming)", "lecun": "LeCun", "glorot": "Glorot (xavier)"}


@dataclass(frozen=True)
class Scheme:
    """A family (he, lecun, glorot), a distribution (normal, uniform) and the slope of the activation for negative sums."""

    family: str
    drawn: str
    slope: float = 0.0
    activation: str = ""

    def __str__(self) -> str:
        slope = f" a={self.slope:g}" if self.slope else ""
        return f"{WORD[self.family]} {self.drawn}{slope}" + (f" for {self.activation}" if self.activation else "")


def initialise(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """Carry out a prescription `initialise`; returns what was done."""
    scheme = str(prescription.arguments.get("scheme", ""))
    special = SPECIAL.get(scheme)
    if special is not None:
        return special(patient, prescription, journal)
    asked = scheme_of(prescription)
    return draw(patient, prescription.modules, asked, journal, own=not prescription.arguments.get("forced"),
                zero_bias=bool(prescription.arguments.get("zero_bias", True)))


def scheme_of(prescription: Prescription) -> Scheme:
    """The scheme that a prescription names.

    Raises:
        TreatmentRefused: there is no such scheme.
    """
    name = str(prescription.arguments.get("scheme", "")) or "he normal"
    family, _, drawn = name.partition(" ")
    if family not in SCHEME or drawn not in ("normal", "uniform"):
        raise TreatmentRefused(f"there is no live form of the initialisation {name!r}")
    return Scheme(family, drawn, float(prescription.arguments.get("slope") or 0.0), str(prescription.arguments.get("activation") or ""))


def draw(patient: Patient, paths: tuple[str, ...], asked: Scheme, journal: Journal, *, own: bool = True, zero_bias: bool = True) -> str:
    """Draw the weights of all these layers, or of none: everything is checked before the first value changes."""
    chosen: list[tuple[Any, Scheme]] = []
    for path in dict.fromkeys(paths):
        module = patient.module(path)
        if not isinstance(module, LAYERS):
            raise TreatmentRefused(f"{path or 'the model'} is a {type(module).__name__}: its weights are initialised where they are made")
        if any(n not in module._parameters for n in ("weight", "bias")):
            raise TreatmentRefused(f"the weight of {path} is computed from others (a parametrisation such as weight_norm); initialise those")
        _not_shared(patient, module.weight, paths)
        may_draw(patient, path, patient.own_parameters(path))
        chosen.append((module, (own_need(patient, path, asked) if own else None) or asked))
    if not chosen:
        raise TreatmentRefused("the prescription names no layer")
    for module, scheme in chosen:
        rewrite(module.weight, partial(_fill, module=module, scheme=scheme), journal, patient)
        if zero_bias and module.bias is not None:
            rewrite(module.bias, nn.init.zeros_, journal, patient)
    counts: dict[str, int] = {}
    for _, scheme in chosen:
        counts[str(scheme)] = counts.get(str(scheme), 0) + 1
    return "; ".join(f"initialised {n} layer{'s' if n > 1 else ''} with {s}" for s, n in counts.items())


def own_need(patient: Patient, path: str, asked: Scheme) -> Scheme | None:
    """What the activation behind this layer needs; None where the recording does not say."""
    operations = [o for o in patient.operations(path) if o.category == "layer"]
    if not operations:
        return None
    behind = patient.activation_behind(operations[0])
    if behind is None:
        return Scheme("glorot", "uniform") if patient.is_output(operations[0]) else None
    return scheme_for(behind, asked)


def scheme_for(operation: Operation, asked: Scheme) -> Scheme | None:
    """The scheme for an activation; in the distribution that was asked for where the family agrees."""
    theory = activation("relu6" if operation.op == "hardtanh" and operation.attributes.get("min_val") == 0 else operation.op)
    if theory is None:
        return Scheme("glorot", "uniform") if operation.op in ("softmax", "log_softmax") else None
    slope = operation.attributes.get("negative_slope", {"leaky_relu": 0.01, "prelu": 0.25}.get(operation.op, 0.0))
    family = SCHEME[theory.right_init]
    drawn = asked.drawn if asked.family == family else DRAWN[family]
    return Scheme(family, drawn, float(slope or 0.0) if family == "he" else 0.0, theory.name)


def rewrite(parameter: Tensor, fill: Callable[[Tensor], object], journal: Journal, patient: Patient) -> None:
    """Overwrite values in place: the parameter stays the same object; its gradient and the optimizer's memory of it are dropped."""
    journal.values(parameter)
    with torch.no_grad():
        fill(parameter)
    parameter.grad = None
    if isinstance(parameter, nn.Parameter):
        patient.optimizers.forget(parameter, journal)


def _fill(weight: Tensor, module: nn.Module, scheme: Scheme) -> None:
    if "Transpose" in type(module).__name__:              # torch's own functions take the fans of the other direction
        fan_in, fan_out = fans(type(module).__name__, weight.shape, groups=int(module.groups))  # type: ignore[arg-type]
        std = {"he": he_std(fan_in, scheme.slope), "lecun": lecun_std(fan_in), "glorot": glorot_std(fan_in, fan_out)}[scheme.family]
        bound = uniform_bound(std)
        nn.init.normal_(weight, 0.0, std) if scheme.drawn == "normal" else nn.init.uniform_(weight, -bound, bound)
    elif scheme.family == "glorot":
        (nn.init.xavier_normal_ if scheme.drawn == "normal" else nn.init.xavier_uniform_)(weight)
    else:
        kaiming = nn.init.kaiming_normal_ if scheme.drawn == "normal" else nn.init.kaiming_uniform_
        kind = "linear" if scheme.family == "lecun" else "leaky_relu" if scheme.slope else "relu"      # gain of 'selu' is 3/4: not LeCun
        kaiming(weight, a=scheme.slope, nonlinearity=kind)  # type: ignore[arg-type]


def _not_shared(patient: Patient, tensor: Tensor, paths: tuple[str, ...]) -> None:
    others = patient.other_names(tensor, paths)
    if others:
        raise TreatmentRefused(f"the weight is shared with {others[0]}, which needs its own initialisation")


# -- what is not one draw a layer ----------------------------------------------------------------------------------------------------------
def zero_bias(patient: Patient, prescription: Prescription, journal: Journal) -> str:
    """Biases at zero."""
    found = []
    for path in prescription.modules:
        biases = [(n, p) for n, p in patient.own_parameters(path) if n.rpartition(".")[2].startswith("bias")]
        may_draw(patient, path, biases)
        found += biases
    if not found:
        raise TreatmentRefused("the layers have no bias")
    for _, parameter in found:
        rewrite(parameter, nn.init.zeros_, journal, patient)
    return f"set {len(found)} bias{'es' if len(found) > 1 else ''} to zero"


def orthogonal(patient: Patient, prescription: Prescription, journal: Journal) -> str:
    """Recurrent weights orthogonal, each gate by itself: all singular values are 1."""
    found: list[tuple[Tensor, int]] = []
    named = str(prescription.arguments.get("parameter", ""))
    for path in prescription.modules:
        module = patient.module(path)
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            chosen = [(n, p) for n, p in patient.own_parameters(path) if n.rpartition(".")[2].startswith("weight_hh")]
        else:
            chosen = [(n, p) for n, p in patient.own_parameters(path) if n == named or not named and p.dim() == 2]
        may_draw(patient, path, chosen)
        found += [(p, p.shape[0] // p.shape[1] if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) else 1) for _, p in chosen]
    if not found:
        raise TreatmentRefused("no recurrent weight was found there")
    for parameter, gates in found:
        rewrite(parameter, partial(_fill_orthogonal, gates=max(gates, 1)), journal, patient)
    return f"drew {len(found)} recurrent weight{'s' if len(found) > 1 else ''} orthogonal"


def _fill_orthogonal(weight: Tensor, gates: int) -> None:
    for block in weight.chunk(gates):
        nn.init.orthogonal_(block)


def forget_gate_bias(patient: Patient, prescription: Prescription, journal: Journal) -> str:
    """b_ih + b_hh = 1 in the forget gate of every layer and direction; torch orders the gates input, forget, cell, output."""
    value = float(prescription.arguments.get("value", 1.0))
    found = []
    for path in prescription.modules:
        module = patient.module(path)
        if not isinstance(module, (nn.LSTM, nn.LSTMCell)) or not module.bias:
            raise TreatmentRefused(f"{path} is no LSTM with a bias")
        biases = [(n, p) for n, p in patient.own_parameters(path) if ".bias_" in f".{n.rpartition('.')[2]}"]
        may_draw(patient, path, biases)
        found += biases
    for name, parameter in found:
        target = value if "bias_ih" in name else 0.0
        rewrite(parameter, partial(_fill_gate, value=target), journal, patient)
    return f"set the forget-gate biases to {value:g}"


def _fill_gate(bias: Tensor, value: float) -> None:
    size = bias.numel() // 4
    bias[size: 2 * size].fill_(value)


def class_prior(patient: Patient, prescription: Prescription, journal: Journal) -> str:
    """Output bias at the logarithm of the class shares (the log odds of a single unit), from the batch's targets."""
    path = prescription.modules[-1] if prescription.modules else _head(patient)
    module = patient.module(path)
    bias = getattr(module, "bias", None)
    if not isinstance(bias, nn.Parameter):
        raise TreatmentRefused(f"{path} has no bias")
    target = prior_bias(patient.targets, bias.numel())
    may_draw(patient, path, [(f"{path}.bias", bias)])
    rewrite(bias, lambda b: b.copy_(target.to(b)), journal, patient)
    return f"started the bias of {path} at the share of each class"


def prior_bias(targets: object, outputs: int) -> Tensor:
    """log of each class's share, or log odds for a single output; a class that is absent counts as half a sample.

    Raises:
        TreatmentRefused: the targets are no classes.

    >>> prior_bias(torch.tensor([0, 1, 1, 1]), 2)
    tensor([-1.3863, -0.2877])
    """
    if not isinstance(targets, Tensor) or targets.numel() == 0:
        raise TreatmentRefused("the class shares come from the targets: pass batch=(inputs, targets) and the loss")
    if outputs == 1:
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise TreatmentRefused("a single output needs targets of 0 and 1")
        share = targets.double().mean().clamp(0.5 / targets.numel(), 1 - 0.5 / targets.numel())
        return torch.log(share / (1 - share)).reshape(1).float()
    if targets.is_floating_point() or int(targets.max()) >= outputs or int(targets.min()) < 0:
        raise TreatmentRefused(f"the targets are not class numbers from 0 to {outputs - 1}")
    counts = torch.bincount(targets.reshape(-1), minlength=outputs).double()
    return torch.log((counts.clamp(min=0.5)) / counts.sum()).float()


def target_bias(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """Output bias at the mean of the targets, for regression."""
    path = prescription.modules[-1] if prescription.modules else _head(patient)
    bias = getattr(patient.module(path), "bias", None)
    value = float(prescription.arguments["value"])
    if not isinstance(bias, nn.Parameter) or not math.isfinite(value):
        raise TreatmentRefused(f"{path} has no bias to start at {value:g}")
    may_draw(patient, path, [(f"{path}.bias", bias)])
    rewrite(bias, lambda b: nn.init.constant_(b, value), journal, patient)
    return f"started the bias of {path} at {value:.4g}, the mean of the targets"


def _head(patient: Patient) -> str:
    """The layer whose output nothing but the loss uses."""
    layers = [o for o in patient.recording.operations if o.category == "layer"] if patient.recording is not None else []
    heads = [o.module for o in layers if patient.is_output(o)]
    if len(set(heads)) != 1:
        raise TreatmentRefused("the output layer was not found")
    return heads[0]


SPECIAL = {"zero bias": zero_bias, "orthogonal": orthogonal, "forget gate bias": forget_gate_bias, "class prior": class_prior, "zero output bias": zero_bias}
LIVE = {"initialise": initialise, "target-bias": target_bias}
