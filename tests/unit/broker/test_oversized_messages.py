"""Who is cut off for an envelope without end, and who is not."""

from __future__ import annotations

import socket
import sys

import pytest

from zmqrt.broker.oversized_messages import MAX_BYTES, PER_CHECK, OversizedMessages, received_bytes, reset_connection


class Kernel:
    """What the system would tell: bytes by descriptor."""

    def __init__(self) -> None:
        self.received: dict[int, int] = {}
        self.cut: list[int] = []
        self.asked = 0
        self.oversized = OversizedMessages(received=self._ask, reset=self.cut.append)

    def _ask(self, fd: int) -> int | None:
        self.asked += 1
        return self.received.get(fd)

    def open(self, fd: int, received: int = 0) -> None:
        """Accept a connection."""
        self.received[fd] = received
        self.oversized.opened(fd)

    def look(self) -> int:
        """Look once."""
        return self.oversized.check()


@pytest.fixture
def kernel() -> Kernel:
    """Give a system with nothing in it."""
    return Kernel()


def test_an_envelope_without_end_is_cut_at_the_second_look(kernel: Kernel) -> None:
    """And looked at no more after that."""
    kernel.open(7, MAX_BYTES + 1)

    assert kernel.look() == 0
    assert kernel.look() == 1
    assert kernel.cut == [7]
    assert kernel.look() == 0


def test_whoever_ends_an_envelope_in_between_goes_on(kernel: Kernel) -> None:
    """However much came before: only what came since then counts."""
    kernel.open(7, 10 * MAX_BYTES)
    kernel.look()
    kernel.oversized.completed.add(7)
    assert kernel.look() == 0
    kernel.received[7] += MAX_BYTES

    assert kernel.look() == kernel.look() == 0
    assert kernel.cut == []


def test_an_envelope_of_the_largest_size_is_none_without_end(kernel: Kernel) -> None:
    """Nor is it one if it never ends."""
    kernel.open(7, MAX_BYTES)

    assert kernel.look() == kernel.look() == 0


def test_a_descriptor_used_again_is_a_new_connection(kernel: Kernel) -> None:
    """Nothing is held against it, also when nobody told that the old one is gone."""
    kernel.open(7, MAX_BYTES)
    kernel.oversized.completed.add(7)
    kernel.look()
    kernel.received[7] = 5
    kernel.look()
    kernel.received[7] = 5 + MAX_BYTES
    assert kernel.look() == kernel.look() == 0
    kernel.open(7, MAX_BYTES + 6)
    kernel.look()
    kernel.oversized.closed(7)

    assert kernel.look() == 0


def test_of_many_connections_a_few_are_looked_at_in_turn(kernel: Kernel) -> None:
    """A look has a bound, and everybody's turn comes."""
    for fd in range(3 * PER_CHECK):
        kernel.open(fd)
    kernel.received[3 * PER_CHECK - 1] = MAX_BYTES + 1

    assert [kernel.look() for _ in range(6)] == [0, 0, 0, 0, 0, 1]
    assert kernel.asked == 6 * PER_CHECK


def test_what_is_no_connection_is_forgotten(kernel: Kernel) -> None:
    """A Unix socket, or one that is closed already."""
    kernel.oversized.opened(9)

    assert kernel.look() == kernel.look() == 0
    assert kernel.asked == 1


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells")
def test_the_kernel_tells_and_obeys() -> None:
    """Bytes of a real connection are counted, and it can be shut down by its descriptor alone."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as far,
        server.accept()[0] as near,
    ):
        far.sendall(bytes(1000))
        near.recv(1000, socket.MSG_WAITALL)

        assert received_bytes(near.fileno()) == 1000
        fd = near.fileno()
        reset_connection(fd)
        assert near.recv(1) == far.recv(1) == b""
    assert received_bytes(fd) is None
    reset_connection(fd)
