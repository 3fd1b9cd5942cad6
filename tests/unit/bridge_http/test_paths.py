"""Paths as clients write them: with slashes too many, without /v1, of other servers' APIs."""

import asyncio
import contextlib

import pytest

from support.asgi import Exchange, call, exchange
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.paths import OPENAI, OWN

CHAT = b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}'
INFER = b'{"prompt": "Hi"}'
SETTINGS = BridgeSettings()
ALLOW = {"GET": "GET, HEAD, OPTIONS", "POST": "POST, OPTIONS"}


def ask(method: str, path: str, body: bytes = b"", settings: BridgeSettings = SETTINGS, **headers: str) -> Exchange:
    """Send a request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(call(make_app(FakeFleet("ok"), settings), method, path, body=body, headers=named))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/chat/completions/", CHAT),
        ("POST", "//v1//chat/completions", CHAT),
        ("POST", "/infer/", INFER),
        ("POST", "//infer//", INFER),
        ("GET", "/v1/models/", b""),
        ("GET", "/health/", b""),
        ("GET", "//livez", b""),
        ("GET", "/metrics/", b""),
        ("GET", "/status/", b""),
        ("GET", "/docs/", b""),
        ("GET", "//", b""),
        ("HEAD", "/readyz/", b""),
        ("DELETE", "/infer/x/", b""),
    ],
)
def test_slashes_too_many_change_nothing(method: str, path: str, body: bytes) -> None:
    """No redirect, which behind TLS would name the wrong scheme, and lose the body or the key of some clients."""
    reply = ask(method, path, body)
    usual = path.replace("//", "/").replace("//", "/").rstrip("/") or "/"

    assert reply.status == ask(method, usual, body).status
    assert "location" not in reply.headers


def test_slashes_do_not_lead_around_a_key() -> None:
    """Who guards a path and who answers it see the same one."""
    keyed = BridgeSettings(api_keys=("acme:s3cret",))

    for path in ("//status", "/status/", "/v1//models", "/livez//../status", "/docs/../metrics"):
        assert ask("GET", path, settings=keyed).status == 401
    assert ask("GET", "//livez/", settings=keyed).status == 200


def test_one_request_has_one_name_whatever_its_slashes() -> None:
    """An Idempotency-Key belongs to a path."""
    first = ask("POST", "/infer", INFER, idempotency_key="k")
    second = ask("POST", "//infer/", INFER, idempotency_key="k")

    assert first.json["request_id"] == second.json["request_id"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1", "base URL of the OpenAI API"),
        ("/v1/", "base URL of the OpenAI API"),
        ("/v1/chat/completion", "POST /v1/chat/completions"),
        ("/v1/chat", "/v1/chat/completions"),
        ("/v1/embedding", "POST /v1/embeddings"),
        ("/v1/model", "GET /v1/models"),
        ("/V1/Models", "GET /v1/models"),
        ("/chat/completions", "it asks /v1/chat/completions"),
        ("/models", "it asks /v1/models"),
        ("/embeddings", "it asks /v1/embeddings"),
        ("/classify", "it asks /v1/classify"),
        ("/api/rerank", "it asks /v1/rerank"),
        ("/v1/v1/chat/completions", "it asks /v1/chat/completions"),
        ("/api/v1/chat/completions", "it asks /v1/chat/completions"),
        ("/openai/deployments/x/chat/completions", "it asks /v1/chat/completions"),
        ("/openai/v1/models", "it asks /v1/models"),
        ("/v1beta/models/x:generateContent", "it asks /v1/models"),
        ("/api/chat", "POST /v1/chat/completions"),
        ("/api/generate", "POST /v1/completions"),
        ("/api/tags", "GET /v1/models"),
        ("/api/version", "GET /health"),
        ("/completion", "POST /v1/completions"),
        ("/inference", "POST /infer"),
        ("/healthz", "GET /health"),
        ("/nowhere", "POST /infer, the OpenAI API under /v1"),
    ],
)
def test_an_unknown_path_is_told_the_nearest_in_both_shapes(path: str, words: str) -> None:
    """Whichever API its client speaks, it finds the fields that it shows, and the right base URL."""
    reply = ask("POST", path, CHAT, host="localhost:8123")

    assert reply.status == 404
    assert reply.json["error"]["message"] == reply.json["detail"]
    assert words in reply.json["detail"]
    assert "http://localhost:8123/v1" in reply.json["detail"]
    assert reply.json["error"] == {
        "message": reply.json["detail"],
        "type": "invalid_request_error",
        "param": None,
        "code": "no_such_path",
    }
    assert reply.json["reason"] == "no_such_path"
    assert reply.json["request_id"] == reply.headers["x-request-id"]


def test_the_base_url_is_the_callers() -> None:
    """Its scheme is what connection or trusted proxy say, and no header; a name that is none is not repeated."""
    keyed = BridgeSettings(insecure=True)
    behind = ask("POST", "/chat/completions", settings=keyed, host="api.example", x_forwarded_proto="https")
    odd = ask("POST", "/chat/completions", settings=keyed, host="<b>")

    assert "http://api.example/v1" in behind.json["detail"]
    assert "<b>" not in odd.json["detail"]


def test_a_long_path_is_neither_compared_nor_repeated_whole() -> None:
    """It is somebody else's text."""
    reply = ask("GET", "/v1/" + "x" * 60000)

    assert reply.status == 404
    assert len(reply.body) < 2000


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/conversations", "POST /v1/chat/completions"),
        ("/v1/conversations/", "POST /v1/chat/completions"),
        ("/v1/responses/resp_1/cancel", "POST /v1/responses"),
        ("/v1/messages/batches", "POST /v1/messages"),
        ("/v1/images/generations", "/v1/chat/completions"),
        ("/v1/audio/transcriptions", "/v1/chat/completions"),
        ("/v1/moderations", "/v1/models"),
        ("/v1/files", "/v1/models"),
        ("/v1/score", "POST /v1/rerank"),
    ],
)
def test_what_the_api_has_elsewhere_is_not_taken_for_a_failing_model(method: str, path: str, words: str) -> None:
    """A proxy (litellm) leaves a model alone for seconds after 401, 404, 408, 429 and every 5xx; not after 405."""
    reply = ask(method, path, CHAT)

    assert reply.status == 405
    assert reply.headers["allow"] == "OPTIONS"
    assert words in reply.json["error"]["message"]
    assert "does not serve" in reply.json["detail"]
    assert reply.json["error"]["code"] == reply.json["reason"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        *((path, ALLOW[method]) for path, method in {**OPENAI, **OWN}.items()),
        ("/infer/x", "DELETE, OPTIONS"),
        ("/v1/models/m/n", ALLOW["GET"]),
    ],
)
def test_a_path_says_which_methods_it_takes(path: str, allow: str) -> None:
    """To OPTIONS, without a key, and with 405, in the shape of its path."""
    keyed = BridgeSettings(api_keys=("acme:s3cret",))
    asked = ask("OPTIONS", path, settings=keyed)
    refused = ask("PUT", path)
    error = refused.json.get("error", {})

    assert (asked.status, asked.headers["allow"], asked.body) == (204, allow, b"")
    assert (refused.status, refused.headers["allow"]) == (405, allow)
    is_openai = path in OPENAI or path.startswith("/v1/")
    assert refused.json.keys() == ({"error"} if is_openai else {"detail", "reason", "request_id"})
    assert allow.split(",", maxsplit=1)[0] in (error or refused.json)["message" if error else "detail"]


def test_options_of_the_server_is_answered() -> None:
    """`OPTIONS *` asks about no path."""
    reply = ask("OPTIONS", "*")

    assert reply.status == 204
    assert "POST" in reply.headers["allow"]


def test_options_of_an_unknown_path_is_404() -> None:
    """There is nothing that it could be asked with."""
    assert ask("OPTIONS", "/nowhere").status == 404


@pytest.mark.parametrize("path", ["/status", "/v1/models"])
def test_a_failure_that_nobody_foresaw_has_the_shape_of_its_path(path: str) -> None:
    """Not the framework's plain text; a page of another origin can read it, too."""
    broken = FakeFleet(snapshot=KeyError("oops"))  # type: ignore[arg-type]  # no snapshot at all
    app = make_app(broken, BridgeSettings(cors_origin=("https://app.example",)))

    async def scenario() -> Exchange:
        exchanged = exchange(app, "GET", path, headers={"origin": "https://app.example"}).start()
        with contextlib.suppress(AttributeError):  # goes on to the server, which logs it
            await exchanged.finish()
        return exchanged

    reply = asyncio.run(scenario())
    assert reply.status == 500
    said = reply.json["error"]["code"] if path.startswith("/v1") else reply.json["reason"]
    assert said == "bridge_failed"
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["access-control-allow-origin"] == "https://app.example"
