"""Source text as Python reads it: encoding cookie, byte order mark, line ends; and back to the same bytes."""
from __future__ import annotations

import codecs
import functools
import hashlib
import io
import os
import re
import tokenize

ROOTS = (".git", "pyproject.toml", "setup.py", "setup.cfg")
LIBRARIES = ("site-packages", "dist-packages")


def decoded(raw: bytes) -> str:
    """Text of a source file without its byte order mark, line ends kept.

    Raises:
        ValueError: the encoding is unknown or does not fit, or the text could not be written back byte for byte.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding)
    except (SyntaxError, LookupError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    if encoded(text, mark=raw.startswith(codecs.BOM_UTF8)) != raw:
        raise ValueError(f"it can't be kept byte for byte in {encoding}")
    return text


def encoded(text: str, *, mark: bool = False) -> bytes:
    """Bytes of a source file, in the encoding that its own cookie names (UTF-8 without one).

    Args:
        text: the source, without a byte order mark.
        mark: begin with the UTF-8 byte order mark.

    Raises:
        ValueError: a character has no place in that encoding.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(text.encode("utf-8", "surrogatepass")).readline)
    return (codecs.BOM_UTF8 if mark else b"") + text.encode(encoding)


def split_target(spec: str) -> tuple[str, str]:
    """(file, folder or module, expression) of a TARGET: the first colon behind a file that exists, else the first that is no drive letter's."""
    if os.path.exists(spec):
        return spec, ""
    for colon in (place for place, letter in enumerate(spec) if letter == ":"):
        if os.path.isfile(spec[:colon]):
            return spec[:colon], spec[colon + 1:]
    found = re.match(r"^((?:[A-Za-z]:[\\/])?[^:]*)(?::(.*))?$", spec, re.DOTALL)
    return (found[1], found[2] or "") if found else (spec, "")


def target_file(spec: str) -> str:
    """The file, folder or module of a TARGET."""
    return split_target(spec)[0]


@functools.lru_cache(4096)
def home_path(file: str) -> str:
    """A name for a file that is the same in every checkout: its path from the root of its project, or of its library; else its name alone."""
    parts = os.path.abspath(file).replace(os.sep, "/").split("/")
    for place, part in enumerate(parts):
        if part in LIBRARIES:
            return "/".join(parts[place + 1:])
    for place in range(len(parts) - 1, 0, -1):
        folder = "/".join(parts[:place]) or "/"
        if any(os.path.exists(os.path.join(folder, name)) for name in ROOTS):
            return "/".join(parts[place:])
    return parts[-1]


def digest(file: str) -> str:
    """16 hexadecimal digits that change with the content of a file; empty when it can't be read."""
    try:
        with open(file, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()[:16]
    except OSError:
        return ""


def lines_of(text: str) -> list[str]:
    r"""Lines with their ends, counted as the Python parser does.

    `str.splitlines` also breaks at form feeds, U+0085, U+2028 and others, which the parser takes as ordinary characters.

    >>> lines_of("a = '\u2028'\r\nb = 2\n")
    ["a = '\u2028'\r\n", 'b = 2\n']
    """
    return list(io.StringIO(text, newline=""))
