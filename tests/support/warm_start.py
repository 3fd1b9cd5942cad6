"""Start `python -m zmqrt.…` by a fork of a process that has loaded it already: a tenth of the processor time.

A fork is a process like any other, with a pid, descriptors, environment, directory and exit code of its own, and runs
`__main__` from the top. CLONE_PARENT makes it a child of the process with the tests and not of the one it is a copy of,
so `subprocess.Popen` waits for it as for any other.

What an interpreter decides while it starts cannot be had this way: other commands, environments that differ in what
an interpreter reads, and systems without CLONE_PARENT get a process that starts as usual.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import platform
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

COMMANDS: Final = ("zmqrt.broker", "zmqrt.worker", "zmqrt.bridge_http", "zmqrt.client.cli")
_LOADED: Final = (
    "uvloop",
    "zmqrt.broker.server",
    "zmqrt.worker.node",
    "zmqrt.worker.standalone",
    "zmqrt.bridge_http.server",
    "zmqrt.client.cli.cmd_infer",
)
_READ_BY_INTERPRETERS: Final = ("PYTHON", "LANG", "LC_", "LD_", "MALLOC_", "GLIBC_")
_CLONE: Final = {"x86_64": 56, "aarch64": 220}.get(platform.machine()) if sys.platform == "linux" else None
_CLONE_PARENT: Final = 0x8000
_MAX_BYTES: Final = 1 << 17
"""Of one request: a packet of a local socket."""


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen`, quicker for our own commands."""

    def _execute_child(self, args: Any, *rest: Any) -> None:  # what `__init__` leaves to one system or the other
        _, preexec, _, kept, cwd, env, _, _, shell, *pipes = rest[:15]
        environ = dict(os.environ if env is None else env)
        asked = json.dumps([args[2:], os.fspath(cwd or Path.cwd()), environ]).encode() if _is_ours(args) else b""
        if not asked or len(asked) > _MAX_BYTES or preexec or kept or shell or not _TEMPLATE.is_like(environ):
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        p2cread, _, _, c2pwrite, _, errwrite = pipes
        stdio = [own if fd == -1 else fd for own, fd in enumerate((p2cread, c2pwrite, errwrite))]
        self.pid = _TEMPLATE.fork(asked, stdio)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _is_ours(args: Any) -> bool:
    return _CLONE is not None and isinstance(args, list) and args[:2] == [sys.executable, "-m"] and args[2] in COMMANDS


def _read_by_interpreters(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(_READ_BY_INTERPRETERS)}


class _Template:
    """The process that is copied. It is started when it is first needed, and ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._environ: dict[str, str] = {}

    def is_like(self, environ: Mapping[str, str]) -> bool:
        """Whether a process that starts with that environment is what a copy would be."""
        with self._lock:
            if self._socket is None:
                self._environ = _read_by_interpreters(os.environ)
                self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                command = [sys.executable, __file__, str(theirs.fileno())]
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
                theirs.close()
        return _read_by_interpreters(environ) == self._environ

    def fork(self, asked: bytes, stdio: list[int]) -> int:
        """Return the pid of a copy that does what is asked."""
        assert self._socket is not None
        with self._lock:
            socket.send_fds(self._socket, [asked], stdio)
            return int(self._socket.recv(64))


_TEMPLATE: Final = _Template()


# --- the process that is copied --------------------------------------------------------------------------------------


def _serve(channel: socket.socket) -> str:
    """Make copies until nobody asks any more; a copy returns the name of what it runs."""
    for name in _LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    while True:
        asked, stdio, _, _ = socket.recv_fds(channel, _MAX_BYTES, 3)
        if not asked:
            os._exit(0)
        pid = _clone()
        if pid == 0:
            channel.close()
            words, folder, environ = json.loads(asked)
            return _become(words, folder, environ, stdio)
        for fd in stdio:
            os.close(fd)
        channel.send(str(pid).encode())


def _clone() -> int:
    """Fork to a sibling. Raises OSError."""
    python = ctypes.pythonapi
    call = ctypes.PyDLL(None, use_errno=True).syscall
    python.PyOS_BeforeFork()
    pid = call(_CLONE, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
    return int(pid)


def _become(words: list[str], folder: str, environ: dict[str, str], stdio: list[int]) -> str:
    for number, fd in enumerate(stdio):
        os.dup2(fd, number)
    for fd in stdio:
        os.close(fd)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        old = getattr(sys, name)
        is_by_line = 1 if name == "stderr" else -1
        new = open(old.fileno(), mode, is_by_line, old.encoding, old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, folder)
    sys.argv = words
    return words[0]


if __name__ == "__main__":
    del sys.path[0]  # this folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, and their end this process
    runpy.run_module(_serve(socket.socket(fileno=int(sys.argv[1]))), run_name="__main__", alter_sys=True)
