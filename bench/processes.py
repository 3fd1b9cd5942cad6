"""The processes of a bench: a broker, and peers that say "ready" in a line and are ended with the bench."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import IO, Final

import click
import httpx
import msgspec
import psutil

HERE: Final = Path(__file__).parent
BROKER: Final = [
    *("-m", "zmqrt.broker", "--log-format", "json", "--log-level", "warning"),
    *("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0"),
    *("--max-outstanding", "100000", "--max-queued-requests", "100000", "--max-in-flight-requests", "100000"),
]


class Ready(msgspec.Struct):
    """The line with which a broker or proxy says where it is."""

    endpoints: dict[str, str]


def _unwind_when_told_to_leave() -> None:
    """Let SIGTERM end a bench as Ctrl-C does: by default it ends it at once, and leaves all its processes behind."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def start(
    stack: contextlib.ExitStack, *arguments: str, python: str = sys.executable, env: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen[str], IO[str]]:
    """Start a Python program; it ends with the stack."""
    _unwind_when_told_to_leave()
    process = subprocess.Popen(
        [python, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env={**os.environ, **(env or {})},
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
    stack: contextlib.ExitStack,
    program: str,
    role: str,
    endpoint: str,
    *,
    python: str = sys.executable,
    env: Mapping[str, str] | None = None,
) -> tuple[subprocess.Popen[str], IO[str]]:
    """Start a peer and wait until it is connected."""
    process, out = start(stack, str(HERE / program), role, endpoint, python=python, env=env)
    if out.readline().strip() != "ready":
        raise click.ClickException(f"the {role} of {program} did not start; what it wrote stands above")
    return process, out


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to its standard input."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def child(*command: str, **environment: str) -> Generator[subprocess.Popen[bytes]]:
    """Run a program in a process group of its own, and end the group."""
    _unwind_when_told_to_leave()
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by its last user
    process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment, start_new_session=True)
    log.close()
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_up(url: str, most_s: float = 180.0) -> None:
    """Wait until it answers 200."""
    give_up_at = time.monotonic() + most_s
    while time.monotonic() < give_up_at:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2).status_code == 200:
                return
        time.sleep(0.2)
    raise click.ClickException(f"{url} was not up after {most_s:.0f} s")


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far, all its threads, those that have ended too; 0 if it is gone."""
    if sys.platform == "linux":
        # The clock of another process: it counts nanoseconds, where /proc counts hundredths of a second.
        with contextlib.suppress(OSError):
            return time.clock_gettime(~pid << 3 | 2)
        return 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0
