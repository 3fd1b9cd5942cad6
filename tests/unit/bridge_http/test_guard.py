"""Who may ask."""

import asyncio

import pytest

from support.asgi import call, infer
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.protocol.errors import ConfigurationError

KEYED = BridgeSettings(api_keys=("acme:s3cret", "globex:other"))
ASK = {"prompt": "Hi"}


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer s3cret"}, {"authorization": "bearer other"}, {"x_api_key": "s3cret"}],
)
def test_a_listed_key_is_let_in(headers: dict[str, str]) -> None:
    """In either header."""
    assert infer(make_app(FakeFleet("ok"), KEYED), ASK, **headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}, {"x_api_key": "acme:s3cret"}],
)
def test_everybody_else_is_asked_for_a_key(headers: dict[str, str]) -> None:
    """401 with the challenge, and nothing reaches the fleet."""
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


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "192.0.2.7:8000", "LocalHost"])
def test_a_host_that_cannot_be_made_to_point_here_is_answered(host: str) -> None:
    """Localhost and plain addresses."""
    assert infer(make_app(FakeFleet("ok"), BridgeSettings()), ASK, host=host).status == 200


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


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:3000"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://[::1]:3000"},
        {"origin": "http://192.0.2.7:3000", "host": "192.0.2.7:8000"},
    ],
)
def test_a_page_of_this_machine_may_ask(headers: dict[str, str]) -> None:
    """One under development, or one that stands where the bridge stands."""
    assert infer(make_app(FakeFleet("ok"), BridgeSettings()), ASK, **headers).status == 200


def test_a_name_may_be_allowed() -> None:
    """In a network of containers the bridge has a name."""
    app = make_app(FakeFleet("ok"), BridgeSettings(allow_host=("Bridge",)))

    assert infer(app, ASK, host="bridge:8000").status == 200


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


@pytest.mark.parametrize("keys", [("nokey",), ("a:",), (":b",), ("a:k", "b:k")])
def test_keys_that_say_nothing_are_refused(keys: tuple[str, ...]) -> None:
    """Without repeating them: they are secret."""
    with pytest.raises(ValueError, match="api_keys") as caught:
        BridgeSettings(api_keys=keys)

    assert "nokey" not in str(caught.value)
