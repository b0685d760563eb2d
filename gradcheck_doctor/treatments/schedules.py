"""Cures of learning-rate schedules: stepped once an epoch, a warm-up that ends within the run, a factor that is no rate."""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.calls import argument, entry, methods
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.flows import calls_of, given_for
from gradcheck_doctor.treatments.numbers import definitions, literal
from gradcheck_doctor.treatments.tree import Tree

WARM = re.compile(r"warm_?up", re.IGNORECASE)
RAMPS = ("LinearLR", "ConstantLR")        # schedulers of torch whose total_iters is a warm-up


def step_per_epoch(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """scheduler.step() from the loop over batches to behind it, in the loop over epochs; where Lightning steps it, its interval."""
    tree = context.tree_of(prescription.span)
    call = tree.call(prescription.span)
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "step":
        return [_interval(tree)]
    statement = tree.statement(call)
    text = tree.source(call)
    if not isinstance(statement, ast.Expr) or statement.value is not call:
        raise TreatmentRefused("where the schedule is stepped could not be found; step it once an epoch")
    inner = tree.parents[statement]
    outer = next((n for n in tree.up(inner) if isinstance(n, (ast.For, ast.While, ast.FunctionDef))), None)
    epochs = isinstance(outer, (ast.For, ast.While)) or isinstance(outer, ast.FunctionDef) and _once_an_epoch(tree, outer)
    if not isinstance(inner, (ast.For, ast.While)) or not epochs or statement not in inner.body or inner.orelse:
        raise TreatmentRefused(f"{text} does not stand directly in a loop over batches within one over epochs; call it once an epoch")
    if len(inner.body) < 2 or statement.end_lineno != statement.lineno or tree.lines[statement.lineno - 1].partition("#")[0].strip() != text:
        raise TreatmentRefused(f"{text} shares its line with something else; move it behind the loop over batches by hand")
    return [Edit(Span(tree.file, statement.lineno, 1, statement.lineno + 1, 1), ""), tree.after(inner, [text])]


def _once_an_epoch(tree: Tree, function: ast.FunctionDef) -> bool:
    """The function trains one epoch: every call of it stands in a loop."""
    calls = calls_of(tree, function)
    return bool(calls) and all(any(isinstance(a, (ast.For, ast.While, ast.ListComp)) for a in tree.up(call)) for call in calls)


def _interval(tree: Tree) -> Edit:
    """"interval": "step" of the one schedule that Lightning is given."""
    given = [entry(n, ("interval",)) for n in ast.walk(tree.root) if isinstance(n, ast.Dict)]
    found = [v for v in given if isinstance(v, ast.Constant) and v.value == "step"]
    if len(found) != 1:
        raise TreatmentRefused("where the schedule is stepped could not be found; step it once an epoch")
    return tree.replace(found[0], '"epoch"')


def step_per_batch(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """scheduler.step() from the loop over epochs to behind the optimizer's step in the loop over batches; where Lightning steps it, its interval."""
    tree = context.tree_of(prescription.span)
    call = tree.call(prescription.span)
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "step":
        return [_every_batch(tree, call)]
    statement, text = tree.statement(call), tree.source(call)
    outer = tree.parents[statement]
    if (not isinstance(outer, (ast.For, ast.While)) or not isinstance(statement, ast.Expr) or statement.value is not call
            or tree.lines[statement.lineno - 1].partition("#")[0].strip() != text):
        raise TreatmentRefused(f"{text} does not stand by itself in a loop over epochs; call it behind each step of the optimizer")
    stepping = [tree.statement(made) for made in methods(outer, "step") if made is not call]
    inside = [s for s in stepping if isinstance(tree.parents[s], (ast.For, ast.While)) and tree.parents[s] is not outer and tree.parents[tree.parents[s]] is outer]
    if len(stepping) != 1 or stepping != inside or len(outer.body) < 2:
        raise TreatmentRefused(f"the optimizer's step could not be found in a loop over batches; call {text} behind it")
    return [Edit(Span(tree.file, statement.lineno, 1, statement.lineno + 1, 1), ""), tree.after(stepping[0], [text])]


def _every_batch(tree: Tree, made: ast.Call) -> Edit:
    """The schedule that is made in configure_optimizers gets "interval": "step"."""
    refused = TreatmentRefused('it can\'t be told where the schedule is handed to Lightning; give it as {"scheduler": ..., "interval": "step"}')
    function, statement = tree.function(made), tree.statement(made)
    returned = [n for n in ast.walk(function) if isinstance(n, ast.Return)] if function is not None else []
    if len(returned) != 1 or returned[0].value is None:
        raise refused
    names = {t.id for t in statement.targets if isinstance(t, ast.Name)} if isinstance(statement, ast.Assign) and statement.value is made else set[str]()
    uses = [n for n in ast.walk(returned[0].value) if n is made or isinstance(n, ast.Name) and n.id in names]
    if len(uses) != 1:
        raise refused
    around = tree.parents[uses[0]]
    if isinstance(around, ast.Dict):
        if entry(around, ("scheduler",)) is uses[0]:
            given = entry(around, ("interval",))
            return tree.replace(given, '"step"') if given is not None else _more(tree, uses[0])
        if entry(around, ("lr_scheduler",)) is not uses[0]:
            raise refused
    elif not (isinstance(around, ast.List) and isinstance(tree.parents[around], ast.Tuple) and tree.parents[around].elts[-1] is around):  # type: ignore[attr-defined]
        raise refused
    return tree.replace(uses[0], f'{{"scheduler": {tree.source(uses[0])}, "interval": "step"}}')


def _more(tree: Tree, value: ast.AST) -> Edit:
    """One more entry of a dictionary, behind a value."""
    here = tree.span(value)
    return Edit(Span(here.file, here.end_line or here.line, here.end_column or 1, here.end_line, here.end_column), ', "interval": "step"')


def plateau_mode(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The mode of a ReduceLROnPlateau."""
    tree = context.tree_of(prescription.span)
    call, mode = tree.call(prescription.span), f'"{prescription.arguments["mode"]}"'
    if tree.source(call.func).rpartition(".")[2] != "ReduceLROnPlateau" or any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        raise TreatmentRefused(f"it can't be told where the scheduler gets its mode; it should be {mode}")
    given = argument(call, "mode", 1)
    if given is None:
        return [tree.keyword(call, f"mode={mode}")]
    if not isinstance(given, ast.Constant):
        raise TreatmentRefused(f"set {tree.source(given)} to {mode}")
    return [tree.replace(given, mode)]


def relative_schedule(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The function of a LambdaLR, which returns a rate, divided by the optimizer's rate."""
    tree = context.tree_of(prescription.span)
    call, rate = tree.call(prescription.span), f"{float(prescription.arguments['lr']):g}"
    given = argument(call, "lr_lambda", 1)
    if tree.source(call.func).rpartition(".")[2] != "LambdaLR" or given is None or isinstance(given, (ast.List, ast.ListComp)):
        raise TreatmentRefused(f"what the schedule multiplies the rate by can't be told; it must be relative to the optimizer's {rate}")
    if isinstance(given, ast.Lambda):
        return [tree.replace(given.body, f"({tree.source(given.body)}) / {rate}")]
    if not isinstance(given, (ast.Name, ast.Attribute)):
        raise TreatmentRefused(f"{tree.source(given)} returns a rate; let it return what the optimizer's {rate} is multiplied by")
    return [tree.replace(given, f"lambda step: {tree.source(given)}(step) / {rate}")]


def shorten_warmup(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """A smaller number of steps where that of the warm-up stands."""
    tree = context.tree_of(prescription.span)
    longer = float(prescription.arguments["longer"])
    places = [n for n in dict.fromkeys(_lengths(tree)) if (found := literal(n)) is not None and found > longer]
    if len(places) != 1:
        raise TreatmentRefused(f"it can't be told where the length of the warm-up is given; the run has {longer:.0f} steps")
    return [tree.replace(places[0], f"{prescription.arguments['steps']}")]


def _lengths(tree: Tree) -> Iterator[ast.expr]:
    """What is given for names that speak of a warm-up."""
    names = {n for n in _names(tree) if WARM.search(n)}
    for name in sorted(names):
        yield from definitions(tree, name)
    for node in ast.walk(tree.root):
        if isinstance(node, ast.FunctionDef):
            yield from (value for a in [*node.args.args, *node.args.kwonlyargs] if a.arg in names for value in given_for(tree, node, a.arg))
        elif isinstance(node, ast.Call):
            ramp = tree.source(node.func).rpartition(".")[2] in RAMPS
            yield from (k.value for k in node.keywords if k.arg in names or ramp and k.arg == "total_iters")
        elif isinstance(node, ast.Dict):
            yield from (v for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant) and k.value in names)


def _names(tree: Tree) -> Iterator[str]:
    for node in ast.walk(tree.root):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg is not None:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.lstrip("-").replace("-", "_")


PLANNERS = {"step-schedule-per-epoch": step_per_epoch, "step-schedule-per-batch": step_per_batch, "plateau-mode": plateau_mode,
            "shorten-warmup": shorten_warmup, "relative-schedule": relative_schedule}
