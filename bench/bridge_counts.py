"""What one request and one token cost the bridge, counted as core_counts.py counts: from its bytes to their answer.

The connection, the endpoint, the client library and its core are the bridge's own, in asyncio's own loop. Played are
both ends: transports that keep what is written to them, and a broker that says what it is told to say. What the system,
the event loop and ZeroMQ do is not counted.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec
from core_counts import CHUNK, PARAMS, RESULT, SERVICE, Count, counting, idle, requests, tokens
from uvicorn.server import ServerState

from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.connection import HttpConnection, protocol_for
from zmqrt.client.broker_sockets import BrokerSockets
from zmqrt.client.config import ClientConfig
from zmqrt.client.connection import BrokerConnection
from zmqrt.client.core import ClientCore
from zmqrt.client.event_loop_io import EventLoopIo
from zmqrt.client.failover import OpenSocket, SocketAction
from zmqrt.client.loop_client import LoopClient
from zmqrt.client.zmq_socket import ConnectionSocket
from zmqrt.protocol import codec
from zmqrt.protocol import messages as m

_TURNS: Final = 20
"""Of the loop, until everything has happened that follows from something; it takes about six."""
_DEPTH: Final = 16
_ROUNDS: Final = 5
_FIELDS: Final = "host: 127.0.0.1:8000\r\naccept: {accept}\r\ncontent-type: application/json\r\nuser-agent: count\r\n"
_ASK: Final[dict[str, dict[str, object]]] = {
    "/infer": {"prompt": "x" * 100, "max_tokens": 1000},
    "/v1/chat/completions": {"model": SERVICE, "messages": [{"role": "user", "content": "x" * 100}]},
}


class PlayedSession:
    """Stands for the sockets of a session with a broker."""

    def __init__(self, connection: BrokerConnection) -> None:
        self.connection = connection
        self.dealer = self
        self.closed = True
        self.is_blocked = False
        self.heard: list[codec.Frames] = []
        self.said: list[codec.Frames] = []

    def getsockopt(self, _option: int) -> int:
        """Say that nothing lies there that nobody was told of."""
        return 0

    def read(self, core: ClientCore, now: float) -> None:
        """Give the core what the broker was told to say."""
        heard, self.heard = self.heard, []
        for frames in heard:
            core.received(self.connection, codec.TO_CLIENT.unpack(frames).messages, now)

    def flush(self, _core: ClientCore, now: float) -> None:
        """Keep what the core says."""
        messages = self.connection.outbox[:]
        self.connection.outbox.clear()
        self.said += codec.pack(messages)
        self.connection.note_sent(now)


class PlayedSockets(BrokerSockets):
    """Opens no sockets."""

    def _act(self, action: SocketAction, now: float) -> None:
        if isinstance(action, OpenSocket):
            self._connections[action.connection] = cast("ConnectionSocket", PlayedSession(action.connection))
            self._core.connection_ready(action.connection, now)


class PlayedIo(EventLoopIo):
    """The client's shell in an event loop, without ZeroMQ."""

    def _start(self) -> None:
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
        self._sockets = PlayedSockets(self._core, cast("Any", None), None, self, insecure=True)
        self._core.start(time.monotonic())

    def _set_timer(self, now: float) -> None:
        """Have no pass but those that something is said in: how many there are would depend on how long it takes."""

    @property
    def session(self) -> PlayedSession:
        """The one session."""
        assert self._sockets is not None
        (session,) = self._sockets.all
        return cast("PlayedSession", session)

    def hear(self, frames: codec.Frames) -> None:
        """Have a pass with this envelope in it."""
        self.session.heard.append(frames)
        self._dealers.add(cast("ConnectionSocket", self.session))
        self._pass()


class PlayedClient(LoopClient):
    """The bridge's client, without ZeroMQ."""

    io: PlayedIo

    def _make_io(self, config: ClientConfig) -> EventLoopIo:
        self.io = PlayedIo(config)
        return self.io


class Caller(asyncio.Transport):
    """One who asks over a kept connection."""

    def __init__(self, connection: HttpConnection) -> None:
        super().__init__()
        self.said = bytearray()
        self.connection = connection

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Name an address."""
        return ("127.0.0.1", 50_000) if name in ("peername", "sockname") else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Take everything at once."""

    def get_write_buffer_size(self) -> int:
        """Have taken everything."""
        return 0

    def is_closing(self) -> bool:
        """Stay."""
        return False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Keep what is answered."""
        self.said += data


class BridgeTalk:
    """A bridge, those who ask it, and a broker played by hand."""

    def __init__(self, path: str) -> None:
        self.count = Count()
        self.is_counting = False
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._client = PlayedClient("tcp://127.0.0.1:1", name="bridge")
        settings = BridgeSettings()
        config: Any = SimpleNamespace(loaded_app=make_app(self._client, settings), access_log=False)
        self._make: Callable[[], HttpConnection] = partial(
            cast("Any", protocol_for(settings)), config, ServerState(), {}
        )
        self._callers: list[Caller] = []
        self._run([partial(self._client.io.ask, None, _Deaf(), timeout_s=60.0)])
        self._hear([m.Welcome("b", 1, msgspec.structs.replace(PARAMS, heartbeat_ms=3_600_000, eviction_ms=7_200_000))])

    def _run(self, calls: Iterable[Callable[[], object]]) -> None:
        """Have things happen in the loop, and all that follows from them."""
        for call in calls:
            self._loop.call_soon(call)
        with counting(self.count) if self.is_counting else idle():
            for _ in range(_TURNS):
                self._loop.call_soon(self._loop.stop)
                self._loop.run_forever()

    def _hear(self, messages: list[m.Message]) -> None:
        self._run([partial(self._client.io.hear, frames) for frames in codec.pack(messages)])

    def _connect(self) -> None:
        caller = Caller(self._make())
        self._callers.append(caller)
        self._run([partial(caller.connection.connection_made, caller)])

    def ask(self, number: int, *, stream: bool) -> list[bytes]:
        """Send as many requests; return their rids."""
        was_counting, self.is_counting = self.is_counting, False
        while len(self._callers) < number:
            self._connect()
        self.is_counting = was_counting
        session = self._client.io.session
        session.said.clear()
        raw = _request(self._path, stream=stream)
        self._run(partial(caller.connection.data_received, raw) for caller in self._callers[:number])
        messages = [one for frames in session.said for one in codec.FROM_CLIENT.unpack(frames).messages]
        rids = [one.rid for one in messages if isinstance(one, m.Request)]
        assert len(rids) == number
        return rids

    def token(self, asked: list[bytes], seq: int) -> None:
        """Let each stream have its next token, in one envelope."""
        self._hear([m.Partial(rid, seq, 1, CHUNK) for rid in asked])
        for caller in self._callers:
            assert caller.said.count(b"data: ") >= 1
            caller.said.clear()

    def end(self, asked: list[bytes]) -> None:
        """End each request, in one envelope."""
        self._hear([m.Final(rid, 0, {}, RESULT) for rid in asked])
        for caller in self._callers:
            assert caller.said.startswith(b"HTTP/1.1 200 OK\r\n")
            caller.said.clear()

    def close(self) -> None:
        """Have everybody leave."""
        self.is_counting = False
        self._run(partial(caller.connection.connection_lost, None) for caller in self._callers)
        self._client.io.stop()
        self._loop.close()


class _Deaf:
    """Waits for a connection, and does nothing then."""

    def put(self, event: object) -> bool:
        """Take it."""
        return not isinstance(event, Exception)


def _request(path: str, *, stream: bool) -> bytes:
    is_own = path == "/infer"
    body = msgspec.json.encode({**_ASK[path], **({"stream": True} if stream and not is_own else {})})
    fields = _FIELDS.format(accept="text/event-stream" if stream and is_own else "application/json")
    return f"POST {path} HTTP/1.1\r\n{fields}content-length: {len(body)}\r\n\r\n".encode() + body


def measure() -> dict[str, Count]:
    """Count everything: a name for each load, and what a request or a token of it costs."""
    counts: dict[str, Count] = {}
    for path in _ASK:
        for depth in (1, _DEPTH):
            with closing(BridgeTalk(path)) as talk:
                counts[f"bridge, {path}: a request, {depth} at once"] = requests(talk, depth, _ROUNDS)
            with closing(BridgeTalk(path)) as talk:
                counts[f"bridge, {path}: a token, {depth} at once"] = tokens(talk, depth, _ROUNDS)
    return counts


if __name__ == "__main__":
    for load, count in measure().items():
        print(f"{load:<56}{count.bytecodes:>10,.1f} bytecodes{count.c_calls:>8,.1f} C calls")
