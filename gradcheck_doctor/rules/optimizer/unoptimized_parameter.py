from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured


class UnoptimizedParameter(Rule):
    """A trainable parameter takes part in training but no optimizer holds it.

    What it measures: share of the trainable elements that ran and got a gradient but are in no optimizer's groups; layers in a plain Python list
    count, since `parameters()` does not see them.

    Why it matters: those layers keep their random start for ever, silently.

    When it is harmless: parameters updated by hand, an optimizer that steps only later.

    Sources: exact.
    """

    code = "GD704"
    name = "unoptimized-parameter"
    summary = "a parameter with a gradient is in no optimizer"
    threshold = Threshold(1e-9, 0.01, "share of the trainable elements", "exact")
    order = 150
    explains = ("GD301", "GD702", "GD707", "GD303", "GD608")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        if not recording.optimizers or recording.total_steps < 3:
            return
        missing = [p for p in recording.parameters if p.trainable and p.in_optimizer is False and p.tied_to is None
                   and any(r.grad_norm for r in recording.parameter_steps.get(p.name, ()))]
        if not missing:
            return
        orphans = [o for o in recording.notes.get("orphans", ()) if any(p.module.startswith(o["module"]) for p in missing)]
        total = sum(p.count for p in recording.parameters if p.trainable)
        module = recording.module.get(missing[0].module)
        built = orphans[0]["built"] if orphans else module.built if module is not None else None
        yield Measurement(value=sum(p.count for p in missing) / max(total, 1), module=missing[0].module,
                          modules=tuple(dict.fromkeys(p.module for p in missing)), location=built,
                          evidence={"parameters": [p.name for p in missing][:8], "count": len(missing), "unregistered": len(orphans)})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        why = f"; {e['unregistered']} of their modules are in a plain Python container that nn.Module does not see" if e["unregistered"] else ""
        return f"{e['count']} parameters get gradients but are in no optimizer ({', '.join(e['parameters'][:2])}){why}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if m.evidence["unregistered"]:
            return (Prescription("register-modules", "Keep the layers in an nn.ModuleList", kind="optimizer", span=m.location, modules=m.modules),)
        record = recording.optimizers[0]
        return (Prescription("add-parameters", "Give the optimizer these parameters", kind="optimizer", span=record.built, modules=m.modules),)
