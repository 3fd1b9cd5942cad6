"""The state of a broker and its fleet at one moment: the body of STATUS in the schema "snapshot".

Pure records; the broker fills them (`broker/status.py`), the command line, the monitor and the bridge read them.
All times are seconds, all counters are since the broker started.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from . import messages as m
from .histogram import Histogram
from .messages import TaskName
from .sanitize import printable

SCHEMA: Final = "snapshot"
SCHEMA_VERSION: Final = 2
LATER: Final = "later"
"""Schema of a STATUS without a body: its client asks too often, and asks again in `retry_after_ms` (in ext)."""

TOO_LARGE: Final = "too_large"
"""Schema of a STATUS without a body: the answer does not fit a frame; `text` in ext says what to ask instead."""

MAX_EVENTS: Final = 200
"""Events in a snapshot; older ones are in the broker's log."""
MAX_REQUESTS: Final = 20
"""Slowest requests in a snapshot: what fits on a screen."""

NodeHealth = Literal["active", "suspect", "evicted", "lost", "draining"]
EventLevel = Literal["info", "warning", "error"]
EventKind = Literal[
    "joined",
    "same_name",
    "ready",
    "returned",
    "recovered",
    "draining",
    "left",
    "suspect",
    "lost",
    "evicted",
    "failed",
    "restarted",
    "fallback",
    "resumed",
    "rejected",
    "request_failed",
    "muted",
    "key_refused",
    "key_ended",
]
RequestPhase = Literal["queued", "dispatched", "streaming"]


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One device, as of its node's last heartbeat."""

    id: str
    kind: str
    name: str
    memory_bytes: int
    phase: str
    percent: int
    elapsed_s: float
    capacity: int
    running: int
    waiting: int
    kv_percent: int
    loop_age_s: float
    steps: int
    tokens: int
    largest_batch: int
    restarts: int
    prompt_tokens: int = 0
    reused_tokens: int = 0
    memory_used_bytes: int | None = None
    busy_percent: int | None = None
    celsius: int | None = None
    tokens_after_cancel: int = 0
    cancel_latency: Histogram = msgspec.field(default_factory=Histogram)
    fallback: str = ""
    """What its engine has to do without, and why; empty where nothing failed."""

    @property
    def is_on_fallback(self) -> bool:
        """Whether its engine does without something."""
        return bool(self.fallback)

    @property
    def prefix_hit_percent(self) -> int | None:
        """How much of all prompts was found in the pool and not computed; None before the first one."""
        total = self.prompt_tokens + self.reused_tokens
        return 100 * self.reused_tokens // total if total else None


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node. `in_flight` is the broker's own exact count, `load` = in_flight / capacity."""

    node_id: str
    worker_uuid: str
    health: NodeHealth
    phase: str
    percent: int
    elapsed_s: float
    heartbeat_age_s: float
    capacity: int
    in_flight: int
    load: float
    completed: int
    failed: int
    services: list[str]
    devices: list[DeviceStatus]
    capabilities: list[str] = []
    """What it can do beyond the tasks of its services (capabilities.py), once it is ready."""

    @property
    def is_up(self) -> bool:
        """Whether it is active and has loaded."""
        return self.health == "active" and self.phase == "ready"


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service over the whole fleet. `nodes` counts those that could serve it now.

    Attributes:
        queue_time: From admission to the first dispatch, of what was answered.
        first_token: From admission to the first unit, of what is told unit by unit.
        token_time: For each further unit, the mean of one answer.
        duration: From admission to the result.
        finished: Results by finish reason; embeddings have "".
        wait_s: In how long all that waits now will have been started; None while nothing waits or nothing is known.
        capabilities: What the nodes that could serve it now can do beyond its task, and how many of them.
        is_listed: Whether it stands in lists of models, and is a choice for requests that name none: it lives or is due
            back, or nothing of its task does.
    """

    service: str
    task: TaskName
    model: str
    revision: str
    context: int
    nodes: int
    capacity: int
    queued: int
    running: int
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: dict[str, int] = {}
    queue_time: Histogram = msgspec.field(default_factory=Histogram)
    first_token: Histogram = msgspec.field(default_factory=Histogram)
    token_time: Histogram = msgspec.field(default_factory=Histogram)
    duration: Histogram = msgspec.field(default_factory=Histogram)
    is_listed: bool = True
    capabilities: dict[str, int] = {}
    wait_s: float | None = None

    @property
    def can(self) -> str:
        """What it can do beyond its task, as a list of words; where not all of its nodes can, how many do."""
        return ", ".join(
            name if count >= self.nodes else f"{name} ({count} of {self.nodes})"
            for name, count in self.capabilities.items()
        )


class FleetEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that an operator may want to know. Equal ones within a second are one, with a `count`.

    `at_s` is on the clock of the broker's uptime; `rid` and `request_id` name one request that it is about.
    """

    id: int
    at_s: float
    level: EventLevel
    kind: str
    """An `EventKind`, or one that a newer broker knows."""
    subject: str
    text: str
    count: int = 1
    rid: str = ""
    request_id: str = ""


class RequestStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One live request; its story is told by `explain`. `losses`: attempts that were lost with their node."""

    rid: str
    request_id: str
    service: str
    phase: RequestPhase
    age_s: float
    node: str
    units: int
    losses: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A broker's whole state in one glance. `ready` = at least one service could be served now.

    Attributes:
        unix_s: The broker's own clock; 0 = not known.
        tallies: Counters by reason or stage: failures, redispatches, cancellations.
        requests: The oldest live ones, for admins; others see none, nor events about requests.
    """

    broker_id: str
    broker_epoch: int
    uptime_s: float
    ready: bool
    draining: bool
    clients: int
    queued: int
    running: int
    nodes: list[NodeStatus]
    services: list[ServiceStatus]
    counters: dict[str, int]
    unix_s: float = 0.0
    tallies: dict[str, dict[str, int]] = {}
    requests: list[RequestStatus] = []
    events: list[FleetEvent] = []


def for_everybody(whole: Snapshot) -> Snapshot:
    """Return a snapshot without what is about requests of somebody: their names, and the words of their failures."""
    events = [
        msgspec.structs.replace(event, rid="", request_id="")
        for event in whole.events
        if event.kind not in ("rejected", "request_failed")
    ]
    return msgspec.structs.replace(whole, requests=[], events=events)


def without_details(whole: Snapshot) -> Snapshot:
    """Return a snapshot of a fleet that is too large to be told whole: nodes without devices."""
    nodes = [msgspec.structs.replace(node, devices=[], services=node.services[:1]) for node in whole.nodes]
    return msgspec.structs.replace(whole, nodes=nodes)


def device_status(load: m.DeviceLoad, info: m.DeviceInfo) -> DeviceStatus:
    """Put together what a node told about a device when it came, and what it tells in heartbeats."""
    cancels = Histogram(counts=load.cancel_counts, total_s=load.cancel_us / 1e6) if load.cancel_counts else Histogram()
    return DeviceStatus(
        id=printable(load.id),
        kind=printable(info.kind),
        name=printable(info.name),
        memory_bytes=info.memory_bytes,
        elapsed_s=load.elapsed_ms / 1000,
        loop_age_s=load.loop_age_ms / 1000,
        cancel_latency=cancels,
        fallback=printable(load.fallback),
        **{name: getattr(load, name) for name in _AS_TOLD},
    )


_AS_TOLD: Final = sorted({*m.DeviceLoad.__struct_fields__} & {*DeviceStatus.__struct_fields__} - {"id", "fallback"})
encode: Final[Callable[[Snapshot], bytes]] = msgspec.msgpack.Encoder().encode
decode: Final[Callable[[bytes], Snapshot]] = msgspec.msgpack.Decoder(Snapshot).decode
"""The body of a STATUS. `decode` raises msgspec.DecodeError."""
