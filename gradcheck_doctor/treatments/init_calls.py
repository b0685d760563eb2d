"""Initialisation that was written but took no effect: called, called later, or called for the layer that came after it."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.places import insert
from gradcheck_doctor.treatments.tree import Tree

THROUGH = ("modules", "parameters", "named_modules", "named_parameters", "children", "apply")


def apply_init(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """The user's own initialiser does its work: at the end of __init__, behind the construction, behind the replaced layer."""
    form, name = str(prescription.arguments["form"]), str(prescription.arguments["function"])
    tree = context.tree_of(prescription.span)
    if form == "too early":
        return _moved(tree, tree.statement(tree.call(prescription.span)))
    defined = [n for n in ast.walk(tree.root) if isinstance(n, ast.FunctionDef) and n.name == name]
    if len(defined) != 1:
        raise TreatmentRefused(f"{name} is not defined once in this file; call it where the model is complete")
    if form == "replaced":
        return [_behind(tree, prescription.span, defined[0])]
    return _called(context, tree, defined[0], prescription)


def _moved(tree: Tree, statement: ast.stmt) -> list[Edit]:
    """The line goes behind the last one of its function."""
    function = tree.function(statement)
    here, end = tree.span(statement), statement.end_lineno or statement.lineno
    alone = not tree.lines[statement.lineno - 1][: here.column - 1].strip() and not tree.lines[end - 1][(here.end_column or 1) - 1:].partition("#")[0].strip()
    if function is None or function.name != "__init__" or statement not in function.body or not isinstance(statement, ast.Expr) or not alone:
        raise TreatmentRefused(f"move {tree.source(statement)} behind the construction of the layers")
    lines = [line.removeprefix(tree.indent(statement)) for line in tree.source(statement).splitlines()]
    return [Edit(Span(tree.file, statement.lineno, 1, end + 1, 1), ""), tree.after(function.body[-1], lines)]


def _behind(tree: Tree, span: Span | None, function: ast.FunctionDef) -> Edit:
    statement = tree.statement(tree.call(span))
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1 or isinstance(tree.parents[function], ast.ClassDef) or not _of_module(tree, function):
        raise TreatmentRefused(f"apply {function.name} to the layer that is built here")
    return tree.after(statement, [f"{tree.source(statement.targets[0])}.apply({function.name})"])


def _called(context: Context, tree: Tree, function: ast.FunctionDef, prescription: Prescription) -> list[Edit]:
    """self.init_weights() or self.apply(init_weights), where the layers have been made."""
    home = tree.parents[function]
    needed = _needed(tree, function)
    if isinstance(home, ast.ClassDef):
        init = next((n for n in home.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is None or needed > 1:
            raise TreatmentRefused(f"call {function.name} where the model is complete")
        return [tree.after(init.body[-1], [f"self.apply(self.{function.name})" if needed else f"self.{function.name}()"])]
    if needed != 1:
        raise TreatmentRefused(f"call {function.name} where the model is complete")
    nodes = [tree.call(s) for s in context.built(prescription.modules) if s.file == tree.file]
    by_module = _of_module(tree, function)
    return insert(context, tree, nodes, lambda model: [f"{model}.apply({function.name})" if by_module else f"{function.name}({model})"])


def _needed(tree: Tree, function: ast.FunctionDef) -> int:
    """Arguments that a call has to give."""
    method = isinstance(tree.parents[function], ast.ClassDef) and not any(tree.source(d) == "staticmethod" for d in function.decorator_list)
    arguments = function.args
    return len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults) - method + sum(d is None for d in arguments.kw_defaults)


def _of_module(tree: Tree, function: ast.FunctionDef) -> bool:
    """It takes one layer, as apply() hands them over, rather than a model that it goes through itself."""
    name = function.args.args[0].arg if function.args.args else ""
    through = any(isinstance(n, ast.Attribute) and tree.source(n.value) == name and n.attr in THROUGH for n in ast.walk(function))
    return bool(name) and not through


PLANNERS = {"apply-init": apply_init}
