"""The hops of zmqrt and nothing else: `python bare_path.py HTTP_PORT STEP_MS` is bridge, broker, agent and engine.

As many processes, joined by the same sockets, and whatever lies there goes through as one. There are no leases,
journals, deadlines, credit, tasks, checks or metrics: what this costs no Python on this path can save, and what zmqrt
costs beyond it is what it does. The processes are a group, to be ended as one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, cast

import msgspec
import uvicorn
import uvloop
import zmq
from processes import free_port
from starlette.types import Receive, Scope, Send

from zmqrt.protocol.transport import descriptor

Piece = tuple[int, str, bool]
"""Which request, its text, and whether that is its end."""
Asked = tuple[int, str, int, bool]
"""Which request, its prompt, how many tokens, and whether each is wanted by itself."""
_LENGTH: Final = 4
_pack: Final = msgspec.msgpack.Encoder().encode
_asked: Final = msgspec.msgpack.Decoder(list[Asked]).decode
_pieces: Final = msgspec.msgpack.Decoder(list[Piece]).decode


def engine(channel: socket.socket, step_s: float) -> None:
    """Run steps; a token of each request in each step."""
    left: dict[int, tuple[int, bool]] = {}
    buffer = bytearray()
    while _hear(channel, buffer, waits=not left):
        for body in _take(buffer):
            left.update({number: (tokens, is_stream) for number, _, tokens, is_stream in _asked(body)})
        if step_s:
            time.sleep(step_s)
        said = [(number, "x", tokens == 1) for number, (tokens, is_stream) in left.items() if is_stream or tokens == 1]
        left = {number: (tokens - 1, is_stream) for number, (tokens, is_stream) in left.items() if tokens > 1}
        if said:
            channel.settimeout(None)
            channel.sendall(_framed(_pack(said)))


def _hear(channel: socket.socket, buffer: bytearray, *, waits: bool) -> bool:
    """Read what is there; say whether the other side still is."""
    channel.settimeout(None if waits else 0)
    try:
        while data := channel.recv(1 << 20):
            buffer += data
            channel.settimeout(0)
    except BlockingIOError:
        return True
    return False


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(_LENGTH, "little") + body


def _take(buffer: bytearray) -> list[bytes]:
    bodies: list[bytes] = []
    while len(buffer) >= _LENGTH:
        end = _LENGTH + int.from_bytes(buffer[:_LENGTH], "little")
        if len(buffer) < end:
            break
        bodies.append(bytes(buffer[_LENGTH:end]))
        del buffer[:end]
    return bodies


class Peer:
    """A DEALER in an event loop: all that is said in a pass goes out as one message."""

    def __init__(self, endpoint: str, received: Callable[[bytes], None]) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = context.socket(zmq.DEALER)
        self._socket.connect(endpoint)
        self._received = received
        self._loop = asyncio.get_running_loop()
        self._said: list[Asked | Piece] = []
        self._loop.add_reader(descriptor(self._socket), self._read)

    def say(self, items: Sequence[Asked | Piece]) -> None:
        """Send with the others of this pass."""
        if not self._said:
            self._loop.call_soon(self.flush)
        self._said += items

    def flush(self) -> None:
        """Send."""
        self._socket.send(_pack(self._said))
        self._said = []
        self._read()  # a send may eat the wake-up

    def _read(self) -> None:
        while True:
            try:
                body = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._received(body)


class EngineChannel(asyncio.Protocol):
    """The agent's end of its channel to the engine."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.peer: Peer
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Pass on what the engine says."""
        self._buffer += data
        for body in _take(self._buffer):
            self.peer.say(_pieces(body))


async def agent(endpoint: str, step_s: float) -> None:
    """Join a broker and an engine."""
    ours, theirs = socket.socketpair()
    child = multiprocessing.get_context("fork").Process(target=engine, args=(theirs, step_s), daemon=True)
    child.start()
    theirs.close()
    transport, channel = await asyncio.get_running_loop().create_connection(EngineChannel, sock=ours)
    channel.peer = Peer(endpoint, lambda body: transport.write(_framed(body)))
    channel.peer.flush()  # an empty message says where it is
    await asyncio.Event().wait()


def broker(clients: str, workers: str) -> None:
    """Pass everything on: one client, one worker."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    front.bind(clients)
    back.bind(workers)
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    client = b""
    worker, _ = back.recv_multipart()
    while True:
        for side, _ in poller.poll():
            peer, body = side.recv_multipart()
            if side is front:  # decoded and encoded again, as a broker has to that looks at what it passes on
                client = peer
                back.send_multipart([worker, _pack(_asked(body))])
            else:
                front.send_multipart([client, _pack(_pieces(body))])


class Bridge:
    """An ASGI app."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._peer: Peer | None = None
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Queue[tuple[str, bool]]] = {}

    def _received(self, body: bytes) -> None:
        for number, text, is_last in _pieces(body):
            self._waiting[number].put_nowait((text, is_last))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            await _whole(send, b"ok")
            return
        asked = json.loads((await receive())["body"])
        is_stream = any(name == b"accept" and b"event-stream" in value for name, value in scope["headers"])
        self._peer = self._peer or Peer(self._endpoint, self._received)
        number = next(self._numbers)
        answers = self._waiting[number] = asyncio.Queue()
        self._peer.say([(number, asked["prompt"], asked["max_tokens"], is_stream)])
        if not is_stream:
            text, _ = await answers.get()
            await _whole(send, json.dumps({"api_version": "v1", "text": text, "request_id": "r"}).encode())
        else:
            await self._stream(send, answers)
        del self._waiting[number]

    async def _stream(self, send: Send, answers: asyncio.Queue[tuple[str, bool]]) -> None:
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        is_over = False
        while not is_over:
            text, is_over = await answers.get()
            while not is_over and not answers.empty():
                more, is_over = answers.get_nowait()
                text += more
            event = f"event: token\ndata: {json.dumps({'text': text})}\n\n" + ("event: done\n\n" if is_over else "")
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _whole(send: Send, body: bytes) -> None:
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Run all of them."""
    port, step_s = int(sys.argv[1]), float(sys.argv[2]) / 1000
    clients, workers = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    start = multiprocessing.get_context("spawn").Process
    children = [
        start(target=broker, args=(clients, workers), daemon=True),
        start(target=_run_agent, args=(workers, step_s)),
    ]
    for child in children:
        child.start()
    uvicorn.run(Bridge(clients), host="127.0.0.1", port=port, log_level="warning", access_log=False, loop="uvloop")


def _run_agent(endpoint: str, step_s: float) -> None:
    uvloop.run(agent(endpoint, step_s))


if __name__ == "__main__":
    main()
