"""Requests that a broker refuses, does not accept, or leaves without a sign of life."""

from __future__ import annotations

import pytest

from support.client_core import A, B, Talk, error, final, partial, started
from zmqrt.client.connection import ConnectionState
from zmqrt.protocol import messages as m
from zmqrt.protocol.errors import (
    BusyError,
    EngineError,
    NotFoundError,
    UnavailableError,
)

# --- retries ---------------------------------------------------------------------------------------------------------


def test_a_busy_broker_is_asked_again_when_it_said() -> None:
    """And the same request, not a new one."""
    talk, ear, connection = started()
    talk.said(connection)
    talk.hear(connection, error(ear.rid, 429, "queue_full", retry_after_ms=1000))
    talk.after(0.99)
    assert talk.sent(connection, m.Request) == []

    talk.after(0.5)
    assert [one.rid for one in talk.sent(connection, m.Request)] == [ear.rid]
    talk.hear(connection, final(ear.rid, 1))
    assert isinstance(ear.ends[0], m.Final)


def test_without_retries_a_refusal_is_told_at_once() -> None:
    """With the broker's advice."""
    talk, ear, connection = started(retries=0)
    talk.hear(connection, error(ear.rid, 429, "queue_full", retry_after_ms=1500))

    assert isinstance(ear.error, BusyError)
    assert ear.error.retry_after_s == 1.5
    assert ear.call is not None
    assert ear.call.request_id in str(ear.error)


def test_retries_are_counted() -> None:
    """Two means three attempts."""
    talk, ear, connection = started(retries=2)
    sent = len(talk.sent(connection, m.Request))
    while not ear.events:
        talk.hear(connection, error(ear.rid, 503, "no_worker"))
        talk.after(1.0)
        sent += len(talk.sent(connection, m.Request))

    assert sent == 3
    assert isinstance(ear.error, UnavailableError)


def test_a_refusal_that_leaves_no_time_is_told_at_once() -> None:
    """Waiting for it would only waste the caller's time."""
    talk, ear, connection = started(timeout_s=1)
    talk.hear(connection, error(ear.rid, 429, "queue_full", retry_after_ms=2000))

    assert isinstance(ear.error, BusyError)


def test_what_was_accepted_once_is_not_given_up_for_a_broker_that_is_busy_now() -> None:
    """Its guess is beyond the time that is left, so it is asked before that, again and again, until the time is up."""
    talk, ear, connection = started(A, B, timeout_s=20)
    talk.hear(connection, m.Accepted(ear.rid))
    talk.lose(connection)
    talk.after(0.2)
    connection = talk.up()
    asked = 0
    while not ear.events:
        for request in talk.sent(connection, m.Request):
            asked += 1
            talk.hear(connection, error(request.rid, 429, "queue_full", retry_after_ms=59_000))
        talk.after(0.05)

    assert 5 <= asked <= 12
    assert isinstance(ear.error, BusyError)
    assert talk.now - 100.0 > 19.0


@pytest.mark.parametrize(("busy", "is_alive"), [("toy", True), ("another", False)])
def test_a_full_queue_moves_with_the_answers_of_its_own_model(busy: str, is_alive: bool) -> None:  # noqa: FBT001
    """What another model of the same fleet makes is no progress: its callers would wait for ever."""
    talk = Talk()
    ear, other = talk.submit(timeout_s=5), talk.submit(model=busy, timeout_s=5, stream=True)
    connection = talk.up()
    talk.said(connection)
    talk.hear(connection, error(ear.rid, 429, "queue_full", retry_after_ms=900))
    for unit in range(40):
        talk.hear(connection, partial(other.rid, unit))
        talk.after(0.5)
        for request in talk.sent(connection, m.Request):
            talk.hear(connection, error(request.rid, 429, "queue_full", retry_after_ms=900))

    assert (not ear.events) == is_alive


def test_a_refused_stream_goes_on_with_what_it_has() -> None:
    """The broker let it go, so the next attempt brings the units along."""
    talk, ear, connection = started(stream=True)
    talk.said(connection)
    talk.hear(connection, partial(ear.rid, 0, 2), error(ear.rid, 503, "engine_restarted"))
    talk.after(1.0)
    (again,) = talk.sent(connection, m.Request)

    assert (again.resume_n, bool(again.flags & m.RESUME)) == (2, True)


def test_other_errors_are_not_retried() -> None:
    """The model raised: it would raise again."""
    talk = Talk()
    ears = [talk.submit(), talk.submit()]
    connection = talk.up()
    talk.hear(connection, error(ears[0].rid, 500, "model_raised"), error(ears[1].rid, 404, "model_not_found"))

    assert isinstance(ears[0].error, EngineError)
    assert isinstance(ears[1].error, NotFoundError)


# --- acknowledgement and liveness ------------------------------------------------------------------------------------


def test_a_request_that_is_not_accepted_is_asked_after_once_and_sent_again_once() -> None:
    """PONG without ACCEPTED: connections are FIFO, so the broker never saw it."""
    talk, ear, connection = started()
    talk.said(connection)
    talk.after(2.4)
    assert talk.sent(connection, m.Ping) == []

    talk.after(0.2)
    (ping,) = talk.sent(connection, m.Ping)
    talk.hear(connection, m.Pong(ping.nonce))
    assert [one.rid for one in talk.sent(connection, m.Request)] == [ear.rid]

    talk.after(2.6)
    for ping in talk.sent(connection, m.Ping):
        talk.hear(connection, m.Pong(ping.nonce))
    assert talk.sent(connection, m.Request) == []


def test_a_broker_that_answers_no_ping_is_left_for_the_next() -> None:
    """5 s after the request."""
    talk = Talk(A, B)
    ear = talk.submit()
    talk.up()
    talk.after(5.2)

    assert [one.rid for one in talk.sent(talk.up(), m.Request)] == [ear.rid]


def test_a_slow_stream_is_kept_alive_by_pings() -> None:
    """Every half interval of this side's silence, for as long as something is outstanding; never when idle."""
    talk, ear, connection = started(stream=True, timeout_s=100)
    talk.said(connection)
    talk.hear(connection, m.Accepted(ear.rid))
    pings = 0
    for _ in range(60):
        talk.after(1.0)
        for ping in talk.sent(connection, m.Ping):
            pings += 1
            talk.hear(connection, m.Pong(ping.nonce))
    assert 20 <= pings <= 24
    assert connection.state is ConnectionState.UP

    talk.hear(connection, partial(ear.rid, 0), final(ear.rid, 1))
    talk.after(60)
    assert talk.said(connection) == []


def test_a_broker_silent_for_the_eviction_time_is_left() -> None:
    """Only while something is outstanding."""
    talk = Talk(A, B)
    connection = talk.up()
    talk.after(100)
    assert connection.state is ConnectionState.UP

    ear = talk.submit(stream=True)
    talk.hear(connection, m.Accepted(ear.rid))
    talk.after(9.9)
    assert connection.state is ConnectionState.UP
    talk.after(0.5)
    assert [one.rid for one in talk.sent(talk.up(), m.Request)] == [ear.rid]
