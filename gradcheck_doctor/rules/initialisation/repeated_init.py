from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured


class RepeatedInit(Rule):
    """The same parameter is initialised twice; the first draw is wasted and the second may not be the intended one.

    What it measures: explicit nn.init calls on one parameter while the model was built, where a later call fills at least as many parameters of the
    model as the one before it.

    Why it matters: usually a second `apply` overwrites a careful first one.

    When it is harmless: tied weights and shared modules, which `apply` meets once for each holder, and a general init followed by a special one for
    single layers: neither is counted. The same `apply` twice costs only time.

    Sources: none needed; it is counted.
    """

    code = "GD106"
    name = "repeated-init"
    summary = "a parameter is initialised more than once"
    threshold = Threshold(None, None, "explicit initialisations of one parameter", "counted", info=2.0)
    order = 340

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        groups: dict[Any, list[Mapping[str, Any]]] = {}
        for row in recording.notes.get("init_repeated", ()):
            if row["parameter"] in recording.parameter:
                groups.setdefault((row["first"], row["last"]), []).append(row)
        for (first, last), rows in groups.items():
            modules = tuple(dict.fromkeys(recording.parameter[r["parameter"]].module for r in rows))
            yield Measurement(value=float(max(r["count"] for r in rows)), module=modules[0], modules=modules, location=last,
                              evidence={"parameters": [r["parameter"] for r in rows][:8], "count": max(r["count"] for r in rows), "of": len(rows),
                                        "first_line": first.line, "same_call": first == last})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        what = f"{e['of']} parameters are" if e["of"] > 1 else f"{e['parameters'][0]} is"
        return f"{what} initialised {e['count']} times, first in line {e['first_line']}; only the last counts"
