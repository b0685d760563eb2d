"""stdout and stderr: whose they are while a user's code runs, and what they can take."""
from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator

from gradcheck_doctor.errors import ConfigError

JSON = frozenset({"json", "sarif", "gitlab", "rdjson"})
MARKUP = frozenset({"html", "junit"})
PLAIN_BARS = str.maketrans("▁▂▃▄▅▆▇█", ".:-=+*#@")


def opened() -> None:
    """Open what the caller closed (`doctor ... >&-`): Python has None there, and the next file would get its number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115


def forgiving() -> None:
    """Let stdout write "?" for a character that its encoding lacks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextlib.contextmanager
def stdout_to_stderr(active: bool = True) -> Iterator[None]:
    """stdout holds the report only: what a user's code prints goes to stderr, that of its child processes too."""
    if not active:
        yield
        return
    sys.stdout.flush()
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            saved = os.dup(1)
            os.dup2(2, 1)
            stack.callback(_put_back, saved)
        yield


def _put_back(saved: int) -> None:
    if sys.__stdout__ is not None:
        sys.__stdout__.flush()
    os.dup2(saved, 1)
    os.close(saved)


def fitting(text: str, encoding: str | None, format: str) -> str:
    """The report as a stream of that encoding can take it: nothing is lost to an error, and what machines read stays valid.

    JSON is escaped, markup gets character references, both whatever the encoding names itself; elsewhere a character without a place becomes "?".

    >>> fitting('{"a": "ü"}', "latin-1", "json"), fitting("<p>ü</p>", "latin-1", "html"), fitting("→ ü █", "latin-1", "text")
    ('{\\n "a": "\\\\u00fc"\\n}', '<p>&#252;</p>', '? ü @')
    """
    encoding = encoding or "utf-8"
    if codecs.lookup(encoding).name == "utf-8":
        return text.encode(errors="backslashreplace").decode()               # half a surrogate pair, from the name of a file
    if format in JSON:
        return json.dumps(json.loads(text), indent=1)
    if format in MARKUP:
        return text.encode("ascii", "xmlcharrefreplace").decode()
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(PLAIN_BARS).encode(encoding, "replace").decode(encoding)
    return text


def check_writable(path: str | None) -> None:
    """Before the work begins: whether its result can be written to `path`, which stays as it is.

    Raises:
        ConfigError: it can't.
    """
    if path is None or os.path.exists(path) and not os.path.isfile(path):
        return                                                       # opening a pipe only to close it would end it
    new = not os.path.exists(path)
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise unwritable(path, error) from error
    if new:
        with contextlib.suppress(FileNotFoundError):                 # another rank was faster
            os.unlink(path)


def unwritable(path: str, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write {path}: {error.strerror or error}")
