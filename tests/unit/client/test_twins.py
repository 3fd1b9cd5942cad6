"""The same request made again while it is under way: one run, several readers."""

from __future__ import annotations

from support.client_core import A, Ear, Talk, final, partial
from zmqrt.client import calls
from zmqrt.client.calls import Call
from zmqrt.client.config import ClientConfig
from zmqrt.client.requests import ClientRequest
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.errors import CancelledError, ConflictError, ErrorKind

RID = b"k" * 16
CONFIG = ClientConfig(endpoints=(A,))


def call(prompt: str = "hi", *, stream: bool = True) -> Call:
    """Build a call with a given id, as an Idempotency-Key makes it."""
    return calls.make_call(CONFIG, tasks.Generate(prompt=prompt), stream=stream, rid=RID, model="toy")


def submit(talk: Talk, one: Call) -> Ear:
    """Submit it."""
    ear = Ear(one)
    talk.core.submit(ClientRequest(one, ear, talk.now), talk.now)
    talk.settle()
    return ear


def cancel(talk: Talk, ear: Ear) -> None:
    """Cancel it for one reader."""
    talk.core.cancel(RID, talk.now, reader=ear)
    talk.settle()


def test_a_twin_reads_everything_from_the_beginning() -> None:
    """The broker hears of it once."""
    talk = Talk()
    first = submit(talk, call())
    connection = talk.up()
    talk.hear(connection, partial(RID, 0, 2))
    second = submit(talk, call())
    talk.hear(connection, partial(RID, 2), final(RID, 3))

    assert first.ids == second.ids == [0, 1, 2]
    assert [type(ear.ends[0]) for ear in (first, second)] == [m.Final, m.Final]
    assert len(talk.sent(connection, m.Request)) == 1


def test_a_twin_that_joins_within_a_pass_reads_nothing_twice() -> None:
    """Events that are on their way already belong to those who were there."""
    talk = Talk()
    first = submit(talk, call())
    connection = talk.up()
    talk.core.received(connection, [partial(RID, 0, 2)], talk.now)
    second = submit(talk, call())

    assert first.ids == second.ids == [0, 1]


def test_only_the_last_reader_takes_the_request_with_it() -> None:
    """Whoever leaves earlier leaves alone."""
    talk = Talk()
    first, second = submit(talk, call()), submit(talk, call())
    connection = talk.up()
    cancel(talk, first)
    cancel(talk, first)
    talk.hear(connection, partial(RID, 0))
    assert isinstance(first.error, CancelledError)
    assert second.ids == [0]
    assert talk.sent(connection, m.Cancel) == []

    cancel(talk, second)
    assert isinstance(second.error, CancelledError)
    assert len(talk.sent(connection, m.Cancel)) == 1


def test_a_slow_twin_leaves_alone() -> None:
    """The other reads on."""
    talk = Talk()
    slow, other = submit(talk, call()), submit(talk, call())
    connection = talk.up()
    slow.is_full = True
    talk.hear(connection, partial(RID, 0))
    talk.hear(connection, partial(RID, 1), final(RID, 2))

    assert isinstance(slow.error, CancelledError)
    assert slow.error.kind is ErrorKind.SLOW_READER
    assert other.ids == [0, 1]


def test_another_request_of_the_same_id_is_refused() -> None:
    """And cancelling the refused one does nothing to the first."""
    talk = Talk()
    first = submit(talk, call())
    others = [submit(talk, call("bye")), submit(talk, call(stream=False))]
    for other in others:
        cancel(talk, other)
    connection = talk.up()
    talk.hear(connection, partial(RID, 0), final(RID, 1))

    assert all(isinstance(other.error, ConflictError) for other in others)
    assert isinstance(first.ends[0], m.Final)


def test_eight_readers_are_enough() -> None:
    """A ninth is refused, as the broker would."""
    talk = Talk()
    ears = [submit(talk, call()) for _ in range(9)]

    assert [len(ear.ends) for ear in ears] == [0] * 8 + [1]
