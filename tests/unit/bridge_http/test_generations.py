"""Streams that were cut: whoever comes back with its key and the id of an event reads the rest, and that alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import ASGIApp

from support.asgi import Exchange, call
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.generations import cut
from zmqrt.client.response import Chunk

PIECES = ("He", "", "llo", " wor", "", "ld")
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "Hi"},
    "/v1/messages": {**CHAT, "max_tokens": 9},
    "/v1/responses": {"input": "Hi"},
}


def bridge() -> ASGIApp:
    """Make one, which knows when a request with a key was asked for first."""
    return make_app(FakeFleet(*PIECES), BridgeSettings())


def post(path: str, app: ASGIApp | None = None, **headers: str) -> Exchange:
    """Ask for a stream."""
    app = app or bridge()
    raw = json.dumps({"model": "m", "stream": True, **ASKS[path]}).encode()
    named = {"x-request-id": "r", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return asyncio.run(call(app, "POST", path, body=raw, headers=named))


def events_of(reply: Exchange) -> list[bytes]:
    """Cut a body into its events."""
    assert reply.status == 200, reply.body
    return reply.body.split(b"\n\n")[:-1]


def id_of(event: bytes) -> str:
    """Return the id of an event; "" if it has none."""
    first = event.split(b"\n")[0].decode()
    return first.removeprefix("id: ") if first.startswith("id: ") else ""


@pytest.mark.parametrize("path", ASKS)
def test_a_stream_goes_on_after_each_of_its_events(path: str) -> None:
    """What comes is, to the byte, what had not come; how many tokens had come at once then plays no part."""
    app = bridge()
    whole = events_of(post(path, app, idempotency_key="k"))
    ids = {at: id_of(event) for at, event in enumerate(whole) if id_of(event)}

    assert list(ids.values()) == ["r/1", "r/3", "r/4", "r/6"]
    for at, last in ids.items():
        assert events_of(post(path, app, idempotency_key="k", last_event_id=last))[:-1] == whole[at + 1 : -1]


@pytest.mark.parametrize("path", ASKS)
def test_without_a_key_events_have_no_ids(path: str) -> None:
    """Nobody could come back with them, and some clients read nothing but lines with data."""
    reply = post(path)
    assert b"id: r/" not in reply.body

    refused = post(path, last_event_id="r/3")
    assert refused.status == 400
    assert "last-event-id" in refused.json["error"]["message"]


def test_a_chunk_is_divided_where_its_reader_left() -> None:
    """With what belongs to each token; text held back until the end is a unit of its own."""
    chunk = Chunk(text="abc", token_ids=[7, 8, 9], index=4, pieces=["a", "b", "c"])

    assert [(part.text, part.token_ids, part.index, at) for part, at in cut(chunk, 5)] == [
        ("a", [7], 4, 5),
        ("bc", [8, 9], 5, 7),
    ]
    for delivered in (0, 4, 7, 9):
        assert cut(chunk, delivered) == [(chunk, 7)]
    tail = Chunk(text="x", token_ids=[], index=7)
    assert cut(tail, 7) == cut(tail, 8) == [(tail, 8)]
