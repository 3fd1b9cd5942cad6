"""What a request asks beyond our schema is set apart, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from support.asgi import call
from support.fake_fleet import FakeFleet
from support.snapshots import EMPTY
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.json_body import encode
from zmqrt.bridge_http.openai.passing import divide
from zmqrt.bridge_http.openai.requests import chat_task, parse
from zmqrt.bridge_http.openai.schema import ChatRequest, CompletionRequest
from zmqrt.protocol.snapshot import ServiceStatus
from zmqrt.protocol.tasks import Generate

HI = [{"role": "user", "content": "hi"}]


def apart(**fields: Any) -> dict[str, Any]:
    """Return what is set apart of a chat; the rest has to be one."""
    rest, extra = divide({"model": "m", "messages": HI, **fields}, ChatRequest)
    parse(encode(rest), ChatRequest)
    return extra


def test_what_is_ours_by_any_name_stays() -> None:
    """Other names of ours, Ollama's options, and what asks for nothing anyway."""
    assert apart(max_tokens=3, n_predict=3, options={"num_predict": 3}, user="me", tools=[], n=1) == {}


def test_what_is_not_ours_is_set_apart_unchanged() -> None:
    """Unknown names, and what we refuse since we could not do it."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert apart(colour="red", tools=tools, reasoning_effort="low", user="me") == {
        "colour": "red",
        "tools": tools,
        "reasoning_effort": "low",
    }
    assert divide({"model": "m", "prompt": "hi", "suffix": "!"}, CompletionRequest)[1] == {"suffix": "!"}


def test_messages_with_more_than_text_are_set_apart_whole() -> None:
    """Their texts stay, for whoever looks at the prompt; messages of text alone are nobody's business."""
    image = {"type": "image_url", "image_url": {"url": "data:x"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "what is "}, image, {"type": "text", "text": "this?"}]},
        {"role": "function", "content": None, "colour": 1},
    ]
    rest, extra = divide({"model": "m", "messages": messages}, ChatRequest)

    assert extra == {"messages": messages}
    plain = chat_task(parse(encode(rest), ChatRequest)).messages
    assert [(one.role, one.content) for one in plain or []] == [("user", "what is this?"), ("user", "")]
    assert apart(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "me"}]) == {}


def test_nonsense_is_left_for_the_schema_to_name() -> None:
    """What is wrong with our own fields is said as always."""
    rest, extra = divide({"model": "m", "messages": 5, "max_tokens": "many"}, ChatRequest)
    assert (rest, extra) == ({"model": "m", "messages": 5, "max_tokens": "many"}, {})
    assert divide({"messages": ["x", 5]}, ChatRequest)[0]["messages"] == ["x", 5]


ALIKE: dict[str, Any] = {
    "chat_template_kwargs": {"enable_thinking": False},
    "response_format": {"type": "json_object"},
    "tools": [{"type": "function", "function": {"name": "f"}}],
}


def passed(*capabilities: str) -> dict[str, Any]:
    """Ask a model for what we do and other servers do too; return what is passed on as it was given."""
    counts: dict[str, Any] = dict.fromkeys(("context", "nodes", "capacity", "queued", "running"), 1)
    names = dict.fromkeys(capabilities, 1)
    service = ServiceStatus(service="m", task="generate", model="m", revision="", capabilities=names, **counts)
    fleet = FakeFleet("ok", snapshot=msgspec.structs.replace(EMPTY, services=[service]))
    raw = encode({"model": "m", "messages": HI, **ALIKE})
    reply = asyncio.run(call(make_app(fleet, BridgeSettings()), "POST", "/v1/chat/completions", body=raw))
    assert reply.status == 200, reply.body
    task: Generate = fleet.asked[0][0]
    assert (task.rendering is None) is (task.grammar is None) is (not task.tools) is bool(task.extra)
    return task.extra


def test_what_both_do_is_passed_on_where_only_another_server_does_it() -> None:
    """Where a node of ours can, it is asked."""
    assert passed("extra") == ALIKE
    assert passed("extra", "grammar", "rendering") == ALIKE
    assert passed("extra", "grammar", "rendering", "tools") == {}
    assert passed("grammar", "rendering", "tools") == {}
