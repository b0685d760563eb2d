from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.branches import mild_run
from gradcheck_doctor.rules.flow import far_end, gradient_ratio, in_band, location, near_band, norm_kind, phi, runs, signal_ratio, start
from gradcheck_doctor.rules.progress import mild


class MissingNormalization(Rule):
    """A deep plain stack, or a deep residual stream, has no normalisation and its signal or gradient has left the healthy band.

    What it measures: number of layers in a run (or blocks of a residual stream) without any normalisation whose measured gradient or signal
    ratio is outside [1e-2, 1e2].

    Why it matters: batch normalisation keeps the signal level whatever the weights do, lets saturating activations train and allows larger
    learning rates.

    When it is harmless: where initialisation alone keeps the signal level; SELU; weight standardisation; Fixup; a run that learns.

    Sources: Ioffe and Szegedy 2015 (arXiv:1502.03167); Géron, ch. 11.
    """

    code = "GD501"
    name = "missing-normalization"
    summary = "a deep stack without normalisation whose signal or gradient left the healthy band"
    threshold = Threshold(4.0, None, "layers or blocks in a row without normalisation", "sigmoid stacks fail from four layers on (measured)")
    order = 455
    explains = ("GD302", "GD209", "GD604", "GD706", "GD701", "GD305", "GD301", "GD208", "GD803", "GD802", "GD801")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        if any(o.category == "norm" for o in recording.operations):
            return
        for run in runs(recording):
            if run.recurrent or not any(phi(a) for a in run.activations):
                continue
            high = far_end(recording, run)
            measured = {"gradient": gradient_ratio(recording, run.layers[0], high), "signal": signal_ratio(recording, run.layers[0], high)}
            ratios = {k: r for k, r in measured.items() if r is not None}
            if not all(map(in_band, ratios.values())):
                yield Measurement(value=float(len(run.layers)), module=run.layers[0].module, modules=run.modules, op=run.layers[0].op,
                                  location=location(recording, run.layers[0]), operations=run.indices, cap=mild_run(recording, run),
                                  evidence={"layers": len(run.layers), "ratios": ratios, "what": "layers"}, close=all(map(near_band, ratios.values())))
        yield from self._stream(recording)

    def _stream(self, recording: Recording) -> Iterator[Measurement]:
        stream = [o for o in recording.operations if o.attributes.get("residual") and o.on_spine]
        if len(stream) < 4:
            return
        seen = [(a.rms, b.rms) for (a, _), (b, _) in zip(start(recording, stream[0]), start(recording, stream[-1]), strict=False)
                if a is not None and b is not None and a.rms > 0]
        if seen and seen[0][1] / seen[0][0] > 100:
            yield Measurement(value=float(len(stream)), module=stream[0].module, modules=tuple(dict.fromkeys(o.module for o in stream)), op=stream[0].op,
                              location=location(recording, stream[0]), operations=tuple(o.index for o in stream), cap=mild(recording),
                              evidence={"layers": len(stream), "ratios": {"signal": seen[0][1] / seen[0][0]}, "what": "residual blocks"})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        seen = ", ".join(f"{name} {ratio:.2g}" for name, ratio in e["ratios"].items())
        return f"{e['layers']} {e['what']} in a row without normalisation; measured end to end: {seen} (healthy: 0.01 to 100)"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if m.evidence["what"] != "layers":
            return (Prescription("normalise-branches", "Normalise the input of each branch (pre-norm)", kind="norm", modules=m.modules),)
        return (Prescription("insert-norm", "Insert normalisation between the layers", kind="norm", modules=m.modules, arguments={"norm": norm_kind(recording)}),)
