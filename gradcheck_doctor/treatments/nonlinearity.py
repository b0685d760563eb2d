"""An activation that was forgotten: where the layers are made in a row, where a list of them is gone through, where forward calls them."""
from __future__ import annotations

import ast
import re

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.activations import exchanged
from gradcheck_doctor.treatments.choices import choice, origin
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.last_activation import around_loop, grows
from gradcheck_doctor.treatments.tree import Tree

NAMED = re.compile(r"act|nonlin|relu|phi|sigma", re.IGNORECASE)


def add_activation(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The activation between each two layers that follow each other directly; the last layer stays as it is."""
    unused = str(prescription.arguments.get("unused", "")).rpartition(".")[2]
    tree = context.tree_of(finding.location)
    called = _called(tree, {m.rpartition(".")[2] for m in prescription.modules}, f"self.{unused}" if unused else f"{_relu(tree)}relu")
    edits = ([] if unused else _instead_of_identity(tree)) or called or _behind_layers(context, prescription)
    if not edits:
        raise TreatmentRefused("the calls of the layers were not found in forward")
    return list(dict.fromkeys(edits))


def _called(tree: Tree, names: set[str], wrapper: str) -> list[Edit]:
    """self.b(x) becomes self.b(relu(x))."""
    return [tree.replace(node.args[0], f"{wrapper}({tree.source(node.args[0])})") for node in ast.walk(tree.root)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names and len(node.args) == 1
            and tree.source(node.func.value) == "self"]


def _instead_of_identity(tree: Tree) -> list[Edit]:
    """self.act = nn.Identity() becomes nn.ReLU(), where that is the only one of the file."""
    made = [n for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.source(n.func).rpartition(".")[2] == "Identity"]
    statement = tree.parents[made[0]] if len(made) == 1 else None
    named = isinstance(statement, ast.Assign) and NAMED.search(tree.source(statement.targets[0]))
    return exchanged(tree, made[0], "relu", 0.0) if named else []


def _behind_layers(context: Context, prescription: Prescription) -> list[Edit]:
    """An activation behind each layer that feeds one of `prescription.modules`, where it is made."""
    layers = [r for r in context.layers if r.weight and r.location is not None]
    places = {r.module: n for n, r in enumerate(layers)}
    feeders = [layers[places[m] - 1] for m in prescription.modules if places.get(m, 0) > 0]
    last = layers[-1].location if layers else None
    edits: list[Edit] = []
    for span in dict.fromkeys(r.location for r in feeders if r.location is not None):
        edits += _behind(context.tree(span.file), span, all_of_them=span == last)
    return edits


def _behind(tree: Tree, span: Span, *, all_of_them: bool) -> list[Edit]:
    """An activation behind the layer made at `span`; with `all_of_them` the last layer is made there, too.

    Raises:
        TreatmentRefused: it can't be told how to put it there.
    """
    node = tree.call(span)
    siblings = tree.siblings(node)
    following = siblings[siblings.index(node) + 1] if node in siblings[:-1] else None
    if isinstance(following, ast.Call) and _is_identity(tree, following):
        return exchanged(tree, following, "relu", 0.0)
    relu, parent, loop = f"{tree.nn()}ReLU()", tree.parents[node], around_loop(tree, node)
    held, grown = _attribute(tree, node), grows(tree, tree.statement(node))
    gone_through = _gone_through(tree, node, held, all_of_them) if held else []
    if gone_through:
        return gone_through
    if isinstance(loop, ast.For) and grown and all_of_them:
        stars = [n for n in ast.walk(tree.function(node) or tree.root) if isinstance(n, ast.Starred) and tree.source(n.value) == grown]
        if len(stars) != 1:
            raise TreatmentRefused(f"put {relu} behind each of the layers but the last")
        return [*_grown(tree, node, grown, relu), tree.replace(stars[0].value, f"{grown}[:-1]")]
    if all_of_them:
        raise TreatmentRefused(f"{tree.source(node)!r} makes the last layer, too; put {relu} behind each of the others")
    if grown and isinstance(parent, ast.Call):
        return _grown(tree, node, grown, relu)
    if isinstance(loop, (ast.ListComp, ast.GeneratorExp)):
        return [tree.replace(node, f"{tree.nn()}Sequential({tree.source(node)}, {relu})")]
    if siblings:
        return [tree.replace(node, f"{tree.source(node)}, {relu}")]
    raise TreatmentRefused(f"put {relu} behind {tree.source(node)!r}")


def _grown(tree: Tree, node: ast.Call, grown: str, relu: str) -> list[Edit]:
    """layers.append(relu) behind layers.append(layer); one more element of layers += [layer]."""
    if isinstance(tree.parents[node], ast.Call):
        return [tree.after(tree.statement(node), [f"{grown}.append({relu})"])]
    return [tree.replace(node, f"{tree.source(node)}, {relu}")]


def _is_identity(tree: Tree, node: ast.Call) -> bool:
    """The call makes an nn.Identity, by its name or by a setting that chooses among activations."""
    if tree.source(node.func).rpartition(".")[2] == "Identity":
        return True
    try:
        found = choice(tree, node)
        given = origin(tree, node) if found is None else None
    except TreatmentRefused:
        return False
    if found is not None:
        return found.options is not None and "Identity" in found.options.values()
    return given is not None and tree.source(given).rpartition(".")[2] == "Identity"


def _attribute(tree: Tree, node: ast.Call) -> str:
    """self.layers of `self.layers = nn.ModuleList(...)` around the node, and of `self.layers.append(...)`."""
    statement = tree.statement(node)
    if isinstance(statement, ast.Assign) and "ModuleList" in tree.source(statement.value):
        return tree.source(statement.targets[0])
    grown = grows(tree, statement)
    return grown if grown.startswith("self.") else ""


def _gone_through(tree: Tree, node: ast.AST, held: str, all_of_them: bool) -> list[Edit]:
    """`for layer in self.layers: x = layer(x)` applies the activation, and spares the last layer if it is in the list."""
    owner = next((n for n in tree.up(node) if isinstance(n, ast.ClassDef)), None)
    loops = [n for n in ast.walk(owner) if isinstance(n, ast.For) and tree.source(n.iter) == held and isinstance(n.target, ast.Name)] if owner is not None else []
    for loop in loops:
        name = loop.target.id                                                            # type: ignore[attr-defined]
        calls = [n for n in ast.walk(loop) if isinstance(n, ast.Call) and tree.source(n.func) == name and len(n.args) == 1]
        statement = tree.parents[calls[0]] if len(calls) == 1 else None
        if not isinstance(statement, ast.Assign) or statement.value is not calls[0]:
            continue
        edits = [tree.replace(calls[0], f"{_relu(tree)}relu({tree.source(calls[0])})")]
        if all_of_them and loop.body == [statement] and not loop.orelse:
            target, given = tree.source(statement.targets[0]), tree.source(calls[0].args[0])
            edits += [tree.replace(loop.iter, f"{held}[:-1]"), tree.after(loop, [f"{target} = {held}[-1]({given})"])]
        elif all_of_them:
            continue
        return edits
    return []


def _relu(tree: Tree) -> str:
    """F where the file has it, else torch."""
    return tree.functional() if "torch.nn.functional" in tree.imported else tree.torch()


PLANNERS = {"add-activation": add_activation}
