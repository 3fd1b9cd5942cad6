"""What is on its way out: in order, bounded, and given back only if it has certainly not left."""

from __future__ import annotations

import itertools
from typing import Any, cast

import zmq

from zmqrt.broker.core import SendFailure
from zmqrt.broker.sockets import FIRST_RETRY_S, LAST_RETRY_S, MAX_PENDING_BYTES, Sender
from zmqrt.protocol import codec
from zmqrt.protocol import messages as m
from zmqrt.protocol.limits import MAX_FRAME_BYTES

PEER = b"peer"


class Router:
    """A ROUTER that takes so many envelopes, then says what it is told to say."""

    def __init__(self, takes: int = 10**9, then: int = zmq.EAGAIN) -> None:
        self.takes = takes
        self.then = then
        self.sent: list[bytes] = []

    def send(self, frame: bytes, flags: int, **_: object) -> None:
        """Take one frame; a peer's id begins an envelope."""
        if frame == PEER:
            if not self.takes:
                raise zmq.Again if self.then == zmq.EAGAIN else zmq.ZMQError(self.then)
            self.takes -= 1
        else:
            self.sent.append(frame)


def make(router: Router) -> Sender:
    """Make the sender of a router that is none."""
    return Sender(cast("zmq.Socket[bytes]", router))


def partials(count: int, size: int = 10) -> list[m.Message]:
    """Make messages that can be told apart."""
    return [m.Partial(b"r" * 16, number, 1, b"x" * size) for number in range(count)]


def seqs(router: Router) -> list[int]:
    """Return what came through, in order."""
    unpacked: list[Any] = []
    for frame in router.sent:
        unpacked += codec.TO_CLIENT.unpack([frame]).messages
    return [one.seq for one in unpacked]


def test_messages_leave_in_one_envelope() -> None:
    """The common case: nothing waits."""
    router = Router()
    sender = make(router)

    assert sender.send(PEER, partials(100), 0.0) is None

    assert len(router.sent) == 1
    assert sender.next_retry == float("inf")


def test_a_full_pipe_is_tried_again_ever_less_often_and_keeps_the_order() -> None:
    """After 5 ms, then twice as long, up to 50."""
    router = Router(takes=0)
    sender = make(router)
    sender.send(PEER, partials(3)[:1], 0.0)
    sender.send(PEER, partials(3)[1:], 0.0)

    tries: list[float] = []
    for _ in range(7):
        tries.append(sender.next_retry)
        assert sender.retry(sender.next_retry) == []
    router.takes = 10
    sender.retry(sender.next_retry)

    gaps = [round(later - earlier, 6) for earlier, later in itertools.pairwise(tries)]
    assert tries[0] == FIRST_RETRY_S
    assert gaps == sorted(gaps)
    assert abs(gaps[-1] - LAST_RETRY_S) < 1e-9
    assert seqs(router) == [0, 1, 2]
    assert sender.next_retry == float("inf")


def test_a_peer_that_takes_nothing_is_given_up_with_all_that_waited() -> None:
    """Before it costs more than the bound."""
    sender = make(Router(takes=0))
    sent = 0
    failed = None
    while failed is None:
        failed = sender.send(PEER, partials(1, 30_000), 0.0)
        sent += 1

    peer, why, messages = failed
    assert (peer, why, len(messages)) == (PEER, SendFailure.FULL, sent)
    assert sent * 30_000 <= MAX_PENDING_BYTES + 30_000
    assert sender.next_retry == float("inf") or sender.retry(1e9) == []


def test_a_vanished_peer_gives_back_what_was_for_it() -> None:
    """At once, or when it is tried again."""
    router = Router(takes=0, then=zmq.EHOSTUNREACH)
    sender = make(router)
    messages = partials(2)
    assert sender.send(PEER, messages, 0.0) == (PEER, SendFailure.UNREACHABLE, messages)

    router.then = zmq.EAGAIN
    sender.send(PEER, messages, 0.0)
    router.then = zmq.EHOSTUNREACH

    assert sender.retry(1.0) == [(PEER, SendFailure.UNREACHABLE, messages)]


def test_what_may_have_left_is_not_given_back() -> None:
    """Of a batch in two envelopes the first went: which messages those were is not known any more."""
    for takes, then in ((1, zmq.EHOSTUNREACH), (1, zmq.EAGAIN)):
        router = Router(takes, then)
        sender = make(router)
        failed = sender.send(PEER, partials(1500), 0.0)
        if failed is None:
            router.then = zmq.EHOSTUNREACH
            (failed,) = sender.retry(1.0)

        assert failed == (PEER, SendFailure.UNREACHABLE, [])
        assert len(router.sent) == 1


def test_what_cannot_be_packed_costs_nothing_but_itself() -> None:
    """A body beyond a frame, a number beyond 64 bits, half a character: the neighbours leave, in order."""
    router = Router()
    sender = make(router)
    good = partials(3)
    bad: list[m.Message] = [
        m.Partial(b"r" * 16, 7, 1, b"x" * (MAX_FRAME_BYTES + 1)),
        m.Partial(b"r" * 16, 2**64, 1, b"x"),
        m.Error(b"r" * 16, 500, "no", False, 0, "caf\ud83d"),
    ]

    failed = sender.send(PEER, [good[0], bad[0], good[1], bad[1], bad[2], good[2]], 0.0)

    assert failed == (PEER, SendFailure.UNPACKABLE, bad)
    assert seqs(router) == [0, 1, 2]
