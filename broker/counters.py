"""What a broker counts since it started; names as they appear in status and metrics."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ..protocol.errors import TABLE

_SERVER_ERROR = 500


@dataclass(slots=True, eq=False)
class Counters:
    """Plain numbers, each raised by the one place that decides the thing."""

    requests: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    rejected_queue_full: int = 0
    rejected_too_late: int = 0
    rejected_memory_full: int = 0
    rejected_no_worker: int = 0
    rejected_not_found: int = 0
    rejected_draining: int = 0
    rejected_bad: int = 0
    dispatches: int = 0
    redispatches: int = 0
    resumes: int = 0
    refused_by_node: int = 0
    stream_gaps: int = 0
    late_reply: int = 0
    partials: int = 0
    twins: int = 0
    replays: int = 0
    superseded: int = 0
    slow_readers: int = 0
    poisoned: int = 0
    strikes: int = 0
    muted: int = 0
    nodes_registered: int = 0
    nodes_suspected: int = 0
    nodes_lost: int = 0
    nodes_evicted: int = 0
    leases_rebound: int = 0
    sessions_opened: int = 0
    sessions_lost: int = 0
    egress_retries: int = 0
    egress_overflows: int = 0
    endless_envelopes: int = 0
    turned_away: int = 0
    internal_errors: int = 0


class LossReason(enum.Enum):
    """Why an attempt ended without a result."""

    NODE_LOST = "node_lost"
    """Its connection broke, and it did not come back in time."""
    NODE_SILENT = "node_silent"
    NODE_MUTE = "node_mute"
    """It was heard, and answered nothing."""
    NODE_LEFT = "node_left"
    NODE_RETURNED = "node_returned"
    """It came back without it."""
    HANDED_BACK = "handed_back"
    """By a node that drains."""
    ENGINE = "engine"
    GAP = "gap"
    """Units were missing or came twice."""


class Stage(enum.Enum):
    """Where a request was when nobody waited for it any more."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"


class LabelledCounters:
    """Counters by a label; those that are known beforehand stand at 0 from the start, as alerts want it."""

    __slots__ = ("cancellations", "failures", "redispatches", "zap_refused")

    def __init__(self) -> None:
        self.failures = {kind.value: 0 for kind, row in TABLE.items() if row.code >= _SERVER_ERROR}
        self.redispatches = {reason.value: 0 for reason in LossReason}
        self.cancellations = {stage.value: 0 for stage in Stage}
        self.zap_refused: dict[str, int] = {}

    def copy(self) -> dict[str, dict[str, int]]:
        """Return copies by name, for a snapshot."""
        return {
            "failures": dict(self.failures),
            "redispatches": dict(self.redispatches),
            "cancellations": dict(self.cancellations),
            "zap_refused": dict(self.zap_refused),
        }
