"""The Responses API: what its clients send becomes a task, what refers to the past is refused; events in order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from support.asgi import Exchange, call
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.errors import InvalidRequestError
from zmqrt.bridge_http.openai import response_reply as r
from zmqrt.bridge_http.openai.response_schema import ResponsesRequest
from zmqrt.bridge_http.openai.response_task import parse_response, response_task
from zmqrt.client.response import Chunk, Result
from zmqrt.protocol.errors import ErrorKind, request_error
from zmqrt.protocol.markup import CalledTool
from zmqrt.protocol.tasks import ChatMessage, Generate, Grammar, Rendering, Tool, ToolCall, Usage

PATH = "/v1/responses"
ASK: dict[str, Any] = {"model": "m", "input": "hi"}
HI: dict[str, Any] = {"role": "user", "content": "hi"}
TOOL: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
SCHEMA = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}


def post(body: object, fleet: FakeFleet | None = None) -> Exchange:
    """Ask the real app in front of a fleet that answers anything."""
    app = make_app(fleet or FakeFleet("ok"), BridgeSettings())
    return asyncio.run(call(app, "POST", PATH, body=json.dumps(body).encode()))


def task_of(**fields: Any) -> Generate:
    """Return the task that a request becomes."""
    fleet = FakeFleet("ok")
    reply = post({**ASK, **fields}, fleet)
    assert reply.status == 200, reply.body
    task = fleet.asked[0][0]
    assert isinstance(task, Generate)
    return task


def test_a_request_becomes_a_task() -> None:
    """With the temperature of the API, and nothing that was not said."""
    assert task_of() == Generate(messages=[ChatMessage(role="user", content="hi")], temperature=1.0)
    assert task_of(
        instructions="Be brief.",
        input=[
            HI,
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "yes", "annotations": [], "logprobs": []}],
            },
            {
                "role": "developer",
                "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
            },
        ],
        max_output_tokens=9,
        temperature=0.5,
        top_p=0,
        seed=-1,
        text={"format": SCHEMA},
    ) == Generate(
        messages=[
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(role="user", content="hi"),
            ChatMessage(role="assistant", content="yes"),
            ChatMessage(role="developer", content="ab"),
        ],
        max_tokens=9,
        temperature=0.5,
        top_p=1e-6,
        seed=2**63 - 1,
        grammar=Grammar(kind="json_schema", text='{"type":"object"}'),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False, "previous_response_id": None, "conversation": None, "background": False, "user": "u"},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": False, "max_tool_calls": 3, "reasoning": {}},
        {"include": ["reasoning.encrypted_content"], "truncation": "disabled", "top_logprobs": 0, "stream": False},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "service_tier": "auto", "prompt_cache_key": "k"},
        {"input": [HI], "client_metadata": {"a": "b"}, "reasoning": {"summary": "auto"}, "include": []},
        {"include": ["web_search_call.action.sources", "message.input_image.image_url"]},
        {
            "input": [{**HI, "type": "message", "phase": "final_answer"}],
            "stream_options": {"include_obfuscation": False},
        },
    ],
)
def test_what_asks_for_nothing_is_let_pass(fields: dict[str, Any]) -> None:
    """The task is the one without it."""
    assert task_of(**fields) == task_of()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "f", "colour": 1}]}, "tools[0].colour"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": [{**HI, "tool_calls": [{"id": "c"}]}]}, "input[0].tool_calls"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}, {"type": "local_shell"}]}, "tools[1].type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"colour": 1}}, "text.colour"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"messages": [HI]}, "messages"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [HI] * 4097}, "input"),
        ({"input": [{"type": "computer_call_output", "call_id": "c", "output": "1"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
    ],
)
def test_what_is_wrong_or_not_done_is_named(fields: dict[str, object], param: str) -> None:
    """Before anything is sent."""
    fleet = FakeFleet("ok")
    reply = post({**ASK, **fields}, fleet)

    assert (reply.status, fleet.asked) == (400, [])
    assert (reply.json["error"]["type"], reply.json["error"]["param"]) == ("invalid_request_error", param)


def test_what_a_node_complains_of_is_called_as_its_sender_did() -> None:
    """Who never heard of our names would not know what is meant."""
    for ours, theirs in (("grammar", "text.format.schema"), ("max_tokens", "max_output_tokens"), ("messages", "input")):
        told = post(ASK, FakeFleet(error=request_error(ErrorKind.BAD_REQUEST, f"{ours}: no"))).json["error"]
        assert (told["param"], told["message"]) == (theirs, f"{theirs}: no")


def events_of(reply: Exchange) -> list[dict[str, Any]]:
    """Read the events of a stream, each of which is named by its type."""
    found: list[dict[str, Any]] = []
    for event in reply.body.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert found[-1]["type"] == name.removeprefix("event: ")
    return found


def test_events_have_the_order_of_the_api() -> None:
    """Text that is held back makes none; what ends it is the whole answer."""
    events = events_of(post({**ASK, "stream": True, "metadata": {"a": "b"}}, FakeFleet("", "He", "", "llo")))

    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    whole = post({**ASK, "metadata": {"a": "b"}}, FakeFleet("", "He", "", "llo")).json
    for name in ("id", "created_at", "output"):
        assert whole.pop(name)
    last = events[-1]["response"]
    assert whole == {name: value for name, value in last.items() if name in whole}
    assert (events[-4]["text"], last["output"][0]) == ("Hello", events[-2]["item"])


def test_a_stream_that_fails_ends_with_an_error() -> None:
    """In the fields of that event, and in those that clients raise of."""
    error = request_error(ErrorKind.WORKER_LOST, "the node was lost")
    last = events_of(post({**ASK, "stream": True}, FakeFleet("Hel", error=error)))[-1]

    assert (last["type"], last["code"], last["message"]) == ("error", "worker_lost", "the node was lost")
    assert last["error"]["message"] == "the node was lost"


def test_numbers_of_events_do_not_depend_on_how_tokens_came() -> None:
    """Whoever comes back after a cut is sent tokens together that came one by one before."""

    def numbers(*chunks: Chunk) -> list[int]:
        writer = r.ResponseEvents(r.AnswerFrame(ResponsesRequest(model="m", input="hi"), b"", 0))
        written = [event for chunk in chunks for event in writer.of(chunk)]
        return [json.loads(event.split(b"data: ")[1])["sequence_number"] for event in written]

    one_by_one = numbers(*(Chunk(text="a", token_ids=[at], index=at) for at in range(3)))
    together = numbers(Chunk(text="aaa", token_ids=[0, 1, 2], index=0))

    assert (one_by_one[-1], together[-1]) == (6, 6)
    assert one_by_one == list(range(7))


# --- calls of tools --------------------------------------------------------------------------------------------------

MARKUP = '<think>hm</think>I look.<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call><tool_call>f</tool_call>'
CALLING: dict[str, Any] = {**ASK, "tools": [TOOL]}


def test_tools_become_those_of_a_task() -> None:
    """With what is known of each, and whether one must be called; calls of a history are turns."""
    said = [Tool(name="f", parameters='{"type":"object"}')]
    choices: list[tuple[object, dict[str, Any]]] = [
        ("required", {"tool_choice": "required"}),
        ({"type": "function", "name": "f"}, {"tool_choice": "required", "tool_name": "f"}),
        ("none", {"tool_choice": "none"}),
        ("auto", {}),
    ]
    for choice, told in choices:
        assert task_of(tools=[TOOL], tool_choice=choice) == msgspec.structs.replace(task_of(), tools=said, **told)
    assert not task_of(tools=[TOOL], parallel_tool_calls=False).parallel_tool_calls

    history = [
        {**HI, "type": "message"},
        {"role": "assistant", "content": "well"},
        *({"type": "function_call", "id": "fc", "call_id": c, "name": "f", "arguments": "{}"} for c in ("c1", "c2")),
        {"type": "function_call_output", "call_id": "c1", "output": "7"},
        {"type": "function_call", "call_id": "c3", "name": "f", "arguments": "{}", "status": "completed"},
    ]
    assert task_of(input=history).messages == [
        ChatMessage(role="user", content="hi"),
        ChatMessage(
            role="assistant", content="well", tool_calls=[ToolCall(id="c1", name="f"), ToolCall(id="c2", name="f")]
        ),
        ChatMessage(role="tool", content="7", tool_call_id="c1", name="f"),
        ChatMessage(role="assistant", content="", tool_calls=[ToolCall(id="c3", name="f")]),
    ]


def stream_of(*pieces: str, last_id: str = "") -> Exchange:
    """Ask for a stream that can be gone on with."""
    headers = {"idempotency-key": "k", **({"last-event-id": last_id} if last_id else {})}
    raw = json.dumps({**CALLING, "stream": True}).encode()
    return asyncio.run(call(make_app(FakeFleet(*pieces), BridgeSettings()), "POST", PATH, body=raw, headers=headers))


def test_thoughts_words_and_calls_are_items_of_their_own() -> None:
    """Whole and streamed, wherever the text is cut; each is added, written and done."""
    whole = post(CALLING, FakeFleet(MARKUP)).json
    thought, words, call_item = whole["output"][:3]

    assert (thought["type"], thought["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "hm"}])
    assert words["content"][0]["text"] == "I look."
    assert (call_item["type"], call_item["name"], call_item["arguments"]) == ("function_call", "f", '{"x": 1}')
    for size in (1, 3, 7, 1000):
        pieces = [MARKUP[at : at + size] for at in range(0, len(MARKUP), size)]
        lines = [line[6:] for line in stream_of(*pieces).body.decode().split("\n") if line.startswith("data: ")]
        events = [json.loads(line) for line in lines]
        items = events[-1]["response"]["output"]
        assert [{**item, "id": "", "call_id": ""} for item in items] == [
            {**item, "id": "", "call_id": ""} for item in whole["output"]
        ]
        assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == items
        numbers = [event["sequence_number"] for event in events]
        assert numbers == sorted(set(numbers))


def test_a_call_is_told_once_after_a_cut() -> None:
    """By the same id and numbers, whichever event was the last that was read."""
    pieces = list(MARKUP)
    whole = [event for event in stream_of(*pieces).body.split(b"\n\n") if event]
    ids = {at: event.split(b"\n")[0][4:].decode() for at, event in enumerate(whole) if event.startswith(b"id: ")}

    assert len(ids) > len("hmI look.")
    for at, last in ids.items():
        again = [event for event in stream_of(*pieces, last_id=last).body.split(b"\n\n") if event]
        assert again[:-1] == whole[at + 1 : -1]


def test_how_a_model_is_to_think_is_for_its_template() -> None:
    """As of chats; and how many tokens it thought is told."""
    raw = json.dumps({"model": "m", "input": "hi", "reasoning": {"effort": "low", "summary": "auto"}}).encode()
    task = response_task(parse_response(raw))

    assert task.rendering == Rendering(kwargs={"reasoning_effort": "low"})
    assert response_task(parse_response(b'{"model": "m", "input": "hi", "reasoning": {}}')).rendering is None


def test_an_answer_that_ends_within_a_call_is_incomplete() -> None:
    """By a stop text too; and how many tokens were thoughts stands in its usage."""
    request = parse_response(
        json.dumps({"model": "m", "input": "hi", "tools": [{"type": "function", "name": "f"}]}).encode()
    )
    frame = r.AnswerFrame(request, b"r" * 16, 1)
    said: dict[str, Any] = {"token_ids": [], "seed": 0, "model": "m", "revision": "r", "request_id": ""}
    usage = Usage(prompt_tokens=1, completion_tokens=3)
    texts = ('<tool_call>{"name": "f", "arguments": {"a": "b', '<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    cut, whole = (
        frame.whole(Result(text=text, finish_reason="stop", usage=usage, reasoning_tokens=2, **said)) for text in texts
    )

    assert (cut.status, whole.status) == ("incomplete", "completed")
    assert whole.usage is not None
    assert whole.usage.output_tokens_details.reasoning_tokens == 2


def test_functions_of_a_namespace_are_called_in_it() -> None:
    """Codex offers some so, and finds them by it."""
    group = {"type": "namespace", "name": "agents", "description": "Some.", "tools": [TOOL]}
    request = parse_response(json.dumps({**ASK, "tools": [{**TOOL, "name": "g"}, group]}).encode())
    frame = r.AnswerFrame(request, b"rid", 0)
    calls = [msgspec.to_builtins(frame.item(0, CalledTool(0, name, "{}"), "completed")) for name in "gf"]

    assert [tool.name for tool in response_task(request).tools] == ["g", "f"]
    assert ["namespace" in call for call in calls] == [False, True]
    assert calls[1]["namespace"] == "agents"
    with pytest.raises(InvalidRequestError, match=r"tools\[0\]\.tools\[0\]\.type"):
        parse_response(json.dumps({**ASK, "tools": [{**group, "tools": [{"type": "custom", "name": "c"}]}]}).encode())
