"""Words of a peer on their way to a terminal or a log: what would move the cursor or forge a line becomes a mark."""

from __future__ import annotations

from typing import Final

_MARK: Final = "\ufffd"


def printable(words: str) -> str:
    """Return the words with every control and format character replaced; spaces stay."""
    return words if words.isprintable() else "".join(one if one.isprintable() else _MARK for one in words)
