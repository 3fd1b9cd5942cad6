"""A worker that brings its own broker: one command, one ready line, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.integration


@contextlib.contextmanager
def standalone(folder: Path, port: int) -> Generator[subprocess.Popen[str], None, None]:
    """Run `zmqrt-worker --standalone`; whatever it started is gone at the end."""
    command = [sys.executable, "-m", "zmqrt.worker", "--standalone", "--port", str(port), "--engine", "mock"]
    with subprocess.Popen(
        [*command, "--log-format", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, text=True
    ) as process:
        children: list[psutil.Process] = []
        try:
            yield process
            with contextlib.suppress(psutil.NoSuchProcess):
                children = psutil.Process(process.pid).children(recursive=True)
        finally:
            if process.poll() is None:
                process.kill()
        assert not psutil.wait_procs(children, timeout=5)[1]


def ready_line(process: subprocess.Popen[str]) -> dict[str, dict[str, str]]:
    """Wait for the one line on standard output."""
    assert process.stdout is not None
    line: dict[str, dict[str, str]] = json.loads(process.stdout.readline())
    return line


def broker_of(process: subprocess.Popen[str]) -> psutil.Process:
    """Return the broker's process."""
    (broker,) = [one for one in psutil.Process(process.pid).children() if "zmqrt.broker" in one.cmdline()]
    return broker


def test_one_command_serves_clients_and_stops_its_broker(tmp_path: Path) -> None:
    """The ready line names the client endpoint; SIGTERM drains and ends everything with 0."""
    with standalone(tmp_path, 0) as process:
        endpoints = ready_line(process)["endpoints"]
        host, _, port = endpoints["clients"].removeprefix("tcp://").rpartition(":")
        socket.create_connection((host, int(port)), timeout=2).close()
        broker = broker_of(process)
        process.send_signal(signal.SIGTERM)
        code = process.wait(15)

    assert code == 0
    assert not broker.is_running()


def test_without_its_broker_it_ends(tmp_path: Path) -> None:
    """A node that nobody can reach any more does not stay."""
    with standalone(tmp_path, 0) as process:
        ready_line(process)
        broker_of(process).kill()
        code = process.wait(15)
        assert process.stderr is not None
        words = process.stderr.read()

    assert code == 1
    assert "the broker of --standalone has ended" in words


def test_killed_it_takes_its_broker_along(tmp_path: Path) -> None:
    """Nobody else would ever stop that broker, and the next worker would find its port taken."""
    with standalone(tmp_path, 0) as process:
        ready_line(process)
        broker = broker_of(process)
        process.kill()
        process.wait(5)

        assert not psutil.wait_procs([broker], timeout=5)[1]


def test_a_busy_port_is_named(tmp_path: Path) -> None:
    """Exit 1 and the address that is taken."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with standalone(tmp_path, port) as process:
            code = process.wait(20)
            assert process.stderr is not None
            words = process.stderr.read()

    assert code == 1
    # Now and then the next port, which is for workers, is somebody's too, and named first.
    assert re.search(rf"tcp://127\.0\.0\.1:({port}|{port + 1}) is in use", words)
