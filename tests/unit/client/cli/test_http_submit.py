"""What an answer over HTTP means to a command line."""

import json
import socket
from collections.abc import Iterator

import pytest

from support.web_server import Web, serving
from zmqrt.client.cli.http_submit import SubmitError, post
from zmqrt.protocol.errors import ConfigurationError


@pytest.fixture
def bridge() -> Iterator[Web]:
    """A bridge that ends with the test."""
    with serving() as web:
        yield web


def failure(bridge: Web, status: int, answer: object) -> SubmitError:
    """Post, and return how it failed."""
    bridge.status, bridge.body = status, answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    with pytest.raises(SubmitError) as caught:
        post(bridge.url, {"prompt": "Hi"}, timeout_s=5)
    return caught.value


@pytest.mark.parametrize("key", ["s3cret", "s\u00e9cret", "\u043a\u043b\u044e\u0447"])
def test_a_key_of_any_letters_is_sent(bridge: Web, key: str) -> None:
    """In UTF-8, which a bridge knows; a header of Python's own would be ISO-8859-1, or an error."""
    post(bridge.url, {"prompt": "Hi"}, timeout_s=5, api_key=key)

    assert bridge.requests[0][1]["Authorization"].encode("latin-1") == f"Bearer {key}".encode()


@pytest.mark.parametrize("tail", ["", "/", "/infer"])
def test_the_address_may_be_that_of_the_bridge_or_of_the_path(bridge: Web, tail: str) -> None:
    """As the historic client took it, and as people paste it."""
    assert post(bridge.url + tail, {"prompt": "é"}, timeout_s=5)["text"] == "Hello"

    path, headers, body = bridge.requests[0]
    assert (path, body) == ("/infer", {"prompt": "é"})
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert "Authorization" not in headers


@pytest.mark.parametrize("key", ["s3cret\n", "s3cret\r\nx: y", "s3\0cret", "\x7fs3cret"])
def test_a_key_that_no_header_can_carry_is_refused_before_anything_is_sent(bridge: Web, key: str) -> None:
    """A line break behind it comes from a file; within it, it would be a header of its own."""
    with pytest.raises(ConfigurationError, match="line break") as caught:
        post(bridge.url, {"prompt": "Hi"}, timeout_s=5, api_key=key)

    assert "cret" not in str(caught.value)
    assert bridge.requests == []


@pytest.mark.parametrize(
    ("status", "exit_code"), [(400, 2), (401, 77), (413, 2), (429, 75), (500, 1), (503, 75), (504, 75)]
)
def test_a_refusal_keeps_its_sentence_and_gets_a_code(bridge: Web, status: int, exit_code: int) -> None:
    """The codes are those of the native way."""
    error = failure(bridge, status, {"detail": "because", "request_id": "r"})

    assert str(error) == f"{bridge.url}/infer answered {status}: because"
    assert error.exit_code == exit_code


def test_a_wrong_field_is_named(bridge: Web) -> None:
    """422 has a list."""
    detail = [{"loc": ["body", "max_tokens"], "msg": "expected int >= 1", "type": "out_of_range"}]
    error = failure(bridge, 422, {"detail": detail})

    assert str(error).endswith("answered 422: max_tokens: expected int >= 1")
    assert error.exit_code == 2


@pytest.mark.parametrize("status", [200, 404])
def test_somebody_else_on_that_port_is_recognised(bridge: Web, status: int) -> None:
    """A web page, say."""
    assert "zmqrt bridge" in str(failure(bridge, status, b"<html>"))


def test_nobody_on_that_port_is_69() -> None:
    """With what to start."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # ours, so nobody else's, but it does not listen
        with pytest.raises(SubmitError, match="nobody listens there; start a bridge") as caught:
            post(f"http://127.0.0.1:{taken.getsockname()[1]}", {"prompt": "Hi"}, timeout_s=5)

    assert caught.value.exit_code == 69


def test_an_endpoint_of_zeromq_is_no_http_address() -> None:
    """People mix them up."""
    with pytest.raises(ConfigurationError, match="not an HTTP address"):
        post("tcp://127.0.0.1:7555", {}, timeout_s=5)
