"""Events in, chunks and an outcome out: what a caller gets to see."""

from __future__ import annotations

import msgspec
import pytest

from zmqrt.client.response import read_embeddings, read_generation, read_result, read_stream, read_unary
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.errors import DeadlineError, EngineError, ErrorKind, request_error
from zmqrt.protocol.tasks import TokenLogprobs

RID = b"r" * 16


def partial(seq: int, *pieces: str, logprobs: bool = False) -> m.Partial:
    """Build a PARTIAL."""
    ids = list(range(seq, seq + len(pieces)))
    alternatives = [TokenLogprobs(logprob=-1.0, top={one: -1.0}) for one in ids] if logprobs else None
    body = tasks.encode(tasks.GenerateChunk(ids=ids, text=list(pieces), logprobs=alternatives))
    return m.Partial(RID, seq, len(pieces), body)


def final(**fields: object) -> m.Final:
    """Build a FINAL."""
    usage = tasks.Usage(prompt_tokens=2, completion_tokens=3)
    body = tasks.GenerateResult(
        finish_reason="length",
        usage=usage,
        seed=1,
        model="toy",
        revision="r",
        **fields,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    )
    return m.Final(RID, 3, {}, tasks.encode(body))


def test_a_stream_is_folded_into_its_result() -> None:
    """Held-back text comes as a last chunk; nothing of the text is ever lost."""
    reading = read_stream("id")
    chunks = [reading.feed(one) for one in (partial(0, "a", ""), partial(2, " b", logprobs=True), final(tail="!"))]
    result = reading.outcome()

    assert [(one.text, one.token_ids, one.index, one.pieces) for one in chunks if one] == [
        ("a", [0, 1], 0, ["a", ""]),
        (" b", [2], 2, [" b"]),
        ("!", [], 3, []),
    ]
    assert (result.text, result.token_ids, result.request_id) == ("a b!", [0, 1, 2], "id")
    assert result.finish_reason == "length"
    assert result.logprobs == [TokenLogprobs(logprob=-1.0, top={2: -1.0})]
    assert reading.is_done


def test_a_unary_answer_comes_whole() -> None:
    """Text and ids are in FINAL."""
    reading = read_generation("id", stream=False)
    assert reading.feed(final(text="abc", ids=[1, 2, 3])) is None

    assert (reading.outcome().text, reading.outcome().token_ids) == ("abc", [1, 2, 3])


def test_a_result_says_which_stop_ended_it() -> None:
    """Where its node told: older ones do not."""
    told = msgspec.structs.replace(final(text="abc", ids=[1]), meta={"stop_index": 1})

    assert [read_result(one, "id").stop_index for one in (told, final(text="abc", ids=[1]))] == [1, None]


def test_an_error_is_raised_as_often_as_asked() -> None:
    """The same one."""
    reading = read_stream("id")
    reading.feed(request_error(ErrorKind.DEADLINE, "too late", request_id="id"))

    for _ in range(2):
        with pytest.raises(DeadlineError, match=r"too late \(request id\)"):
            reading.outcome()


@pytest.mark.parametrize("event", [m.Partial(RID, 0, 1, b"\xc1"), m.Final(RID, 1, {}, b"\x80")])
def test_an_answer_that_cannot_be_read_is_the_nodes_fault(event: m.Partial | m.Final) -> None:
    """Not the caller's, whose request was in order."""
    reading = read_stream("id")
    reading.feed(event)

    with pytest.raises(EngineError, match="cannot be read"):
        reading.outcome()


@pytest.mark.parametrize(("shape", "data"), [([2, 3], b"\0" * 20), ([6], b"\0" * 24), ([-1, 3], b"")])
def test_vectors_of_a_wrong_shape_are_the_nodes_fault(shape: list[int], data: bytes) -> None:
    """The numbers must fill the shape."""
    tensor = tasks.Tensor(dtype="f4", shape=shape, data=data)
    usage = tasks.Usage(prompt_tokens=1, completion_tokens=0)
    body = tasks.EmbedResult(vectors=tensor, usage=usage, model="vec", revision="r")
    reading = read_unary("id", read_embeddings)
    reading.feed(m.Final(RID, 0, {}, tasks.encode(body)))

    with pytest.raises(EngineError, match="shape"):
        reading.outcome()
