"""A streamed generation, whatever the shape of its events: sent as it comes, and gone on with after a cut.

What is written is a function of the units of the answer (tokens, and text held back until the end), however many of
them came at once. So whoever comes back with its Idempotency-Key and the id of the last event that it read is written
everything again, here or at another bridge, and sent what is beyond that event.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import msgspec

from ..client.response import Chunk, Result
from ..protocol.tasks import Generate
from .errors import BadHeaderError, problem
from .in_flight import HttpRequest, InFlight, InFlightRequest, idempotency_key
from .sse import Events, EventStream

_EVENT_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}/(?P<delivered>[0-9]{1,9}(?:\.[0-9]{1,9})*)")


class StreamWriter(Protocol):
    """Writes what stands beside an answer in a stream, in the shape of one API."""

    def idle(self) -> bytes:
        """Write what says that it goes on."""
        ...

    def failure(self, told: object) -> bytes:
        """Write the last event of an answer that failed; `told` is the body of such a refusal."""
        ...


class EventWriter(StreamWriter, Protocol):
    """Writes the events of one answer, in the shape of one API."""

    def of(self, chunk: Chunk) -> Iterator[bytes]:
        """Write a part of the answer; no event where it has nothing to tell yet."""
        ...

    def end(self, result: Result) -> Iterator[bytes]:
        """Write why it is over, and of how many tokens."""
        ...


def stream(
    in_flight: InFlight, task: Generate, request: HttpRequest, writer: EventWriter, *, model: str | None
) -> EventStream:
    """Start a generation, and answer with its events. Raises BadHeaderError and what the library raises.

    Nothing goes out before the first token, so that a failure has a status.
    """
    delivered = delivered_before(request)
    pending = in_flight.generate(task, request, stream=True, model=model)
    name = request.caller.request_id if idempotency_key(request) else ""
    return event_stream(in_flight, request, writer, _events(pending, writer, delivered, name), pending.close)


def event_stream(
    in_flight: InFlight, request: HttpRequest, writer: StreamWriter, events: Events, close: Callable[[], None]
) -> EventStream:
    """Answer with events in the shape of one API; `close` notes that nobody reads them any more."""
    path, request_id = request.path, request.caller.request_id
    return EventStream(
        events,
        close=close,
        idle=writer.idle,
        keep_alives=in_flight.keep_alives,
        failure=lambda error: writer.failure(problem(error, path, request_id)),
        request_id=request_id,
    )


async def _events(pending: InFlightRequest[Result], writer: EventWriter, delivered: int, name: str) -> Events:
    """Yield the events; with ids where there is a key to come back with, for some readers choke on other lines."""
    while chunks := await pending.next_chunks():
        if told := write_beyond(delivered, chunks, writer.of, lambda at: f"{name}/{at}" if name else ""):
            yield told
    yield b"".join(writer.end(await pending.result()))


def write_beyond(
    delivered: int,
    chunks: list[Chunk],
    write: Callable[[Chunk], Iterator[bytes]],
    name: Callable[[int], str],
) -> bytes:
    """Write chunks, and return what was not delivered of it; `name` gives an event behind so many units its id."""
    told = b""
    for chunk in chunks:
        for part, at in cut(chunk, delivered):
            events = list(write(part))
            if not events or at <= delivered:
                continue
            if id_ := name(at):
                events[-1] = f"id: {id_}\n".encode() + events[-1]
            told += b"".join(events)
    return told


def delivered_before(request: HttpRequest) -> int:
    """Return how many units of its stream a caller that comes back has had. Raises BadHeaderError."""
    return delivered_of_each(request, 1)[0]


def delivered_of_each(request: HttpRequest, choices: int) -> list[int]:
    """Return the same for each choice of its answer."""
    given = request.headers.get("last-event-id", "")
    if not given:
        return [0] * choices
    found = _EVENT_ID.fullmatch(given)
    counts = [int(count) for count in found["delivered"].split(".")] if found else []
    if len(counts) != choices:
        raise BadHeaderError("last-event-id", "it is not an id that a stream of this bridge has sent")
    if not idempotency_key(request):
        text = "which stream goes on, the Idempotency-Key says that it was begun with; send that too"
        raise BadHeaderError("last-event-id", text)
    return counts


def cut(chunk: Chunk, delivered: int) -> list[tuple[Chunk, int]]:
    """Divide a chunk at what was delivered; each part with the number of units up to its end.

    Text held back until the end is a unit of its own.
    """
    end = chunk.index + (len(chunk.token_ids) or 1)
    if not delivered:
        return [(chunk, end)]
    known = delivered - chunk.index
    if not 0 < known < end - chunk.index:
        return [(chunk, end)]
    return [(_part(chunk, 0, known), delivered), (_part(chunk, known, len(chunk.token_ids)), end)]


def _part(chunk: Chunk, begin: int, end: int) -> Chunk:
    pieces = chunk.pieces[begin:end]
    return msgspec.structs.replace(
        chunk,
        text="".join(pieces),
        token_ids=chunk.token_ids[begin:end],
        index=chunk.index + begin,
        pieces=pieces,
        logprobs=chunk.logprobs and chunk.logprobs[begin:end],
    )
