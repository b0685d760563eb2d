from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured


class WeightsNotLoaded(Rule):
    """load_state_dict(strict=False) left a large part of the model as it was.

    What it measures: missing plus unexpected keys over all keys of the state dict.

    Why it matters: a prefix such as "module." is enough, and the "pretrained" model is random.

    When it is harmless: a new head is expected to be missing; hence only shares above a half are errors.

    Sources: PyTorch's documentation of load_state_dict.
    """

    code = "GD904"
    name = "weights-not-loaded"
    summary = "load_state_dict skipped a large part"
    threshold = Threshold(0.3, 0.5, "share of keys that did not match", "a new head is a few keys")
    order = 180
    explains = ("GD701", "GD702", "GD707")           # steps on top of a random net that was thought to be trained

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for facts in recording.notes.get("loaded", ()):
            skipped = len(facts["missing"]) + len(facts["unexpected"])
            total = max(facts["keys"] + len(facts["missing"]), 1)
            if skipped:
                yield Measurement(value=skipped / total, module=facts["module"], location=facts.get("span"),
                                  evidence={"missing": list(facts["missing"])[:5], "unexpected": list(facts["unexpected"])[:5], "skipped": skipped})

    def message(self, m: Measurement) -> str:
        return f"{m.evidence['skipped']} keys did not match when the weights were loaded (missing {m.evidence['missing'][:2]}, unexpected {m.evidence['unexpected'][:2]})"
