from __future__ import annotations

from collections.abc import Iterator, Mapping

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import InputRecord, Operation, Recording
from gradcheck_doctor.records.ways import before
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import TRANSPARENT, ahead, location, once
from gradcheck_doctor.rules.losses import REGRESSION
from gradcheck_doctor.rules.progress import falling, mild, progress


class UnscaledInput(Rule):
    """The features that enter the network are far from mean 0 and standard deviation 1, or on very different scales.

    What it measures: the largest standard deviation or |mean| of a single input feature, on real inputs only, where the network does not
    normalise them itself; no more than the largest value that its first layer gets, where the network changes them before (a logarithm, a factor).
    A tenth of the standard deviation of the targets of a squared or absolute error, where the loss ends above a tenth of the targets' variance and
    still falls.

    Why it matters: one feature in the thousands dominates the first sums; the first step is huge and kills ReLU units.

    When it is harmless: images in [0, 1], identifiers, inputs that go into a normalisation first, a run that learns.

    Sources: LeCun et al. 1998 (Efficient BackProp); Géron, ch. 11.
    """

    code = "GD507"
    name = "unscaled-input"
    summary = "input features far from standard scale"
    threshold = Threshold(10.0, 100.0, "largest feature standard deviation or |mean|", "images in [0, 255] have 64 to 128")
    order = 210
    explains = ("GD201", "GD302", "GD305", "GD604", "GD209", "GD303", "GD301", "GD208", "GD706", "GD701", "GD202", "GD707", "GD608")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for record in recording.inputs:
            if not record.floating or record.synthetic or record.channel_std_max is None or record.channel_absmean_max is None:
                continue
            entry = _entry(recording, record)
            if entry is None:
                continue
            size, largest = max(record.channel_std_max, record.channel_absmean_max), _largest(recording, entry)
            yield Measurement(value=size if largest is None else min(size, largest), module=entry.module, op=entry.op, location=location(recording, entry),
                              operations=(entry.index,), cap=mild(recording),
                              evidence={"input": record.name, "largest_std": record.channel_std_max, "largest_mean": record.channel_absmean_max,
                                        "smallest_std": record.channel_std_min, **({} if largest is None else {"largest": largest})})

        for loss in recording.losses:
            if loss.op in REGRESSION and loss.target_std and not loss.target_one_hot:
                yield Measurement(value=loss.target_std / 10, op=loss.op, location=loss.span, operations=(loss.operation,), order=341,
                                  cap=None if _slow(recording) else "info",
                                  evidence={"target_std": loss.target_std, "target_mean": loss.target_mean, "loss": loss.op})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        if "target_std" in e:
            return (f"the targets of {e['loss']} have standard deviation {e['target_std']:.3g} and mean {e['target_mean']:.3g}: the output has to grow that far "
                    "before anything fits; standardise them (limit 100)")
        if "largest" in e and m.value == e["largest"]:
            return f"what the first layer gets of {e['input']} has values up to {e['largest']:.3g}; standardise it (limit {{limit}})"
        return (f"features of {e['input']} have standard deviations from {e['smallest_std']:.3g} to {e['largest_std']:.3g} and means up to "
                f"{e['largest_mean']:.3g}; standardise them (limit {{limit}})")

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if "target_std" in m.evidence:
            return (Prescription("scale-output", "Scale the output to the targets' mean and standard deviation (or standardise the targets)", kind="input",
                                 span=m.location, arguments={"mean": m.evidence["target_mean"], "std": m.evidence["target_std"]}),)
        return (Prescription("input-norm", "Standardise the inputs with a BatchNorm as first layer", kind="input", modules=(m.module,), span=m.location,
                             arguments={"norm": "batch"}),)


def _slow(recording: Recording) -> bool:
    """Most of the targets' variance is still to be explained, and the loss is on its way there."""
    gone = progress(recording)
    return recording.kind == "run" and gone is not None and gone < 0.9 and (falling(recording) or gone < 0.1)


@once
def _inputs(recording: Recording) -> Mapping[tuple[int, ...], Operation]:
    """The first input of each shape."""
    return {o.shape: o for o in reversed(recording.operations) if o.category == "input"}


def _entry(recording: Recording, record: InputRecord) -> Operation | None:
    """The layer that the input meets first, None when it is normalised or embedded before."""
    entered = _inputs(recording).get(record.shape)
    following = ahead(recording, entered) if entered is not None else None
    return following if following is not None and following.category in ("layer", "recurrent") else None


def _largest(recording: Recording, entry: Operation) -> float | None:
    """The largest absolute value that enters the layer, None where it is the input itself, at most in another shape."""
    given = before(recording, [entry.index], lambda o: o.category in TRANSPARENT)
    if all(o.category in ("input", "shape", "dropout") for o in given) or not entry.producers:
        return None
    made = recording.operations[entry.producers[0]]
    while made.category in ("shape", "dropout") and made.producers:
        made = recording.operations[made.producers[0]]
    return made.first.forward.absmax if made.first is not None and made.first.forward is not None else None
