"""Real processes for tests: broker, workers and bridge on free ports, each known by its pid and gone at the end.

Nothing here waits a fixed time: a process is ready when it says so, and everything else is asked until it is true or
the deadline passes (`eventually`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import psutil

from support.warm_start import Popen
from zmqrt.client import Client
from zmqrt.protocol.snapshot import Snapshot

T = TypeVar("T")
START_S = 60.0
"""Longest start of a process: generous, since a busy machine is no failure."""


def eventually(look: Callable[[], T | None], *, within_s: float = 30.0, what: str = "the condition") -> T:
    """Ask until the answer is true (an AssertionError counts as no) and return it; fail when time is up."""
    give_up_at = time.monotonic() + within_s
    while True:
        error: AssertionError | None = None
        try:
            answer = look()
        except AssertionError as caught:
            answer, error = None, caught
        if answer:
            return answer
        if time.monotonic() > give_up_at:
            raise AssertionError(f"{what} did not come true within {within_s} s") from error
        time.sleep(0.05)


@dataclass
class Process:
    """One role as a child process. Its output is read all the time, so it never blocks on a full pipe."""

    role: str
    popen: subprocess.Popen[str]
    arguments: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict[str, str])
    ready: dict[str, Any] = field(default_factory=dict[str, Any])
    lines: list[str] = field(default_factory=list[str])

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    @property
    def endpoints(self) -> dict[str, str]:
        """What its ready line said."""
        return {str(name): str(endpoint) for name, endpoint in self.ready["endpoints"].items()}

    def signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it without a word, and wait until it is gone."""
        self.popen.kill()
        self.popen.wait(10)

    def family(self) -> list[psutil.Process]:
        """Return the process and the engine processes of a node, the agent first."""
        own = psutil.Process(self.pid)
        return [own, *own.children(recursive=True)]

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for its end and return the exit code."""
        return self.popen.wait(timeout_s)

    def stop(self) -> None:
        """Ask it to leave, and make it if it does not."""
        self.ask_to_leave()
        self.see_end()

    def ask_to_leave(self) -> None:
        """Send SIGTERM, also to one that was stopped. A second one would not be patient."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()

    def see_end(self) -> None:
        """Wait until one that was asked has left; kill one that does not."""
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait(10)

    def output(self) -> str:
        """Everything it has written so far."""
        return "\n".join(self.lines)


def start(
    role: str, *arguments: str, env: dict[str, str] | None = None, wait: bool = True, python: str = sys.executable
) -> Process:
    """Start `python -m zmqrt.<role>` and, unless told otherwise, wait for its ready line."""
    popen = Popen(
        [python, "-m", f"zmqrt.{role}", "--log-format", "json", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env={**os.environ, **(env or {})},
    )
    process = Process(role, popen, arguments, env or {})
    said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, said), daemon=True).start()
    if wait:
        try:
            ready = said.get(timeout=START_S)
        except queue.Empty:
            ready = None
        if ready is None:
            process.stop()
            raise AssertionError(f"{role} did not get ready:\n{process.output()}")
        process.ready = ready
    return process


def _read(process: Process, said: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    assert process.popen.stdout is not None
    with process.popen.stdout as lines:
        for line in lines:
            process.lines.append(line.rstrip())
            if line.startswith("{") and '"ready"' in line:
                with contextlib.suppress(ValueError):
                    said.put(json.loads(line))
    said.put(None)


class Stack:
    """A fleet on this machine. Use it in a `with` block, or through the `stack` fixture."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self.clients = ""
        self.workers = ""

    def broker(self, *arguments: str) -> Process:
        """Start a broker on free ports; the first one is what workers, bridges and clients of this stack use."""
        process = start("broker", "--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0", *arguments)
        self.processes.append(process)
        self.clients = self.clients or process.endpoints["clients"]
        self.workers = self.workers or process.endpoints["workers"]
        return process

    def second_broker(self, *arguments: str) -> Process:
        """Start one more; who is started or made from now on knows all brokers."""
        process = self.broker(*arguments)
        self.clients += f",{process.endpoints['clients']}"
        self.workers += f",{process.endpoints['workers']}"
        return process

    def worker(
        self,
        *arguments: str,
        engine: str = "mock",
        node_id: str = "",
        env: dict[str, str] | None = None,
        wait: bool = True,
        python: str = sys.executable,
    ) -> Process:
        """Start a node that serves the mock on one device (or another engine) through this stack's brokers."""
        named = ("--node-id", node_id) if node_id else ()
        toy = ("--devices", "0") if engine == "mock" and "--devices" not in arguments else ()
        arguments = ("--engine", engine, *named, *toy, *arguments)
        process = start("worker", "--broker", self.workers, *arguments, env=env, wait=wait, python=python)
        self.processes.append(process)
        return process

    def again(self, ended: Process) -> Process:
        """Start a process that has ended once more, at the same endpoints."""
        bound = {f"--{name}": ended.endpoints[name] for name in ("clients", "workers") if ended.role == "broker"}
        more = [word for pair in bound.items() for word in pair]
        process = start(ended.role, *ended.arguments, *more, env=ended.env)  # of two flags the last one counts
        self.processes.append(process)
        return process

    def node(self, node_id: str) -> Process:
        """Return the newest process of that node."""
        return next(one for one in reversed(self.processes) if node_id in one.arguments)

    def bridge(self, *arguments: str) -> Process:
        """Start an HTTP bridge to this stack's broker."""
        process = start("bridge_http", "--broker", self.clients, "--port", "0", *arguments)
        self.processes.append(process)
        return process

    def script(self, code: str, *arguments: str) -> Process:
        """Start a Python program that a test made up."""
        popen = subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=subprocess.DEVNULL, text=True)
        process = Process("script", popen)
        self.processes.append(process)
        return process

    def client(self, **options: Any) -> Client:
        """Make a client of this stack's broker."""
        return Client(self.clients, **options)

    def status(self) -> Snapshot:
        """Ask the broker."""
        with self.client(name="status") as client:
            return client.status()

    def wait_for_nodes(self, count: int, endpoint: str | None = None, *, within_s: float = START_S) -> Snapshot:
        """Wait until so many nodes are active and have loaded; of several brokers, at that endpoint."""
        with Client(endpoint or self.clients, name="status") as client:

            def loaded() -> Snapshot | None:
                snapshot = client.status()
                up = [n for n in snapshot.nodes if n.health == "active" and n.phase == "ready" and n.capacity]
                return snapshot if len(up) >= count else None

            return eventually(loaded, within_s=within_s, what=f"{count} nodes ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        brokers = [process for process in self.processes if process.role == "broker"]
        others = [process for process in self.processes if process.role != "broker"]
        for processes in (others, brokers):  # nodes take their leave of a broker that is still there
            for process in processes:
                process.ask_to_leave()
            for process in processes:
                process.see_end()


@contextlib.contextmanager
def running(
    *, nodes: int = 1, worker: tuple[str, ...] = (), broker: tuple[str, ...] = ()
) -> Generator[Stack, None, None]:
    """Start a broker and some mock nodes, wait until they serve, end them all afterwards."""
    with Stack() as stack:
        stack.broker(*broker)
        for number in reversed(range(nodes)):
            stack.worker(*worker, node_id=f"node-{number}", wait=number == 0)  # they start beside each other
        stack.wait_for_nodes(nodes)
        yield stack
