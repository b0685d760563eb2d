"""treat(): the cures of a report on the live model, guarded, reversible and, where a batch is given, measured."""
from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gradcheck_doctor.errors import ConfigError, TreatmentRefused
from gradcheck_doctor.records.findings import Finding, Prescription, ReportData, Verified

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gradcheck_doctor.records.recording import ParameterRecord
    from gradcheck_doctor.treatments.live import Treatments
    from gradcheck_doctor.treatments.live_patient import Patient
    from gradcheck_doctor.treatments.live_proof import Figures


def treat(model: nn.Module, report: Any = None, optimizer: Any = None, *, unsafe: bool = False, only: Iterable[str] = (),
          retrain: bool | Iterable[str] = False, batch: Any = None, loss: Callable[..., Tensor] | None = None, steps: int = 0) -> Treatments:
    """Apply the cures of a report to the model in memory; each can be taken back bit for bit.

    For every serious finding that no other finding explains, the first of its cures that may be done is done. Weights that were trained or
    loaded are never drawn anew. With a batch each change is measured, and one that does not help is undone.

    Args:
        model: the model that the report is about.
        report: from `doctor.audit` or `monitor.report()`; with a batch it may be left out.
        optimizer: a torch optimizer (or a list): new parameters are added to it, dropped ones leave it; its state tells trained weights.
        unsafe: also apply cures that change what the model computes or how it trains.
        only: treatments to choose from, by name: "initialise-he-normal" (or "init-he-normal"), "initialise", "insert-norm", "fold-norm", ...
            Findings of severity info are treated too when their cure is named; a treatment that no finding asks for is applied to the whole model.
        retrain: draw trained or loaded weights anew all the same: module paths, or True together with `only`.
        batch, loss: as for `doctor.audit`: look before and after each change and keep only what helps.
        steps: with a batch, also train a throw-away copy that many steps with and without each change; the loss must not end higher.

    Returns:
        The changes (a sequence; each has title, modules, treatment, verified and undo()), with `.refusals`, `.undo()`, `.before` and `.after`.

    Raises:
        ConfigError: `only` names no treatment, retrain=True without `only`, or neither report nor batch is given.
    """
    from gradcheck_doctor.session import selectors
    from gradcheck_doctor.treatments.live import Treatments

    if report is not None and not isinstance(getattr(report, "data", report), ReportData):
        raise ConfigError(f"the second argument of treat is a report (doctor.audit(model, batch, loss=...)), not {type(report).__name__}")
    names = selectors(only)
    if retrain is True and not names:
        raise ConfigError("retrain=True draws trained weights anew: say which treatment, only=('initialise',), or which modules, retrain=('head',)")
    if report is None and batch is None:
        raise ConfigError("treat needs a report (doctor.audit(model, batch, loss=...)) or a batch to make one from")
    visit = _Visit(model, optimizer, unsafe, names, retrain if isinstance(retrain, bool) else tuple(retrain), batch, loss, steps, Treatments())
    visit.done.before = visit.look() if batch is not None else None
    visit.run(report if report is not None else visit.done.before)
    return visit.done


@dataclass
class _Visit:
    """One call of treat."""

    model: nn.Module
    optimizer: Any
    unsafe: bool
    names: tuple[str, ...]
    retrain: bool | tuple[str, ...]
    batch: Any
    loss: Any
    steps: int
    done: Treatments
    tried: set[tuple[str, str, tuple[str, ...]]] = field(default_factory=set)

    def run(self, report: Any) -> None:
        """Unmeasured: every finding of the report. Measured: after each change that helped, the findings that are left."""
        patient, current = self.patient(report), self.figures(self.done.before) if self.done.before is not None else None
        again = True
        while again:
            again = False
            for finding, prescriptions in _candidates(report, patient, self.names):
                kept, after = self.cure(patient, finding, prescriptions, current)
                if kept and after is not None:
                    report, current = after
                    self.done.after = report
                    patient, again = self.patient(report), True
                    break
        if current is not None and self.done.after is None:
            self.done.after = self.done.before

    def cure(self, patient: Patient, finding: Finding | None, prescriptions: list[Prescription], before: Figures | None) -> tuple[bool, Any]:
        """The first cure that may be done and, where it is measured, helps."""
        for prescription in prescriptions:
            key = (finding.rule, prescription.id, tuple(prescription.modules)) if finding is not None else ("", prescription.id, ())
            if key in self.tried or finding is None and any(c.treatment == prescription.id or c.treatment.startswith(prescription.id + "-") for c in self.done):
                continue
            self.tried.add(key)
            if finding is not None and prescription.safety != "safe" and not self.unsafe:
                self.refuse(finding, prescription, "it changes what the model computes or how it trains; unsafe=True allows it")
                continue
            kept, after = self.attempt(patient, finding, prescription, before)
            if kept:
                return True, after
        return False, None

    def attempt(self, patient: Patient, finding: Finding | None, prescription: Prescription, before: Figures | None) -> tuple[bool, Any]:
        """Apply, look, and take back what does not help."""
        from gradcheck_doctor.errors import DoctorError
        from gradcheck_doctor.treatments.live_plan import carry_out
        from gradcheck_doctor.treatments.live_proof import proof

        if any(c.treatment == prescription.id and set(prescription.modules) <= set(c.modules) for c in self.done):
            return True, None
        try:
            change = carry_out(patient, finding, prescription)
        except TreatmentRefused as error:
            self.refuse(finding, prescription, str(error))
            return False, None
        after = None
        if before is not None:
            try:
                report = self.look()
                figures = self.figures(report)
                after = (report, figures)
                change.verified = proof(finding, prescription.treatment, before, figures)
            except DoctorError as error:
                change.verified = Verified("worse", {}, {}, f"the model does not run any more: {str(error).splitlines()[0]}")
            asked = finding is None and change.verified.status == "no-effect"
            if change.verified.status != "improved" and not asked:
                change.undo()
                self.refuse(finding, prescription, f"it did not help and was undone: {change.verified.reason}", change.verified)
                return False, None
        self.done.add(change)
        return True, after

    def refuse(self, finding: Finding | None, prescription: Prescription, reason: str, verified: Verified | None = None) -> None:
        from gradcheck_doctor.treatments.live import Refusal

        self.done.refusals.append(Refusal(prescription.title, prescription.id, reason, tuple(prescription.modules),
                                          finding.code if finding is not None else "", verified or Verified()))

    def patient(self, report: Any) -> Patient:
        """Everything that treatments may know, looked at now."""
        from gradcheck_doctor.observe.untouched import untouched

        found = patient_of(self.model, report, self.optimizer, self.retrain)
        if self.batch is None:
            return found
        inputs, targets = self.batch if self.loss is not None else (self.batch, None)

        def forward() -> None:
            from gradcheck_doctor.targets.losses import call

            with untouched(self.model):
                call(self.model, inputs)

        return replace(found, batch=inputs, targets=targets, forward=forward)

    def look(self) -> Any:
        from gradcheck_doctor.session import audit

        return audit(self.model, self.batch, self.loss)

    def figures(self, report: Any) -> Figures:
        """What is compared."""
        from gradcheck_doctor.treatments.live_proof import Figures

        return Figures(report.data, _own_values(report.recording), self.short_training() if self.steps else ())

    def short_training(self) -> tuple[float, ...]:
        """Losses of a copy that is trained for some steps; the model itself is not touched."""
        from gradcheck_doctor.session import audit
        from gradcheck_doctor.treatments.live_optimizer import Optimizers

        make = None
        if self.optimizer is not None:
            own = Optimizers(self.optimizer).all[0]
            make = _same_kind(type(own), dict(own.defaults))
        seen = audit(copy.deepcopy(self.model), self.batch, self.loss, steps=self.steps, optimizer=make).recording
        return tuple(value for _, value in seen.curve)


def _same_kind(kind: Any, defaults: dict[str, Any]) -> Callable[[nn.Module], Any]:
    return lambda model: kind([p for p in model.parameters() if p.requires_grad], **defaults)


def _own_values(recording: Any) -> dict[str, float]:
    """The worst value of each rule, healthy or not."""
    from gradcheck_doctor.rules.base import Measurement
    from gradcheck_doctor.rules.registry import rules

    found = {}
    for rule in rules():
        if recording.kind in rule.kinds:
            values = [m.value for m in rule().measure(recording) if isinstance(m, Measurement)]
            if values:
                found[rule.name] = min(values) if rule.threshold.direction == "below" else max(values)
    return found


def _candidates(report: Any, patient: Patient, names: tuple[str, ...]) -> Iterator[tuple[Finding | None, list[Prescription]]]:
    """(finding, its cures in order), root causes only; then what was asked for by name and is prescribed by none."""
    from gradcheck_doctor.treatments.live_named import by_name, means

    data: ReportData = getattr(report, "data", report)
    standing = {name: by_name(patient, name) for name in names}
    explained = data.explained
    prescribed: set[str] = set()
    for finding in data.findings:
        if finding.severity == "info" and not names or finding.fingerprint in explained and not names:
            continue
        cures = [x.prescription for x in finding.fixes if not names or any(means(n, x.prescription) for n in names)]
        prescribed |= {n for n in names for p in cures if means(n, p)}
        if cures:
            yield finding, cures
    for name, prescription in standing.items():
        if name not in prescribed and prescription is not None:
            yield None, [prescription]


def patient_of(model: nn.Module, report: Any, optimizer: Any = None, retrain: bool | tuple[str, ...] = False) -> Patient:
    """A model with what its report, its weights and its optimizer say."""
    from gradcheck_doctor.observe.parameters import parameter_record
    from gradcheck_doctor.observe.provenance import current_log
    from gradcheck_doctor.treatments.live_optimizer import Optimizers
    from gradcheck_doctor.treatments.live_patient import Patient

    data: ReportData = getattr(report, "data", report)
    if type(model).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel"):
        raise ConfigError(f"treat the model inside the {type(model).__name__} before it is wrapped: wrapping sends the same weights to every rank")
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
    seen = {r.name: r for r in recording.parameters} if recording is not None and getattr(report, "is_about", lambda _: False)(model) else {}
    changed = frozenset(name for name, now in records.items() if name in seen and _differ(seen[name], now))
    return Patient(model, Optimizers(optimizer), recording, records, loaded, steps, retrain, changed=changed)


def _differ(before: ParameterRecord, now: ParameterRecord) -> bool:
    """The values are no longer those that were recorded."""
    return any(not math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) for a, b in ((before.mean, now.mean), (before.std, now.std), (before.absmax, now.absmax)))
