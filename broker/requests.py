"""A request inside the broker: its record, its states, and who reads its answer.

    QUEUED     waits for a node; it may have been there before, then it stands at the front
    LEASED     handed to a node under a lease; nothing of this attempt has come back
    STREAMING  units of it have been delivered (or, for a unary request, put into its journal)
    ENDED      its one terminal message is made; it is in no table any more

A lease is the right of one node to answer one request. Each dispatch makes a fresh one, and taking it away is all that
is needed to make a late answer harmless.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final

import msgspec

from ..protocol import messages as m

if TYPE_CHECKING:
    from .history import Try
    from .journal import Journal
    from .nodes import Node, Offer
    from .services import Service
    from .sessions import Session, User


class RequestState(enum.IntEnum):
    """Where a request is; integers because the table is looked up for each message."""

    QUEUED = 0
    LEASED = 1
    STREAMING = 2
    ENDED = 3


class RequestEvent(enum.IntEnum):
    """What can happen to it."""

    DISPATCHED = 0
    UNITS = 1
    LEASE_LOST = 2
    ENDED = 3


LOOKS: Final = 4
"""How often within its time a patient request is looked at, and its subscribers are told whether it has moved."""
QUEUED: Final = RequestState.QUEUED
DISPATCHED: Final = RequestEvent.DISPATCHED
UNITS: Final = RequestEvent.UNITS
OVER: Final = RequestEvent.ENDED
"""Names of their own for the members that each message needs: looking one up in its class costs 80 ns."""

TRANSITIONS: Final[dict[RequestState, dict[RequestEvent, RequestState]]] = {
    RequestState.QUEUED: {
        RequestEvent.DISPATCHED: RequestState.LEASED,
        RequestEvent.ENDED: RequestState.ENDED,
    },
    RequestState.LEASED: {
        RequestEvent.UNITS: RequestState.STREAMING,
        RequestEvent.LEASE_LOST: RequestState.QUEUED,
        RequestEvent.ENDED: RequestState.ENDED,
    },
    RequestState.STREAMING: {
        RequestEvent.UNITS: RequestState.STREAMING,
        RequestEvent.LEASE_LOST: RequestState.QUEUED,
        RequestEvent.ENDED: RequestState.ENDED,
    },
    RequestState.ENDED: {},
}
"""An event that has no entry cannot happen: the KeyError is a bug of ours, never of a peer."""


class Request(msgspec.Struct, eq=False):
    """One accepted request, from admission to its end.

    Attributes:
        ask: What the client sent; its body is kept until the end.
        party: Whose turn it takes in the queue: its connection, or somebody for whom that asks.
        is_patient: Its time is time without progress (streams, and who says so); else it is the whole time.
        ttl_s: That time.
        deadline: When that is over; moves on with each progress of a patient one.
        announced_deadline: The deadline that its subscribers know of.
        ends_at: The end of its whole time, if it has one beside.
        held_bytes: What it adds to the broker's total: bodies, journal, overhead.
        attempts: Dispatches since the last new unit.
        crashes: Engines and nodes that died before they had made a unit of it, since the last new unit.
        next_n: Units delivered so far.
        revision: Of the weights that made those units; it may go on only there.
        hopeless_at: Until then it waits for a node with those weights, if there is none at all.
        last_node: Who had its last lease.
        was_moved: Whether it was taken from a node that answered nothing: once is enough.
        doubt_at: When to ask whether the node that has it answers at all.
        first_at, first_n: When the first units of this attempt came, and how many.
        from_unit: What had been delivered before this attempt.
        report: What the node says about this attempt: device, batch, its own times.
        past: Attempts that were lost.
        queued_behind: How many waited before it when it came; -1: none, it was dispatched at once.
        begun_elsewhere: Units its client brought along.
    """

    ask: m.Request
    user: User
    service: Service
    party: Hashable
    ext: m.Ext
    ttl_s: float
    deadline: float
    admitted_at: float
    held_bytes: int
    subscribers: list[Subscriber]
    is_patient: bool = False
    announced_deadline: float = 0.0
    ends_at: float = math.inf
    state: RequestState = QUEUED
    offer: Offer | None = None
    lease: int = 0
    dispatched_at: float = 0.0
    attempts: int = 0
    crashes: int = 0
    next_n: int = 0
    journal: Journal | None = None
    revision: str | None = None
    hopeless_at: float = math.inf
    last_node: Node | None = None
    was_moved: bool = False
    doubt_at: float = math.inf
    first_at: float | None = None
    first_n: int = 0
    from_unit: int = 0
    report: m.Ext | None = None
    past: list[Try] | None = None
    queued_behind: int = -1
    queued_why: str = ""
    begun_elsewhere: int = 0
    slot: int = 0

    @property
    def due_at(self) -> float:
        """When its time is up."""
        return min(self.deadline, self.ends_at)

    @property
    def size(self) -> int:
        """How much it asks for before its node can say anything: what is read, and made for a whole answer."""
        return len(self.ask.body) + (0 if self.is_stream else self.ask.cost)

    def move_on(self, moved_at: float) -> None:
        """Count its time from a progress on, if it is the time without one."""
        if self.is_patient:
            self.deadline = max(self.deadline, moved_at + self.ttl_s)

    @property
    def is_stream(self) -> bool:
        """Whether its subscriber sees units as they come."""
        return bool(self.ask.flags & m.STREAM)

    @property
    def is_idempotent(self) -> bool:
        """Whether it may run again after a node was lost with it."""
        return bool(self.ask.flags & m.IDEMPOTENT)

    @property
    def is_resumable(self) -> bool:
        """Whether another node can go on from the units delivered."""
        return bool(self.ask.flags & m.RESUMABLE)


class Subscriber(msgspec.Struct, eq=False):
    """One session that waits for the answer of a request, and how far it has read.

    Attributes:
        request: None once it has ended, or if the answer is replayed from the cache.
        journal: Where a subscriber that lags finds its chunks.
        cursor: Number of the next chunk to send; only while it lags.
        ending: The terminal message, once it is made and could not be sent at once.
        was_acknowledged: Whether anything was sent to it (any message implies ACCEPTED).
        knows_revision: Whether it was told which weights answer (so that it can say so to another broker).
        held_bytes: What it keeps alive beyond the end of its request.
    """

    session: Session
    rid: bytes
    since: float
    request: Request | None
    journal: Journal | None = None
    cursor: int = 0
    is_lagging: bool = False
    ending: m.Final | m.Error | None = None
    was_acknowledged: bool = False
    knows_revision: bool = False
    held_bytes: int = 0
