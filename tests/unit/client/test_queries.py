"""Queries about the broker itself: shared by who asks the same, put off as the broker wants, asked anew elsewhere."""

from __future__ import annotations

from support.client_core import Talk
from zmqrt.protocol import messages as m
from zmqrt.protocol import snapshot


def test_equal_questions_share_one_query() -> None:
    """However many ask at once, the broker is asked once; who asks after the answer asks anew."""
    talk = Talk()
    connection = talk.up()
    ears = [talk.ask_status() for _ in range(200)]
    queries = talk.sent(connection, m.Query)
    talk.hear(connection, m.Status(queries[0].qid, snapshot.SCHEMA, 1, b""))

    assert len(queries) == 1
    assert all(len(ear.events) == 1 for ear in ears)
    talk.ask_status()
    assert len(talk.sent(connection, m.Query)) == 1


def test_a_lost_session_asks_what_was_shared_again() -> None:
    """Once, for all that wait."""
    talk = Talk()
    connection = talk.up()
    ears = [talk.ask_status() for _ in range(3)]
    talk.lose(connection)
    talk.after(0.2)
    connection = talk.up()

    (query,) = talk.sent(connection, m.Query)
    talk.hear(connection, m.Status(query.qid, snapshot.SCHEMA, 1, b""))
    assert all(len(ear.events) == 1 for ear in ears)


def test_a_query_that_is_put_off_is_asked_again_when_the_broker_said() -> None:
    """Whoever waits for the answer notices nothing but the time."""
    talk = Talk()
    connection = talk.up()
    ear = talk.ask_status()
    (query,) = talk.sent(connection, m.Query)
    talk.hear(connection, m.Status(query.qid, snapshot.LATER, 1, b"", {"retry_after_ms": 200}))
    talk.after(0.1)
    assert talk.sent(connection, m.Query) == []
    talk.after(0.15)

    (again,) = talk.sent(connection, m.Query)
    assert ear.ends == []
    talk.hear(connection, m.Status(again.qid, snapshot.SCHEMA, 1, b""))
    assert len(ear.ends) == 1
