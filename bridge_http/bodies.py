"""Where a body ends: by its length, or by its last chunk. Pure.

What follows the end belongs to the next request, so no byte beyond it is ever looked at here.
"""

from __future__ import annotations

from typing import Final

import httptools

from .heads import RefusedError

_CHUNKED: Final = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


class Sized:
    """A body of so many bytes."""

    AT_ONCE_BYTES: Final = 1 << 20  # more than one read brings

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def is_complete(self) -> bool:
        """Whether its end has come."""
        return not self._left

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what of this belongs to the body, and what does not."""
        piece = data[: self._left]
        self._left -= len(piece)
        return piece, data[len(piece) :]


class Chunked:
    """A body in chunks, which llhttp reads. What its trailer says is dropped: a key there came too late to be checked.

    The end of a chunked body is always a line feed. So the parser, which cannot stop, is given one line at a time.
    """

    AT_ONCE_BYTES: Final = 16 << 10  # empty lines, or chunks of one byte, cost about a microsecond for each byte

    def __init__(self) -> None:
        self.is_complete = False
        self._pieces: list[bytes] = []
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._parser.feed_data(_CHUNKED)

    def on_body(self, piece: bytes) -> None:
        """Take a piece (llhttp calls)."""
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """Note the end (llhttp calls)."""
        self.is_complete = True

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what of this belongs to the body, and what does not. Raises RefusedError."""
        at = 0
        assert self._parser is not None
        try:
            while not self.is_complete and at < len(data):
                end = data.find(b"\n", at) + 1 or len(data)
                self._parser.feed_data(data[at:end])
                at = end
        except httptools.HttpParserError as error:
            raise RefusedError(400, "not_http", f"the body of the request is not in chunks: {error}") from None
        finally:
            pieces, self._pieces = self._pieces, []
        if self.is_complete:
            self._parser = None  # it holds this object, which holds it
        return b"".join(pieces), data[at:]


Body = Sized | Chunked


def body_of(length: int | None) -> Body:
    """Return what reads a body of this length; None: in chunks."""
    return Chunked() if length is None else Sized(length)
