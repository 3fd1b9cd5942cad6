"""What the systemd units forbid is nothing that the programs need: a fleet serves under their filters."""

from __future__ import annotations

import ctypes.util
import shutil
import stat
import sys
from pathlib import Path

import pytest

from support import stack
from support.http import answer_of
from support.stack import Process

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]
ROOT = Path(__file__).resolve().parents[2]


def start(tmp_path: Path, role: str, module: str, *arguments: str) -> Process:
    """Start a role as its unit would have it."""
    unit, run = ROOT / "deploy" / "systemd" / f"zmqrt-{role}.service", ROOT / "tests" / "support" / "sandboxed.py"
    python = tmp_path / role
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {run} {unit} {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return stack.start(module, *arguments, python=str(python))


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or ctypes.util.find_library("seccomp") is None,
    reason="the lists of calls are systemd's, and the filter is libseccomp's",
)
def test_a_fleet_serves_under_the_filters_of_its_units(tmp_path: Path) -> None:
    """Broker and bridge may neither make code nor call what is privileged; a node not what is dangerous."""
    started: list[Process] = []
    try:
        broker = start(tmp_path, "broker", "broker", "--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0")
        started.append(broker)
        workers = broker.endpoints["workers"]
        started.append(start(tmp_path, "worker", "worker", "--engine", "mock", "--broker", workers))
        usage = str(tmp_path / "usage.sqlite")
        clients = broker.endpoints["clients"]
        bridge = start(tmp_path, "bridge", "bridge_http", "--port", "0", "--broker", clients, "--usage-file", usage)
        started.append(bridge)
        status, told, _ = answer_of(bridge, "POST", "/infer", {"prompt": "hello", "max_tokens": 3})
    finally:
        for process in reversed(started):
            process.stop()

    assert (status, bool(told["text"])) == (200, True)
    assert [process.popen.returncode for process in started] == [0, 0, 0]
