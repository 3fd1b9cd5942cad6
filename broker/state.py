"""Everything a broker holds, in one place, and what it has to say. Deciding is the business of its users.

core.py      the door: gives each message to one of the three below, and asks them when time has passed
intake.py    what clients send
fleet.py     what workers send, and who of them is well
dispatch.py  from the queue to a node, back after a loss, and to the end
delivery.py  from the node to every subscriber, as fast as each takes it
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from ..protocol import messages as m
from ..protocol.errors import TABLE, ErrorKind, clip
from ..protocol.timing import Timing
from .bounds import Bounds
from .counters import Counters, LabelledCounters
from .events import EventLog
from .history import History
from .nodes import Node
from .rate_limits import Strikes
from .requests import Request, Subscriber
from .result_cache import ResultCache
from .services import Service
from .sessions import Session, User
from .timers import TimerQueue


class Side(enum.Enum):
    """One of the two sockets. A peer's role comes from the socket, never from what it says."""

    CLIENTS = "clients"
    WORKERS = "workers"

    __hash__ = object.__hash__  # that of Enum runs in Python, at each look-up


CLIENTS: Final = Side.CLIENTS
WORKERS: Final = Side.WORKERS
# An enum's member costs 80 ns to look up in Python 3.11, ten times as much as a name of the module: where each message
# passes, the names are used.

Out = tuple[Side, bytes, m.ToClient | m.ToWorker]
_MOST_U32: Final = 2**32 - 1
Ids = Callable[[], int]
"""Gives a fresh integer of at most 63 bits each time."""


class BrokerState:
    """The tables. One owner writes each: see the modules named above."""

    __slots__ = (
        "awaited",
        "bounds",
        "broker_epoch",
        "broker_id",
        "client_strikes",
        "counters",
        "departed",
        "dirty",
        "drain_until",
        "events",
        "held_bytes",
        "history",
        "ids",
        "labelled",
        "node_timers",
        "nodes",
        "nodes_by_uuid",
        "out",
        "params",
        "parts",
        "request_timers",
        "result_cache",
        "service_timers",
        "services",
        "session_timers",
        "sessions",
        "started_at",
        "timing",
        "unacknowledged",
        "unix_s",
        "users",
        "worker_strikes",
    )

    def __init__(
        self, timing: Timing, bounds: Bounds, ids: Ids, *, broker_id: str, broker_epoch: int, now: float, unix_s: float
    ) -> None:
        self.timing = timing
        self.bounds = bounds
        self.ids = ids
        self.broker_id = broker_id
        self.broker_epoch = broker_epoch
        self.started_at = now
        self.unix_s = unix_s
        """The time of day at `started_at`; 0 = not known."""
        self.params = _params(timing, bounds)
        self.out: list[Out] = []
        self.counters = Counters()
        self.labelled = LabelledCounters()
        self.events = EventLog(now)
        self.history = History()
        self.users: dict[str, User] = {}
        self.sessions: dict[bytes, Session] = {}
        self.nodes: dict[bytes, Node] = {}
        self.nodes_by_uuid: dict[bytes, Node] = {}
        self.parts = 0
        """Nodes, their devices and their offers: what MAX_FLEET_PARTS bounds."""
        self.services: dict[str, Service] = {}
        self.departed: dict[Service, None] = {}
        """Those that no node offers any more, the first to go first …"""
        self.awaited: dict[Service, None] = {}
        """… and those that only clients have named (broker/names.py)."""
        self.result_cache = ResultCache(timing.dedupe_s, bounds.result_cache_bytes)
        self.client_strikes = Strikes()
        self.worker_strikes = Strikes()
        self.request_timers: TimerQueue[Request] = TimerQueue()
        self.session_timers: TimerQueue[Session] = TimerQueue()
        self.node_timers: TimerQueue[Node] = TimerQueue()
        self.service_timers: TimerQueue[Service] = TimerQueue()
        self.unacknowledged: deque[Subscriber] = deque()
        """Readers in the order they came; ACCEPTED is due to those that have heard nothing."""
        self.dirty: dict[Service, None] = {}
        """Services for which something may be dispatched now."""
        self.held_bytes = 0
        """Bodies, journals and overhead of live requests; outcomes count for themselves."""
        self.drain_until: float | None = None

    @property
    def is_draining(self) -> bool:
        """Whether new work is refused."""
        return self.drain_until is not None

    def total_held_bytes(self) -> int:
        """Return what MAX_HELD_BYTES bounds."""
        return self.held_bytes + self.result_cache.size_bytes

    def note_failure(self, kind: ErrorKind, text: str, ask: m.Request, now: float) -> None:
        """Count a request that ends in an error, and write it down."""
        reason, failures = kind.value, self.labelled.failures
        failures[reason] = failures.get(reason, 0) + 1  # a node may refuse, too: those begin when they happen
        if kind in (ErrorKind.DEADLINE, ErrorKind.STALLED):
            self.counters.expired += 1
        else:
            self.counters.failed += 1
        self.events.note("request_failed", reason, clip(text), now, ask)

    def tell_client(self, session: Session, message: m.ToClient) -> None:
        """Say something to a client that is still there."""
        if session.is_open:
            self.out.append((CLIENTS, session.peer, message))

    def tell_worker(self, node: Node, message: m.ToWorker) -> None:
        """Say something to a node."""
        self.out.append((WORKERS, node.peer, message))


def error(rid: bytes | None, kind: ErrorKind, text: str, *, retry_after_s: float = 0.0, resume_n: int = 0) -> m.Error:
    """Build the ERROR message of a kind."""
    row = TABLE[kind]
    return m.Error(rid, row.code, kind.value, row.resend, milliseconds(retry_after_s), clip(text), resume_n)


def milliseconds(seconds: float) -> int:
    """Return a time as a field of a message tells it: seven weeks are the most."""
    return int(min(max(seconds, 0.0) * 1000, _MOST_U32))


def _params(timing: Timing, bounds: Bounds) -> m.Params:
    return m.Params(
        heartbeat_ms=milliseconds(timing.heartbeat_s),
        eviction_ms=milliseconds(timing.eviction_s),
        request_timeout_ms=milliseconds(timing.request_timeout_s),
        max_outstanding=min(bounds.outstanding, _MOST_U32),
        window_bytes=bounds.window_bytes,
        brokers=list(bounds.brokers),
    )


def counters_as_dict(counters: Counters) -> dict[str, int]:
    """Return the counters by name."""
    return dict(msgspec.structs.asdict(counters))
