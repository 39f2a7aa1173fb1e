"""Make every character of a text visible."""

from __future__ import annotations

import unicodedata

# Line break, tab, and Unicode's pictures of the other control characters.
_SIGNS = {code: 0x2400 + code for code in range(32)} | {127: 0x2421} | {10: "↵", 9: "⇥"}
_JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji


def visible(text: str) -> str:
    """A token's text with signs for control characters, and for blanks if it has nothing else.

    Examples
    --------
    >>> visible(" a"), visible("a\\n"), visible("  "), visible(""), visible("\\u200b")
    (' a', 'a↵', '␣␣', '∅', 'U+200B')
    """
    shown = text.translate(_SIGNS)
    if any(unicodedata.category(letter)[0] not in "ZC" for letter in shown):
        return escaped(shown)
    return "".join("␣" if c.isspace() else f"U+{ord(c):04X}" for c in shown) or "∅"


def escaped(text: str) -> str:
    """A text with every character without a shape written as Python's escape.

    These are characters that a terminal acts on, that break lines or change their direction, and
    that no font has.

    Examples
    --------
    >>> print(escaped("a\\x1b[31mred\\nnext \\u202eback"))
    a\\x1b[31mred\\nnext \\u202eback
    """
    return "".join(letter if _has_shape(letter) else repr(letter)[1:-1] for letter in text)


def _has_shape(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs" or letter in _JOINERS
