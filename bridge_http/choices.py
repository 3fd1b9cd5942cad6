"""The requests behind one answer with several choices: their ends together, or their parts as they come.

What one of them fails of, all of them do, and nobody waits for the others any more: an answer has one status. Streamed
events have ids that say how much of each choice their reader has then had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from ..client.response import Chunk, Result
from ..protocol.tasks import Generate
from .generations import StreamWriter, delivered_of_each, event_stream, write_beyond
from .in_flight import HttpRequest, InFlight, InFlightRequest, idempotency_key
from .request_body import unless_gone
from .sse import Events, EventStream


class Part(NamedTuple):
    """What comes next of one choice: chunks, or its end."""

    choice: int
    chunks: list[Chunk]
    result: Result | None = None


class ChoicesWriter(StreamWriter, Protocol):
    """Writes the events of an answer with several choices, in the shape of one API."""

    @property
    def is_over(self) -> bool:
        """Whether all choices have ended."""
        ...

    def of(self, choice: int, chunk: Chunk) -> Iterator[bytes]:
        """Write a part of a choice; no event where it has nothing to tell yet."""
        ...

    def end(self, choice: int, result: Result) -> Iterator[bytes]:
        """Write why a choice is over, and behind the last one what it took in all."""
        ...


class Choices:
    """Requests under way for one caller. Of each at most one part is taken ahead, so none has more than its turn."""

    def __init__(self, pending: Sequence[InFlightRequest[Result]]) -> None:
        self._pending = pending
        self._readers: dict[int, asyncio.Task[Part]] = {}
        self._read: asyncio.Queue[asyncio.Task[Part]] = asyncio.Queue()  # in the order in which they came
        self._has_failed = False

    async def whole(self, request: HttpRequest) -> list[Result]:
        """Wait for all ends, and stop waiting as soon as the caller leaves (ClientDisconnect)."""
        if len(self._pending) == 1:  # as usual; no task is made for it
            return [await self._pending[0].whole(request)]
        try:
            return await unless_gone(self._results(), request.scope, request.receive)
        finally:
            self.close()

    async def next(self) -> Part:
        """Wait for what comes next of any of them, up to the last end. Raises what the first one raises that fails."""
        if len(self._pending) == 1:
            return await _next_of(0, self._pending[0])
        if not self._readers:
            for choice in range(len(self._pending)):
                self._read_on(choice)
        try:
            part = (await self._read.get()).result()
        except Exception:
            self._has_failed = True
            raise
        if part.result is None:
            self._read_on(part.choice)
        return part

    def close(self) -> None:
        """Note that nobody waits here any more; a caller who left counts once, not for each choice."""
        for reader in self._readers.values():
            reader.cancel()
        unfinished = [] if self._has_failed else [one for one in self._pending if not one.is_done]
        gone = max(unfinished, key=lambda one: one.has_begun, default=None)
        for one in self._pending:
            if one is gone:
                one.close()
            else:
                one.release()

    async def _results(self) -> list[Result]:
        try:
            return await asyncio.gather(*(one.result() for one in self._pending))
        except Exception:
            self._has_failed = True
            raise

    def _read_on(self, choice: int) -> None:
        reader = asyncio.create_task(_next_of(choice, self._pending[choice]))
        reader.add_done_callback(self._take)
        self._readers[choice] = reader

    def _take(self, reader: asyncio.Task[Part]) -> None:
        if not reader.cancelled():
            reader.exception()  # looked at, since nobody may come for it after the first that fails
            self._read.put_nowait(reader)


async def _next_of(choice: int, pending: InFlightRequest[Result]) -> Part:
    chunks = await pending.next_chunks()
    return Part(choice, chunks) if chunks else Part(choice, [], await pending.result())


def start(
    in_flight: InFlight,
    tasks: Sequence[Generate],
    request: HttpRequest,
    *,
    stream: bool,
    model: str | None,
    per_prompt: int,
) -> Choices:
    """Start a generation for each choice; close what is returned. Raises as `InFlight.generate`."""
    pending: list[InFlightRequest[Result]] = []
    try:
        for choice, task in enumerate(tasks):
            is_further = choice % per_prompt > 0
            pending.append(
                in_flight.generate(task, request, stream=stream, model=model, choice=choice, is_further=is_further)
            )
    except BaseException:
        for one in pending:
            one.release()
        raise
    return Choices(pending)


def stream_choices(
    in_flight: InFlight,
    tasks: Sequence[Generate],
    request: HttpRequest,
    writer: ChoicesWriter,
    *,
    model: str | None,
    per_prompt: int,
) -> EventStream:
    """Start a generation for each choice, and answer with the events of all. Raises as `start`, and BadHeaderError."""
    delivered = delivered_of_each(request, len(tasks))
    choices = start(in_flight, tasks, request, stream=True, model=model, per_prompt=per_prompt)
    name = request.caller.request_id if idempotency_key(request) else ""
    return event_stream(in_flight, request, writer, _events(choices, writer, delivered, name), choices.close)


async def _events(choices: Choices, writer: ChoicesWriter, delivered: list[int], name: str) -> Events:
    """Yield the events; nothing goes out before the first token of any, so that a failure has a status."""
    told_of = list(delivered)

    def name_of(choice: int, at: int) -> str:
        told_of[choice] = at
        return f"{name}/{'.'.join(map(str, told_of))}" if name else ""

    while not writer.is_over:
        choice, chunks, result = await choices.next()
        told = write_beyond(delivered[choice], chunks, partial(writer.of, choice), partial(name_of, choice))
        if result is not None:
            told += b"".join(writer.end(choice, result))
        if told:
            yield told
