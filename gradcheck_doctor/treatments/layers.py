"""Cures at one layer: a bias that the norm takes away, dropout beside a norm or SELU, a logarithm of 0."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.calls import argument
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.numbers import constant, number
from gradcheck_doctor.treatments.settings import given_in
from gradcheck_doctor.treatments.tree import Tree

NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm", "GroupNorm")
LOGS = ("log", "log2", "log10")
ROOTS = ("sqrt", "rsqrt")


def drop_bias(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """bias=False where the layer is constructed."""
    edits = []
    for span in context.built(prescription.modules):
        tree = context.tree(span.file)
        node = tree.call(span)
        given = argument(node, "bias")
        if isinstance(given, ast.Constant):
            edits.append(tree.replace(given, "False"))
        elif given is not None or any(k.arg is None for k in node.keywords):
            raise TreatmentRefused(f"bias comes from {tree.source(given) if given is not None else 'a dictionary'}; set it to False there")
        else:
            edits.append(tree.keyword(node, "bias=False"))
    if not edits:
        raise TreatmentRefused("the expression that builds the layer was not found")
    return edits


def alpha_dropout(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """AlphaDropout in place of Dropout in the function that builds the SELU layers."""
    tree = context.tree_of(finding.location)
    around = tree.function(tree.call(finding.location)) if finding.location is not None else None
    edits = [tree.replace(n.func, tree.source(n.func).removesuffix("Dropout") + "AlphaDropout")
             for n in ast.walk(around or tree.root) if isinstance(n, ast.Call) and tree.source(n.func).rpartition(".")[2] == "Dropout"]
    if not edits:
        raise TreatmentRefused("nn.Dropout is not constructed beside the SELU layers")
    return edits


def swap_dropout_norm(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Dropout and the normalisation behind it change places in a Sequential or a list."""
    edits = []
    for span in context.built(prescription.modules):
        tree = context.tree(span.file)
        for norm in (n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and n.lineno == span.line and tree.span(n) == span):
            siblings = tree.siblings(norm)
            place = siblings.index(norm) if norm in siblings else 0
            before = siblings[place - 1] if place else None
            if isinstance(before, ast.Call) and "Dropout" in tree.source(before.func):
                edits += [tree.replace(before, tree.source(norm)), tree.replace(norm, tree.source(before))]
    if not edits:
        raise TreatmentRefused("the dropout does not stand directly in front of the normalisation; move it behind")
    return list(dict.fromkeys(edits))


def offset_divisor(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """x / s becomes x / (s + 1e-8)."""
    tree = context.tree_of(prescription.span)
    divisor = tree.expression(prescription.span)
    inner = f"({tree.source(divisor)} + 1e-8)"
    return [tree.replace(divisor, inner[1:-1] if isinstance(divisor, ast.BinOp) else inner)]


def clamp_input(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """log(p) becomes log(p.clamp(min=1e-7)), for every logarithm of the statement."""
    tree = context.tree_of(prescription.span)
    statement = tree.statement(tree.call(prescription.span))
    least = number(float(prescription.arguments.get("minimum", 1e-7)))
    edits = []
    for node in ast.walk(statement):
        name = tree.source(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
        if not isinstance(node, ast.Call) or name not in LOGS + ROOTS:
            continue
        operand = _operand(tree, node)
        text = tree.source(operand)
        if "clamp" in text or "eps" in text:
            continue
        if not node.args:                                             # p.log(): in front of the dot, behind parentheses if there are any
            end = tree.span(node.func)
            dot = (end.end_column or 1) - len(name) - 1
            edits.append(Edit(Span(end.file, end.end_line or end.line, dot, end.end_line, dot), f".clamp(min={least})"))
            continue
        edits.append(tree.replace(operand, f"{tree.operand(operand)}.clamp(min={least})"))
    if not edits:
        raise TreatmentRefused("the logarithm's input was not found, or is kept away from 0 already")
    return edits


def _operand(tree: Tree, node: ast.Call) -> ast.expr:
    """p of torch.log(p) and of p.log()."""
    if node.args:
        return node.args[0]
    if isinstance(node.func, ast.Attribute):
        return node.func.value
    raise TreatmentRefused("the operand of the call was not found")


def batchnorm_momentum(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Another momentum where it is given to the norms, or where the name that is given there gets its value."""
    edits = []
    spans = context.built(prescription.modules) or [s for s in (prescription.span,) if s is not None]
    for span in spans:
        tree = context.tree(span.file)
        node = tree.call(span)
        given = given_in(tree, node, ("momentum",), 2)
        if given is not None:
            edits.append(constant(tree, given, number(float(prescription.arguments["momentum"]))))
    if not edits:
        raise TreatmentRefused("momentum is not given where the norms are constructed; set it where it is chosen")
    return list(dict.fromkeys(edits))


def dropout_rate(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Another p in nn.Dropout(p) and F.dropout(x, p), everywhere it is given alike; 1 - KEEP where a name says that it is the probability to keep."""
    rate, old = float(prescription.arguments["p"]), float(prescription.arguments["old"])
    tree = context.tree_of(finding.location)
    node = tree.call(finding.location)
    given = _rate(tree, node)
    if given is None:
        if "dropout" not in tree.source(node.func).lower():
            raise TreatmentRefused(f"the dropout happens inside {tree.source(node)!r}; set its p to {number(rate)} there")
        return [tree.keyword(node, f"p={number(rate)}")]
    alike = [p for n in ast.walk(tree.root) if isinstance(n, ast.Call) and (p := _rate(tree, n)) is not None and tree.source(p) == tree.source(given)]
    if "keep" in tree.source(given).lower() and abs(1.0 - old - rate) < 1e-3:
        return [tree.replace(p, f"1 - {tree.source(p)}") for p in alike]
    return list(dict.fromkeys(constant(tree, p, number(rate), old) for p in alike))


def _rate(tree: Tree, node: ast.Call) -> ast.expr | None:
    """p of nn.Dropout(p), nn.Dropout1d(p) and F.dropout(x, p)."""
    name = tree.source(node.func).rpartition(".")[2]
    if "dropout" not in name.lower():
        return None
    return argument(node, "p", 0 if name[:1].isupper() else 1)


def dropout_training(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """F.dropout(x, p) gets training=self.training, everywhere in the same class."""
    tree = context.tree_of(prescription.span)
    node = tree.call(prescription.span)
    owner = next((n for n in tree.up(node) if isinstance(n, ast.ClassDef)), None)
    function = tree.function(node)
    if owner is None or function is None or not function.args.args or function.args.args[0].arg != "self":
        raise TreatmentRefused(f"hand the mode over to {tree.source(node)}: training=model.training")
    alike = [n for n in ast.walk(owner) if isinstance(n, ast.Call) and tree.source(n.func) == tree.source(node.func) and len(n.args) < 3
             and not any(k.arg in (None, "training") for k in n.keywords)]
    return [tree.keyword(n, "training=self.training") for n in alike]


PLANNERS = {"dropout-training": dropout_training, "dropout-rate": dropout_rate, "batchnorm-momentum": batchnorm_momentum, "drop-bias": drop_bias,
            "alpha-dropout": alpha_dropout, "swap-dropout-norm": swap_dropout_norm, "clamp-input": clamp_input,
            "offset-divisor": offset_divisor}
