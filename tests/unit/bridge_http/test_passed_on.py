"""Messages and Responses for a model behind a server of its own: said as a chat, with all that is not ours."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from support.asgi import Exchange, call
from support.fake_fleet import FakeFleet
from support.snapshots import EMPTY, service
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.protocol.tasks import Generate

SCHEMA = {"type": "object"}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "Does it.", "parameters": SCHEMA}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE]},
    {"role": "assistant", "content": "well", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "7"},
]
MESSAGES: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "well"},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "7"}]},
    ],
    "tools": [{"name": "f", "description": "Does it.", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": SCHEMA}},
    "metadata": {"user_id": "u"},
    "colour": "red",
}
RESPONSES: dict[str, Any] = {
    "model": "m",
    "max_output_tokens": 9,
    "instructions": "Be brief.",
    "input": [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
            ],
        },
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "well"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x":1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "7"},
    ],
    "tools": [{"type": "function", **FUNCTION["function"]}],  # type: ignore[dict-item]
    "tool_choice": {"type": "function", "name": "f"},
    "parallel_tool_calls": False,
    "reasoning": {"effort": "max"},
    "text": {"format": {"type": "json_schema", "name": "answer", "strict": True, "schema": SCHEMA}},
    "store": False,
    "colour": "red",
}
BODIES = {"/v1/messages": MESSAGES, "/v1/responses": RESPONSES}
PATHS = pytest.mark.parametrize("path", BODIES)


def post(path: str, body: dict[str, Any], *capabilities: str) -> tuple[Exchange, FakeFleet]:
    """Ask a bridge before one model, whose nodes can do so much."""
    names = dict.fromkeys(capabilities, 1)
    fleet = FakeFleet("ok", snapshot=msgspec.structs.replace(EMPTY, services=[service("m", capabilities=names)]))
    raw = json.dumps(body).encode()
    return asyncio.run(call(make_app(fleet, BridgeSettings()), "POST", path, body=raw)), fleet


@PATHS
def test_everything_is_said_as_far_as_chats_have_words_for_it(path: str) -> None:
    """Images, an effort, and names that nobody here knows too."""
    reply, fleet = post(path, BODIES[path], "extra")
    task = fleet.asked[0][0]

    assert reply.status == 200, reply.body
    assert isinstance(task, Generate)
    assert (task.max_tokens, task.grammar, task.tools) == (9, None, [])
    assert task.extra == {
        "messages": CHAT,
        "tools": [FUNCTION],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
        },
        "reasoning_effort": "max",
        "colour": "red",
    }


@PATHS
def test_what_we_can_do_too_is_asked_of_our_own_nodes_where_there_are_some(path: str) -> None:
    """A server gets it only where no node of ours could."""
    plain: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    if path == "/v1/responses":
        plain = {"model": "m", "input": "hi"}
    ask = {**plain, "tools": BODIES[path]["tools"]}

    for capabilities, extra in ((("extra",), {"tools": [FUNCTION]}), (("extra", "tools"), {}), (("tools",), {})):
        task = post(path, ask, *capabilities)[1].asked[0][0]
        assert isinstance(task, Generate)
        assert (task.extra, bool(task.tools)) == (extra, not extra)


SEARCH = {
    "/v1/messages": {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    "/v1/responses": {"type": "web_search"},
}
SHELL = {"/v1/messages": {"type": "bash_20250124", "name": "bash"}, "/v1/responses": {"type": "local_shell"}}


@PATHS
def test_tools_that_a_server_runs_are_never_made_functions(path: str) -> None:
    """Its caller could run none of them: left out beside functions, as from our own models."""
    tools = [SEARCH[path], *BODIES[path]["tools"]]
    task = post(path, {**BODIES[path], "tools": tools}, "extra")[1].asked[0][0]

    assert isinstance(task, Generate)
    assert task.extra["tools"] == [FUNCTION]


@PATHS
@pytest.mark.parametrize("kinds", [SEARCH, SHELL])
def test_what_is_no_function_is_refused_where_it_cannot_be_left_out(
    path: str, kinds: dict[str, dict[str, Any]]
) -> None:
    """Chats have no words for it, whatever server stands behind."""
    body = {name: value for name, value in BODIES[path].items() if name != "tool_choice"}
    reply, fleet = post(path, {**body, "tools": [kinds[path]]}, "extra")

    assert (reply.status, fleet.asked) == (400, [])


def test_functions_of_a_namespace_are_functions_there_too() -> None:
    """Codex offers some so."""
    group = {"type": "namespace", "name": "box", "tools": RESPONSES["tools"]}
    task = post("/v1/responses", {**RESPONSES, "tools": [group]}, "extra")[1].asked[0][0]

    assert isinstance(task, Generate)
    assert task.extra["tools"] == [FUNCTION]


@PATHS
def test_where_no_server_stands_behind_it_is_refused_by_name(path: str) -> None:
    """As ever."""
    reply, fleet = post(path, BODIES[path], "tools", "grammar")

    assert (reply.status, fleet.asked) == (400, [])


@PATHS
def test_what_is_wrong_is_said_in_the_words_of_its_api(path: str) -> None:
    """And not in those of the chat that it would have become."""
    name = "messages" if path == "/v1/messages" else "input"
    reply, fleet = post(path, {"model": "m", "max_tokens": 9, name: 7, "colour": "red"}, "extra")

    assert (reply.status, fleet.asked) == (400, [])
    assert reply.json["error"]["message"].startswith((f"{name}: ", "Unrecognized"))


def test_what_refers_to_answers_from_before_is_refused_all_the_same() -> None:
    """They would be ours, and nothing is kept."""
    reply, fleet = post("/v1/responses", {**RESPONSES, "store": True}, "extra")

    assert (reply.status, fleet.asked) == (400, [])
