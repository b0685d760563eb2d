from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import ParameterRecord, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import phi, runs, weight
from gradcheck_doctor.rules.initialisation.init_activation_mismatch import InitActivationMismatch
from gradcheck_doctor.theory.propagation import expected_attenuation
from gradcheck_doctor.theory.schemes import DEFAULT, TOO_SMALL

CURES = {"too early": "Apply {} at the end of __init__", "never called": "Call {} where the layers have been made", "replaced": "Apply {} to this layer, too"}


class InitNotApplied(Rule):
    """The file defines an initialisation, yet the weights it was meant for are still those that PyTorch drew.

    What it measures: decades of signal or gradient, over a run of layers, that the intended initialisation would win back. Four ways to miss are
    told apart: `apply` ran before the layers were built; it ran but the function's tests matched no layer; a function with the name of an initialiser
    was never called while the model was built; a layer was built after `apply` and replaced one that had been initialised. Every weight in question
    must follow PyTorch's default and have no other initialisation.

    Why it matters: the author believes the layers to be initialised. Where depth makes the default matter, this is the cause of what
    init-activation-mismatch sees.

    When it is harmless: in shallow nets and under normalisation, where the default does no harm: then it is info. A function that some file of the
    model mentions, that a framework may call later, or that draws without nn.init, is left alone.

    Sources: exact, from the calls that ran and the file's syntax; the decades as in init-activation-mismatch.
    """

    code = "GD105"
    name = "init-not-applied"
    summary = "initialisation code that never took effect"
    threshold = Threshold(1.0, None, "decades that the intended init would win back", "a factor of ten is plain in the first layers' updates", info=0.0)
    order = 285
    explains = ("GD102", "GD301", "GD302", "GD208", "GD209", "GD501", "GD211", "GD203", "GD604", "GD608", "GD201", "GD107", "GD702")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for row in recording.notes.get("init_unapplied", ()):
            records = [p for p in recording.parameters if p.module in row["modules"]]
            if not any(len(p.shape) >= 2 for p in records) or not all(_untouched(p) and not _loaded(recording, p) for p in records):
                continue
            yield Measurement(
                value=_won_back(recording, row), module=row["modules"][0], modules=tuple(row["modules"]), location=row["span"],
                evidence={"form": row["form"], "function": row["function"], "defined": row["defined"], "layers": len(row["modules"]),
                          "types": row["types"], "looks_for": row["looks_for"], "decades": _won_back(recording, row)})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        many = f"{e['layers']} layers ({', '.join(e['types'])})" if e["layers"] > 1 else f"{m.module or 'the model'} ({', '.join(e['types'])})"
        keep = "keep" if e["layers"] > 1 else "keeps"
        said = {"unmatched": f"{e['function']} was applied but matched none of {many}" + (f", it looks for {', '.join(e['looks_for'])}" if e["looks_for"] else ""),
                "too early": f"{e['function']} was applied before {many} had been built",
                "never called": f"{e['function']} was not called while the model was built: {many} {keep} PyTorch's default weights",
                "replaced": f"{many} was built after {e['function']} had been applied and {keep} PyTorch's default weights"}[e["form"]]
        return said + (f"; it would win back a factor of {10 ** m.value:.2g} of signal or gradient over the depth of the net" if m.value >= 1 else "")


    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        form, function = m.evidence["form"], m.evidence["function"]
        if form not in CURES:
            return ()
        return (Prescription("apply-init", CURES[form].format(function), kind="init", span=m.location, modules=m.modules,
                             arguments={"form": form, "function": function}),)


def _untouched(record: ParameterRecord) -> bool:
    """A weight as PyTorch drew it; a bias that nobody set to a constant (too small for more); of a single number only 0 and 1 tell that it was set."""
    if record.init_span is not None or record.trained:
        return False
    if record.count == 1:
        return not record.scheme.startswith(("zeros", "ones"))
    if len(record.shape) < 2:
        return not record.scheme.startswith(("zeros", "ones", "constant"))
    return record.scheme.startswith(DEFAULT) or record.scheme == TOO_SMALL


def _loaded(recording: Recording, record: ParameterRecord) -> bool:
    """`load_state_dict` brought it, from whatever."""
    return any(record.name.startswith(row["module"]) and record.name.removeprefix(row["module"]).lstrip(".") not in row["missing"]
               for row in recording.notes.get("loaded", ()))


def _won_back(recording: Recording, row: Mapping[str, Any]) -> float:
    """Decades between what the weights do now and what the intended ones would, where init-activation-mismatch is more than info; else 0."""
    sick = {m.operations: m for m in InitActivationMismatch().measure(recording) if isinstance(m, Measurement) and m.cap is None
            and InitActivationMismatch.threshold.severity(m.value) in ("warning", "error")}
    gained = [0.0]
    for run in runs(recording):
        if run.indices not in sick:
            continue
        pairs = []
        for layer, activation in zip(run.layers, run.before, strict=True):
            record = weight(recording, layer)
            gain = (_intended(record, row["draws"]) if layer.module in row["modules"] else record.gain) if record is not None else None
            pairs.append((gain, phi(activation) if activation is not None else None))
        after = expected_attenuation([(gain, act) for gain, act in pairs[1:] if gain])
        if all(gain for gain, _ in pairs[1:]):
            gained.append(abs(float(sick[run.indices].evidence["decades"])) - max(abs(math.log10(max(a, 1e-30))) for a in after))
    return max(gained)


def _intended(record: ParameterRecord, draws: list[tuple[str, Mapping[str, Any]]]) -> float | None:
    """sqrt(Var(w) fan_in) that the first draw of the function would give; None where its arguments are not literal."""
    if not record.fan_in or not record.fan_out or not draws:
        return None
    name, arguments = draws[0]
    if name.startswith("kaiming"):
        return 1.0 if arguments.get("nonlinearity") in ("linear", "sigmoid") else 0.75 if arguments.get("nonlinearity") == "selu" else math.sqrt(2.0)
    if name.startswith("xavier"):
        gain = arguments.get("gain", 1.0)
        return float(gain) * math.sqrt(2.0 * record.fan_in / (record.fan_in + record.fan_out))
    if name == "orthogonal_":
        return float(arguments.get("gain", 1.0))
    std = arguments.get("std", 1.0 if name == "normal_" else None)
    return float(std) * math.sqrt(record.fan_in) if name in ("normal_", "trunc_normal_") and std is not None else None
