"""Text that UTF-8 cannot carry: halves of surrogate pairs, as a cut emoji or a byte of a foreign file name leaves them.

Python holds such text without a word until somebody packs it. Found here, it can be told by its name.
"""

from __future__ import annotations

from typing import Any, Final

HALF: Final = "it holds half a character (a lone surrogate), which UTF-8 cannot carry"


def is_unicode(words: str) -> bool:
    """Say whether UTF-8 can carry it."""
    try:
        words.encode()
    except UnicodeEncodeError:
        return False
    return True


def half_in(values: object, at: str = "") -> str | None:
    """Return where in a body there is half a character, such as `messages[0].content`; None if nowhere."""
    if isinstance(values, str):
        return None if is_unicode(values) else at
    found: Any = values
    if isinstance(values, dict):
        named = ((key if isinstance(key, str) else str(key), value) for key, value in found.items())
        places = ((f"{at}.{key}".lstrip("."), key, value) for key, value in named)
    elif isinstance(values, list | tuple):
        places = ((f"{at}[{index}]", "", value) for index, value in enumerate(found))
    else:
        return None
    for here, key, value in places:
        where = half_in(value, here) if is_unicode(key) else at or "a name"
        if where is not None:
            return where
    return None
