"""Clipping where it works: between backward and step, on gradients without the loss scale."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.calls import method
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.numbers import constant, number
from gradcheck_doctor.treatments.settings import given_in
from gradcheck_doctor.treatments.tree import Tree

OPTIONS = ("gradient_clip_val", "max_grad_norm")


def move_clip(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The clip's line in front of the step that follows backward."""
    tree, clip = _clip(context, prescription)
    block = tree.among(clip)
    if len(block) < 2 or not _alone(tree, clip):
        raise TreatmentRefused("the clip does not stand on a line of its own; move it between backward() and step() by hand")
    calls = [found for s in block if (found := method(s, "backward", "manual_backward")) is not None]
    steps = [found for s in block if (found := method(s, "step")) is not None]
    step = next((s for s in steps if calls and s.lineno > calls[0].lineno), None)
    if step is None:
        raise TreatmentRefused("no backward() followed by a step() in the block of the clip; move it between them by hand")
    target, first, last = tree.statement(step), clip.lineno, clip.end_lineno or clip.lineno
    text = "".join(tree.lines[first - 1:last]).strip()
    if first != last and tree.indent(clip) != tree.indent(target):
        raise TreatmentRefused("the clip spans several lines and its place has another indentation; move it by hand")
    return [Edit(Span(tree.file, first, 1, last + 1, 1), ""), Edit(Span(tree.file, target.lineno, 1, target.lineno, 1), tree.indent(target) + text + tree.newline)]


def unscale(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """scaler.unscale_(optimizer) in front of the clip."""
    tree, clip = _clip(context, prescription)
    block = tree.among(clip)
    for statement in block[block.index(clip):]:
        step = method(statement, "step")
        if step is not None and len(step.args) == 1 and isinstance(step.func, ast.Attribute):
            return [tree.before(clip, [f"{tree.source(step.func.value)}.unscale_({tree.source(step.args[0])})"])]
    raise TreatmentRefused("no scaler.step(optimizer) behind the clip; call scaler.unscale_(optimizer) before it")


def _clip(context: Context, prescription: Prescription) -> tuple[Tree, ast.stmt]:
    tree = context.tree_of(prescription.span)
    return tree, tree.statement(tree.call(prescription.span))


def _alone(tree: Tree, statement: ast.stmt) -> bool:
    """Nothing else is on its lines."""
    before = tree.lines[statement.lineno - 1][: tree.span(statement).column - 1]
    after = tree.lines[(statement.end_lineno or statement.lineno) - 1][(tree.span(statement).end_column or 1) - 1:]
    return isinstance(statement, (ast.Expr, ast.Assign)) and not before.strip() and (not after.strip() or after.strip().startswith("#")) \
        and (statement.end_lineno or 0) < len(tree.lines)


def clip_threshold(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Another number where the clip's limit stands, or where the name that stands there gets its value."""
    tree = context.tree_of(prescription.span)
    call = next((n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.span(n) == prescription.span), None)
    if call is not None and "clip" in tree.source(call.func):
        given = given_in(tree, call, ("max_norm", "clip_value", "gradient_clip_val"), 1)
    else:                                                       # a Trainer clips: where it was given the limit
        given = next((k.value for n in ast.walk(tree.root) if isinstance(n, ast.Call) for k in n.keywords if k.arg in OPTIONS), None)
    if given is None:
        raise TreatmentRefused("the clip's limit does not stand in its call; set it where the clip is configured")
    return [constant(tree, given, number(float(prescription.arguments["max_norm"])), prescription.arguments.get("old"))]


PLANNERS = {"move-clip": move_clip, "unscale": unscale, "clip-threshold": clip_threshold}
