from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location
from gradcheck_doctor.rules.gradients.gradient_spike import WINDOW, spikes_of
from gradcheck_doctor.rules.progress import learned, phase_start
from gradcheck_doctor.rules.recurrent.cures import clip, clips, length, recurrent_operations


class UnclippedRecurrent(Rule):
    """A recurrent network is trained without clipping the gradient, and the gradient spikes.

    What it measures: the largest gradient norm over the running median of the 20 before it, or of the first 20 over the median of all (1 when no spike
    was seen), in a run that has recurrent layers over more than 10 steps and in which no clipping was seen; norms of the last optimizer in its own
    phase. An audit can only state the structure, where no file that defines or builds the model clips: info.

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
        begin, last = phase_start(recording), recording.steps[-1].optimizer if recording.steps else 0       # norms of two optimizers are not compared
        norms = [s.grad_norm for s in recording.steps if s.grad_norm is not None and s.step >= begin and s.optimizer == last]
        spikes = spikes_of(norms)
        factor = max((f for _, f in spikes), default=1.0)
        finite = [n for n in norms if math.isfinite(n)]
        blow = 1.0
        if recording.kind == "run" and not learned(recording) and len(finite) >= WINDOW and median(finite) > 0:
            blow = max(finite[:WINDOW]) / median(finite)                    # the first steps have no 20 before them
        record = recording.optimizers[0] if recording.optimizers else None
        place = record.stepped if record is not None and record.stepped is not None else location(recording, cells[0])
        yield Measurement(value=max(factor, blow), module=cells[0].module, modules=tuple(dict.fromkeys(o.module for o in cells)), op=cells[0].op, location=place,
                          operations=tuple(o.index for o in cells), cap="info" if recording.kind == "audit" or learned(recording) else None,
                          evidence={"largest": max(factor, blow), "early": blow > factor, "spikes": len(spikes), "steps_of_time": length(recording, cells[0])})

    def message(self, m: Measurement) -> str:
        seen = ""
        if m.value >= 10 and m.evidence["early"]:
            seen = f"; within its first {WINDOW} steps the gradient is {m.value:.3g} times its median (limit {{limit}})"
        elif m.value >= 10:
            seen = f"; {m.evidence['spikes']} gradient spikes, the largest {m.value:.3g} times the running median (limit {{limit}})"
        return f"{m.op} over {m.evidence['steps_of_time']} time steps is trained without clipping the gradient{seen}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        record = recording.optimizers[0] if recording.optimizers else None
        return (clip(record.stepped if record is not None else None),)
