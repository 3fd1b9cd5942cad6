"""Makes words of a peer harmless for a terminal or a log: what would move the cursor or forge a line becomes a mark.

The one place that says what is harmless. `printable` is for a name or a sentence, which is one line; `readable` for an
answer, which has many and is written in any script; `escaped` for JSON, which says the same without a character that a
terminal would obey.
"""

from __future__ import annotations

import re
from typing import Final

_MARK: Final = "\ufffd"
_OBEYED: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # C0 (but tab and newline), DEL, C1: ESC, CSI, OSC and what else moves
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks and overrides of direction: words that read otherwise
    "\u2028\u2029\ud800-\udfff\ufff9-\ufffb"  # lines and paragraphs of Unicode, half characters, annotations
    "\U000e0001\U000e0020-\U000e007f]"  # tags: text that nobody sees
)
"""What answers in any script can do without. Joiners and variation selectors stay: Persian and emoji need them."""


def printable(words: str) -> str:
    """Return the words with every control and format character replaced; spaces stay."""
    return words if words.isprintable() else "".join(letter if letter.isprintable() else _MARK for letter in words)


def readable(text: str) -> str:
    """Return text of several lines with nothing in it that a terminal would obey; a carriage return is left out."""
    return text if text.isprintable() else _OBEYED.sub(_MARK, text.replace("\r", ""))


def indented(text: str) -> str:
    """Return lines of which only the first can be taken for the beginning of something."""
    first, *others = re.split(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", text)
    return "\n    ".join([printable(first.expandtabs()), *(printable(line.expandtabs()) for line in others)])


def escaped(line: str) -> str:
    """Return JSON that means the same, with escapes for what a terminal would obey."""
    return line if line.isprintable() else _OBEYED.sub(_escape, line)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\u{0xD800 + ((code - 0x10000) >> 10):04x}\\u{0xDC00 + ((code - 0x10000) & 0x3FF):04x}"
