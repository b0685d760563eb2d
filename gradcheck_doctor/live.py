"""treat(): the cures of a report on the live model, guarded, reversible and, where a batch is given, measured."""
from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gradcheck_doctor.errors import ConfigError, TreatmentRefused
from gradcheck_doctor.records.findings import Finding, Prescription, ReportData

if TYPE_CHECKING:
    from torch import nn

    from gradcheck_doctor.treatments.live import Treatments
    from gradcheck_doctor.treatments.live_patient import Patient


def treat(model: nn.Module, report: Any, optimizer: Any = None, *, unsafe: bool = False, only: Iterable[str] = (),
          retrain: bool | Iterable[str] = False) -> Treatments:
    """Apply the cures of a report to the model in memory; each can be taken back bit for bit.

    For every serious finding that no other finding explains, the first of its cures that may be done is done. Weights that were trained or
    loaded are never drawn anew.

    Args:
        model: the model that the report is about.
        report: from `doctor.audit` or `monitor.report()`.
        optimizer: a torch optimizer (or a list): new parameters are added to it, dropped ones leave it; its state tells trained weights.
        unsafe: also apply cures that change what the model computes.
        only: treatments to choose from, by name: "initialise-he-normal" (or "init-he-normal"), "initialise", "insert-norm", ... Findings of
            severity info are treated too when their cure is named.
        retrain: draw trained or loaded weights anew all the same: module paths, or True together with `only`.

    Returns:
        The changes (a sequence; each has title, modules, treatment and undo()), with `.refusals` and `.undo()`.

    Raises:
        ConfigError: `only` names nothing that exists, or retrain=True without `only`.
    """
    from gradcheck_doctor.treatments.live import Treatments

    data: ReportData = getattr(report, "data", report)
    names = (only,) if isinstance(only, str) else tuple(only)
    if retrain is True and not names:
        raise ConfigError("retrain=True draws trained weights anew: say which treatment, only=('initialise',), or which modules, retrain=('head',)")
    patient = _patient(model, report, data, optimizer, retrain)
    done = Treatments()
    explained = {fingerprint for f in data.findings for fingerprint in f.related}
    for finding in data.findings:
        if finding.severity == "info" and not names or finding.fingerprint in explained:
            continue
        _cure(patient, finding, done, unsafe, names)
    return done


def _patient(model: nn.Module, report: Any, data: ReportData, optimizer: Any, retrain: bool | Iterable[str]) -> Patient:
    """Everything that treatments may know, looked at now."""
    from gradcheck_doctor.observe.parameters import parameter_record
    from gradcheck_doctor.observe.provenance import current_log
    from gradcheck_doctor.treatments.live_optimizer import Optimizers
    from gradcheck_doctor.treatments.live_patient import Patient

    log, recording = current_log(), getattr(report, "recording", None)
    records = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            records[full] = parameter_record(full, path, parameter, module, log=log)
    loaded = {row["module"]: tuple(row["missing"]) for row in (recording.notes.get("loaded", ()) if recording is not None else ())}
    if log is not None:
        paths = {id(m): p for p, m in model.named_modules()}
        loaded.update({paths[id(m)]: tuple(facts["missing"]) for m, facts in log.loaded.items() if id(m) in paths})
    steps = recording.total_steps if recording is not None and data.kind == "run" else 0
    return Patient(model, Optimizers(optimizer), recording, records, loaded, steps, retrain if isinstance(retrain, bool) else tuple(retrain))


def _cure(patient: Patient, finding: Finding, done: Treatments, unsafe: bool, names: tuple[str, ...]) -> None:
    """The first cure of a finding that may be done."""
    for fix in finding.fixes:
        prescription = fix.prescription
        if names and not any(_named(prescription, n) for n in names):
            continue
        if prescription.safety != "safe" and not unsafe:
            _refuse(done, finding, prescription, "it changes what the model computes or how it trains; unsafe=True allows it")
            continue
        if _applied(patient, finding, prescription, done):
            return


def _applied(patient: Patient, finding: Finding, prescription: Prescription, done: Treatments) -> bool:
    from gradcheck_doctor.treatments.live_plan import carry_out

    if any(c.treatment == prescription.id and set(prescription.modules) <= set(c.modules) for c in done):
        return True
    try:
        done.add(carry_out(patient, finding, prescription))
    except TreatmentRefused as error:
        _refuse(done, finding, prescription, str(error))
        return False
    return True


def _refuse(done: Treatments, finding: Finding, prescription: Prescription, reason: str) -> None:
    from gradcheck_doctor.treatments.live import Refusal

    done.refusals.append(Refusal(prescription.title, prescription.id, reason, tuple(prescription.modules), finding.code))


def _named(prescription: Prescription, name: str) -> bool:
    """Whether `only` means this prescription: its id, or the front part of it."""
    asked = "initialise" + name[4:] if name == "init" or name.startswith("init-") else name
    return prescription.id == asked or prescription.id.startswith(asked + "-")


