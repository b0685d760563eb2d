"""Steps that are too large or too small for the weights they change."""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import OptimizerRecord, Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import bad_batch, first_nonfinite
from gradcheck_doctor.rules.optimizer.decay_and_rounding import COLLAPSED, weights_left
from gradcheck_doctor.rules.optimizer.readings import at_rate, dead_share, died, largest_lr, lowered, raised, summed_batches, update_ratios
from gradcheck_doctor.rules.optimizer.schedules import RARE, on_a_plateau, sized_in_steps, starved, stepped_rarely, taken_early, watches_wrong_way
from gradcheck_doctor.rules.progress import LEARNED, constant_guess, learned, phase, phase_curve, progress, stays_down

HEALTHY = 1e-3         # update ratio aimed at
LARGE = 3e-2           # update ratio from which on steps are large
#: Rates that people begin with; torch's defaults for the adaptive ones.
USUAL = {"Adam": 1e-3, "AdamW": 1e-3, "NAdam": 1e-3, "RAdam": 1e-3, "Adamax": 1e-3, "RMSprop": 1e-3, "SGD": 1e-2}
#: Rates above which nobody is sent.
HIGHEST = {name: 1.0 if name == "SGD" else 10 * rate for name, rate in USUAL.items()}
EARLY = 12             # steps that count as the start
LEAP = 3.0             # largest loss of the start over the first from which on the steps made it
UNCORRECTED = ("Adagrad", "RMSprop", "Adadelta", "Rprop", "Adafactor")     # their first step has the size of the rate, or ten times that, whatever the gradient
HEAVY = 0.95           # momentum from which on it can be the fault
HALF = 0.5             # of the full rate: a schedule that begins below is not stepped too often, it is too small
MOVED = 0.05           # of the weights, all steps of the run together
SLOW = 100.0           # times the usual rate is more than this one
STILL = 1e-4           # update ratio below which weights practically stay where they were
CERTAIN = 290          # order of a schedule that left no rate: nothing else can be told of such a run
NEARLY_ALL = 0.9       # of the loss: where that is gone, no rate was missing
LONG = 0.25            # share of the run over which a gradient must act for that


@dataclass(frozen=True)
class Strides:
    """Update ratios of a run: the size judged, the median of the run, the median and largest of the first steps, the share of the loss that is gone."""

    size: float
    usual: float
    early: float
    first: float
    gone: float | None
    harmful: bool          # large steps and a loss that falls little or not at all


def strides_of(recording: Recording) -> Strides | None:
    """How far the optimizer's steps go; None with too few of them, or where their length is searched for."""
    (begin, end), broken, blow, chosen = phase(recording), first_nonfinite(recording), bad_batch(recording), largest_lr(recording)
    if chosen is None:
        return None
    broken = blow if blow is not None else broken            # what a bad batch did to the weights is not the rate's doing
    last = min(end, broken) if broken is not None else end
    ratios = update_ratios(recording, first=begin, last=last)
    if len(ratios) < 5 or recording.total_steps < 10:
        first = max((r for r in ratios if math.isfinite(r)), default=0.0)
        blown = blow is None and broken is not None and recording.total_steps >= 10 and first >= 0.1
        return Strides(first, first, first, first, None, True) if blown else None      # a few steps were enough to leave the finite numbers
    finite = [r for r in ratios if math.isfinite(r)]
    early = [r for r in update_ratios(recording, first=begin + (chosen[1].name in UNCORRECTED), last=begin + EARLY) if math.isfinite(r)]
    late = [r for r in update_ratios(recording, first=(begin + last) // 2, last=last) if math.isfinite(r)]
    first, lasting = max(early, default=0.0), bool(late) and median(late) >= LARGE
    size = usual = median(finite) if finite else math.inf
    hurt = _hurt(recording)
    if lasting or hurt or (chosen[1].name not in UNCORRECTED and early and median(early) >= 0.1):
        size = max(size, first / 3)
    gone = progress(recording, broken)
    still = 0.1 if size < 0.1 else LEARNED if lasting else 0.3      # a loss that falls contradicts a rate that is only somewhat high
    stuck = broken is not None if gone is None else gone < still
    settled = not lasting and gone is not None and gone >= 0.2 and stays_down(recording) and not hurt
    harmful = not learned(recording) and not settled and (stuck or dead_share(recording) > 0.5)
    return Strides(size, usual, median(early) if early else 0.0, first, gone, harmful)


def _hurt(recording: Recording) -> bool:
    """The first steps did harm: the loss leapt, or stands above its start after them, or units died."""
    values = phase_curve(recording)[:2 * EARLY]
    if not all(map(math.isfinite, values)) or died(recording) > 0.5:
        return True
    start = max(values[0], constant_guess(recording) or values[0]) if values else math.inf
    after = values[EARLY:]
    return bool(after) and (median(after) > start + 0.1 * abs(start) or max(values[:EARLY]) > LEAP * start > 0)


class LearningRateTooHigh(Rule):
    """The optimizer's steps are so large beside the weights that they destroy what was learned, and the loss does not fall.

    What it measures: rms(change of a weight) / rms(weight), median over the weight matrices and the run; a third of the largest of the first twelve
    steps, if that is more, where these did harm (the loss leapt or stood above its start after them, or units died), where SGD or Adam changed a tenth of
    the weights in each of them, or where steps stay above 3e-2 to the end. Only in a run whose loss falls little or not at all.
    A momentum near 1 whose gradients act for a quarter of the run or longer is named instead of the rate, of which it makes lr / (1 - momentum).
    A schedule that raises the rate (OneCycleLR, CyclicLR, a factor) is named with its peak, where it is built.

    Why it matters: around 1e-3 is usual; at 0.1 the weights are someone else's after ten steps.

    When it is harmless: the first steps of Adam, and even more of Adagrad and RMSprop, are large at any rate; biases, zero-initialised weights and norms
    are left out, and so are optimizers with a line search; weights that the decay has shrunk, beside which any step is large; a run that learns, or whose
    loss falls to a floor above 0 and stays there.

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022); CS231n's rule of thumb of 1e-3.
    """

    code = "GD701"
    name = "learning-rate-too-high"
    summary = "steps too large beside the weights, and the loss does not fall"
    threshold = Threshold(LARGE, 1e-1, "update / weight, rms", "TheDeepChecker: 1e-1; healthy runs of this project stay below 3e-2")
    order = 490
    explains = ("GD201", "GD706", "GD707", "GD305", "GD301", "GD302", "GD303", "GD208", "GD209", "GD202", "GD608", "GD307", "GD803", "GD802", "GD801",
                "GD304")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        chosen, strides = largest_lr(recording), strides_of(recording)
        if chosen is None or strides is None:
            return
        lr, record = chosen
        momentum = max((g.momentum for g in record.groups), default=0.0)
        acts = 1.0 / (1.0 - momentum) if HEAVY < momentum < 1.0 else 1.0
        heavy = strides.harmful and strides.gone is not None and strides.gone < 0.1 and acts >= LONG * record.steps and lr <= 10 * USUAL["SGD"]
        summed = summed_batches(recording) if strides.harmful else 1
        peak, left = raised(lr, record), weights_left(recording)
        decayed = left is not None and left < COLLAPSED and strides.size * left < LARGE and any(g.weight_decay > 0 for g in record.groups)
        yield Measurement(value=strides.size, location=peak and record.scheduled or record.built or record.stepped, cap=None if strides.harmful and not decayed else "info",
                          order=474 if heavy or strides.early >= LARGE else None, floor="error" if heavy else None,
                          evidence={"update_ratio": strides.size, "usual_update": strides.usual, "first_updates": strides.first, "lr": lr,
                                    "loss_fell": strides.gone, "optimizer": record.name, "harmful": strides.harmful, **({"peak": True} if peak else {}),
                                    **({"batches": summed} if summed > 1 else {}),
                                    **({"momentum": momentum, "acts_for": acts, "steps": record.steps} if heavy else {})})

    def message(self, m: Measurement) -> str:
        e = m.evidence
        gone = e["loss_fell"]
        fell = "" if not e["harmful"] else f", and the loss fell by {gone:.0%} only" if gone is not None and gone >= 0.05 else ", and the loss does not fall"
        if "momentum" in e:
            return (f"with momentum {e['momentum']:g} a gradient acts for {e['acts_for']:.0f} steps in a run of {e['steps']}: "
                    f"{e['optimizer']} with lr {e['lr']:g} comes to a rate of {e['lr'] * e['acts_for']:.3g}{fell}")
        named = at_rate(e["optimizer"], e["lr"], peak="peak" in e)
        summed = f"; each step sums the gradients of {e['batches']} batches, whose losses are not divided by {e['batches']}" if "batches" in e else ""
        if m.value > e["usual_update"]:
            return (f"{named} changes the weights by {e['usual_update']:.2g} of their size a step, and by "
                    f"{e['first_updates']:.2g} in one of the first {EARLY} (limit {{limit}}, three times as much at the start){fell}{summed}")
        return f"{named} changes the weights by {m.value:.2g} of their size a step (limit {{limit}}){fell}{summed}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        chosen = largest_lr(recording)
        factor = 10 ** round(math.log10(max(10.0, min(m.value / HEALTHY, 1e4))))
        cures = lowered(*chosen, *sorted({factor, 10, 100})) if chosen is not None else []
        if (batches := m.evidence.get("batches")) is not None and "momentum" not in m.evidence:
            cures.insert(0 if m.value / batches <= LARGE else len(cures), Prescription(
                "divide-loss", f"Divide the loss by the {batches} batches of a step", kind="loss", span=recording.events_of("backward")[0].span,
                arguments={"by": batches}))
        if (momentum := m.evidence.get("momentum")) is not None:
            built = chosen[1].built if chosen is not None else m.location
            cures.insert(0, Prescription("momentum", f"Lower the momentum from {momentum:g} to 0.9", kind="optimizer", span=built,
                                         arguments={"momentum": 0.9, "old": momentum}))
        return tuple(cures)


def _crawls(recording: Recording, record: OptimizerRecord, lr: float, ratio: float, gone: float) -> bool:
    """The loss of fresh weights fell a little, by steps that together can't have changed them by a twentieth: at such a rate a run takes a hundred times as long."""
    fresh = not any(p.trained for p in recording.parameters) and record.scheduled is None
    slow = lr <= USUAL.get(record.name, 0.0) / SLOW and ratio <= STILL / 2 and ratio * recording.total_steps <= MOVED
    return fresh and slow and gone < 0.3 and recording.total_steps >= 100


class LearningRateTooLow(Rule):
    """The optimizer's steps are so small that the weights practically stay where they were.

    What it measures: rms(change) / rms(weight), median over the weight matrices and the run, in a run of at least 20 steps whose loss fell by less than 10 %.
    Also the mean learning rate over the run as a share of the full one: below 3 % a schedule took the rate away long before the end (stepped every batch
    instead of every epoch), a warm-up is far longer than the run, or the factor of a LambdaLR is itself a rate, so that the run begins at its square.
    Also a rate below 1 % of the full one for at least the second half of the run, where the loss was falling as it went and stood still afterwards
    with more than half of it left (a ReduceLROnPlateau whose mode is that of the other kind of metric), and a warm-up that is stepped once an epoch although
    the schedule was built for the steps of the run.
    A cosine has 50 %, decay by 0.9 in each of 100 epochs 10 %.

    Why it matters: at 1e-6 a step, a thousand steps change a weight by a thousandth.

    A loss that falls is no objection where it falls by less than 30 % in 100 steps or more, at a hundredth of the optimizer's usual rate or less, by steps
    which together can't have changed the weights by a twentieth: it is on its way, and would be for days.

    When it is harmless: the end of a schedule, fine-tuning, very long runs; a warm-up of which only the beginning was run (--max-steps); a plateau
    scheduler that lowers the rate where what it watches stands still.

    Sources: TheDeepChecker (Ben Braiek and Khomh 2022); the share: measured on schedules in use, the lowest of which has 6 %.
    """

    code = "GD702"
    name = "learning-rate-too-low"
    summary = "steps so small that the weights stay where they were"
    threshold = Threshold(STILL, None, "update / weight, rms", "TheDeepChecker: 1e-4", "below")
    order = 495
    weak = True
    explains = ("GD707", "GD608", "GD104", "GD102", "GD301", "GD208", "GD501", "GD201")
    kinds = ("run",)

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        chosen = largest_lr(recording)
        ratios = [r for r in update_ratios(recording) if math.isfinite(r)]
        gone = progress(recording)
        if chosen is None or len(ratios) < 5 or recording.total_steps < 20 or gone is None:
            return
        lr, record = chosen
        value = median(ratios)
        evidence = {"update_ratio": value, "lr": lr, "loss_fell": gone, "optimizer": record.name}
        idle = value <= STILL and gone <= 0.1
        found = starved(recording, record, idle=idle) or taken_early(recording, record)
        if found is not None:
            partial = found.rises and "stopped" in recording.probe
            squared = found.squared and not found.rises
            wrong, rare = not found.rises and watches_wrong_way(record.plan, gone), found.rises and stepped_rarely(record)
            stepped = None if squared or wrong else record.schedule_stepped          # how it is stepped is not its fault
            certain = rare and sized_in_steps(record) and gone < NEARLY_ALL
            yield Measurement(value=value, location=stepped or record.scheduled or record.built or record.stepped,
                              cap="info" if partial or learned(recording) and not certain else None, floor="warning", order=CERTAIN,
                              evidence={**evidence, "schedule": "warm-up" if found.rises else "decay", "full": found.full, "first": found.first,
                                        "last": found.last, "alive": found.alive, "steps": found.steps, "mean_share": found.share,
                                        "schedule_steps": record.plan.steps, "planned": record.plan.planned,
                                        **({"squared": True} if squared else {}), **({"rare": True} if rare else {}),
                                        **({"mode": record.plan.mode} if wrong else {})})
        elif value > 0 and not (gone > 0.1 and lr >= USUAL.get(record.name, math.inf)):      # a usual rate, and the loss falls: nothing to say
            falls = gone > 0.1 and not _crawls(recording, record, lr, value, gone)
            yield Measurement(value=value, location=record.built or record.stepped, cap="info" if falls or on_a_plateau(recording, record) else None,
                              evidence=evidence)

    def message(self, m: Measurement) -> str:
        e = m.evidence
        fell = f"the loss fell by {e['loss_fell']:.0%}" if e["loss_fell"] >= 0.005 else "the loss does not fall"
        if "mode" in e:
            moved = "falls" if e["mode"] == "max" else "rises"
            return (f"the plateau scheduler has mode '{e['mode']}', but what it is stepped with {moved}: it takes each improvement for none, and took the learning "
                    f"rate from {e['full']:g} to {e['last']:.1e} (below 1 % after {e['alive']} of {e['steps']} steps); {fell}")
        if "rare" in e:
            sized = f", of the {e['planned']} it was built for" if e["planned"] else ""
            return (f"the schedule was stepped {e['schedule_steps']} times in {e['steps']} steps of the optimizer, once an epoch{sized}: in its warm-up it took the "
                    f"learning rate from {e['first']:.2g} to {e['last']:.2g} of {e['full']:g}; {fell}")
        if e.get("planned") and e["schedule"] == "warm-up":
            return (f"the schedule was built for {e['planned']} steps, the run has {e['steps']}: it took the learning rate from {e['first']:.2g} to {e['last']:.2g} "
                    f"of {e['full']:g}; {fell}")
        if e.get("schedule") == "warm-up":
            return (f"the warm-up is longer than the run: in {e['steps']} steps it took the learning rate from {e['first']:.2g} to {e['last']:.2g} of {e['full']:g}; "
                    f"{fell}")
        if "squared" in e:
            return (f"the schedule multiplies the learning rate {e['full']:g} by another rate: it begins at {e['first']:.1e}, {e['full']:g} times itself, "
                    f"and ends at {e['last']:.1e}; {fell}")
        if "schedule" in e:
            return (f"the schedule took the learning rate from {e['full']:g} to {e['last']:.1e} (below 1 % after {e['alive']} of {e['steps']} steps); "
                    f"{fell}")
        return f"{at_rate(e['optimizer'], e['lr'])} changes the weights by {m.value:.1e} of their size a step (limit {{limit}}); {fell}"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        lr, steps = m.evidence["lr"], m.evidence.get("steps", 0)
        if "mode" in m.evidence:
            right = "min" if m.evidence["mode"] == "max" else "max"
            return (Prescription("plateau-mode", f"Let the plateau scheduler watch the other way: mode='{right}'", kind="optimizer", span=m.location,
                                 arguments={"mode": right}),)
        if "rare" in m.evidence:
            return (Prescription("step-schedule-per-batch", "Step the schedule after every batch, not after an epoch", kind="optimizer", span=m.location),)
        if m.evidence.get("schedule") == "warm-up":
            return (Prescription("shorten-warmup", f"Shorten the warm-up to {max(1, steps // 10)} of the {steps} steps", kind="optimizer", span=m.location,
                                 arguments={"steps": max(1, steps // 10), "longer": steps}),)
        if "squared" in m.evidence:
            return (Prescription("relative-schedule", f"Make the schedule's factor relative: divide it by the learning rate {m.evidence['full']:g}",
                                 kind="optimizer", span=m.location, arguments={"lr": m.evidence["full"]}),)
        if "schedule" in m.evidence and (m.evidence["first"] < HALF * m.evidence["full"] or 0 < m.evidence["schedule_steps"] * RARE <= steps):
            return ()                                           # it starved from its first step on, or is stepped once an epoch as it is
        if "schedule" in m.evidence:
            return (Prescription("step-schedule-per-epoch", "Step the schedule after an epoch, not after every batch", kind="optimizer", span=m.location),)
        if math.isnan(lr):
            return ()
        cures, usual = {}, USUAL.get(m.evidence["optimizer"], 0.0)
        derived = min(lr * 10 ** round(math.log10(max(10.0, min(HEALTHY / m.value, 100.0)))), HIGHEST.get(m.evidence["optimizer"], math.inf))
        if derived >= 3 * lr and not lr >= 10 * usual > 0:              # a rate that is high as it stands is not what keeps the steps small
            cures[derived] = f"{derived / lr:.3g} times as much"
        if usual > lr:
            cures.setdefault(usual, f"the usual one of {m.evidence['optimizer']}")
        return tuple(Prescription("learning-rate", f"Raise the learning rate from {lr:g} to {rate:g}, {why}", kind="optimizer", span=m.location,
                                  arguments={"lr": rate, "old": lr}) for rate, why in cures.items())
