"""One session with one broker: HELLO and WELCOME, liveness, acknowledgements, flow control. No socket, no clock.

    OPENING ──(ZMTP handshake)──► HELLO_SENT ──(WELCOME)──► UP ──(GOAWAY)──► LEAVING
    any of them ──(connection gone, silence, no answer to HELLO or PING)──► DEAD

OPENING: the socket connects. UP: takes new requests. LEAVING: finishes those it has. DEAD: its socket is closed, its
requests go on elsewhere. A PING may be under way in UP and LEAVING alike, so it is no state of its own. Only the ids of
requests are known here; their records are in `requests`.
"""

from __future__ import annotations

import enum
from typing import Final

from ..protocol import messages as m
from ..protocol.failure import Failure, of_silence
from ..protocol.timing import Timing
from .timers import INFINITY

Identity = tuple[str, int]
"""Which broker, and since which of its starts: only an equal one remembers a request."""
WELCOME_S: Final = 2.0
"""From connect to WELCOME: enough for any network, and leaves time within 5 s to find out what is wrong."""
_MEANWHILE_S: Final = 1.0
"""A request younger than this when the PING left may still get its ACCEPTED, which brokers delay."""


class ConnectionState(enum.Enum):
    """Where a session is; the module says what each means."""

    OPENING = "opening"
    HELLO_SENT = "hello sent"
    UP = "up"
    LEAVING = "leaving"
    DEAD = "dead"


class BrokerConnection:
    """The record of one session with a broker. `outbox` is emptied by the shell, one envelope a pass."""

    def __init__(self, connection_id: int, endpoint: str, now: float) -> None:
        self.id = connection_id
        self.endpoint = endpoint
        self.state = ConnectionState.OPENING
        self.opened_at = now
        self.up_since = now
        self.outbox: list[m.FromClient] = []
        self.identity: Identity = ("", 0)
        self.greeting: m.Welcome | None = None
        self.timing = Timing()
        self.room = 0
        self.outstanding: dict[bytes, None] = {}
        """Requests without an end yet, in the order they were sent."""
        self.asked: set[int] = set()
        self.unacked: dict[bytes, float] = {}  # in the order they were sent, so the first is the oldest
        self.leave_by = INFINITY
        self.greetings = 0
        self.broke_off = False  # whether the ZMTP handshake was begun and broken off
        self._quiet_since = now
        self._sent_at = now
        self._nonce = 0
        self._ack_ping: tuple[int, float] | None = None
        self._window = 0
        self._bytes_in = 0
        self._window_due = INFINITY  # so many bytes in, and the window is opened again

    # --- session

    def greet(self, hello: m.Hello, now: float) -> None:
        """Open the session; also used when the broker says that it has forgotten it."""
        self.state = ConnectionState.HELLO_SENT
        self.opened_at = now
        self.greetings += 1
        self.outbox.append(hello)

    def welcome(self, welcome: m.Welcome, max_outstanding: int, now: float) -> None:
        """Take over the parameters of the broker."""
        params = welcome.params
        self.state = ConnectionState.UP
        self.up_since = now
        self.greeting = welcome
        self.identity = (welcome.broker_id, welcome.broker_epoch)
        self.room = max(1, min(params.max_outstanding, max_outstanding))
        self.timing = Timing(
            heartbeat_s=max(1, params.heartbeat_ms) / 1000,
            eviction_s=max(1, params.eviction_ms) / 1000,
            request_timeout_s=max(1, params.request_timeout_ms) / 1000,
        )
        self._window = params.window_bytes
        self._bytes_in = 0
        self._window_due = self._window // 4 if self._window else INFINITY

    def take_outstanding(self) -> list[bytes]:
        """Let everything go that is outstanding, and return the requests in the order they were sent."""
        outstanding = list(self.outstanding)
        self.outstanding.clear()
        self.unacked.clear()
        self.asked.clear()
        self._ack_ping = None
        return outstanding

    @property
    def is_open(self) -> bool:
        """Whether messages may be exchanged."""
        return self.state in (ConnectionState.UP, ConnectionState.LEAVING)

    @property
    def has_room(self) -> bool:
        """Whether one more request may be sent. A cancelled one counts no more: a connection keeps the order."""
        return len(self.outstanding) < self.room

    # --- requests

    def send(self, request: m.Request, now: float) -> None:
        """Send a request, for the first time or again."""
        self._expect_answer(now)
        self.outbox.append(request)
        self.outstanding[request.rid] = None
        self.unacked.pop(request.rid, None)
        self.unacked[request.rid] = now

    def ask(self, qid: int, message: m.Query | m.Admin, now: float) -> None:
        """Send a query."""
        self._expect_answer(now)
        self.asked.add(qid)
        self.outbox.append(message)

    def _expect_answer(self, now: float) -> None:
        if not self.outstanding and not self.asked:
            self._quiet_since = now  # silence counts from when an answer is due

    def drop(self, rid: bytes) -> None:
        """Let a request go that ended or leaves this session."""
        self.outstanding.pop(rid, None)
        self.unacked.pop(rid, None)

    def cancel(self, rid: bytes, reason: str) -> None:
        """Give a request up."""
        self.drop(rid)
        self.outbox.append(m.Cancel(rid, reason))

    # --- liveness

    def note_received(self, now: float) -> None:
        """Any message is a sign of life."""
        self._quiet_since = now

    def note_sent(self, now: float) -> None:
        """Restart the interval of our own silence."""
        self._sent_at = now

    def count(self, body_bytes: int) -> None:
        """Count bytes of PARTIAL and FINAL on receipt, and open the window again every quarter of it."""
        self._bytes_in += body_bytes
        if self._bytes_in >= self._window_due:
            self._window_due = self._bytes_in + self._window // 4
            self.outbox.append(m.Window(self._bytes_in))

    def pong(self, pong: m.Pong) -> list[bytes]:
        """Return the requests that the broker never saw: a connection keeps the order, so ACCEPTED would be here."""
        if self._ack_ping is None or pong.nonce < self._ack_ping[0]:
            return []
        before = self._ack_ping[1] - _MEANWHILE_S
        self._ack_ping = None
        lost = [rid for rid, sent_at in self.unacked.items() if sent_at <= before]
        for rid in lost:
            del self.unacked[rid]
        return lost

    def next_deadline(self) -> float:
        """When `check` has something to do."""
        if not self.is_open:
            return INFINITY if self.state is ConnectionState.DEAD else self.opened_at + WELCOME_S
        due = self.leave_by
        if self.outstanding or self.asked:
            due = min(due, self._ping_due(), self._quiet_since + self.timing.eviction_s, self._ack_due())
        return due

    def check(self, now: float) -> Failure | None:
        """Send what is due; return why the session is over, if it is."""
        if not self.is_open:
            return self._check_greeting(now)
        if not self.outstanding and not self.asked:
            return None
        if now >= self._quiet_since + self.timing.eviction_s:
            return Failure(f"{self.endpoint}: silent for {now - self._quiet_since:.1f} s with answers due")
        if now >= self._ack_due():
            if self._ack_ping is not None:
                return Failure(f"{self.endpoint}: accepted nothing and answered no PING")
            self._ack_ping = (self._ping(now), now)
        elif now >= self._ping_due():
            self._ping(now)
        return None

    def _check_greeting(self, now: float) -> Failure | None:
        if self.state is ConnectionState.DEAD or now < self.opened_at + WELCOME_S:
            return None
        if self.state is ConnectionState.OPENING:
            return Failure(f"{self.endpoint}: no ZeroMQ handshake within {WELCOME_S:.0f} s")
        return of_silence(self.endpoint, "client")

    def _ping(self, now: float) -> int:
        self._nonce += 1
        self.outbox.append(m.Ping(self._nonce))
        self._sent_at = now
        return self._nonce

    def _ping_due(self) -> float:
        """Half an interval of our own silence; a slow stream would else look like a client that is gone."""
        return self._sent_at + self.timing.heartbeat_send_s

    def _ack_due(self) -> float:
        if self._ack_ping is not None:
            return self._ack_ping[1] + self.timing.client_ack_s
        for sent_at in self.unacked.values():
            return sent_at + self.timing.client_ack_s
        return INFINITY
