from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured


class RepeatedInit(Rule):
    """The same parameter is initialised twice; the first draw is wasted and the second may not be the intended one.

    What it measures: explicit nn.init calls on one parameter while the model was built.

    Why it matters: usually a second `apply` overwrites a careful first one.

    When it is harmless: tied weights, and overwriting a general init by a special one.

    Sources: none needed; it is counted.
    """

    code = "GD106"
    name = "repeated-init"
    summary = "a parameter is initialised more than once"
    threshold = Threshold(None, None, "explicit initialisations of one parameter", "counted", info=2.0)
    order = 340

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for name, count in recording.notes.get("init_counts", {}).items():
            record = recording.parameter.get(name)
            if record is not None and count >= 2:
                yield Measurement(value=float(count), module=record.module, location=record.init_span, evidence={"parameter": name, "count": count})

    def message(self, m: Measurement) -> str:
        return f"{m.evidence['parameter']} is initialised {m.evidence['count']} times; only the last counts"
