from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location, loss_input
from gradcheck_doctor.rules.progress import mild


class CollapsedOutput(Rule):
    """The network answers the same for every input.

    What it measures: standard deviation over the samples of the batch of the loss's input, relative to its rms, on the last observed steps.

    Why it matters: whatever is learned is a constant; the cause is further down (dead units, a collapsed signal, softmax over one unit).

    When it is harmless: a batch of equal inputs, a zero-initialised head at the first step.

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022).
    """

    code = "GD608"
    name = "collapsed-output"
    summary = "the network answers the same for every input"
    threshold = Threshold(1e-5, 1e-6, "std over samples / rms of the output", "variance below 1e-10 of the mean square", "below")
    order = 650
    weak = True

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for loss in recording.losses:
            last = loss_input(recording, loss)
            if last is None or not last.shape or last.shape[0] < 4 or not last.observed or last.requires_grad is False:
                continue
            seen = [o.forward for o in last.observed if o.forward is not None][-5:]
            same = any(i.distinct_samples is not None and i.distinct_samples < 2 for i in recording.inputs)
            if not seen or same or not all(f.finite and f.rms > 0 and f.sample_std >= 0 for f in seen) or recording.notes.get("warmed"):
                continue
            yield Measurement(value=max(f.sample_std / f.rms for f in seen), module=last.module, op=last.op, location=location(recording, last),
                              operations=(last.index,), cap=mild(recording), evidence={"relative_std": max(f.sample_std / f.rms for f in seen)})

    def message(self, m: Measurement) -> str:
        return f"over the samples of a batch the output varies by {m.value:.1e} of its size (limit {{limit}}): it does not depend on the input"
