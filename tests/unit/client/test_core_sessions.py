"""Connections: opening, greeting, losing, moving on. The test plays broker and clock."""

from __future__ import annotations

import pytest

from support.client_core import PARAMS, REFUSED, WRONG_KEY, A, B, Talk, error, final, partial, started, units_of
from zmqrt.client.connection import ConnectionState
from zmqrt.client.failover import OpenSocket
from zmqrt.protocol import messages as m
from zmqrt.protocol.errors import (
    CancelledError,
    ConnectError,
    ErrorKind,
    UnavailableError,
    WorkerLostError,
)
from zmqrt.protocol.failure import Failure


def test_it_greets_after_the_handshake_and_sends_after_the_welcome() -> None:
    """Nothing is said before it can be heard."""
    talk = Talk()
    ear = talk.submit()
    connection = talk.opened()
    assert talk.said(connection) == []

    talk.ready(connection)
    assert [type(one) for one in talk.said(connection)] == [m.Hello]

    talk.hear(connection, m.Welcome("a", 1, m.Params(5000, 10_000, 30_000, 256, 1 << 23)))
    (request,) = talk.sent(connection, m.Request)
    assert (request.rid, request.service, request.resume_n) == (ear.rid, "toy", 0)


def test_a_wish_for_a_session_is_granted_by_the_welcome() -> None:
    """`connect()` returns once there is one, at once if there is one already."""
    talk = Talk()
    first = talk.connect()
    talk.up()
    second = talk.connect()
    talk.settle()

    assert [type(one) for one in first.events + second.events] == [m.Welcome, m.Welcome]


def test_no_more_requests_are_sent_than_the_broker_allows() -> None:
    """The rest waits here and follows as room is made."""
    talk = Talk()
    ears = [talk.submit() for _ in range(5)]
    connection = talk.up(params=m.Params(5000, 10_000, 30_000, 2, 1 << 23))

    first = talk.sent(connection, m.Request)
    talk.hear(connection, final(ears[0].rid, 1))
    second = talk.sent(connection, m.Request)

    assert [one.rid for one in first] == [ears[0].rid, ears[1].rid]
    assert [one.rid for one in second] == [ears[2].rid]


def test_nobody_listening_is_told_after_half_the_connect_timeout() -> None:
    """Whoever starts client and broker together still succeeds; nobody waits for nothing."""
    talk = Talk()
    ear = talk.submit()
    while not ear.events:
        for action in talk.actions():
            if isinstance(action, OpenSocket):
                talk.lose(action.connection, REFUSED)
        talk.after(0.1)

    assert isinstance(ear.error, ConnectError)
    assert str(ear.error) == REFUSED.text
    assert 102.5 <= talk.now <= 103.5


def test_a_cause_that_will_not_go_away_is_told_at_once() -> None:
    """A wrong key does not become right."""
    talk = Talk()
    ear = talk.submit()
    talk.lose(talk.opened(), WRONG_KEY)

    assert isinstance(ear.error, ConnectError)
    assert ear.error.not_authorised
    assert ear.error.exit_code == 77


def test_an_unknown_cause_is_looked_for_and_told() -> None:
    """The next attempt does not wait for the diagnosis."""
    talk = Talk()
    ear = talk.submit()
    talk.lose(talk.opened(), None)
    talk.core.explained(A, Failure("tcp://a:1 is an HTTP server", is_final=True), talk.now)
    talk.settle()

    assert str(ear.error) == "tcp://a:1 is an HTTP server"


def test_a_broker_that_never_answers_is_told_within_the_connect_timeout() -> None:
    """Even when no cause is found at all."""
    talk = Talk()
    ear = talk.submit()
    talk.after(5.1)

    assert isinstance(ear.error, ConnectError)
    assert A in str(ear.error)


def test_all_brokers_are_named_when_none_can_be_used() -> None:
    """Each with its own cause."""
    talk = Talk(A, B)
    ear = talk.submit()
    talk.lose(talk.opened(), WRONG_KEY)
    talk.after(0.1)
    talk.lose(talk.opened(), Failure("tcp://b:1 is an HTTP server", is_final=True))

    assert "the key is wrong" in str(ear.error)
    assert "HTTP server" in str(ear.error)


@pytest.mark.parametrize("greeted", [False, True])
def test_a_broker_that_does_not_answer_in_two_seconds_is_left_for_the_next(*, greeted: bool) -> None:
    """Neither the handshake nor WELCOME may take longer."""
    talk = Talk(A, B)
    talk.submit()
    connection = talk.opened()
    if greeted:
        talk.ready(connection)
    talk.after(2.2)

    assert talk.opened().endpoint == B


def test_a_lost_session_hands_its_requests_to_the_next_broker() -> None:
    """In their old order, with what they received so far."""
    talk = Talk(A, B)
    ears = [talk.submit(stream=True) for _ in range(3)]
    connection = talk.up()
    talk.sent(connection, m.Request)
    talk.hear(connection, partial(ears[1].rid, 0, 2), partial(ears[1].rid, 2))
    talk.lose(connection)
    talk.after(0.1)
    other = talk.up()

    again = talk.sent(other, m.Request)
    assert other.endpoint == B
    assert [one.rid for one in again] == [ear.rid for ear in ears]
    assert [one.resume_n for one in again] == [0, 3, 0]
    assert again[1].flags & m.RESUME
    assert units_of(again[1].resume) == [0, 1, 2]
    assert not again[0].flags & m.RESUME


def test_the_same_broker_replays_by_itself_and_gets_no_units_back() -> None:
    """Without RESUME it attaches to what it still runs."""
    talk, ear, connection = started(stream=True)
    talk.sent(connection, m.Request)
    talk.hear(connection, partial(ear.rid, 0, 3))
    talk.lose(connection)
    talk.after(0.1)
    (again,) = talk.sent(talk.up(), m.Request)

    assert (again.resume_n, again.resume, again.flags & m.RESUME) == (3, b"", 0)


def test_a_broker_that_was_restarted_remembers_nothing() -> None:
    """Another epoch under the same name is another broker."""
    talk = Talk()
    ear = talk.submit(stream=True)
    connection = talk.up(epoch=1)
    talk.hear(connection, partial(ear.rid, 0, 3))
    talk.lose(connection)
    talk.after(0.1)
    (again,) = talk.sent(talk.up(epoch=2), m.Request)

    assert units_of(again.resume) == [0, 1, 2]


def test_what_must_not_run_twice_is_not_sent_to_another_broker() -> None:
    """Its outcome is unknown, and that is said."""
    talk = Talk(A, B)
    sent, waiting = talk.submit(idempotent=False), talk.submit(idempotent=False)
    connection = talk.up(params=m.Params(5000, 10_000, 30_000, 1, 1 << 23))
    talk.lose(connection)
    talk.after(0.1)
    again = talk.sent(talk.up(), m.Request)
    talk.settle()

    assert isinstance(sent.error, WorkerLostError)
    assert sent.error.kind is ErrorKind.OUTCOME_UNKNOWN
    assert [one.rid for one in again] == [waiting.rid]


def test_what_must_not_run_twice_is_sent_again_to_the_broker_that_remembers_it() -> None:
    """The same epoch attaches instead of running it anew."""
    talk = Talk()
    ear = talk.submit(idempotent=False)
    talk.lose(talk.up())
    talk.after(0.1)

    assert [one.rid for one in talk.sent(talk.up(), m.Request)] == [ear.rid]


def test_requests_under_way_outlive_a_loss_until_their_time_is_up() -> None:
    """They were accepted: only their own deadline ends them, not the connect timeout."""
    talk = Talk()
    ear = talk.submit()
    talk.lose(talk.up(), REFUSED)
    talk.after(25.0)
    assert ear.events == []

    talk.after(6.0)
    assert isinstance(ear.error, UnavailableError)
    assert ear.error.kind is ErrorKind.BROKER_LOST


def test_a_broker_that_leaves_finishes_what_it_has() -> None:
    """New work goes to the next one meanwhile; afterwards the session is closed."""
    talk = Talk(A, B)
    old = talk.submit(stream=True)
    connection = talk.up()
    talk.hear(connection, m.Goaway("drain", 30_000))
    talk.after(0.2)
    new = talk.submit()
    other = talk.up()
    assert [one.rid for one in talk.sent(other, m.Request)] == [new.rid]

    talk.said(connection)
    talk.hear(connection, partial(old.rid, 0), final(old.rid, 1))
    assert old.ids == [0]
    assert [type(one) for one in talk.said(connection)] == [m.Bye]
    assert talk.closed() == [A]


def test_what_a_broker_had_that_is_gone_while_it_leaves_goes_on_at_once() -> None:
    """Its connection breaks before its requests are done, when the next one is up already: nobody waits for a timer."""
    talk, ear, connection = started(A, B, stream=True)
    talk.hear(connection, partial(ear.rid, 0, 2), m.Goaway("drain", 30_000))
    talk.after(0.2)
    following = talk.up()
    talk.lose(connection)

    (request,) = talk.sent(following, m.Request)
    assert (request.rid, request.resume_n) == (ear.rid, 2)


def test_what_a_leaving_broker_has_not_finished_goes_on_elsewhere() -> None:
    """At its deadline it counts as lost."""
    talk, ear, connection = started(A, B, stream=True)
    talk.hear(connection, partial(ear.rid, 0, 2), m.Goaway("drain", 5000))
    talk.after(0.2)
    other = talk.up()
    talk.after(5.0)

    (again,) = talk.sent(other, m.Request)
    assert (again.rid, again.resume_n) == (ear.rid, 2)


def test_a_broker_that_leaves_and_greets_again_and_again_is_no_session() -> None:
    """Who waits for another one is told that there is none, after the usual patience and not when it is gone."""
    talk = Talk(A)
    old = talk.submit(stream=True)
    connection = talk.up()
    talk.after(2.0)
    talk.hear(connection, partial(old.rid, 0), m.Goaway("drain", 60_000))
    new = talk.submit(retries=0)
    waited_s = 0.0
    while not new.ends and waited_s < 8.0:
        talk.after(0.5)
        waited_s += 0.5
        opened = [action.connection for action in talk.actions() if isinstance(action, OpenSocket)]
        for again in opened:
            talk.ready(again)
            talk.hear(again, m.Welcome("a", 1, PARAMS), m.Goaway("drain", 60_000))

    assert isinstance(new.error, UnavailableError)
    assert new.error.kind is ErrorKind.DRAINING
    assert old.ends == []


def test_a_refusal_for_draining_moves_on_at_once() -> None:
    """Even without retries: a planned drain fails nobody who has another broker."""
    talk, ear, connection = started(A, B, retries=0)
    talk.hear(connection, error(ear.rid, 503, "draining", retry_after_ms=5000))
    talk.after(0.2)

    other = talk.up()
    talk.after(0.2)
    assert other.endpoint == B
    assert [one.rid for one in talk.sent(other, m.Request)] == [ear.rid]


def test_a_forgotten_session_is_opened_again() -> None:
    """The broker took this client for gone: greet, then everything once more."""
    talk = Talk()
    ears = [talk.submit(), talk.submit(stream=True)]
    connection = talk.up()
    talk.hear(connection, partial(ears[1].rid, 0, 2))
    talk.said(connection)
    talk.hear(connection, error(None, 401, "no_session"), error(ears[0].rid, 401, "no_session"))
    assert [type(one) for one in talk.said(connection)] == [m.Hello]

    talk.hear(connection, m.Welcome(A, 1, m.Params(5000, 10_000, 30_000, 256, 1 << 23)))
    assert [(one.rid, one.resume_n) for one in talk.sent(connection, m.Request)] == [(ears[0].rid, 0), (ears[1].rid, 2)]


def test_a_broker_that_forgets_again_and_again_is_left() -> None:
    """Two that never agree would else greet for ever."""
    talk = Talk(A, B)
    talk.submit()
    connection = talk.up()
    for _ in range(3):
        talk.hear(connection, error(None, 401, "no_session"))
        if connection.state is not ConnectionState.DEAD:
            talk.hear(connection, m.Welcome(A, 1, m.Params(5000, 10_000, 30_000, 256, 1 << 23)))

    assert connection.state is ConnectionState.DEAD


def test_a_refused_session_names_the_reason() -> None:
    """An ERROR instead of WELCOME."""
    talk = Talk()
    ear = talk.submit()
    connection = talk.opened()
    talk.ready(connection)
    talk.hear(connection, m.Error(None, 403, "forbidden", False, 0, "your key is on no list"))

    assert "your key is on no list" in str(ear.error)


def test_the_brokers_that_another_one_names_are_used_when_it_is_lost() -> None:
    """After those that were configured; so one address is enough to survive."""
    talk = Talk()
    ear = talk.submit()
    params = m.Params(5000, 10_000, 30_000, 256, 1 << 23, [A, "tcp://c:1", "no endpoint"])
    talk.lose(talk.up(params=params))
    talk.after(0.1)
    other = talk.up()

    assert other.endpoint == "tcp://c:1"
    assert [one.rid for one in talk.sent(other, m.Request)] == [ear.rid]


def test_a_deadline_before_any_session_says_why_there_is_none() -> None:
    """A short timeout must not hide the cause."""
    talk = Talk()
    ear = talk.submit(timeout_s=0.5)
    talk.lose(talk.opened(), REFUSED)
    talk.after(0.6)

    assert isinstance(ear.error, ConnectError)
    assert str(ear.error) == REFUSED.text


def test_closing_cancels_everything_and_says_goodbye() -> None:
    """Nobody is left waiting."""
    talk = Talk()
    connection = talk.up()
    ears = [talk.submit(), talk.submit(stream=True)]
    talk.core.close()
    late = talk.submit()
    talk.settle()

    assert all(isinstance(ear.error, CancelledError) for ear in [*ears, late])
    assert isinstance(talk.said(connection)[-1], m.Bye)
    assert talk.closed() == [A]
