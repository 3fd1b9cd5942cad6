"""What a child process does so that it never outlives its parent; `children.py` is the parent's side.

An engine that outlived its agent would hold the device, a broker its ports, and nobody would look for them. Standard
input is a pipe whose other end only the parent has: its end of file means that the parent is gone, killed or not, on
every platform. On Linux the kernel sends a signal as well, which reaches a process even while it is stopped, or while
a C extension holds the interpreter.

`python -m zmqrt.protocol.parent_watch GRACE_S MODULE ARGUMENTS…` runs another role under this watch.
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

from .errors import EXIT_FAILED

_PR_SET_PDEATHSIG: Final = 1


def watch_parent(grace_s: float = 0.0) -> None:
    """End this process when its parent ends: at once, or with SIGTERM first and `grace_s` to follow it.

    A line on standard input is SIGTERM too, for parents that cannot send it (Windows). Call it from a process that
    `children.start` started.
    """
    if sys.platform == "linux":  # a stopped process has to go on before it can follow SIGTERM
        _ask_for(signal.SIGCONT if grace_s else signal.SIGKILL)
    pipe = os.dup(0)  # not inherited by what this process itself starts
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_watch, args=(pipe, grace_s), name="zmqrt-parent", daemon=True).start()


def end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, for those that no pipe leads to. Linux alone."""
    if sys.platform == "linux":
        _ask_for(signal.SIGKILL)


def _ask_for(number: signal.Signals) -> None:
    """Have a signal sent when the *thread* ends that started us; all our parents start children from their main one."""
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _watch(pipe: int, grace_s: float) -> None:
    while os.read(pipe, 64):
        _terminate()
    if grace_s:
        _terminate()
        time.sleep(grace_s)
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)  # and whatever we have started: this process leads a group of its own
    os._exit(EXIT_FAILED)


def _terminate() -> None:
    if sys.platform == "win32":  # there SIGTERM kills; Ctrl-C is what a role can answer
        _thread.interrupt_main()
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Watch the parent, and become the role."""
    grace_s, module, *arguments = sys.argv[1:]
    watch_parent(float(grace_s))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
