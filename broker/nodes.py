"""Nodes as the broker sees them: their states, their credit, and what they offer.

    ACTIVE    heard of lately; takes work if its credit allows
    SUSPECT   silent for a heartbeat and a bit, or its engine loop stands still: no new work, what runs goes on
    DRAINING  asked to be left alone; finishes what runs
    LOST      its connection is gone; it may come back and claim its leases for about a second
    EVICTED   silent too long: its leases are others' now, and whatever it says is answered DISCONNECT
    REMOVED   forgotten

Credit is a number that only grows within an epoch: how many requests the node may have been given since it registered.
So a message that carries it may be repeated, and a lost one does no harm.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ..protocol import messages as m
from ..protocol.capabilities import NOTHING, abilities_of
from ..protocol.snapshot import DeviceStatus, device_status
from ..protocol.timing import backoff_s
from .rate_limits import TokenBucket

KV_STEPS: Final = 4
UNPROVEN: Final = 256
"""Requests for a node that has answered none yet, whatever it claims: as many as a large GPU runs at once, so that all
streams of a broker that was lost go on at the next one in one round. Each answer makes room for two more."""
_FIRST_SILENCE_S: Final = 5.0
_MOST_SILENCE_S: Final = 60.0


class NodeState(enum.Enum):
    """What a node is good for now."""

    ACTIVE = "active"
    SUSPECT = "suspect"
    DRAINING = "draining"
    LOST = "lost"
    EVICTED = "evicted"
    REMOVED = "removed"


class NodeEvent(enum.Enum):
    """What can happen to it."""

    QUIET = "silent for a heartbeat, or its loop stands still"
    HEARD = "any message, with its loop turning"
    SILENT = "silent for the eviction time"
    FORGOTTEN = "silent for twice the eviction time"
    DISCONNECTED = "its connection is gone"
    GRACE_OVER = "it did not come back in time"
    RETURNED = "READY of the same worker_uuid"
    DRAIN = "DRAINING, or told to drain"
    LEFT = "DISCONNECT, or closed for bad input"


_S, _E = NodeState, NodeEvent
TRANSITIONS: Final[dict[tuple[NodeState, NodeEvent], NodeState]] = {
    (_S.ACTIVE, _E.QUIET): _S.SUSPECT,
    (_S.ACTIVE, _E.SILENT): _S.EVICTED,
    (_S.ACTIVE, _E.DISCONNECTED): _S.LOST,
    (_S.ACTIVE, _E.RETURNED): _S.ACTIVE,
    (_S.ACTIVE, _E.DRAIN): _S.DRAINING,
    (_S.ACTIVE, _E.LEFT): _S.REMOVED,
    (_S.SUSPECT, _E.HEARD): _S.ACTIVE,
    (_S.SUSPECT, _E.SILENT): _S.EVICTED,
    (_S.SUSPECT, _E.DISCONNECTED): _S.LOST,
    (_S.SUSPECT, _E.RETURNED): _S.ACTIVE,
    (_S.SUSPECT, _E.DRAIN): _S.DRAINING,
    (_S.SUSPECT, _E.LEFT): _S.REMOVED,
    (_S.DRAINING, _E.SILENT): _S.EVICTED,
    (_S.DRAINING, _E.DISCONNECTED): _S.LOST,
    (_S.DRAINING, _E.RETURNED): _S.ACTIVE,
    (_S.DRAINING, _E.LEFT): _S.REMOVED,
    (_S.LOST, _E.RETURNED): _S.ACTIVE,
    (_S.LOST, _E.GRACE_OVER): _S.REMOVED,
    (_S.EVICTED, _E.RETURNED): _S.ACTIVE,
    (_S.EVICTED, _E.FORGOTTEN): _S.REMOVED,
    (_S.EVICTED, _E.DISCONNECTED): _S.REMOVED,
    (_S.EVICTED, _E.LEFT): _S.REMOVED,
}
"""The diagram in the documentation is drawn from this table. Any other pair cannot happen."""


class Supply(NamedTuple):
    """What decides which requests an offer may get: its weights, and what its node can do with them."""

    revision: str
    can: frozenset[str]


class Demand(NamedTuple):
    """What decides which offers a request may go to: the weights that have begun it, if any, and what it needs."""

    revision: str | None
    needs: frozenset[str]

    def is_met_by(self, supply: Supply) -> bool:
        """Whether a request of this demand may run there."""
        return self.needs <= supply.can and (self.revision is None or self.revision == supply.revision)


ANYWHERE: Final = Demand(None, NOTHING)


@dataclass(slots=True, eq=False)
class Offer:
    """One service of one node. `level` is its set in the index of the service; -1: it takes nothing now."""

    node: Node
    spec: m.ServiceOffer
    running: int = 0
    level: int = -1
    max_inflight: int = field(init=False)
    supply: Supply = field(init=False)

    def __post_init__(self) -> None:
        """Take apart what its node says of it."""
        self.renew(self.spec)

    def renew(self, spec: m.ServiceOffer) -> None:
        """Take what its node says of it now."""
        self.spec, self.max_inflight = spec, spec.max_inflight
        self.supply = Supply(spec.revision, abilities_of(spec))


@dataclass(slots=True, eq=False)
class Node:
    """One worker node.

    Attributes:
        capacity: Requests it takes at once, as far as its engines are up; at least 1, because load is a share of it.
        dispatched: Requests given since the epoch began.
        limit: How far `dispatched` may go.
        announced_limit: The highest limit it ever announced; a refusal (429) waits for a higher one.
        kv_step: How full its KV memory is, in quarters.
        offers: By the name of the service.
        running: Its leases, in the order they were given.
        fenced: Leases taken from it and cancelled there, so that each is cancelled once.
        device_statuses: Its devices as snapshots tell them; None = to be made anew.
        device_parts: How many devices it counts for in the bound of the fleet.
        most: Requests it may have now: it has to earn its capacity, and loses it by silence.
        answered_at: When a result of it came last.
        worked_at: When its heartbeats last counted more work done.
        silences: How often in a row it was given up on because it answered nothing.
        silent_until: Until then it gets nothing; afterwards one request, until it has answered that.
        is_usable: Whether it counts as healthy for its services: active, and its models are up.
    """

    peer: bytes
    user: str
    ready: m.Ready
    epoch: int
    heard_at: float
    next_beat: float
    beat_every: float
    control: TokenBucket
    state: NodeState = NodeState.ACTIVE
    phase: m.Phase = "starting"
    beat: m.Heartbeat | None = None
    capacity: int = 1
    dispatched: int = 0
    limit: int = 0
    announced_limit: int = 0
    kv_step: int = 0
    is_stalled: bool = False
    is_usable: bool = False
    offers: dict[str, Offer] = field(default_factory=dict[str, Offer])
    running: dict[int, None] = field(default_factory=dict[int, None])
    fenced: dict[int, None] = field(default_factory=dict[int, None])
    completed: int = 0
    failed: int = 0
    lost_at: float = 0.0
    device_statuses: list[DeviceStatus] | None = None
    was_ready: bool = False
    slot: int = 0
    device_parts: int = 0
    most: int = UNPROVEN
    answered_at: float = -math.inf
    worked_at: float = -math.inf
    silences: int = 0
    silent_until: float = -math.inf

    @property
    def node_id(self) -> str:
        """The name its operator gave it."""
        return self.ready.node_id

    def move(self, event: NodeEvent) -> None:
        """Change state as the table says."""
        self.state = TRANSITIONS[self.state, event]

    def take(self, lease: int) -> None:
        """Note that it was given a request."""
        self.running[lease] = None
        self.dispatched += 1

    def come_back(self, peer: bytes, ready: m.Ready, epoch: int) -> None:
        """Begin a new epoch, over another connection perhaps: it has to say anew how it is and what it takes."""
        self.move(NodeEvent.RETURNED)
        self.peer, self.ready, self.epoch = peer, ready, epoch
        self.dispatched = self.limit = self.announced_limit = 0
        self.capacity, self.phase, self.beat = max(1, ready.capacity), "starting", None
        self.is_stalled = False
        self.device_statuses = None
        self.fenced.clear()

    def allow(self, dispatch_limit: int) -> None:
        """Take credit: never less than before, never more than the node said it holds."""
        if dispatch_limit > self.announced_limit:
            self.announced_limit = dispatch_limit
            most = self.dispatched + self.ready.capacity
            self.limit = min(most, dispatch_limit)

    def refuse(self) -> None:
        """Note that it had no slot for what it was given: nothing more until it tells a higher limit."""
        self.limit = min(self.limit, self.dispatched)

    def earn(self) -> None:
        """Note that it has answered something: it may have more at a time."""
        if self.silences:
            self.silences, self.most = 0, UNPROVEN
        elif self.most < self.ready.capacity:
            self.most += 2

    def fall_silent(self, now: float) -> None:
        """Note that it keeps what it is given and answers nothing: nothing more for a while, each time for longer."""
        self.silent_until = now + backoff_s(self.silences, _FIRST_SILENCE_S, _MOST_SILENCE_S)
        self.silences += 1
        self.most = 0

    def probe(self, now: float, *, is_needed: bool = False) -> bool:
        """Give it a new chance, one request, if its silence is over or nobody else is left; say whether that is so."""
        if self.most or (now < self.silent_until and not is_needed):
            return False
        self.most = 1
        return True

    def heartbeat(self) -> m.BrokerHeartbeat:
        """Return a sign of life for the node: it tells which of its own was the last that counts here."""
        return m.BrokerHeartbeat(self.epoch, self.beat.count if self.beat is not None else 0)

    def hear_load(self, beat: m.Heartbeat, longest_loop_s: float, now: float) -> None:
        """Take what a heartbeat tells about the node as a whole."""
        self.is_stalled = beat.loop_age_ms > longest_loop_s * 1000
        if self.beat is not None and _work(beat) > _work(self.beat):
            self.worked_at = now
        self.beat = beat
        self.device_statuses = None
        self.phase = beat.phase
        engines = sum(device.capacity for device in beat.devices)
        self.capacity = max(1, min(self.ready.capacity, engines) if engines else self.ready.capacity)
        if beat.devices:
            kv_percent = sum(device.kv_percent for device in beat.devices) // len(beat.devices)
            self.kv_step = min(kv_percent * KV_STEPS // 100, KV_STEPS - 1)

    def describe_devices(self) -> list[DeviceStatus]:
        """Describe the devices, once for each heartbeat: they are the greater part of a snapshot."""
        if self.device_statuses is None:
            known = {device.id: device for device in self.ready.devices}
            loads = list(self.beat.devices) if self.beat else []
            reported = {load.id for load in loads}
            loads += [m.DeviceLoad(device_id, "starting") for device_id in known if device_id not in reported]
            self.device_statuses = [
                device_status(load, known.get(load.id) or m.DeviceInfo(load.id, "")) for load in loads
            ]
        return self.device_statuses


def _work(beat: m.Heartbeat) -> int:
    return sum(device.steps + device.prompt_tokens + device.tokens for device in beat.devices)
