"""Every message of ZRT/1 as a typed struct, grouped by who receives it. docs/PROTOCOL.md says what each one means.

Nothing here knows of frames, sockets or time. A struct is checked wherever it is decoded: exact types, ranges and
lengths stand in the annotations, so a malformed header is one exception and needs no hand-written check.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .limits import (
    MAX_BROKERS,
    MAX_BUCKETS,
    MAX_CAPABILITIES,
    MAX_CAPABILITY_CHARS,
    MAX_DEVICES,
    MAX_ENDPOINT_CHARS,
    MAX_EXT_KEY_CHARS,
    MAX_EXT_KEYS,
    MAX_EXT_VALUE_CHARS,
    MAX_HELD,
    MAX_INT,
    MAX_NAME_CHARS,
    MAX_SERVICE_CHARS,
    MAX_SERVICES,
    MAX_TEXT_CHARS,
    MAX_TTL_MS,
)

VERSION = 1
"""Major version of ZRT that this code speaks (the third byte of an envelope)."""

UInt = Annotated[int, Meta(ge=0, le=MAX_INT)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Percent = Annotated[int, Meta(ge=0, le=100)]
Celsius = Annotated[int, Meta(ge=-273, le=1000)]
Code = Annotated[int, Meta(ge=100, le=599)]
Priority = Annotated[int, Meta(ge=-100, le=100)]
TtlMs = Annotated[int, Meta(ge=1, le=MAX_TTL_MS)]
Uuid = Annotated[bytes, Meta(min_length=16, max_length=16)]
Rid = Uuid
ServiceName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:/-]+\Z", min_length=1, max_length=MAX_SERVICE_CHARS)]
AskedService = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:/-]*\Z", max_length=MAX_SERVICE_CHARS)]
Capability = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:/-]+\Z", min_length=1, max_length=MAX_CAPABILITY_CHARS)]
Capabilities = Annotated[list[Capability], Meta(max_length=MAX_CAPABILITIES)]
Name = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
Endpoint = Annotated[str, Meta(max_length=MAX_ENDPOINT_CHARS)]
ExtText = Annotated[str, Meta(max_length=MAX_EXT_VALUE_CHARS)]
ExtInt = Annotated[int, Meta(ge=-MAX_INT, le=MAX_INT)]
ExtKey = Annotated[str, Meta(min_length=1, max_length=MAX_EXT_KEY_CHARS)]
Ext = Annotated[dict[ExtKey, ExtText | ExtInt | bool | None], Meta(max_length=MAX_EXT_KEYS)]
"""Room for minor evolution: small scalars by name, ignored by whoever does not know the name."""
Phase = Literal[
    "starting", "downloading", "converting", "loading", "warming", "ready", "restarting", "draining", "failed"
]
TaskName = Literal["generate", "embed", "rerank", "classify"]

# Flags of REQUEST and DISPATCH. Plain integers: an IntFlag costs 2 us an operation, on every request.
STREAM = 1
IDEMPOTENT = 2
"""On by default; off = never dispatched again once handed to a socket, 502 instead."""
RESUMABLE = 4
RESUME = 8
"""`resume` holds the units delivered so far: a MessagePack array of PARTIAL bodies."""
SEEDED = 32
"""The body names its seed; otherwise the broker derives one from the rid and puts it into ext."""
_ALL_FLAGS = STREAM | IDEMPOTENT | RESUMABLE | RESUME | SEEDED
Flags = Annotated[int, Meta(ge=0, le=_ALL_FLAGS)]


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What all messages share: an array on the wire, `[command, field, …]`, unknown trailing elements ignored."""


class Params(_Message, frozen=True):
    """Numbers a broker tells its peers, so that both ends agree. Times in milliseconds, sizes in bytes."""

    heartbeat_ms: U32
    eviction_ms: U32
    request_timeout_ms: U32
    max_outstanding: U32
    window_bytes: UInt
    brokers: Annotated[list[Endpoint], Meta(max_length=MAX_BROKERS)] = []


# --- client to broker ------------------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, tag=1):
    """Open a session: who speaks, and which major versions it can."""

    client_uuid: Uuid
    min_version: Annotated[int, Meta(ge=0, le=255)]
    max_version: Annotated[int, Meta(ge=0, le=255)]
    name: Name = ""
    window_bytes: UInt = 0
    ext: Ext = {}


class Request(_Message, frozen=True, tag=2):
    """Ask for work. `resume_n` units are already delivered; `cost` is the client's estimate in tokens (0 = unknown).

    An empty `service` is chosen by the broker: the only one that lives for `ext.task`.
    """

    rid: Rid
    service: AskedService
    ttl_ms: TtlMs
    flags: Flags
    prio: Priority
    resume_n: UInt
    cost: U32
    body: bytes
    resume: bytes = b""
    ext: Ext = {}


class Cancel(_Message, frozen=True, tag=3):
    """Give a request up; answered by ERROR 499 if it was alive."""

    rid: Rid
    reason: Text = ""
    ext: Ext = {}


class Ping(_Message, frozen=True, tag=4):
    """Sign of life, and a question for one."""

    nonce: UInt
    ext: Ext = {}


class Bye(_Message, frozen=True, tag=5):
    """Close the session; its requests are cancelled."""

    ext: Ext = {}


class Query(_Message, frozen=True, tag=6):
    """Ask about the broker: `what` is status, services or explain (`args.request`)."""

    qid: UInt
    what: Name
    args: Ext = {}
    ext: Ext = {}


class Window(_Message, frozen=True, tag=7):
    """Bytes of PARTIAL and FINAL bodies consumed since the session began (cumulative)."""

    bytes_consumed: UInt
    ext: Ext = {}


class Admin(_Message, frozen=True, tag=8):
    """Change something: drain, load, unload … Only for principals marked admin."""

    qid: UInt
    verb: Name
    args: Ext = {}
    ext: Ext = {}


# --- broker to client ------------------------------------------------------------------------------------------------


class Welcome(_Message, frozen=True, tag=129):
    """The session is open."""

    broker_id: Name
    broker_epoch: UInt
    params: Params
    ext: Ext = {}


class Accepted(_Message, frozen=True, tag=130):
    """The request is held and will be answered. Sent late, and implied by any other reply."""

    rid: Rid
    ext: Ext = {}


class Partial(_Message, frozen=True, tag=131):
    """Units `seq` .. `seq + n - 1` of a stream."""

    rid: Rid
    seq: UInt
    n: UInt
    body: bytes
    ext: Ext = {}


class Final(_Message, frozen=True, tag=133):
    """The end of a request that was answered; `total_n` units in all. The body is authoritative."""

    rid: Rid
    total_n: UInt
    meta: Ext
    body: bytes
    ext: Ext = {}


class Error(_Message, frozen=True, tag=134):
    """The end of a request that was not answered, or (rid None) a complaint about an envelope."""

    rid: Rid | None
    code: Code
    reason: Name
    retryable: bool
    retry_after_ms: U32
    text: Text
    resume_n: UInt = 0
    ext: Ext = {}


class Pong(_Message, frozen=True, tag=135):
    """Answer to PING."""

    nonce: UInt
    ext: Ext = {}


class Goaway(_Message, frozen=True, tag=136):
    """This broker is leaving: send new work elsewhere; what runs is finished until the deadline."""

    reason: Text
    deadline_ms: U32
    brokers: Annotated[list[Endpoint], Meta(max_length=MAX_BROKERS)] = []
    ext: Ext = {}


class Status(_Message, frozen=True, tag=137):
    """Answer to QUERY and ADMIN. `body` is a MessagePack map in the schema named (snapshot.py)."""

    qid: UInt
    schema: Name
    version: UInt
    body: bytes
    ext: Ext = {}


# --- worker to broker ------------------------------------------------------------------------------------------------


class ServiceOffer(_Message, frozen=True):
    """One service of a node. `revision` = weights, dtype and engine: a stream goes on only on an equal one.

    `capabilities`: what it can do beyond its task; None: it is from before these were told (capabilities.py).
    """

    service: ServiceName
    max_inflight: U32
    task: TaskName
    model: Name = ""
    revision: Name = ""
    context: U32 = 0
    capabilities: Capabilities | None = None


class DeviceInfo(_Message, frozen=True):
    """What a device is; it does not change while the node lives."""

    id: Name
    kind: Name
    name: Name = ""
    memory_bytes: UInt = 0
    ext: Ext = {}


class DeviceLoad(_Message, frozen=True):
    """How one device is doing.

    `steps`, `tokens`, `prompt_tokens`, `reused_tokens`, `restarts` and `tokens_after_cancel` are counters since the
    node started. What its driver tells (memory, how busy it was lately, temperature) is None where it does not.
    `cancel_counts` are those of histogram.py (empty: none yet), for the time from a cancel to the freed slot, and
    `cancel_us` is their sum. `fallback`: what its engine has to do without, and why; empty where nothing failed.
    """

    id: Name
    phase: Phase
    percent: Percent = 0
    elapsed_ms: UInt = 0
    capacity: U32 = 0
    running: U32 = 0
    waiting: U32 = 0
    kv_percent: Percent = 0
    loop_age_ms: UInt = 0
    steps: UInt = 0
    tokens: UInt = 0
    largest_batch: U32 = 0
    restarts: U32 = 0
    ext: Ext = {}
    prompt_tokens: UInt = 0
    reused_tokens: UInt = 0
    memory_used_bytes: UInt | None = None
    busy_percent: Percent | None = None
    celsius: Celsius | None = None
    tokens_after_cancel: UInt = 0
    cancel_counts: Annotated[list[UInt], Meta(max_length=MAX_BUCKETS)] = []
    cancel_us: UInt = 0
    fallback: Text = ""


class Held(_Message, frozen=True):
    """A lease that a returning worker still runs, with the units it has made."""

    lease: UInt
    rid: Rid
    n: UInt


class Ready(_Message, frozen=True, tag=33):
    """Register a node; sent before any model loads. Also sent anew after every loss of the connection."""

    worker_uuid: Uuid
    node_id: Name
    capacity: U32
    services: Annotated[list[ServiceOffer], Meta(max_length=MAX_SERVICES)]
    devices: Annotated[list[DeviceInfo], Meta(max_length=MAX_DEVICES)]
    min_version: Annotated[int, Meta(ge=0, le=255)] = VERSION
    max_version: Annotated[int, Meta(ge=0, le=255)] = VERSION
    held: Annotated[list[Held], Meta(max_length=MAX_HELD)] = []
    ext: Ext = {}


class Heartbeat(_Message, frozen=True, tag=34):
    """Sign of life of a node, sent every half interval whatever else was sent. `services` replaces READY's list."""

    epoch: U32
    count: UInt
    loop_age_ms: UInt
    dispatch_limit: UInt
    phase: Phase
    percent: Percent = 0
    elapsed_ms: UInt = 0
    devices: Annotated[list[DeviceLoad], Meta(max_length=MAX_DEVICES)] = []
    services: Annotated[list[ServiceOffer], Meta(max_length=MAX_SERVICES)] | None = None
    ext: Ext = {}


class WorkerPartial(_Message, frozen=True, tag=35):
    """Units `seq` .. `seq + n - 1` of the lease."""

    epoch: U32
    lease: UInt
    seq: UInt
    n: UInt
    body: bytes
    ext: Ext = {}


class WorkerFinal(_Message, frozen=True, tag=37):
    """The lease is done."""

    epoch: U32
    lease: UInt
    total_n: UInt
    dispatch_limit: UInt
    meta: Ext
    body: bytes
    ext: Ext = {}


class WorkerError(_Message, frozen=True, tag=38):
    """The lease ended without a result. 429 = no free slot: put it back in front, no attempt counted."""

    epoch: U32
    lease: UInt
    code: Code
    reason: Name
    retryable: bool
    dispatch_limit: UInt
    text: Text
    ext: Ext = {}


class Credit(_Message, frozen=True, tag=39):
    """Requests the node may have been given since the epoch began (cumulative, so a repeat does no harm)."""

    epoch: U32
    dispatch_limit: UInt
    ext: Ext = {}


class Draining(_Message, frozen=True, tag=40):
    """No new work, please; what runs is finished or handed back."""

    epoch: U32
    reason: Text = ""
    ext: Ext = {}


class Leave(_Message, frozen=True, tag=41):
    """DISCONNECT from the worker: it is gone, dispatch its leases elsewhere at once."""

    epoch: U32
    reason: Text = ""
    ext: Ext = {}


# --- broker to worker ------------------------------------------------------------------------------------------------


class Rebound(_Message, frozen=True):
    """A held lease that is still current: go on from unit `next_n`."""

    lease: UInt
    next_n: UInt


class WorkerWelcome(_Message, frozen=True, tag=161):
    """Registered, under a fresh epoch. Held leases that are not in `rebound` are to be aborted."""

    broker_id: Name
    broker_epoch: UInt
    epoch: U32
    params: Params
    rebound: Annotated[list[Rebound], Meta(max_length=MAX_HELD)] = []
    ext: Ext = {}


class BrokerHeartbeat(_Message, frozen=True, tag=162):
    """Sign of life of the broker. `heard` is the count of the node's last HEARTBEAT that counts here (0 = none yet)."""

    epoch: U32
    heard: UInt = 0
    ext: Ext = {}


class Dispatch(_Message, frozen=True, tag=163):
    """Run a request under a lease. Every dispatch carries a fresh one; results are welcome only while it lives."""

    lease: UInt
    service: ServiceName
    ttl_ms: TtlMs
    flags: Flags
    attempt: U32
    resume_n: UInt
    rid: Rid
    user: Name
    body: bytes
    resume: bytes = b""
    ext: Ext = {}


class WorkerCancel(_Message, frozen=True, tag=164):
    """CANCEL toward a worker: stop the lease and free its slot; nothing is answered."""

    lease: UInt
    reason: Text = ""
    ext: Ext = {}


class Drain(_Message, frozen=True, tag=165):
    """Finish what runs and leave by the deadline."""

    deadline_ms: U32
    ext: Ext = {}


class Dismiss(_Message, frozen=True, tag=166):
    """DISCONNECT from the broker: this session is void; register anew (or not, as the code says)."""

    code: Code
    text: Text
    ext: Ext = {}


FromClient = Hello | Request | Cancel | Ping | Bye | Query | Window | Admin
ToClient = Welcome | Accepted | Partial | Final | Error | Pong | Goaway | Status
FromWorker = Ready | Heartbeat | WorkerPartial | WorkerFinal | WorkerError | Credit | Draining | Leave
ToWorker = WorkerWelcome | BrokerHeartbeat | Dispatch | WorkerCancel | Drain | Dismiss
Message = FromClient | ToClient | FromWorker | ToWorker
