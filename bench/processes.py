"""The processes of a bench: a broker, and peers that say "ready" in a line and are ended with the bench."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import IO, Final

import click
import msgspec

HERE: Final = Path(__file__).parent
BROKER: Final = [
    *("-m", "zmqrt.broker", "--log-format", "json", "--log-level", "warning"),
    *("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0"),
    *("--max-outstanding", "100000", "--max-queued-requests", "100000", "--max-in-flight-requests", "100000"),
]


class Ready(msgspec.Struct):
    """The line with which a broker or proxy says where it is."""

    endpoints: dict[str, str]


def start(stack: contextlib.ExitStack, *arguments: str) -> tuple[subprocess.Popen[str], IO[str]]:
    """Start a Python program; it ends with the stack."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    stack.callback(_stop, process)
    assert process.stdout is not None
    return process, process.stdout


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def start_peer(
    stack: contextlib.ExitStack, program: str, role: str, endpoint: str
) -> tuple[subprocess.Popen[str], IO[str]]:
    """Start a peer and wait until it is connected."""
    process, out = start(stack, str(HERE / program), role, endpoint)
    if out.readline().strip() != "ready":
        raise click.ClickException(f"the {role} of {program} did not start; what it wrote stands above")
    return process, out


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to its standard input."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
