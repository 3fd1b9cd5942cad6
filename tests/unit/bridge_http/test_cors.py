"""Which pages may read what the bridge answers."""

import asyncio
from typing import Any, Final

import pytest

from support.asgi import Exchange, call, infer
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings

PAGE = "https://app.example"
KEYED = BridgeSettings(api_keys=("acme:s3cret",), cors_origin=(PAGE, "https://*.example.org", "null", "app://*"))
ASKS: Final[dict[str, Any]] = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-mine",
}
KEY = "Bearer s3cret"
CORS = "access-control-"


def ask(method: str, path: str, settings: BridgeSettings = KEYED, **headers: str) -> Exchange:
    """Send a request without a body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(call(make_app(FakeFleet("ok"), settings), method, path, headers=named))


@pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions", "/v1/models", "/infer/x", "/nowhere", "/metrics"])
@pytest.mark.parametrize("origin", [PAGE, "https://a.b.example.org", "null", "app://obsidian.md"])
def test_a_preflight_is_answered_without_a_key(path: str, origin: str) -> None:
    """A browser sends none with it."""
    reply = ask("OPTIONS", path, origin=origin, **ASKS)

    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == origin
    assert reply.headers["access-control-allow-headers"] == ASKS["access-control-request-headers"]
    assert {"GET", "POST", "DELETE"} <= set(reply.headers["access-control-allow-methods"].split(", "))
    assert reply.headers["vary"].count("Origin") == 1  # of one list, which says already how it varies
    assert int(reply.headers["access-control-max-age"]) > 0
    assert "access-control-allow-private-network" not in reply.headers
    assert "access-control-allow-credentials" not in reply.headers


def test_a_page_of_the_internet_may_ask_a_bridge_of_this_network() -> None:
    """If its origin is allowed, and its browser asks for that."""
    reply = ask("OPTIONS", "/infer", origin=PAGE, access_control_request_private_network="true", **ASKS)

    assert reply.headers["access-control-allow-private-network"] == "true"


def test_a_list_of_headers_that_is_none_is_not_repeated() -> None:
    """It would stand in a header of ours; the usual names are sent instead."""
    asked: dict[str, Any] = {**ASKS, "access-control-request-headers": "a b, (c)"}
    reply = ask("OPTIONS", "/infer", origin=PAGE, **asked)

    assert "authorization" in reply.headers["access-control-allow-headers"]
    assert "(c)" not in reply.headers["access-control-allow-headers"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/livez", {}, 200),
        ("GET", "/livez", {"origin": "https://APP.example:443"}, 200),
        ("GET", "/v1/models", {}, 401),
        ("GET", "/v1/nowhere", {"authorization": KEY}, 404),
        ("GET", "/infer", {"authorization": KEY}, 405),
        ("POST", "/v1/conversations", {"authorization": KEY}, 405),
        ("POST", "/infer", {"authorization": KEY, "content-length": "99999999"}, 413),
        ("POST", "/infer", {"authorization": KEY}, 400),
        ("OPTIONS", "/infer", {}, 204),
        ("HEAD", "/v1/models", {"authorization": KEY}, 200),
    ],
)
def test_every_answer_to_an_allowed_page_is_readable(
    method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """Errors too: else its reader is told that the fetch failed, and no more."""
    sent: dict[str, Any] = {"origin": PAGE, **headers}
    reply = ask(method, path, **sent)

    assert reply.status == status
    assert reply.headers["access-control-allow-origin"] == sent["origin"]
    assert reply.headers["vary"] == "Origin"
    assert {"x-request-id", "retry-after"} <= set(reply.headers["access-control-expose-headers"].split(", "))


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_answers_and_streams_are_readable(accept: str) -> None:
    """And the failure of the bridge itself."""
    good = infer(make_app(FakeFleet("ok"), KEYED), {"prompt": "Hi"}, origin=PAGE, authorization=KEY, accept=accept)
    broken = FakeFleet(error=KeyError("oops"))
    bad = infer(make_app(broken, KEYED), {"prompt": "Hi"}, origin=PAGE, authorization=KEY, accept=accept)

    assert (good.status, bad.status) == (200, 500)
    assert good.headers["access-control-allow-origin"] == bad.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://evilexample.org",
        "https://app.example, https://evil.example",
        "https://app.example/",
        "",
        "file://",
    ],
)
def test_other_pages_read_nothing(origin: str) -> None:
    """Not one header of CORS, before a request or with its answer."""
    preflight = ask("OPTIONS", "/infer", origin=origin, **ASKS)
    answered = ask("GET", "/livez", origin=origin)

    assert preflight.status == 403
    assert answered.status == 200
    assert not [name for reply in (preflight, answered) for name in reply.headers if name.startswith(CORS)]
    assert preflight.headers["vary"] == answered.headers["vary"] == "Origin"


def test_a_refused_preflight_says_what_would_allow_it() -> None:
    """In the shape of its path; whoever looks at the network in a browser sees it."""
    reply = ask("OPTIONS", "/v1/models", origin="https://other.example", **ASKS)

    assert "--cors-origin https://other.example" in reply.json["error"]["message"]


def test_a_cache_may_not_give_to_one_page_what_was_for_another() -> None:
    """So even answers to nobody's page say that they differ by it."""
    assert ask("GET", "/livez").headers["vary"] == "Origin"


def test_without_the_setting_there_is_no_cors() -> None:
    """The default."""
    settings = BridgeSettings(api_keys=("acme:s3cret",))
    for reply in (ask("OPTIONS", "/infer", settings, origin=PAGE, **ASKS), ask("GET", "/livez", settings, origin=PAGE)):
        assert not [name for name in reply.headers if name.startswith(CORS) or name == "vary"]


def test_any_page_may_be_let_in() -> None:
    """With a key where there are keys."""
    settings = BridgeSettings(api_keys=("acme:s3cret",), cors_origin=("*",))
    preflight = ask("OPTIONS", "/infer", settings, origin="https://any.example", **ASKS)
    refused = ask("POST", "/infer", settings, origin="null")

    assert preflight.status == 204
    assert refused.status == 401
    assert preflight.headers["access-control-allow-origin"] == refused.headers["access-control-allow-origin"] == "*"


def test_without_keys_an_allowed_page_may_ask_and_read() -> None:
    """It needs no second setting; the name that it asks by still counts."""
    settings = BridgeSettings(cors_origin=(PAGE,))
    good = ask("GET", "/v1/models", settings, origin=PAGE)
    foreign = ask("GET", "/v1/models", settings, origin=PAGE, host="evil.example")

    assert (good.status, foreign.status) == (200, 403)
    assert good.headers["access-control-allow-origin"] == foreign.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    ("pattern", "origin", "is_allowed"),
    [
        ("https://App.Example:443/", "https://app.example", True),
        ("http://localhost:3000", "http://localhost:3000", True),
        ("http://localhost:3000", "http://localhost:3001", False),
        ("http://localhost", "http://localhost:3001", False),
        ("http://localhost:*", "http://localhost:3001", True),
        ("http://[::1]:3000", "http://[0:0:0:0:0:0:0:1]:3000", True),
        ("https://*.example.org:*", "https://a.example.org:8443", True),
        ("https://*", "https://whatever.example:8443", True),
        ("https://*", "http://whatever.example", False),
        ("chrome-extension://abc", "chrome-extension://ABC", True),
        ("moz-extension://*", "moz-extension://1a2b-3c", True),
        ("capacitor://localhost", "capacitor://localhost", True),
        ("tauri://localhost", "tauri://localhost", True),
        ("app://-", "app://-", True),
        ("file://", "file://", True),
        ("null", "null", True),
        ("null", "file://", False),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example", True),
    ],
)
def test_an_origin_may_be_a_pattern(pattern: str, origin: str, *, is_allowed: bool) -> None:
    """Of a domain, of any port, of an app; in any spelling that a browser makes one of."""
    reply = ask("GET", "/livez", BridgeSettings(api_keys=("a:k",), cors_origin=(pattern,)), origin=origin)

    assert reply.headers.get("access-control-allow-origin") == (origin if is_allowed else None)
