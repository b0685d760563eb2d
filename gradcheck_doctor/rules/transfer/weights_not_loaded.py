from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured

NEARLY_ALL = 0.9       # of the model's keys are missing


class WeightsNotLoaded(Rule):
    """load_state_dict(strict=False) left a large part of the model as it was.

    What it measures: missing plus unexpected keys over all keys of the state dict.

    Why it matters: a prefix such as "module." is enough, and the "pretrained" model is random.

    When it is harmless: a new head or the parts of an adapter are expected to be missing. Where every key of the checkpoint found its place this is
    information, unless nine tenths of the model are missing; an empty state dict is an error.

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
                yield Measurement(value=skipped / total, module=facts["module"], location=facts.get("span"), cap=_cap(facts, skipped / total),
                                  evidence={"missing": list(facts["missing"])[:5], "unexpected": list(facts["unexpected"])[:5], "skipped": skipped})

    def message(self, m: Measurement) -> str:
        return f"{m.evidence['skipped']} keys did not match when the weights were loaded (missing {m.evidence['missing'][:2]}, unexpected {m.evidence['unexpected'][:2]})"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        facts = next((f for f in recording.notes.get("loaded", ()) if f.get("span") == m.location), None)
        if facts is None or m.location is None:
            return ()
        for add, given, wanted in ((False, facts["unexpected"], facts["missing"]), (True, facts["missing"], facts["unexpected"])):
            prefix = _prefix(given, wanted)
            if prefix and 2 * sum(n.removeprefix(prefix) in wanted for n in given if n.startswith(prefix)) >= len(facts["unexpected"]):
                title = f"{'Put' if add else 'Take'} {prefix!r} {'in front of' if add else 'off'} the names of the weights"
                return (Prescription("rename-keys", title, kind="model", span=m.location, arguments={"prefix": prefix, "add": add}),)
        return ()


def _prefix(given: Sequence[str], wanted: Sequence[str]) -> str:
    """What stands in front of one of the names that are `wanted`."""
    known = set(wanted)
    for name in given:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in known:
                return ".".join(parts[:cut]) + "."
    return ""


def _cap(facts: Mapping[str, Any], share: float) -> str | None:
    """A checkpoint all of whose keys were used did what it could; one whose keys were filtered until hardly any was left did not."""
    if facts["unexpected"] or not facts["keys"]:
        return None
    return "warning" if share >= NEARLY_ALL else "info"
