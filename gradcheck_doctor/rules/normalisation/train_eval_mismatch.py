from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import location
from gradcheck_doctor.rules.progress import mild, progress

STEPS = 200            # of training, before the running statistics can be expected to have settled
SETTLED = 66           # batches after which torch's own momentum has left 0.9^66 = 1e-3 of the start
LEFT = 0.25            # of the running statistics that is still their start
MOST = 0.5             # the same, where the batches were fewer than STEPS but the model was evaluated
ALL_ALONG = 5          # backward passes seen, before a mode counts as that of the whole run
STRONG = 0.2           # p from which on a dropout that goes on in eval mode is worth a warning
SCALE = 0.25           # of the first loss, at least, that the difference is judged by: two losses near 0 may differ by any factor


class TrainEvalMismatch(Rule):
    """What is validated is another network than the one that trains, or the network trains in eval mode.

    What it measures: (loss in eval mode - loss in training mode) on the training batch after at least 200 steps of `doctor audit --steps`, relative
    to the loss in training mode, or to a quarter of the first loss where that is more. Two extra forwards on the throw-away copy. In a training run:
    by what factor (less 1) or by how many standard deviations a channel is off in eval mode, where a quarter or more of a BatchNorm's running statistics
    still is their start after at least 200 batches (half or more after 66, by which the default momentum has left 0.1 %, and evaluated at the end); told
    from the statistics, the momentum and the number of batches alone. And the number of BatchNorms that train in eval mode all along, with statistics
    that have never seen a batch. And F.dropout(x, p) without `training=`, which drops in eval mode as well: a warning from p = 0.2 on, in a file that calls eval().

    Why it matters: BatchNorm in eval mode uses running statistics. With a momentum that is too small they still are those of the start, and the
    network is wrong however well it trains. In eval mode from the first step on, it does nothing but divide by 1.

    When it is harmless: a smaller loss in eval mode, which dropout and stochastic depth explain; fewer steps; losses of unknown making (not judged);
    frozen or loaded normalisations, which are kept in eval mode on purpose.

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022); PyTorch's documentation of BatchNorm (momentum 0.1).
    """

    code = "GD506"
    name = "train-eval-mismatch"
    summary = "eval mode is far from what is trained, or is what is trained"
    threshold = Threshold(0.5, None, "rise of the loss from training to eval mode", "half")
    order = 245
    explains = ("GD604", "GD701", "GD706", "GD801", "GD802", "GD803", "GD707", "GD305", "GD302", "GD209", "GD201")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        yield from _dropping(recording)
        if recording.kind == "run":
            yield from _always_evaluating(recording)
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
        if "p" in e:
            return f"dropout with p = {e['p']:g} goes on in eval mode: F.dropout drops whatever the mode is, unless it is told training=self.training"
        if "unused" in e:
            many = f"{e['unused']} trainable batch normalisations were" if e["unused"] > 1 else "a trainable batch normalisation was"
            return f"{many} in eval mode at every backward pass: the running statistics still are mean 0 and variance 1, so nothing is normalised"
        if "left" in e:
            off = f"is off by a factor of {e['scale']:.2g}" if e["scale"] - 1.0 >= e["shift"] else f"is {e['shift']:.2g} standard deviations off"
            return (f"after {e['batches']} batches {e['left']:.0%} of the running statistics still are those of a new layer (momentum {e['momentum']:g}): "
                    f"in eval mode what comes out of it {off}")
        return (f"after {e['steps']} steps the loss of the same batch is {e['train_loss']:.3g} in training mode and {e['eval_loss']:.3g} in eval mode; "
                + ("the running statistics of the normalisation have not followed" if m.module else "something depends on the mode that should not"))

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if "p" in m.evidence:
            return (Prescription("dropout-training", "Drop in training mode only: training=self.training", kind="norm", modules=m.modules, span=m.location,
                                 arguments={"p": m.evidence["p"]}),)
        if "unused" in m.evidence:
            return (Prescription("train-mode", "Call train() in front of each epoch", kind="norm", modules=m.modules, span=recording.losses[0].span),)
        return (Prescription("batchnorm-momentum", "Let the running statistics follow: momentum 0.1", kind="norm", modules=m.modules, span=m.location,
                             arguments={"momentum": 0.1}),) if "left" in m.evidence else ()


def _dropping(recording: Recording) -> Iterator[Measurement]:
    """Functional dropouts that go on in eval mode; a file that never calls eval() may mean it."""
    for row in recording.notes.get("dropping", ()):
        operation = recording.operations[row["operation"]]
        yield Measurement(value=row["p"], floor="warning" if row["p"] >= STRONG else "info", module=operation.module, op=operation.op,
                          location=operation.called, operations=(operation.index,),
                          cap=None if row["evaluates"] and recording.kind == "run" else "info", evidence={"p": row["p"]})


def _always_evaluating(recording: Recording) -> Iterator[Measurement]:
    """Trainable batch normalisations that never saw a batch in training mode although gradients passed through them all along."""
    used = {o.module: o for o in recording.operations if o.op == "batch_norm" and o.requires_grad}
    rows = [name for name, row in recording.notes.get("batchnorm", {}).items()
            if row.get("untouched") and row["steps"] == row["eval_steps"] >= ALL_ALONG and not row["frozen_steps"] and name in used
            and not any(p.trained or p.in_optimizer is False for p in recording.parameters if p.module == name)]
    if rows and recording.losses:
        first = used[rows[0]]
        yield Measurement(value=float(len(rows)), module=first.module, modules=tuple(rows), op=first.op, floor="error", cap=mild(recording, "warning"),
                          location=recording.notes.get("left_in_eval") or location(recording, first), operations=tuple(used[n].index for n in rows),
                          evidence={"unused": len(rows)})


def _lagging(recording: Recording) -> Iterator[Measurement]:
    """The batch normalisation of a run whose running statistics are furthest from what it has seen."""
    rows = {name: whole for name, row in recording.notes.get("batchnorm", {}).items()
            if _behind(row) and not any(p.trained for p in recording.parameters if p.module == name) and (whole := _compared(recording, name, row))}
    gone = progress(recording)
    if not rows:
        return
    name = max(rows, key=lambda n: max(rows[n]["scale"] - 1.0, rows[n]["shift"]))
    module, row = recording.module.get(name), rows[name]
    momentum = float(module.config.get("momentum") or 0.0) if module is not None else 0.0
    yield Measurement(value=max(row["scale"] - 1.0, row["shift"]), module=name, modules=tuple(rows), op="batch_norm",
                      location=module.built if module is not None else None, cap="info" if gone is not None and gone < 0.1 else None,
                      evidence={"left": row["left"], "scale": row["scale"], "shift": row["shift"], "batches": row["tracked"], "momentum": momentum})


def _behind(row: Mapping[str, Any]) -> bool:
    """The running statistics still are their start to a large part, although torch's own momentum would have replaced them."""
    batches, left = row.get("tracked", 0), row.get("left", 0.0)
    return batches >= STEPS and left >= LEFT or batches >= SETTLED and left >= MOST and row.get("evaluated", False)


def _compared(recording: Recording, name: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with `scale` and `shift`; where the statistics hold nothing of the batches, from what last went into the normalisation."""
    if "scale" in row:
        return row
    makers = [recording.operations[o.producers[0]] for o in recording.operations if o.module == name and o.op == "batch_norm" and o.producers]
    seen = next((s.forward for maker in makers for s in reversed(maker.observed) if s.forward is not None and s.forward.sample_std > 0), None)
    if seen is None or not math.isfinite(seen.rms):
        return {}
    between = seen.sample_std                                       # of the samples: the statistics say 1, and 0 for their mean
    return {**row, "scale": max(between, 1.0 / between), "shift": math.sqrt(max(seen.rms**2 - between**2, 0.0)) / between}


def _slowest(recording: Recording) -> Operation | None:
    """The batch normalisation with the smallest momentum."""
    norms = [o for o in recording.operations if o.op == "batch_norm"]
    return min(norms, key=lambda o: _momentum(recording, o), default=None)


def _momentum(recording: Recording, operation: Operation) -> float:
    module = recording.module.get(operation.module)
    value = module.config.get("momentum") if module is not None else None
    return float(value) if isinstance(value, (int, float)) else 0.0 if value is not None else 1.0
