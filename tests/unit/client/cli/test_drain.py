"""What `zmqrt drain` makes of the answers of several brokers."""

from __future__ import annotations

from typing import Self

import pytest
from click.testing import CliRunner

from support import snapshots
from support.snapshots import snapshot
from zmqrt.client.cli import cmd_drain
from zmqrt.client.config import ClientSettings
from zmqrt.protocol.admin import AdminOutcome
from zmqrt.protocol.errors import ConnectError, ErrorKind, ZmqrtError, request_error
from zmqrt.protocol.snapshot import NodeStatus, Snapshot

DONE = AdminOutcome(is_done=True, text="1 node(s) called 'n' are draining", deadline_s=0.0)
UNKNOWN = request_error(ErrorKind.NOT_FOUND, "no node is called 'n'; there are: m")
FORBIDDEN = request_error(ErrorKind.FORBIDDEN, "'guest' is not an admin")
SILENT = ConnectError("nobody listens")


class FakeClient:
    """Answers as a test has laid down for its endpoint."""

    answers: dict[str, AdminOutcome | ZmqrtError] = {}  # noqa: RUF012 - each test sets its own
    looks: list[list[NodeStatus]] = []  # noqa: RUF012 - same

    def __init__(self, endpoint: str) -> None:
        self._answer = self.answers[endpoint]

    @classmethod
    def from_settings(cls, settings: ClientSettings, *, name: str) -> Self:
        """Take the only broker of the settings."""
        (endpoint,) = settings.broker
        return cls(endpoint)

    def status(self) -> Snapshot:
        """Show what is next; nothing once all has been shown."""
        if isinstance(self._answer, ConnectError):
            raise self._answer
        nodes = self.looks.pop(0) if self.looks else []
        return snapshot(*nodes)

    def drain(self, node_id: str) -> AdminOutcome:
        """Answer, or refuse."""
        if isinstance(self._answer, ZmqrtError):
            raise self._answer
        return self._answer

    def close(self) -> None:
        """Nothing to close."""


def run(
    monkeypatch: pytest.MonkeyPatch, *answers: AdminOutcome | ZmqrtError, looks: list[list[NodeStatus]] | None = None
) -> tuple[str, str, int]:
    """Drain the node "n" through brokers that answer so; return both outputs and the exit code."""
    endpoints = [f"tcp://127.0.0.1:{port}" for port in range(1, len(answers) + 1)]
    monkeypatch.setattr(FakeClient, "answers", dict(zip(endpoints, answers, strict=True)))
    monkeypatch.setattr(FakeClient, "looks", looks or [])
    monkeypatch.setattr(cmd_drain, "Client", FakeClient)
    result = CliRunner().invoke(cmd_drain.command, ["n", "--broker", ",".join(endpoints)])
    return result.stdout, result.stderr, result.exit_code


def node(uuid: str) -> NodeStatus:
    """Describe the node "n" as one of its processes."""
    return snapshots.node(worker_uuid=uuid, health="draining", phase="draining", capacity=1, in_flight=1, load=1.0)


def test_one_broker_that_could_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node has left the others already; one that is silent is worth a warning."""
    said, warned, code = run(monkeypatch, DONE, UNKNOWN, SILENT)

    assert code == 0
    assert "node n has left" in said
    assert warned == "warning: tcp://127.0.0.1:3: nobody listens\n"


@pytest.mark.parametrize("answers", [(SILENT, UNKNOWN), (UNKNOWN, SILENT)])
def test_an_answer_says_more_than_silence(monkeypatch: pytest.MonkeyPatch, answers: tuple[ZmqrtError, ...]) -> None:
    """Where no broker could, the refusal is what is shown."""
    _, said, code = run(monkeypatch, *answers)

    assert code == 2
    assert "there are: m" in said


def test_not_being_allowed_says_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its exit code would depend on the order of the brokers."""
    _, said, code = run(monkeypatch, UNKNOWN, SILENT, FORBIDDEN)

    assert code == 77
    assert "not an admin" in said


def test_a_node_that_starts_anew_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the name of the one that left, and is another process."""
    looks = [[node("old")], [node("old")], [node("new")]]
    said, _, code = run(monkeypatch, DONE, looks=looks)

    assert code == 0
    assert "node n has left" in said
    assert looks == []
