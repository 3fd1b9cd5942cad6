"""A server without a model and without a framework: `python plain_engine.py PORT [STEP_MS]` counts `0 1 2 …`.

It answers `/infer` and OpenAI's chat completions, whole or as a stream with a number every STEP_MS (20 unless said
otherwise; 0: as fast as each connection takes them, a write for each). What it answers is known in advance, so a stream
that lacks its end is told from a whole one. It stands behind the gateways that we are compared with, and it is as quick
as Python makes it, so that their figures are theirs.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Final, cast

import uvloop

MODEL: Final = "counter"
_FINE: Final = json.dumps({"model_path": MODEL, "served_model_name": MODEL, "is_generation": True}).encode()
_MODELS: Final = json.dumps(
    {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]}
).encode()
_JSON_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return json.dumps({"id": "c", "object": "chat.completion.chunk", "created": 0, "model": MODEL, "choices": [choice]})


def _event(data: str, name: str = "") -> bytes:
    """Write one event as one chunk of the body."""
    event = (f"event: {name}\n" if name else "") + f"data: {data}\n\n"
    return f"{len(event):x}\r\n{event}\r\n".encode()


class Stream:
    """The events of one answer, written once."""

    def __init__(self, tokens: int, *, is_chat: bool) -> None:
        if is_chat:
            self.first = _STREAM_HEAD + _event(_chunk({"role": "assistant", "content": ""}))
            self.tokens = [_event(_chunk({"content": f"{number} "})) for number in range(tokens)]
            self.last = _event(_chunk({}, "stop")) + _event("[DONE]") + b"0\r\n\r\n"
        else:
            self.first = _STREAM_HEAD
            self.tokens = [_event(json.dumps({"text": f"{number} "}), "token") for number in range(tokens)]
            self.last = _event(json.dumps({"text": _text(tokens)}), "done") + b"0\r\n\r\n"


def _text(tokens: int) -> str:
    return "".join(f"{number} " for number in range(tokens))


def _whole(tokens: int, *, is_chat: bool) -> bytes:
    text = _text(tokens)
    if not is_chat:
        return json.dumps({"api_version": "v1", "text": text, "request_id": "r"}).encode()
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    answer = {"id": "c", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice], "usage": usage}
    return json.dumps(answer).encode()


class Engine:
    """Steps: each gives every stream that runs its next token, one write for each."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._running: dict[Connection, int] = {}
        """Tokens that each has."""
        self._streams: dict[tuple[int, bool], Stream] = {}
        self._wholes: dict[tuple[int, bool], bytes] = {}
        self._step_at = 0.0

    def answer(self, connection: Connection, path: str, body: bytes) -> None:
        """Begin an answer, or give a whole one."""
        if not body:
            content = _MODELS if path == "/v1/models" else _FINE
            connection.transport.write(_JSON_HEAD % (len(content), content))
            return
        asked = json.loads(body)
        what = (asked.get("max_tokens") or 16, path == "/v1/chat/completions")
        if not (asked.get("stream") or connection.wants_events):
            content = self._wholes.get(what) or self._wholes.setdefault(what, _whole(what[0], is_chat=what[1]))
            connection.transport.write(_JSON_HEAD % (len(content), content))
            return
        connection.stream = self._streams.get(what) or self._streams.setdefault(what, Stream(what[0], is_chat=what[1]))
        connection.transport.write(connection.stream.first)
        if not self._running:
            self._step_at = asyncio.get_running_loop().time()
            self._plan()
        self._running[connection] = 0

    def leave(self, connection: Connection) -> None:
        """Give up what the connection had asked for."""
        self._running.pop(connection, None)

    def _plan(self) -> None:
        loop = asyncio.get_running_loop()
        self._step_at = max(self._step_at + self._step_s, loop.time())
        if self._step_s:
            loop.call_at(self._step_at, self._step)
        else:
            loop.call_soon(self._step)

    def _step(self) -> None:
        for connection, made in list(self._running.items()):
            if not connection.is_writable:
                continue
            stream = connection.stream
            if made < len(stream.tokens):
                connection.transport.write(stream.tokens[made])
                self._running[connection] = made + 1
            else:
                del self._running[connection]
                connection.transport.write(stream.last)
        if self._running:
            self._plan()


class Connection(asyncio.Protocol):
    """One peer, which asks one thing after the other."""

    transport: asyncio.Transport
    stream: Stream

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = b""
        self.is_writable = True
        self.wants_events = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Give up what it had asked for."""
        self._engine.leave(self)

    def pause_writing(self) -> None:
        """Make it wait."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """Go on."""
        self.is_writable = True

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            _, found, rest = head.partition(b"\r\ncontent-length:")
            size = end + 4 + (int(rest.split(b"\r\n", 1)[0]) if found else 0)
            if b"\r\ntransfer-encoding: chunked" in head:
                if (last := self._buffer.find(b"0\r\n\r\n", end + 4)) < 0:
                    return
                size = last + 5
                lines = self._buffer[end + 4 : last].split(b"\r\n")
                body = b"".join(lines[1::2])
            elif len(self._buffer) < size:
                return
            else:
                body = self._buffer[end + 4 : size]
            path = self._buffer.split(b" ", 2)[1].decode()
            self._buffer = self._buffer[size:]
            self.wants_events = b"accept: text/event-stream" in head
            self._engine.answer(self, path, body)


async def main() -> None:
    """Serve until it is ended."""
    port, step_ms = int(sys.argv[1]), float((sys.argv[2:] or ["20"])[0])
    engine = Engine(step_ms / 1000)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(engine), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
