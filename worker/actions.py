"""What the worker's core wants done; the agent does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..protocol import messages as m
from .engines import ipc
from .preprocess import ServiceLimits

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Dial:
    """Make a new socket to a broker (by its place in the list) and connect it."""

    broker: int


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the socket to a broker."""

    broker: int


@dataclass(frozen=True, slots=True)
class ProbeBroker:
    """Find out who answers where a broker should, and hand the result to `explained`."""

    broker: int
    broke_off: bool


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a broker; all of one pass travel in one envelope."""

    broker: int
    message: m.FromWorker


@dataclass(frozen=True, slots=True)
class ToEngine:
    """Send a message to the engine process of a device; all of one pass travel in one envelope."""

    device: str
    message: ipc.ToEngine


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Preprocess a dispatch beside the loop, and hand the result to `prepared`; short ones the core does itself."""

    job: int
    dispatch: m.Dispatch
    limits: ServiceLimits
    needs_pool: bool


@dataclass(frozen=True, slots=True)
class RestartEngine:
    """Kill the engine process of a device; its supervisor starts another."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Exit:
    """The node is gone: leave."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Log a line."""

    level: Level
    text: str
    request_id: str = ""
    trace_id: str = ""
    rid: str = ""
    error: BaseException | None = None
    """Logged with its traceback."""


Action = Dial | HangUp | ProbeBroker | Send | ToEngine | Preprocess | RestartEngine | Exit | Note
