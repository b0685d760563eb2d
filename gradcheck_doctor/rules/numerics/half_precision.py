"""float16: too large, or too small to be seen."""
from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location
from gradcheck_doctor.rules.progress import mild

HALF_MAXIMUM = 65504.0
SMALLEST = 6e-8        # smallest positive float16


class HalfPrecisionUnderflow(Rule):
    """Gradients in float16 are below its smallest number and become exactly 0.

    What it measures: largest share of exact zeros, over the weight layers, in float16 gradients; layers behind a ReLU are compared with its zeros.

    Why it matters: the loss looks fine and nothing moves. Scaling the loss (GradScaler) lifts the gradients into range, bfloat16 has no such limit.

    When it is harmless: gradients that are sparse by nature; with a scaler.

    Sources: Micikevicius et al. 2018 (arXiv:1710.03740).
    """

    code = "GD805"
    name = "half-precision-underflow"
    summary = "float16 gradients that become 0"
    threshold = Threshold(0.2, 0.9, "share of gradient entries that are exactly 0", "a fifth, where activations have no zeros")
    order = 160
    explains = ("GD301", "GD303", "GD702", "GD707", "GD201", "GD307", "GD304")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        if recording.notes.get("scaled"):
            return
        for operation in recording.operations:
            if operation.category != "layer":
                continue
            half = [s.gradient for s in operation.observed if s.dtype == "float16" and s.gradient is not None and s.gradient.finite]
            if half and all(g.absmax < 1e-4 for g in half):
                zeros = median(g.zero_fraction for g in half)
                sparse = any(o.op in ("relu", "relu6", "dropout") or "pool" in o.op for o in recording.operations if operation.index in o.producers)
                if not sparse:
                    yield Measurement(value=zeros, module=operation.module, op=operation.op, location=location(recording, operation),
                                      operations=(operation.index,), cap=mild(recording),
                                      evidence={"zero_fraction": zeros, "absmax": max(g.absmax for g in half)})

    def message(self, m: Measurement) -> str:
        return f"{m.value:.0%} of the float16 gradient is exactly 0 and the largest entry is {m.evidence['absmax']:.1e} (smallest float16: 6e-8); no loss scaling was seen"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("autocast-bf16", "Use bfloat16, whose range is that of float32", kind="other"),
                Prescription("grad-scaler", "Scale the loss with torch.amp.GradScaler", kind="other"))


class HalfPrecisionOverflow(Rule):
    """Activations in float16 come near its largest number.

    What it measures: the largest |value| of a float16 output over 65,504.

    Why it matters: a little more and it is infinite.

    When it is harmless: masked scores.

    Sources: IEEE 754 binary16.
    """

    code = "GD804"
    name = "half-precision-overflow"
    summary = "float16 activations near the largest number"
    threshold = Threshold(0.5, None, "largest value / 65504", "half of the range")
    order = 165

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for operation in recording.operations:
            peaks = [s.forward.absmax for s in operation.observed if s.dtype == "float16" and s.forward is not None and s.forward.finite]
            if peaks and operation.category in ("layer", "activation", "norm", "attention"):
                yield Measurement(value=max(peaks) / HALF_MAXIMUM, module=operation.module, op=operation.op, location=location(recording, operation),
                                  operations=(operation.index,), evidence={"absmax": max(peaks)})

    def message(self, m: Measurement) -> str:
        return f"float16 values reach {m.evidence['absmax']:.3g}, {m.value:.0%} of the largest number"
