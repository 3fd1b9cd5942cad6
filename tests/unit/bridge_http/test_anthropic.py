"""The Messages API: what its clients send becomes a task, what is no success has its shape, events have its order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from support.asgi import Exchange, call, exchange
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http import sse
from zmqrt.bridge_http.anthropic.message_reply import AskedMessage, whole
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.deltas import DeltaReader
from zmqrt.client.response import Result
from zmqrt.protocol.errors import ErrorKind, request_error
from zmqrt.protocol.tasks import ChatMessage, FinishReason, Generate, Grammar, Rendering, Tool, ToolCall, Usage

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
EMPTY: dict[str, Any] = {}
HI: dict[str, Any] = {"role": "user", "content": "hi"}
TOOL: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
CALL: dict[str, Any] = {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "c1"}
ASK: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [HI]}


def post(body: object, path: str = MESSAGES, fleet: FakeFleet | None = None, **headers: str) -> Exchange:
    """Ask the real app in front of a fleet that answers anything."""
    app = make_app(fleet or FakeFleet("ok"), BridgeSettings())
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(call(app, "POST", path, body=raw, headers=named))


def task_of(path: str = MESSAGES, **fields: Any) -> Generate:
    """Return the task that a request becomes."""
    fleet = FakeFleet("ok")
    reply = post({**ASK, **fields}, path, fleet)
    assert reply.status == 200, reply.body
    task = fleet.asked[0][0]
    assert isinstance(task, Generate)
    return task


# --- what is understood ----------------------------------------------------------------------------------------------


def test_a_request_becomes_a_task() -> None:
    """With the temperature of the API, and nothing that was not said."""
    assert task_of() == Generate(messages=[ChatMessage(role="user", content="hi")], max_tokens=9, temperature=1.0)
    schema: dict[str, Any] = {"type": "object", "properties": {"b": {}, "a": {}}}
    assert task_of(
        system=[{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
        messages=[HI, {"role": "assistant", "content": "yes"}, {"role": "system", "content": "C"}, HI],
        stop_sequences=["", "END"],
        temperature=0.5,
        top_p=0,
        top_k=5,
        seed=-1,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    ) == Generate(
        messages=[
            ChatMessage(role="system", content="AB"),
            ChatMessage(role="user", content="hi"),
            ChatMessage(role="assistant", content="yes"),
            ChatMessage(role="system", content="C"),
            ChatMessage(role="user", content="hi"),
        ],
        max_tokens=9,
        stop=["END"],
        temperature=0.5,
        top_p=1e-6,
        top_k=5,
        seed=2**63 - 1,
        grammar=Grammar(kind="json_schema", text='{"type":"object","properties":{"b":{},"a":{}}}'),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "u"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"}, "system": None},
        {"tools": [*EMPTY], "tool_choice": {"type": "none"}, "thinking": {"type": "adaptive"}, "mcp_servers": [*EMPTY]},
        {
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "thinking": {"type": "enabled", "budget_tokens": 31999},
            "container": None,
            "output_config": {"effort": "high"},
            "stream": False,
        },
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        {"max_tokens": 9.0, "top_k": None, "temperature": 1, "output_config": EMPTY},
        {"messages": [{**HI, "id": "msg_1", "stop_reason": None, "usage": EMPTY}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": EMPTY, "citations": None}]}
            ]
        },
    ],
)
def test_what_asks_for_nothing_is_let_pass(fields: dict[str, Any]) -> None:
    """The task is the one without it."""
    assert task_of(**fields) == task_of()


def test_thoughts_of_a_history_are_left_out() -> None:
    """Models get what was said."""
    thought = [{"type": "thinking", "thinking": "…", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}]
    turns = [HI, {"role": "assistant", "content": [*thought, {"type": "text", "text": "yes"}]}, HI]

    assert [turn.content for turn in task_of(messages=turns).messages or []] == ["hi", "yes", "hi"]


def test_tools_become_those_of_a_task() -> None:
    """With what is known of each, and whether one must be called."""
    tools: list[dict[str, Any]] = [
        {**TOOL, "type": "custom", "cache_control": EMPTY, "strict": True},
        {**TOOL, "name": "g", "description": "G"},
    ]
    said = [
        Tool(name="f", parameters='{"type":"object"}'),
        Tool(name="g", description="G", parameters='{"type":"object"}'),
    ]
    expected: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"type": "auto", "disable_parallel_tool_use": True}, {"parallel_tool_calls": False}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "tool", "name": "g"}, {"tool_choice": "required", "tool_name": "g"}),
        ({"type": "none"}, {"tool_choice": "none"}),
    ]

    assert task_of(tools=tools) == msgspec.structs.replace(task_of(), tools=said)
    for choice, told in expected:
        assert task_of(tools=tools, tool_choice=choice) == msgspec.structs.replace(task_of(), tools=said, **told)
    assert task_of(COUNT, tools=tools, tool_choice={"type": "any"}).tools == said


def test_an_answer_that_has_begun_is_gone_on_with() -> None:
    """The last turn is the assistant's then; its tokens are counted so too."""
    turns = [HI, {"role": "assistant", "content": "The best is ("}]

    for path in (MESSAGES, COUNT):
        task = task_of(path, messages=turns)
        assert task.rendering == Rendering(continue_final_message=True)
        assert [turn.content for turn in task.messages or []] == ["hi", "The best is ("]


def test_calls_of_a_history_are_turns() -> None:
    """What they came to stands before what else their sender says, and names the tool."""
    turns = [
        HI,
        {"role": "assistant", "content": [{"type": "text", "text": "well"}, CALL]},
        {
            "role": "user",
            "content": [{**RESULT, "content": [{"type": "text", "text": "7"}]}, {"type": "text", "text": "so?"}],
        },
        {"role": "user", "content": [{**RESULT, "is_error": True}]},
    ]

    assert task_of(messages=turns).messages == [
        ChatMessage(role="user", content="hi"),
        ChatMessage(role="assistant", content="well", tool_calls=[ToolCall(id="c1", name="f", arguments='{"x":1}')]),
        ChatMessage(role="tool", content="7", tool_call_id="c1", name="f"),
        ChatMessage(role="user", content="so?"),
        ChatMessage(role="tool", content="", tool_call_id="c1", name="f"),
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens: "),
        ({"colour": 1}, "Unrecognized request argument supplied: colour"),
        ({"tools": [{"name": "f"}]}, "you must provide tools[0].input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type: "),
        ({"tools": [{**TOOL, "colour": 1}]}, "Unrecognized request argument supplied: tools[0].colour"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name: "),
        ({"tools": [TOOL], "tool_choice": {"type": "auto", "name": "f"}}, "tool_choice.name: "),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type: "),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management: "),
        ({"context_management": {"edits": ["x"]}}, "context_management: "),
        ({"output_config": {"effort": "max"}}, "output_config.effort: "),
        ({"output_config": {"format": {"type": "json_schema"}}}, "you must provide output_config.format.schema"),
        ({"temperature": 3}, "temperature: "),
        ({"stop_sequences": ["x" * 513]}, "stop_sequences: "),
        ({"stop_sequences": "END"}, "stop_sequences: "),
        ({"system": 7}, "system: "),
        ({"messages": []}, "messages: "),
        ({"messages": ["hi"]}, "messages[0]: "),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role: "),
        ({"messages": [{**HI, "colour": 1}]}, "Unrecognized request argument supplied: messages[0].colour"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
        ({"messages": [{"role": "user", "content": [CALL]}]}, "messages[0].content[0].type: "),
        (
            {"messages": [{"role": "user", "content": [{**RESULT, "content": [{"type": "image"}]}]}]},
            "messages[0].content[0].content[0].type: ",
        ),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "you must provide messages[0].content[0].type"),
        ({"messages": [HI, {"role": "assistant", "content": [CALL]}]}, "messages[1]: "),
        ({"tool_choice": {"type": "any"}}, "tool_choice: "),
        ({"messages": [HI] * 4097}, "messages: at most 4096 are meant, not 4097"),
    ],
)
def test_what_is_wrong_or_not_done_is_named(fields: dict[str, object], words: str) -> None:
    """By a 400 of the shape of this API, before anything is sent; where tokens are counted too, if it is about them."""
    fleet = FakeFleet("ok")
    reply = post({**ASK, **fields}, fleet=fleet, x_request_id="r")

    assert (reply.status, fleet.asked) == (400, [])
    assert reply.json == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": reply.json["error"]["message"]},
        "request_id": "r",
    }
    assert words in reply.json["error"]["message"]
    if fields.keys() & {"messages", "tools", "system", "tool_choice"}:
        assert post({**ASK, **fields}, COUNT).json["error"] == reply.json["error"]


def test_tokens_are_counted_by_an_answer_of_one() -> None:
    """Of the same conversation; what is said of the answer plays no part."""
    counted = task_of(COUNT, system="S", stop_sequences=["x"], temperature=0.2, stream=True)

    assert counted == Generate(
        messages=[ChatMessage(role="system", content="S"), ChatMessage(role="user", content="hi")],
        max_tokens=1,
        temperature=0.0,
    )
    assert post(ASK, COUNT).json == {"input_tokens": 1}


# --- what is answered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "type_"),
    [
        (request_error(ErrorKind.NOT_FOUND, "no such model"), 404, "not_found_error"),
        (request_error(ErrorKind.FORBIDDEN, "no"), 403, "permission_error"),
        (request_error(ErrorKind.TOO_LARGE, "too large"), 413, "request_too_large"),
        (request_error(ErrorKind.QUEUE_FULL, "full"), 429, "rate_limit_error"),
        (request_error(ErrorKind.MODEL_RAISED, "it raised"), 500, "api_error"),
        (request_error(ErrorKind.NO_WORKER, "no node"), 503, "overloaded_error"),
        (request_error(ErrorKind.STALLED, "no progress"), 504, "timeout_error"),
        (request_error(ErrorKind.CONFLICT, "used"), 409, "invalid_request_error"),
        (request_error(ErrorKind.BAD_REQUEST, "grammar: no"), 400, "invalid_request_error"),
    ],
)
def test_failures_of_the_fleet_have_the_words_of_this_api(error: Exception, status: int, type_: str) -> None:
    """Whole, and within a stream whose status has gone out."""
    reply = post(ASK, fleet=FakeFleet(error=error))
    assert (reply.status, reply.json["type"], reply.json["error"]["type"]) == (status, "error", type_)

    begun = post({**ASK, "stream": True}, fleet=FakeFleet("Hel", error=error))
    last = begun.body.split(b"\n\n")[-2].decode()
    assert (begun.status, last.split("\n")[0]) == (200, "event: error")
    assert json.loads(last.split("data: ")[1])["error"] == reply.json["error"]


def test_what_a_node_complains_of_is_called_as_its_sender_did() -> None:
    """Who never heard of our names would not know what is meant."""
    error = request_error(ErrorKind.BAD_REQUEST, "grammar: not at $.a")
    told = post(ASK, fleet=FakeFleet(error=error)).json["error"]["message"]

    assert told == "output_config.format.schema: not at $.a"


def test_what_is_no_json_is_told_in_this_shape_too() -> None:
    """As anything that goes wrong on these paths."""
    for path in (MESSAGES, COUNT):
        assert post(b"{", path).json["error"]["type"] == "invalid_request_error"


def names_of(body: bytes) -> list[str]:
    """Return the events of a body by name."""
    return [line.removeprefix("event: ") for line in body.decode().split("\n") if line.startswith("event: ")]


def test_events_have_the_order_of_the_api() -> None:
    """Text that is held back makes none; an answer without text has no block."""
    reply = post({**ASK, "stream": True}, fleet=FakeFleet("", "He", "", "llo"))
    assert names_of(reply.body) == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    for event in reply.body.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")

    empty = post({**ASK, "stream": True}, fleet=FakeFleet())
    assert names_of(empty.body) == ["message_start", "ping", "message_delta", "message_stop"]
    assert post(ASK, fleet=FakeFleet()).json["content"] == []


def test_a_stream_that_waits_is_pinged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first token too: it has begun then, and begins no second time."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.01)

    async def scenario() -> Exchange:
        fleet = FakeFleet()
        fleet.gate.clear()
        raw = json.dumps({**ASK, "stream": True}).encode()
        asked = exchange(make_app(fleet, BridgeSettings()), "POST", MESSAGES, body=raw).start()
        await asked.until(b'event: ping\ndata: {"type":"ping"}\n\nevent: ping\n')
        fleet.gate.set()
        return await asked.finish()

    names = names_of(asyncio.run(scenario()).body)
    assert names[0] == "message_start"
    assert names.count("message_start") == 1
    assert names[-2:] == ["message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("finish_reason", "stop_index", "tokens", "ending"),
    [
        ("stop", None, 3, ("end_turn", None)),
        ("stop", 1, 3, ("stop_sequence", "b")),
        ("stop", 2, 3, ("end_turn", None)),
        ("length", None, 5, ("max_tokens", None)),
        ("length", None, 4, ("model_context_window_exceeded", None)),
    ],
)
def test_why_an_answer_is_over(
    finish_reason: FinishReason, stop_index: int | None, tokens: int, ending: tuple[str, str | None]
) -> None:
    """A node that does not tell which stop it was leaves it at the end of the turn."""
    usage = Usage(prompt_tokens=1, completion_tokens=tokens)
    said: dict[str, Any] = {"text": "", "token_ids": [], "seed": 0, "model": "m", "revision": "r", "request_id": ""}
    result = Result(finish_reason=finish_reason, stop_index=stop_index, usage=usage, **said)

    assert AskedMessage(rid=b"", model="m", max_tokens=5, stops=["a", "b"]).ending(result, DeltaReader()) == ending


# --- calls of tools --------------------------------------------------------------------------------------------------

MARKUP = '<think>hm</think>I look.<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call><tool_call>f</tool_call>'
CALLING: dict[str, Any] = {**ASK, "tools": [TOOL]}


def events_of(reply: Exchange) -> list[dict[str, Any]]:
    """Read the data of events."""
    assert reply.status == 200, reply.body
    return [json.loads(line[6:]) for line in reply.body.decode().split("\n") if line.startswith("data: ")]


def blocks_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fold events into the blocks of a message, as clients do."""
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(blocks) - 1
            match event["delta"]:
                case {"type": "text_delta", "text": text}:
                    blocks[-1]["text"] += text
                case {"type": "thinking_delta", "thinking": text}:
                    blocks[-1]["thinking"] += text
                case {"type": "input_json_delta", "partial_json": text}:
                    blocks[-1]["input"] = json.loads(text)
                case other:
                    raise AssertionError(other)
    return blocks


def test_thoughts_words_and_calls_are_blocks_of_their_own() -> None:
    """Whole and streamed, wherever the text is cut; and the reason is that tools are to be used."""
    whole = post(CALLING, fleet=FakeFleet(MARKUP), idempotency_key="k").json
    thought, words, call = whole["content"][:3]

    assert (thought["type"], thought["thinking"]) == ("thinking", "hm")
    assert words == {"type": "text", "text": "I look."}
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "f", {"x": 1})
    assert whole["stop_reason"] == "tool_use"
    for size in (1, 3, 7, 1000):
        pieces = [MARKUP[at : at + size] for at in range(0, len(MARKUP), size)]
        events = events_of(post({**CALLING, "stream": True}, fleet=FakeFleet(*pieces), idempotency_key="k"))
        assert blocks_of(events) == whole["content"]
        starts, stops = (
            [one for one in events if one["type"] == f"content_block_{name}"] for name in ("start", "stop")
        )
        assert [one["index"] for one in starts] == [one["index"] for one in stops]
        assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_call_is_told_once_after_a_cut() -> None:
    """By the same id, whichever event was the last that was read."""
    pieces = list(MARKUP)
    whole = post({**CALLING, "stream": True}, fleet=FakeFleet(*pieces), idempotency_key="k").body.split(b"\n\n")
    ids = {at: event.split(b"\n")[0][4:].decode() for at, event in enumerate(whole) if event.startswith(b"id: ")}

    assert len(ids) > len("hmI look.")
    for at, last in ids.items():
        again = post({**CALLING, "stream": True}, fleet=FakeFleet(*pieces), idempotency_key="k", last_event_id=last)
        assert names_of(again.body) == names_of(b"\n\n".join(whole[at + 1 :]))
        assert [event for event in again.body.split(b"\n\n") if b"tool_use" in event] == [
            event for event in whole[at + 1 :] if b"tool_use" in event
        ]


def test_a_call_that_was_cut_short_is_no_object() -> None:
    """It is told in the way of this API, so that no client chokes on half an object."""
    reply = post(CALLING, fleet=FakeFleet('<tool_call>{"name": "f", "arguments": {"x": 1')).json

    assert [block["input"] for block in reply["content"]] == [{"INVALID_JSON": '{"x": 1'}]


def test_markup_is_text_where_no_tool_was_given() -> None:
    """Or where none may be called."""
    told = [{"type": "text", "text": MARKUP.partition("</think>")[2]}]

    assert post(ASK, fleet=FakeFleet(MARKUP)).json["content"][1:] == told
    none = {**CALLING, "tool_choice": {"type": "none"}}
    assert post(none, fleet=FakeFleet(MARKUP)).json["content"][1:] == told


def test_one_call_is_one_block_where_no_more_are_wanted() -> None:
    """Whole and streamed, whatever else the model wrote."""
    two = MARKUP.replace("<tool_call>f<", '<tool_call>{"name": "f", "arguments": {}}<')
    one: dict[str, Any] = {**CALLING, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}

    for given, count in ((CALLING, 2), (one, 1)):
        whole = post(given, fleet=FakeFleet(two), idempotency_key="k").json["content"]
        streamed = events_of(post({**given, "stream": True}, fleet=FakeFleet(*two), idempotency_key="k"))
        assert sum(block["type"] == "tool_use" for block in whole) == count
        assert blocks_of(streamed) == whole


def test_a_call_that_was_cut_off_is_no_use_of_a_tool() -> None:
    """Whatever cut it: its input is not whole."""
    text = '<tool_call>{"name": "f", "arguments": {"a": "b'
    said: dict[str, Any] = {"token_ids": [], "seed": 0, "model": "m", "revision": "r", "request_id": ""}
    result = Result(text=text, finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=3), **said)
    asked = AskedMessage(rid=b"", model="m", max_tokens=5, tools=["f"])

    assert whole(result, asked).stop_reason == "max_tokens"
