"""Which model is asked when none is named."""

from __future__ import annotations

import msgspec
import pytest

from support.client_core import A, B, Talk, error, final
from support.tiny_broker import service
from zmqrt.client.catalogue import Catalogue
from zmqrt.protocol import messages as m
from zmqrt.protocol import snapshot
from zmqrt.protocol.errors import BadRequestError, ErrorKind, NotFoundError, RequestError, UnavailableError, ZmqrtError
from zmqrt.protocol.snapshot import ServiceStatus


def answer(query: m.Query, *services: ServiceStatus) -> m.Status:
    """Answer a question about services, as a whole snapshot."""
    whole = snapshot.Snapshot(
        broker_id="a",
        broker_epoch=1,
        uptime_s=0,
        ready=True,
        draining=False,
        clients=1,
        queued=0,
        running=0,
        nodes=[],
        services=list(services),
        counters={},
    )
    return m.Status(query.qid, snapshot.SCHEMA, snapshot.SCHEMA_VERSION, snapshot.encode(whole))


def test_the_only_model_for_the_task_is_taken() -> None:
    """One question for all that wait, and none for those that follow soon."""
    talk = Talk()
    ears = [talk.submit(model=None) for _ in range(3)]
    connection = talk.up()
    (query,) = talk.sent(connection, m.Query)
    talk.hear(connection, answer(query, service("toy"), service("vec", "embed")))
    later = talk.submit(model=None)

    sent = talk.said(connection)
    assert [one.service for one in sent if isinstance(one, m.Request)] == ["toy"] * 4
    assert [one.rid for one in sent if isinstance(one, m.Request)] == [ear.rid for ear in [*ears, later]]
    assert not any(isinstance(one, m.Query) for one in sent)


def test_a_list_that_proved_old_is_asked_for_again() -> None:
    """A 404 empties it, and so does another broker."""
    talk = Talk(A, B)
    first = talk.submit(model=None)
    connection = talk.up()
    (query,) = talk.sent(connection, m.Query)
    talk.hear(connection, answer(query, service("toy")))
    talk.hear(connection, error(first.rid, 404, "model_not_found"))
    talk.submit(model=None)
    assert len(talk.sent(connection, m.Query)) == 1

    talk.lose(connection)
    talk.after(0.1)
    assert len(talk.sent(talk.up(), m.Query)) == 1


def test_several_models_are_listed() -> None:
    """And the request is not sent anywhere."""
    talk = Talk()
    ear = talk.submit(model=None)
    connection = talk.up()
    (query,) = talk.sent(connection, m.Query)
    talk.hear(connection, answer(query, service("b"), service("a")))

    assert isinstance(ear.error, BadRequestError)
    assert "a, b" in str(ear.error)
    assert talk.sent(connection, m.Request) == []


def test_what_does_not_live_is_no_choice() -> None:
    """A model that has departed, or that never comes up, stands in the way of nobody who names none."""
    talk = Talk()
    talk.submit(model=None)
    connection = talk.up()
    (query,) = talk.sent(connection, m.Query)
    gone = msgspec.structs.replace(service("gone"), is_listed=False, nodes=0)
    talk.hear(connection, answer(query, service("toy"), gone))

    assert [one.service for one in talk.sent(connection, m.Request)] == ["toy"]


def test_nobody_is_refused_by_an_old_list() -> None:
    """Of two models one may be gone since: it is asked once more before the request is refused."""
    talk = Talk()
    first = talk.submit(model=None)
    connection = talk.up()
    (query,) = talk.sent(connection, m.Query)
    talk.hear(connection, answer(query, service("a"), service("b")))
    assert isinstance(first.error, BadRequestError)

    talk.after(1.0)
    talk.submit(model=None)
    (query,) = talk.sent(connection, m.Query)
    talk.hear(connection, answer(query, service("b")))

    assert [one.service for one in talk.sent(connection, m.Request)] == ["b"]


def test_a_request_that_named_no_model_goes_to_the_one_that_came_instead() -> None:
    """The one that was chosen is gone by the time it is asked: another is chosen, once."""
    talk = Talk()
    ear = talk.submit(model=None)
    connection = talk.up()
    (query,) = talk.sent(connection, m.Query)
    talk.hear(connection, answer(query, service("old")))
    assert [one.service for one in talk.sent(connection, m.Request)] == ["old"]

    talk.hear(connection, error(ear.rid, 404, "model_not_found"))
    (query,) = talk.sent(connection, m.Query)
    talk.hear(connection, answer(query, service("new")))
    assert [one.service for one in talk.sent(connection, m.Request)] == ["new"]

    talk.hear(connection, error(ear.rid, 404, "model_not_found"))
    assert isinstance(ear.error, NotFoundError)


def test_no_model_yet_is_asked_for_until_there_is_one() -> None:
    """A worker may be about to join."""
    talk = Talk()
    patient, hasty = talk.submit(model=None), talk.submit(model=None, retries=0)
    connection = talk.up()
    sent: list[m.Request] = []
    for seconds in range(20):
        for said in talk.said(connection):
            if isinstance(said, m.Query):
                talk.hear(connection, answer(said, *([service("toy")] if seconds > 5 else [])))
            elif isinstance(said, m.Request):
                sent.append(said)
                talk.hear(connection, final(said.rid, 1))
        talk.after(1.0)

    assert [one.service for one in sent] == ["toy"]
    assert isinstance(hasty.error, UnavailableError)
    assert isinstance(patient.ends[0], m.Final)


def test_a_question_that_is_put_off_is_asked_again_when_the_broker_said() -> None:
    """Whoever waits for the answer notices nothing but the time."""
    talk = Talk()
    ear = talk.submit(model=None)
    connection = talk.up()
    (query,) = talk.sent(connection, m.Query)
    talk.hear(connection, m.Status(query.qid, snapshot.LATER, 1, b"", {"retry_after_ms": 200}))
    talk.after(0.1)
    assert talk.sent(connection, m.Query) == []
    talk.after(0.15)

    (again,) = talk.sent(connection, m.Query)
    talk.hear(connection, answer(again, service("toy")))
    assert [one.service for one in talk.sent(connection, m.Request)] == ["toy"]
    assert ear.ends == []


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


def test_an_unreadable_answer_ends_those_that_wait_for_it() -> None:
    """Two versions that do not fit are an error, not a wait."""
    talk = Talk()
    ear = talk.submit(model=None)
    connection = talk.up()
    (query,) = talk.sent(connection, m.Query)
    talk.hear(connection, m.Status(query.qid, snapshot.SCHEMA, 1, b"\x80"))

    assert isinstance(ear.error, ZmqrtError)


def test_the_default_is_preferred_where_it_can_do_the_task() -> None:
    """For another task it means nothing."""
    catalogue = Catalogue("small")
    catalogue.learn([service("big"), service("small"), service("vec", "embed")], 0.0)

    assert catalogue.choose("generate") == "small"
    assert catalogue.choose("embed") == "vec"


@pytest.mark.parametrize(
    ("services", "kind", "words"),
    [
        ([], ErrorKind.NO_WORKER, "no model yet"),
        ([service("toy")], ErrorKind.NOT_FOUND, "no model here can embed; there are: toy"),
        ([service("v1", "embed"), service("v2", "embed")], ErrorKind.BAD_REQUEST, "several models can embed: v1, v2"),
    ],
)
def test_what_cannot_be_chosen_is_explained(services: list[ServiceStatus], kind: ErrorKind, words: str) -> None:
    """With what there is."""
    catalogue = Catalogue()
    catalogue.learn(services, 0.0)
    with pytest.raises(RequestError, match=words) as caught:
        catalogue.choose("embed")

    assert caught.value.kind is kind
    assert isinstance(caught.value, NotFoundError) == (kind is ErrorKind.NOT_FOUND)
