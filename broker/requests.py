"""Requests, who waits for them, and over which connections.

    QUEUED     waits for a node; it may have been there before, then it stands at the front
    LEASED     handed to a node under a lease; nothing of this attempt has come back
    STREAMING  units of it have been delivered (or, for a unary request, put into its journal)
    ENDED      its one terminal message is made; it is in no table any more

A lease is the right of one node to answer one request. Each dispatch makes a fresh one, and taking it away is all that
is needed to make a late answer harmless.

A session is one connection of a client. A user is the principal that its key maps to; ids that clients choose are
looked up under the user and never alone, so that equal ids of two users cannot meet. A tenant is whose share of the
nodes a request takes: a user, or for whom a bridge asks, at whichever bridge. A subscriber is one session that waits
for one request: a request has several when its client came back, or when clients share an idempotency key.

The fields of a request change here, by methods that keep them consistent; who calls them, and when, is decided
elsewhere.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from ..protocol import messages as m
from ..protocol.capabilities import NOTHING
from ..protocol.request_trace import Attempt
from .journal import Journal
from .nodes import Demand, Node, Offer
from .predictor import Forecast
from .rate_limits import TokenBucket
from .result_cache import CachedResult
from .service_times import Workload
from .services import Service


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


PLACE_KEY: Final = "place"
"""In ext: whoever asks hears where it stands."""
LOOKS: Final = 4
"""How often within its time a patient request is looked at, and its subscribers are told whether it has moved."""
FIRST_DOUBT: Final = 0.25
"""Share of its time after which a request is asked for whose node has not said a word."""
QUEUED: Final = RequestState.QUEUED
LEASED: Final = RequestState.LEASED
_DISPATCHED: Final = RequestEvent.DISPATCHED
_UNITS: Final = RequestEvent.UNITS
_ENDED: Final = RequestEvent.ENDED
# Names of their own for the members that each message needs: looking one up in its class costs 80 ns.
_MOST_ATTEMPTS: Final = 20
"""Lost attempts that are remembered: the first and the newest tell most."""
_BYTES_PER_TOKEN: Final = 4
_ANSWER_TOKENS: Final = 256
"""Of an answer without a bound: a guess, until its end tells."""
_SMALL_BYTES: Final = 512
"""Bodies that an ended request may keep: to take them out costs more than they do."""

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


class User(msgspec.Struct, eq=False):
    """One principal and all that it has here, whatever connection it came by."""

    name: str
    requests: dict[bytes, Request] = {}
    results: dict[bytes, CachedResult] = {}


@dataclass(slots=True, eq=False)
class Session:
    """One connection of a client.

    Attributes:
        is_bridge: Whether it may ask for tenants of others.
        is_open: Whether anything can be sent to it; a lost one stays a while so that its client can come back.
        window_bytes: How much may be sent and not yet consumed.
        send_until: How far `sent_bytes` may go before the window is shut; one message may overshoot it.
        lagging: Subscribers that wait for the window, in turn.
        shut_at: Since when the window has kept them waiting.
    """

    peer: bytes
    user: User
    client_uuid: bytes
    name: str
    window_bytes: int
    heard_at: float
    control: TokenBucket
    queries: TokenBucket
    deferrals: TokenBucket
    subscribers: dict[bytes, Subscriber] = field(default_factory=dict[bytes, Any])
    is_bridge: bool = False
    is_open: bool = True
    send_until: int = 0
    sent_bytes: int = 0
    consumed_bytes: int = 0
    lagging: OrderedDict[Subscriber, None] = field(default_factory=OrderedDict[Any, None])
    shut_at: float | None = None
    slot: int = 0

    def consume(self, bytes_consumed: int) -> bool:
        """Learn how much was read; more than was sent is not believed. False if that is no news."""
        consumed = min(bytes_consumed, self.sent_bytes)
        if consumed <= self.consumed_bytes:
            return False
        self.consumed_bytes = consumed
        self.send_until = consumed + self.window_bytes
        return True

    def shut(self) -> None:
        """Note that nothing can be sent any more."""
        self.is_open = False
        self.send_until = -1


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
        model: Service and revision of an answer that is replayed from the cache.
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
    model: tuple[str, str] | None = None


class TraceNotes(msgspec.Struct, eq=False):
    """What only whoever asks to have a request explained wants to know; most requests have none.

    Attributes:
        queued_behind: How many waited before it when it came; None: it was dispatched at once.
        begun_elsewhere: Units its client brought along.
        lost: Attempts that were lost.
    """

    queued_behind: int | None = None
    queued_why: str = ""
    begun_elsewhere: int = 0
    lost: list[Attempt] = []


@dataclass(slots=True, eq=False)
class Request:
    """One accepted request, from admission to its end.

    Attributes:
        ask: What the client sent; its body is kept until the end.
        party: Whose turn it takes in the queue: its connection, or somebody for whom that asks. A text is the word of a
            bridge: TENANT, or TENANT/USER.
        is_patient: Its time is time without progress (streams, and who says so); else it is the whole time.
        ttl_s: That time.
        deadline: When that is over; moves on with each progress of a patient one.
        announced_deadline: The deadline that its subscribers know of.
        ends_at: The end of its whole time, if it has one beside.
        needs: What its node has to be able to do.
        held_bytes: What it adds to the broker's total: bodies, journal, overhead. Written by MemoryBudget alone.
        is_waiting: Whether it stands in the queue of its service. Written by ServiceQueue alone, as the next one.
        is_parked: Whether it waits there for another node than those that are free.
        charged: What its turn there has cost its tenant.
        place: How many its party had there, with it. Written by Backlog alone.
        forecast: What was expected when it began to wait, until it is started.
        node: Who has its lease …
        last_node: … or had the last one.
        attempts: Dispatches since the last new unit.
        crashes: Engines and nodes that died before they had made a unit of it, since the last new unit.
        next_n: Units delivered so far.
        revision: Of the weights that made those units; it may go on only there.
        hopeless_at: Of a parked one: when to look whether there is still a node that it may go to.
        was_moved: Whether it was taken from a node that answered nothing: once is enough.
        doubt_at: When to ask whether the node that has it answers at all.
        first_at, first_n: When the first units of this attempt came, and how many.
        from_unit: What had been delivered before this attempt.
        report: What the node says about this attempt: device, batch, its own times.
        trace: What happened to it before this attempt, if anything did.
    """

    ask: m.Request
    user: User
    service: Service[Request]
    party: Hashable
    ext: m.Ext
    ttl_s: float
    deadline: float
    admitted_at: float
    subscribers: list[Subscriber]
    is_patient: bool = False
    announced_deadline: float = 0.0
    ends_at: float = math.inf
    needs: frozenset[str] = NOTHING
    held_bytes: int = 0
    state: RequestState = QUEUED
    is_waiting: bool = False
    is_parked: bool = False
    charged: int = 0
    place: int = 0
    forecast: Forecast | None = None
    offer: Offer | None = None
    node: Node | None = None
    last_node: Node | None = None
    lease: int = 0
    dispatched_at: float = 0.0
    attempts: int = 0
    crashes: int = 0
    next_n: int = 0
    journal: Journal | None = None
    revision: str | None = None
    hopeless_at: float = math.inf
    was_moved: bool = False
    doubt_at: float = math.inf
    first_at: float | None = None
    first_n: int = 0
    from_unit: int = 0
    report: m.Ext | None = None
    trace: TraceNotes | None = None
    slot: int = 0

    # --- what it is ------------------------------------------------------------------------------------------------

    @property
    def due_at(self) -> float:
        """When its time is up."""
        return min(self.deadline, self.ends_at)

    @property
    def size(self) -> int:
        """How much it asks for before its node can say anything: what is read, and made for a whole answer."""
        ask = self.ask
        return len(ask.body) + (0 if ask.flags & m.STREAM else ask.cost)

    @property
    def priority(self) -> int:
        """Of which class it is."""
        return self.ask.prio

    @property
    def work(self) -> Workload:
        """How much it asks for, in tokens."""
        return work_of(self.ask)

    @property
    def tokens(self) -> int:
        """How many tokens it is thought to take, read and made."""
        return int(self.work.tokens) + 1

    @property
    def tokens_so_far(self) -> int:
        """How many it has taken if it ends now."""
        return len(self.ask.body) // _BYTES_PER_TOKEN + self.next_n if self.last_node or self.node else 0

    @property
    def tenant(self) -> Hashable:
        """Whose share of the nodes it takes."""
        return tenant_of(self.party, self.user)

    @property
    def hears_place(self) -> bool:
        """Whether its client asked to hear where it stands while it waits."""
        return self.ext.get(PLACE_KEY) is True

    @property
    def demand(self) -> Demand:
        """Which nodes it may go to."""
        return Demand(self.revision, self.needs)

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

    @property
    def was_lost(self) -> bool:
        """Whether an attempt of it was lost."""
        return self.trace is not None and bool(self.trace.lost)

    # --- what happens to it, in the order it happens ---------------------------------------------------------------

    def resume_from(self, journal: Journal, revision: str | None) -> None:
        """Begin after units that are there already."""
        self.journal, self.revision = journal, revision
        self.next_n = journal.next_n
        trace = self._trace()
        trace.begun_elsewhere = journal.next_n

    def note_queued(self, behind: int, why: str) -> None:
        """Remember why it was not dispatched at once."""
        trace = self._trace()
        if trace.queued_behind is None:
            trace.queued_behind, trace.queued_why = behind, why

    def expect(self, forecast: Forecast | None) -> None:
        """Note what is expected of its waiting; None: it is over."""
        self.forecast = forecast

    def start_attempt(self, offer: Offer, lease: int, now: float) -> None:
        """Hand it to a node. The first time ends its waiting; later, the last progress of its service counts."""
        self.state = TRANSITIONS[self.state][_DISPATCHED]
        self.offer, self.node, self.lease = offer, offer.node, lease
        if self.is_patient:
            moved_at = now if self.last_node is None else self.service.moved_at
            self.deadline = max(self.deadline, moved_at + self.ttl_s)
        self.dispatched_at = now
        self.from_unit = self.next_n
        self.attempts += 1
        self.doubt_at = now + (self.deadline - now) * FIRST_DOUBT

    def move_on(self, moved_at: float) -> None:
        """Count its time from a progress on, if it is the time without one."""
        if self.is_patient:
            self.deadline = max(self.deadline, moved_at + self.ttl_s)

    def begin_answer(self, n: int, report: m.Ext, now: float) -> None:
        """Note the first units of this attempt."""
        self.first_at, self.first_n, self.report = now, n, report

    def take_report(self, report: m.Ext) -> None:
        """Note what its node says about this attempt."""
        self.report = report

    def deliver(self, seq: int, n: int, now: float) -> None:
        """Note units: whoever makes some has earned its attempts anew."""
        self.state = TRANSITIONS[self.state][_UNITS]
        self.next_n = seq + n
        self.attempts = self.crashes = 0
        if self.is_patient:
            self.deadline = now + self.ttl_s
            if self.ask.flags & m.STREAM:
                self.announced_deadline = self.deadline  # its subscribers see the units
        if self.revision is None and self.offer is not None:
            self.revision = self.offer.spec.revision

    def keep_journal(self, journal: Journal | None) -> None:
        """Begin to keep its units, or (None) give that up: it would begin anew."""
        self.journal = journal

    def end_lease(self) -> None:
        """Take it from its node."""
        self.last_node, self.offer, self.node, self.lease = self.node, None, None, 0

    def lose_attempt(self, attempt: Attempt | None, crashes: int = 0) -> None:
        """Wait again; None: it never left this process, or the node had no slot for it, and no attempt counts."""
        self.state = TRANSITIONS[self.state][RequestEvent.LEASE_LOST]
        if attempt is None:
            self.attempts -= 1
            return
        self.crashes += crashes
        self.first_at = self.report = None
        lost = self._trace().lost
        lost.append(attempt)
        if len(lost) > _MOST_ATTEMPTS:
            del lost[1]

    def begin_anew(self) -> None:
        """Forget the units of a unary request: its client has seen none of them."""
        self.journal = self.revision = None
        self.next_n = 0

    def doubt_again(self, now: float) -> None:
        """Ask later whether its node answers."""
        self.doubt_at = now + (self.deadline - now) / 4

    def announce_deadline(self) -> bool:
        """Note that its subscribers are told of its progress; False if they know."""
        if self.deadline <= self.announced_deadline:
            return False
        self.announced_deadline = self.deadline
        return True

    def finish(self, ending: m.Final | m.Error) -> None:
        """End it."""
        self.state = TRANSITIONS[self.state][_ENDED]
        if type(ending) is m.Final:
            self.next_n = ending.total_n

    def slim(self) -> None:
        """Let go of all that is large or lives on, so that an ended request can be remembered."""
        if len(self.ask.body) + len(self.ask.resume) > _SMALL_BYTES:
            self.ask = msgspec.structs.replace(self.ask, body=b"", resume=b"")
        self.party = self.journal = self.last_node = None

    def _trace(self) -> TraceNotes:
        if self.trace is None:
            self.trace = TraceNotes()
        return self.trace


def work_of(ask: m.Request) -> Workload:
    """Return how much a client asks for."""
    made = ask.cost or (_ANSWER_TOKENS if ask.flags & m.RESUMABLE else 0)  # nothing but text is resumable
    return Workload(1, len(ask.body) // _BYTES_PER_TOKEN, made)


def tenant_of(party: Hashable, user: User) -> Hashable:
    """Return whose share a party takes: what a bridge says, else its principal's; without keys its own."""
    if type(party) is str:
        return party.partition("/")[0]
    return user if user.name else party
