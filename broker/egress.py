"""What is on its way out of a broker: envelopes for each peer, in order, never blocking and never unbounded.

With ROUTER_MANDATORY a full pipe is EAGAIN and a vanished peer EHOSTUNREACH. POLLOUT of a ROUTER means "some peer takes
something", so a peer that did not is tried again by the clock: after 5 ms, then twice as long, up to 50 ms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import zmq

from ..protocol import codec, transport
from ..protocol import messages as m
from .core import SendFailure, Side

FIRST_RETRY_S: Final = 0.005
LAST_RETRY_S: Final = 0.05
MAX_PENDING_BYTES: Final = 16 << 20
"""Waiting for one peer beyond what libzmq holds: twice the window, so only a peer that reads nothing meets it."""

Peer = tuple[Side, bytes]


_Waiting = tuple[codec.Frames, Sequence[m.Message]]


@dataclass
class _Pending:
    envelopes: deque[_Waiting] = field(default_factory=deque[_Waiting])
    size_bytes: int = 0
    retry_s: float = FIRST_RETRY_S
    retry_at: float = 0.0


class Egress:
    """Sends through the two sockets; keeps what they do not take at once."""

    def __init__(self, sockets: dict[Side, zmq.Socket[bytes]]) -> None:
        self._sockets = sockets
        self._pending: dict[Peer, _Pending] = {}
        self.retries = 0

    def send(self, peer: Peer, messages: Sequence[m.Message], now: float) -> SendFailure | None:
        """Send messages in as few envelopes as they need, behind what already waits for that peer."""
        waiting = self._pending.get(peer)
        if waiting is not None:
            return self._wait(waiting, codec.pack(messages), messages)
        envelopes = codec.pack(messages)
        for index, frames in enumerate(envelopes):
            failure = self._try(peer, frames)
            if failure is SendFailure.FULL:
                waiting = self._pending[peer] = _Pending(retry_at=now + FIRST_RETRY_S)
                return self._wait(waiting, envelopes[index:], messages)
            if failure is not None:
                return failure
        return None

    def retry(self, now: float) -> list[tuple[Peer, SendFailure, list[m.Message]]]:
        """Try again what is due; return the peers that cannot be sent to, with all that waited for them."""
        failed: list[tuple[Peer, SendFailure, list[m.Message]]] = []
        for peer, waiting in list(self._pending.items()):
            if waiting.retry_at > now:
                continue
            self.retries += 1
            failure = self._flush(peer, waiting)
            if failure is SendFailure.UNREACHABLE:
                failed.append((peer, failure, self.forget(peer)))
            elif failure is SendFailure.FULL:
                waiting.retry_at = now + waiting.retry_s
                waiting.retry_s = min(2 * waiting.retry_s, LAST_RETRY_S)
            else:
                del self._pending[peer]
        return failed

    def forget(self, peer: Peer) -> list[m.Message]:
        """Drop what waits for a peer, and return it."""
        waiting = self._pending.pop(peer, None)
        return [message for _, messages in waiting.envelopes for message in messages] if waiting is not None else []

    def next_retry(self) -> float:
        """Return when `retry` is due; infinity if nothing waits."""
        return min((one.retry_at for one in self._pending.values()), default=float("inf"))

    def _try(self, peer: Peer, frames: codec.Frames) -> SendFailure | None:
        try:
            transport.send_routed(self._sockets[peer[0]], peer[1], frames)
        except zmq.Again:
            return SendFailure.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return SendFailure.UNREACHABLE
        return None

    def _flush(self, peer: Peer, waiting: _Pending) -> SendFailure | None:
        while waiting.envelopes:
            frames, _ = waiting.envelopes[0]
            failure = self._try(peer, frames)
            if failure is not None:
                return failure
            waiting.envelopes.popleft()
            waiting.size_bytes -= sum(map(len, frames))
            waiting.retry_s = FIRST_RETRY_S
        return None

    def _wait(
        self, waiting: _Pending, envelopes: list[codec.Frames], messages: Sequence[m.Message]
    ) -> SendFailure | None:
        """Queue envelopes; their messages stand with the last one, so that all are given back if it fails."""
        for index, frames in enumerate(envelopes):
            waiting.envelopes.append((frames, messages if index == len(envelopes) - 1 else ()))
            waiting.size_bytes += sum(map(len, frames))
        return SendFailure.FULL if waiting.size_bytes > MAX_PENDING_BYTES else None
