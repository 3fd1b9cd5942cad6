"""A worker node as a real process, for tests: its arguments, its engines, its log, its end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import psutil

from support.hand_broker import HandBroker
from support.warm_start import Popen


class NodeProcess:
    """One `python -m zmqrt.worker`. Its log goes to a file, which a failing test prints."""

    def __init__(self, folder: Path, brokers: list[str], *arguments: str) -> None:
        self._log = (folder / "node.log").open("w+", encoding="utf-8")
        command = [sys.executable, "-m", "zmqrt.worker", "--broker", ",".join(brokers)]
        self.process = Popen(
            [*command, "--log-format", "json", "--node-id", "n1", *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            text=True,
        )

    def engine_pids(self) -> list[int]:
        """Return the processes of its engines."""
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def wait(self, timeout: float = 10.0) -> int:
        """Return the exit code; fails instead of hanging."""
        return self.process.wait(timeout)

    def ready_line(self) -> dict[str, object]:
        """Return the one line on standard output."""
        assert self.process.stdout is not None
        line: dict[str, object] = json.loads(self.process.stdout.readline())
        return line

    def close(self) -> str:
        """End it, whatever it does; return its log. No engine may be left behind."""
        children: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive, f"engine processes outlived their agent: {alive}"
        self._log.seek(0)
        text = self._log.read()
        self._log.close()
        return text


@contextlib.contextmanager
def node(
    folder: Path, brokers: list[HandBroker], *arguments: str, engine: str = "mock"
) -> Generator[NodeProcess, None, None]:
    """Run a node for a test."""
    process = NodeProcess(folder, [one.endpoint for one in brokers], "--engine", engine, *arguments)
    try:
        yield process
    except BaseException:
        print(process.close())
        raise
    else:
        log = process.close()
        assert "Traceback" not in log, log
