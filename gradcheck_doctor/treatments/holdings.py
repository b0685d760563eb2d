"""Cures in what the optimizer holds: missing parameters, pretrained bodies, a scaled loss."""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.calls import argument, methods, owner
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.groups import rest_as_group
from gradcheck_doctor.treatments.places import is_module
from gradcheck_doctor.treatments.settings import optimizer
from gradcheck_doctor.treatments.tree import Tree


def _parts(modules: tuple[str, ...]) -> list[str]:
    """Module paths below the model itself: a second model of a script has its own name in front."""
    return [re.sub(r"^[A-Za-z_]\w*_\d+\.", "", m) for m in modules if m]


def _owner(tree: Tree, made: ast.Call) -> tuple[ast.expr, str]:
    """(first argument, model) of SGD(model.head.parameters()): the name that the attributes hang on."""
    first, model = argument(made, "params", 0), owner(made)
    if first is None or model is None:
        raise TreatmentRefused("the optimizer is not built from MODEL.parameters(); add the missing parameters to what it gets")
    while isinstance(model, (ast.Attribute, ast.Subscript)):
        model = model.value
    return first, tree.source(model)


def add_parameters(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The optimizer gets the whole model, or a second model as well; one that chose its parameters too early is built later; a layer that replaces
    another after the optimizer was built gets a group of its own."""
    tree, made = optimizer(context, prescription)
    built = list(context.optimizer_calls(tree))
    several = _partial(tree, [n for n in built if owner(n) is not None], prescription.modules)
    if len(several) > 1:
        return several
    made = _of_the_model(tree, built, finding) or made
    late = _late_layer(tree, made, finding) or _late_for_an_instance(tree, made, finding)
    moved = _moved(tree, made, late is not None)
    if moved:
        return moved
    if owner(made) is None:
        return rest_as_group(tree, made, late[0] if late is not None else None)
    first, root = _owner(tree, made)
    if late is not None:
        statement, target, name = late
        return [tree.after(statement, [f'{name}.add_param_group({{"params": {target}.parameters()}})'])]
    if tree.source(first) != f"{root}.parameters()":
        return [tree.replace(first, f"{root}.parameters()")]
    other = _second_model(tree, made, root, prescription.modules)
    if other is not None:
        return [tree.replace(first, f"[*{root}.parameters(), *{other}.parameters()]")]
    missing = prescription.modules[0] if prescription.modules else "them"
    raise TreatmentRefused(f"{root}.parameters() does not yield {missing}: if it is part of another model, write "
                           f"[*{root}.parameters(), *OTHER.parameters()]; if of this one, keep it as an attribute or in an nn.ModuleList")


def remake_optimizer(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The optimizer, and the schedule on it, are made once more behind the statement that replaces the model they were made for."""
    tree, made = optimizer(context, prescription)
    statement, root = tree.statement(made), _owner(tree, made)[1]
    later = [n for n in ast.walk(tree.function(made) or tree.root) if isinstance(n, ast.Assign) and n.lineno > statement.lineno
             and tree.function(n) is tree.function(made)]
    replaced = [n for n in later if [tree.source(t) for t in n.targets] == [root]]
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1 or len(replaced) != 1:
        raise TreatmentRefused(f"make the optimizer behind the statement that makes the {root} that is trained")
    name = tree.source(statement.targets[0])
    schedules = [n for n in later if n.lineno < replaced[0].lineno and isinstance(n.value, ast.Call) and n.value.args and tree.source(n.value.args[0]) == name]
    return [tree.after(replaced[0], [line for n in (statement, *schedules) for line in tree.source(n).splitlines()])]


def _partial(tree: Tree, built: list[ast.Call], modules: tuple[str, ...]) -> list[Edit]:
    """The optimizers of several models, each of which holds a part of its model only, get all of it: G.head.parameters() becomes G.parameters()."""
    classes = {re.sub(r"_\d+$", "", m.partition(".")[0]) for m in modules}
    found = []
    for made in built:
        first, root = _owner(tree, made)
        named = {name for name, value in _assigned(tree, made) if _class(tree, value) in classes}
        if root in named and tree.source(first) != f"{root}.parameters()":
            found.append(tree.replace(first, f"{root}.parameters()"))
    return found if len(classes) > 1 else []


def _of_the_model(tree: Tree, built: list[ast.Call], finding: Finding) -> ast.Call | None:
    """The last optimizer in front of the line MODEL.part = ... that the finding points at, and of that very model."""
    try:
        statement = tree.statement(tree.call(finding.location))
    except TreatmentRefused:
        return None
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    if not isinstance(target, ast.Attribute):
        return None
    root = tree.source(target).partition(".")[0]
    return next((made for made in reversed(built) if made.lineno < statement.lineno and tree.function(made) is tree.function(statement)
                 and any(isinstance(n, ast.Name) and n.id == root for n in ast.walk(made))), None)


def _second_model(tree: Tree, made: ast.Call, root: str, modules: tuple[str, ...]) -> str | None:
    """The name of the one other model of the class that the modules' paths begin with, known where the optimizer is built."""
    classes = {re.sub(r"_\d+$", "", m.partition(".")[0]) for m in modules}
    names = [name for name, value in _assigned(tree, made) if is_module(tree, value) and _class(tree, value) in classes]
    others = [n for n in dict.fromkeys(names) if n != root]
    return others[0] if len(classes) == 1 and len(others) == 1 else None


def _assigned(tree: Tree, made: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """Names and what they are given, in front of `made` in its function, a = x and a, b = x, y."""
    for node in ast.walk(tree.function(made) or tree.root):
        if isinstance(node, ast.Assign) and node.lineno < made.lineno and tree.function(node) is tree.function(made):
            target, value = node.targets[0], node.value
            pairs = zip(target.elts, value.elts, strict=False) if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) else [(target, value)]
            yield from ((tree.source(t), v) for t, v in pairs if isinstance(t, (ast.Name, ast.Attribute)))


def _class(tree: Tree, node: ast.expr) -> str:
    """Net of models.Net(3).to(device)."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call):
        node = node.func.value
    return tree.source(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""


def _moved(tree: Tree, made: ast.Call, late: bool) -> list[Edit]:
    """An optimizer that picks the parameters that require a gradient, or makes groups before a layer is replaced (`late`), is built behind the last
    line, before it is used, that changes what it gets."""
    statement, first = tree.statement(made), made.args[0] if made.args else None
    picks = "requires_grad" in (tree.source(first) if first is not None else "") or late and owner(made) is None
    if not isinstance(statement, ast.Assign) or not picks:
        return []
    chosen = {n.id for n in ast.walk(first) if isinstance(n, ast.Name)} if first is not None else set()
    block = tree.among(statement)
    name, last = tree.source(statement.targets[0]), None
    for later in block[block.index(statement) + 1:]:
        if any(isinstance(n, (ast.Name, ast.Attribute)) and tree.source(n) == name for n in ast.walk(later)):
            break
        if any(_changes(tree, n, chosen) for n in ast.walk(later)):
            last = later
    here, lines = tree.span(statement), [line.removeprefix(tree.indent(statement)) for line in tree.source(statement).splitlines()]
    end = here.end_line or here.line
    alone = not tree.lines[here.line - 1][: here.column - 1].strip() and not tree.lines[end - 1][(here.end_column or 1) - 1:].strip()
    if last is None or not alone:
        return []
    return [replace(tree.replace(statement, ""), span=Span(tree.file, here.line, 1, end + 1, 1)), tree.after(last, lines)]


def _changes(tree: Tree, node: ast.AST, chosen: set[str]) -> bool:
    """MODEL.part = ..., p.requires_grad = True, p.requires_grad_(True)."""
    if isinstance(node, ast.Assign):
        target = node.targets[0]
        return isinstance(target, ast.Attribute) and (target.attr == "requires_grad" or tree.source(target).partition(".")[0] in chosen)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "requires_grad_"


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


def _late_for_an_instance(tree: Tree, made: ast.Call, finding: Finding) -> tuple[ast.stmt, str, str] | None:
    """The same where the optimizer is self.opt of an object that the block of the late layer made before: trainer.opt."""
    first, home = tree.statement(made), next((n for n in tree.up(made) if isinstance(n, ast.ClassDef)), None)
    try:
        late = tree.statement(tree.call(finding.location))
    except TreatmentRefused:
        return None
    held = first.targets[0] if isinstance(first, ast.Assign) else None
    if home is None or not isinstance(held, ast.Attribute) or tree.source(held.value) != "self" or not isinstance(late, ast.Assign):
        return None
    target = tree.source(late.targets[0])
    makers = [n for n in ast.walk(tree.root) if isinstance(n, ast.Assign) and n.lineno < late.lineno and tree.function(n) is tree.function(late)
              and isinstance(n.value, ast.Call) and tree.source(n.value.func).rpartition(".")[2] == home.name]
    given = [n for n in makers if any(tree.source(a) == target.partition(".")[0] for a in ast.walk(n.value) if isinstance(a, ast.Name))]
    return (late, target, f"{tree.source(given[0].targets[0])}.{held.attr}") if len(given) == 1 and "." in target else None


def freeze_backbone(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """requires_grad_(False) for the pretrained part, in front of the optimizer."""
    tree, made = optimizer(context, prescription)
    _, root = _owner(tree, made)
    parts = [p.split(".")[0] for p in _parts(prescription.modules)]
    if not parts or not all(p.isidentifier() for p in parts):
        raise TreatmentRefused("the pretrained part is no attribute of the model; call requires_grad_(False) on it before the optimizer is built")
    return [tree.before(tree.statement(made), [f"{root}.{part}.requires_grad_(False)" for part in dict.fromkeys(parts)])]


def unfreeze(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """`requires_grad = False` becomes True where it stands."""
    tree = context.tree_of(prescription.span)
    for node in ast.walk(tree.root):
        if isinstance(node, (ast.Assign, ast.Call)) and tree.span(node) == prescription.span:
            return [tree.replace(node.value if isinstance(node, ast.Assign) else node.args[0], "True")]
    raise TreatmentRefused("the line that freezes was not found; leave requires_grad as it is for what was not loaded")


def grad_scaler(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """GradScaler around backward and step."""
    tree = context.tree()
    made = context.optimizer_call(tree)
    backwards, steps = list(methods(tree.root, "backward")), [n for n in methods(tree.root, "step") if not n.args]
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


PLANNERS = {"add-parameters": add_parameters, "remake-optimizer": remake_optimizer,
            "freeze-backbone": freeze_backbone, "unfreeze": unfreeze, "grad-scaler": grad_scaler}
