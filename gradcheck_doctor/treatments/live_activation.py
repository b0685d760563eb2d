"""Another activation in place of one that is a module, or none at all."""
from __future__ import annotations

from torch import nn

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Finding, Prescription
from gradcheck_doctor.theory.activations import activation
from gradcheck_doctor.treatments.live_initialise import DRAWN, SCHEME, Scheme, draw
from gradcheck_doctor.treatments.live_journal import Journal
from gradcheck_doctor.treatments.live_patient import Patient
from gradcheck_doctor.treatments.live_tree import alike, enrol, places, swap

PLAIN: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU, "selu": nn.SELU, "silu": nn.SiLU, "rrelu": nn.RReLU}


def replace_activation(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """Exchange the activation modules; where the new one needs other weights, the layers in front are initialised for it."""
    to, slope = str(prescription.arguments.get("to", "relu")), prescription.arguments.get("slope")
    paths = tuple(dict.fromkeys(prescription.modules))
    if not paths:
        raise TreatmentRefused("the prescription names no module")
    old = [_activation(patient, path, finding.op if finding is not None else "") for path in paths]
    feeders = _feeders(patient, paths)
    names = sorted({type(m).__name__ for m in old})
    for path, module in zip(paths, old, strict=True):
        new = alike(made(to, slope, bool(getattr(module, "inplace", False))), patient.module(feeders[0]) if feeders else module)
        enrol(patient, new, patient.module(feeders[0]).parameters() if feeders else (), journal)
        swap(patient, path, new, journal)
    title = f"replaced {len(paths)} {'/'.join(names)} by {type(made(to, slope)).__name__}"
    forced = str(prescription.arguments.get("scheme") or "")
    if not forced and not _other_family(patient, paths, to):
        return title
    if not feeders:
        raise TreatmentRefused("the layers in front of the activation are not known from this report, and the new one needs other weights; audit it in this process")
    family, _, drawn = forced.partition(" ")
    theory = activation(to)
    family = family or SCHEME[theory.right_init if theory is not None else "he"]
    scheme = Scheme(family, drawn or DRAWN[family], _slope(to, slope), to)
    return f"{title}; {draw(patient, feeders, scheme, journal, own=False)}"


def made(to: str, slope: object = None, inplace: bool = False) -> nn.Module:
    """The module of an activation.

    Raises:
        TreatmentRefused: it is none that we put in.

    >>> made("leaky_relu", 0.2)
    LeakyReLU(negative_slope=0.2)
    """
    if to == "leaky_relu":
        return nn.LeakyReLU(_slope(to, slope), inplace=inplace)
    if to == "gelu":
        return nn.GELU()
    if to == "prelu":
        return nn.PReLU()
    if to not in PLAIN:
        raise TreatmentRefused(f"there is no live form of the activation {to!r}")
    return PLAIN[to](inplace=inplace)


def remove_activation(patient: Patient, finding: Finding | None, prescription: Prescription, journal: Journal) -> str:
    """nn.Identity in place of an activation module: names and positions stay."""
    if prescription.arguments.get("loss"):
        raise TreatmentRefused(f"the loss must change with it (to {prescription.arguments['loss']}), and it is no part of the model")
    paths = tuple(dict.fromkeys(prescription.modules))
    if not paths:
        raise TreatmentRefused("the prescription names no module")
    gone = []
    for path in paths:
        module = _activation(patient, path, str(prescription.arguments.get("op", "")))
        calls = [o for o in patient.operations(path) if o.category == "activation"]
        if len(calls) > 1 or any(o.repeats > 1 for o in calls):
            raise TreatmentRefused(f"{path} is called several times in one forward, and only one of the calls is to go; edit forward")
        swap(patient, path, nn.Identity().train(module.training), journal)
        gone.append(f"{type(module).__name__} {path}")
    return f"replaced {', '.join(gone)} by nn.Identity"


def _activation(patient: Patient, path: str, op: str) -> nn.Module:
    """The module that is nothing but an activation.

    Raises:
        TreatmentRefused: the activation is called as a function.
    """
    module = patient.module(path)
    own = type(module).__module__ == "torch.nn.modules.activation" and not isinstance(module, nn.MultiheadAttention)
    inside = patient.operations(path)
    wrapper = not list(module.children()) and not list(module.parameters()) and bool(inside) and all(o.category == "activation" for o in inside)
    if own or wrapper and path:
        places(patient, path, module)
        return module
    call = next((o for o in inside if o.category == "activation" and o.op == (op or o.op)), None)
    where = f" at {call.called}" if call is not None and call.called is not None else ""
    raise TreatmentRefused(f"{op or 'the activation'} is called as a function in forward of {path or type(module).__name__}{where}; "
                           "a live model has nothing to exchange there. `doctor fix` edits the source")


def _feeders(patient: Patient, paths: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of the layers in front of these activations."""
    found = [patient.layer_before(o) for path in paths for o in patient.operations(path) if o.category == "activation"]
    return tuple(dict.fromkeys(o.module for o in found if o is not None))


def _other_family(patient: Patient, paths: tuple[str, ...], to: str) -> bool:
    """The new activation asks for another initialisation than the old one, and the weights were never trained."""
    if any(r.trained for r in patient.parameters.values()) or patient.steps:
        return False
    new = activation(to)
    old = [activation(o.op) for path in paths for o in patient.operations(path)[:1]]
    return new is not None and any(a is None or a.right_init != new.right_init for a in old)


def _slope(to: str, slope: object) -> float:
    known = {"leaky_relu": 0.01, "prelu": 0.25}
    return float(slope) if isinstance(slope, (int, float)) and to == "leaky_relu" else known.get(to, 0.0)


LIVE = {"replace-activation": replace_activation, "remove-output-activation": remove_activation, "remove-activation": remove_activation}
