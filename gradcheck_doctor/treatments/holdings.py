"""Cures in what the optimizer holds and how much it decays it: missing parameters, pretrained bodies, weight decay, a scaled loss."""
from __future__ import annotations

import ast
import re

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.numbers import constant, number
from gradcheck_doctor.treatments.training import given_in, optimizer
from gradcheck_doctor.treatments.tree import Tree


def _parts(modules: tuple[str, ...]) -> list[str]:
    """Module paths below the model itself: a second model of a script has its own name in front."""
    return [re.sub(r"^[A-Za-z_]\w*_\d+\.", "", m) for m in modules if m]


def attribute(path: str) -> str:
    """Source for a module path: body.0.linear -> .body[0].linear."""
    return "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in path.split(".") if p)


def _owner(tree: Tree, made: ast.Call) -> tuple[ast.expr, str]:
    """(first argument, model) of SGD(model.head.parameters()): the name that the attributes hang on."""
    first = made.args[0] if made.args else next((k.value for k in made.keywords if k.arg == "params"), None)
    if not isinstance(first, ast.Call) or not isinstance(first.func, ast.Attribute) or first.func.attr != "parameters":
        raise TreatmentRefused("the optimizer is not built from MODEL.parameters(); add the missing parameters to what it gets")
    owner: ast.expr = first.func.value
    while isinstance(owner, (ast.Attribute, ast.Subscript)):
        owner = owner.value
    return first, tree.source(owner)


def add_parameters(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The optimizer gets the whole model; a layer that replaces another after the optimizer was built gets a group of its own."""
    tree, made = optimizer(context, prescription)
    first, root = _owner(tree, made)
    late = _late_layer(tree, made, finding)
    if late is not None:
        statement, target, name = late
        return [tree.after(statement, [f'{name}.add_param_group({{"params": {target}.parameters()}})'])]
    if tree.source(first) == f"{root}.parameters()":
        raise TreatmentRefused(f"{root}.parameters() does not yield them: register the layers as attributes of the model, or in an nn.ModuleList")
    return [tree.replace(first, f"{root}.parameters()")]


def _late_layer(tree: Tree, made: ast.Call, finding: Finding) -> tuple[ast.stmt, str, str] | None:
    """(statement that assigns the layer, its target, the optimizer's name) when it comes after the optimizer in the same block of code."""
    if finding.location is None or finding.location.line <= made.lineno:
        return None
    try:
        node = tree.call(finding.location)
    except TreatmentRefused:
        return None
    statement, first = tree.statement(node), tree.statement(made)
    if tree.function(node) is not tree.function(made) or not isinstance(statement, ast.Assign) or not isinstance(first, ast.Assign):
        return None
    return statement, tree.source(statement.targets[0]), tree.source(first.targets[0])


def freeze_backbone(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """requires_grad_(False) for the pretrained part, in front of the optimizer."""
    tree, made = optimizer(context, prescription)
    _, root = _owner(tree, made)
    parts = [p.split(".")[0] for p in _parts(prescription.modules)]
    if not parts or not all(p.isidentifier() for p in parts):
        raise TreatmentRefused("the pretrained part is no attribute of the model; call requires_grad_(False) on it before the optimizer is built")
    return [tree.before(tree.statement(made), [f"{root}.{part}.requires_grad_(False)" for part in dict.fromkeys(parts)])]


def weight_decay(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """A smaller weight decay where the old one stands."""
    tree, made = optimizer(context, prescription)
    given = given_in(tree, made, ("weight_decay",))
    if given is None:
        raise TreatmentRefused("weight_decay is not given where the optimizer is constructed")
    return [constant(tree, given, number(float(prescription.arguments["weight_decay"])), prescription.arguments.get("old"))]


def grad_scaler(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """GradScaler around backward and step."""
    tree = context.tree()
    made = context.optimizer_call(tree)
    backwards = [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "backward"]
    steps = [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "step" and not n.args]
    target = tree.statement(made)
    if len(backwards) != 1 or not isinstance(target, ast.Assign) or len(target.targets) != 1:
        raise TreatmentRefused("there is more than one backward(); scale each loss with torch.amp.GradScaler")
    name = tree.source(target.targets[0])
    step = next((s for s in steps if tree.source(s.func.value) == name), None)   # type: ignore[attr-defined]
    if step is None or not tree.function(step) is tree.function(made) is tree.function(backwards[0]):
        raise TreatmentRefused("backward, step and the optimizer stand in different functions; scale the loss with torch.amp.GradScaler")
    loss = tree.source(backwards[0].func.value)                                         # type: ignore[attr-defined]
    clips = [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and "clip_grad_" in tree.source(n.func)]
    edits = [tree.after(target, ['scaler = torch.amp.GradScaler("cuda" if torch.cuda.is_available() else "cpu")']),
             tree.replace(backwards[0], f"scaler.scale({loss}).backward()"), tree.replace(step, f"scaler.step({name})"),
             tree.after(tree.statement(step), ["scaler.update()"])]
    return edits + [tree.before(tree.statement(c), [f"scaler.unscale_({name})"]) for c in clips[:1]]


PLANNERS = {"add-parameters": add_parameters, "freeze-backbone": freeze_backbone, "weight-decay": weight_decay, "grad-scaler": grad_scaler}
