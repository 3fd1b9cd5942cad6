"""Everything a broker holds, in one place, and what it has to say. Deciding is the business of the functions over it.

core.py              the door: gives each envelope to one of the next two, and asks everybody when time has passed
client_handler.py    what clients send
worker_handler.py    what workers send
dispatch.py          from the queue to a node, and back after a loss
delivery.py          from the node to every subscriber, as fast as each reads
completion.py        the end of a request

Each field is written in one module (tests/unit/broker/test_ownership.py), and no two modules import each other.
Records that change with each request are dataclasses with slots: a field of a msgspec.Struct takes five times as long
to set. Those that are made and hardly changed are Structs, which are made in half the time.
"""

from __future__ import annotations

import enum
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from ..protocol import messages as m
from ..protocol.errors import TABLE, ErrorKind, clip
from ..protocol.timing import Timing
from .bounds import Bounds, MemoryBudget
from .counters import Counters, LabelledCounters
from .events import EventLog
from .history import History
from .nodes import Node
from .rate_limits import Strikes
from .requests import Request, Session, Subscriber, User
from .result_cache import ResultCache
from .services import Service
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
Ids = Callable[[], int]
"""Gives a fresh integer of at most 63 bits each time."""
_MOST_U32: Final = 2**32 - 1


@dataclass(slots=True, eq=False)
class BrokerState:
    """The tables of one broker."""

    timing: Timing
    bounds: Bounds
    new_id: Ids
    broker_id: str
    broker_epoch: int
    started_at: float
    unix_s: float
    """The time of day at `started_at`; 0 = not known."""
    is_admin: Callable[[str], bool]
    is_bridge: Callable[[str], bool]
    """Whether a principal may ask for others."""
    params: m.Params = field(init=False)
    out: list[Out] = field(default_factory=list[Out])
    """What to send: (side, peer, message)."""
    drain_until: float | None = None

    users: dict[str, User] = field(default_factory=dict[str, User])
    sessions: dict[bytes, Session] = field(default_factory=dict[bytes, Session])
    leases: dict[int, Request] = field(default_factory=dict[int, Request])
    """Requests by the lease under which a node has them."""
    nodes: dict[bytes, Node] = field(default_factory=dict[bytes, Node])
    nodes_by_uuid: dict[bytes, Node] = field(default_factory=dict[bytes, Node])
    nodes_by_name: dict[str, dict[Node, None]] = field(default_factory=dict[str, dict[Node, None]])
    """The same; a name need not be one node's alone, and to look through all at each READY is quadratic in a fleet."""
    epochs: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Of nodes: a fresh one each time that one registers."""
    parts: int = 0
    """Nodes, their devices and their offers: what MAX_FLEET_PARTS bounds."""
    services: dict[str, Service[Request]] = field(default_factory=dict[str, Service[Request]])
    departed: dict[Service[Request], None] = field(default_factory=dict[Service[Request], None])
    """Those that no node offers any more, the first to go first …"""
    awaited: dict[Service[Request], None] = field(default_factory=dict[Service[Request], None])
    """… and those that only clients have named (availability.py)."""

    touched: dict[Node, None] = field(default_factory=dict[Node, None])
    """Nodes of which something has changed: they are indexed anew before a node is chosen, once for all changes."""
    dirty: dict[Service[Request], None] = field(default_factory=dict[Service[Request], None])
    """Services for which something may be dispatched now."""
    unacknowledged: deque[Subscriber] = field(default_factory=deque[Subscriber])
    """Subscribers in the order they came; ACCEPTED is due to those that were sent nothing yet."""
    request_timers: TimerQueue[Request] = field(default_factory=TimerQueue[Request])
    session_timers: TimerQueue[Session] = field(default_factory=TimerQueue[Session])
    node_timers: TimerQueue[Node] = field(default_factory=TimerQueue[Node])
    service_timers: TimerQueue[Service[Request]] = field(default_factory=TimerQueue[Service[Request]])

    memory: MemoryBudget = field(default_factory=MemoryBudget)
    result_cache: ResultCache = field(init=False)
    client_strikes: Strikes = field(default_factory=Strikes)
    worker_strikes: Strikes = field(default_factory=Strikes)
    counters: Counters = field(default_factory=Counters)
    labelled: LabelledCounters = field(default_factory=LabelledCounters)
    events: EventLog = field(init=False)
    history: History = field(init=False)

    def __post_init__(self) -> None:
        """Make what depends on the settings."""
        self.params = _params(self.timing, self.bounds)
        self.result_cache = ResultCache(self.timing.dedupe_s, self.bounds.result_cache_bytes)
        self.events = EventLog(self.started_at)
        self.history = History(self.broker_id)

    @property
    def is_draining(self) -> bool:
        """Whether new work is refused."""
        return self.drain_until is not None

    def held_bytes(self) -> int:
        """Return what MAX_HELD_BYTES bounds."""
        return self.memory.held_bytes + self.result_cache.size_bytes

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
