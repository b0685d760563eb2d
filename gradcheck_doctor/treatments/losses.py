"""Cures where the loss is computed: the right loss by name, its mean, matching shapes, an output on the targets' scale."""
from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.calls import argument
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.outputs import scaled_head
from gradcheck_doctor.treatments.tree import Tree

NAMES = {"cross_entropy": {"NLLLoss": "CrossEntropyLoss", "nll_loss": "cross_entropy", "MSELoss": "CrossEntropyLoss", "mse_loss": "cross_entropy",
                           "L1Loss": "CrossEntropyLoss", "l1_loss": "cross_entropy"},
         "binary_cross_entropy_with_logits": {"BCELoss": "BCEWithLogitsLoss", "binary_cross_entropy": "binary_cross_entropy_with_logits",
                                              "CrossEntropyLoss": "BCEWithLogitsLoss"}}


def replace_loss(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The right loss by its name, class or function; class numbers instead of what was made of them."""
    tree = context.tree_of(prescription.span)
    edits = renamed(tree, NAMES.get(str(prescription.arguments.get("to")), {}), prescription.span)
    if not edits:
        raise TreatmentRefused(f"the loss is not named in this file; use {prescription.arguments.get('to')} where it is made")
    return edits + (_class_numbers(tree, prescription) if finding.evidence.get("wrong") else [])


def renamed(tree: Tree, names: Mapping[str, str], span: Span | None = None) -> list[Edit]:
    """Every use of these names by their new ones, imports too; where `span` calls one loss of several, only what makes that one."""
    found: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree.root):
        if isinstance(node, (ast.Attribute, ast.Name)) and not isinstance(tree.parents.get(node), ast.Attribute):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in names:
                found.append((node, name))
    made = _makers(tree, span)
    mine = [(n, name) for n, name in found if any(n is m or m in tree.up(n) for m in made)]
    edits = []
    for node, name in mine or found:
        whole = tree.source(node)
        edits.append(tree.replace(node, whole[: len(whole) - len(name)] + names[name]))
    bare = {name for n, name in mine or found if isinstance(n, ast.Name)}
    kept = {name for n, name in found if isinstance(n, ast.Name) and (n, name) not in (mine or found)}
    return edits + [e for name in sorted(bare) for e in _imported(tree, name, names[name], name in kept)]


def _makers(tree: Tree, span: Span | None) -> list[ast.AST]:
    """The call at `span` itself, and the assignments of what it calls."""
    try:
        call = tree.call(span)
    except TreatmentRefused:
        return []
    called = tree.source(call.func).rpartition(".")[2]
    made = [n for n in ast.walk(tree.root) if isinstance(n, (ast.Assign, ast.AnnAssign))
            and any(tree.source(t).rpartition(".")[2] == called for t in (n.targets if isinstance(n, ast.Assign) else [n.target]))]
    return [call.func, *made]


def _imported(tree: Tree, name: str, new: str, keep: bool) -> list[Edit]:
    """`from torch.nn import MSELoss` names the new loss."""
    for node in ast.walk(tree.root):
        if isinstance(node, ast.ImportFrom):
            aliases = {a.name for a in node.names}
            for alias in node.names:
                if alias.name == name and alias.asname is None and not (keep and new in aliases):
                    return [tree.replace(alias, f"{name}, {new}" if keep else new)] if new not in aliases else []
    return []


def probabilities_wanted(tree: Tree, made: ast.expr) -> bool:
    """Somewhere the outputs are read as probabilities, compared with 0.5 or rounded, without another sigmoid than `made` in between; or differences are
    taken where no gradient is wanted, as of a picture and its reconstruction."""
    for node in ast.walk(tree.root):
        if isinstance(node, (ast.FunctionDef, ast.With)) and _compares(tree, node):
            return True
        if isinstance(node, ast.Compare) and any(isinstance(c, ast.Constant) and c.value == 0.5 for c in node.comparators):
            read = node.left
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("round", "round_"):
            module = isinstance(node.func.value, ast.Name) and node.func.value.id in tree.imported.values()          # torch.round(x)
            read = node.args[0] if module and node.args else node.func.value
        else:
            continue
        if not _squashed(tree, read, made):
            return True
    return False


def _compares(tree: Tree, block: ast.FunctionDef | ast.With) -> bool:
    """A block without gradients, or the function it is in, squares a difference of a model's output, and squashes nothing."""
    switches = [i.context_expr for i in block.items] if isinstance(block, ast.With) else block.decorator_list
    if not any(word in tree.source(s) for s in switches for word in ("no_grad", "inference_mode")):
        return False
    home = tree.function(block) if isinstance(block, ast.With) else block
    inside = list(ast.walk(home or block))
    called = {t.id for n in ast.walk(block) if isinstance(n, ast.Assign) and isinstance(n.value, ast.Call) for t in n.targets if isinstance(t, ast.Name)}
    squared = [n.left for n in inside if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Pow)]
    different = any(isinstance(n, ast.Name) and n.id in called for s in squared if isinstance(s, ast.BinOp) and isinstance(s.op, ast.Sub) for n in ast.walk(s))
    return different and not any(word in tree.source(home or block) for word in ("sigmoid(", "softmax(", "expit("))


def _squashed(tree: Tree, node: ast.expr, made: ast.expr) -> bool:
    """The value comes out of a sigmoid or softmax that stands where it is read, or where the name it is read from is assigned."""
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    given = [n.value for n in ast.walk(tree.function(node) or tree.root)
             if isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id in names for t in n.targets)]
    return any(word in tree.source(value) for value in (node, *given) if all(n is not made for n in ast.walk(value)) for word in ("sigmoid(", "softmax(", "expit("))


def _class_numbers(tree: Tree, prescription: Prescription) -> list[Edit]:
    """y[i].float().unsqueeze(1).expand_as(out) as target becomes y[i]."""
    call = tree.call(prescription.span)
    target = argument(call, "target", 1)
    current, peeled = target, []
    while (isinstance(current, ast.Call) and isinstance(current.func, ast.Attribute)
           and current.func.attr in ("float", "unsqueeze", "expand", "expand_as", "repeat", "to", "view", "reshape", "double")):
        peeled.append(current.func.attr)
        current = current.func.value
    if target is None or current is None or "float" not in peeled:
        raise TreatmentRefused("cross_entropy needs the class numbers as targets (dtype long); give them where the loss is called")
    return [tree.replace(target, tree.source(current))]


def loss_option(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """An option of the loss, True or False, where the loss is built or called as a function."""
    tree, name, value = context.tree_of(prescription.span), str(prescription.arguments["name"]), str(bool(prescription.arguments["value"]))
    edits = []
    for node in ast.walk(tree.root):
        if isinstance(node, ast.Call) and tree.source(node.func).rpartition(".")[2] in prescription.arguments["losses"]:
            given = next((k.value for k in node.keywords if k.arg == name), None)
            edits.append(tree.keyword(node, f"{name}={value}") if given is None else tree.replace(given, value))
    if not edits:
        raise TreatmentRefused(f"the loss is not named in this file; set {name}={value} where it is made")
    return edits


def mean_reduction(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """reduction="mean" in place of "sum"."""
    tree = context.tree_of(prescription.span)
    edits = [tree.replace(k.value, '"mean"') for n in ast.walk(tree.root) if isinstance(n, ast.Call) for k in n.keywords
             if k.arg == "reduction" and isinstance(k.value, ast.Constant) and k.value.value == "sum"]
    if not edits:
        raise TreatmentRefused('reduction="sum" does not stand in this file')
    return edits


def match_shapes(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The target takes the prediction's shape: target.view_as(prediction), or without a name for that an axis of length 1 more or less."""
    tree = context.tree_of(prescription.span)
    node = tree.expression(prescription.span)
    pair = [node.left, node.right] if isinstance(node, ast.BinOp) else node.args[:2] if isinstance(node, ast.Call) else []
    if len(pair) < 2:
        raise TreatmentRefused("prediction and target are not written side by side here; give the target the prediction's shape where they are")
    prediction, target = pair
    shaped = f"view_as({tree.source(prediction)})" if isinstance(prediction, ast.Name) else f"{prescription.arguments.get('target', 'squeeze')}(-1)"
    return [tree.replace(target, f"{tree.operand(target)}.{shaped}")]


def scale_output(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """What forward returns is multiplied by the targets' standard deviation and moved to their mean; without one such forward the last layer starts there."""
    tree = context.tree()
    forwards = [n for n in ast.walk(tree.root) if isinstance(n, ast.FunctionDef) and n.name == "forward"]
    ends = [n for f in forwards for n in ast.walk(f) if isinstance(n, ast.Return) and n.value is not None]
    if len(forwards) != 1 or len(ends) != 1 or isinstance(ends[0].value, (ast.Tuple, ast.Dict)):
        return scaled_head(context, prescription)
    value = ends[0].value
    assert value is not None
    mean, std = float(prescription.arguments["mean"]), float(prescription.arguments["std"])
    shift = "" if abs(mean) < 0.05 * std else f" {'+' if mean > 0 else '-'} {abs(mean):.4g}"
    return [tree.replace(value, f"{tree.operand(value)} * {std:.4g}{shift}")]


def negate_loss(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """A minus in front of the expression that makes the loss."""
    tree = context.tree_of(prescription.span)
    node = tree.expression(prescription.span)
    if not isinstance(node, (ast.Call, ast.Name, ast.Attribute, ast.Subscript)):
        raise TreatmentRefused("the loss is more than one call here; minimise its negative")
    return [tree.replace(node, f"-{tree.source(node)}")]


def minimise_loss(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The loss without the minus sign in front of it."""
    tree = context.tree_of(prescription.span)
    node = tree.expression(prescription.span)
    if not isinstance(node, ast.UnaryOp) or not isinstance(node.op, ast.USub):
        raise TreatmentRefused("no minus sign stands where the loss is made; minimise the loss itself")
    here = tree.span(node)
    if _in_brackets(tree, node, here):
        here = replace(here, column=(here.column or 1) - 1, end_column=(here.end_column or 1) + 1)
    return [Edit(here, tree.source(node.operand))]


def _in_brackets(tree: Tree, node: ast.UnaryOp, here: Span) -> bool:
    """(-loss).backward(): without its minus the name needs no brackets."""
    before, after = tree.lines[here.line - 1][: (here.column or 1) - 1], tree.lines[(here.end_line or here.line) - 1][(here.end_column or 1) - 1:]
    return (isinstance(tree.parents.get(node), ast.Attribute) and isinstance(node.operand, (ast.Name, ast.Attribute, ast.Call))
            and before.endswith("(") and after.startswith(")"))


def divide_loss(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """loss.backward() of each of the batches of a step becomes (loss / 16).backward()."""
    tree = context.tree_of(prescription.span)
    call, batches = tree.call(prescription.span), int(prescription.arguments["by"])
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("backward", "manual_backward"):
        raise TreatmentRefused(f"the call of backward could not be found; divide the loss by {batches} there")
    loss = call.func.value if call.func.attr == "backward" and not call.args else call.args[0] if call.args else None
    if loss is None:
        raise TreatmentRefused(f"what goes into {tree.source(call)} could not be found; divide it by {batches}")
    divided = f"{tree.operand(loss)} / {batches}"
    bare = loss is call.func.value and divided.startswith(tree.source(loss))              # (a + b).backward() has its brackets already
    return [tree.replace(loss, f"({divided})" if bare else divided)]


PLANNERS = {"loss-option": loss_option, "divide-loss": divide_loss, "minimise-loss": minimise_loss, "negate-loss": negate_loss, "replace-loss": replace_loss,
            "mean-reduction": mean_reduction, "match-shapes": match_shapes, "scale-output": scale_output}
