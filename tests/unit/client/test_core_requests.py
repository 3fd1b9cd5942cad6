"""Requests: streams without gap or repeat, one end each, deadlines, retries, acknowledgement, liveness, windows."""

from __future__ import annotations

import pytest

from support.client_core import A, B, Talk, error, final, partial, started
from zmqrt.client.queue_place import QueuePlace
from zmqrt.client.requests import MOVES, ClientRequest, ClientRequestState
from zmqrt.client.response import read_stream
from zmqrt.protocol import messages as m
from zmqrt.protocol.errors import (
    CancelledError,
    DeadlineError,
    EngineError,
    ErrorKind,
    RequestError,
    UnavailableError,
    WorkerLostError,
)

# --- streams ---------------------------------------------------------------------------------------------------------


def test_units_are_delivered_in_order_and_each_once() -> None:
    """Repeats are dropped, overlaps trimmed."""
    talk, ear, connection = started(stream=True)
    talk.hear(connection, partial(ear.rid, 0, 2), partial(ear.rid, 0, 2), partial(ear.rid, 1, 3), partial(ear.rid, 4))
    talk.hear(connection, final(ear.rid, 5))

    assert ear.ids == [0, 1, 2, 3, 4]
    assert isinstance(ear.ends[0], m.Final)


def test_a_gap_is_asked_for_again_and_what_lies_behind_it_is_ignored() -> None:
    """One question for a gap, however much comes behind it."""
    talk, ear, connection = started(stream=True)
    talk.said(connection)
    talk.hear(connection, partial(ear.rid, 0), partial(ear.rid, 2), partial(ear.rid, 3), final(ear.rid, 4))
    (again,) = talk.sent(connection, m.Request)
    talk.hear(connection, *(partial(ear.rid, n) for n in range(1, 4)), final(ear.rid, 4))

    assert (again.resume_n, again.resume) == (1, b"")
    assert ear.ids == [0, 1, 2, 3]
    assert len(ear.ends) == 1


def test_a_lost_last_chunk_is_missed_at_the_end() -> None:
    """FINAL tells how many units there were."""
    talk, ear, connection = started(stream=True)
    talk.said(connection)
    talk.hear(connection, partial(ear.rid, 0), final(ear.rid, 2))

    assert ear.ends == []
    assert [one.resume_n for one in talk.sent(connection, m.Request)] == [1]


def test_a_broker_that_cannot_replay_ends_the_stream_with_what_was_delivered() -> None:
    """Three gaps in a row without a new unit are enough."""
    talk, ear, connection = started(stream=True)
    talk.hear(connection, partial(ear.rid, 0))
    for _ in range(4):
        talk.hear(connection, partial(ear.rid, 0), partial(ear.rid, 5))

    assert isinstance(ear.error, WorkerLostError)
    assert ear.error.kind is ErrorKind.NOT_RESUMABLE
    assert ear.error.resume_n == 1


def test_a_stream_that_ends_before_what_was_delivered_is_an_error() -> None:
    """Such a broker talks about another stream."""
    talk, ear, connection = started(stream=True)
    talk.hear(connection, partial(ear.rid, 0, 3), final(ear.rid, 2))

    assert isinstance(ear.error, EngineError)


def test_the_first_end_is_the_only_one() -> None:
    """What comes behind it is dropped."""
    talk, ear, connection = started()
    talk.hear(
        connection, final(ear.rid, 1), final(ear.rid, 1), error(ear.rid, 500, "model_raised"), partial(ear.rid, 0)
    )

    assert len(ear.events) == 1


def test_what_an_earlier_session_says_late_is_not_heard() -> None:
    """Only the session that a request is in now counts."""
    talk, ear, old = started(A, B, stream=True)
    talk.hear(old, partial(ear.rid, 0), m.Goaway("drain", 1000))
    talk.after(0.2)
    new = talk.up()
    talk.after(1.0)
    talk.hear(old, partial(ear.rid, 1), final(ear.rid, 2))
    talk.hear(new, partial(ear.rid, 1, 2), final(ear.rid, 3))

    assert ear.ids == [0, 1, 2]
    assert len(ear.ends) == 1


def test_a_stream_too_long_to_resume_ends_when_its_broker_is_lost() -> None:
    """Above 1 MiB no broker would take the prefix back."""
    talk, ear, connection = started(A, B, stream=True)
    seq = 0
    while seq < 400_000:
        talk.hear(connection, partial(ear.rid, seq, 20_000))
        seq += 20_000
    talk.lose(connection)
    talk.after(0.1)
    talk.up()
    talk.settle()

    assert isinstance(ear.error, WorkerLostError)
    assert ear.error.resume_n == 400_000


def test_a_slow_reader_loses_its_stream_alone() -> None:
    """The broker is told, the others go on."""
    talk = Talk()
    slow, other = talk.submit(stream=True), talk.submit(stream=True)
    connection = talk.up()
    slow.is_full = True
    talk.hear(connection, partial(slow.rid, 0), partial(other.rid, 0))
    talk.hear(connection, partial(slow.rid, 1), partial(other.rid, 1), final(other.rid, 2))

    assert isinstance(slow.error, CancelledError)
    assert slow.error.kind is ErrorKind.SLOW_READER
    assert [one.rid for one in talk.sent(connection, m.Cancel)] == [slow.rid]
    assert other.ids == [0, 1]


def test_an_unreadable_chunk_ends_its_stream() -> None:
    """Trimming has to read it."""
    talk, ear, connection = started(stream=True)
    talk.hear(connection, partial(ear.rid, 0, 2), m.Partial(ear.rid, 1, 4, b"\xc1"))

    assert isinstance(ear.error, EngineError)


def test_the_window_is_told_every_quarter() -> None:
    """Counted on receipt, whoever it was for."""
    talk = Talk()
    connection = talk.up(params=m.Params(5000, 10_000, 30_000, 256, 4000))
    talk.said(connection)
    chunk = m.Partial(b"x" * 16, 0, 1, b"." * 600)
    talk.hear(connection, chunk)
    assert talk.sent(connection, m.Window) == []

    talk.hear(connection, chunk)
    talk.hear(connection, m.Final(b"x" * 16, 1, {}, b"." * 1000))
    assert talk.sent(connection, m.Window) == [m.Window(1200), m.Window(2200)]


# --- cancelling, deadlines -------------------------------------------------------------------------------------------


def test_cancelling_tells_the_broker_and_the_reader() -> None:
    """Whatever state it is in."""
    talk = Talk()
    waiting = talk.submit()
    talk.cancel(waiting)
    connection = talk.up()
    sent = talk.submit()
    talk.cancel(sent)
    talk.cancel(sent)

    assert isinstance(waiting.error, CancelledError)
    assert isinstance(sent.error, CancelledError)
    assert [one.rid for one in talk.sent(connection, m.Cancel)] == [sent.rid]


def test_waiting_here_counts_as_time() -> None:
    """The broker is told what is left; what never got a turn ends here."""
    talk = Talk()
    first, second = talk.submit(timeout_s=60), talk.submit(timeout_s=10)
    connection = talk.up(params=m.Params(5000, 10_000, 30_000, 1, 1 << 23))
    talk.hear(connection, m.Accepted(first.rid))
    for _ in range(10):
        talk.after(1.0)
        talk.hear(connection, m.Pong(0))

    assert isinstance(second.error, DeadlineError)
    assert first.events == []


def test_the_brokers_own_word_about_a_deadline_is_waited_for() -> None:
    """It says more than this side can."""
    talk, ear, connection = started(timeout_s=2)
    (request,) = talk.sent(connection, m.Request)
    assert request.ttl_ms == 2000

    talk.after(2.3)
    talk.hear(connection, error(ear.rid, 504, "deadline_exceeded"))
    assert "because of deadline" in str(ear.error)


def test_a_silent_deadline_cancels_at_the_broker() -> None:
    """Nobody works on for nothing."""
    talk, ear, connection = started(timeout_s=2)
    talk.after(2.6)

    assert isinstance(ear.error, DeadlineError)
    assert [one.rid for one in talk.sent(connection, m.Cancel)] == [ear.rid]


def test_each_new_unit_gives_a_stream_new_time() -> None:
    """A stream may last as long as it goes on."""
    talk, ear, connection = started(stream=True, timeout_s=3)
    for seq in range(5):
        talk.hear(connection, partial(ear.rid, seq))
        talk.after(2.0)
    assert ear.ends == []

    talk.after(2.0)
    assert isinstance(ear.error, DeadlineError)
    assert ear.error.kind is ErrorKind.STALLED


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ClientRequestState)
@pytest.mark.parametrize("goal", ClientRequestState)
def test_only_the_moves_of_the_table_are_possible(start: ClientRequestState, goal: ClientRequestState) -> None:
    """An illegal one is a fault of the library, and shows."""
    talk = Talk()
    ear = talk.submit()
    assert ear.call is not None
    request = ClientRequest(ear.call, ear, 0.0)
    request.state = start
    if goal in MOVES[start]:
        request.move(goal)
        assert request.state is goal
    else:
        with pytest.raises(RuntimeError):
            request.move(goal)


def test_too_many_waiting_requests_are_refused_here() -> None:
    """The line has an end."""
    talk = Talk(max_waiting=3)
    ears = [talk.submit() for _ in range(4)]

    assert isinstance(ears[3].error, RequestError)
    assert ears[3].error.kind is ErrorKind.QUEUE_FULL


def test_progress_of_a_whole_answer_gives_it_new_time() -> None:
    """The broker says so; a first ACCEPTED alone does not."""
    talk = Talk()
    ear, other = talk.submit(timeout_s=3), talk.submit(timeout_s=3)
    connection = talk.up()
    (request, _) = talk.sent(connection, m.Request)
    assert request.ext["progress"] is True
    for units in range(5):
        talk.hear(connection, m.Accepted(ear.rid, {"units": units}), m.Accepted(other.rid))
        talk.after(2.0)
    assert ear.ends == []
    assert isinstance(other.error, DeadlineError)

    talk.after(2.0)
    assert isinstance(ear.error, DeadlineError)


def test_who_wants_to_hear_where_a_request_stands_asks_and_is_told() -> None:
    """By whoever reads its answer; a place is no progress, and others are told nothing."""
    heard: list[QueuePlace] = []
    talk = Talk()
    ear, other = talk.submit(timeout_s=3, on_wait=heard.append), talk.submit(timeout_s=3)
    connection = talk.up()
    assert [one.ext.get("place") for one in talk.sent(connection, m.Request)] == [True, None]
    told: m.Ext = {"before": 2, "wait_ms": 4500}
    talk.hear(connection, m.Accepted(ear.rid, told), m.Accepted(other.rid, told))

    place = QueuePlace(2, 4.5)
    assert (ear.events, other.events) == ([place], [])
    reader = read_stream("r")
    reader.on_wait = heard.append
    assert reader.feed(place) is None
    assert heard == [place]
    talk.after(4.0)
    assert [type(end) for end in ear.events[1:]] == [DeadlineError]


def test_a_whole_time_ends_what_goes_on_and_is_told_as_what_is_left() -> None:
    """For whole answers and streams."""
    talk = Talk()
    ears = [talk.submit(timeout_s=3, total_s=6, stream=stream) for stream in (False, True)]
    talk.after(0.5)
    connection = talk.up()
    assert [(one.ttl_ms, one.ext["total_ms"]) for one in talk.sent(connection, m.Request)] == [(3000, 5500)] * 2
    for seq in range(3):
        talk.hear(connection, m.Accepted(ears[0].rid, {"units": seq}), partial(ears[1].rid, seq))
        talk.after(2.0)

    assert [ear.error.kind for ear in ears if isinstance(ear.error, DeadlineError)] == [ErrorKind.DEADLINE] * 2


def test_waiting_in_this_client_is_progress_while_its_others_move() -> None:
    """Only so many are at the broker at once; who waits for their turn is not given up for that."""
    talk = Talk()
    first, second = talk.submit(stream=True, timeout_s=3), talk.submit(timeout_s=3)
    connection = talk.up(params=m.Params(5000, 10_000, 30_000, 1, 1 << 23))
    for seq in range(4):
        talk.hear(connection, partial(first.rid, seq))
        talk.after(2.0)
    assert second.events == []

    talk.after(2.0)
    assert isinstance(second.error, DeadlineError)


def test_who_leaves_the_line_has_its_whole_time_at_the_broker() -> None:
    """Its turn came because another one was done: that is progress, however long ago it was looked at last."""
    talk = Talk()
    first, second = talk.submit(stream=True, timeout_s=3), talk.submit(timeout_s=3)
    connection = talk.up(params=m.Params(5000, 10_000, 30_000, 1, 1 << 23))
    talk.after(2.0)
    talk.hear(connection, partial(first.rid, 0))
    talk.after(2.8)  # what counts for the second was 2.8 s ago
    talk.hear(connection, final(first.rid, 1))
    talk.after(2.8)

    assert [request.rid for request in talk.sent(connection, m.Request)] == [first.rid, second.rid]
    assert second.events == []


# --- no model named


def test_a_request_that_names_no_model_tells_its_task() -> None:
    """The broker reads no body, and chooses."""
    talk = Talk()
    talk.submit(model=None)
    talk.submit(model="toy")

    sent = talk.sent(talk.up(), m.Request)

    assert [(one.service, one.ext.get("task")) for one in sent] == [("", "generate"), ("toy", None)]


def test_a_stream_goes_on_elsewhere_with_the_model_that_was_chosen_first() -> None:
    """Another broker may have another choice by then."""
    talk, ear, first = started(A, B, model=None, stream=True)
    units = partial(ear.rid, 0)
    talk.hear(first, m.Partial(units.rid, 0, 1, units.body, {"service": "toy", "revision": "r"}))
    talk.lose(first)
    talk.after(0.1)

    (again,) = talk.sent(talk.up(), m.Request)

    assert (again.service, again.resume_n) == ("toy", 1)


@pytest.mark.parametrize("name", ["no name\n", "", 5, None])
def test_what_is_no_name_is_not_taken_for_one(name: str | int | None) -> None:
    """A broker may tell anything."""
    talk, ear, first = started(A, B, model=None, stream=True)
    talk.hear(first, m.Partial(ear.rid, 0, 1, partial(ear.rid, 0).body, {"service": name}))
    talk.lose(first)
    talk.after(0.1)

    (again,) = talk.sent(talk.up(), m.Request)

    assert again.service == ""


def test_what_has_not_begun_is_chosen_for_anew() -> None:
    """Nothing of it was seen, so the next broker takes what lives there."""
    talk = Talk(A, B)
    talk.submit(model=None)
    first = talk.up()
    talk.sent(first, m.Request)
    talk.lose(first)
    talk.after(0.1)

    (again,) = talk.sent(talk.up(), m.Request)

    assert again.service == ""


def test_no_model_yet_is_asked_for_until_there_is_one() -> None:
    """A worker may be about to join; who wants no retries is told at once."""
    talk = Talk()
    patient, hasty = talk.submit(model=None), talk.submit(model=None, retries=0)
    connection = talk.up()
    for seconds in range(8):
        for request in talk.sent(connection, m.Request):
            is_here = seconds > 4
            talk.hear(connection, final(request.rid, 1) if is_here else error(request.rid, 503, "no_worker"))
        talk.after(1.0)

    assert isinstance(patient.ends[0], m.Final)
    assert isinstance(hasty.error, UnavailableError)
