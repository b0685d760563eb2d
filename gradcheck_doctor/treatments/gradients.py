"""Gradients that are let through: without detach, without no_grad, cleared before backward and not behind it."""
from __future__ import annotations

import ast
import re

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.calls import method
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.flows import origins
from gradcheck_doctor.treatments.numbers import literal
from gradcheck_doctor.treatments.tree import Tree

_DETACH = re.compile(r"\s*\.\s*detach\s*\(\s*\)$")


def remove_detach(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """h.detach() and h.data become h."""
    tree = context.tree_of(prescription.span)
    if prescription.arguments.get("by") == "data":
        taken = _data_of(tree, tree.expression(prescription.span))
        if taken is None:
            raise TreatmentRefused(".data is not taken there; take it off where the value loses its gradient")
        return [tree.replace(taken, tree.source(taken.value))]
    node = tree.call(prescription.span)
    text = tree.source(node)
    if _DETACH.search(text):
        return [tree.replace(node, _DETACH.sub("", text))]
    if tree.source(node.func) == f"{tree.torch()}detach" and len(node.args) == 1 and not node.keywords:
        return [tree.replace(node, f"({tree.source(node.args[0])})" if isinstance(node.args[0], (ast.BinOp, ast.UnaryOp)) else tree.source(node.args[0]))]
    raise TreatmentRefused("detach() is not called there; take it off where the value loses its gradient")


def drop_factor(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """h * 1e-5 and h / 1e5 become h."""
    tree = context.tree_of(prescription.span)
    node, factor = tree.expression(prescription.span), float(prescription.arguments["factor"])
    sides = [node.left, node.right] if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div)) else []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("mul", "div") and len(node.args) == 1:
        sides = [node.func.value, node.args[0]]
    elif isinstance(node, ast.Call) and tree.source(node.func) in (f"{tree.torch()}mul", f"{tree.torch()}div") and len(node.args) == 2:
        sides = list(node.args)
    numbers = [side for side in sides if any((value := literal(n)) is not None and abs(value - factor) <= 1e-6 * abs(factor) for n in origins(tree, side))]
    if len(sides) != 2 or len(numbers) != 1:
        raise TreatmentRefused(f"the factor {factor:g} could not be found there; leave it out")
    kept = next(side for side in sides if side is not numbers[0])
    bare = isinstance(kept, (ast.Name, ast.Attribute, ast.Call, ast.Subscript)) or isinstance(tree.parents[node], (ast.Assign, ast.Return))
    return [tree.replace(node, tree.source(kept) if bare else f"({tree.source(kept)})")]


def _data_of(tree: Tree, value: ast.expr) -> ast.Attribute | None:
    """`.data` of an expression, or of the name that is given to it, where that is done once in the function."""
    around = tree.parents.get(value)
    for node in (value, around):
        if isinstance(node, ast.Attribute) and node.attr == "data":
            return node
    if not isinstance(around, ast.Assign) or len(around.targets) != 1 or not isinstance(around.targets[0], ast.Name):
        return None
    name, scope = around.targets[0].id, tree.function(value) or tree.root
    uses = [n for n in ast.walk(scope) if isinstance(n, ast.Attribute) and n.attr == "data" and isinstance(n.value, ast.Name) and n.value.id == name
            and isinstance(n.ctx, ast.Load)]
    return uses[0] if len(uses) == 1 else None


def leave_no_grad(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """`with torch.no_grad():` goes and its block moves one level out; a decorator's line goes."""
    tree = context.tree_of(prescription.span)
    switch = tree.expression(prescription.span)
    if "set_grad_enabled" in tree.source(switch):
        raise TreatmentRefused(f"{tree.source(switch)} depends on a condition; let it be True while these layers are to be trained")
    parent = tree.parents[switch]
    if isinstance(parent, ast.FunctionDef):
        return [Edit(Span(tree.file, switch.lineno, 1, (switch.end_lineno or switch.lineno) + 1, 1), "")]
    block = tree.statement(switch)
    if not isinstance(block, ast.With):
        raise TreatmentRefused("no `with` block and no decorator was found; take the layers out of no_grad by hand")
    others = [tree.source(i.context_expr) + (f" as {tree.source(i.optional_vars)}" if i.optional_vars else "")
              for i in block.items if i.context_expr is not switch]
    if others:
        first, last = tree.span(block.items[0].context_expr), tree.span(block.items[-1].optional_vars or block.items[-1].context_expr)
        return [Edit(Span(tree.file, first.line, first.column, last.end_line, last.end_column), ", ".join(others))]
    return [_dedented(tree, block)]


def _dedented(tree: Tree, block: ast.With) -> Edit:
    """The lines of the block without its head, one level further out."""
    first, last = block.body[0].lineno, block.end_lineno or block.lineno
    long = any(isinstance(n, (ast.Constant, ast.JoinedStr)) and n.end_lineno != n.lineno for n in ast.walk(block))
    if first == block.lineno or long or tree.lines[block.lineno - 1][: tree.span(block).column - 1].strip():
        raise TreatmentRefused("the block does not stand on plain lines of its own; take it out of no_grad by hand")
    inner, outer = tree.indent(block.body[0]), tree.indent(block)
    rows = tree.lines[block.items[0].context_expr.end_lineno or block.lineno: last]     # comments in front of the first statement, too
    return Edit(Span(tree.file, block.lineno, 1, last + 1, 1) if last < len(tree.lines) else Span(tree.file, block.lineno, 1, last, len(tree.lines[-1]) + 1),
                "".join(outer + row.removeprefix(inner) if row.startswith(inner) else row for row in rows))


def move_zero_grad(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """zero_grad() in front of the backward before it; where both stand apart, as with accumulation, behind the step."""
    tree = context.tree_of(prescription.span)
    call = tree.call(prescription.span)
    statement = tree.statement(call)
    block = tree.among(statement)
    if not isinstance(statement, ast.Expr) or statement.value is not call or len(block) < 2:
        raise TreatmentRefused("zero_grad() does not stand on its own; call it in front of backward() and nowhere behind it")
    place = block.index(statement)
    backward = next((s for s in reversed(block[:place]) if method(s, "backward", "manual_backward")), None)
    step = next((s for s in block[place:] if method(s, "step")), None)
    if backward is not None:
        return [_without(tree, block, place), tree.before(backward, [tree.source(statement)])]
    if step is not None:
        return [_without(tree, block, place), tree.after(step, [tree.source(statement)])]
    raise TreatmentRefused("neither backward() nor step() stands beside zero_grad(); call it in front of backward()")


def _without(tree: Tree, block: list[ast.stmt], place: int) -> Edit:
    """Take a statement out: its line, or what it has of a line that others share."""
    here = tree.span(block[place])
    end = here.end_line or here.line
    before, after = tree.lines[here.line - 1][: here.column - 1].strip(), tree.lines[end - 1][(here.end_column or 1) - 1:].strip()
    if not before and (not after or after.startswith("#")) and end < len(tree.lines):
        return Edit(Span(tree.file, here.line, 1, end + 1, 1), "")
    following = tree.span(block[place + 1]) if place + 1 < len(block) else None
    if following is not None and following.line == end:
        return Edit(Span(tree.file, here.line, here.column, following.line, following.column), "")
    previous = tree.span(block[place - 1])
    if place and previous.end_line == here.line:
        return Edit(Span(tree.file, here.line, previous.end_column or 1, end, here.end_column), "")
    raise TreatmentRefused("zero_grad() does not stand on a line that can be taken out; move it in front of backward() by hand")


PLANNERS = {"drop-factor": drop_factor, "remove-detach": remove_detach, "leave-no-grad": leave_no_grad, "move-zero-grad": move_zero_grad}
