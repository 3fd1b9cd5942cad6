"""The Messages API: what its clients send becomes a task, what is no success has its shape, events have its order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from support.asgi import Exchange, call, exchange
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http import sse
from zmqrt.bridge_http.anthropic.message_reply import AskedMessage
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.client.response import Result
from zmqrt.protocol.errors import ErrorKind, request_error
from zmqrt.protocol.tasks import ChatMessage, FinishReason, Generate, Grammar, Usage

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
HI: dict[str, Any] = {"role": "user", "content": "hi"}
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
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
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
        {"tools": [], "tool_choice": {"type": "auto"}, "thinking": {"type": "disabled"}, "mcp_servers": []},
        {"context_management": {"edits": []}, "container": None, "output_config": {"effort": "high"}, "stream": False},
        {"max_tokens": 9.0, "top_k": None, "temperature": 1, "output_config": {}},
        {"messages": [{**HI, "id": "msg_1", "stop_reason": None, "usage": {}}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {}, "citations": None}]}
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


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens: "),
        ({"colour": 1}, "Unrecognized request argument supplied: colour"),
        ({"tools": [{"name": "f"}]}, "tools: "),
        ({"tool_choice": {"type": "any"}}, "tool_choice: "),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking: "),
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
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].type: "),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "you must provide messages[0].content[0].type"),
        ({"messages": [HI, {"role": "assistant", "content": "I"}]}, "messages[1].role: "),
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
    if fields.keys() & {"messages", "tools", "system"}:
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

    assert AskedMessage(id="msg_1", model="m", max_tokens=5, stops=["a", "b"]).ending(result) == ending
