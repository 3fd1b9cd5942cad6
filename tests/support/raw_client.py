"""A client without the library: it sends what it is told, and reads only when it is told."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Self

import zmq

from zmqrt.protocol import codec, tasks, transport
from zmqrt.protocol import messages as m

_PATIENCE_MS = 10_000


class RawClient:
    """One DEALER. Its kernel and libzmq buffers hold what it does not read."""

    def __init__(self, endpoint: str) -> None:
        self._context = transport.make_context()
        self._socket = transport.make_dealer(self._context)
        self._socket.setsockopt(zmq.RCVHWM, 1)
        transport.connect(self._socket, endpoint)
        assert self._socket.poll(_PATIENCE_MS, zmq.POLLOUT), f"nobody at {endpoint}"
        self.say(m.Hello(os.urandom(16), 1, 1, "does not read"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close(0)
        self._context.term()

    def say(self, *messages: m.FromClient) -> None:
        """Send one envelope."""
        for frames in codec.pack(messages):
            transport.send(self._socket, frames)

    def stream(self, prompt: str, service: str) -> bytes:
        """Ask for a stream; return its rid."""
        rid = os.urandom(16)
        body = tasks.encode(tasks.Generate(prompt=prompt))
        self.say(m.Request(rid, service, 60_000, m.STREAM | m.IDEMPOTENT | m.RESUMABLE, 0, 0, 0, body))
        return rid

    def read_to_error(self, within_s: float = 30.0) -> tuple[m.Error, int]:
        """Read on, as a client that has woken up, to the first ERROR; return it and how many bytes came before."""
        give_up_at, size = time.monotonic() + within_s, 0
        while time.monotonic() < give_up_at:
            if not self._socket.poll(100):
                continue
            frames = transport.receive(self._socket)
            for message in codec.TO_CLIENT.unpack(frames).messages if frames is not None else ():
                if isinstance(message, m.Error):
                    return message, size
                if isinstance(message, m.Partial):
                    size += len(message.body)
        raise AssertionError(f"no ERROR within {within_s} s, after {size} bytes")
