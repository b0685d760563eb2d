"""What an optimizer left out, as one more parameter group: for groups that the script chooses by names, shapes or classes of layers."""
from __future__ import annotations

import ast
from collections.abc import Iterator

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit
from gradcheck_doctor.treatments.calls import argument
from gradcheck_doctor.treatments.flows import given_for
from gradcheck_doctor.treatments.places import is_module
from gradcheck_doctor.treatments.tree import Tree

YIELDING = ("parameters", "named_parameters", "modules", "named_modules", "children", "named_children")


def rest_as_group(tree: Tree, made: ast.Call, behind: ast.stmt | None = None) -> list[Edit]:
    """`optimizer.add_param_group` behind the construction, or a statement `behind` that, with what requires a gradient and is in no group yet.

    The optimizer gets all of the model where a list is chosen in the call itself.

    Raises:
        TreatmentRefused: it can't be told whose parameters these are, or what the optimizer is called.
    """
    statement, first = tree.statement(made), argument(made, "params", 0)
    models = dict.fromkeys(_models(tree, first, set())) if first is not None else {}
    named = isinstance(statement, ast.Assign) and len(statement.targets) == 1 and statement.value is made
    returned = isinstance(statement, ast.Return) and statement.value is made
    if len(models) != 1 or not named and not returned:
        raise TreatmentRefused("the optimizer is not built from MODEL.parameters(); add the missing parameters to what it gets")
    model = next(iter(models))
    if isinstance(first, (ast.ListComp, ast.GeneratorExp)) and behind is None:
        return [tree.replace(first, f"{model}.parameters()")]
    name = tree.source(statement.targets[0]) if isinstance(statement, ast.Assign) else "optimizer"
    lines = [f'held = {{id(p) for group in {name}.param_groups for p in group["params"]}}',
             f'{name}.add_param_group({{"params": [p for p in {model}.parameters() if p.requires_grad and id(p) not in held]}})']
    if named:
        return [tree.after(behind or statement, lines)]
    text = [f"{name} = {tree.source(made)}", *lines, f"return {name}"]
    return [tree.replace(statement, tree.block(statement, text).removeprefix(tree.indent(statement)).rstrip("\r\n"))]


def _models(tree: Tree, node: ast.AST, seen: set[str]) -> Iterator[str]:
    """The models whose parameters `node` is made of: what is asked for its parameters, a module that a function gets, or both behind a name."""
    asked = [n.func.value for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in YIELDING]
    if asked:
        for value in asked:
            while isinstance(value, (ast.Attribute, ast.Subscript)) and tree.source(value.value) != "self":
                value = value.value
            yield "self" if tree.source(value).startswith("self") and not _own_module(tree, value) else tree.source(value)
        return
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and inner.id not in seen and getattr(tree.parents.get(inner), "func", None) is not inner:
            seen.add(inner.id)
            yield from [inner.id] if inner.id == "self" else _behind(tree, inner, seen)


def _own_module(tree: Tree, value: ast.expr) -> bool:
    """self.model of a class that is no module itself: a trainer that holds the model."""
    home = next((n for n in tree.up(value) if isinstance(n, ast.ClassDef)), None)
    return home is not None and not any("Module" in tree.source(base) for base in home.bases)


def _behind(tree: Tree, name: ast.Name, seen: set[str]) -> Iterator[str]:
    """Of a name: itself where it is a module, else what it was filled with."""
    function = tree.function(name)
    here = [n for n in ast.walk(function or tree.root) if tree.function(n) is function]
    values = [n.value for n in here if isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name.id for t in n.targets)]
    given = list(given_for(tree, function, name.id)) if function is not None and not values else []
    if not values and not given:
        values = [n.value for n in tree.root.body if isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name.id for t in n.targets)]
    modules = any(is_module(tree, value) for value in (*values, *given))
    if modules or any(isinstance(value, ast.Name) and any(_behind(tree, value, seen)) for value in given):
        yield name.id
        return
    for value in values:
        yield from _models(tree, value, seen)
    for node in here:
        if isinstance(node, ast.For) and any(isinstance(n, ast.Name) and n.id == name.id for s in node.body for n in ast.walk(s)):
            yield from _models(tree, node.iter, seen)
