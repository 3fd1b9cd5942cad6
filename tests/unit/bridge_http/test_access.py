"""Who may ask."""

import asyncio
import itertools
import time
from typing import Any

import pytest

from support.asgi import call, infer
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http import in_flight
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.protocol.errors import ConfigurationError

KEYED = BridgeSettings(api_keys=("acme:s3cret", "globex:other"))
ASK = {"prompt": "Hi"}


def with_one(name: str, value: str) -> BridgeSettings:
    """Make settings with one list of one entry."""
    given: dict[str, Any] = {name: (value,)}
    return BridgeSettings(**given)


@pytest.mark.parametrize(
    "headers",
    [
        *({"authorization": sent} for sent in ("Bearer s3cret", "bearer  other", "BEARER\ts3cret", "Bearer s3cret ")),
        {"x_api_key": "s3cret"},
        {"authorization": "Bearer none", "x_api_key": "s3cret"},
        {"authorization": "Bearer s3cret", "x_api_key": "none"},
    ],
)
def test_a_listed_key_is_let_in(headers: dict[str, str]) -> None:
    """In either header, in any spacing; SDKs send a bearer whether or not there is one, beside their user's header."""
    assert infer(make_app(FakeFleet("ok"), KEYED), ASK, **headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        *({"authorization": sent} for sent in ("Bearer wrong", "Basic s3cret", "Bearer", "Bearer ", "s3cret", "")),
        {"x_api_key": "acme:s3cret"},
        {"authorization": "Bearer none", "x_api_key": "neither"},
    ],
)
def test_everybody_else_is_asked_for_a_key(headers: dict[str, str]) -> None:
    """401 with the challenge, and nothing reaches the fleet. Half of a header is no key."""
    fleet = FakeFleet("ok")
    reply = infer(make_app(fleet, KEYED), ASK, **headers)

    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.headers["x-request-id"] == reply.json["request_id"]
    assert fleet.asked == []


def test_probes_need_no_key() -> None:
    """A load balancer has none."""
    for path in ("/health", "/readyz", "/livez"):
        assert asyncio.run(call(make_app(FakeFleet(), KEYED), "GET", path)).status in (200, 503)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:8000"},
        {"origin": "https://evil.example"},
        {"origin": "http://203.0.113.7"},
        {"origin": "http://192.0.2.7:8000", "host": "192.0.2.8:8000"},
        {"origin": "null"},
        {"origin": "null", "host": ""},
    ],
)
def test_a_page_from_elsewhere_is_refused_while_there_are_no_keys(headers: dict[str, str]) -> None:
    """DNS rebinding, or a plain form: the browser of somebody on this machine tells where the page is from."""
    reply = infer(make_app(FakeFleet("ok"), BridgeSettings()), ASK, **headers)

    assert reply.status == 403
    assert reply.json["reason"] == "forbidden_host"


HOSTS_OF_THIS_MACHINE = (
    *(
        "localhost:8000",
        "127.0.0.1",
        "[::1]:8000",
        "192.0.2.7:8000",
        "LocalHost",
        "localhost.",
        "api.localhost:8000",
        "",
    ),
    *("127.1:8000", "[::ffff:127.0.0.1]:8000", "host.docker.internal:8000"),
)


@pytest.mark.parametrize(
    "headers",
    [
        *({"host": host} for host in HOSTS_OF_THIS_MACHINE),
        *({"origin": f"http://{host}:3000"} for host in ("localhost", "127.0.0.1", "[::1]")),
        {"origin": "http://192.0.2.7:3000", "host": "192.0.2.7:8000"},
    ],
)
def test_who_means_this_machine_may_ask(headers: dict[str, str]) -> None:
    """By a name of it that cannot be made to point elsewhere; and a page under development, or of where we stand."""
    assert infer(make_app(FakeFleet("ok"), BridgeSettings()), ASK, **headers).status == 200


def test_with_keys_the_name_does_not_matter() -> None:
    """A page has no key to send."""
    app = make_app(FakeFleet("ok"), KEYED)

    assert infer(app, ASK, host="api.example.com", authorization="Bearer s3cret").status == 200


@pytest.mark.parametrize("given", ["abc", "A-1_b.c", "x" * 128])
def test_a_request_id_is_echoed(given: str) -> None:
    """In header and body."""
    reply = infer(make_app(FakeFleet("ok"), BridgeSettings()), ASK, x_request_id=given)

    assert reply.headers["x-request-id"] == reply.json["request_id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "<script>"])
def test_an_id_that_may_not_go_into_a_log_is_replaced(given: str) -> None:
    """By the id that the wire uses."""
    fleet = FakeFleet("ok")
    reply = infer(make_app(fleet, BridgeSettings()), ASK, x_request_id=given)

    assert reply.json["request_id"] == fleet.asked[0][2]["rid"].hex()


def test_equal_request_ids_are_two_requests() -> None:
    """On the wire each has an id of its own."""
    fleet = FakeFleet("ok")
    app = make_app(fleet, BridgeSettings())
    for _ in range(2):
        infer(app, ASK, x_request_id="same")

    assert fleet.asked[0][2]["rid"] != fleet.asked[1][2]["rid"]


def test_off_loopback_without_keys_nothing_is_served() -> None:
    """Unless somebody insists."""
    with pytest.raises(ConfigurationError, match=r"http://0\.0\.0\.0:8000 is reachable.*API_KEYS"):
        BridgeSettings(host="0.0.0.0").check_exposure()

    BridgeSettings(host="0.0.0.0", insecure=True).check_exposure()
    BridgeSettings(host="0.0.0.0", api_keys=("a:b",)).check_exposure()
    BridgeSettings(host="::1").check_exposure()


@pytest.mark.parametrize(
    ("headers", "flag", "value"),
    [
        ({"host": "gpu-box.lan:8000"}, "--allow-host", "gpu-box.lan"),
        ({"host": "Bücher.example"}, "--allow-host", "xn--bcher-kva.example"),
        ({"origin": "https://app.example:8443"}, "--cors-origin", "https://app.example:8443"),
        ({"origin": "null"}, "--cors-origin", "null"),
        ({"origin": "app://obsidian.md"}, "--cors-origin", "app://obsidian.md"),
        ({"origin": "chrome-extension://abcdefgh"}, "--cors-origin", "chrome-extension://abcdefgh"),
        ({"origin": "vscode-webview://1a2b"}, "--cors-origin", "vscode-webview://1a2b"),
        ({"origin": "file://"}, "--cors-origin", "file://"),
    ],
)
def test_a_refusal_names_what_would_allow_it(headers: dict[str, str], flag: str, value: str) -> None:
    """Flag, value and variable; and started as it says, the bridge lets the same caller in."""
    refused = infer(make_app(FakeFleet("ok"), BridgeSettings()), ASK, **headers)
    name = flag.removeprefix("--").replace("-", "_")
    allowed = with_one(name, value)

    assert refused.status == 403
    assert f"{flag} {value} (ZMQRT_{name.upper()}={value})" in refused.json["detail"]
    assert infer(make_app(FakeFleet("ok"), allowed), ASK, **headers).status == 200


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1", "/v1/responses", "/v1/messages", "/v1/conversations", "/api/chat"]
)
def test_a_refusal_has_the_shape_of_its_path(path: str) -> None:
    """Who is refused reads the reason where its API has it."""
    for settings, headers, status in ((BridgeSettings(), {"origin": "null"}, 403), (KEYED, {}, 401)):
        reply = asyncio.run(call(make_app(FakeFleet(), settings), "POST", path, headers=headers))
        assert reply.status == status
        assert reply.json["error"]["message"] == reply.json.get("detail", reply.json["error"]["message"])
        assert ("detail" in reply.json) is (path in ("/v1", "/v1/conversations", "/api/chat"))
        assert (reply.json.get("type") == "error") is (path == "/v1/messages")


@pytest.mark.parametrize(
    ("allowed", "host", "is_let_in"),
    [
        ("Bridge", "bridge:8000", True),
        ("Bridge", "bridge.:8000", True),
        ("*.example.org", "a.b.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "evilexample.org", False),
        ("bridge:8000", "bridge:8000", True),
        ("bridge:8000", "bridge:9000", False),
        ("bridge:80", "bridge", True),
        ("bridge:*", "bridge:9000", True),
        ("*", "anything.example:1", True),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("bridge", "user@bridge", False),
        ("bridge", "bridge bridge", False),
    ],
)
def test_an_allowed_name_may_be_a_pattern(allowed: str, host: str, *, is_let_in: bool) -> None:
    """With a port, of a domain, in any spelling."""
    app = make_app(FakeFleet("ok"), BridgeSettings(allow_host=(allowed,)))

    assert (infer(app, ASK, host=host).status == 200) is is_let_in


@pytest.mark.parametrize(
    ("setting", "value", "right"),
    [
        ("allow_host", "http://bridge:8000", "bridge:8000"),
        ("allow_host", "https://*.example.org/", r"\*.example.org"),
        ("allow_host", "bridge/v1", "write bridge"),
        ("allow_host", "*example.org", r"write \*.example.org"),
        ("allow_host", "api.*", r"write \*.api"),
        ("allow_host", "bridge:99999", "1 to 65535"),
        ("allow_host", "bridge:http", "NAME:PORT"),
        ("allow_host", "two words", "NAME"),
        ("allow_host", "user@bridge", "NAME"),
        ("allow_host", "", "NAME"),
        ("cors_origin", "app.example", "https://app.example"),
        ("cors_origin", "localhost:3000", "http://localhost:3000"),
        ("cors_origin", "https://app.example/chat", "write https://app.example"),
        ("cors_origin", "https://", "https://NAME"),
        ("cors_origin", "https://app.*", r"https://|\*.app"),
        ("cors_origin", "https://a b", "NAME"),
        ("cors_origin", "NULL", "scheme"),
    ],
)
def test_a_value_that_can_never_match_is_refused_at_the_start(setting: str, value: str, right: str) -> None:
    """With what would be right."""
    with pytest.raises(ValueError, match=right):
        with_one(setting, value)


@pytest.mark.parametrize(
    "settings", [BridgeSettings(insecure=True, host="0.0.0.0"), BridgeSettings(cors_origin=("*",))]
)
def test_where_everybody_may_ask_names_say_nothing(settings: BridgeSettings) -> None:
    """`--insecure` is for networks where everybody may do everything, and every page may is no less."""
    for headers in ({"host": "gpu-box.lan:8000"}, {"origin": "https://app.example"}, {"origin": "null"}):
        assert infer(make_app(FakeFleet("ok"), settings), ASK, **headers).status == 200


def test_the_name_that_the_bridge_was_given_is_its_own() -> None:
    """Who starts it there means that name; its page too."""
    app = make_app(FakeFleet("ok"), BridgeSettings(host="GPU-Box.lan"))

    assert infer(app, ASK, host="gpu-box.lan:8000").status == 200
    assert infer(app, ASK, host="gpu-box.lan:8000", origin="http://gpu-box.lan:8000").status == 200
    assert infer(app, ASK, host="127.0.0.1:8000", origin="http://gpu-box.lan:3000").status == 200
    assert infer(app, ASK, host="other.lan:8000").status == 403


@pytest.mark.parametrize("value", ["null", "app://obsidian.md", "vscode-webview://*"])
def test_an_app_may_be_allowed_as_a_host_is(value: str) -> None:
    """It needs no headers of CORS, only to be let in."""
    app = make_app(FakeFleet("ok"), BridgeSettings(allow_host=(value,)))
    reply = infer(app, ASK, origin=value.replace("*", "1a2b"))

    assert reply.status == 200
    assert "access-control-allow-origin" not in reply.headers


def test_an_answer_that_is_given_again_has_the_ids_that_it_had() -> None:
    """An Idempotency-Key names a request; who names it by X-Request-Id as well is echoed."""
    fleet = FakeFleet("ok")
    app = make_app(fleet, BridgeSettings())
    first, second = (infer(app, ASK, idempotency_key="k1") for _ in range(2))
    other = infer(app, ASK, idempotency_key="k2")
    named = infer(app, ASK, idempotency_key="k1", x_request_id="mine")

    assert first.body == second.body
    assert first.headers["x-request-id"] == second.headers["x-request-id"] == fleet.asked[0][2]["rid"].hex()
    assert other.json["request_id"] != first.json["request_id"]
    assert named.json["request_id"] == "mine"
    assert fleet.asked[3][2]["rid"] == fleet.asked[0][2]["rid"]


def test_an_answer_given_again_is_as_old_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's `created` says when it was made; of a bounded number of requests."""
    monkeypatch.setattr(in_flight, "_MOST_BEGUN", 3)
    clock = itertools.count()
    monkeypatch.setattr(time, "time", lambda: next(clock))
    app = make_app(FakeFleet("ok"), BridgeSettings())
    body = b'{"model": "m", "prompt": "Hi"}'

    def created(**headers: str) -> int:
        reply = asyncio.run(call(app, "POST", "/v1/completions", body=body, headers=headers))
        return int(reply.json["created"])

    first = created(**{"idempotency-key": "k"})
    assert created(**{"idempotency-key": "k"}) == first
    assert created() > first
    for other in "abc":
        created(**{"idempotency-key": other})
    assert created(**{"idempotency-key": "k"}) > first
