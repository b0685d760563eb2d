"""Who may import whom: one table."""
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gradcheck_doctor"
SHARED = {"records", "theory", "errors", "packs"}
ALLOWED = {
    "records": {"records", "errors"}, "theory": {"theory"}, "packs": set(), "observe": SHARED | {"observe"}, "rules": SHARED | {"rules"},
    "report": SHARED | {"report"}, "targets": SHARED | {"targets", "observe"},
    "treatments": SHARED | {"treatments"}, "verify": {"records"}, "repair": SHARED | {"treatments", "verify"},
    "live": SHARED | {"treatments", "observe", "targets", "session", "rules"},
    "patch": SHARED | {"treatments", "repair"},
    "session": SHARED | {"observe", "rules", "report", "targets", "config", "suppress"},
    "store": {"records", "errors", "store"},
    "integrations": SHARED | {"integrations", "observe", "session", "live", "report", "config"},
}
STANDARD_ONLY = ("records", "theory", "packs", "store")
NO_TORCH = ("records", "theory", "packs", "rules", "report", "cli", "config", "suppress", "baseline", "store")


def imports(path):
    """(top-level names from elsewhere, own sub-packages) that a file imports anywhere in it."""
    outside, inside = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.module == "gradcheck_doctor":
            names = [f"gradcheck_doctor.{a.name}" for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "gradcheck_doctor":
                inside.add(parts[1] if len(parts) > 1 else "")
            else:
                outside.add(parts[0])
    return outside, inside - {"", "__version__"}


def files(unit):
    path = PACKAGE / unit
    return sorted(path.rglob("*.py")) if path.is_dir() else [PACKAGE / f"{unit}.py"]


@pytest.mark.parametrize("unit", ALLOWED)
def test_layers(unit):
    for path in files(unit):
        _, inside = imports(path)
        assert inside <= ALLOWED[unit], f"{path} imports {inside - ALLOWED[unit]}"


@pytest.mark.parametrize("unit", STANDARD_ONLY)
def test_standard_library_only(unit):
    import sys
    for path in files(unit):
        outside, _ = imports(path)
        assert outside <= set(sys.stdlib_module_names), path


@pytest.mark.parametrize("unit", NO_TORCH)
def test_no_torch(unit):
    for path in files(unit):
        assert not imports(path)[0] & {"torch", "lightning", "pytorch_lightning", "transformers"}, path


def test_no_module_is_past_400_lines():
    for path in PACKAGE.rglob("*.py"):
        assert path.read_text().count("\n") <= 400, path
