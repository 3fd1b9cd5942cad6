"""A node's session with one broker: is there a connection, is it registered, how much may the broker send. Pure.

DOWN      no socket. A new one is made when the backoff is over; until then nothing can be sent.
DIALING   a socket is connecting; a handshake that does not come in time counts as a loss.
GREETING  READY is sent; the broker's WELCOME brings the epoch that every later message carries.
ACTIVE    registered: dispatches come, results and heartbeats go.
LEFT      the node has sent LEAVE; nothing follows.

Every loss leads to DOWN. The leases of a lost session are held a little longer than the broker's grace, in case the
next WELCOME says that they are still current.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from ..protocol import messages as m
from ..protocol.timing import Backoff
from .jobs import Job

GREETING_S: Final = 5.0
"""Longest wait for a handshake, and for WELCOME: twice a client's, as thousands of nodes may return at once."""


class SessionState(enum.Enum):
    """See the module's first paragraph."""

    DOWN = "down"
    DIALING = "dialing"
    GREETING = "greeting"
    ACTIVE = "active"
    LEFT = "left"


TRANSITIONS: Final = {
    SessionState.DOWN: {SessionState.DIALING, SessionState.LEFT},
    SessionState.DIALING: {SessionState.GREETING, SessionState.DOWN, SessionState.LEFT},
    SessionState.GREETING: {SessionState.ACTIVE, SessionState.DOWN, SessionState.LEFT},
    SessionState.ACTIVE: {SessionState.DOWN, SessionState.LEFT},
    SessionState.LEFT: set[SessionState](),
}
_ACTIVE: Final = SessionState.ACTIVE  # asked for with each message, and a member of an enum is slow to look up


class BrokerSession:
    """State of the session with one broker. The core moves it; this class knows the rules."""

    def __init__(self, broker: int, endpoint: str, backoff: Backoff) -> None:
        self.broker = broker
        self.endpoint = endpoint
        self.backoff = backoff
        self.state = SessionState.DOWN
        self.deadline = 0.0
        """When this state ends by itself: dial again (DOWN), or count as lost (all others)."""
        self.epoch = 0
        self.received = 0
        """Dispatches of this epoch, refused ones included."""
        self.dispatch_limit = 0
        """Dispatches of this epoch that the broker may send, as it knows. Never goes down."""
        self.refused: set[str] = set()
        """Services of dispatches that found no slot: the broker sends no more until it hears of a higher limit."""
        self.heartbeat_s = 0.0
        self.eviction_s = 0.0
        self.heartbeat_at = 0.0
        self.beaten_at = float("-inf")
        self.heartbeat_count = 0
        self.ready_count = 0
        """Number of the first heartbeat of this epoch in which the node was ready; 0 = none yet."""
        self.heard_count = 0
        """Number of the last heartbeat that the broker has taken note of."""
        self.held_until = 0.0
        """While not ACTIVE: until when its leases are kept."""
        self.is_announced = False
        """Whether the broker knows the services as they are now."""
        self.trouble = ""
        """Why there is no session, as it was last logged."""
        self.leases: dict[int, Job] = {}
        """Jobs of this broker, finished ones for a moment as well."""

    @property
    def is_active(self) -> bool:
        """Whether messages can be sent."""
        return self.state is _ACTIVE

    @property
    def knows_ready(self) -> bool:
        """Whether the broker has taken note that the node serves: a request that it gets now finds it."""
        return self.is_active and 0 < self.ready_count <= self.heard_count

    @property
    def is_coming(self) -> bool:
        """Whether the broker is about to know, as far as can be seen: nothing has gone wrong with it yet."""
        return not self.knows_ready and self.state is not SessionState.LEFT and not self.trouble

    def move(self, to: SessionState, deadline: float) -> None:
        """Change state. A move that is not in the table is a fault of the core."""
        assert to in TRANSITIONS[self.state], f"{self.state} -> {to}"
        self.state = to
        self.deadline = deadline

    def welcome(self, message: m.WorkerWelcome, now: float) -> None:
        """Begin a new epoch: counters start anew, and every timer follows the broker's numbers."""
        self.epoch = message.epoch
        self.received = 0
        self.dispatch_limit = 0
        self.refused.clear()
        self.heartbeat_count = self.ready_count = self.heard_count = 0
        self.heartbeat_s = max(message.params.heartbeat_ms, 20) / 2000
        self.eviction_s = max(message.params.eviction_ms, 20) / 1000
        self.backoff.reset()
        self.trouble = ""
        self.move(SessionState.ACTIVE, now + self.eviction_s)
        self.heartbeat_at, self.beaten_at = now, float("-inf")

    def heard(self, now: float) -> None:
        """Any message counts as life."""
        if self.is_active:
            self.deadline = now + self.eviction_s

    def beat(self, now: float, jitter: float, *, is_ready: bool) -> None:
        """Note that a heartbeat goes out; the next one follows half an interval later, give or take the jitter."""
        self.beaten_at = now
        self.heartbeat_at = now + self.heartbeat_s * jitter
        self.heartbeat_count += 1
        self.is_announced = True
        if is_ready and not self.ready_count:
            self.ready_count = self.heartbeat_count

    def grant(self, free: int, has_room: Callable[[str], bool]) -> bool:
        """Raise the limit to what is free now; say whether it rose.

        Several brokers may know of the same slots. One that found them taken waits for a higher limit, and gets it as
        soon as there is room, however far its credit still reaches.
        """
        limit = self.received + max(free, 0)
        if self.refused and any(map(has_room, self.refused)):
            self.refused.clear()
            limit = max(limit, self.dispatch_limit + 1)
        if limit <= self.dispatch_limit:
            return False
        self.dispatch_limit = limit
        return True

    def held(self) -> list[m.Held]:
        """Leases to claim in READY."""
        return [m.Held(lease, job.rid, job.total_n) for lease, job in self.leases.items()]

    def next_deadline(self) -> float:
        """When this session wants to be looked at again."""
        if self.state is SessionState.LEFT:
            return float("inf")
        if self.is_active:
            return min(self.deadline, self.heartbeat_at)
        return min(self.deadline, self.held_until) if self.leases else self.deadline
