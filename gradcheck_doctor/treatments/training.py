"""Cures in the training loop: step, zero_grad, clipping, freezing."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.treatments.calls import argument, method, methods, owner
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.modes import model_name
from gradcheck_doctor.treatments.numbers import constant
from gradcheck_doctor.treatments.settings import arguments_of, given_in, is_own, own_update
from gradcheck_doctor.treatments.tree import Tree


def call_step(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """`optimizer.step` gets its brackets; where no step is named, one is taken behind the only backward."""
    tree = context.tree_of(prescription.span)
    if prescription.span is not None:
        return [tree.replace(named := tree.expression(prescription.span), f"{tree.source(named)}()")]
    made, backwards = tree.statement(context.optimizer_call(tree)), list(methods(tree.root, "backward"))
    if len(backwards) != 1 or not isinstance(made, ast.Assign) or tree.function(made) is not tree.function(backwards[0]):
        raise TreatmentRefused("it can't be told where the optimizer is to step; call its step() behind backward()")
    return [tree.after(tree.statement(backwards[0]), [f"{tree.source(made.targets[0])}.step()"])]


def zero_grad(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """optimizer.zero_grad() in front of the backward that belongs to the step, in the closure where the step has one."""
    own = own_update(context, prescription.span)
    if own is not None:
        tree, backwards = own[0], list(methods(own[0].root, "backward"))
        if len(backwards) != 1:
            raise TreatmentRefused("there is more than one backward(); set the gradients to zero in front of each")
        name = model_name(tree, tree.function(backwards[0]) or tree.root)
        return [tree.before(tree.statement(backwards[0]), [f"{name}.zero_grad()"])]
    tree, step = _step(context, prescription)
    edits = [_zeroed(tree, step)]
    if prescription.arguments.get("several"):
        here, done = tree.function(step) or tree.root, {_receiver(tree, step)}
        for other in methods(here, "step"):
            if (receiver := _receiver(tree, other)) not in done and f"{receiver}.zero_grad" not in tree.source(here):
                done.add(receiver)
                edits.append(_zeroed(tree, other))
    return edits


def _zeroed(tree: Tree, step: ast.Call) -> Edit:
    """zero_grad() of a step's optimizer in front of the backward that belongs to it: the last one before the step."""
    receiver = _receiver(tree, step)
    home = _closure(tree, step)
    block = home.body if home is not None else tree.among(tree.statement(step))
    if any(tree.source(n.func) == f"{receiver}.zero_grad" for s in block for n in ast.walk(s) if isinstance(n, ast.Call) and isinstance(s, ast.Expr)):
        raise TreatmentRefused(f"{receiver}.zero_grad() stands beside the step already; call it in front of backward()")
    backwards = [s for s in block if method(s, "backward", "manual_backward")]
    first = next((s for s in reversed(backwards) if home is None and s.lineno <= step.lineno and not _between(tree, block, s, step)), None)
    if backwards:
        return tree.before(first or backwards[0], [f"{receiver}.zero_grad()"])
    raise TreatmentRefused(f"no backward() in the block of {receiver}.step(); call {receiver}.zero_grad() before it")


def _between(tree: Tree, block: list[ast.stmt], backward: ast.stmt, step: ast.Call) -> bool:
    """The backward before this one belongs to the same step: no other step stands between them."""
    before = [s for s in block if s.lineno < backward.lineno]
    last = next((s for s in reversed(before) if method(s, "backward", "manual_backward") or method(s, "step")), None)
    return last is not None and method(last, "step") is None


def _closure(tree: Tree, step: ast.Call) -> ast.FunctionDef | None:
    """The function that is given to opt.step(closure)."""
    name = step.args[0].id if step.args and isinstance(step.args[0], ast.Name) else ""
    return next((n for n in ast.walk(tree.root) if isinstance(n, ast.FunctionDef) and n.name == name), None)


def _receiver(tree: Tree, step: ast.Call) -> str:
    """The optimizer of opt.step(), and of scaler.step(opt)."""
    owner = tree.source(step.func.value)                                                 # type: ignore[attr-defined]
    scaled = _scaler(tree, step)
    return scaled or owner


def _scaler(tree: Tree, step: ast.Call) -> str:
    """The optimizer that a GradScaler steps, empty without one."""
    first = step.args[0] if step.args else None
    if isinstance(first, (ast.Name, ast.Attribute)) and _closure(tree, step) is None:
        return tree.source(first)
    return ""


def _step(context: Context, prescription: Prescription) -> tuple[Tree, ast.Call]:
    """optimizer.step() where it was seen, else the only one of the optimizer that the file constructs."""
    if prescription.span is not None:
        tree = context.tree(prescription.span.file)
        node = tree.call(prescription.span)
    else:
        tree = context.tree()
        made = tree.statement(context.optimizer_call(tree))
        names = [tree.source(t) for t in made.targets] if isinstance(made, ast.Assign) else []
        steps = [n for n in methods(tree.root, "step")
                 if tree.source(n.func.value) in names or n.args and tree.source(n.args[0]) in names]          # type: ignore[attr-defined]
        if len(steps) != 1:
            raise TreatmentRefused("it can't be told which step() is meant")
        node = steps[0]
    if not isinstance(node.func, ast.Attribute) or node.func.attr != "step":
        raise TreatmentRefused("optimizer.step() is not called in this file")
    return tree, node


def clip_by_norm(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """clip_grad_norm_ in front of the step; gradient_clip_val of a Lightning Trainer, max_grad_norm of Hugging Face's."""
    value = f"{float(prescription.arguments.get('max_norm', 1.0)):g}"
    value = value if "." in value else f"{value}.0"
    tree = context.tree()
    hugging = arguments_of(tree)
    if hugging is not None:
        given = given_in(tree, hugging, ("max_grad_norm",))
        if given is None:
            raise TreatmentRefused("TrainingArguments clips at max_grad_norm=1.0 unless told otherwise; give a smaller one there")
        return [constant(tree, given, value)]
    trainers = _trainers(tree)
    if trainers:
        return _trainer(tree, trainers[-1], value)
    tree, step = _step(context, prescription)
    receiver, statement = _receiver(tree, step), tree.statement(step)
    if _closure(tree, step) is not None:
        raise TreatmentRefused(f"{receiver}.step takes a closure; clip behind backward() in it")
    here = tree.function(step) or tree.root
    if any("clip_grad_norm_" in tree.source(n.func) and tree.function(n) is tree.function(step) for n in ast.walk(here) if isinstance(n, ast.Call)):
        raise TreatmentRefused("clip_grad_norm_ is called there already; look at its limit and its place between backward() and step()")
    unscale = [f"{tree.source(step.func.value)}.unscale_({receiver})"] if _scaler(tree, step) and ".unscale_(" not in tree.text else []   # type: ignore[attr-defined]
    return [tree.before(statement, [*unscale, f"{tree.nn()}utils.clip_grad_norm_({_parameters(context, tree, step, receiver)}, {value})"])]


def _trainers(tree: Tree) -> list[ast.Call]:
    """Constructions of Lightning's Trainer; a class of that name in the file is the user's own."""
    own = any(isinstance(n, ast.ClassDef) and n.name == "Trainer" for n in ast.walk(tree.root))
    return [] if own else [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.source(n.func).rpartition(".")[2] == "Trainer"]


def _trainer(tree: Tree, node: ast.Call, value: str) -> list[Edit]:
    """Clipping by norm in a Lightning Trainer."""
    algorithm = argument(node, "gradient_clip_algorithm")
    given = given_in(tree, node, ("gradient_clip_val",))
    by_value = isinstance(algorithm, ast.Constant) and algorithm.value == "value"
    edits = [tree.replace(algorithm, '"norm"')] if by_value and algorithm is not None else []
    return [*edits, constant(tree, given, value) if given is not None else tree.keyword(node, f"gradient_clip_val={value}")]


def _parameters(context: Context, tree: Tree, step: ast.Call, receiver: str) -> str:
    """`model.parameters()` where that name is known at the step, else what the optimizer holds."""
    try:
        made = context.optimizer_call(tree)
    except TreatmentRefused:
        made = None
    if made is not None and isinstance(model := owner(made), ast.Name) and tree.function(made) is tree.function(step):
        return f"{model.id}.parameters()"
    return f'[p for group in {receiver}.param_groups for p in group["params"]]'


def clip_value_to_norm(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """clip_grad_value_(p, v) becomes clip_grad_norm_(p, 1.0); the same in a Lightning Trainer."""
    tree = context.tree(prescription.span.file if prescription.span is not None and is_own(context, prescription.span) else None)
    calls = [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.source(n.func).endswith("clip_grad_value_")]
    trainers = [n for n in _trainers(tree) if isinstance(a := argument(n, "gradient_clip_algorithm"), ast.Constant) and a.value == "value"]
    if trainers and not calls:
        return _trainer(tree, trainers[-1], "1.0")
    if not calls:
        raise TreatmentRefused("clip_grad_value_ is not called in this file; clip by norm where it is")
    edits = []
    for node in calls:
        if argument(node, "clip_value", 1) is None or not node.args:
            raise TreatmentRefused("the clip value is not given in the call; write clip_grad_norm_(parameters, 1.0) there")
        name = tree.source(node.func).replace("clip_grad_value_", "clip_grad_norm_")
        edits.append(tree.replace(node, f"{name}({tree.source(node.args[0])}, 1.0)"))
    for statement in ast.walk(tree.root):
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


PLANNERS = {"call-step": call_step, "zero-grad": zero_grad, "clip-by-norm": clip_by_norm,
            "clip-value-to-norm": clip_value_to_norm, "freeze": freeze, "eval-batchnorm": eval_batchnorm}
