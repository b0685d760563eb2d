"""Importing the package, --help and rule load nothing heavy."""
import subprocess
import sys

import pytest

HEAVY = ["torch", "click", "pytorch_lightning", "lightning", "transformers", "libcst", "tabulate", "jinja2", "matplotlib", "networkx"]


def loaded(code):
    program = f"import sys\n{code}\nprint(','.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(filter(None, done.stdout.strip().splitlines()[-1].split(","))) if done.stdout.strip() else set()


def test_importing_the_package_loads_nothing_heavy():
    assert loaded("import gradcheck_doctor") == set()


def test_this_test_can_fail():
    assert "tabulate" in loaded("import tabulate")


@pytest.mark.parametrize("arguments", [["--help"], ["rule"], ["rule", "GD201"], ["audit", "--help"]])
def test_help_and_rule_do_not_import_torch(arguments):
    code = ("import contextlib, io\nfrom gradcheck_doctor.cli.main import main\n"
            f"with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main({arguments!r})")
    assert "torch" not in loaded(code)
