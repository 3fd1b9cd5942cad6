"""Children that are kept running, and never left behind: real processes, without the roles."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.stack import eventually
from zmqrt.client.cli.supervise import Child, ChildFailedError, ChildState, Supervisor

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="sends signals; Windows has the pipe alone"),
]
TESTS = str(Path(__file__).resolve().parents[1])


class Told:
    """A supervisor, and what it told."""

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []
        self.ends: list[tuple[str, str]] = []
        self.supervisor = Supervisor(
            lambda child, record: self.records.append((child.name, record)),
            lambda child, why: self.ends.append((child.name, why)),
        )

    def add(self, *words: str) -> Child:
        """Start a fake role that does what the words say."""
        return self.supervisor.add(Child("fake", "support.fake_role", words))

    def until(self, child: Child, state: ChildState) -> None:
        """Step until the child has that state."""

        def look() -> bool:
            self.supervisor.step()
            return child.state is state

        eventually(look, what=f"{state}")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """A supervisor that ends with the test."""
    monkeypatch.setenv("PYTHONPATH", TESTS)
    told = Told()
    with told.supervisor:
        yield told


def is_gone(pid: int) -> bool:
    """Say whether a process has ended; one that nobody has waited for yet counts."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_a_child_is_ready_when_it_says_so(told: Told) -> None:
    """Its endpoints come with that line."""
    child = told.add("ready")
    told.until(child, ChildState.READY)

    assert child.endpoints == {"pid": str(child.pid)}


def test_a_killed_child_is_started_again(told: Told) -> None:
    """With its name, its arguments and a new pid."""
    child = told.add("ready")
    told.until(child, ChildState.READY)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    told.until(child, ChildState.WAITING)
    told.until(child, ChildState.READY)

    assert child.pid != first
    assert child.restarts == 1
    assert told.ends == [("fake", "signal 9")]


def test_a_child_that_was_never_ready_is_not_started_again(told: Told) -> None:
    """It would end the same way; its last words and its exit code are passed on."""
    child = told.add("print=error: tcp://127.0.0.1:7555 is in use", "exit=78")
    with pytest.raises(ChildFailedError, match=r"fake did not start: tcp://127\.0\.0\.1:7555 is in use") as caught:
        told.until(child, ChildState.READY)

    assert caught.value.exit_code == 78


def test_the_last_error_in_the_log_is_the_reason(told: Told) -> None:
    """Not the chatter after it."""
    child = told.add("ready", "error=out of memory", "exit=1")
    told.until(child, ChildState.WAITING)

    assert told.ends == [("fake", "out of memory (exit code 1)")]


def test_asked_to_leave_a_child_drains(told: Told) -> None:
    """It gets SIGTERM, as from any other supervisor."""
    child = told.add("drains", "ready")
    told.until(child, ChildState.READY)
    told.supervisor.drain([child])
    eventually(lambda: told.supervisor.have_ended([child]), what="the end")

    assert child.state is ChildState.GONE


def test_nothing_that_a_child_started_outlives_the_supervisor(told: Told) -> None:
    """Even where the child does not listen."""
    child = told.add("deaf", "child", "ready")
    told.until(child, ChildState.READY)
    grandchild = int(child.words[0].removeprefix("child "))
    pid = child.pid
    assert pid is not None
    told.supervisor.kill()

    eventually(lambda: is_gone(pid) and is_gone(grandchild), what="the end of both")


@pytest.mark.parametrize("manners", ["drains", "deaf"])
def test_children_end_with_a_supervisor_that_is_killed(manners: str) -> None:
    """Nobody tells them: their pipe ends. One that does not listen is ended a few seconds later."""
    program = f"""
import time
from zmqrt.client.cli.supervise import Child, Supervisor
supervisor = Supervisor(lambda *_: None, lambda *_: None)
child = supervisor.add(Child("fake", "support.fake_role", ["{manners}", "child", "ready"]))
while not child.endpoints:
    supervisor.step()
    time.sleep(0.01)
print(child.pid, child.words[0].removeprefix("child "), flush=True)
time.sleep(600)
"""
    environ = {**os.environ, "PYTHONPATH": TESTS}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environ, text=True) as parent:
        assert parent.stdout is not None
        child, grandchild = map(int, parent.stdout.readline().split())
        parent.kill()
        parent.wait()
        try:
            eventually(lambda: is_gone(child), what="the end of the child")
            if manners == "deaf":
                eventually(lambda: is_gone(grandchild), what="the end of the grandchild")
        finally:
            for pid in (child, grandchild):
                if not is_gone(pid):
                    os.kill(pid, signal.SIGKILL)
