"""What a node tells about each request and about cancels: device, batch, times by its own clock."""

from __future__ import annotations

from support.node import RUN, STREAM, Node, body, ids_of, sent
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.histogram import Histogram
from zmqrt.worker import actions as a
from zmqrt.worker.engines.base import ItemResult, TokenEvent


def serving(slots: int = 2) -> Node:
    """Return a node with one broker and one engine that is ready."""
    node = Node()
    node.register()
    node.load(slots=slots)
    return node


def test_the_first_units_say_where_they_were_made_and_how_long_that_took() -> None:
    """Once for each lease; the times are this node's own."""
    node = serving(slots=1)
    node.dispatch(1)
    first = node.ticket(1)
    node.now += 2.0
    made = node.step(TokenEvent(ticket=first, token_ids=ids_of("a")))
    more = node.step(TokenEvent(ticket=first, token_ids=ids_of("b"), finish_reason="length"))

    (partial,), (again,), (final,) = sent(made, m.WorkerPartial), sent(more, m.WorkerPartial), sent(more, m.WorkerFinal)
    assert partial.ext == {"prompt_tokens": 3, "device": "mock:0", "batch": 1, "wait_us": 0, "prefill_us": 2_000_000}
    assert (again.ext, final.ext) == ({}, {})


def test_the_wait_for_a_slot_is_told_apart() -> None:
    """From the dispatch to the engine, and from there to the first unit."""
    node = Node(batch=1)
    node.register()
    node.load(slots=1)
    node.dispatch(1)
    node.dispatch(2)
    node.now += 3.0
    node.step(TokenEvent(ticket=node.ticket(1), token_ids=ids_of("a"), finish_reason="length"))
    node.now += 0.5
    (partial,) = sent(node.step(TokenEvent(ticket=node.ticket(2), token_ids=ids_of("a"))), m.WorkerPartial)

    assert partial.ext == {
        "prompt_tokens": 3,
        "device": "mock:0",
        "batch": 1,
        "wait_us": 3_000_000,
        "prefill_us": 500_000,
    }


def test_a_whole_answer_says_it_with_its_end() -> None:
    """There is nothing else to say it with; the batch is that in which it ran."""
    node = Node()
    node.register()
    node.load(slots=2, kind="batch")
    for number in (1, 2):
        node.dispatch(number, flags=RUN, payload=tasks.encode(tasks.Embed(input="hi")))
    node.now += 1.0
    tickets = [node.ticket(1), node.ticket(2)]
    made = node.step(results=[ItemResult(ticket=one, body={"x": 1}) for one in tickets])

    first, second = sent(made, m.WorkerFinal)
    assert first.ext == {"device": "mock:0", "batch": 2, "wait_us": 0, "prefill_us": 1_000_000}
    assert second.ext["device"] == "mock:0"


def test_a_cancel_is_timed_until_its_slot_is_free() -> None:
    """And what the engine still made for it is counted."""
    node = serving()
    node.dispatch(1)
    ticket = node.ticket()
    node.receive(m.WorkerCancel(1))
    node.now += 0.02
    node.step(TokenEvent(ticket=ticket, token_ids=ids_of("ab")))
    node.now += 0.02
    node.step(TokenEvent(ticket=ticket, finish_reason="cancelled"))

    told = node.fleet.devices["mock:0"].report(node.now)
    histogram = Histogram(counts=told.cancel_counts, total_s=told.cancel_us / 1e6)
    assert told.tokens_after_cancel == 2
    assert histogram.count == 1
    assert round(histogram.total_s, 6) == 0.04


def test_an_answer_that_a_stop_string_ended_is_no_cancel() -> None:
    """Its ticket is given up too, but nobody waits for that."""
    node = serving()
    node.dispatch(1, payload=body("hi", stop=["END"]))
    ticket = node.ticket()
    node.step(TokenEvent(ticket=ticket, token_ids=ids_of("END")))
    node.step(TokenEvent(ticket=ticket, token_ids=ids_of("x"), finish_reason="cancelled"))

    told = node.fleet.devices["mock:0"].report(node.now)
    assert (told.tokens_after_cancel, told.cancel_counts) == (0, [])


def test_a_failure_is_logged_under_the_names_that_its_client_knows() -> None:
    """Its own request id, and the trace it belongs to."""
    node = serving()
    message = m.Dispatch(
        lease=1,
        service="toy",
        ttl_ms=6000,
        flags=STREAM,
        attempt=1,
        resume_n=0,
        rid=bytes(16),
        user="u",
        body=body("hi", stop=["END"]),
        ext={"request_id": "job-7", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
    )
    node.receive(message)
    (job,) = node.core.requests.jobs.values()
    made = node.step(TokenEvent(ticket=job.ticket, error="it broke", finish_reason="error"))

    (note,) = [one for one in made if isinstance(one, a.Note)]
    assert (note.request_id, note.trace_id) == ("job-7", "4bf92f3577b34da6a3ce929d0e0e4736")
