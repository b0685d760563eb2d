"""The `doctor` command. Sub-commands are loaded when they are called: `doctor --help` and `doctor rule` never import torch."""
from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
import warnings

import click

from gradcheck_doctor import __version__
from gradcheck_doctor.cli import streams
from gradcheck_doctor.errors import DoctorError

COMMANDS = {"audit": "Probe a model with one batch and say what keeps it from training.",
            "run": "Run a training script under observation.",
            "fix": "Turn findings into source edits that are proven to help.",
            "rule": "List the rules, or explain one.",
            "report": "Show a stored report as text, html or markdown."}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports a command only to run it."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"gradcheck_doctor.cli.{name}").command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="doctor")
def cli() -> None:
    """Find what keeps a PyTorch model from training, and where in its source.

    \b
    doctor audit model.py                   one batch, findings
    doctor audit 'model.py:Net(hidden=64)'  a model that needs arguments
    doctor run train.py --epochs 3          a training script, unmodified
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point: 0 no finding at or above --fail-on, 1 some, 2 for everything that went wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    streams.opened()
    if arguments[:1] != ["run"]:                                    # a script's own output fails as it would without us
        streams.forgiving()
    try:
        with warnings.catch_warnings():
            if arguments[:1] != ["run"]:                            # a script sees its own warnings
                warnings.filterwarnings("ignore", message="Failed to initialize NumPy")      # torch's word where NumPy is not installed
            status = cli.main(arguments, prog_name="doctor", standalone_mode=False)
    except click.exceptions.Exit as ended:
        status = ended.exit_code
    except click.Abort:
        click.echo("doctor: interrupted", err=True)
        status = 128 + signal.SIGINT
    except click.ClickException as error:
        if not _repeated(arguments):
            error.show(sys.stderr)
        status = 2
    except DoctorError as error:
        status = 2 if _repeated(arguments) else _fail(str(error), arguments)
    except BrokenPipeError:
        status = 0
    except OSError as error:
        said = f"cannot write the output: {error.strerror}" if error.errno in FULL and error.filename is None else _internal(error)
        status = _fail(said, arguments)
    except Exception as error:
        status = _fail(_internal(error), arguments)
    sys.exit(status if isinstance(status, int) else 0)


def _internal(error: Exception) -> str:
    return f"internal error: {type(error).__name__}: {error}\nPlease report it; --verbose shows the traceback."


def _repeated(arguments: list[str]) -> bool:
    """Whether the first process that torchrun launched on this machine says the same."""
    return arguments[:1] == ["run"] and os.environ.get("LOCAL_RANK", "0") != "0"


def _fail(message: str, arguments: list[str] | None = None) -> int:
    if arguments and ("--verbose" in arguments or "-v" in arguments):
        traceback.print_exc()
    click.echo(f"doctor: {message}", err=True)
    return 2
