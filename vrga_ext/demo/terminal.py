"""Print any text on terminals whose encoding lacks some of its characters."""

from __future__ import annotations

import codecs
import io
import sys
from typing import Any

from rich.console import Console

from vrga_ext.viz.texts import escaped

_ERRORS = "vrga_ext.spelled"
# Spellings of the non-ASCII characters in our own texts; "?" has a meaning in the report.
_SPELLED = {
    "…": "...", "✓": "yes", "✗": "no", "±": "+-", "→": "->", "≤": "<=", "≥": ">=", "µ": "u",
}  # fmt: skip


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Replacement for characters that an encoding lacks: words, or their code points."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    plain = [_SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost]
    return "".join(plain), error.end


codecs.register_error(_ERRORS, _spell)


def never_fail() -> None:
    """Make standard output and error replace characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def console(file: Any = None) -> Console:
    """A console that prints texts literally, without markup and emoji codes."""
    return Console(file=file, markup=False, emoji=False)


def shown(text: str, to: Console) -> str:
    """A text in one line for a console: control characters escaped, lacking ones replaced.

    Examples
    --------
    >>> from io import BytesIO, TextIOWrapper
    >>> latin = Console(file=TextIOWrapper(BytesIO(), encoding="latin-1"))
    >>> shown("a\\x1b[2Jb … ± ✓", latin)
    'a\\\\x1b[2Jb ... ± yes'
    """
    return encodable(escaped(text), to)


def encodable(text: str, to: Console) -> str:
    """A text with replacements for characters that the console's encoding lacks."""
    return text.encode(to.encoding, _ERRORS).decode(to.encoding)
