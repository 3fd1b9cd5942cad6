"""The messages between a node's agent and one engine process, over their channel: one envelope per step and direction.

Both ends are the same release on the same machine, so there is no version here; what crosses the network is ZRT/1.
An envelope is one MessagePack array of the structs below (`encode` / `decode_*`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from .base import AnswerEnd, Capacity, EngineStats, Failure, ItemResult, Phase, TaskName, TokenEvent, TokenRequest

Kind = Literal["token", "batch", "stream"]
EXIT_HUNG: Final = 83
"""Exit code of a process whose device hung while it got ready: it could say nothing any more."""


class Submit(msgspec.Struct, frozen=True, tag=1, array_like=True):
    """Agent to engine: start this generation on the token engine of `service`."""

    service: str
    request: TokenRequest


class SubmitTask(msgspec.Struct, frozen=True, tag=2, array_like=True):
    """Agent to engine: run this task on the batch or stream engine of `service`; `length` is its size hint."""

    service: str
    ticket: int
    task: dict[str, Any]
    length: int


class CancelTicket(msgspec.Struct, frozen=True, tag=3, array_like=True):
    """Agent to engine: stop a ticket; answered by exactly one terminal event if it was live."""

    ticket: int


class Stop(msgspec.Struct, frozen=True, tag=4, array_like=True):
    """Agent to engine: leave now, whatever still runs."""


class EngineService(msgspec.Struct, frozen=True, kw_only=True):
    """One service an engine process offers. `name` is "" for its main one, else the suffix of the served model
    name, or "=" and the whole name.

    `capabilities`: what it can do beyond its task, by the names of capabilities.py.
    `fallback`: what it has to do without, and why; empty where nothing failed. `resumes`: a StreamEngine that goes on
    after text of its own. `has_keyed_noise`: a TokenEngine draws what seed and position say, so that an answer goes on
    elsewhere as it would have gone on here.
    """

    name: str
    kind: Kind
    task: TaskName
    capacity: Capacity
    model: str
    revision: str
    capabilities: list[str] = []
    fallback: str = ""
    resumes: bool = False
    has_keyed_noise: bool = True


class EngineLoading(msgspec.Struct, frozen=True, tag=10, array_like=True):
    """Engine to agent: how far loading is."""

    phase: Phase
    percent: float
    elapsed_s: float


class EngineReady(msgspec.Struct, frozen=True, tag=11, array_like=True):
    """Engine to agent: loaded; submit away."""

    services: list[EngineService]


class EngineFailed(msgspec.Struct, frozen=True, tag=12, array_like=True):
    """Engine to agent: it cannot load or go on; the process exits after this. `is_final`: another one could neither.

    `options`: the next one is to have these as well, and may do better.
    """

    error: str
    is_final: bool = False
    options: dict[str, str] = {}


class TextChunk(msgspec.Struct, frozen=True, tag=13, array_like=True):
    """Engine to agent: a piece of text of a StreamEngine; `done` ends it, with `error` and `failure` if it broke."""

    ticket: int
    text: str
    done: bool = False
    error: str | None = None
    failure: Failure = ""
    ending: AnswerEnd | None = None


class Refused(msgspec.Struct, frozen=True, tag=14, array_like=True):
    """Engine to agent: a submit that was not taken. `full` = try again later; else a 400 with these words."""

    ticket: int
    full: bool
    error: str


class StepReport(msgspec.Struct, frozen=True, tag=15, array_like=True):
    """Engine to agent: everything one loop pass produced. Also sent, empty, at least every 250 ms as a sign of life:
    the agent derives the engine's loop age from the arrival of the last one."""

    events: list[TokenEvent]
    results: list[ItemResult]
    stats: dict[str, EngineStats]


ToEngine = Submit | SubmitTask | CancelTicket | Stop
FromEngine = EngineLoading | EngineReady | EngineFailed | TextChunk | Refused | StepReport

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[list[ToEngine]] = msgspec.msgpack.Decoder(list[ToEngine])
_from_engine: msgspec.msgpack.Decoder[list[FromEngine]] = msgspec.msgpack.Decoder(list[FromEngine])


def encode(messages: Sequence[ToEngine] | Sequence[FromEngine]) -> bytes:
    """Pack one envelope."""
    return _encoder.encode(messages)


def decode_to_engine(data: bytes) -> list[ToEngine]:
    """Unpack an envelope in the engine process. Raises msgspec.DecodeError."""
    return _to_engine.decode(data)


def decode_from_engine(data: bytes) -> list[FromEngine]:
    """Unpack an envelope in the agent. Raises msgspec.DecodeError."""
    return _from_engine.decode(data)
