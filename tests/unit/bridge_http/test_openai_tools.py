"""Tools in OpenAI's chats: what nodes are asked, and what clients read of calls and thoughts, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import pytest

from support.asgi import call
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.json_body import encode
from zmqrt.bridge_http.openai import responses as r
from zmqrt.bridge_http.openai import schema as s
from zmqrt.bridge_http.openai.requests import parse
from zmqrt.bridge_http.openai.tools import AskedTools
from zmqrt.client.response import Chunk, Result
from zmqrt.protocol import tasks
from zmqrt.protocol.tasks import ChatMessage, Tool, ToolCall, Usage

SCHEMA: Final[dict[str, Any]] = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA, "strict": True},
}
NAMED: Final = {"type": "function", "function": {"name": "weather"}}
HI: Final[list[dict[str, Any]]] = [{"role": "user", "content": "Rain?"}]
ASKED = AskedTools(rid=b"r" * 16, names=["weather", "time"])
CALLS = (
    "<think>\nI need both.</think>\n\nOne moment.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)


def asked(**fields: Any) -> tuple[dict[str, Any], Any]:
    """Ask the real app in front of a fleet that answers anything; return the answer and the task that it got."""
    fleet = FakeFleet("ok")
    raw = json.dumps({"model": "m", "messages": HI, **fields}).encode()
    reply = asyncio.run(call(make_app(fleet, BridgeSettings()), "POST", "/v1/chat/completions", body=raw))
    return reply.json, fleet.asked[0][0] if fleet.asked else None


def result_of(text: str, **fields: Any) -> Result:
    """Make the answer of a node."""
    given: dict[str, Any] = {
        "token_ids": [1],
        "finish_reason": "stop",
        "usage": Usage(prompt_tokens=5, completion_tokens=3),
        "seed": 1,
        "model": "m",
        "revision": "rev",
        "request_id": "i",
        **fields,
    }
    return Result(text=text, **given)


def streamed(text: str, size: int, tools: AskedTools = ASKED) -> tuple[list[dict[str, Any]], str]:
    """Stream an answer in pieces; return its deltas and why it was over."""
    stream = r.ChatStream(id="i", created=1, model="m", with_usage=False, spelling=r.as_text, asked=tools)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    told = b"".join(e for at, piece in enumerate(pieces) for e in stream.of(Chunk(text=piece, token_ids=[1], index=at)))
    told += b"".join(stream.end(result_of(text)))
    events = [json.loads(line[6:]) for line in told.split(b"\n\n") if line.startswith(b"data: {")]
    assert b"<" not in told
    return [one["choices"][0]["delta"] for one in events], events[-1]["choices"][0]["finish_reason"]


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        (None, ("auto", None)),
        ("auto", ("auto", None)),
        ("none", ("none", None)),
        ("required", ("required", None)),
        (NAMED, ("required", "weather")),
    ],
)
def test_tools_and_the_choice_among_them(choice: object, meant: tuple[str, str | None]) -> None:
    """As nodes have them."""
    _, task = asked(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)

    parameters = json.dumps(SCHEMA, separators=(",", ":"))
    assert task.tools == [Tool(name="weather", description="Tells it.", parameters=parameters)]
    assert (task.tool_choice, task.tool_name, task.parallel_tool_calls) == (*meant, False)


@pytest.mark.parametrize("fields", [{"tools": []}, {"tool_choice": "none"}, {"tools": None, "tool_choice": "auto"}])
def test_no_tool_is_nothing_that_a_node_need_know(fields: dict[str, Any]) -> None:
    """So that nodes from before take it."""
    assert tasks.needs_of(asked(**fields)[1]) is None
    assert asked(**fields)[1] == asked()[1]


def test_a_history_with_calls_and_results() -> None:
    """A call needs no words; the name of a user stays here."""
    called = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
    talk = [
        {"role": "user", "content": "Rain?", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [called], "reasoning_content": "hm"},
        {"role": "tool", "content": [{"type": "text", "text": "No."}], "tool_call_id": "c1"},
    ]
    _, task = asked(messages=talk)

    assert task.messages == [
        ChatMessage(role="user", content="Rain?"),
        ChatMessage(
            role="assistant", content="", tool_calls=[ToolCall(id="c1", name="weather", arguments='{"city":"Paris"}')]
        ),
        ChatMessage(role="tool", content="No.", tool_call_id="c1"),
    ]


WRONG: Final[list[tuple[dict[str, Any], str]]] = [
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [TOOL] * 129}, "tools"),
    ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "time"}}}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": NAMED}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_what_is_no_tool_is_a_400_that_names_the_parameter(fields: dict[str, Any], param: str) -> None:
    """As OpenAI's clients read it."""
    answer, task = asked(**fields)

    assert task is None
    assert answer["error"]["param"].startswith(param)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_whole_answer_has_its_words_its_thoughts_and_its_calls_apart() -> None:
    """And says that it is over for the calls."""
    choice = json.loads(encode(r.chat([result_of(CALLS)], 1, "i", 1, r.as_text, ASKED)))["choices"][0]
    message = choice["message"]

    assert choice["finish_reason"] == "tool_calls"
    assert (message["content"], message["reasoning_content"]) == ("One moment.", "\nI need both.")
    assert message["reasoning"] == message["reasoning_content"]
    assert [one["function"] for one in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Paris"}'},
        {"name": "time", "arguments": "{}"},
    ]
    assert len({one["id"] for one in message["tool_calls"]}) == 2


def test_a_plain_answer_has_no_such_fields() -> None:
    """Nor has one that called nothing, and its content is its text."""
    for tools in (AskedTools(), ASKED):
        choice = json.loads(encode(r.chat([result_of(" Hi. ")], 1, "i", 1, r.as_text, tools)))["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": " Hi. ", "refusal": None}
        assert choice["finish_reason"] == "stop"


def test_an_answer_that_is_a_call_alone_has_no_content() -> None:
    """Null, as OpenAI has it; and one that was cut off says so."""
    text = CALLS.partition("One moment.")[2]
    whole = r.chat([result_of(text)], 1, "i", 1, r.as_text, ASKED).choices[0]
    short = r.chat([result_of(text, finish_reason="length")], 1, "i", 1, r.as_text, ASKED).choices[0]

    assert (whole.message.content, whole.finish_reason, short.finish_reason) == (None, "tool_calls", "length")


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_streamed_answer_is_the_whole_one_however_it_comes(size: int) -> None:
    """Ids and places included."""
    deltas, reason = streamed(CALLS, size)
    message = r.chat([result_of(CALLS)], 1, "i", 1, r.as_text, ASKED).choices[0].message
    calls = [one for delta in deltas for one in delta.get("tool_calls", [])]

    assert reason == "tool_calls"
    assert "".join(delta.get("content", "") for delta in deltas) == message.content
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message.reasoning_content
    assert [(one["index"], one["id"]) for one in calls] == [
        (at, one.id) for at, one in enumerate(message.tool_calls or [])
    ]


def test_one_call_at_most_where_no_more_are_wanted() -> None:
    """Others that the model wrote all the same are left out, whole and streamed."""
    one = AskedTools(rid=b"r" * 16, names=["weather", "time"], is_one=True)
    message = r.chat([result_of(CALLS)], 1, "i", 1, r.as_text, one).choices[0].message

    assert len(message.tool_calls or []) == 1
    assert len([delta for delta in streamed(CALLS, 3, one)[0] if "tool_calls" in delta]) == 1


def test_choices_have_calls_of_their_own_ids() -> None:
    """Or a client would mix them up."""
    choices = r.chat([result_of(CALLS)] * 2, 2, "i", 1, r.as_text, ASKED).choices
    ids = [one.id for choice in choices for one in choice.message.tool_calls or []]

    assert len(set(ids)) == 4


def test_a_call_that_was_cut_off_says_so_whatever_cut_it() -> None:
    """By a stop text too: arguments that are not whole are no reason to run a tool."""
    cut = '<tool_call>\n{"name": "weather", "arguments": {"city": "Pa'
    choice = r.chat([result_of(cut)], 1, "i", 1, r.as_text, ASKED).choices[0]

    assert choice.finish_reason == "length"
    assert [one.function.arguments for one in choice.message.tool_calls or []] == ['{"city": "Pa']
    assert r.chat([result_of('<tool_call>{"nam')], 1, "i", 1, r.as_text, ASKED).choices[0].finish_reason == "length"
    whole = cut + 'ris"}}'  # a model may forget the tag
    assert r.chat([result_of(whole)], 1, "i", 1, r.as_text, ASKED).choices[0].finish_reason == "tool_calls"


def test_arguments_that_stand_one_by_one_are_texts_where_the_schema_says_so() -> None:
    """A number of a house is a text there, and a number where none is said."""
    ask = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    body = parse(json.dumps({"model": "m", "messages": HI, "tools": ask}).encode(), s.ChatRequest)
    pairs = "".join(f"<arg_key>{name}</arg_key><arg_value>12</arg_value>" for name in ("city", "n"))
    text = f"<tool_call>weather{pairs}</tool_call>"
    for tools in (AskedTools.of(body, b"r", {}), AskedTools.of(body, b"r", {"tools": ask})):
        message = r.chat([result_of(text)], 1, "i", 1, r.as_text, tools).choices[0].message
        assert [one.function.arguments for one in message.tool_calls or []] == ['{"city": "12", "n": 12}']


@pytest.mark.parametrize("tools", [5, ["x"], [{"function": 5}], [{"function": {"name": 5}}], [{"type": "web"}]])
def test_tools_of_another_server_may_be_anything(tools: object) -> None:
    """Only that server knows what is wrong with them."""
    body = parse(json.dumps({"model": "m", "messages": HI}).encode(), s.ChatRequest)
    assert not AskedTools.of(body, b"r", {"tools": tools}).names


def test_usage_tells_how_many_tokens_were_thoughts() -> None:
    """As OpenAI has it, whole and streamed; of all choices together."""
    results = [result_of("<think>a</think>b", reasoning_tokens=4), result_of("c", reasoning_tokens=0)]
    usage = json.loads(encode(r.chat(results, 2, "i", 1, r.as_text, AskedTools())))["usage"]
    stream = r.ChatStream(id="i", created=1, model="m", with_usage=True, spelling=r.as_text)
    last = b"".join(stream.close(results, 2)).split(b"\n\n")[0]

    assert usage["completion_tokens_details"] == {"reasoning_tokens": 4}
    assert json.loads(last[6:])["usage"] == usage
