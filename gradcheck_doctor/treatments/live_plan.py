"""From a prescription to a change of the live model: carried out whole, or refused and put back."""
from __future__ import annotations

from collections.abc import Callable, Mapping

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Finding, Prescription
from gradcheck_doctor.treatments import live_activation, live_fold, live_initialise, live_input, live_norm, live_training
from gradcheck_doctor.treatments.live import Change
from gradcheck_doctor.treatments.live_journal import Journal
from gradcheck_doctor.treatments.live_patient import Patient

Treatment = Callable[[Patient, Finding | None, Prescription, Journal], str]
LIVE: Mapping[str, Treatment] = {**live_initialise.LIVE, **live_activation.LIVE, **live_norm.LIVE, **live_input.LIVE, **live_training.LIVE, **live_fold.LIVE}


def carry_out(patient: Patient, finding: Finding | None, prescription: Prescription) -> Change:
    """Apply a prescription to the model.

    Raises:
        TreatmentRefused: it has no live form or may not be done; the model is as it was.
    """
    treatment = LIVE.get(prescription.treatment) or _of_another_package(prescription.treatment)
    if treatment is None:
        raise TreatmentRefused(ELSEWHERE.get(prescription.treatment, "it has no live form; `doctor fix` edits the source"))
    journal = Journal()
    before = list(patient.model.state_dict(keep_vars=True).items())
    try:
        title = treatment(patient, finding, prescription, journal)
    except BaseException:
        journal.undo()
        raise
    renamed = _renamed(before, patient)
    notes = (_names(renamed),) if renamed else ()
    return Change(title[:1].upper() + title[1:], prescription.id, tuple(prescription.modules), finding.code if finding is not None else "",
                  notes, renamed, journal=journal)


def _of_another_package(name: str) -> Treatment | None:
    """A pack's treatment has a live form when its function carries one as the attribute `live`."""
    from gradcheck_doctor.treatments.plan import planners

    live: Treatment | None = getattr(planners().get(name), "live", None)
    return live


def _renamed(before: list[tuple[str, object]], patient: Patient) -> dict[str, str]:
    """Names in the state dict that lead to another place now."""
    after = {id(v): k for k, v in reversed(list(patient.model.state_dict(keep_vars=True).items()))}
    current = patient.model.state_dict(keep_vars=True)
    return {k: after[id(v)] for k, v in before if id(v) in after and current.get(k) is not v}


def _names(renamed: Mapping[str, str]) -> str:
    shown = ", ".join(f"{a} -> {b}" for a, b in list(renamed.items())[:3])
    return f"names in the state dict changed: {shown}" + (f" and {len(renamed) - 3} more" if len(renamed) > 3 else "")


ELSEWHERE = {
    "replace-loss": "the loss is no part of the model; change it where it is called",
    "score-loss": "the loss is no part of the model; change it where it is called, and let the model give the raw scores",
    "loss-option": "the loss is no part of the model; build it with the option where it is made",
    "minimise-loss": "the sign is no part of the model; take it off where the loss is made",
    "divide-loss": "backward is called in the training loop; divide the loss there",
    "train-mode": "it belongs into the training loop, in front of each epoch",
    "zero-grad": "it belongs into the training loop, before backward",
    "register-modules": "the layers must be registered where they are made, in an nn.ModuleList",
    "grad-scaler": "it belongs into the training loop, around backward and step",
    "autocast-bf16": "it belongs into the training loop, around the forward pass",
    "float32-weights": "the optimizer holds these weights; build the model, its data and the optimizer in float32, and compute under torch.autocast",
    "eval-batchnorm": "the next model.train() would undo it; call eval() on the frozen part after it",
    "straight-through": "the call is in forward; edit it there",
    "remove-detach": "the call is in forward; take it off there",
    "leave-no-grad": "the block is in forward or in the training loop; take the layers out of it there",
    "move-zero-grad": "the call is in the training loop; move it in front of backward there",
    "add-activation": "the call is missing in forward; write it there",
    "apply-init": "the initialiser is the script's own; call it there",
    "drop-factor": "the product is computed in forward; take the factor off there",
    "dropout-training": "the call is in forward; hand it training=self.training there",
    "step-schedule-per-epoch": "scheduler.step() is called in the training loop; move it there",
    "remake-optimizer": "the training loop holds the optimizer; make it there, behind the model",
    "log-softmax": "the loss needs the logarithm; write log_softmax where the softmax is called",
    "rename-keys": "the weights are loaded in the script; rename them there",
    "step-schedule-per-batch": "scheduler.step() is called in the training loop, or by Lightning; move it there",
    "plateau-mode": "the schedule was built with its mode; build it anew",
    "scale-scores": "the scores are made in forward; divide them there",
    "permute-axes": "the call is in forward; edit it there",
    "relative-schedule": "the schedule was built with its function; build it anew",
    "shorten-warmup": "the schedule was built with its length; build it anew",
    "clip-threshold": "the call to clip_grad_norm_ is in the training loop; change its limit there",
    "clip-value-to-norm": "the call to clip_grad_value_ is in the training loop; change it there",
}
