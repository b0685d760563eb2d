from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.records.ways import is_output
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import is_gate, location, phi
from gradcheck_doctor.rules.progress import mild

HARMLESS = frozenset({("relu", "relu"), ("relu6", "relu6"), ("relu6", "relu"), ("relu", "relu6"), ("relu", "hardtanh")})


class StackedActivations(Rule):
    """One activation follows another with nothing between them, in the hidden part of the network.

    What it measures: hidden activations whose input is another activation's output, per model.

    Why it matters: ReLU then sigmoid leaves values in [0.5, 1) and a slope of at most 1/4 on half of the units.

    When it is harmless: ReLU after ReLU changes nothing (info); composed functions such as x * tanh(softplus(x)); gated units.

    Sources: NeuraLint (Nikanjam et al. 2021).
    """

    code = "GD205"
    name = "stacked-activations"
    summary = "an activation directly after another"
    threshold = Threshold(1.0, None, "pairs of activations", "one pair that is not idempotent")
    order = 380
    explains = ("GD301", "GD208", "GD203", "GD102", "GD201", "GD501", "GD303", "GD702", "GD608", "GD707", "GD202", "GD307")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        pairs = [(a, b) for b in recording.operations if (a := self._inner(recording, b)) is not None]
        if not pairs:
            return
        exact = all((a.op, b.op) in HARMLESS for a, b in pairs)
        inner, outer = pairs[0]
        yield Measurement(value=float(len(pairs)), module=outer.module, modules=tuple(dict.fromkeys(b.module for _, b in pairs)), op=outer.op,
                          location=location(recording, outer), operations=tuple(i for a, b in pairs for i in (a.index, b.index)),
                          evidence={"pairs": len(pairs), "inner": inner.op, "outer": outer.op}, cap="info" if exact else mild(recording))

    def _inner(self, recording: Recording, outer: Operation) -> Operation | None:
        if outer.category != "activation" or phi(outer) is None or not outer.producers or is_output(recording, outer):
            return None
        inner = recording.operations[outer.producers[0]]
        while inner.category in ("shape", "dropout") and inner.producers:
            inner = recording.operations[inner.producers[0]]
        if inner.category != "activation" or phi(inner) is None or is_gate(recording, outer) or is_gate(recording, inner):
            return None
        return inner

    def message(self, m: Measurement) -> str:
        e = m.evidence
        return f"{e['outer']} directly follows {e['inner']}" + (f", {e['pairs']} times" if e["pairs"] > 1 else "") + "; one of them is enough"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        outers = tuple(recording.operations[i].module for i in m.operations[1::2])
        return (Prescription("remove-activation", f"Drop the {m.evidence['outer']} after {m.evidence['inner']}", kind="activation",
                             modules=tuple(dict.fromkeys(outers)), span=m.location, arguments={"op": m.evidence["outer"]}),)
