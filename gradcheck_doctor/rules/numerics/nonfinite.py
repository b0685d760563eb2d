"""The first place where a number stopped being finite: forward, backward, loss."""
from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.records.summaries import Summary
from gradcheck_doctor.records.ways import behind
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location
from gradcheck_doctor.rules.numerics.unsafe_log import LOGS, ROOTS, SMALLEST, clamped

LAYERS = ("layer", "norm", "activation", "recurrent", "attention", "loss")
MASKING = ("merge", "scale", "other")
AFTER = ("GD706", "GD707", "GD201", "GD301", "GD302", "GD303", "GD208", "GD209", "GD202", "GD608", "GD701", "GD305")


class NonfiniteActivation(Rule):
    """An operation gave NaN or infinity.

    What it measures: the first operation, in order of the forward pass on the first such step, whose output is not finite although its inputs were; or
    the model's input, where that holds NaN already and a layer or the loss gets it.

    Why it matters: everything after it is lost, and after the next step the weights are.

    When it is harmless: additive masks of -inf in front of a softmax; NaN that marks what is missing and is replaced before the first layer, or left out
    of the loss. Neither is counted.

    Sources: exact; the largest and smallest value of each output are read in full, not sampled.
    """

    code = "GD801"
    name = "nonfinite-activation"
    summary = "an operation gave NaN or infinity"
    threshold = Threshold(1.0, 1.0, "observed steps", "exact")
    order = 690
    explains = ("GD803", "GD802", "GD807", *AFTER)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        broken = sorted((seen.step, o.index) for o in recording.operations for seen in o.observed
                        if seen.forward is not None and not seen.forward.finite and o.category not in ("shape", "input", "scale", "loss")
                        and not _mask(recording, o.index))
        for step in sorted({s for s, _ in broken}):
            here, entered = [i for s, i in broken if s == step], _entered(recording, step)
            fault = next((o for o in entered if _arrives(recording, entered[o])), None)
            if fault is not None:
                divisors = recording.notes.get("divisions_by_spread", ())
                place = divisors[0] if divisors else location(recording, recording.operations[here[0]])
                yield Measurement(value=float(len({s for s, _ in broken})), op="input", location=place, operations=(fault,), order=95,
                                  evidence={"step": step, "input": recording.operations[fault].attributes.get("name") or "input", "divided": bool(divisors)})
                return
            here = [i for i in here if not any(i in reached for reached in entered.values())]
            if here:
                yield from self._operation(recording, broken, step, here[0])
                return

    def _operation(self, recording: Recording, broken: list[tuple[int, int]], step: int, index: int) -> Iterator[Measurement]:
        if not recording.operations[index].module_type:
            return                                        # in a loss written by hand, behind the model: GD803 says so
        operation = recording.operations[index]
        before = [s.forward.rms for s in operation.observed if s.step < step and s.forward is not None and s.forward.finite]
        yield Measurement(value=float(len({s for s, _ in broken})), module=operation.module, op=operation.op, location=location(recording, operation),
                          operations=(index,), evidence={"step": step, "rms_before": before[-5:]})

    def message(self, m: Measurement) -> str:
        if "input" in m.evidence:
            why = "; it is divided by a standard deviation, which is 0 for a feature that never changes" if m.evidence["divided"] else ""
            return f"the model's {m.evidence['input']} holds NaN at step {m.evidence['step']}, before any layer ran{why}"
        return f"the output of {m.op} is not finite at step {m.evidence['step']}, the first in the forward pass"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if not m.evidence.get("divided"):
            return ()
        return tuple(Prescription("offset-divisor", "Keep the divisor away from 0: add 1e-8", kind="loss", span=span)
                     for span in recording.notes["divisions_by_spread"][:3])


def _entered(recording: Recording, step: int) -> dict[int, set[int]]:
    """The inputs that hold NaN on that step, each with the operations that it is carried to."""
    def lost(operation: Operation) -> bool:
        return next((not s.forward.finite for s in operation.observed if s.step == step and s.forward is not None), True)

    found: dict[int, set[int]] = {}
    for operation in recording.operations:
        if operation.category == "input" and any(s.step == step and s.forward is not None and math.isnan(s.forward.minimum) for s in operation.observed):
            found[operation.index] = {operation.index}                                                                     # -inf is a mask
        for reached in found.values():
            if lost(operation) and not reached.isdisjoint(operation.producers):
                reached.add(operation.index)
    return found


def _arrives(recording: Recording, reached: set[int]) -> bool:
    """What an input holds gets to a layer or to the end, the loss; what is replaced on the way does not."""
    return any(recording.operations[i].category in LAYERS or not recording.consumers[i] and recording.operations[i].observed for i in reached)


def _mask(recording: Recording, index: int) -> bool:
    """Scores that a mask set to -inf: a softmax behind them, with no layer in between, is finite again."""
    users = behind(recording, [index], lambda o: o.category in (*MASKING, "shape"))
    return recording.operations[index].category in MASKING and any(o.op in ("softmax", "log_softmax", "logsumexp") for o in users)


class NonfiniteGradient(Rule):
    """A gradient is NaN or infinite.

    What it measures: the operation nearest to the loss that turned a finite gradient into one that is not, on the first such step; steps whose loss
    was not finite, and steps that a scaler skipped, do not count.

    Why it matters: the step that follows destroys the weights.

    When it is harmless: the first steps under a GradScaler, which skips them by design (info).

    Sources: exact.
    """

    code = "GD802"
    name = "nonfinite-gradient"
    summary = "a gradient is NaN or infinite"
    threshold = Threshold(1.0, 1.0, "observed steps", "exact")
    order = 691
    explains = ("GD801", "GD803", "GD807", *AFTER)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        lost = _steps_of_lost_losses(recording)
        broken = [(seen.step, -o.index) for o in recording.operations for seen in o.observed if seen.step not in lost
                  and seen.gradient is not None and not seen.gradient.finite and seen.forward is not None and seen.forward.finite]
        if not broken:
            return
        step, index = min(broken)
        reached = recording.operations[-index]
        operation = _finite_consumer(recording, reached, step) or reached
        forward = min((s.step for o in recording.operations for s in o.observed if s.forward is not None and not s.forward.finite), default=None)
        yield Measurement(value=float(len({s for s, _ in broken})), module=operation.module, op=operation.op, location=location(recording, operation),
                          operations=tuple(dict.fromkeys((operation.index, reached.index))), cap="info" if recording.notes.get("scaled") else None,
                          order=687 if forward is not None and step < forward else None,   # it broke before any value did
                          evidence={"step": step, "reached": reached.op})

    def message(self, m: Measurement) -> str:
        return (f"the gradient is not finite at step {m.evidence['step']}: going back, {m.op} is the first operation behind which it is not "
                f"(seen at the output of {m.evidence['reached']})")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return clamped(m.op, m.location) if m.op in LOGS | ROOTS else ()


def _steps_of_lost_losses(recording: Recording) -> set[int]:
    """Steps whose loss was NaN or infinite: their gradients follow from that."""
    lost = {step for step, value in recording.curve if not math.isfinite(value)}
    first = min((seen.step for o in recording.operations for seen in o.observed), default=0)
    return lost | ({first} if any(x.value is not None and not math.isfinite(x.value) for x in recording.losses) else set())


def _finite_consumer(recording: Recording, operation: Operation, step: int) -> Operation | None:
    """The nearest operation that used this value and whose own gradient was still finite; None where it was not measured."""
    def gradient(of: Operation) -> Summary | None:
        return next((seen.gradient for seen in of.observed if seen.step == step), None)

    users = behind(recording, [operation.index], lambda o: gradient(o) is None)
    return next((o for o in users if (found := gradient(o)) is not None and found.finite), None)


class NonfiniteLoss(Rule):
    """The loss is NaN or infinite.

    What it measures: losses seen that are not finite.

    Why it matters: nothing is learned from then on.

    When it is harmless: never.

    Sources: exact.
    """

    code = "GD803"
    name = "nonfinite-loss"
    summary = "the loss is NaN or infinite"
    threshold = Threshold(1.0, 1.0, "losses", "exact")
    order = 692
    explains = ("GD802", "GD807", *AFTER)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        broken = [step for step, value in recording.curve if not math.isfinite(value)]
        single = [x for x in recording.losses if x.value is not None and not math.isfinite(x.value)]
        if not broken and not single:
            return
        loss = next(iter([*single, *recording.losses]), None)
        place = loss.span if loss is not None and loss.span is not None else next((e.span for e in recording.events_of("backward")), None)
        culprit = _culprit(recording)
        if culprit is not None:
            place = culprit.called or place
        yield Measurement(value=float(len(broken) or 1), location=place, op=culprit.op if culprit is not None else loss.op if loss is not None else "",
                          operations=(culprit.index,) if culprit is not None else (), order=688 if culprit is not None else None,
                          evidence={"step": broken[0] if broken else 0, "count": len(broken) or 1, "made_by": culprit.op if culprit is not None else ""})

    def message(self, m: Measurement) -> str:
        maker = m.evidence["made_by"]
        return f"the loss is not finite from step {m.evidence['step']} on ({m.evidence['count']} times)" + (f": {maker} reached the edge of its domain" if maker else "")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return clamped(m.op, m.location) if m.evidence["made_by"] else ()


def _culprit(recording: Recording) -> Operation | None:
    """The log or root whose input came to 0 in front of a loss that is not finite, when all before it was finite."""
    for operation in recording.operations:
        if operation.op in LOGS | ROOTS and operation.producers:
            made = recording.operations[operation.producers[0]]
            lows = [s.forward.minimum for s in made.observed if s.forward is not None and s.forward.finite]
            if lows and min(lows) <= SMALLEST:
                return operation
    return None
