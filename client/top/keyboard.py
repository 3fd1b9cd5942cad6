"""Keys as they are pressed, by name: from a terminal in cbreak mode, or from the console of Windows.

Names are single characters, or: up, down, left, right, home, end, page-up, page-down, enter, escape, tab, space,
backspace, ctrl-c.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any, Final, Protocol, Self

_ESCAPE_S: Final = 0.05
"""The rest of an arrow key comes at once, over ssh too; after an escape of its own there is nothing."""
_SEQUENCES: Final = {
    "[A": "up",
    "[B": "down",
    "[C": "right",
    "[D": "left",
    "OA": "up",
    "OB": "down",
    "OC": "right",
    "OD": "left",
    "[H": "home",
    "[F": "end",
    "OH": "home",
    "OF": "end",
    "[1~": "home",
    "[4~": "end",
    "[5~": "page-up",
    "[6~": "page-down",
}
_CONTROLS: Final = {
    "\r": "enter",
    "\n": "enter",
    "\t": "tab",
    " ": "space",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x03": "ctrl-c",
    "\x1b": "escape",
}
_WINDOWS: Final = {
    "H": "up",
    "P": "down",
    "K": "left",
    "M": "right",
    "G": "home",
    "O": "end",
    "I": "page-up",
    "Q": "page-down",
}
_POLL_S: Final = 0.03


class Keyboard(Protocol):
    """Where keys come from; used in a `with` block."""

    def __enter__(self) -> Self:
        """Take the keys."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back as it was."""
        ...

    def keys(self, wait_s: float) -> list[str]:
        """Wait so long for keys at most; return their names."""
        ...


def split(typed: str) -> tuple[list[str], str]:
    """Name the keys in what was typed; what may be the beginning of one is the rest."""
    keys: list[str] = []
    while typed:
        if typed[0] != "\x1b":
            keys.append(_CONTROLS.get(typed[0], typed[0]))
            typed = typed[1:]
            continue
        known = next((one for one in _SEQUENCES if typed.startswith(one, 1)), None)
        if known is not None:
            keys.append(_SEQUENCES[known])
            typed = typed[1 + len(known) :]
        elif any(one.startswith(typed[1:]) for one in _SEQUENCES):
            return keys, typed
        elif typed[1] in "[O":
            typed = _without_unknown(typed)
        else:
            keys.append("escape")
            typed = typed[1:]
    return keys, ""


def _without_unknown(typed: str) -> str:
    """Skip an escape sequence that is none of ours: up to its final byte (ECMA-48)."""
    end = 2
    while end < len(typed) and not "\x40" <= typed[end] <= "\x7e":
        end += 1
    return typed[end + 1 :]


def open_keyboard() -> Keyboard:
    """Return the keyboard of this terminal."""
    return _Console() if sys.platform == "win32" else _Terminal()


class _Terminal:
    """A POSIX terminal: no echo, no lines; Ctrl-C stays what it is."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._before: list[Any] = []
        self._rest = ""

    def __enter__(self) -> Self:
        import termios
        import tty

        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import termios

        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def keys(self, wait_s: float) -> list[str]:
        """Wait for keys."""
        if not self._is_readable(wait_s):
            return self._take_rest()
        typed = os.read(self._fd, 1024)
        if not typed:
            return ["ctrl-c"]  # the terminal is gone
        keys, self._rest = split(self._rest + typed.decode("utf-8", "ignore"))
        if self._rest and not self._is_readable(_ESCAPE_S):
            keys += self._take_rest()
        return keys

    def _take_rest(self) -> list[str]:
        """Take an escape that nothing follows for the key of that name."""
        rest, self._rest = self._rest, ""
        return ["escape"] if rest else []

    def _is_readable(self, wait_s: float) -> bool:
        import select

        return bool(select.select([self._fd], [], [], max(0.0, wait_s))[0])


class _Console:
    """The console of Windows: it cannot be waited for together with time, so it is asked every few milliseconds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def keys(self, wait_s: float) -> list[str]:
        """Wait for keys."""
        import msvcrt

        console: Any = msvcrt
        give_up_at = time.monotonic() + wait_s
        while not console.kbhit():
            if time.monotonic() >= give_up_at:
                return []
            time.sleep(_POLL_S)
        keys: list[str] = []
        while console.kbhit():
            one: str = console.getwch()
            keys.append(_WINDOWS.get(console.getwch(), "") if one in "\x00\xe0" else _CONTROLS.get(one, one))
        return [key for key in keys if key]
