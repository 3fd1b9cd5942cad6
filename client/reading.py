"""One reader of one request: events in, chunks and at last an outcome out. Both faces read through this.

It knows neither threads nor loops; how an event gets here is the business of `sync` and `aio`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ..protocol import messages as m
from ..protocol.errors import ErrorKind, RequestError, ZmqrtError, request_error
from .results import Chunk, Result, StreamFold, read_result

R = TypeVar("R")
Event = m.Partial | m.Final | m.Status | m.Welcome | ZmqrtError
"""What the core tells about a request, a question or a wish for a connection. All but PARTIAL are the last."""


class ResponseReader(Generic[R]):
    """Feed on the events of a request until it is done; then `outcome` returns its value or raises its error."""

    def __init__(
        self,
        request_id: str,
        read_chunk: Callable[[m.Partial], Chunk],
        read_end: Callable[[m.Final], tuple[Chunk | None, R]],
    ) -> None:
        self.request_id = request_id
        self.is_done = False
        self._read_chunk = read_chunk
        self._read_end = read_end
        self._value: R | None = None
        self._error: BaseException | None = None

    def feed(self, event: Event) -> Chunk | None:
        """Take one event; return the chunk that it brings."""
        try:
            match event:
                case m.Partial():
                    return self._read_chunk(event)
                case m.Final():
                    chunk, self._value = self._read_end(event)
                    self.is_done = True
                    return chunk
                case ZmqrtError():
                    self.fail(event)
                case m.Status() | m.Welcome():
                    raise AssertionError(event)
        except RequestError as error:  # raised by a body that is no answer at all
            text = f"the node's answer cannot be read: {error.text}"
            self.fail(request_error(ErrorKind.MODEL_RAISED, text, request_id=self.request_id))
        return None

    def fail(self, error: BaseException) -> None:
        """End without a value."""
        self.is_done = True
        self._error = error

    def outcome(self) -> R:
        """Return the value or raise the error; only once it is done."""
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value


def read_unary(request_id: str, read: Callable[[m.Final, str], R]) -> ResponseReader[R]:
    """Read an answer that comes whole."""

    def no_chunk(partial: m.Partial) -> Chunk:
        raise AssertionError(partial)  # the core passes none on

    return ResponseReader(request_id, no_chunk, lambda final: (None, read(final, request_id)))


def read_stream(request_id: str) -> ResponseReader[Result]:
    """Read an answer that comes in chunks."""
    fold = StreamFold(request_id)
    return ResponseReader(request_id, fold.chunk, fold.end)


def read_generation(request_id: str, *, stream: bool) -> ResponseReader[Result]:
    """Read a generation either way."""
    return read_stream(request_id) if stream else read_unary(request_id, read_result)
