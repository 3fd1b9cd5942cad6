"""Runs a program under what a systemd unit forbids by the kernel alone: system calls, and memory that becomes code.

    python sandboxed.py UNIT PROGRAM [ARGUMENT …]

systemd need not run: the filter is the one that it would make (libseccomp), by its own lists of calls.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO(EPERM)
_PR_SET_MDWE, _REFUSE_EXEC_GAIN = 65, 1


def main() -> None:
    """Forbid, then become the program."""
    lines = [line.partition("=") for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    if ("MemoryDenyWriteExecute", "=", "yes") in lines:
        _forbid_new_code()
    filters = [value for name, _, value in lines if name == "SystemCallFilter"]
    _forbid_calls(filters)
    os.execv(sys.argv[2], sys.argv[2:])


def _forbid_new_code() -> None:
    if ctypes.CDLL(None).prctl(_PR_SET_MDWE, _REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
        print("this kernel knows no PR_SET_MDWE", file=sys.stderr)


def _forbid_calls(filters: list[str]) -> None:
    allowed = [value for value in filters if not value.startswith("~")]
    denied = _calls(word for value in filters if value.startswith("~") for word in value[1:].split())
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_init.argtypes = [ctypes.c_uint32]
    seccomp.seccomp_rule_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint]
    seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
    context = seccomp.seccomp_init(_REFUSE if allowed else _ALLOW)
    listed = _calls(["@default", *" ".join(allowed).split()]) - denied if allowed else denied
    for name in listed:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            seccomp.seccomp_rule_add(context, _ALLOW if allowed else _REFUSE, number, 0)
    if seccomp.seccomp_load(context) != 0:
        sys.exit("the filter was not taken")


def _calls(words: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(words)
    while waiting:
        word = waiting.pop()
        if not word.startswith("@"):
            found.add(word)
            continue
        told = subprocess.run(["systemd-analyze", "syscall-filter", word], check=True, capture_output=True, text=True)
        waiting += [line.strip() for line in told.stdout.splitlines()[1:] if line.strip() and "#" not in line]
    return found


if __name__ == "__main__":
    main()
