"""From what an observer gathered to an immutable recording."""
from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradcheck_doctor.observe.graph import Node
from gradcheck_doctor.observe.observer import Observer
from gradcheck_doctor.observe.parameters import first_row, parameter_record, shard_values
from gradcheck_doctor.observe.provenance import ConstructionLog, is_user_file
from gradcheck_doctor.observe.scope import join
from gradcheck_doctor.observe.spine import spine
from gradcheck_doctor.observe.through_time import time_gradients
from gradcheck_doctor.observe.updates import same_values
from gradcheck_doctor.observe.wrappers import class_name, user_class
from gradcheck_doctor.records.findings import NO_FORWARD
from gradcheck_doctor.records.recording import InputRecord, LossRecord, ModuleRecord, Operation, ParameterRecord
from gradcheck_doctor.records.sites import BlindSpot, Span

RECURRENT = 8            # calls of one module, or uses of one matrix, before the first backward that make its square weights worth an eigenvalue
_PLAIN = (bool, int, float, str, type(None))


def module_records(observer: Observer) -> tuple[ModuleRecord, ...]:
    """One record for every module known, parents first."""
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for module, name in observer.roots.names():
        names.setdefault(id(module), []).append(name)
        modules.setdefault(id(module), module)
    spans = built_spans(observer, names, modules)
    return tuple(_module_record(module, names[key], spans.get(key), observer.roots.calls.get(key, 0)) for key, module in modules.items())


def built_spans(observer: Observer, names: Mapping[int, list[str]], modules: Mapping[int, nn.Module]) -> dict[int, Span]:
    """Construction spans; a copy made by deepcopy has none of its own and takes that of the module around it."""
    log = observer.log
    if log is None:
        return {}
    by_name = {names[key][0]: module for key, module in modules.items()}
    found: dict[int, Span] = {}
    for key in modules:
        path = names[key][0]
        while True:
            owner = by_name.get(path)
            span = log.spans.get(owner) if owner is not None else None
            if span is not None:
                found[key] = span
                break
            if not path:
                break
            path = path.rpartition(".")[0]
    return found


def _module_record(module: nn.Module, names: list[str], span: Span | None, calls: int) -> ModuleRecord:
    computing = next((c for c in user_class(module).__mro__ if "forward" in vars(c)), nn.Module)     # class MyLinear(nn.Linear) computes in torch
    source = getattr(sys.modules.get(computing.__module__), "__file__", None)
    config = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training" and _plain(v)}
    config |= {f"has_{k}": module._parameters[k] is not None for k in ("weight", "bias") if k in module._parameters}
    return ModuleRecord(
        path=names[0], type=class_name(module), built=span, training=module.training, config=config,
        parameters=tuple(join(names[0], k) for k, p in module._parameters.items() if p is not None), calls=calls, aliases=tuple(names[1:]),
        library=not (source is None or is_user_file(source)), leaf=not any(True for _ in module.children()))


def _plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or isinstance(value, (tuple, list)) and len(value) <= 8 and all(isinstance(v, _PLAIN) for v in value)


class ParameterBook:
    """Records of parameters as they were before the first update."""

    def __init__(self, log: ConstructionLog | None) -> None:
        self.log = log
        self.records: dict[int, tuple[Tensor, ParameterRecord]] = {}
        self.loaded: set[int] = set()
        self.first_seen: dict[int, int] = {}
        self.shards: dict[int, tuple[float, ...]] = {}
        self.starts: dict[int, Tensor] = {}      # the one row of those that a class of the user's made with equal rows

    def take(self, observer: Observer, everything: bool = False) -> None:
        """Record every parameter not yet known, under its name now; of modules that never ran only with `everything`.

        They are looked for after calls that were not known, and after an optimizer was given new ones.
        """
        changed, observer.changed = observer.changed, False
        if not everything and not changed:
            return
        if everything or any(p is not None and id(p) not in self.records for m in observer.roots.known() for p in m._parameters.values()):
            self._take_modules(observer)
        if not everything and not observer.roots.data_sharded:
            self._take_bare(observer)

    def _take_modules(self, observer: Observer) -> None:
        self._mark_loaded(observer.step)
        columns, uses = _by_columns(observer), _uses(observer)
        for module, path in observer.roots.names():
            for role, held in module._parameters.items():
                parameter = None if held is None else observer.roots.sharded(module, role, held)
                if parameter is not None and id(parameter) not in self.records:
                    trained = id(parameter) in self.loaded or self._copied(parameter, observer.step)
                    record = parameter_record(join(path, role), path, parameter, module, log=self.log, trained=trained,
                                              recurrent=max(observer.roots.calls.get(id(module), 0), uses[id(parameter)]) >= RECURRENT,
                                              columns=id(parameter) in columns)
                    self.records[id(parameter)] = (parameter, record)
                    self.first_seen[id(parameter)] = observer.step
                    if values := shard_values(parameter):
                        self.shards[id(parameter)] = values
                    own = not type(module).__module__.startswith("torch.")
                    if (own or record.rows_equal and len(record.shape) == 2) and (row := first_row(parameter)) is not None:
                        self.starts[id(parameter)] = row

    def _take_bare(self, observer: Observer) -> None:
        """Bare tensors behind a loss, as they are before the first step that changes them."""
        new = [n for n in observer.graph.nodes if any(p.is_leaf and id(p) not in self.records for p in n.parameters)] if observer.loss_nodes else []
        if new:
            keep, prefixes, uses = kept(observer), observer.roots.prefixes(), _uses(observer)
            for node in new:
                if node.index in keep:
                    self.take_raw(node, place(observer, node, prefixes)[0], uses)

    def take_raw(self, node: Node, path: str, uses: Counter[int]) -> None:
        """Record a bare tensor that requires a gradient and was used as a weight; `uses` counts the operations by the ids of what they apply."""
        for place, parameter in enumerate(node.parameters):
            if id(parameter) not in self.records and parameter.is_leaf and not _freed(parameter):
                name = join(path, f"<tensor {node.op}_{node.ordinal}_{place}>")
                columns = _has_columns(node, parameter)
                recurrent = uses[id(parameter)] >= RECURRENT
                self.records[id(parameter)] = (parameter, parameter_record(name, path, parameter, None, log=self.log, columns=columns, recurrent=recurrent))
                if (row := first_row(parameter)) is not None:
                    self.starts[id(parameter)] = row

    def _copied(self, parameter: Tensor, step: int) -> bool:
        """It holds, bit for bit, what an earlier parameter was trained to (a deepcopy of a pretrained body)."""
        if step == 0 or parameter.numel() < 16 or parameter.dim() < 2:
            return False
        return any(self.first_seen.get(key, step) < step and known.shape == parameter.shape and known.dtype == parameter.dtype
                   and known.requires_grad and same_values(known, parameter)
                   for key, (known, record) in self.records.items() if record.shape == tuple(parameter.shape))

    def _mark_loaded(self, step: int) -> None:
        """Weights that `load_state_dict` brought. Before anything was trained or read from a file they are an initialisation like others: the script made them."""
        if self.log is None:
            return
        for module, facts in list(self.log.loaded.items()):
            if facts["made"] and step == 0:
                continue
            for name, parameter in module.named_parameters():
                if name not in facts["missing"]:
                    self.loaded.add(id(parameter))


def _by_columns(observer: Observer) -> set[int]:
    """Ids of the parameters of user-defined layers whose units are columns."""
    return {id(p) for node in observer.graph.nodes for p in node.parameters if _has_columns(node, p)}


def _uses(observer: Observer) -> Counter[int]:
    """How many operations of this pass apply a parameter, by its id."""
    return Counter(id(p) for node in observer.graph.nodes for p in node.parameters)


def _has_columns(node: Node, parameter: Tensor) -> bool:
    """The matrix is the right operand of a product, as it is: x @ W, with W of (inputs, units)."""
    return (node.op in ("matmul", "mm", "addmm") and len(node.input_shapes) > 1 and parameter.dim() == 2 and tuple(parameter.shape) == node.input_shapes[-1]
            and node.input_shapes[-2][-1:] == node.input_shapes[-1][:1])


def _freed(parameter: Tensor) -> bool:
    """What FSDP gathered for a forward is gone after it."""
    return type(parameter) in (Tensor, nn.Parameter) and parameter.is_cpu and parameter.numel() > 0 and parameter.untyped_storage().nbytes() == 0


def kept(observer: Observer) -> set[int]:
    """Indices of the operations that the losses depend on, of all when no backward was seen."""
    graph, losses = observer.graph, dict.fromkeys(observer.loss_nodes)
    return set().union(*map(graph.ancestors, losses)) if losses else {n.index for n in graph.nodes}


def operations(observer: Observer, book: ParameterBook, kind: str, since: int = -1) -> tuple[Operation, ...]:
    """The operations that the losses depend on (all of them when no backward was seen), renumbered, with the spine marked;
    of what was observed only the steps after `since`."""
    keep = kept(observer)
    nodes = [n for n in observer.graph.nodes if n.index in keep]
    number = {n.index: i for i, n in enumerate(nodes)}
    on_spine = _spine(nodes, list(dict.fromkeys(observer.loss_nodes)))
    prefixes = observer.roots.prefixes()
    repeats: dict[tuple[int, str, Span | None], int] = {}
    for node in nodes:
        site = (id(node.module), node.op, node.span)
        repeats[site] = repeats.get(site, 0) + 1
    frozen, over_time, uses = [], time_gradients(nodes), _uses(observer)
    for node in nodes:
        path, type_name = place(observer, node, prefixes)
        book.take_raw(node, path, uses)
        total, first, last = node.activity.result() if node.activity is not None else (None, None, None)
        frozen.append(Operation(
            index=number[node.index], op=node.op, category=node.category, module=path, module_type=type_name, ordinal=node.ordinal,
            producers=tuple(number[p] for p in node.producers if p in number),
            parameters=tuple(book.records[id(p)][1].name for p in node.parameters if id(p) in book.records), called=node.span, shape=node.shape,
            input_shapes=node.input_shapes, attributes=node.attributes, on_spine=node.index in on_spine, requires_grad=node.requires_grad,
            observed=node.observed(since), units=total, units_first=first, units_last=last, repeats=repeats[(id(node.module), node.op, node.span)],
            time_gradients=over_time.get(node.index, ())))
    return tuple(frozen)


def place(observer: Observer, node: Node, prefixes: Mapping[int, str]) -> tuple[str, str]:
    if node.module is None:
        return "", ""
    root, path = observer.roots.place(node.module)
    return join(prefixes.get(root, ""), path), class_name(node.module)


def _spine(nodes: list[Node], losses: list[int]) -> frozenset[int]:
    """Union over the losses of their dominators, over operations that carry a gradient."""
    carrying = {n.index: n for n in nodes if n.requires_grad and n.category != "input"}
    producers = {i: [p for p in n.producers if p in carrying] for i, n in carrying.items()}
    sources = [i for i, made_by in producers.items() if not made_by]
    return frozenset().union(*(spine(producers, sources, loss) for loss in losses))


def loss_records(observer: Observer, kept: tuple[Operation, ...]) -> tuple[LossRecord, ...]:
    """Loss calls among the kept operations, numbered as these are; a scalar loss of unknown making as op "scalar"."""
    found = list(_numbered(observer, (o for o in kept if o.category == "loss"))) or _by_hand(observer, kept)
    if not found and observer.loss_nodes and kept:
        found.append(LossRecord(operation=len(kept) - 1, op="scalar", value=_value(kept[-1])))
    return tuple(found)


def differences(observer: Observer, kept: tuple[Operation, ...]) -> list[dict[str, Any]]:
    """Differences of a prediction and targets: their number, and which targets the prediction's activation can't reach."""
    return [{"operation": r.operation, "outside": r.target_outside, "min": r.target_min, "max": r.target_max}
            for r in _numbered(observer, (o for o in kept if o.op == "sub")) if r.target_outside]


def _numbered(observer: Observer, operations: Iterable[Operation]) -> Iterator[LossRecord]:
    """What was recorded of losses and differences, of those that are among `operations`, with their numbers there."""
    by_site = {(o.op, o.called, o.module, o.ordinal): o.index for o in operations}
    prefixes = observer.roots.prefixes()
    for index, record in observer.losses.items():
        node = observer.graph.nodes[index]
        number = by_site.get((node.op, node.span, place(observer, node, prefixes)[0], node.ordinal))
        if number is not None:
            yield replace(record, operation=number)


def _by_hand(observer: Observer, kept: tuple[Operation, ...]) -> list[LossRecord]:
    """A squared or absolute error written out: ((prediction - target) ** 2).mean()."""
    found = []
    for record in _numbered(observer, (o for o in kept if o.op == "sub")):
        made = _error(kept, record.operation)
        if made is not None:
            op, end = made
            found.append(replace(record, op=op, reduction=end.op, value=_value(end)))
    return found if len(found) == 1 else []


def _error(kept: tuple[Operation, ...], number: int) -> tuple[str, Operation] | None:
    """(loss, reduction) when a difference is squared (or made absolute) and then reduced to the one number behind it."""
    following = [o for o in kept if number in o.producers]
    if len(following) != 1 or following[0].op not in ("pow", "square", "abs", "mul"):
        return None
    power = following[0]
    if power.op == "mul" and set(power.producers) != {number} or power.op == "pow" and power.attributes.get("exponent", 2) != 2:
        return None
    reductions = [o for o in kept if power.index in o.producers]
    if len(reductions) != 1 or reductions[0].op not in ("mean", "sum") or reductions[0].shape or reductions[0].index != len(kept) - 1:
        return None
    return ("l1_loss" if power.op == "abs" else "mse_loss"), reductions[0]


def _value(operation: Operation) -> float | None:
    return operation.first.forward.mean if operation.first is not None and operation.first.forward is not None else None


def input_records(observer: Observer, synthetic: bool = False) -> tuple[InputRecord, ...]:
    """What entered the models from outside, over the first few batches."""
    found = []
    for index, tensors in observer.input_tensors.items():
        node = observer.graph.nodes[index]
        summary = node.forward.first()
        facts: dict[str, Any] = {}
        if tensors[0].is_floating_point() and tensors[0].dim() >= 2 and tensors[0].numel() and tensors[0].layout is torch.strided:
            known = observer.input_facts.get(index)
            facts = known[1] if known is not None and known[0] == len(tensors) else _feature_facts(tensors)
            observer.input_facts[index] = (len(tensors), facts)
        found.append(InputRecord(name=node.attributes.get("name") or f"input{node.ordinal}", shape=node.shape, dtype=node.attributes["dtype"],
                                 floating=tensors[0].is_floating_point(), summary=summary, synthetic=synthetic, **facts))
    return tuple(found)


def _feature_facts(tensors: list[Tensor]) -> dict[str, Any]:
    """Spread and offset of single features (columns of a matrix, channels of images, features of sequences)."""
    shape = tensors[0].shape
    same = [t.float() for t in tensors if t.shape[1:] == shape[1:]]
    joined = torch.cat(same)
    axis = 1 if joined.dim() in (2, 4, 5) else -1
    features = joined.movedim(axis, 0).flatten(1)
    if features.numel() > 4_000_000:
        features = features[:, :: features.numel() // 4_000_000 + 1]
    std, mean = features.std(dim=1, unbiased=False), features.mean(dim=1)
    rows = joined.flatten(1)[:256]
    return {"channel_std_min": _number(std.min()), "channel_std_max": _number(std.max()), "channel_absmean_max": _number(mean.abs().max()),
            "distinct_samples": len(torch.unique(rows[:, :512], dim=0)), "sparse_fraction": _number((features == 0).float().mean())}


def _number(value: Tensor) -> float:
    number = value.item()
    return number if math.isfinite(number) else math.nan


def blind_spots(observer: Observer, modules: tuple[ModuleRecord, ...], training: bool) -> tuple[BlindSpot, ...]:
    """Modules with parameters that never ran, scripted ones, and our own failure."""
    found = [BlindSpot(m.path, "never called in the observed passes") for m in modules
             if m.parameters and not m.calls and m.type != "NonDynamicallyQuantizableLinear"]      # attention reads its weights, it is never called
    found += [BlindSpot(m.path, "scripted: operations inside are not visible") for m in modules if m.type == "RecursiveScriptModule"]
    if observer.sharded_values:
        found.append(BlindSpot("", "activations are sharded over ranks (tensor parallelism): their statistics are not measured"))
    if training and not observer.graph.nodes:
        found.append(BlindSpot("", NO_FORWARD))
    if observer.graph.full:
        found.append(BlindSpot("", f"a step has more than {len(observer.graph.nodes):,} calls: those behind them are not seen"))
    if observer.failure is not None:
        found.append(BlindSpot("", f"observing stopped: {type(observer.failure).__name__}: {observer.failure}"))
    return tuple(found)
