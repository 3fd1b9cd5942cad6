"""The Responses API: what its clients send becomes a task, what refers to the past is refused; events in order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from support.asgi import Exchange, call
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.openai import response_reply as r
from zmqrt.bridge_http.openai.response_schema import ResponsesRequest
from zmqrt.client.response import Chunk
from zmqrt.protocol.errors import ErrorKind, request_error
from zmqrt.protocol.tasks import ChatMessage, Generate, Grammar

PATH = "/v1/responses"
ASK: dict[str, Any] = {"model": "m", "input": "hi"}
HI: dict[str, Any] = {"role": "user", "content": "hi"}
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
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "max_tool_calls": 3, "reasoning": {}},
        {"include": ["reasoning.encrypted_content"], "truncation": "disabled", "top_logprobs": 0, "stream": False},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "service_tier": "auto", "prompt_cache_key": "k"},
        {"input": [HI]},
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
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"colour": 1}}, "text.colour"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"messages": [HI]}, "messages"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [HI] * 4097}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "1"}]}, "input[0].type"),
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
        writer = r.ResponseEvents(r.begun(ResponsesRequest(model="m", input="hi"), "00", 0))
        written = [event for chunk in chunks for event in writer.of(chunk)]
        return [json.loads(event.split(b"data: ")[1])["sequence_number"] for event in written]

    one_by_one = numbers(*(Chunk(text="a", token_ids=[at], index=at) for at in range(3)))
    together = numbers(Chunk(text="aaa", token_ids=[0, 1, 2], index=0))

    assert (one_by_one[-1], together[-1]) == (6, 6)
    assert one_by_one == list(range(7))
