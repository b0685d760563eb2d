from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, ParameterRecord, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location

STEPS_FLAT = frozenset({"round", "floor", "ceil", "sign", "heaviside", "trunc"})


class NoGradient(Rule):
    """A trainable parameter that takes part in the forward pass receives no gradient, or exactly zero, while others do.

    What it measures: share of the model's weight matrices whose gradient was absent or exactly 0 on every observed step although their layer
    ran, and what cuts them off (round, sign, detach) if it was seen.

    Why it matters: such a layer never learns, silently.

    When it is harmless: unused branches and experts, embedding rows not in the batch, biases before a normalisation, alternating GAN steps.

    Sources: UMLAUT (Schoop et al. 2021); Bengio et al. 2013 (arXiv:1308.3432) for the straight-through cure of round and sign.
    """

    code = "GD303"
    name = "no-gradient"
    summary = "a trainable layer that ran gets no gradient"
    threshold = Threshold(1e-9, 1e-9, "share of the trained weights", "one layer is enough")
    order = 430
    explains = ("GD301", "GD702", "GD307", "GD201")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        weights = [p for p in recording.parameters if p.trainable and len(p.shape) >= 2 and recording.parameter_steps.get(p.name)
                   and p.in_optimizer is not False]                        # a teacher or target network is in no optimizer
        ran = [p for p in weights if (m := recording.module.get(p.module)) is not None and m.calls > 0 or "<tensor" in p.name]
        cut = [p for p in ran if _silent(recording, p)]
        if not cut or len(cut) == len(ran):
            return
        barrier = _barrier(recording)
        hidden = recording.notes.get("warmed") or barrier is None and _behind_zeros(recording)
        first = recording.module.get(cut[0].module)
        place = location(recording, barrier) if barrier is not None else (first.built if first is not None else None)
        dead = barrier is None and any(o.units is not None and o.units.dead_fraction == 1.0 for o in recording.operations)
        yield Measurement(value=len(cut) / len(ran), module=barrier.module if barrier is not None else cut[0].module,
                          modules=tuple(dict.fromkeys(p.module for p in cut)), op=barrier.op if barrier is not None else "", location=place,
                          operations=(barrier.index,) if barrier is not None else (), cap="info" if hidden or _alternating(recording) else None,
                          evidence={"parameters": [p.name for p in cut][:8], "count": len(cut), "of": len(ran),
                                    "barrier": barrier.op if barrier is not None else "dead ReLU" if dead else ""})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        cause = f": {e['barrier']} has no slope" if e["barrier"] else ""
        return f"{e['count']} of {e['of']} weights that take part get no gradient ({', '.join(e['parameters'][:3])}){cause}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if m.evidence["barrier"] in STEPS_FLAT:
            return (Prescription("straight-through", f"Pass the gradient straight through {m.evidence['barrier']}", kind="other", modules=(m.module,),
                                 span=m.location, arguments={"op": m.evidence["barrier"]}),)
        return ()


def _silent(recording: Recording, parameter: ParameterRecord) -> bool:
    rows = recording.parameter_steps[parameter.name]
    return all(row.grad_norm is None or row.grad_norm == 0.0 for row in rows)


def _barrier(recording: Recording) -> Operation | None:
    """A step function on the way from a layer to the loss."""
    return next((o for o in recording.operations if o.op in STEPS_FLAT and o.requires_grad), None)


def _behind_zeros(recording: Recording) -> bool:
    return any(p.scheme == "zeros" and len(p.shape) >= 2 for p in recording.parameters) and recording.total_steps == 0


def _alternating(recording: Recording) -> bool:
    return len(recording.optimizers) > 1
