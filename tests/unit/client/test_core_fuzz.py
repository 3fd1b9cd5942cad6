"""The client's core and brokers that say anything at all: it neither breaks nor forgets a request.

The other tests of the core play brokers that keep to the protocol, or break it in one way; these keep to nothing.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.client_core import GONE, PARAMS, REFUSED, Ear, Talk
from support.examples import examples
from support.snapshots import service
from support.snapshots import snapshot as snapshot_of
from support.wire import of_struct, plausible, weighted
from zmqrt.client.connection import BrokerConnection
from zmqrt.client.failover import OpenSocket, ProbeEndpoint
from zmqrt.protocol import codec, snapshot, tasks
from zmqrt.protocol import messages as m

NUMBERS = st.integers(0, 3)
CHUNK = st.integers(0, 2).map(lambda n: tasks.encode(tasks.GenerateChunk(ids=[97] * n, text=["a"] * n)))
ENTRY = service("toy")
SNAPSHOT = snapshot.encode(snapshot_of(services=[ENTRY]))
MOST = 2**32 - 1
HUGE = m.Params(MOST, MOST, MOST, MOST, 1)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "rid": NUMBERS.map(lambda number: bytes([number]) * 16),
    "seq": NUMBERS,
    "n": NUMBERS,
    "total_n": NUMBERS,
    "resume_n": NUMBERS,
    "qid": st.integers(0, 6),
    "schema": st.just(snapshot.SCHEMA),
    "version": st.just(snapshot.SCHEMA_VERSION),
    "params": st.sampled_from([PARAMS, m.Params(0, 0, 0, 0, 0), HUGE]),
    "code": st.sampled_from([400, 401, 404, 426, 429, 499, 500, 502, 503, 504]),
    "reason": st.sampled_from(["no_session", "queue_full", "draining", "broker_lost", "model_raised", "no such word"]),
    "retryable": st.booleans(),
    "retry_after_ms": st.sampled_from([0, 10, 2000, 2**32 - 1]),
    "nonce": NUMBERS,
    "deadline_ms": st.sampled_from([0, 500, 2**32 - 1]),
}
RESULTS = [plausible(one, LIKELY | {"body": CHUNK}) for one in (m.Partial, m.Partial, m.Final, m.Error, m.Accepted)]
STATUS = plausible(m.Status, LIKELY | {"body": st.sampled_from([SNAPSHOT, b"", b"\xc0"])})
SESSION = [plausible(one, LIKELY) for one in (m.Pong, m.Welcome, m.Goaway)]
COMPLAINT = plausible(m.Error, LIKELY | {"rid": st.none()})
ANYTHING = st.one_of([of_struct(one) for one in m.ToClient.__args__])
MESSAGE = weighted((8, st.one_of(RESULTS)), (1, STATUS), (3, st.one_of(SESSION)), (1, COMPLAINT), (1, ANYTHING))
WHICH = st.integers(0, 3)
STEP = weighted(
    (6, st.tuples(st.just("hear"), WHICH, st.lists(MESSAGE, min_size=1, max_size=4))),
    (3, st.tuples(st.just("welcome"), WHICH)),
    (5, st.tuples(st.just("submit"), st.booleans(), st.sampled_from(["toy", "toy", None]))),
    (1, st.tuples(st.just("connect"))),
    (1, st.tuples(st.just("cancel"), WHICH)),
    (1, st.tuples(st.just("lose"), WHICH, st.sampled_from([GONE, REFUSED, None]))),
    (3, st.tuples(st.just("time"), st.sampled_from([0.01, 0.2, 1.0, 3.0, 12.0]))),
)


class Talks:
    """A client core, every connection it has opened, and every request that was made of it."""

    def __init__(self) -> None:
        self.talk = Talk("tcp://a:1", "tcp://b:1", timeout_s=10.0)
        self.by_id: list[BrokerConnection] = []
        self.ears: list[Ear] = []
        self.asks: list[Ear] = []

    def settle(self) -> None:
        """Do what the core wants of its shell, and check what it says."""
        actions = self.talk.actions()
        assert len(actions) < 100
        for action in actions:
            if isinstance(action, OpenSocket):
                self.by_id.append(action.connection)
            elif isinstance(action, ProbeEndpoint):
                self.talk.core.explained(action.endpoint, REFUSED, self.talk.now)
        for connection in self.by_id:
            said = self.talk.said(connection)
            assert len(said) < 1000
            for message in said:
                (frames,) = codec.pack([message])
                assert codec.FROM_CLIENT.unpack(frames) == codec.Unpacked([message])
        self.talk.settle()
        assert all(len(ear.ends) <= 1 for ear in self.ears + self.asks), "two ends"

    def happen(self, what: str, *details: Any) -> None:
        """Let one thing happen."""
        match what, *details:
            case "submit", is_stream, model:
                self.ears.append(self.talk.submit(stream=is_stream, model=model))
            case ("connect",):
                self.asks.append(self.talk.connect())
            case "cancel", which:
                for ear in self.ears[-1 - which :][:1]:
                    self.talk.cancel(ear)
            case "time", seconds:
                self.talk.after(seconds)
            case _ if self.by_id:
                self.meet(what, self.by_id[-1 - int(details[0]) % min(2, len(self.by_id))], *details[1:])
            case _:
                pass

    def meet(self, what: str, connection: BrokerConnection, *details: Any) -> None:
        """Let a session have news; one that was closed has none."""
        if connection.id not in self.talk.core.connections.by_id:
            return
        match what, *details:
            case "hear", messages:
                self.talk.hear(connection, *map(self.aim, messages))
            case ("welcome",):
                self.talk.ready(connection)
                self.talk.hear(connection, m.Welcome("b", 1, PARAMS))
            case _:
                self.talk.lose(connection, details[0])

    def aim(self, message: Any) -> Any:
        """Turn an unlikely id into one of a request that there is."""
        rid: bytes | None = getattr(message, "rid", None)
        if rid is None or not self.ears or rid[0] > 3:
            return message
        return msgspec.structs.replace(message, rid=self.ears[-1 - rid[0] % len(self.ears)].rid)


@settings(
    max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.lists(STEP, min_size=10, max_size=40))
def test_nothing_that_a_broker_says_breaks_a_client(steps: list[tuple[Any, ...]]) -> None:
    """No exception, words that a broker can read, and one end for each request and question."""
    talks = Talks()
    talks.settle()
    talks.happen("welcome", 0)
    for one in steps:
        started = time.thread_time()
        talks.happen(*one)
        talks.settle()
        assert time.thread_time() - started < 2.0

    talks.talk.core.close()
    talks.settle()
    assert all(len(ear.ends) == 1 for ear in talks.ears + talks.asks)
    assert talks.talk.core.table.live == {}
