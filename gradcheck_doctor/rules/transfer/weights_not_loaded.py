from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured

NEARLY_ALL = 0.9       # of the model's keys are missing
TRIED = 8              # unexpected names that may show what others begin with


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
        old, new = _prefixes(facts["unexpected"], facts["missing"])
        if not old and not new:
            return ()
        title = (f"Rename the weights from {old!r} to {new!r}" if old and new else f"Take {old!r} off the names of the weights" if old else
                 f"Put {new!r} in front of the names of the weights")
        return (Prescription("rename-keys", title, kind="model", span=m.location, arguments={"old": old, "new": new}),)


def _prefixes(given: Sequence[str], wanted: Sequence[str]) -> tuple[str, str]:
    """What at least half of the names `given` begin with, and what names that are `wanted` have in its place; ("", "") where there is no such pair."""
    known = set(wanted)
    matches: dict[tuple[str, str], int] = {}
    for name in given[:TRIED]:
        parts = name.split(".")
        for other in wanted:
            ends = other.split(".")
            same = 0
            while same < min(len(parts), len(ends)) and parts[-1 - same] == ends[-1 - same]:
                same += 1
            old, new = "".join(p + "." for p in parts[:len(parts) - same]), "".join(p + "." for p in ends[:len(ends) - same])
            if same and (old, new) not in matches:
                matches[old, new] = sum(n.startswith(old) and new + n.removeprefix(old) in known for n in given)
    best = max(matches, key=matches.__getitem__, default=("", ""))
    return best if 2 * matches.get(best, 0) >= len(given) else ("", "")


def _cap(facts: Mapping[str, Any], share: float) -> str | None:
    """A checkpoint all of whose keys were used did what it could; one whose keys were filtered until hardly any was left did not."""
    if facts["unexpected"] or not facts["keys"]:
        return None
    return "warning" if share >= NEARLY_ALL else "info"
