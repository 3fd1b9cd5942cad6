"""`zmqrt top` on a real fleet: in a terminal with keys, and through a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Generator

import pytest

from support.cli import zmqrt
from support.stack import Stack, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SLOW = ("--engine-opt", "step_ms=20,eos=never", "--devices", "0")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """A terminal with the monitor in it. Each picture is redrawn whole, so what was read last is what is shown."""

    def __init__(self, *arguments: str, columns: int = 100, rows: int = 30) -> None:
        self._fd, theirs = pty.openpty()
        self._theirs = theirs
        self.resize(columns, rows)
        self.before = termios.tcgetattr(theirs)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "zmqrt.client.cli", "top", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
            start_new_session=True,
        )
        self.raw = ""

    def resize(self, columns: int, rows: int) -> None:
        """Make the terminal larger or smaller."""
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Press keys; what is on the screen by then does not count any more."""
        self.read(0.0)
        self.raw = ""
        os.write(self._fd, keys.encode())

    def read(self, wait_s: float) -> str:
        """Take what has been written, as plain text."""
        while select.select([self._fd], [], [], wait_s)[0]:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # the other end is closed
                break
            self.raw = (self.raw + data.decode("utf-8", "replace"))[-200_000:]
            wait_s = 0.0
        return _ESCAPES.sub("", self.raw)

    def until(self, *words: str) -> str:
        """Wait until all of these are shown."""
        give_up_at = time.monotonic() + 30.0
        while any(one not in (shown := self.read(0.1)) for one in words):
            assert time.monotonic() < give_up_at, f"{words} in:\n{shown}"
            assert self.popen.poll() is None or all(one in self.read(0.1) for one in words), shown
        return shown

    def settings(self) -> list[object]:
        """Return how the terminal is set now."""
        return termios.tcgetattr(self._theirs)

    def close(self) -> None:
        """End it."""
        self.popen.kill()
        self.popen.wait(10)
        for one in (self._fd, self._theirs):
            os.close(one)


@contextlib.contextmanager
def showing(*arguments: str, columns: int = 100, rows: int = 30) -> Generator[Screen]:
    """Show the monitor while in the block."""
    screen = Screen(*arguments, columns=columns, rows=rows)
    try:
        yield screen
    finally:
        screen.close()


def test_a_fleet_through_a_loss_and_a_drain() -> None:
    """Under load: a node is killed, another one joins and loads, a third is drained by keys; then it leaves cleanly."""
    with running(nodes=2, worker=SLOW) as stack, stack.client() as client, showing("--broker", stack.clients) as screen:
        handles = [client.submit("hi", max_tokens=4000, stream=True, request_id=f"job-{n}") for n in range(4)]
        screen.until("2 healthy", "4/", "job-0", "joined node-0", "slowest requests")

        stack.node("node-0").kill()
        stack.worker(*SLOW, "--engine-opt", "load_s=3", node_id="node-2")
        screen.until("1 lost")
        screen.until("lost node-0", "resumed x2 node-0", "loading")

        screen.type("\x1b[B")
        screen.until("2 healthy")
        screen.type("\r")
        screen.until("uuid", "mock:0 mock")
        screen.type("\x1b")
        screen.until("slowest requests")
        screen.type("\t\x1b[B\r")
        screen.until("rid ", "where it goes on" if client.explain("job-0")[0].attempts[1:] else "given to")
        screen.type("\x1b")
        screen.until("slowest requests")
        screen.type("\t\x1b[Fx")
        screen.until("Drain node-2")
        screen.type("y")
        screen.until("draining")

        for handle in handles:
            handle.cancel()
        screen.type("q")
        assert screen.popen.wait(10) == 0
        assert screen.settings() == screen.before
        assert screen.read(0.1).count("\x1b[?1049l") == 0  # taken out with the other escapes …
        assert "\x1b[?1049l" in screen.raw  # … and there: the screen from before is back


def test_pasted_text_drains_nothing() -> None:
    """Whether or not the terminal says that it is pasted: a question and its answer never come in one piece."""
    with running(worker=SLOW) as stack, showing("--broker", stack.clients) as screen:
        screen.until("1 healthy")
        screen.type("\x1b[B")
        screen.type("\x1b[200~the galaxy proxy\x1b[201~")
        screen.type("s")
        screen.type("xy")
        screen.until("Drain node-0")
        screen.type("n")
        screen.until("is left as it is")
        assert stack.status().nodes[0].health == "active"


def test_a_signal_gives_the_terminal_back() -> None:
    """As a key does: cursor, echo and the screen from before."""
    with Stack() as stack:
        stack.broker()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with showing("--broker", stack.clients) as screen:
                screen.until("none has joined yet")
                screen.popen.send_signal(number)

                assert screen.popen.wait(10) == 0
                assert screen.settings() == screen.before
                screen.read(0.1)
                assert screen.raw.rindex("\x1b[?25h") > screen.raw.rindex("\x1b[?25l")


@pytest.mark.slow
def test_a_broker_that_comes_late_goes_and_comes_back() -> None:
    """Frozen or gone: the picture says what is in the way, with the remedy, and tries again."""
    with Stack() as stack:
        broker = stack.broker()
        with showing("--broker", stack.clients, columns=80, rows=24) as screen:
            screen.until("ready", "none has joined yet")
            broker.signal(signal.SIGSTOP)
            screen.until("unreachable", "it is frozen, or overloaded")
            broker.signal(signal.SIGCONT)
            broker.kill()
            screen.until("unreachable", "nobody listens at", "trying again")
            screen.raw = ""
            stack.again(broker)
            screen.until("none has joined yet")


def test_a_resized_terminal_is_filled_anew() -> None:
    """At the next look at the latest."""
    with Stack() as stack:
        stack.broker()
        with showing("--broker", stack.clients, columns=80, rows=24) as screen:
            screen.until("none has joined yet")
            screen.resize(140, 40)
            screen.type(" ")
            screen.until("m models")


def test_pictures_and_data_for_pipes() -> None:
    """Once, as text and as JSON; and a line a second until nobody reads on."""
    with running(nodes=2, worker=SLOW) as stack:
        text = zmqrt("top", "--broker", stack.clients)
        data = zmqrt("top", "--once", "--json", "--broker", stack.clients)
        both = zmqrt("top", "--once", "--connect-timeout", "0.5s", "--broker", f"{stack.clients},tcp://127.0.0.1:1")
        head = subprocess.run(
            f"{sys.executable} -m zmqrt.client.cli top --json --broker {stack.clients} | head -n 2",
            shell=True,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert text.returncode == data.returncode == both.returncode == 0
    assert "2 healthy" in text.stdout
    assert "\x1b" not in text.stdout
    (broker,) = json.loads(data.stdout)["brokers"]
    assert [node["node_id"] for node in broker["snapshot"]["nodes"]] == ["node-0", "node-1"]
    assert "unreachable" in both.stdout
    assert len(head.stdout.splitlines()) == 2
    assert "Traceback" not in head.stderr
