"""What the worker's core wants done; the agent does it.

Structs: one is made for each token that goes out, and a frozen dataclass takes several times as long.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..protocol import messages as m
from .engines import ipc
from .preprocess import ServiceLimits

Level = Literal["debug", "info", "warning", "error"]


class Dial(msgspec.Struct, frozen=True):
    """Make a new socket to a broker (by its place in the list) and connect it."""

    broker: int


class HangUp(msgspec.Struct, frozen=True):
    """Close the socket to a broker."""

    broker: int


class ProbeBroker(msgspec.Struct, frozen=True):
    """Find out who answers where a broker should, and hand the result to `explained`."""

    broker: int
    broke_off: bool


class Send(msgspec.Struct, frozen=True):
    """Send a message to a broker; all of one pass travel in one envelope."""

    broker: int
    message: m.FromWorker


class ToEngine(msgspec.Struct, frozen=True):
    """Send a message to the engine process of a device; all of one pass travel in one envelope."""

    device: str
    message: ipc.ToEngine


class Preprocess(msgspec.Struct, frozen=True):
    """Preprocess a dispatch beside the loop, and hand the result to `prepared`; short ones the core does itself."""

    job: int
    dispatch: m.Dispatch
    limits: ServiceLimits
    needs_pool: bool


class RestartEngine(msgspec.Struct, frozen=True):
    """Kill the engine process of a device; its supervisor starts another."""

    device: str
    reason: str


class Exit(msgspec.Struct, frozen=True):
    """The node is gone: leave."""

    code: int
    reason: str


class Note(msgspec.Struct, frozen=True):
    """Log a line."""

    level: Level
    text: str
    request_id: str = ""
    trace_id: str = ""
    rid: str = ""
    error: BaseException | None = None
    """Logged with its traceback."""


Action = Dial | HangUp | ProbeBroker | Send | ToEngine | Preprocess | RestartEngine | Exit | Note
