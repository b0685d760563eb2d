"""Cures at the start: the initialisation that the activation needs, written as a careful colleague would."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.tree import Tree

KINDS = {"linear": "Linear", "conv1d": "Conv1d", "conv2d": "Conv2d", "conv3d": "Conv3d"}


def _call(nn: str, scheme: str, weight: str, slope: float = 0.0) -> str:
    """The nn.init call of a scheme on an expression."""
    leaky = f', a={slope:g}, nonlinearity="leaky_relu"' if slope else ', nonlinearity="relu"'
    return {
        "he normal": f"{nn}init.kaiming_normal_({weight}{leaky})", "he uniform": f"{nn}init.kaiming_uniform_({weight}{leaky})",
        "lecun normal": f'{nn}init.kaiming_normal_({weight}, nonlinearity="linear")', "glorot normal": f"{nn}init.xavier_normal_({weight})",
        "glorot uniform": f"{nn}init.xavier_uniform_({weight})", "orthogonal": f"{nn}init.orthogonal_({weight})",
        "zero bias": f"{nn}init.zeros_({weight})"}[scheme]


def initialise(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Correct the user's own init call where there is one; else a loop over the modules where the model is built."""
    scheme, slope = str(prescription.arguments["scheme"]), float(prescription.arguments.get("slope", 0.0) or 0.0)
    if scheme not in ("he normal", "he uniform", "lecun normal", "glorot normal", "glorot uniform", "orthogonal", "zero bias"):
        raise TreatmentRefused(f"{prescription.title}: write it where the layer is built")
    edits = []
    for span in _own_calls(context, finding, prescription):
        tree = context.tree(span.file)
        node = tree.call(span)
        if node.args and ".init." in f".{tree.source(node.func)}":
            edits.append(tree.replace(node, _call(tree.nn(), scheme, tree.source(node.args[0]), slope)))
    if edits:
        return list(dict.fromkeys(edits))
    if scheme == "zero bias":
        raise TreatmentRefused("the line that sets the biases was not found")
    return [_loop(context, finding, prescription, scheme, slope)]


def _own_calls(context: Context, finding: Finding, prescription: Prescription) -> list[Span]:
    """The user's nn.init calls on these layers."""
    from gradcheck_doctor.treatments.tree import read

    spans = []
    for row in context.rows(prescription.modules):
        place = row.weight.get("init")
        if isinstance(place, dict):
            spans.append(Span(place["file"], place["line"], place["column"], place["end_line"], place["end_column"]))
        elif isinstance(place, Span):
            spans.append(place)
    if finding.location is not None and ".init." in f".{_text(read(finding.location.file), finding.location)}":
        spans.append(finding.location)
    return list(dict.fromkeys(spans))


def _text(tree: Tree, span: Span) -> str:
    return tree.lines[span.line - 1][span.column - 1:] if span.line <= len(tree.lines) else ""


def _loop(context: Context, finding: Finding, prescription: Prescription, scheme: str, slope: float) -> Edit:
    """The loop over all modules of the kind, at the end of the class that builds them or in front of the optimizer."""
    rows = [r for r in context.rows(prescription.modules) if r.location is not None]
    kinds = sorted({KINDS[r.op] for r in rows if r.op in KINDS})
    place = rows[0].location if rows else finding.location
    tree = context.tree(place.file if place is not None else None)
    nn = tree.nn()
    if scheme == "orthogonal":
        def body(owner: str) -> list[str]:
            return [f"for name, parameter in {owner}.named_parameters():", '    if "weight_hh" in name:', f"        {_call(nn, scheme, 'parameter')}"]
    else:
        if not kinds:
            raise TreatmentRefused("the layers are of no kind that has a standard initialisation")
        chosen = f"{nn}{kinds[0]}" if len(kinds) == 1 else "(" + ", ".join(nn + k for k in kinds) + ")"

        def body(owner: str) -> list[str]:
            return [f"for module in {owner}.modules():", f"    if isinstance(module, {chosen}):", f"        {_call(nn, scheme, 'module.weight', slope)}",
                    "        if module.bias is not None:", f"            {nn}init.zeros_(module.bias)"]
    return _insert(context, tree, place, body)


def _insert(context: Context, tree: Tree, place: Span | None, body: object) -> Edit:
    """End of the class's __init__, in front of the optimizer, or behind the statement that builds the model."""
    assert callable(body)
    node = tree.call(place) if place is not None else None
    function = tree.function(node) if node is not None else None
    if function is not None and function.name == "__init__":
        return tree.after(function.body[-1], body("self"))
    if function is not None and isinstance(function.body[-1], ast.Return) and function.body[-1].value is not None:
        final = function.body[-1]
        value = final.value
        assert value is not None
        if isinstance(value, ast.Name):
            return tree.before(final, body(value.id))
        indent = tree.indent(final)
        lines = [f"model = {tree.source(value)}", *body("model"), "return model"]
        return tree.replace(final, (tree.newline + indent).join(lines))
    if node is not None:
        statement = tree.statement(node)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name) and isinstance(statement.value, ast.Call):
            return tree.after(statement, body(statement.targets[0].id))
    made = context.optimizer_call(tree)
    first = made.args[0] if made.args else None
    if isinstance(first, ast.Call) and isinstance(first.func, ast.Attribute) and first.func.attr == "parameters":
        return tree.before(tree.statement(made), body(tree.source(first.func.value)))
    raise TreatmentRefused("no safe place for the loop was found; put it behind the construction of the model:\n" + "\n".join(body("model")))


def target_bias(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The output bias starts at the mean of the targets, in front of the optimizer."""
    tree = context.tree()
    head = next((r for r in reversed(context.layers) if r.op in KINDS), None)
    made = context.optimizer_call(tree)
    first = made.args[0] if made.args else None
    if head is None or not isinstance(first, ast.Call) or not isinstance(first.func, ast.Attribute) or first.func.attr != "parameters":
        raise TreatmentRefused("the output layer or the optimizer's parameters were not found")
    path = "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in head.module.split(".") if p)
    value = float(prescription.arguments["value"])
    return [tree.before(tree.statement(made), [f"{tree.nn()}init.constant_({tree.source(first.func.value)}{path}.bias, {value:.4g})"])]


PLANNERS = {"initialise": initialise, "target-bias": target_bias}
