"""Requests for engines that are given whole tasks: batches, and text that streams."""

from typing import Literal

import pytest

from support.node import (
    RUN,
    Node,
    result,
    rid,
    sent,
    submitted,
    texts,
)
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.tasks import GenerateChunk
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.base import ItemResult

EOS = 257


def test_a_batch_engine_gets_whole_tasks_and_its_results_are_final() -> None:
    """The body of the result goes out as the engine made it."""
    node = Node()
    node.register()
    node.load(kind="batch", slots=8)

    started = node.dispatch(1, payload=tasks.encode(tasks.Embed(input="hello")), flags=RUN)
    job = node.core.requests.jobs[0, "u", rid(1)]
    made = node.step(results=[ItemResult(ticket=job.ticket, body={"vectors": "…"})])

    (submit,) = submitted(started)
    assert isinstance(submit, ipc.SubmitTask)
    assert submit.task == {"task": "embed", "input": "hello"}
    (final,) = sent(made, m.WorkerFinal)
    assert tasks.unpack_map(final.body) == {"vectors": "…"}


@pytest.mark.parametrize(
    ("vocabulary", "task", "words"),
    [
        (0, tasks.Embed(input=[[1]]), "input: toy takes texts, not token ids"),
        (0, tasks.Embed(input="x", truncate_to=2), "truncate_to: toy does not say how it counts tokens"),
        (262, tasks.Embed(input=["x", [5, 262]]), "input: the model has no token 262, only those below 262"),
    ],
)
def test_inputs_that_a_batch_engine_would_misread_are_refused(vocabulary: int, task: tasks.Embed, words: str) -> None:
    """Vectors of another text look like any other."""
    node = Node()
    node.register()
    node.load(kind="batch", vocabulary=vocabulary)

    (error,) = sent(node.dispatch(1, payload=tasks.encode(task), flags=RUN), m.WorkerError)
    assert (error.code, error.reason) == (400, "bad_request")
    assert error.text.startswith(words)


def test_token_ids_of_a_batch_engine_s_own_vocabulary_reach_it() -> None:
    """It has said that it understands them."""
    node = Node()
    node.register()
    node.load(kind="batch", vocabulary=262)

    assert submitted(node.dispatch(1, payload=tasks.encode(tasks.Embed(input=[[5, 261]], truncate_to=1)), flags=RUN))


@pytest.mark.parametrize(
    ("refused", "code", "reason"),
    [
        ("bad_request", 400, "bad_request"),
        ("context_length_exceeded", 400, "context_length_exceeded"),
        ("", 500, "model_raised"),
    ],
)
def test_an_item_may_be_at_fault_and_not_the_model(
    refused: Literal["", "bad_request", "context_length_exceeded"], code: int, reason: str
) -> None:
    """Its caller is told so by the status."""
    node = Node()
    node.register()
    node.load(kind="batch")
    node.dispatch(1, payload=tasks.encode(tasks.Embed(input="hello")), flags=RUN)
    made = node.step(results=[ItemResult(ticket=node.ticket(), error="dimensions: 8 at most", refused=refused)])

    (error,) = sent(made, m.WorkerError)
    assert (error.code, error.reason, error.text) == (code, reason, "dimensions: 8 at most")


def test_an_engine_that_deals_in_text_streams_chunks() -> None:
    """Its units are pieces of text; there are no ids."""
    node = Node()
    node.register()
    node.load(kind="stream")
    node.dispatch(1)
    ticket = node.ticket()

    assert texts(node.engine(ipc.TextChunk(ticket, "one "))) == ["one "]
    made = node.engine(ipc.TextChunk(ticket, "two"), ipc.TextChunk(ticket, "", done=True))
    assert texts(made) == ["two"]
    assert sent(made, m.WorkerFinal)[0].total_n == 2


def test_what_lies_there_goes_out_together() -> None:
    """An engine that is quicker than its agent's loop costs one PARTIAL a pass, not one a step."""
    node = Node()
    node.register()
    node.load(kind="stream")
    node.dispatch(1)
    ticket = node.ticket()

    made = node.engine(*(ipc.TextChunk(ticket, f"{number} ") for number in range(5)))

    (partial,) = sent(made, m.WorkerPartial)
    assert (partial.seq, partial.n) == (0, 5)
    assert texts(made) == ["0 1 2 3 4 "]


def test_what_goes_out_together_is_bounded() -> None:
    """A broker looks between two PARTIALs whether their reader is too slow: a megabyte in one would be late."""
    node = Node()
    node.register()
    node.load(kind="stream")
    node.dispatch(1)
    ticket = node.ticket()

    made = node.engine(*(ipc.TextChunk(ticket, "x" * 6_000) for _ in range(5)), ipc.TextChunk(ticket, "y" * 40_000))

    assert [(partial.seq, partial.n) for partial in sent(made, m.WorkerPartial)] == [(0, 2), (2, 2), (4, 1), (5, 1)]
    assert "".join(texts(made)) == "x" * 30_000 + "y" * 40_000


@pytest.mark.parametrize("flags", [RUN, RUN | m.STREAM])
def test_an_answer_in_text_that_does_not_end_is_ended(flags: int) -> None:
    """Whoever keeps to no `max_tokens` would fill the node; and a whole answer has to fit a frame."""
    node = Node()
    node.register()
    node.load(kind="stream")
    node.dispatch(1, flags=flags)
    ticket = node.ticket()

    made = [action for _ in range(13) for action in node.engine(ipc.TextChunk(ticket, "x" * (1 << 20)))]

    (error,) = sent(made, m.WorkerError)
    assert (error.reason, error.text) == ("too_large", "the model has not ended its answer within 12582912 bytes")
    assert ipc.CancelTicket(ticket) in submitted(made)


def test_text_is_never_begun_anew_behind_what_was_delivered() -> None:
    """Its engine knows no middle: said at once, instead of by units that do not fit, once for each attempt."""
    node = Node()
    node.register()
    node.load(kind="stream")

    made = node.dispatch(1, prefix=[GenerateChunk(ids=[1, 2], text=["one ", "two"])])

    (error,) = sent(made, m.WorkerError)
    assert (error.code, error.reason) == (502, "not_resumable")
    assert node.core.requests.jobs == {}


def test_a_unary_answer_in_text_is_not_journaled() -> None:
    """After the loss of its node it begins anew: its client has seen nothing."""
    node = Node()
    node.register()
    node.load(kind="stream")
    node.dispatch(1, flags=RUN)
    ticket = node.ticket()

    made = node.engine(ipc.TextChunk(ticket, "one "), ipc.TextChunk(ticket, "", done=True))

    assert sent(made, m.WorkerPartial) == []
    assert result(made).text == "one "
