"""What a broker tells about itself and its fleet: the body of STATUS in the schema "snapshot".

Pure records; the broker fills them (`broker/status.py`), the command line, the monitor and the bridge read them.
All times are seconds, all counters are since the broker started.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from .messages import TaskName

SCHEMA: Final = "snapshot"
SCHEMA_VERSION: Final = 1
LATER: Final = "later"
"""Schema of a STATUS without a body: its client asks too often, and asks again in `retry_after_ms` (in ext)."""

Health = Literal["active", "suspect", "evicted", "lost", "draining"]


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One device as its node last told."""

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

    @property
    def prefix_hit_percent(self) -> int | None:
        """How much of all prompts was found in the pool and not computed; None before the first one."""
        total = self.prompt_tokens + self.reused_tokens
        return 100 * self.reused_tokens // total if total else None


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node. `in_flight` is the broker's own exact count, `load` = in_flight / capacity."""

    node_id: str
    worker_uuid: str
    health: Health
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


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service over the whole fleet. `nodes` counts those that could serve it now."""

    service: str
    task: TaskName
    model: str
    revision: str
    context: int
    nodes: int
    capacity: int
    queued: int
    running: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A broker's whole state in one glance. `ready` = at least one service could be served now."""

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


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Snapshot)


def encode(snapshot: Snapshot) -> bytes:
    """Pack the body of a STATUS."""
    return _encoder.encode(snapshot)


def decode(body: bytes) -> Snapshot:
    """Unpack it. Raises msgspec.DecodeError."""
    return _decoder.decode(body)
