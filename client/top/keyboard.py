"""Keys as they are pressed, by name: from a terminal in cbreak mode, or from the console of Windows.

Names are single characters, or: up, down, left, right, home, end, page-up, page-down, enter, escape, tab, space,
backspace, ctrl-c, ctrl-z; and `paste:TEXT` for what was pasted, where a terminal tells (bracketed paste).
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import Any, Final, Self

_ESCAPE_S: Final = 0.05
"""The rest of an arrow key follows at once, over ssh too; nothing follows the escape key."""
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
    "\x1a": "ctrl-z",
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
_PASTE_BEGINS: Final = "\x1b[200~"
_PASTE_ENDS: Final = "\x1b[201~"
_LONGEST_PASTE: Final = 4096
_LONGEST: Final = 32
"""No key is that long: what is longer is skipped."""


def split(typed: str) -> tuple[list[str], str]:
    """Name the keys in what was typed; what may be the beginning of one is the rest."""
    keys: list[str] = []
    while typed:
        if typed[0] != "\x1b":
            keys.append(_CONTROLS.get(typed[0], typed[0]))
            typed = typed[1:]
            continue
        if typed.startswith(_PASTE_BEGINS):
            text, is_whole, rest = typed[len(_PASTE_BEGINS) :].partition(_PASTE_ENDS)
            if not is_whole and len(typed) < _LONGEST_PASTE:
                return keys, typed
            keys.append(f"paste:{text[:_LONGEST_PASTE]}")
            typed = rest
            continue
        end = _end_of_sequence(typed)
        if end is None:
            return keys, typed
        if end == 1:
            keys.append("escape")
        elif typed[1:end] in _SEQUENCES:
            keys.append(_SEQUENCES[typed[1:end]])
        typed = typed[end:]
    return keys, ""


def _end_of_sequence(typed: str) -> int | None:
    """Return how long the escape sequence is that this begins with (ECMA-48); 1: none, None: it has not ended yet."""
    if len(typed) == 1:
        return None
    if typed[1] == "O":
        return 3 if len(typed) > 2 else None
    if typed[1] != "[":
        return 1
    for index, letter in enumerate(typed[2:_LONGEST], 2):
        if "\x40" <= letter <= "\x7e":
            return index + 1
        if not "\x20" <= letter <= "\x3f":
            return index  # broken off: what comes now is something else
    return None if len(typed) < _LONGEST else _LONGEST


class TerminalKeyboard:
    """A POSIX terminal without echo and line buffering; Ctrl-C still interrupts."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._before: list[Any] = []
        self._rest = ""

    def __enter__(self) -> Self:
        tty: Any = importlib.import_module("tty")
        termios: Any = importlib.import_module("termios")  # no such module, and no types of it, on Windows
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        now = termios.tcgetattr(self._fd)
        now[6][termios.VSUSP] = b"\0"  # Ctrl-Z is a key: the terminal is to be put in order before we stop
        termios.tcsetattr(self._fd, termios.TCSADRAIN, now)
        sys.stdout.write("\x1b[?2004h")
        sys.stdout.flush()
        return self

    def __exit__(self, *_: object) -> None:
        termios: Any = importlib.import_module("termios")
        sys.stdout.write("\x1b[?2004l")
        sys.stdout.flush()
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
        """Return an escape that nothing follows as the key of that name."""
        rest, self._rest = self._rest, ""
        return ["escape"] if rest else []

    def _is_readable(self, wait_s: float) -> bool:
        import select

        return bool(select.select([self._fd], [], [], max(0.0, wait_s))[0])


class WindowsKeyboard:
    """The console of Windows. It has no wait with a timeout, so it is polled."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
            letter: str = console.getwch()
            is_special = letter in "\x00\xe0"
            keys.append(_WINDOWS.get(console.getwch(), "") if is_special else _CONTROLS.get(letter, letter))
        return [key for key in keys if key]


Keyboard = TerminalKeyboard | WindowsKeyboard


def open_keyboard() -> Keyboard:
    """Return the keyboard of this terminal, to be used in a `with` block."""
    return WindowsKeyboard() if sys.platform == "win32" else TerminalKeyboard()
