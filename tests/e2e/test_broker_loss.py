"""Brokers that are killed with streams open: the other one carries them on, to the byte."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Self

import pytest

from support.stack import Process, Stack
from support.streams import Expected, ask_streams, open_all, read_on
from zmqrt.client import Handle, Result

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
NODES = 2
ROOM = ("--node-max-capacity", "400", "--devices", "mock:0", "--slots", "400", "--engine-opt", "step_ms=10")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Stack]:
    """Two brokers, and two nodes with room for every stream."""
    with Stack() as stack:
        stack.broker("--broker-id", "first")
        stack.second_broker("--broker-id", "second")
        for number in range(NODES):
            stack.worker(*ROOM, node_id=f"node-{number}")
        stack.wait_for_nodes(NODES)
        yield stack


class Crowd:
    """Clients with open streams."""

    def __init__(self, stack: Stack, clients: int, streams: int, tokens: int) -> None:
        self._expected = [[Expected(seed, tokens) for seed in range(n, streams, clients)] for n in range(clients)]
        self._stack = contextlib.ExitStack()
        self.clients = [self._stack.enter_context(stack.client(timeout_s=60)) for _ in range(clients)]
        self._handles: list[list[Handle[Result]]] = []
        self._begun: list[list[list[int]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Open all streams, and see the first tokens of each."""
        self._handles = [ask_streams(client, own) for client, own in zip(self.clients, self._expected, strict=True)]
        self._begun = [open_all(own, known) for own, known in zip(self._handles, self._expected, strict=True)]
        assert not any(handle.done() for own in self._handles for handle in own)

    def finish(self) -> None:
        """Read all to their ends."""
        for handles, begun, expected in zip(self._handles, self._begun, self._expected, strict=True):
            for handle, first, one in zip(handles, begun, expected, strict=True):
                read_on(handle, first, one)

    def brokers_in_use(self) -> set[str | None]:
        """Return whom they are connected to."""
        return {client.endpoint for client in self.clients}


def broker_at(stack: Stack, endpoint: str | None) -> Process:
    """Return the newest process at an endpoint."""
    return next(
        one for one in reversed(stack.processes) if one.role == "broker" and one.endpoints["clients"] == endpoint
    )


def there_and_back(
    stack: Stack, *, clients: int, streams: int, tokens: int, number: signal.Signals = signal.SIGKILL
) -> None:
    """End the broker in use, start it again, end the other one in the same way."""
    with Crowd(stack, clients, streams, tokens) as crowd:
        for _ in range(2):
            crowd.start()
            (in_use,) = crowd.brokers_in_use()
            victim = broker_at(stack, in_use)
            victim.signal(number)
            crowd.finish()
            assert victim.wait() == (-number if number is signal.SIGKILL else 0)
            assert in_use not in crowd.brokers_in_use()
            stack.again(victim)
            stack.wait_for_nodes(NODES, in_use)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_hundred_streams_outlive_either_broker(fleet: Stack, number: signal.Signals) -> None:
    """Killed or asked to leave while it carries them; then the other one, which had taken them over."""
    there_and_back(fleet, clients=4, streams=100, tokens=100, number=number)


def test_streams_outlive_the_absence_of_every_broker(fleet: Stack) -> None:
    """Both are gone for two seconds; the clients hold what they have, and go on from there."""
    with Crowd(fleet, 2, 40, 100) as crowd:
        crowd.start()
        victims = [broker_at(fleet, endpoint) for endpoint in fleet.clients.split(",")]
        for victim in victims:
            victim.kill()
        time.sleep(2)  # this is how long there is nobody
        for victim in victims:
            fleet.again(victim)

        crowd.finish()


@pytest.mark.slow
def test_five_hundred_streams_outlive_either_broker(fleet: Stack) -> None:
    """The same with a crowd."""
    there_and_back(fleet, clients=5, streams=500, tokens=200)
