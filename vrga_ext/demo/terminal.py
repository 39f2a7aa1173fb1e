"""Printing what models, people and files say, on terminals that cannot show all of it."""

from __future__ import annotations

import codecs
import io
import sys
from typing import Any

from rich.console import Console

from vrga_ext.viz.texts import escaped

_ERRORS = "vrga_ext.spelled"
# What our own texts have besides ASCII, and "?" says something else in the report.
_SPELLED = {
    "…": "...", "✓": "yes", "✗": "no", "±": "+-", "→": "->", "≤": "<=", "≥": ">=", "µ": "u",
}  # fmt: skip


def _spell(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding does not have: words, or their numbers."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    plain = [_SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost]
    return "".join(plain), error.end


codecs.register_error(_ERRORS, _spell)


def never_fail() -> None:
    """Let standard output and error spell what their encoding does not have, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def console(file: Any = None) -> Console:
    """Where texts go as they are: what people and models write is no markup and no emoji."""
    return Console(file=file, markup=False, emoji=False)


def shown(text: str, to: Console) -> str:
    """A text in one line, as a console can show it; what would move its cursor is escaped.

    Examples
    --------
    >>> from io import BytesIO, TextIOWrapper
    >>> latin = Console(file=TextIOWrapper(BytesIO(), encoding="latin-1"))
    >>> shown("a\\x1b[2Jb … ± ✓", latin)
    'a\\\\x1b[2Jb ... ± yes'
    """
    return encodable(escaped(text), to)


def encodable(text: str, to: Console) -> str:
    """A text with what the console's encoding does not have spelled out."""
    return text.encode(to.encoding, _ERRORS).decode(to.encoding)
