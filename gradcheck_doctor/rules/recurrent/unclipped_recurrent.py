from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import learned, location
from gradcheck_doctor.rules.gradients.gradient_spike import spikes_of
from gradcheck_doctor.rules.recurrent.cures import clip, clips, length, recurrent_operations


class UnclippedRecurrent(Rule):
    """A recurrent network is trained without clipping the gradient, and the gradient spikes.

    What it measures: the largest gradient norm over the running median of the 20 before it (1 when no spike was seen), in a run that has
    recurrent layers over more than 10 steps and in which no clipping was seen. An audit can only state the structure, where no file that defines or
    builds the model clips: info.

    Why it matters: the gradient through time is a product of as many factors as there are steps; rare large ones throw the weights away.

    When it is harmless: short sequences, frozen layers, gated cells on easy data, a run whose loss falls.

    Sources: Pascanu et al. 2013 (arXiv:1211.5063); Géron, ch. 11: clip by norm, 1.0.
    """

    code = "GD401"
    name = "unclipped-recurrent"
    summary = "a recurrent network trained without gradient clipping"
    threshold = Threshold(10.0, 100.0, "largest gradient norm / running median", "10 times the running median", info=1.0)
    order = 470
    explains = ("GD305", "GD302", "GD706", "GD707", "GD201", "GD701", "GD301", "GD303", "GD202", "GD803", "GD802", "GD801", "GD208", "GD209", "GD507")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        cells = [o for o in recurrent_operations(recording) if length(recording, o) > 10]
        if not cells or (clips(recording) if recording.kind == "run" else recording.notes.get("clips_in_source")):
            return
        norms = [s.grad_norm for s in recording.steps if s.grad_norm is not None]
        spikes = spikes_of(norms)
        factor = max((f for _, f in spikes), default=1.0)
        finite = sorted(n for n in norms if math.isfinite(n))
        if recording.kind == "run" and not learned(recording) and len(finite) >= 20 and finite[len(finite) // 2] > 0:
            factor = max(factor, finite[-1] / finite[len(finite) // 2])     # a blow in the first steps has no 20 before it
        record = recording.optimizers[0] if recording.optimizers else None
        place = record.stepped if record is not None and record.stepped is not None else location(recording, cells[0])
        yield Measurement(value=factor, module=cells[0].module, modules=tuple(dict.fromkeys(o.module for o in cells)), op=cells[0].op, location=place,
                          operations=tuple(o.index for o in cells), cap="info" if recording.kind == "audit" or learned(recording) else None,
                          evidence={"largest": factor, "spikes": len(spikes), "steps_of_time": length(recording, cells[0])})

    def message(self, m: Measurement) -> str:
        seen = f"; {m.evidence['spikes']} gradient spikes, the largest {m.value:.3g} times the running median (limit {{limit}})" if m.value >= 10 else ""
        return f"{m.op} over {m.evidence['steps_of_time']} time steps is trained without clipping the gradient{seen}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        record = recording.optimizers[0] if recording.optimizers else None
        return (clip(record.stepped if record is not None else None),)
