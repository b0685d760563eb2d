"""A module in front of or behind another one, so that what else the source does with that one still works."""
from __future__ import annotations

import ast
from collections.abc import Iterator

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit
from gradcheck_doctor.treatments.tree import Tree

GROWS = ("append", "extend", "insert", "add_module")


def put(tree: Tree, node: ast.Call, front: str = "", behind: str = "") -> list[Edit]:
    """As a neighbour in a list or Sequential; as an attribute that forward calls; else in a Sequential, which stands for the layer everywhere.

    Raises:
        TreatmentRefused: a Sequential would take the layer's place where its weight is asked for.
    """
    if _listed(tree, node):
        return [_around(tree, node, front, behind, wrap=False)]
    appended = _appended(tree, node, front, behind)
    called = [appended] if appended is not None else _called(tree, node, front, behind)
    if called:
        return called
    statement = tree.statement(node)
    name = statement.targets[0].id if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name) and statement.value is node else ""
    if name:
        uses = list(_bare(tree, statement, name))
        if uses:
            return [_appended(tree, use, front, behind) or _around(tree, use, front, behind, wrap=not _listed(tree, use)) for use in uses]
    if (held := _held(tree, statement)) and (asked := next(_asked(tree, node, held), None)):
        paired = _paired(tree, node, held, front, behind)
        if paired:
            return paired
        raise TreatmentRefused(f"line {asked.lineno} asks the layer itself for its {asked.attr}; "
                               f"put {behind or front} {'behind' if behind else 'in front of'} it in forward")
    return [_around(tree, node, front, behind, wrap=True)]


def _around(tree: Tree, node: ast.expr, front: str, behind: str, *, wrap: bool) -> Edit:
    inside = ", ".join(x for x in (front, tree.source(node), behind) if x)
    return tree.replace(node, f"{tree.nn()}Sequential({inside})" if wrap else inside)


def _listed(tree: Tree, node: ast.expr) -> bool:
    """The node is an element of what a Sequential is made of."""
    parent = tree.parents[node]
    above = tree.parents.get(parent)
    if isinstance(parent, ast.Call):
        return node in parent.args and tree.source(parent.func).rpartition(".")[2] == "Sequential"
    if isinstance(parent, ast.List) and isinstance(above, ast.Assign):
        return "Sequential" in tree.text and "ModuleList" not in tree.source(above)
    if isinstance(parent, ast.List) and isinstance(above, ast.Call):
        return "ModuleList" not in tree.source(above.func)
    return isinstance(parent, (ast.List, ast.Tuple)) and not isinstance(above, ast.Assign)


def _appended(tree: Tree, node: ast.expr, front: str, behind: str) -> Edit | None:
    """layers.append(norm) beside layers.append(layer), where a Sequential is made of *layers."""
    parent, statement = tree.parents[node], tree.statement(node)
    grown = tree.source(parent.func.value) if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Attribute) and parent.func.attr == "append" else ""
    starred = any(isinstance(n, ast.Starred) and tree.source(n.value) == grown and isinstance(call := tree.parents[n], ast.Call)
                  and tree.source(call.func).rpartition(".")[2] == "Sequential" for n in ast.walk(tree.function(node) or tree.root))
    if not grown or not starred or not isinstance(statement, ast.Expr) or statement.value is not parent:
        return None
    return tree.before(statement, [f"{grown}.append({front})"]) if front else tree.after(statement, [f"{grown}.append({behind})"])


def _called(tree: Tree, node: ast.Call, front: str, behind: str) -> list[Edit]:
    """self.fc = Linear(...) gets self.fc_norm beside it, and forward calls self.fc_norm(self.fc(x)): the layer keeps its name and its keys."""
    statement = tree.parents[node]
    target = statement.targets[0] if isinstance(statement, ast.Assign) and len(statement.targets) == 1 else None
    owner = next((n for n in tree.up(node) if isinstance(n, ast.ClassDef)), None)
    if not isinstance(target, ast.Attribute) or tree.source(target.value) != "self" or owner is None or not isinstance(statement, ast.Assign):
        return []
    name = tree.source(target)
    calls = [n for n in ast.walk(owner) if isinstance(n, ast.Call) and tree.source(n.func) == name]
    if not calls or f"{name}_norm" in tree.text or front and not all(n.args for n in calls):
        return []
    return [tree.after(statement, [f"{name}_norm = {front or behind}"]), *(_applied(tree, c, f"{name}_norm", front) for c in calls)]


def _paired(tree: Tree, node: ast.Call, held: str, front: str, behind: str) -> list[Edit]:
    """self.fcs = ModuleList(Linear(...) for ...) gets self.fcs_norm made alike, and the loops of forward go over both."""
    owner = next((n for n in tree.up(node) if isinstance(n, ast.ClassDef)), None)
    made = _made_alike(tree, node, held, front or behind)
    if owner is None or made is None or f"{held}_norm" in tree.text:
        return []
    edits = []
    for found in ast.walk(owner):
        if isinstance(found, ast.Call) and isinstance(found.func, ast.Subscript) and tree.source(found.func.value) == held and found.args:
            edits.append(_applied(tree, found, f"{held}_norm[{tree.source(found.func.slice)}]", front))
        elif isinstance(found, ast.For) and tree.source(found.iter) in (held, f"enumerate({held})"):
            name = found.target.elts[-1] if isinstance(found.target, ast.Tuple) else found.target
            norm = f"{tree.source(name)}_norm"
            calls = [n for n in ast.walk(found) if isinstance(n, ast.Call) and tree.source(n.func) == tree.source(name) and n.args]
            pair = f"{tree.source(name)}, {norm}"
            if calls:
                edits += [tree.replace(name, f"({pair})" if isinstance(found.target, ast.Tuple) else pair),
                          tree.replace(found.iter, tree.source(found.iter).replace(held, f"zip({held}, {held}_norm)")),
                          *(_applied(tree, c, norm, front) for c in calls)]
    return [*made, *edits] if edits else []


def _made_alike(tree: Tree, node: ast.Call, held: str, norm: str) -> list[Edit] | None:
    """A second list beside `held`, made by the same comprehension or grown by the same loop."""
    statement, parent = tree.statement(node), tree.parents[node]
    if isinstance(statement, ast.Assign) and isinstance(parent, (ast.ListComp, ast.GeneratorExp)) and parent.elt is node:
        value = tree.source(statement.value)
        return [tree.after(statement, f"{held}_norm = {value.replace(tree.source(node), norm)}".splitlines())] if value.count(tree.source(node)) == 1 else None
    empty = next((n for n in ast.walk(tree.root) if isinstance(n, ast.Assign) and tree.source(n.targets[0]) == held
                  and tree.source(n.value).rstrip("([])").endswith("ModuleList")), None)
    if empty is not None and isinstance(parent, ast.Call) and tree.source(parent.func) == f"{held}.append":
        return [tree.after(empty, [f"{held}_norm = {tree.source(empty.value)}"]), tree.after(statement, [f"{held}_norm.append({norm})"])]
    return None


def _applied(tree: Tree, call: ast.Call, norm: str, front: str) -> Edit:
    """norm(layer(x)), or layer(norm(x)) for one that goes in front."""
    if front:
        return tree.replace(call.args[0], f"{norm}({tree.source(call.args[0])})")
    return tree.replace(call, f"{norm}({tree.source(call)})")


def _bare(tree: Tree, made: ast.stmt, name: str) -> Iterator[ast.Name]:
    """Where `name`, given its layer in `made`, goes into a list, a Sequential or append() further down its block."""
    block = tree.among(made)
    for later in block[block.index(made) + 1:]:
        if isinstance(later, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in later.targets):
            return
        for node in ast.walk(later):
            if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load):
                parent = tree.parents[node]
                grown = isinstance(parent, ast.Call) and node in parent.args and tree.source(parent.func).rpartition(".")[2] in GROWS
                if grown or isinstance(parent, (ast.List, ast.Tuple)) or _listed(tree, node):
                    yield node


def _held(tree: Tree, statement: ast.stmt) -> str:
    """What holds the layer from then on: self.convs of `self.convs = ...`, layers of `layers.append(...)` and `layers += [...]`."""
    if isinstance(statement, ast.Assign):
        return tree.source(statement.targets[0])
    if isinstance(statement, ast.AugAssign):
        return tree.source(statement.target)
    value = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in GROWS:
        return tree.source(value.func.value)
    return ""


def _asked(tree: Tree, node: ast.AST, held: str) -> Iterator[ast.Attribute]:
    """The weights and biases that are asked of `held` itself, of one of its elements or of a name that a loop gives them, in the same class."""
    scope = next((n for n in tree.up(node) if isinstance(n, ast.ClassDef)), None) or tree.root
    names = {held}
    made = [(n.targets[0], n.value) for n in ast.walk(scope) if isinstance(n, ast.Assign)]
    given = [(n.target, n.iter) for n in ast.walk(scope) if isinstance(n, (ast.For, ast.comprehension))]
    for target, values in [*made, *given]:                                  # self.layers = nn.ModuleList(layers) first, for layer in self.layers then
        if any(tree.source(v) in names for v in ast.walk(values) if isinstance(v, (ast.Name, ast.Attribute))):
            names |= {tree.source(n) for n in ast.walk(target) if isinstance(n, (ast.Name, ast.Attribute))}
    for found in ast.walk(scope):
        if isinstance(found, ast.Attribute) and found.attr in ("weight", "bias"):
            value = found.value.value if isinstance(found.value, ast.Subscript) else found.value
            guarded = any(isinstance(n, ast.If) and "isinstance" in tree.source(n.test) for n in tree.up(found))
            if tree.source(value) in names and not guarded:
                yield found
