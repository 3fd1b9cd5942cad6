"""OpenAI's API from the asking side: what a task becomes, what events and failures mean."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.protocol.limits import MAX_ANSWER_TOKENS
from zmqrt.protocol.markup import AnswerParser, CalledTool, Content, Reasoning
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.base import AnswerEnd, RequestFailedError
from zmqrt.worker.engines.openai_api import CHAT, COMPLETIONS, AnswerReader, Ask, Dialect, ask_for, failure_of, is_busy

PLAIN = Dialect(model="m")
TOO_LONG = "context_length_exceeded"
MESSAGES = [{"role": "user", "content": "hi"}]


def asked(dialect: Dialect = PLAIN, **task: Any) -> Ask:
    """Ask for a task of 8 tokens."""
    return ask_for({"max_tokens": 8, **task}, dialect)


def events(*events: dict[str, Any], done: bool = True) -> bytes:
    """Write events as a server does that escapes nothing."""
    return b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events) + done * b"data: [DONE]\n\n"


def said(text: str, reason: str | None = None) -> dict[str, Any]:
    """Write a piece of a chat."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


def part(reason: str | None = None, **delta: Any) -> dict[str, Any]:
    """Write a part of a chat that is more than text."""
    return {"choices": [{"delta": delta, "finish_reason": reason}]}


def test_a_prompt_is_a_chat_and_a_raw_one_a_completion() -> None:
    """As everywhere in zmqrt; token ids are never put through a template either."""
    assert (asked(prompt="hi").path, asked(prompt="hi").body["messages"]) == (CHAT, MESSAGES)
    assert (asked(messages=MESSAGES).path, asked(messages=MESSAGES).body["messages"]) == (CHAT, MESSAGES)
    assert (asked(prompt="hi", raw=True).path, asked(prompt="hi", raw=True).body["prompt"]) == (COMPLETIONS, "hi")
    assert (asked(token_ids=[1, 2]).path, asked(token_ids=[1, 2]).body["prompt"]) == (COMPLETIONS, [1, 2])


def test_what_says_nothing_is_not_sent() -> None:
    """Strict servers refuse names that they do not know, so a default is not worth one; ours of temperature is."""
    neutral = asked(prompt="hi", top_p=1.0, top_k=0, stop=[], logit_bias={}, ignore_eos=False).body
    meant = asked(prompt="hi", top_k=4, stop=["x"], logit_bias={7: -1.0}, temperature=1e-6, seed=3, min_tokens=2).body

    assert neutral.keys() == {"model", "stream", "stream_options", "max_tokens", "temperature", "messages"}
    assert (neutral["temperature"], neutral["max_tokens"]) == (0.7, 8)
    assert (meant["top_k"], meant["stop"], meant["logit_bias"]) == (4, ["x"], {"7": -1.0})
    assert (meant["temperature"], meant["seed"], meant["min_tokens"]) == (0.0, 3, 2)


def test_unknown_fields_pass_through_but_for_those_that_are_ours() -> None:
    """Messages with images in them too; an operator may keep fields from a server that refuses them."""
    parts = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]
    given = asked(messages=MESSAGES, extra={"reasoning_effort": "low", "messages": parts}).body
    assert (given["reasoning_effort"], given["messages"]) == ("low", parts)
    assert "temperature" not in asked(Dialect(model="m", omit=frozenset({"temperature"})), prompt="hi").body
    for extra in ({"n": 2}, {"stream": False}, {"model": "other"}):
        with pytest.raises(RequestFailedError, match="cannot be passed through") as caught:
            asked(prompt="hi", extra=extra)
        assert caught.value.failure == "bad_request"


def test_what_was_delivered_is_gone_on_with() -> None:
    """By text where that is the prompt, else as the server allows; what was delivered counts."""
    begun: dict[str, Any] = {"delivered": ["Once ", "upon "]}
    raw = asked(prompt="Tell: ", raw=True, **begun)
    assert (raw.body["prompt"], raw.body["max_tokens"]) == ("Tell: Once upon ", 6)

    vllm = asked(Dialect(model="m", continuation="continue_final_message"), messages=MESSAGES, **begun)
    assert vllm.body["messages"] == [*MESSAGES, {"role": "assistant", "content": "Once upon "}]
    assert (vllm.body["continue_final_message"], vllm.body["add_generation_prompt"]) == (True, False)

    llama = asked(Dialect(model="m", continuation="apply_template"), messages=MESSAGES, **begun)
    assert (llama.path, llama.template_of) == (COMPLETIONS, {"messages": MESSAGES})
    assert llama.with_template("<user>hi<assistant>").body["prompt"] == "<user>hi<assistant>Once upon "


@pytest.mark.parametrize(
    ("dialect", "task"),
    [
        (PLAIN, {"messages": MESSAGES}),
        (PLAIN, {"token_ids": [1]}),
        (Dialect(model="m", has_completions=False), {"prompt": "hi", "raw": True}),
        (Dialect(model="m", resumes=False), {"prompt": "hi", "raw": True}),
        (Dialect(model="m", resumes=False, continuation="continue_final_message"), {"messages": MESSAGES}),
    ],
)
def test_what_cannot_be_gone_on_with_is_told_so(dialect: Dialect, task: dict[str, Any]) -> None:
    """A 502 for its caller, who has what was delivered; before the first token most of it is served."""
    with pytest.raises(RequestFailedError) as caught:
        asked(dialect, delivered=["x"], **task)
    assert caught.value.failure == "not_resumable"


@given(st.lists(st.text(max_size=5), max_size=8), st.data())
def test_an_answer_is_read_however_it_is_cut(texts: list[str], data: st.DataObject) -> None:
    """Cut anywhere, with characters inside that other readers take for the end of a line."""
    texts = [text + "\u2028\x85" for text in texts]
    usage: dict[str, Any] = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    whole = b": hello\r\n\r\n" + events(*map(said, texts), said("", "length"), usage)
    reader, got, at = AnswerReader(), list[str](), 0
    while at < len(whole):
        end = data.draw(st.integers(at + 1, len(whole)))
        got += reader.feed(whole[at:end])
        at = end

    assert [text for text in got if text] == texts
    assert reader.is_over
    assert reader.ending() == AnswerEnd(finish_reason="length", prompt_tokens=3, completion_tokens=4)


def test_an_answer_that_ends_in_the_middle_is_not_over() -> None:
    """Neither [DONE] nor a reason: the connection has broken. One of the two is enough."""
    for tail, is_over in ((events(done=False), False), (events(), True), (events(said("", "stop"), done=False), True)):
        reader = AnswerReader()
        assert reader.feed(events(said("a"), done=False) + tail)[0] == "a"
        assert (reader.is_over, reader.has_text) == (is_over, True)


def test_usage_of_an_answer_that_was_gone_on_with_is_of_the_whole() -> None:
    """What was delivered was part of the prompt there, and is part of the answer here."""
    reader = AnswerReader(delivered=["x"] * 5)
    reader.feed(events({"choices": [], "usage": {"prompt_tokens": 15, "completion_tokens": 3}}))
    assert reader.ending() == AnswerEnd(finish_reason="stop", prompt_tokens=10, completion_tokens=8)


@pytest.mark.parametrize(("given", "taken"), [(10**30, MAX_ANSWER_TOKENS), (-5, 0)])
def test_usage_that_cannot_be_is_no_more_than_a_wrong_number(given: int, taken: int) -> None:
    """A number that no message holds would end the process, and every other answer with it."""
    reader = AnswerReader()
    reader.feed(events({"choices": [], "usage": {"prompt_tokens": given, "completion_tokens": given}}))
    ending = reader.ending()
    assert (ending.prompt_tokens, ending.completion_tokens) == (taken, taken)
    assert ipc.encode([ipc.TextChunk(1, "", done=True, ending=ending)])


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (b'data: {"error": {"message": "out of memory"}}\n', "out of memory"),
        (b'data: {"error": "died"}\n', "died"),
        (b"data: {no json\n", "none of this API"),
        (events({"choices": [{"delta": {"tool_calls": [{"index": n} for n in range(129)]}}]}), "more tools"),
        (events(*[part(tool_calls=[{"index": 0, "function": {"arguments": "x" * 600_000}}])] * 2), "at greater length"),
    ],
)
def test_an_event_that_is_no_text_ends_the_request(event: bytes, words: str) -> None:
    """With the server's own words."""
    with pytest.raises(RequestFailedError, match=words):
        AnswerReader().feed(event)


def test_thoughts_and_calls_become_marks_that_every_edge_reads() -> None:
    """Thoughts as they come, by either name; calls when all is said, put together by their numbers, or their names."""
    usage = {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 4}}
    first = {"index": 0, "id": "a", "function": {"name": "weather", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"city": "Zü', 'rich"}')]
    other = {"index": 1, "id": "b", "function": {"name": "time"}}
    told = [
        part(role="assistant", content=""),
        part(reasoning_content="Hm, "),
        part(reasoning="hm."),
        part(content="A moment."),
        part(reasoning="too late"),
        *(part(tool_calls=[one]) for one in (first, *more, other)),
    ]
    reader = AnswerReader()
    pieces = reader.feed(events(*told, part("tool_calls"), {"choices": [], "usage": usage}))
    parser = AnswerParser(["weather", "time"])
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()

    assert deltas == [
        Reasoning("Hm, "),
        Reasoning("hm."),
        Content("A moment."),
        CalledTool(0, "weather", '{"city": "Zürich"}'),
        CalledTool(1, "time", "{}"),
    ]
    assert reader.ending() == AnswerEnd(finish_reason="stop", completion_tokens=9, reasoning_tokens=4)


def test_calls_without_numbers_and_of_a_server_that_says_no_reason() -> None:
    """Each begins with its name, and [DONE] ends them."""
    parts = [{"name": "f", "arguments": "{}"}, {"name": "g"}, {"arguments": '{"a": 1}'}]
    reader = AnswerReader()
    text = "".join(reader.feed(events(*(part(tool_calls=[{"function": one}]) for one in parts))))

    assert [call for call in AnswerParser(["f", "g"]).feed(text) if isinstance(call, CalledTool)] == [
        CalledTool(0, "f", "{}"),
        CalledTool(1, "g", '{"a": 1}'),
    ]


@pytest.mark.parametrize(
    ("delivered", "parts", "whole"),
    [
        ("<think>hm, ", [part(reasoning="hm"), part(content="Yes.")], "<think>hm, hm</think>Yes."),
        ("<think>hm, ", [part(content="hm</th"), part(content="ink>Yes.")], "<think>hm, hm</think>Yes."),
        ("<think>hm</think>", [part(content="Yes.")], "<think>hm</think>Yes."),
        ("<think>hm</think>Ye", [part(reasoning="hm"), part(content="s.")], "<think>hm</think>Yes."),
        ("<think>a</think><think>h", [part(reasoning="m"), part(content="Y.")], "<think>a</think><think>hm</think>Y."),
        ("Ye", [part(reasoning="hm"), part(content="s.")], "Yes."),
    ],
)
def test_an_answer_goes_on_where_it_was_within_a_thought_or_behind_it(
    delivered: str, parts: list[dict[str, Any]], whole: str
) -> None:
    """Whether its server tells thoughts apart or writes their marks itself; no mark is told among words."""
    vllm = asked(Dialect(model="m", continuation="continue_final_message"), messages=MESSAGES, delivered=[delivered])
    messages: Any = vllm.body["messages"]
    reader = AnswerReader([delivered])

    assert messages[-1]["content"] == delivered
    assert delivered + "".join(reader.feed(events(*parts, part("stop")))) == whole


def test_a_thought_that_the_template_begins_is_not_begun_twice() -> None:
    """And the template is told of tools again, as in the first place."""
    extra = {"tools": [{"type": "function"}], "seed": 5}
    dialect = Dialect(model="m", continuation="apply_template")
    llama = asked(dialect, messages=MESSAGES, delivered=["<think>", "hm"], extra=extra)

    assert llama.template_of == {"messages": MESSAGES, "tools": extra["tools"]}
    assert "tools" not in llama.body
    assert llama.with_template("hi<assistant><think>\n").body["prompt"] == "hi<assistant><think>\nhm"
    assert llama.with_template("hi<assistant>").body["prompt"] == "hi<assistant><think>hm"


@pytest.mark.parametrize("name", ["response_format", "guided_json", "grammar"])
def test_an_answer_that_keeps_to_something_cannot_be_gone_on_with(name: str) -> None:
    """Its server would write another whole one behind the half that was delivered."""
    for fields in ({"messages": MESSAGES}, {"prompt": "hi", "raw": True}):
        ask: dict[str, Any] = {**fields, "extra": {name: {}}}
        dialect = Dialect(model="m", continuation="continue_final_message")
        assert asked(dialect, **ask).body[name] == {}
        assert asked(dialect, delivered=["Hi"], **fields, extra={name: {"type": "text"}}).body
        with pytest.raises(RequestFailedError, match=name) as caught:
            asked(dialect, delivered=["{"], **ask)
        assert caught.value.failure == "not_resumable"


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (400, b'{"error": {"message": "no such field", "code": null}}', "bad_request"),
        (422, b'{"detail": "no such field"}', "bad_request"),
        (400, b'{"error": {"message": "no such field", "code": "context_length_exceeded"}}', TOO_LONG),
        (400, b'{"error": {"message": "no such field", "type": "exceed_context_size_error"}}', TOO_LONG),
        (401, b'{"error": "no such field"}', "engine_restarted"),
        (429, b'{"message": "no such field"}', "no_slot"),
        (503, b"no such field", "no_slot"),
        (500, b'{"error": {"message": "no such field"}}', ""),
    ],
)
def test_a_status_says_whose_fault_it_is(status: int, body: bytes, failure: str) -> None:
    """The caller's, this node's, the moment's or the model's; in words that each server keeps in another place."""
    found = failure_of(status, body)
    assert found.failure == failure
    assert "no such field" in str(found)
    assert is_busy(status) == (status in (429, 503))
