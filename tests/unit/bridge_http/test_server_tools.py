"""Tools that a server runs: left out beside others, refused where a request is about them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from support.asgi import Exchange, call
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.protocol.tasks import Generate

OURS: dict[str, dict[str, Any]] = {
    "/v1/messages": {"name": "f", "input_schema": {"type": "object"}},
    "/v1/responses": {"type": "function", "name": "f", "parameters": {"type": "object"}},
}
SERVED: dict[str, list[dict[str, Any]]] = {
    "/v1/messages": [
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        {"type": "web_fetch_20250910", "name": "web_fetch"},
        {"type": "code_execution_20250825", "name": "code_execution"},
    ],
    "/v1/responses": [
        {"type": "web_search", "external_web_access": False},
        {"type": "file_search", "vector_store_ids": ["v"]},
        {"type": "image_generation"},
        {"type": "mcp", "server_label": "s", "server_url": "https://example.com"},
    ],
}
NAMED = {"/v1/messages": {"type": "tool", "name": "web_search"}, "/v1/responses": {"type": "web_search"}}
CLIENTS_OWN = {"/v1/messages": {"type": "bash_20250124", "name": "bash"}, "/v1/responses": {"type": "local_shell"}}
PATHS = pytest.mark.parametrize("path", OURS)


def post(path: str, fleet: FakeFleet, **fields: Any) -> Exchange:
    """Ask the real app."""
    body: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    if path == "/v1/responses":
        body = {"model": "m", "input": "hi"}
    return asyncio.run(call(make_app(fleet, BridgeSettings()), "POST", path, body=json.dumps(body | fields).encode()))


@PATHS
def test_beside_a_tool_that_can_be_called_they_are_left_out(path: str) -> None:
    """The model does without: an offer need not be taken."""
    fleet = FakeFleet("ok")
    reply = post(path, fleet, tools=[SERVED[path][0], OURS[path], *SERVED[path][1:]])
    task = fleet.asked[0][0]

    assert reply.status == 200, reply.body
    assert isinstance(task, Generate)
    assert [tool.name for tool in task.tools] == ["f"]


@PATHS
def test_a_request_about_them_alone_is_refused(path: str) -> None:
    """Its answer would be made up."""
    for served in SERVED[path]:
        reply = post(path, FakeFleet("ok"), tools=[served])
        assert (reply.status, "tools[0].type" in reply.json["error"]["message"]) == (400, True)


@PATHS
def test_one_that_has_to_be_called_is_refused(path: str) -> None:
    """Beside others too, by its place among all."""
    reply = post(path, FakeFleet("ok"), tools=[OURS[path], SERVED[path][0]], tool_choice=NAMED[path])

    assert (reply.status, "tools[1].type" in reply.json["error"]["message"]) == (400, True)


@PATHS
def test_what_a_client_runs_by_a_schema_of_the_model_s_is_refused(path: str) -> None:
    """No model here was told how to call it; its place is the one that its sender knows."""
    reply = post(path, FakeFleet("ok"), tools=[SERVED[path][0], OURS[path], CLIENTS_OWN[path]])

    assert (reply.status, "tools[2].type" in reply.json["error"]["message"]) == (400, True)
