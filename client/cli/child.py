"""Run a role so that it never outlives whoever started it: `python -m zmqrt.client.cli.child MODULE ARGUMENTS…`.

Standard input is the leash. A line on it asks the role to drain; its end, which also comes when the other side is
killed without a word, makes the role leave, and a few seconds later ends whatever of it is still there. A pipe works
like this on every platform, which death signals and process groups do not.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import runpy
import signal
import sys
import threading
import time
from typing import Final

from ...protocol.errors import EXIT_FAILED

_PR_SET_PDEATHSIG: Final = 1
GRACE_S: Final = 5.0
"""Nobody waits for answers any more: time to say goodbye to peers and to free a GPU, no more."""


def main() -> None:
    """Take the leash off standard input, then become the role."""
    _wake_when_parent_dies()
    module, *arguments = sys.argv[1:]
    leash = os.dup(0)  # not inherited by what the role itself starts
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_watch, args=(leash,), name="leash", daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _wake_when_parent_dies() -> None:
    """Let a process that was stopped (SIGSTOP) go on when its parent dies: a stopped one would not see its leash end.

    Linux alone has this (prctl(2), PR_SET_PDEATHSIG).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another libc
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


def _watch(leash: int) -> None:
    while os.read(leash, 64):
        _leave()
    _leave()
    time.sleep(GRACE_S)
    _end()


def _leave() -> None:
    if sys.platform == "win32":  # there SIGTERM kills; Ctrl-C is what a role can answer
        _thread.interrupt_main()
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def _end() -> None:
    """End this process, and what it has started where that can be told apart: it leads a group of its own."""
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
