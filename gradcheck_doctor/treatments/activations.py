"""Cures at an activation: another one, as module or function, none at all, or one that was forgotten."""
from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import replace

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, LayerRow, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.calls import argument
from gradcheck_doctor.treatments.choices import Choice, changed, choice, function, origin
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.flows import origins
from gradcheck_doctor.treatments.initialise import initialise
from gradcheck_doctor.treatments.last_activation import only_last
from gradcheck_doctor.treatments.losses import probabilities_wanted, renamed, replace_loss
from gradcheck_doctor.treatments.tree import Tree

CLASS = {"relu": "ReLU", "leaky_relu": "LeakyReLU", "elu": "ELU", "selu": "SELU", "gelu": "GELU", "prelu": "PReLU", "rrelu": "RReLU", "silu": "SiLU",
         "sigmoid": "Sigmoid", "tanh": "Tanh"}
PLAIN = ("relu", "selu", "sigmoid", "tanh")                       # functions of torch itself
INPLACE = ("relu", "leaky_relu", "elu", "selu", "rrelu", "silu")
ALSO = {"relu": ("clamp", "clamp_min"), "hardtanh": ("clamp",)}     # other ways to write an operation
FAMILY = {"selu": "lecun normal"}                                 # what self-normalises only with its own initialisation
POWERS = ("square", "pow")                                        # what is often an operator: x * x, x ** 2
LAYERS = ("linear", "conv1d", "conv2d", "conv3d")


def is_constructor(tree: Tree, node: ast.Call) -> bool:
    """nn.ReLU() rather than F.relu(x): class names start with a capital."""
    return tree.source(node.func).rpartition(".")[2][:1].isupper()


def replace_activation(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Another activation in place of each expression that built or called the old one; the weights in front follow where it needs them to."""
    to, old = str(prescription.arguments.get("to", "relu")), finding.op
    if to not in CLASS:
        raise TreatmentRefused(f"no source form of {to} is known; write it in place of the {old or 'activation'}")
    slope = float(prescription.arguments.get("slope") or (0.01 if to == "leaky_relu" else 0.0))
    edits: list[Edit] = []
    rows = [r for r in context.rows(finding.modules or prescription.modules) if r.location is not None and (not old or r.op == old)]
    if prescription.span is not None and _own(context, rows, prescription.span, old):
        rows = [replace(rows[0], location=prescription.span) if rows else LayerRow(finding.module, old, 0, True, prescription.span)]
    for row in rows:
        assert row.location is not None
        tree = context.tree(row.location.file)
        power = tree.find(row.location, ast.BinOp) if row.op in POWERS else None
        if isinstance(power, ast.BinOp):
            edits += _written_out(tree, power, to, slope)
            continue
        node = tree.call(row.location)
        edits += exchanged(tree, node, to, slope) if _builds(tree, node, row.op) else _function(tree, node, row.op, to, slope)
    if not edits:
        raise TreatmentRefused("the expression that makes the activation was not found")
    return list(dict.fromkeys([*edits, *_weights(context, finding, rows, to, str(prescription.arguments.get("scheme") or FAMILY.get(to, "")))]))


def _own(context: Context, rows: list[LayerRow], span: Span, op: str) -> bool:
    """The operation stands at `span`, in the forward of a class of the user's: its rows show where that was built, if they are shown at all."""
    tree = context.tree(span.file)
    written, call = op in POWERS and tree.find(span, ast.BinOp) is not None, tree.find(span, ast.Call)
    called = isinstance(call, ast.Call) and bool(op) and bool(call.args) and _applies(tree, call, op)
    return (written or called) and all(r.location != span for r in rows)


def _builds(tree: Tree, node: ast.Call, op: str) -> bool:
    """The call constructs a module; a class, a variable that holds one, or an entry of a table."""
    return is_constructor(tree, node) or not node.args and not _applies(tree, node, op) or isinstance(node.func, ast.Subscript) or (
        isinstance(node.func, ast.Call) and tree.source(node.func.func) == "getattr")


def _applies(tree: Tree, node: ast.Call, op: str) -> bool:
    """The call is the operation itself: F.relu(x), x.relu(), x.clamp(min=0); not a module whose forward does it."""
    name = tree.source(node.func).rpartition(".")[2].rstrip("_")
    return not op or name == op or name in ALSO.get(op, ())


def exchanged(tree: Tree, node: ast.Call, to: str, slope: float) -> list[Edit]:
    found = choice(tree, node)
    if found is not None:
        return [changed(tree, found, CLASS[to])]
    given = origin(tree, node)
    if given is not None:
        return [tree.replace(given, tree.nn() + CLASS[to])]
    inplace = [tree.source(k) for k in node.keywords if k.arg == "inplace" and to in INPLACE]
    arguments = ", ".join([f"{slope:g}"] * (to == "leaky_relu") + inplace)
    return [tree.replace(node, f"{tree.nn()}{CLASS[to]}({arguments})")]


def _function(tree: Tree, node: ast.Call, op: str, to: str, slope: float) -> list[Edit]:
    chosen = function(tree, node)
    if isinstance(chosen, Choice):
        try:
            return [changed(tree, chosen, to, CLASS[to])]
        except TreatmentRefused:
            if not _applies(tree, node, op):
                raise
    if not _applies(tree, node, op):
        if isinstance(chosen, ast.expr) and tree.source(chosen).rpartition(".")[2] == op and to in (*PLAIN, *INPLACE, "gelu"):
            return [tree.replace(chosen, (tree.torch() if to in PLAIN else tree.functional()) + to)]
        raise TreatmentRefused(f"the {op} happens inside {tree.source(node)!r}; exchange it in that module")
    operand = _operand(tree, node)
    if to == "prelu":
        return _learnable(tree, node, operand)
    if to == "rrelu" and not any(isinstance(n, ast.ClassDef) for n in tree.up(node)):
        raise TreatmentRefused(f"write {tree.functional()}rrelu({operand}, training=...) there, True while it trains")
    extra = {"leaky_relu": f", {slope:g}", "rrelu": ", training=self.training"}.get(to, "")
    owner = tree.source(node.func.value) + "." if isinstance(node.func, ast.Attribute) and not _is_value(tree, node.func.value) else ""
    if to not in PLAIN:
        owner = owner if owner == tree.functional() else tree.functional()
    elif not owner:
        owner = tree.functional() if "torch" not in tree.imported and "torch.nn.functional" in tree.imported else tree.torch()
    return [tree.replace(node, f"{owner}{to}({operand}{extra})")]


def _written_out(tree: Tree, node: ast.BinOp, to: str, slope: float) -> list[Edit]:
    """x * x or x ** 2."""
    if to not in PLAIN and to != "leaky_relu":
        raise TreatmentRefused(f"write {tree.nn()}{CLASS[to]} in place of {tree.source(node)!r}")
    name = f"{tree.functional()}leaky_relu({tree.source(node.left)}, {slope:g})" if to == "leaky_relu" else f"{tree.torch()}{to}({tree.source(node.left)})"
    return [tree.replace(node, name)]


def _learnable(tree: Tree, node: ast.Call, operand: str) -> list[Edit]:
    """PReLU has a parameter: the module is made in __init__."""
    owner = next((n for n in tree.up(node) if isinstance(n, ast.ClassDef)), None)
    made = next((n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None) if owner is not None else None
    if made is None or "self.prelu" in tree.text:
        raise TreatmentRefused("PReLU has a parameter: make an nn.PReLU() in __init__ of the module and call it there")
    return [tree.after(made.body[-1], [f"self.prelu = {tree.nn()}PReLU()"]), tree.replace(node, f"self.prelu({operand})")]


def _weights(context: Context, finding: Finding, rows: Iterable[LayerRow], to: str, scheme: str) -> list[Edit]:
    """The initialisation of the layers in front, where the new activation comes with one."""
    if not scheme:
        return []
    starts = {r.order for r in rows}
    feeders = [max((f for f in context.layers if f.op in LAYERS and f.order < start), key=lambda f: f.order, default=None) for start in starts]
    modules = tuple(dict.fromkeys(f.module for f in feeders if f is not None))
    wanted = Prescription("initialise", "", modules=modules, arguments={"scheme": scheme})
    try:
        return initialise(context, replace(finding, location=None), wanted) if modules else []
    except TreatmentRefused as error:
        if to in FAMILY:
            raise TreatmentRefused(f"{CLASS[to]} needs {scheme} weights as well: {error}") from error
        return []


def _operand(tree: Tree, node: ast.Call) -> str:
    """x of F.relu(x) or of x.relu()."""
    if node.args and not (isinstance(node.func, ast.Attribute) and _is_value(tree, node.func.value)):
        return tree.source(node.args[0])
    given = argument(node, "input")
    if given is not None:
        return tree.source(given)
    if isinstance(node.func, ast.Attribute) and _is_value(tree, node.func.value):
        return tree.source(node.func.value)
    raise TreatmentRefused("the operand of the call was not found")


def _is_value(tree: Tree, node: ast.expr) -> bool:
    """A tensor rather than a module of functions."""
    text = tree.source(node)
    return text not in tree.imported.values() and text not in ("torch", "F", "nn.functional", "torch.nn.functional", "functional", "torch.special") and (
        not text.endswith(".functional"))


def remove_call(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Take an activation out: from a Sequential, from an attribute (nn.Identity), from an expression.

    In front of a loss it can be the loss that has to change: where the file reads the outputs as probabilities, they stay probabilities.
    """
    spans = [prescription.span] if prescription.span is not None else context.built(prescription.modules)
    edits: list[Edit] = []
    for span in spans:
        op = str(prescription.arguments.get("op") or finding.evidence.get("outer") or next((r.op for r in context.layers if r.location == span), ""))
        tree = context.tree(span.file)
        node = tree.call(span)
        often = prescription.treatment == "remove-output-activation" and sum(r.location == span and r.op == op for r in context.layers) > 1
        spared = only_last(tree, node, _builds(tree, node, op)) if often and choice(tree, node) is None else []
        edits += spared or _probabilities(tree, node, op, finding) or _removed(tree, node, op)
    if not edits:
        raise TreatmentRefused("the expression was not found")
    return list(dict.fromkeys(edits))


def score_loss(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """A loss that takes raw scores, by its name, and the activation in front of it goes."""
    op = str(prescription.arguments["activation"])
    made = [r.location for r in context.rows(prescription.modules) if r.op == op and r.location is not None]
    if not made:
        raise TreatmentRefused(f"the {op} in front of the loss was not found; give {prescription.arguments['to']} what goes into it")
    return [*replace_loss(context, finding, prescription), *remove_call(context, finding, replace(prescription, span=made[-1], arguments={"op": op}))]


def _removed(tree: Tree, node: ast.Call, op: str) -> list[Edit]:
    if not _builds(tree, node, op):
        if not _applies(tree, node, op):
            raise TreatmentRefused(f"the {op} happens inside {tree.source(node)!r}; take it out there")
        return [tree.replace(node, _operand(tree, node))]
    if choice(tree, node) is not None:
        raise TreatmentRefused("a setting chooses the activation; take it out where it is chosen")
    given = [n for n in origins(tree, node.func) if n is not node.func and tree.source(n).rpartition(".")[2] == CLASS.get(op)]
    if len(given) == 1:                                                 # final=nn.Sigmoid of one call, where another hands over something else
        return [tree.replace(given[0], f"{tree.nn()}Identity")]
    return [_without_element(tree, node) or tree.replace(node, f"{tree.nn()}Identity()")]


def _probabilities(tree: Tree, node: ast.Call, op: str, finding: Finding) -> list[Edit]:
    """Sigmoid for a softmax over one unit, BCELoss for BCEWithLogitsLoss behind a sigmoid; only where probabilities are read."""
    loss = str(finding.evidence.get("loss", ""))
    if finding.rule == "single-unit-softmax":
        if probabilities_wanted(tree, node) and renamed(tree, {"BCELoss": "", "binary_cross_entropy": ""}):
            return exchanged(tree, node, "sigmoid", 0.0) if _builds(tree, node, op) else _function(tree, node, op, "sigmoid", 0.0)
        return [*_removed(tree, node, op), *renamed(tree, {"BCELoss": "BCEWithLogitsLoss", "binary_cross_entropy": "binary_cross_entropy_with_logits"})]
    if op == "sigmoid" and loss == "binary_cross_entropy_with_logits" and probabilities_wanted(tree, node):
        return renamed(tree, {"BCEWithLogitsLoss": "BCELoss", "binary_cross_entropy_with_logits": "binary_cross_entropy"})
    return []


def _without_element(tree: Tree, node: ast.Call) -> Edit | None:
    """Remove an element of a call's arguments or of a list, with the comma in front of it."""
    siblings = tree.siblings(node)
    place = siblings.index(node) if node in siblings else 0
    if place == 0:
        return None
    end, here = tree.span(siblings[place - 1]), tree.span(node)
    return Edit(Span(here.file, end.end_line or end.line, end.end_column or 1, here.end_line, here.end_column), "")


def straight_through(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """round(z) passes the gradient as if it were not there: z + (round(z) - z).detach()."""
    if prescription.span is None:
        raise TreatmentRefused("the call was not found")
    tree = context.tree(prescription.span.file)
    node = tree.call(prescription.span)
    operand = _operand(tree, node)
    if operand.isidentifier():
        return [tree.replace(node, f"({operand} + ({tree.source(node)} - {operand}).detach())")]
    statement, name = tree.statement(node), _free_name(tree, node)
    if name is None or not isinstance(statement, (ast.Assign, ast.Return, ast.Expr)) or not _always_runs(tree, node, statement):
        raise TreatmentRefused(f"give {operand!r} a name first, then write z + ({prescription.arguments.get('op')}(z) - z).detach()")
    given = [tree.source(a) for a in node.args if tree.source(a) != operand] + [tree.source(k) for k in node.keywords if k.arg != "input"]
    of_value = isinstance(node.func, ast.Attribute) and _is_value(tree, node.func.value)
    call = f"{name}.{node.func.attr}({', '.join(given)})" if of_value else f"{tree.source(node.func)}({', '.join([name, *given])})"  # type: ignore[attr-defined]
    return [tree.before(statement, [f"{name} = {operand.strip('()') if _wrapped_once(operand) else operand}"]),
            tree.replace(node, f"({name} + ({call} - {name}).detach())")]


def _wrapped_once(text: str) -> bool:
    """One pair of parentheses around a whole without any others."""
    return text.startswith("(") and text.endswith(")") and text.count("(") == text.count(")") == 1


def _free_name(tree: Tree, node: ast.AST) -> str | None:
    """A name for a value before it is made discrete that the file does not use yet."""
    used = {n.id for n in ast.walk(tree.root) if isinstance(n, ast.Name)} | {n.arg for n in ast.walk(tree.root) if isinstance(n, ast.arg)}
    return next((name for name in ("soft", "continuous", "before_rounding") if name not in used), None) if tree.function(node) is not None else None


def _always_runs(tree: Tree, node: ast.AST, statement: ast.stmt) -> bool:
    """Nothing between the statement and the expression decides whether, or how often, it is computed."""
    deciding = (ast.Lambda, ast.IfExp, ast.BoolOp, ast.comprehension, ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)
    for around in tree.up(node):
        if around is statement:
            return True
        if isinstance(around, deciding):
            return False
    return False


PLANNERS = {"replace-activation": replace_activation, "remove-output-activation": remove_call, "remove-activation": remove_call,
            "score-loss": score_loss,
            "straight-through": straight_through}
