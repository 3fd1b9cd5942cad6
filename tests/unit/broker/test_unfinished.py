"""Who is cut off for an envelope without end, and who is not."""

from __future__ import annotations

import socket

import pytest

from zmqrt.broker.unfinished import GROWTH_BYTES, MOST_BYTES, Unfinished, received_bytes, resident_bytes, shut_down


class Kernel:
    """What the system would tell: bytes by descriptor, and the size of the process."""

    def __init__(self) -> None:
        self.received: dict[int, int] = {}
        self.resident = 100 << 20
        self.cut: list[int] = []
        self.asked = 0
        self.unfinished = Unfinished(resident=lambda: self.resident, received=self._ask, cut=self.cut.append)
        self.unfinished.look()

    def _ask(self, fd: int) -> int | None:
        self.asked += 1
        return self.received.get(fd)

    def open(self, fd: int, received: int = 0) -> None:
        """Accept a connection."""
        self.received[fd] = received
        self.unfinished.opened(fd)

    def grow(self) -> int:
        """Grow by enough, and look."""
        self.resident += GROWTH_BYTES
        return self.unfinished.look()


@pytest.fixture
def kernel() -> Kernel:
    """Give a system with nothing in it."""
    return Kernel()


def test_an_envelope_without_end_is_cut_at_the_second_look(kernel: Kernel) -> None:
    """The second look comes even if the process has not grown since."""
    kernel.open(7, MOST_BYTES + 1)

    assert kernel.grow() == 0
    assert kernel.unfinished.look() == 1
    assert kernel.cut == [7]
    assert kernel.grow() == 0


def test_whoever_ends_an_envelope_in_between_goes_on(kernel: Kernel) -> None:
    """However much came before: only what came since then counts."""
    kernel.open(7, 10 * MOST_BYTES)
    kernel.grow()
    kernel.unfinished.heard.add(7)
    assert kernel.unfinished.look() == 0
    kernel.received[7] += MOST_BYTES

    assert kernel.grow() == kernel.grow() == 0
    assert kernel.cut == []


def test_an_envelope_of_the_largest_size_is_none_without_end(kernel: Kernel) -> None:
    """Nor is it one if it never ends."""
    kernel.open(7, MOST_BYTES)

    assert kernel.grow() == kernel.grow() == 0


def test_a_descriptor_used_again_is_a_new_connection(kernel: Kernel) -> None:
    """Nothing is held against it, also when nobody told that the old one is gone."""
    kernel.open(7, MOST_BYTES)
    kernel.unfinished.heard.add(7)
    kernel.grow()
    kernel.received[7] = 5
    kernel.grow()
    kernel.received[7] = 5 + MOST_BYTES
    assert kernel.grow() == kernel.grow() == 0
    kernel.open(7, MOST_BYTES + 6)
    kernel.grow()
    kernel.unfinished.closed(7)

    assert kernel.unfinished.look() == 0


def test_nobody_is_asked_while_the_process_does_not_grow(kernel: Kernel) -> None:
    """The look costs time for each connection."""
    kernel.open(7)

    assert kernel.unfinished.look() == 0
    assert kernel.asked == 0


def test_what_is_no_connection_is_forgotten(kernel: Kernel) -> None:
    """A Unix socket, or one that is closed already."""
    kernel.unfinished.opened(9)

    assert kernel.grow() == kernel.grow() == 0
    assert kernel.asked == 1


@pytest.mark.skipif(not resident_bytes(), reason="reads /proc")
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
        shut_down(near.fileno())
        assert far.recv(1) == b""
        fd = near.fileno()
    assert received_bytes(fd) is None
    shut_down(fd)
