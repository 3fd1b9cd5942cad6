"""The file of keys is read again when it changes, and what has gone counts for streams under way, too."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest
from starlette.types import ASGIApp

from support.asgi import Exchange, call, exchange
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http import key_ring
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.key_ring import KeyRing
from zmqrt.protocol.api_keys import HASH, ApiKey, digest_of


def line(tenant: str, key: str, words: str = "") -> str:
    """Write a line of the file."""
    return f"{tenant}:{HASH}{digest_of(key.encode()).hex()} {words}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a file with two keys."""
    path = tmp_path / "keys"
    write(path, line("acme", "one") + line("globex", "two"))
    return path


def write(path: Path, text: str) -> None:
    """Replace the file, as editors do."""
    new = path.with_suffix(".new")
    new.touch(0o600)
    new.write_text(text)
    new.replace(path)


def look(ring: KeyRing) -> bool:
    """Let it look twice, as it does within half a second."""
    return any([ring.look(), ring.look()])


def key_of(ring: KeyRing, key: str) -> ApiKey:
    """Return a key that is listed."""
    found = ring.find(digest_of(key.encode()))
    assert found is not None
    return found


def test_what_is_edited_counts(path: Path) -> None:
    """A key more, a key less, one revoked, one that has expired."""
    now = [1_000_000.0]
    ring = KeyRing(BridgeSettings(api_keys_file=path), clock=lambda: now[0])
    one, two = key_of(ring, "one"), key_of(ring, "two")
    assert [ring.why_not(one), ring.why_not(two)] == ["", ""]

    write(path, line("acme", "one", "revoked=2026-11-30") + line("new", "three", "expires=1970-01-13"))
    assert look(ring)
    assert not look(ring)

    assert ring.why_not(one) == "this key was revoked (2026-11-30)"
    assert ring.why_not(two) == "this key was taken off the list"
    assert ring.why_not(key_of(ring, "three")) == ""
    now[0] = 12 * 86400.0
    assert ring.why_not(key_of(ring, "three")) == "this key expired at 1970-01-13T00:00:00Z"


@pytest.mark.parametrize("content", ["", "acme\n", line("acme", "one", "rpm=none"), None])
def test_a_broken_file_changes_nothing_and_says_so(
    path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    """One error for each mistake, not one for each look; the next good file counts again."""
    settings = BridgeSettings(api_keys_file=path)
    ring = KeyRing(settings)
    caplog.set_level(logging.INFO)
    if content is None:
        path.unlink()
    else:
        write(path, content)

    assert [look(ring) for _ in range(3)] == [False] * 3
    assert ring.why_not(key_of(ring, "one")) == ""
    assert str(path) in ring.problem
    assert [record.levelname for record in caplog.records] == ["ERROR"]

    write(path, line("acme", "one", "revoked=now"))
    assert look(ring)
    assert ring.problem == ""
    assert ring.why_not(key_of(ring, "one")) != ""


def test_nothing_is_read_that_is_still_being_written(path: Path) -> None:
    """The first look at a change only notes it: half a file would end the streams of the other half."""
    ring = KeyRing(BridgeSettings(api_keys_file=path))
    look(ring)
    write(path, line("acme", "one"))

    assert [ring.look(), ring.look()] == [False, True]


def test_without_a_key_left_nobody_is_let_in(path: Path) -> None:
    """Not even whoever meant this machine: keys are asked for."""
    settings = BridgeSettings(api_keys_file=path)
    write(path, line("acme", "one", "revoked=now") + line("globex", "two", "revoked=now"))
    app = make_app(FakeFleet("ok"), BridgeSettings(api_keys_file=path))

    for key in ("one", "none", ""):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        assert asyncio.run(call(app, "POST", "/infer", body=b'{"prompt": "x"}', headers=headers)).status == 401
    assert KeyRing(settings)


def test_probes_and_metrics_tell_of_a_broken_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its name, for nobody needs a key to ask."""
    monkeypatch.setattr(key_ring, "LOOK_EVERY_S", 0.001)
    app = make_app(FakeFleet("ok"), BridgeSettings(api_keys_file=path))

    async def ask() -> tuple[str, str]:
        await call(app, "GET", "/health")
        write(path, "broken\n")
        detail = ""
        while "older keys" not in detail:
            detail = (await call(app, "GET", "/health")).json["detail"]
        metrics = await call(app, "GET", "/metrics", headers={"x-api-key": "one"})
        return detail, metrics.body.decode()

    detail, metrics = asyncio.run(asyncio.wait_for(ask(), 30))
    assert str(path) not in detail
    assert "zmqrt_http_keys_file_broken 1.0" in metrics


STREAMS = {
    "/infer": (b'{"prompt": "x"}', "event: error", '"reason":"unauthorized"'),
    "/v1/chat/completions": (
        b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "x"}]}',
        '"code":"invalid_api_key"',
        '"type":"authentication_error"',
    ),
    "/v1/completions": (
        b'{"model": "m", "stream": true, "prompt": ["x", "y"]}',
        '"code":"invalid_api_key"',
        '"type":"authentication_error"',
    ),
    "/v1/messages": (
        b'{"model": "m", "stream": true, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}',
        "event: error",
        '"type":"authentication_error"',
    ),
    "/v1/responses": (b'{"model": "m", "stream": true, "input": "x"}', "event: error", "invalid_api_key"),
}


def start(app: ASGIApp, path: str, key: str) -> Exchange:
    """Begin a stream."""
    headers = {"authorization": f"Bearer {key}", "accept": "text/event-stream"}
    return exchange(app, "POST", path, body=STREAMS[path][0], headers=headers).start()


@pytest.mark.parametrize("api", STREAMS)
def test_a_revoked_keys_streams_end_with_the_reason(path: Path, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the shape of each API; those of others go on."""
    monkeypatch.setattr(key_ring, "LOOK_EVERY_S", 0.001)
    fleet = FakeFleet("Hello")
    app = make_app(fleet, BridgeSettings(api_keys_file=path))

    async def talk() -> tuple[str, bool, str]:
        fleet.gate.clear()
        revoked, other = start(app, api, "one"), start(app, api, "two")
        await revoked.until(b"Hello")
        await other.until(b"Hello")
        write(path, line("acme", "one", "revoked=2026-11-30") + line("globex", "two"))
        await revoked.finish()
        was_complete = other.is_complete
        fleet.gate.set()
        await other.finish()
        return revoked.body.decode(), was_complete, other.body.decode()

    told, was_complete, others = asyncio.run(asyncio.wait_for(talk(), 30))
    assert "this key was revoked (2026-11-30)" in told
    assert all(word in told for word in STREAMS[api][1:])
    assert not was_complete
    assert "revoked" not in others


def test_a_whole_answer_of_an_expired_key_is_a_401(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It expires while it waits."""
    monkeypatch.setattr(key_ring, "LOOK_EVERY_S", 0.001)
    fleet = FakeFleet("Hello")
    app = make_app(fleet, BridgeSettings(api_keys_file=path))

    async def talk() -> Exchange:
        fleet.gate.clear()
        asked = exchange(app, "POST", "/infer", body=b'{"prompt": "x"}', headers={"x-api-key": "one"}).start()
        await fleet.was_asked.wait()
        write(path, line("acme", "one", "expires=2020-01-01"))
        return await asked.finish()

    answer = asyncio.run(asyncio.wait_for(talk(), 30))
    assert answer.status == 401
    assert "expired at 2020-01-01" in answer.json["detail"]
    assert fleet.handles[0].was_cancelled


def test_models_of_others_are_not_there(path: Path) -> None:
    """404 as OpenAI says it, 403 on the locked contract; and the list shows those of the key alone."""
    write(path, line("acme", "one", "models=tiny,llama-*") + line("globex", "two", "models=only"))
    fleet = FakeFleet("Hello")
    app = make_app(fleet, BridgeSettings(api_keys_file=path, default_model="big"))

    def ask(path: str, body: bytes, key: str = "one") -> Exchange:
        return asyncio.run(call(app, "POST", path, body=body, headers={"x-api-key": key}))

    chat = b'{"model": "%s", "messages": [{"role": "user", "content": "x"}]}'
    refused = ask("/v1/chat/completions", chat % b"big")
    assert (refused.status, refused.json["error"]["code"], refused.json["error"]["param"]) == (
        404,
        "model_not_found",
        "model",
    )
    assert ask("/infer", b'{"prompt": "x"}').status == 403
    assert ask("/v1/embeddings", b'{"model": "big", "input": "x"}').status == 404
    assert ask("/v1/messages", chat[:-1] % b"big" + b', "max_tokens": 5}').json["error"]["type"] == "not_found_error"
    assert fleet.asked == []

    assert ask("/v1/chat/completions", chat % b"llama-3").status == 200
    assert ask("/v1/rerank", b'{"query": "x", "documents": ["y"]}', "two").status == 200
    assert [options["model"] for _, _, options in fleet.asked] == ["llama-3", "only"]


def test_the_file_is_for_its_owner_alone(path: Path) -> None:
    """Also one that is put there later."""
    ring = KeyRing(BridgeSettings(api_keys_file=path))
    path.chmod(0o644)

    assert not look(ring)
    assert os.name == "nt" or "chmod 600" in ring.problem


def test_the_first_who_asks_is_looked_up_in_the_file_as_it_is(path: Path) -> None:
    """However long ago the bridge began: a key that was revoked since was let in once."""
    app = make_app(FakeFleet("Hello"), BridgeSettings(api_keys_file=path))
    write(path, line("acme", "one", "revoked=2026-11-30") + line("new", "three"))

    async def ask() -> list[int]:
        return [
            (await call(app, "POST", "/infer", body=b'{"prompt": "x"}', headers={"x-api-key": key})).status
            for key in ("one", "three")
        ]

    assert asyncio.run(ask()) == [401, 200]
