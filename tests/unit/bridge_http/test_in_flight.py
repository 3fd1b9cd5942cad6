"""What a request is told to the fleet with: for whom it is, and how soon it is due."""

from __future__ import annotations

from typing import Any

import pytest

from support.asgi import Exchange, infer
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.protocol.api_keys import HASH, digest_of


def hashed(tenant: str, key: str, words: str) -> str:
    """Write an entry of a key."""
    return f"{tenant}:{HASH}{digest_of(key.encode()).hex()} {words}"


KEYS = (
    hashed("acme", "a", "name=a priority=interactive"),
    hashed("acme", "b", "name=b priority=bulk"),
    "acme:plain",
    "globex:other",
)


def ask(key: str = "", priority: str = "") -> tuple[Exchange, dict[str, Any]]:
    """Ask with a key, or where there are none; return the answer and what the fleet was told."""
    fleet = FakeFleet("ok")
    headers = {"x_api_key": key} if key else {}
    headers |= {"x_priority": priority} if priority else {}
    reply = infer(make_app(fleet, BridgeSettings(api_keys=KEYS if key else ())), {"prompt": "Hi"}, **headers)
    return reply, fleet.asked[0][2] if fleet.asked else {}


@pytest.mark.parametrize(
    ("key", "asked", "told"),
    [
        ("a", "", 10),
        ("a", "default", None),
        ("a", "BULK", -10),
        ("a", "100", 10),
        ("a", "-100", -100),
        ("b", "", -10),
        ("b", "interactive", -10),
        ("plain", "", None),
        ("plain", "interactive", None),
        ("plain", "bulk", -10),
        ("", "", None),
        ("", "interactive", 10),
    ],
)
def test_a_request_has_the_class_of_its_key_or_a_lower_one(key: str, asked: str, told: int | None) -> None:
    """Whoever asks for more gets what the key may have; without keys the broker decides."""
    reply, options = ask(key, asked)

    assert reply.status == 200
    assert options.get("priority") == told


@pytest.mark.parametrize("asked", ["urgent", "101", "-101", "1.5"])
def test_a_priority_that_is_none_is_refused(asked: str) -> None:
    """By the name of its header."""
    reply, _ = ask("a", asked)

    assert reply.status == 400
    assert "x-priority" in reply.json["detail"]


def test_keys_of_a_tenant_are_users_of_one_party() -> None:
    """The same at every bridge; no name of anybody is told."""
    parties = {key: ask(key)[1]["party"] for key in ("a", "b", "plain", "other")}
    tenants = {key: party.split("/")[0] for key, party in parties.items()}

    assert len(set(parties.values())) == 4
    assert tenants["a"] == tenants["b"] == tenants["plain"] == parties["plain"] != tenants["other"]
    assert "acme" not in str(parties)
    assert "party" not in ask()[1]
