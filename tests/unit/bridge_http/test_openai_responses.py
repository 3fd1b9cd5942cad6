"""What OpenAI's clients read: events with their usage and fingerprint, and log probabilities."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.bridge_http.openai import responses as r
from zmqrt.bridge_http.openai.schema import ChatLogprobs, CompletionLogprobs
from zmqrt.client.response import Chunk, Result
from zmqrt.protocol.tasks import TokenLogprobs, Usage

SPELLED = {1: b"He", 2: b"llo", 3: b"\xe2\x82", 4: b"\xac", 5: b"", 6: b"\xff", 7: " é".encode()}


def told(token_id: int, *others: int) -> TokenLogprobs:
    """Report a token that came with -3, and others that were likelier."""
    top = {other: -1.0 - at for at, other in enumerate(others)}
    return TokenLogprobs(logprob=-3.0, top=top, spelled={one: SPELLED[one] for one in (token_id, *others)})


def offsets_of(parts: list[list[int]]) -> list[int]:
    """Write tokens part by part; return all offsets."""
    offsets, found = r.Offsets(), list[int]()
    for part in parts:
        written = r.completion_logprobs([told(one) for one in part], part, offsets, r.as_text)
        assert written is not None
        found += written.text_offset
    return found


@given(ids=st.lists(st.sampled_from(sorted(SPELLED)), max_size=12), cuts=st.lists(st.integers(0, 12), max_size=4))
def test_offsets_are_the_same_however_a_stream_is_cut(ids: list[int], cuts: list[int]) -> None:
    """Whole, token by token, and anything between; and they point into the text."""
    places = sorted({0, len(ids), *(cut for cut in cuts if cut <= len(ids))})
    parts = [ids[begin:end] for begin, end in itertools.pairwise(places)]
    whole = offsets_of([ids])
    text = b"".join(SPELLED[one] for one in ids).decode("utf-8", "replace")

    assert offsets_of(parts) == whole == offsets_of([[one] for one in ids])
    for token_id, at in zip(ids, whole, strict=True):
        if token_id in (1, 2, 7):
            assert text[at:].startswith(SPELLED[token_id].decode())


def written(*likeliest: int, came: int, spelling: r.Spelling = r.as_text) -> tuple[ChatLogprobs, CompletionLogprobs]:
    """Write one token, and those that were likelier, in both forms."""
    token = told(came, *likeliest)
    chat = r.chat_logprobs([token], [came], spelling)
    completion = r.completion_logprobs([token], [came], r.Offsets(), spelling)
    assert chat is not None
    assert completion is not None
    return chat, completion


def test_the_token_that_came_is_always_among_the_likeliest() -> None:
    """In chats in the place of the last, which keeps their number; in completions beside them, as OpenAI has it."""
    chat, completion = written(2, 7, came=1)

    assert [(token.token, token.logprob) for token in chat.content[0].top_logprobs] == [("llo", -1.0), ("He", -3.0)]
    assert completion.top_logprobs == [{"llo": -1.0, " é": -2.0, "He": -3.0}]


def test_no_alternatives_are_none_in_chats_and_the_token_itself_in_completions() -> None:
    """`logprobs: 0` there still tells the token that came."""
    chat, completion = written(came=1)

    assert (chat.content[0].top_logprobs, completion.top_logprobs) == ([], [{"He": -3.0}])


def test_halves_of_characters_do_not_hide_one_another() -> None:
    """Both are replacement characters, and the one that came stays; their numbers (vLLM) tell them apart."""
    as_text, as_id = written(3, came=4)[1], written(3, came=4, spelling=r.as_id)[1]

    assert as_text.top_logprobs == [{"\ufffd": -3.0}]
    assert (as_id.tokens, as_id.top_logprobs) == (["token_id:4"], [{"token_id:3": -1.0, "token_id:4": -3.0}])


@pytest.mark.parametrize("made", [r.ChatStream, r.CompletionStream])
def test_every_event_of_a_stream_has_its_fingerprint_and_if_wanted_its_usage(
    made: type[r.ChatStream | r.CompletionStream],
) -> None:
    """As vLLM tells it: what there is so far."""
    events = play(made(id="i", created=1, model="m", with_usage=True, with_usage_so_far=True, spelling=r.as_text))

    assert {one["system_fingerprint"] for one in events} == {"rev"}
    assert [one["usage"]["completion_tokens"] for one in events][-4:] == [1, 3, 3, 3]
    assert {one["usage"]["prompt_tokens"] for one in events} == {5}
    assert events[-1]["choices"] == []


@pytest.mark.parametrize("made", [r.ChatStream, r.CompletionStream])
def test_without_it_usage_is_null_until_the_end(made: type[r.ChatStream | r.CompletionStream]) -> None:
    """As OpenAI tells it; and there is none where it was not asked for."""
    asked = play(made(id="i", created=1, model="m", with_usage=True, spelling=r.as_text))
    plain = play(made(id="i", created=1, model="m", with_usage=False, spelling=r.as_text))

    assert [one["usage"] for one in asked[:-1]] == [None] * (len(asked) - 1)
    assert asked[-1]["usage"]["total_tokens"] == 8
    assert all("usage" not in one for one in plain)


def play(stream: r.ChatStream | r.CompletionStream) -> list[dict[str, Any]]:
    """Play a stream of two parts and return its events."""
    result = Result(
        text="abc",
        token_ids=[1, 2, 3],
        finish_reason="stop",
        usage=Usage(prompt_tokens=5, completion_tokens=3),
        seed=0,
        model="m",
        revision="rev",
        request_id="",
    )
    pieces = [
        *stream.of(Chunk(text="a", token_ids=[1], index=0, pieces=["a"], revision="rev", prompt_tokens=5)),
        *stream.of(Chunk(text="bc", token_ids=[2, 3], index=1, pieces=["b", "c"], revision="rev", prompt_tokens=5)),
        *stream.end(result),
    ]
    return [json.loads(one.removeprefix(b"data: ")) for one in pieces if one != r.DONE]
