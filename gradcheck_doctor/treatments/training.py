"""Cures in the training loop: learning rate, epsilon, zero_grad, clipping, freezing, registering, precision."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.context import Context, constant
from gradcheck_doctor.treatments.tree import Tree


def optimizer(context: Context, prescription: Prescription) -> tuple[Tree, ast.Call]:
    """The optimizer's constructor: where it was seen, else the last one in the file."""
    span = prescription.span
    tree = context.tree(span.file if span is not None else None)
    try:
        node = tree.call(span)
    except TreatmentRefused:
        node = context.optimizer_call(tree)
    if any(k.arg in ("lr", "eps") for k in node.keywords) or "parameters" in tree.source(node):
        return tree, node
    return tree, context.optimizer_call(tree)


def _argument(node: ast.Call, name: str, position: int | None = None) -> ast.expr | None:
    found = next((k.value for k in node.keywords if k.arg == name), None)
    if found is None and position is not None and len(node.args) > position:
        found = node.args[position]
    return found


def learning_rate(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Write the new rate where the old one stands."""
    tree, node = optimizer(context, prescription)
    value = f"{float(prescription.arguments['lr']):g}"
    given = _argument(node, "lr", 1)
    if given is None:
        return [Edit(_before_end(tree, node), f", lr={value}")]
    return [constant(tree, given, value)]


def _before_end(tree: Tree, node: ast.Call) -> Span:
    whole = tree.span(node)
    column = (whole.end_column or 1) - 1
    return Span(whole.file, whole.end_line or whole.line, column, whole.end_line, column)


def adam_epsilon(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Adam's default epsilon."""
    tree, node = optimizer(context, prescription)
    given = _argument(node, "eps")
    if given is None:
        raise TreatmentRefused("eps is not given where the optimizer is constructed")
    return [constant(tree, given, "1e-8")]


def zero_grad(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """optimizer.zero_grad() in front of the backward that belongs to the step."""
    tree, step = _step(context, prescription)
    receiver = tree.source(step.func.value)  # type: ignore[attr-defined]
    block = _block(tree, tree.statement(step))
    for statement in block:
        if any(isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "backward" for n in ast.walk(statement)):
            return [tree.before(statement, [f"{receiver}.zero_grad()"])]
    raise TreatmentRefused(f"no backward() in the block of {receiver}.step(); call {receiver}.zero_grad() before it")


def _step(context: Context, prescription: Prescription) -> tuple[Tree, ast.Call]:
    tree = context.tree(prescription.span.file if prescription.span is not None else None)
    node = tree.call(prescription.span)
    if not isinstance(node.func, ast.Attribute) or node.func.attr != "step":
        raise TreatmentRefused("optimizer.step() is not called in this file")
    return tree, node


def _block(tree: Tree, statement: ast.stmt) -> list[ast.stmt]:
    """The list of statements that contains `statement`."""
    parent = tree.parents[statement]
    for name in ("body", "orelse", "finalbody"):
        block = getattr(parent, name, [])
        if statement in block:
            return list(block)
    raise TreatmentRefused("the statement stands in no block")


def clip_by_norm(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """clip_grad_norm_ in front of the step; gradient_clip_val of a Trainer."""
    value = f"{float(prescription.arguments.get('max_norm', 1.0)):g}"
    value = value if "." in value else f"{value}.0"
    tree = context.tree()
    trainers = [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.source(n.func).rpartition(".")[2] == "Trainer"]
    if trainers:
        given = _argument(trainers[-1], "gradient_clip_val")
        if given is not None:
            return [constant(tree, given, value)]
        return [tree.keyword(trainers[-1], f"gradient_clip_val={value}")]
    tree, step = _step(context, prescription)
    receiver = tree.source(step.func.value)  # type: ignore[attr-defined]
    return [tree.before(tree.statement(step), [f"torch.nn.utils.clip_grad_norm_({_parameters(context, tree, step, receiver)}, {value})"])]


def _parameters(context: Context, tree: Tree, step: ast.Call, receiver: str) -> str:
    """`model.parameters()` where that name is known at the step, else what the optimizer holds."""
    try:
        made = context.optimizer_call(tree)
    except TreatmentRefused:
        made = None
    first = made.args[0] if made is not None and made.args else None
    if (first is not None and isinstance(first, ast.Call) and tree.source(first).endswith(".parameters()") and made is not None
            and tree.function(made) is tree.function(step) and isinstance(first.func, ast.Attribute) and isinstance(first.func.value, ast.Name)):
        return tree.source(first)
    return f'[p for group in {receiver}.param_groups for p in group["params"]]'


def clip_value_to_norm(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """clip_grad_value_(p, v) becomes clip_grad_norm_(p, 1.0)."""
    tree = context.tree(prescription.span.file if prescription.span is not None else None)
    calls = [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.source(n.func).endswith("clip_grad_value_")]
    if not calls:
        raise TreatmentRefused("clip_grad_value_ is not called in this file")
    edits = []
    for node in calls:
        limit = _argument(node, "clip_value", 1)
        if limit is None:
            raise TreatmentRefused("the clip value is not given in the call")
        name = tree.source(node.func).replace("clip_grad_value_", "clip_grad_norm_")
        edits.append(tree.replace(node, f"{name}({tree.source(node.args[0])}, 1.0)"))
    for statement in tree.root.body:
        if isinstance(statement, ast.ImportFrom) and any(a.name == "clip_grad_value_" for a in statement.names):
            edits.append(tree.replace(statement, tree.source(statement).replace("clip_grad_value_", "clip_grad_norm_")))
    return edits


def freeze(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """`module.requires_grad = False` becomes `module.requires_grad_(False)`."""
    tree = context.tree()
    name = prescription.modules[0].rpartition(".")[2]
    edits = []
    for node in ast.walk(tree.root):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Attribute) and node.targets[0].attr == "requires_grad":
            owner = tree.source(node.targets[0].value)
            if owner.rpartition(".")[2] == name:
                edits.append(tree.replace(node, f"{owner}.requires_grad_({tree.source(node.value)})"))
    if not edits:
        raise TreatmentRefused(f"no assignment to {name}.requires_grad was found; call {name}.requires_grad_(False)")
    return edits


def register_modules(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """A plain list of layers becomes an nn.ModuleList."""
    if finding.location is None:
        raise TreatmentRefused("it is not known where the layers were built")
    tree = context.tree(finding.location.file)
    node: ast.AST = tree.call(finding.location)
    for around in tree.up(node):
        if isinstance(around, (ast.List, ast.ListComp)) and isinstance(tree.parents[around], ast.Assign):
            return [tree.replace(around, f"{tree.nn()}ModuleList({tree.source(around)})")]
    raise TreatmentRefused("the layers are not in a list literal; keep them in an nn.ModuleList")


def autocast_bf16(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """float16 in autocast becomes bfloat16."""
    tree = context.tree()
    edits = [tree.replace(n, "torch.bfloat16") for n in ast.walk(tree.root)
             if isinstance(n, ast.Attribute) and tree.source(n) in ("torch.float16", "torch.half") and _in_autocast(tree, n)]
    if not edits:
        raise TreatmentRefused("torch.float16 does not stand in an autocast call")
    return edits


def _in_autocast(tree: Tree, node: ast.AST) -> bool:
    return any(isinstance(n, ast.Call) and "autocast" in tree.source(n.func) for n in tree.up(node))


def eval_batchnorm(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """eval() for the frozen part behind the last train()."""
    tree = context.tree()
    part = prescription.modules[0].split(".")[0]
    calls = [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "train" and not n.args]
    if not calls:
        raise TreatmentRefused(f"train() is not called in this file; call {part}.eval() after it")
    last = max(calls, key=lambda n: n.lineno)
    owner = tree.source(last.func.value)  # type: ignore[attr-defined]
    return [tree.after(tree.statement(last), [f"{owner}.{part}.eval()"])]


PLANNERS = {"learning-rate": learning_rate, "adam-epsilon": adam_epsilon, "zero-grad": zero_grad, "clip-by-norm": clip_by_norm,
            "clip-value-to-norm": clip_value_to_norm, "freeze": freeze, "register-modules": register_modules, "autocast-bf16": autocast_bf16,
            "eval-batchnorm": eval_batchnorm}
