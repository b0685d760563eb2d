"""Settings of the optimizer: learning rate and its schedule's peak, momentum, weight decay, epsilon, edited where their values come from."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.by_gradient import given_names, of_gradient
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.calls import argument, entry
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.flows import calls_of, field, origins
from gradcheck_doctor.treatments.numbers import constant, literal, number, scaled, seen
from gradcheck_doctor.treatments.tree import Tree

PEAKS = {"OneCycleLR": 1, "CyclicLR": 2}          # schedulers of torch that are given the largest rate, and at which place


def optimizer(context: Context, prescription: Prescription) -> tuple[Tree, ast.Call]:
    """The optimizer's constructor where it was seen, TrainingArguments where a Trainer makes it, else the last optimizer in the file."""
    span = prescription.span
    tree = context.tree(span.file if span is not None and is_own(context, span) else None)
    try:
        node = tree.call(span)
    except TreatmentRefused:
        return tree, arguments_of(tree) or context.optimizer_call(tree)
    if any(k.arg in ("lr", "eps") for k in node.keywords) or "parameters" in tree.source(node):
        return tree, node
    return tree, arguments_of(tree) or context.optimizer_call(tree)


def is_own(context: Context, span: Span) -> bool:
    """The span lies in the user's code, not in a library that made the optimizer for it."""
    return "site-packages" not in span.file or "site-packages" in context.file


def arguments_of(tree: Tree) -> ast.Call | None:
    """The construction of Hugging Face's TrainingArguments."""
    return next((n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.source(n.func).rpartition(".")[2].endswith("TrainingArguments")), None)


def given_in(tree: Tree, node: ast.Call, names: tuple[str, ...], position: int | None = None) -> ast.expr | None:
    """An argument of a call, also out of a dictionary that is spread into it, or of the functools.partial that is called."""
    for name in names:
        found = argument(node, name, position)
        if found is not None:
            return found
    for spread in (k.value for k in node.keywords if k.arg is None):
        tables = origins(tree, spread)
        if len(tables) == 1 and (found := entry(tables[0], names)) is not None:
            return found
        passed = [k.value for call in _spread_from(tree, spread) for k in call.keywords if k.arg in names] or _fields(tree, spread, names)
        if len(passed) == 1:
            return passed[0]
        raise TreatmentRefused(f"{names[0]} comes with {tree.source(spread)!r}; set it there")
    made = origins(tree, node.func)
    if len(made) == 1 and isinstance(made[0], ast.Call) and tree.source(made[0].func).rpartition(".")[2] == "partial":
        return given_in(tree, made[0], names)
    return None


def _fields(tree: Tree, spread: ast.expr, names: tuple[str, ...]) -> list[ast.expr]:
    """Where the attributes get their values of which `vars(cfg)`, `asdict(cfg)` or `cfg.__dict__` makes keywords."""
    made = isinstance(spread, ast.Call) and len(spread.args) == 1 and tree.source(spread.func).rpartition(".")[2] in ("vars", "asdict")
    if not made and not (isinstance(spread, ast.Attribute) and spread.attr == "__dict__"):
        return []
    return [value for name in names for value in field(tree, name)]


def _spread_from(tree: Tree, spread: ast.expr) -> list[ast.Call]:
    """The calls of a function whose `**kwargs` is spread again."""
    function = tree.function(spread)
    if function is None or function.args.kwarg is None or tree.source(spread) != function.args.kwarg.arg:
        return []
    return calls_of(tree, function)


def own_update(context: Context, span: Span | None) -> tuple[Tree, ast.stmt] | None:
    """The statement at `span` by which a loop changes its weights itself; None where an optimizer was made or stepped there."""
    if span is None:
        return None
    tree = context.tree_of(span)
    found = tree.find(span, ast.stmt)
    return (tree, found) if found is not None and of_gradient(found, _given(tree, found)) else None


def _given(tree: Tree, node: ast.AST) -> frozenset[str]:
    """Names of gradients where `node` stands."""
    return given_names(ast.walk(tree.function(node) or tree.root))


def _own_rate(tree: Tree, update: ast.stmt) -> ast.expr:
    """LR of `p -= LR * p.grad` and of `p.add_(p.grad, alpha=-LR)`."""
    given = _given(tree, update)
    for node in ast.walk(update):
        if isinstance(node, ast.Call) and (alpha := argument(node, "alpha")) is not None:
            return alpha.operand if isinstance(alpha, ast.UnaryOp) else alpha
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and of_gradient(node.left, given) != of_gradient(node.right, given):
            return node.left if of_gradient(node.right, given) else node.right
    raise TreatmentRefused(f"the learning rate can't be read from {tree.source(update)!r}")


def learning_rate(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Write the new rate where the old one stands."""
    value = number(float(prescription.arguments["lr"]))
    own = own_update(context, prescription.span)
    if own is not None:
        return [constant(own[0], _own_rate(*own), value, prescription.arguments.get("old"))]
    tree, node = optimizer(context, prescription)
    hugging = tree.source(node.func).endswith("TrainingArguments")
    given = given_in(tree, node, ("learning_rate",) if hugging else ("lr",), None if hugging else 1)
    old = prescription.arguments.get("old")
    if old is not None:
        found = _peaks(tree, value, old) if prescription.arguments.get("peak") else _set_later(tree, given, value, old)
        if found:
            return found
    if given is None:
        return [tree.keyword(node, f"learning_rate={value}" if hugging else f"lr={value}")]
    if prescription.arguments.get("peak") and old is not None:
        return [scaled(tree, given, float(prescription.arguments["lr"]) / old)]      # the schedule multiplies it
    return [constant(tree, given, value, old)]


def _peaks(tree: Tree, value: str, old: float) -> list[Edit]:
    """The largest rate that a scheduler is given."""
    calls = [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.source(n.func).rpartition(".")[2] in PEAKS]
    given = [g for n in calls if (g := argument(n, "max_lr", PEAKS[tree.source(n.func).rpartition(".")[2]])) is not None]
    return [constant(tree, given[0], value, old)] if len(given) == 1 else []


def _set_later(tree: Tree, given: ast.expr | None, value: str, old: float) -> list[Edit]:
    """group["lr"] = ... in a loop over the parameter groups, where what the optimizer was built with is another rate."""
    if given is not None and seen(tree, given, old):
        return []
    later = [n for n in ast.walk(tree.root) if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Subscript)
             and isinstance(n.targets[0].slice, ast.Constant) and n.targets[0].slice.value == "lr"]
    if len(later) != 1:
        return []
    places = seen(tree, later[0].value, old)
    if len(places) == 1:
        return [tree.replace(places[0], value)]
    if literal(later[0].value) is not None:
        return []
    return [tree.replace(later[0].value, f"{number(float(value) / old)} * {tree.operand(later[0].value)}")]


def setting(context: Context, prescription: Prescription, value: float, *names: str) -> list[Edit]:
    """Another value of an optimizer's setting where the old one stands; the first name is torch's."""
    tree, node = optimizer(context, prescription)
    given, old = given_in(tree, node, names), prescription.arguments.get("old")
    if given is not None:
        return [constant(tree, given, number(value), old)]
    edits = [constant(tree, v, number(value), old) for v in _of_groups(tree, names) if old is not None and seen(tree, v, old)]
    if not edits:
        raise TreatmentRefused(f"{names[0]} is given neither where the optimizer is constructed nor in its parameter groups")
    return list(dict.fromkeys(edits))


def _of_groups(tree: Tree, names: tuple[str, ...]) -> list[ast.expr]:
    """What dictionaries with "params" say about a setting."""
    tables = [n for n in ast.walk(tree.root) if isinstance(n, ast.Dict) and entry(n, ("params",)) is not None]
    return [found for table in tables if (found := entry(table, names)) is not None]


def momentum(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Another momentum."""
    return setting(context, prescription, float(prescription.arguments["momentum"]), "momentum")


def weight_decay(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """A smaller weight decay."""
    return setting(context, prescription, float(prescription.arguments["weight_decay"]), "weight_decay")


def adam_epsilon(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Adam's default epsilon."""
    return setting(context, prescription, 1e-8, "eps", "adam_epsilon")


PLANNERS = {"learning-rate": learning_rate, "momentum": momentum, "weight-decay": weight_decay, "adam-epsilon": adam_epsilon}
