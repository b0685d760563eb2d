"""What a file says before it is imported: does importing it train? And importing it."""
from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from gradcheck_doctor.errors import NotForAudit, TargetError


def read(path: Path) -> str:
    """Source of a file.

    Raises:
        TargetError: missing, a folder, or not decodable.
    """
    import tokenize

    try:
        with tokenize.open(path) as file:
            return file.read()
    except FileNotFoundError as error:
        raise TargetError(f"{path} does not exist") from error
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise TargetError(f"cannot read {path}: {error}") from error


def parse(path: Path) -> ast.Module:
    """Syntax tree of a file.

    Raises:
        TargetError: it does not parse.
    """
    try:
        return ast.parse(read(path), str(path))
    except SyntaxError as error:
        raise TargetError(f"{path}:{error.lineno}: syntax error: {error.msg}") from error


def training_line(tree: ast.Module) -> int | None:
    """Line at module level that trains when the file is imported: a backward or .fit( there, or a call of a function that does it."""
    functions = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
    trains = {name for name, node in functions.items() if _has_training(node)}
    changed = True
    while changed:
        more = {name for name, node in functions.items() if name not in trains and _calls(node) & trains}
        changed = bool(more)
        trains |= more
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or _is_main_guard(node):
            continue
        if _has_training(node) or _calls(node) & trains:
            return node.lineno
    return None


def _has_training(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in ("backward", "fit", "manual_backward", "train_model")
               and not (n.func.attr == "fit" and _is_preprocessing(n.func.value)) for n in ast.walk(node))


def _is_preprocessing(owner: ast.expr) -> bool:
    """scaler.fit(X) is no training of a network."""
    text = ast.unparse(owner).lower()
    return not any(word in text for word in ("trainer", "model", "net", "learn"))


def _calls(node: ast.AST) -> set[str]:
    return {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


@contextlib.contextmanager
def bare_argv(name: str) -> Iterator[None]:
    """`sys.argv` as `python name` without arguments has it: a file that parses its arguments when it is imported must not see ours."""
    saved, sys.argv = sys.argv, [name]
    try:
        yield
    finally:
        sys.argv = saved


def import_file(path: Path) -> ModuleType:
    """Import a file as a module of its own, its folder on sys.path as for a script.

    Raises:
        TargetError: it is missing, does not parse, would train, or raises while it is imported.
    """
    tree = parse(path)
    line = training_line(tree)
    if line is not None:
        raise NotForAudit(f"{path} trains when it is imported (line {line}), so it is not imported.\nUse: doctor run {path}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"doctor_target_{abs(hash(str(path.resolve())))}"
    spec = importlib.util.spec_from_file_location(name, os.path.relpath(path) if not os.path.relpath(path).startswith("..") else os.path.abspath(path))
    if spec is None or spec.loader is None:
        raise TargetError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        raise NotForAudit(f"{path} ends the program when it is imported (sys.exit({error.code})); use: doctor run {path}") from error
    except Exception as error:
        raise TargetError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def import_package(name: str) -> ModuleType:
    """Import `name` and its top-level package.

    Raises:
        TargetError: it is not there, or raises while it is imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise TargetError(f"module {name} cannot be imported: {type(error).__name__}: {error}") from error
