"""The files of the page, and the status that it shows."""

import asyncio
import re
from collections.abc import Mapping

import msgspec
import pytest

from support.asgi import Exchange, call
from support.fake_fleet import FakeFleet
from support.snapshots import EMPTY, node
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.paths import FILES
from zmqrt.bridge_http.snapshot_cache import PATIENCE_S, SnapshotCache
from zmqrt.bridge_http.static_files import POLICY
from zmqrt.protocol.errors import ConnectError
from zmqrt.protocol.snapshot import Snapshot

KEYED = BridgeSettings(api_keys=("acme:s3cret",))


def get(path: str, settings: BridgeSettings | None = None, headers: Mapping[str, str] | None = None) -> Exchange:
    """GET from a bridge to an empty fleet."""
    return asyncio.run(call(make_app(FakeFleet(), settings or BridgeSettings()), "GET", path, headers=headers))


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/docs", "text/html"),
        ("/openapi.json", "application/json"),
        ("/client.sh", "text/x-shellscript"),
        ("/client.ps1", "text/plain"),
    ],
)
def test_the_files_need_no_key_and_are_bound_by_a_policy(path: str, media_type: str) -> None:
    """They hold no datum; the policy keeps it so that nothing else runs beside them."""
    reply = get(path, KEYED)

    assert reply.status == 200
    assert reply.headers["content-type"] == f"{media_type}; charset=utf-8"
    assert reply.headers["content-security-policy"] == POLICY
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-cache"


def test_the_policy_is_strict() -> None:
    """Nothing from elsewhere, nothing inline, no frame."""
    rules = {name: allowed for name, _, allowed in (rule.partition(" ") for rule in POLICY.split("; "))}

    assert rules.pop("img-src") == "'self' data:"
    assert {rules.pop(name) for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert rules == dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")


@pytest.mark.parametrize("path", FILES)
def test_who_has_a_file_is_not_sent_it_again(path: str) -> None:
    """With the policy all the same: a browser puts the new headers to the old body."""
    tag = get(path).headers["etag"]
    known = get(path, headers={"if-none-match": f'"other", W/{tag}'})

    assert (known.status, known.body) == (304, b"")
    assert known.headers["etag"] == tag
    assert known.headers["content-security-policy"] == POLICY
    assert get(path, headers={"if-none-match": '"other"'}).status == 200


def test_clients_for_bare_machines_are_text_that_each_of_them_can_read() -> None:
    """PowerShell 5.1 takes what is not ASCII for Windows-1252, and knows none of the operators that came with 7."""
    script, powershell = get("/client.sh").body.decode("ascii"), get("/client.ps1").body.decode("ascii")

    assert script.startswith("#!/bin/sh\n")
    assert "\r" not in script + powershell
    code = re.sub(r"(?m)^\s*#.*|(?s:<#.*?#>)|'[^']*'", "", powershell)
    assert re.findall(r"\?\?|\?\.|&&|\|\||-Parallel|\bclean\b|\s\?\s", code) == []
    assert code.count("{") == code.count("}")
    assert "ZMQRT_API_KEY" in script
    assert "ZMQRT_API_KEY" in powershell


def test_docs_names_every_operation() -> None:
    """One that is described for programs is explained to people too."""
    page = get("/docs").body.decode()
    paths = get("/openapi.json").json["paths"]
    operations = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]

    assert len(operations) > 10
    assert [operation for operation in operations if f"<code>{operation}</code>" not in page] == []


@pytest.mark.parametrize("path", FILES)
def test_a_head_has_the_fields_of_the_file_and_no_body(path: str) -> None:
    """And no file takes a POST."""
    app = make_app(FakeFleet(), BridgeSettings())
    head = asyncio.run(call(app, "HEAD", path))

    assert (head.status, head.body) == (200, b"")
    assert {**head.headers, "x-request-id": ""} == {**get(path).headers, "x-request-id": ""}
    assert asyncio.run(call(app, "POST", path)).status == 405


def test_every_datum_needs_the_key() -> None:
    """The status of the fleet, for one."""
    assert get("/status", KEYED).status == 401
    assert get("/status", KEYED, {"authorization": "Bearer s3cret"}).status == 200


def test_a_page_from_elsewhere_does_not_get_the_status() -> None:
    """Nor one that made its name point here."""
    assert get("/status", headers={"host": "evil.example"}).status == 403
    assert get("/", headers={"host": "evil.example"}).status == 403


def test_the_status_is_the_snapshot_and_what_the_bridge_knows_about_it() -> None:
    """Field by field what `zmqrt status --json` prints, and two more."""
    snapshot = msgspec.structs.replace(EMPTY, nodes=[node("a")])
    reply = asyncio.run(call(make_app(FakeFleet(snapshot=snapshot), BridgeSettings()), "GET", "/status"))
    body = reply.json

    assert reply.headers["cache-control"] == "no-store"
    assert body.pop("age_s") >= 0
    assert body.pop("tokens_per_s") == {"uuid-a": {}}
    assert body == msgspec.to_builtins(snapshot)


def test_many_pages_ask_the_broker_as_one() -> None:
    """Together with the probes."""
    fleet = FakeFleet()

    async def scenario() -> None:
        app = make_app(fleet, BridgeSettings())
        await asyncio.gather(*(call(app, "GET", path) for path in ["/status"] * 20 + ["/health"]))

    asyncio.run(scenario())
    assert fleet.status_calls <= 2  # who comes while it is asked is not given an answer that may be too old


def test_without_a_broker_the_status_says_why() -> None:
    """The sentence of the library names the cause."""
    fleet = FakeFleet(snapshot=ConnectError("nobody listens at tcp://127.0.0.1:7555"))
    reply = asyncio.run(call(make_app(fleet, BridgeSettings()), "GET", "/status"))

    assert reply.status == 503
    assert reply.json["reason"] == "broker_unreachable"
    assert "nobody listens" in reply.json["detail"]
    assert reply.headers["retry-after"] == "1"


def test_a_silent_broker_leaves_the_last_snapshot_and_its_age() -> None:
    """So that a page can tell what is old."""

    async def scenario() -> None:
        now = 0.0
        answers = asyncio.Queue[Snapshot]()
        watch = SnapshotCache(answers.get, lambda: now)
        answers.put_nowait(EMPTY)
        first = await watch.look()
        now = 10.0
        second = await watch.look()

        assert (first.snapshot, first.age_s) == (EMPTY, 0.0)
        assert (second.snapshot, second.age_s) == (EMPTY, 10.0)
        answers.put_nowait(EMPTY)
        assert (await watch.look()).age_s == 0.0

    asyncio.run(asyncio.wait_for(scenario(), 20 * PATIENCE_S))
