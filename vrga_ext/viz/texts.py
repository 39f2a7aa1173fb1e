"""Texts of tokens, as a reader can see them."""

from __future__ import annotations

import unicodedata

# Line break, tab, and Unicode's pictures of the other control characters.
_SIGNS = {code: 0x2400 + code for code in range(32)} | {127: 0x2421} | {10: "↵", 9: "⇥"}


def visible(text: str) -> str:
    """A token's text with signs for control characters, and for all there is if it were unseen.

    Examples
    --------
    >>> visible(" a"), visible("a\\n"), visible("  "), visible(""), visible("\\u200b")
    (' a', 'a↵', '␣␣', '∅', 'U+200B')
    """
    shown = text.translate(_SIGNS)
    if any(unicodedata.category(letter)[0] not in "ZC" for letter in shown):
        return shown
    return "".join("␣" if c.isspace() else f"U+{ord(c):04X}" for c in shown) or "∅"
