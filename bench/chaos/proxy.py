"""A TCP proxy that fails on demand, to put between two peers.

It knows connections and bytes, never what they mean. Each proxy is one thread with an event loop of its own, asleep
while nothing passes; its controls may be called from any other thread, and have taken effect when they return. Only
what a kernel holds already, up to some megabytes for each connection, is beyond them.

What is held up is not read: TCP's own back-pressure then reaches the sender, and a proxy never holds more than one
piece for each direction of each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final, Literal, Self

from zmqrt.protocol.addresses import check_endpoint
from zmqrt.protocol.errors import ConfigurationError

Way = Literal["to_target", "to_client"]
_PIECE_BYTES: Final = 256 << 10
"""Read at once: with a delay of 20 ms that is still 12 MB/s, and few wake-ups at any speed."""
_ROUNDS_PER_S: Final = 50
"""How often a throttled direction sends: pieces of 20 ms."""
_BACKLOG: Final = 128
"""Connections that the kernel accepts for us while we are frozen."""
_PAUSE_S: Final = 0.1
"""Before the next try to accept when there is no descriptor left."""
_ANSWER_S: Final = 10.0
"""Longest wait for the proxy's thread to obey: it never waits for anything but sockets."""
_ABORT: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
"""SO_LINGER, on and zero: closing then means RST."""


class _Connection:
    """Two sockets, and who carries bytes between them."""

    def __init__(self, client: socket.socket, target: socket.socket) -> None:
        self.ends = (client, target)
        self.carriers: dict[Way, asyncio.Task[None]] = {}
        self.serving = _current_task()
        for end in self.ends:
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def abort(self) -> None:
        """Let both sides see a reset when the sockets are closed."""
        for end in self.ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)

    def close_one_way(self, way: Way) -> None:
        """Tell one side that nothing more will come; what the other still sends is left unread."""
        if way in self.carriers:
            self.carriers[way].cancel()
            with contextlib.suppress(OSError):  # that side has just left by itself
                self.ends[way == "to_target"].shutdown(socket.SHUT_WR)


class FaultProxy:
    """Passes connections to its endpoint on to a target, as badly as its controls say. Works inside a `with` block."""

    def __init__(self, target_endpoint: str) -> None:
        check_endpoint(target_endpoint)
        scheme, _, address = target_endpoint.partition("://")
        if scheme != "tcp":
            raise ConfigurationError(f"{target_endpoint} is not tcp://HOST:PORT: a fault proxy stands before TCP alone")
        host, _, port = address.rpartition(":")
        self._target = (host.strip("[]"), int(port))
        self.endpoint = ""
        """Where to connect instead of to the target; known once the `with` block has begun."""
        self.delay_s = 0.0
        """How long every piece waits; what comes meanwhile waits for the next one, so a byte is late by up to two."""
        self.bytes_per_s = 0
        """Most bytes that each direction of each connection passes in a second; 0 = all that come."""
        self.split_bytes = 0
        """Most bytes handed on at once, each time as a segment of their own; 0 = all that are there."""
        self.passed_bytes: dict[Way, int] = {"to_target": 0, "to_client": 0}
        """Bytes passed so far."""
        self._is_refusing = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._connections: set[_Connection] = set()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)

    @property
    def connections(self) -> int:
        """Connections that are open to both sides now."""
        return sum(bool(connection.carriers) for connection in self._connections)

    # --- controls ----------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Let nothing pass, silently: what is connected stays so, the kernel accepts more, nobody is answered."""
        self._do(self._flows.clear)

    def thaw(self) -> None:
        """Go on where `freeze` stopped: nothing has been lost or has changed its order."""
        self._do(self._flows.set)

    def refuse(self, is_refusing: bool) -> None:  # noqa: FBT001 - `refuse(False)` is clear at the call
        """Reset every new connection at once, or no longer; those that stand are not touched."""
        self._do(lambda: setattr(self, "_is_refusing", is_refusing))

    def close_one_way(self, way: Way) -> None:
        """Send FIN in one direction of every connection; the other direction goes on."""

        def close() -> None:
            for connection in self._connections:
                connection.close_one_way(way)

        self._do(close)

    def reset(self) -> None:
        """Send RST to both sides of every connection."""
        asyncio.run_coroutine_threadsafe(self._reset(), self._loop).result(_ANSWER_S)

    def _do(self, change: Callable[[], object]) -> None:
        async def obey() -> None:
            change()

        asyncio.run_coroutine_threadsafe(obey(), self._loop).result(_ANSWER_S)

    async def _reset(self) -> None:
        ending = [connection.serving for connection in self._connections]
        for connection in self._connections:
            connection.abort()
            connection.serving.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    # --- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Begin to listen, on a free port of this machine."""
        self._where = socket.getaddrinfo(*self._target, type=socket.SOCK_STREAM)[0]
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self._listener.setblocking(False)
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread.start()
        assert self._is_up.wait(_ANSWER_S)
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._main.cancel)
            self._thread.join(_ANSWER_S)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError), self._listener:
            asyncio.run(self._listen())

    async def _listen(self) -> None:
        self._loop, self._main = asyncio.get_running_loop(), _current_task()
        self._is_up.set()
        async with asyncio.TaskGroup() as guests:
            while True:
                await self._flows.wait()
                try:
                    client, _ = await self._loop.sock_accept(self._listener)
                except OSError:
                    await asyncio.sleep(_PAUSE_S)
                    continue
                guests.create_task(self._serve(client))

    # --- what passes -------------------------------------------------------------------------------------------------

    async def _serve(self, client: socket.socket) -> None:
        """Carry one connection; whatever happens to it, the others go on."""
        family, *_, address = self._where
        # No descriptor left for the second socket, or the first is gone already: this connection alone ends.
        with contextlib.suppress(OSError), client, socket.socket(family) as target:
            connection = _Connection(client, target)
            if self._is_refusing:
                connection.abort()
                return
            self._connections.add(connection)
            try:
                await self._flows.wait()
                await self._loop.sock_connect(target, address)
                async with asyncio.TaskGroup() as ways:
                    to_target = self._carry("to_target", client, target)
                    to_client = self._carry("to_client", target, client)
                    connection.carriers["to_target"] = ways.create_task(to_target)
                    connection.carriers["to_client"] = ways.create_task(to_client)
            except* OSError:
                connection.abort()  # one side was reset, or nobody listens there: the other one sees the same
            finally:
                self._connections.discard(connection)

    async def _carry(self, way: Way, source: socket.socket, sink: socket.socket) -> None:
        while True:
            await self._flows.wait()
            data = memoryview(await self._loop.sock_recv(source, _PIECE_BYTES))
            is_over = not data
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            while data:
                await self._flows.wait()
                rate = self.bytes_per_s
                most = min(self.split_bytes or _PIECE_BYTES, 1 + rate // _ROUNDS_PER_S if rate else _PIECE_BYTES)
                piece, data = data[:most], data[most:]
                await self._loop.sock_sendall(sink, piece)
                self.passed_bytes[way] += len(piece)
                await asyncio.sleep(len(piece) / rate if rate else 0)  # at least let the others have their turn
            if is_over:
                await self._flows.wait()
                sink.shutdown(socket.SHUT_WR)
                return


def _current_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None
    return task
