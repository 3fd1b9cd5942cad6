"""A small server that speaks OpenAI's API, as a process of its own: real sockets, to be killed and started again.

Its greedy answer follows from all the text before it, word by word, so whoever goes on at the right place goes on
right, and nobody else does (`answer`). What it does besides follows `POST /control` (a map of `Faults`), and what has
come in is told by `GET /seen`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.request
import zlib
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, cast

MODEL: Final = "toy/words-1"
COMMAND: Final = (sys.executable, "-P", "-m", "support.openai_server")
ENV: Final = {"PYTHONPATH": str(Path(__file__).parents[1])}
STRICT: Final = frozenset(
    {"model", "messages", "prompt", "stream", "stream_options", "max_tokens", "temperature", "top_p", "stop", "seed"}
    | {"presence_penalty", "add_generation_prompt", "continue_final_message", "reasoning_effort", "images"}
    | {"tools", "tool_choice", "parallel_tool_calls", "response_format"}
)
"""Fields that it knows; others are 400, as at a strict server."""

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
)


def template(messages: list[dict[str, Any]], *, is_open: bool = False) -> str:
    """Render a conversation; with `is_open` its last turn is left open."""
    text = "".join(f"<{turn['role']}>{turn['content']}</>" for turn in messages)
    return text.removesuffix("</>") if is_open else text + "<assistant>"


def word_after(text: str) -> str:
    """Return the next word. One in ten has a character that some take for the end of a line."""
    number = zlib.crc32(text.encode()) % 1000
    return f"w{number}{chr(0x2028) if number % 10 == 0 else ''} "


def answer(text: str, words: int) -> str:
    """Return what follows a text."""
    whole = text
    for _ in range(words):
        whole += word_after(whole)
    return whole[len(text) :]


def chat_answer(prompt: str, words: int) -> str:
    """Return what a chat of one user message is answered."""
    return answer(template([{"role": "user", "content": prompt}]), words)


@dataclass
class Faults:
    """What it does wrong from now on."""

    busy: int = 0
    """So many POSTs are 503."""
    break_after: int = 0
    """The next answer breaks off after so many words; 0 = none does."""
    hold_after: int = 0
    """Every answer stops after so many words, until its reader leaves; 0 = none does."""
    status: int = 0
    """Every POST gets this status."""
    unwell: bool = False
    """Whether /health is 503."""
    script: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Every chat is answered with these choices, one an event."""


@dataclass
class Seen:
    """What has come in since it started."""

    posts: int = 0
    finished: int = 0
    left: int = 0
    """Answers whose reader hung up."""
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class _Server:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.given = arguments
        self.faults = Faults()
        self.seen = Seen()

    async def serve(self) -> None:
        """Serve until killed."""
        server = await asyncio.start_server(self.talk, "127.0.0.1", self.given.port)
        async with server:
            await server.serve_forever()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, path, _ = head.split(" ", 2)
                sizes = [line for line in head.lower().split("\r\n") if line.startswith("content-length:")]
                body = await reader.readexactly(int(sizes[0].partition(":")[2])) if sizes else b""
                await self.respond(method, path, body, reader, writer)
                await writer.drain()
        writer.close()

    async def respond(
        self, method: str, path: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one request."""
        known: dict[str, tuple[int, dict[str, Any]]] = {
            "GET /health": (503 if self.faults.unwell else 200, {}),
            "GET /v1/models": (200, {"data": [self.model(name) for name in self.given.models.split(",")]}),
            "GET /seen": (200, asdict(self.seen)),
        }
        if f"{method} {path}" in known:
            self.plain(writer, *known[f"{method} {path}"])
        elif path == "/control":
            self.faults = Faults(**json.loads(body))
            self.plain(writer, 200, {})
        elif path == "/apply-template" and self.given.owner == "llamacpp":
            self.plain(writer, 200, {"prompt": template(json.loads(body)["messages"])})
        elif path == "/v1/chat/completions" or (path == "/v1/completions" and not self.given.chats_only):
            await self.complete(json.loads(body), reader, writer)
        else:
            self.plain(writer, 404, {"detail": "Not Found"})

    def model(self, name: str) -> dict[str, Any]:
        """Describe a model."""
        row: dict[str, Any] = {"id": name, "owned_by": self.given.owner}
        return row | ({"max_model_len": self.given.context} if self.given.context else {})

    def plain(self, writer: asyncio.StreamWriter, status: int, body: object) -> None:
        """Answer with JSON."""
        data = json.dumps(body).encode()
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)

    async def complete(self, body: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a generation, or refuse it."""
        if not isinstance(body, dict):
            self.plain(writer, 422, {"detail": "an object is meant"})
            return
        fields = cast("dict[str, Any]", body)
        self.seen.posts += 1
        self.seen.bodies = [*self.seen.bodies[-9:], fields]
        unknown = sorted(fields.keys() - STRICT)
        if unknown:
            self.plain(writer, 400, {"error": {"message": f"unexpected fields: {unknown}", "code": None}})
        elif self.faults.status:
            self.plain(writer, self.faults.status, {"error": {"message": "told to"}})
        elif self.faults.script and "messages" in fields:
            self.follow_script(writer)
        elif self.faults.busy:
            self.faults.busy -= 1
            self.plain(writer, 503, {"error": "all places are taken"})
        else:
            await self.stream(fields, reader, writer)

    def follow_script(self, writer: asyncio.StreamWriter) -> None:
        """Send what it was told to say."""
        writer.write(_HEAD)
        for choice in self.faults.script:
            self.event(writer, choice)
        details = {"reasoning_tokens": 2}
        usage = {"prompt_tokens": 3, "completion_tokens": len(self.faults.script), "completion_tokens_details": details}
        self.chunk(writer, {"choices": [], "usage": usage})
        writer.write(b"0\r\n\r\n")

    async def stream(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send words as they are made; the reader may hang up."""
        chat = "messages" in body
        whole = template(body["messages"], is_open="continue_final_message" in body) if chat else body["prompt"]
        break_after, self.faults.break_after = self.faults.break_after, 0
        writer.write(_HEAD)
        hung_up = asyncio.create_task(reader.read(1))
        prompt_tokens, made = len(whole.split()), 0
        while made < body["max_tokens"]:
            is_held = self.faults.hold_after and made >= self.faults.hold_after
            await asyncio.wait([hung_up], timeout=None if is_held else self.given.step_ms / 1000)
            if hung_up.done() or (break_after and made == break_after):
                self.seen.left += hung_up.done()
                hung_up.cancel()
                writer.transport.abort()
                raise ConnectionError
            word = word_after(whole)
            whole, made = whole + word, made + 1
            self.event(writer, {"delta": {"content": word}} if chat else {"text": word})
        self.event(
            writer, {"delta": {}, "finish_reason": "length"} if chat else {"text": "", "finish_reason": "length"}
        )
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": made}
        self.chunk(writer, {"choices": [], "usage": usage})
        writer.write(b"0\r\n\r\n")
        self.seen.finished += 1
        hung_up.cancel()
        raise ConnectionError  # one answer a connection: what is read to see it end would be lost

    def event(self, writer: asyncio.StreamWriter, choice: dict[str, Any]) -> None:
        """Write an event with one choice."""
        self.chunk(writer, {"choices": [{"index": 0, **choice}]})

    def chunk(self, writer: asyncio.StreamWriter, event: object) -> None:
        """Write an event: characters as they are, not escaped."""
        data = f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))


# --- from a test ------------------------------------------------------------------------------------------------------


class OpenAIServer:
    """The process of a server, seen from a test."""

    def __init__(self, *words: str, port: int = 0) -> None:
        with socket.create_server(("127.0.0.1", port)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._words = words
        self.start()

    def start(self) -> None:
        """Start it, once more if it has been killed, at the same port."""
        command = [*COMMAND, "--port", str(self.port), *self._words]
        from support.stack import eventually  # the server itself needs none of ours

        self._process = subprocess.Popen(command, env={**os.environ, **ENV}, stdin=subprocess.DEVNULL)
        eventually(lambda: self.ask("/health") is not None, what="the server")

    def kill(self) -> None:
        """End it without a word."""
        self._process.kill()
        self._process.wait(10)

    def ask(self, path: str, body: object = None) -> Any:
        """Ask it something; None if it is not there."""
        data = None if body is None else json.dumps(body).encode()
        with contextlib.suppress(OSError), urllib.request.urlopen(self.url + path, data, timeout=10) as answered:
            return json.loads(answered.read())

    def control(self, **faults: Any) -> None:
        """Have it do something wrong; without a word all is well again."""
        self.ask("/control", faults)

    def seen(self) -> Seen:
        """Return what has come in."""
        return Seen(**self.ask("/seen"))


@contextlib.contextmanager
def serving(*words: str) -> Generator[OpenAIServer]:
    """Run a server while in the block."""
    server = OpenAIServer(*words)
    try:
        yield server
    finally:
        server.kill()


def main() -> None:
    """Be the server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", default=MODEL)
    parser.add_argument("--owner", default="")
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--step-ms", type=float, default=1.0)
    parser.add_argument("--chats-only", action="store_true")
    asyncio.run(_Server(parser.parse_args()).serve())


if __name__ == "__main__":
    main()
