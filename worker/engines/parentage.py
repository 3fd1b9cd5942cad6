"""End with one's parent: an engine that outlived its agent would hold the device, and nobody would ever ask for it.

Two ways at once. On Linux the kernel kills us when the parent goes (even while a C extension holds the interpreter).
Everywhere, our standard input is a pipe whose other end only the parent has: end of file means that it is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with_parent(parent_pid: int) -> None:
    """Arrange for the end of this process when the process `parent_pid` ends. Standard input must be its pipe."""
    if sys.platform == "linux":
        # The signal follows the death of the *thread* that spawned us: the agent spawns from its main thread.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it went between our start and the line above
        os._exit(1)
    threading.Thread(target=_wait_for_the_end, name="zmqrt-parent", daemon=True).start()


def _wait_for_the_end() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)
