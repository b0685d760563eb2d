"""Everything a monitor has seen so far, as one recording."""
from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from gradcheck_doctor.observe.build import blind_spots, differences, input_records, loss_records, module_records, operations
from gradcheck_doctor.observe.build import kept as indices
from gradcheck_doctor.observe.hidden import rows as hidden
from gradcheck_doctor.observe.own_init import drawn, located
from gradcheck_doctor.observe.parameters import moved_as_one, stays_equal
from gradcheck_doctor.observe.source import Source, sources, user_files, zeroed_between
from gradcheck_doctor.observe.wrappers import class_name
from gradcheck_doctor.records.findings import NO_STEP, NOTHING_SEEN
from gradcheck_doctor.records.recording import Operation, Recording
from gradcheck_doctor.records.sites import BlindSpot

SEVERAL = 4            # models of one class that are named one by one

if TYPE_CHECKING:
    from gradcheck_doctor.observe.watch import Monitor


def recorded(monitor: Monitor, kind: str, since: int, probe: Mapping[str, Any]) -> Recording:
    """Of kind "run" or "audit"; the time series only from after step `since`; `probe` is noted with it."""
    observer, book, known = monitor.observer, monitor.book, monitor.optimizers
    if observer.active:
        observer.finish_step()
    observer.collector.flush()
    book.take(observer, everything=True)
    kept = operations(observer, book, kind, since)
    modules = module_records(observer)
    held = {key for o in known for key in o.held} | (monitor.own.held if monitor.own.begun else set())
    parameters = tuple(replace(record, in_optimizer=(key in held) if held else None,
                               rows_equal=record.rows_equal and (monitor.step == 0 or hasattr(tensor, "to_local") or stays_equal(tensor.detach(), record)),
                               as_one=key in book.starts and monitor.step > 0 and moved_as_one(tensor, book.starts[key]))
                       for key, (tensor, record) in book.records.items())
    names = {key: record.name for key, (_, record) in book.records.items()}
    files = user_files(observer.roots.roots, monitor.log)
    read = sources(dict.fromkeys([*files, *_trains(monitor)]))
    parameters = drawn(located(parameters, {path: module for module, path in observer.roots.names()}, read), kept, read)
    changing = next((span for source in read for span in source.own_updates), None)
    optimizers = (*([monitor.own.record(names, changing)] if monitor.own.begun else []), *(o.record(names) for o in known))
    models = [observer.roots.roots[i] for i in observer.roots.models()]
    first = next((p for m in models for p in m.parameters()), next((p for p, _ in book.records.values()), None))
    steps, curve = monitor.steps.since(since)
    losses = tuple(replace(x, value=curve[0][1]) if x.value is None and x.op != "scalar" and curve else x for x in loss_records(observer, kept))
    return Recording(
        kind=kind, model_class=_names(models), parameter_count=sum(p.count for p in parameters),
        trainable_count=sum(p.count for p in parameters if p.trainable), device=str(first.device) if first is not None else "cpu",
        dtype=str(first.dtype).removeprefix("torch.") if first is not None else "float32", modules=modules, parameters=parameters,
        operations=kept, inputs=input_records(observer), losses=losses, optimizers=optimizers, steps=steps,
        parameter_steps={names[k]: tuple(v[bisect_right(v, since, key=lambda row: row.step):]) for k, v in monitor.parameter_steps.items() if k in names},
        events=tuple(e for e in monitor.events if e.step > since), curve=curve, total_steps=monitor.step,
        probe=dict(probe, observed=monitor.schedule.describe(monitor.step)), blind_spots=blind_spots(observer, modules, monitor.step > 0 and not monitor.compiled()),
        notes={**monitor.facts.notes(observer, modules, sources(files)), **monitor.scaler.notes(), "hidden": hidden(observer, book, indices(observer)),
               "differences": differences(observer, kept), "dropping": dropping(kept, read),
               "thrown_away": thrown_away(monitor), "idle": idle(monitor, names, read), "backwards": monitor.backwards,
               "first_seen": {names[k]: s for k, s in book.first_seen.items() if k in names}})


def dropping(operations: Sequence[Operation], read: Sequence[Source]) -> list[dict[str, Any]]:
    """Functional dropouts of the model that say nothing of the mode, and whether anything is evaluated."""
    places = {place for of in read for place in of.dropping}
    evaluates = any(of.evaluates for of in read)
    return [{"operation": o.index, "p": float(o.attributes.get("p", 0.5)), "evaluates": evaluates} for o in operations
            if o.category == "dropout" and o.called in places and "Dropout" not in o.module_type and o.attributes.get("training", True)]


def honest(recording: Recording) -> Recording:
    """A run that never trained says so: without findings it would pass for healthy."""
    if recording.total_steps:
        return recording
    reason = NO_STEP if recording.events_of("backward") else NOTHING_SEEN
    return replace(recording, blind_spots=(*recording.blind_spots, BlindSpot("", reason)))


def _names(models: Sequence[nn.Module]) -> str:
    """Net, Sequential x20: the classes of the models."""
    counts = Counter(class_name(m) for m in models)
    many = len(models) > SEVERAL
    return ", ".join(f"{name} x{count}" if many and count > 1 else ", ".join([name] * count) for name, count in counts.items())


def _trains(monitor: Monitor) -> list[str]:
    """The file that calls backward, where that was seen."""
    return [os.path.realpath(e.span.file) for e in monitor.events if e.kind == "backward" and e.span is not None][:1]


def idle(monitor: Monitor, names: Mapping[int, str], read: Sequence[Source]) -> list[dict[str, Any]]:
    """Optimizers of watched parameters that were there when training began and never stepped, with a statement that names a step without calling it."""
    stepped = {key for o in monitor.optimizers if o.steps for key in o.held}
    waiting = [o for o in monitor.waiting or () if not o.held & stepped and o.held & names.keys()]
    uncalled = next((span for source in read for span in source.uncalled_steps), None)
    return [{"optimizer": o.name, "built": o.built, "parameters": [names[key] for key in o.held if key in names], "uncalled": uncalled} for o in waiting]


def thrown_away(monitor: Monitor) -> list[dict[str, Any]]:
    """Optimizers at whose steps the gradients that backward had made were gone, with the zero_grad() that did it, where it stands in between."""
    backward = next((e.span for e in monitor.events if e.kind == "backward"), None)
    return [{"optimizer": o.number, "steps": o.emptied, "of": o.looked, "span": zeroed_between(backward, o.stepped)} for o in monitor.optimizers if o.emptied]
