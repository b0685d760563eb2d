from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location

STEPS = 200            # of training, before the running statistics can be expected to have settled
LEFT = 0.25            # of the running statistics that is still their start
SCALE = 0.25           # of the first loss, at least, that the difference is judged by: two losses near 0 may differ by any factor


class TrainEvalMismatch(Rule):
    """After training, the same batch has a much larger loss in eval mode than in training mode: what is validated is another network.

    What it measures: (loss in eval mode - loss in training mode) on the training batch after at least 200 steps of `doctor audit --steps`, relative
    to the loss in training mode, or to a quarter of the first loss where that is more. Two extra forwards on the throw-away copy. In a training run:
    by what factor (less 1) or by how many standard deviations a channel is off in eval mode, where a quarter or more of a BatchNorm's running statistics still is their
    start after at least 200 batches; told from the statistics, the momentum and the number of batches alone.

    Why it matters: BatchNorm in eval mode uses running statistics. With a momentum that is too small they still are those of the start, and the
    network is wrong however well it trains.

    When it is harmless: a smaller loss in eval mode, which dropout and stochastic depth explain; fewer steps; losses of unknown making (not judged).

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022); PyTorch's documentation of BatchNorm (momentum 0.1).
    """

    code = "GD506"
    name = "train-eval-mismatch"
    summary = "the loss in eval mode is far above that in training mode"
    threshold = Threshold(0.5, None, "rise of the loss from training to eval mode", "half")
    order = 245

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        if recording.kind == "run":
            yield from _lagging(recording)
            return
        seen = recording.notes.get("train_eval")
        if not seen or recording.total_steps < STEPS:
            return
        first = recording.curve[0][1] if recording.curve else math.nan
        known = bool(recording.losses) and all(loss.op != "scalar" for loss in recording.losses)
        scale = max(seen["train"], SCALE * first)
        if not known or not scale > 0 or not math.isfinite(scale):
            yield Unmeasured("", "the loss is of unknown making or not positive")
            return
        norm = _slowest(recording)
        yield Measurement(value=(seen["eval"] - seen["train"]) / scale, module=norm.module if norm is not None else "", op=norm.op if norm is not None else "",
                          location=location(recording, norm) if norm is not None else recording.losses[0].span,
                          operations=(norm.index,) if norm is not None else (),
                          evidence={"train_loss": seen["train"], "eval_loss": seen["eval"], "first_loss": first, "steps": recording.total_steps})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        if "left" in e:
            off = f"is off by a factor of {e['scale']:.2g}" if e["scale"] - 1.0 >= e["shift"] else f"is {e['shift']:.2g} standard deviations off"
            return (f"after {e['batches']} batches {e['left']:.0%} of the running statistics still are those of a new layer (momentum {e['momentum']:g}): "
                    f"in eval mode what comes out of it {off}")
        return (f"after {e['steps']} steps the loss of the same batch is {e['train_loss']:.3g} in training mode and {e['eval_loss']:.3g} in eval mode; "
                + ("the running statistics of the normalisation have not followed" if m.module else "something depends on the mode that should not"))

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("batchnorm-momentum", "Let the running statistics follow: momentum 0.1", kind="norm", modules=m.modules, span=m.location,
                             arguments={"momentum": 0.1}),) if "left" in m.evidence else ()


def _lagging(recording: Recording) -> Iterator[Measurement]:
    """The batch normalisation of a run whose running statistics are furthest from what it has seen."""
    rows = {name: row for name, row in recording.notes.get("batchnorm", {}).items()
            if row.get("tracked", 0) >= STEPS and row["left"] >= LEFT and not any(p.trained for p in recording.parameters if p.module == name)}
    if not rows:
        return
    name = max(rows, key=lambda n: max(rows[n]["scale"] - 1.0, rows[n]["shift"]))
    module, row = recording.module.get(name), rows[name]
    momentum = float(module.config.get("momentum") or 0.0) if module is not None else 0.0
    yield Measurement(value=max(row["scale"] - 1.0, row["shift"]), module=name, modules=tuple(rows), op="batch_norm",
                      location=module.built if module is not None else None,
                      evidence={"left": row["left"], "scale": row["scale"], "shift": row["shift"], "batches": row["tracked"], "momentum": momentum})


def _slowest(recording: Recording) -> Operation | None:
    """The batch normalisation with the smallest momentum."""
    norms = [o for o in recording.operations if o.op == "batch_norm"]
    return min(norms, key=lambda o: _momentum(recording, o), default=None)


def _momentum(recording: Recording, operation: Operation) -> float:
    module = recording.module.get(operation.module)
    value = module.config.get("momentum") if module is not None else None
    return float(value) if isinstance(value, (int, float)) else 0.0 if value is not None else 1.0
