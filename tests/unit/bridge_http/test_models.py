"""GET /v1/models, as each kind of client reads it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from support.asgi import Exchange, call
from support.fake_fleet import FakeFleet
from support.snapshots import EMPTY, service
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings

FLEET = msgspec.structs.replace(EMPTY, services=[service("big", context=4096), service("new", context=0)])


def get(path: str, **headers: str) -> Exchange:
    """Ask a bridge before a fleet with two models."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    app = make_app(FakeFleet(snapshot=FLEET), BridgeSettings())
    return asyncio.run(call(app, "GET", path, headers=named))


def test_clients_of_the_messages_api_get_a_page_of_their_shape() -> None:
    """They say who they are with every request."""
    page: dict[str, Any] = get("/v1/models", anthropic_version="2023-06-01").json
    one = get("/v1/models/big", anthropic_version="2023-06-01").json

    assert (page["first_id"], page["last_id"], page["has_more"]) == ("big", "new", False)
    assert [(model["type"], model["max_input_tokens"]) for model in page["data"]] == [("model", 4096), ("model", None)]
    assert (one["id"], one["display_name"], one["created_at"][-1]) == ("big", "big", "Z")


def test_all_others_get_openai_s() -> None:
    """A list, and one of it."""
    listed = get("/v1/models").json

    assert (listed["object"], [model["id"] for model in listed["data"]]) == ("list", ["big", "new"])
    assert get("/v1/models/big").json == listed["data"][0]
    assert get("/v1/models/none").status == 404
