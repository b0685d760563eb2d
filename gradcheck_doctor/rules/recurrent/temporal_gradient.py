from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location
from gradcheck_doctor.rules.progress import mild, progress
from gradcheck_doctor.rules.recurrent.cures import EXPECTED, clip, recurrent_operations

LONG = 10              # time steps from which on a recurrence is judged
SMALLEST = 1e-45       # of float32


class TemporalGradient(Rule):
    """Through time the gradient shrinks, or grows, by a factor of a thousand: the first steps of a sequence teach nothing, or everything.

    What it measures: powers of ten between the rms of the gradient at the first and at the last time step, at the start of training; both halves of
    the sequence have to contribute one power or more in the same direction. At the cell's own output in a hand-written recurrence (and with nn.RNNCell
    and its kin); at the state itself where a loop updates it without a weight matrix, h = a * h + b; in a fused nn.RNN, nn.LSTM or nn.GRU at its input,
    where that carries a gradient (behind an embedding or a layer).

    Why it matters: dL/dh_1 is dL/dh_T times one Jacobian a step. A factor of 0.5 leaves 1e-3 of it after ten steps, and what happened then can't be
    learned; a factor of 2 makes the step of the weights that of one early input.

    When it is harmless: memories that need not reach back, which is why shrinking is info in an audit, in a run that learns, and over more than 100
    steps with a loss on the last one only; short sequences. Weak: beside another cause it is info.

    Sources: Bengio et al. 1994; Pascanu et al. 2013 (arXiv:1211.5063); Hochreiter & Schmidhuber 1997.
    """

    code = "GD405"
    name = "temporal-gradient"
    summary = "the gradient vanishes or explodes through time"
    threshold = Threshold(3.0, None, "powers of ten between the gradient at the first and the last time step", "1e-3 and 1e3")
    order = 610
    explains = ("GD707",)
    weak = True

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        cells = recurrent_operations(recording)
        states = [o for o in recording.operations if o.category in ("merge", "scale") and o.time_gradients and o.module not in {c.module for c in cells}]
        for operation in (*cells, *states):
            rows = operation.time_gradients
            if not rows and operation.category == "recurrent" and not operation.op.endswith("cell"):
                yield Unmeasured(operation.module, "a fused layer whose input carries no gradient, or of two directions, shows no gradient through time")
            elif len(rows) > LONG and all(math.isfinite(r) for r in rows) and rows[-1] > 0:
                yield self._judge(recording, operation)

    def _judge(self, recording: Recording, operation: Operation) -> Measurement:
        rows = operation.time_gradients
        first, middle, last = (math.log10(max(r, SMALLEST)) for r in (rows[0], rows[len(rows) // 2], rows[-1]))
        apart = rows[0] == 0 or abs(first - middle) >= 1                # what has sunk to 0 sinks no more
        steady = apart and abs(middle - last) >= 1 and (first > middle) == (middle > last)
        return Measurement(value=abs(first - last) if steady else 0.0, module=operation.module, op=operation.op, location=location(recording, operation),
                           operations=(operation.index,), cap=_cap(recording, first < last, len(rows)),
                           evidence={"ratio": rows[0] / rows[-1], "steps_of_time": len(rows), "first": rows[0], "last": rows[-1]})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        what = "vanishes" if e["ratio"] < 1 else "explodes"
        return (f"the gradient {what} through time: at the first of {e['steps_of_time']} steps it is {e['ratio']:.2g} times that at the last "
                f"(limits 1e-3 and 1e3)")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        operation = recording.operation(m.operations[0])
        plain = next((p for p in recording.parameters if p.spectral_radius is not None and not p.trained
                      and (p.name in operation.parameters or p.module == operation.module)), None)
        cures = () if plain is None else (
            Prescription("initialise", "Orthogonal initialisation of the recurrent weights", safety="safe", kind="init", modules=(plain.module,),
                         span=m.location, arguments={"scheme": "orthogonal", "parameter": plain.name}),)
        record = recording.optimizers[0] if recording.optimizers else None
        return cures if m.evidence["ratio"] < 1 else (*cures, clip(record.stepped if record is not None else None))


def _cap(recording: Recording, shrinks: bool, steps: int) -> str | None:
    if not shrinks:
        return mild(recording)
    if recording.kind == "audit" or steps > EXPECTED or progress(recording) is None:
        return "info"
    return mild(recording)
