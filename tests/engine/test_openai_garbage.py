"""The openai engine before a server that keeps to no rule: one request ends, in words and in time, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from support.engine_fleet import spec
from zmqrt.worker.engines.base import AnswerEnd, CannotLoadError, EngineFatalError, RequestFailedError
from zmqrt.worker.engines.openai_api import Dialect
from zmqrt.worker.engines.openai_engine import OpenAIEngine
from zmqrt.worker.engines.openai_server import Asker, OpenAIOptions, ServedModel, read_options, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform == "win32", reason="nodes are Unix only")]
KEY = "sk-of-the-node"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
OPEN = STREAM + b"connection: close\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
WHOLE = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class Garbage:
    """Answers GETs well and POSTs with these bytes; then it stays, or hangs up."""

    def __init__(self, reply: bytes, *, stays: bool = False, probe: bytes | None = None) -> None:
        self._reply = reply
        self._stays = stays
        self._probe = probe
        self.posts = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            is_probe = head.startswith(b"GET")
            self.posts += not is_probe
            well = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            writer.write((well if self._probe is None else self._probe) if is_probe else self._reply)
            await writer.drain()
            if self._stays and (not is_probe or self._probe is not None):
                while await reader.read(1 << 16):  # until it is left
                    pass


def before(
    garbage: Garbage, play: Callable[[OpenAIEngine], Coroutine[Any, Any, None]], *, is_watched: bool = True
) -> None:
    """Run an engine before such a server, looked after as its process would."""

    async def run() -> None:
        server = await asyncio.start_server(garbage.talk, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        options = OpenAIOptions(url=url, key=KEY, probe_s=0.05, stall_s=0.6, silent_s=20.0)
        engine = OpenAIEngine(ServedModel(dialect=Dialect(model="m")), options, f"{url}/models")
        watch = asyncio.create_task(engine.watch()) if is_watched else None
        try:
            await asyncio.wait_for(play(engine), 15)
        finally:
            if watch is not None:
                watch.cancel()
            await engine.close()
            server.close()

    asyncio.run(run())


async def ask(engine: OpenAIEngine) -> list[str | AnswerEnd]:
    """Ask for a completion."""
    task = {"task": "generate", "prompt": "hi", "raw": True, "max_tokens": 5}
    return [piece async for piece in engine.generate(task)]


@pytest.mark.parametrize(
    ("reply", "failure", "words"),
    [
        (b"\x00\xff" * 99 + b"\r\n\r\n", "engine_restarted", "broke off"),
        (b"HTTP/1.1 200 OK\r\n" + b"x-long: " + b"x" * 200_000, "engine_restarted", "broke off"),
        (STREAM + b"content-encoding: gzip\r\nconnection: close\r\n\r\nno gzip", "engine_restarted", "broke off"),
        (OPEN + b"data: " + b"x" * (2 << 20), "", "a line of more than"),
        (OPEN + b'data: {"error":' + b"[" * 100_000 + b"\n\n", "", "none of this API"),
        (OPEN + b'data: {"choices":[{"te', "engine_restarted", "in the middle"),
        (OPEN + b'data: {"error":"bad key ' + KEY.encode() + b'"}\n\n', "", r"bad key \[key\]"),
        (JSON + b'{"error":{"message":"no such model"}}', "", "answered 200: no such model"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://10.0.0.1/\r\ncontent-length: 0\r\n\r\n", "", "answered 302"),
        (
            b'HTTP/1.1 400 Bad\r\nconnection: close\r\n\r\n{"error":"Bearer ' + KEY.encode() + b' is no key"}',
            "bad_request",
            r"Bearer \[key\] is no key",
        ),
    ],
)
def test_garbage_ends_one_request_in_words_without_the_key(reply: bytes, failure: str, words: str) -> None:
    """No redirection is followed, and nothing is read without end."""

    async def play(engine: OpenAIEngine) -> None:
        with pytest.raises(RequestFailedError, match=words) as caught:
            await ask(engine)
        assert caught.value.failure == failure
        assert KEY not in str(caught.value)

    before(Garbage(reply), play)


def test_an_answer_that_is_whole_does_not_wait_for_its_server_to_hang_up() -> None:
    """Only a moment, for usage that may come behind it."""

    async def play(engine: OpenAIEngine) -> None:
        assert (await ask(engine))[0] == "a"

    before(Garbage(OPEN + WHOLE, stays=True), play)


@pytest.mark.parametrize("probe", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_probe_whose_answer_never_ends_is_no_sign_of_life(probe: bytes) -> None:
    """Neither headers without end nor a body; the time of a probe is that of all of it."""

    async def play(engine: OpenAIEngine) -> None:
        with pytest.raises(EngineFatalError, match=r"gone: .* does not answer within 0\.2 s"):
            await engine.watch()

    before(Garbage(b"", stays=True, probe=probe), play, is_watched=False)


def test_a_server_that_sends_us_elsewhere_is_told_of_and_not_followed() -> None:
    """While loading: an operator has to name the address, since the key would go there too."""
    reply = b"HTTP/1.1 307 X\r\nlocation: https://h.example/v1/models\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

    async def run() -> None:
        server = await asyncio.start_server(Garbage(b"", probe=reply).talk, "127.0.0.1", 0)
        options = OpenAIOptions(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", key=KEY)
        asker = Asker(options)
        with pytest.raises(CannotLoadError, match=r"307.*https://h\.example/v1/models"):
            await asyncio.to_thread(wait_for, options, asker.get, str)
        asker.close()
        server.close()

    asyncio.run(run())


@pytest.mark.parametrize("key", ["", "\n", "sk-1\nsk-2", "sk-é", "two words"])
def test_what_cannot_be_a_key_is_said_without_it(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """As a header it would be refused with an error that shows it; the end of a line is no part of it."""
    monkeypatch.setenv("A_KEY", key)
    (tmp_path / "key").write_text(key, encoding="utf-8")
    for options in ({"key_env": "A_KEY"}, {"key_file": str(tmp_path / "key")}):
        with pytest.raises(CannotLoadError, match="no key in one line") as caught:
            read_options(spec(url="http://h", **options))
        assert "sk-" not in str(caught.value)
    monkeypatch.setenv("A_KEY", "sk-1\n")
    assert read_options(spec(url="http://h", key_env="A_KEY")).key == "sk-1"
