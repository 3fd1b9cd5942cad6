"""How a program of ours starts another one, so that it ends with us; `parent_watch.py` is the child's side.

`python -m` puts the working directory first on the import path, so that a stranger's `msgspec.py` there would run; `-P`
leaves it out. What PYTHONPATH names stays: the user said that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final

PARENT_WATCH: Final = "zmqrt.protocol.parent_watch"
UTF8_OUTPUT: Final = {"PYTHONIOENCODING": "utf-8:backslashreplace"}
"""For the environment of children whose output we read: we know then how, whatever the locale is."""
_END_S: Final = 2.0
"""A killed process goes at once, but for one that a driver holds: nobody waits longer for that one."""


def python(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module."""
    return [sys.executable, "-P", "-m", module, *map(_passable, arguments)]


def _passable(argument: str) -> str:
    """Return an argument that can be handed over in any locale: as the bytes of UTF-8, which `names.as_typed` reads."""
    return os.fsdecode(argument.encode("utf-8", "surrogateescape"))


def start(
    module: str,
    *arguments: str,
    env: Mapping[str, str],
    stdout: int | IO[Any] | None = None,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a child that calls `watch_parent`, with `env` on top of our environment. Call it from the main thread.

    Its standard output is our standard error unless said otherwise: ours has one line, and that is not the child's.
    """
    return subprocess.Popen(
        python(module, *arguments),
        env={**os.environ, **env},
        stdout=sys.__stderr__ if stdout is None else stdout,
        stderr=stderr,
        bufsize=0,
        pass_fds=tuple(pass_fds),
        stdin=subprocess.PIPE,  # its end of file tells the child that we are gone
        # Ctrl-C goes to a terminal's whole group. It reaches us alone, and we tell the children in the right order.
        start_new_session=sys.platform != "win32",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a child now, stopped or stuck, with everything that it has started and not ended."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
