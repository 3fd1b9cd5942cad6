"""Cuts what a peer sends into heads and pieces of bodies, in their order. Pure: bytes in, and bytes that wait inside.

Nothing is read before it is asked for, so what follows the end of a request stays bytes until its turn. A body ends by
its length, or by its last chunk.
"""

from __future__ import annotations

from typing import Final

import httptools

from .cors import origin_in
from .errors import RefusedError
from .heads import Head, end_of_head, read_head

_AT_ONCE_BYTES: Final = 1 << 20
"""Of a body with a length; more than one read brings."""
_CHUNKS_AT_ONCE_BYTES: Final = 16 << 10
"""Of a body in chunks: empty lines, or chunks of one byte, cost about a microsecond for each byte."""
_CHUNKED: Final = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


class ChunkedBody:
    """A body in chunks, which llhttp reads. What its trailer says is dropped: a key there came too late to be checked.

    The end of a chunked body is always a line feed. So the parser, which cannot stop, is given one line at a time.
    """

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


class RequestParser:
    """What one peer sends. Feed bytes, then ask for a head, or for pieces of its body while `is_in_body`."""

    def __init__(self) -> None:
        self.waiting = bytearray()
        """What came and nobody has asked for yet."""
        self.is_in_body = False
        """Whether something is missing of the body of the last head."""
        self._searched = 0  # so many bytes of what waits hold no end of a head
        self._left = 0  # bytes that are missing of a body with a length
        self._chunks: ChunkedBody | None = None  # a body in chunks, while its end is missing

    @property
    def has_rest(self) -> bool:
        """Whether all that is missing of a body with a length lies here: nobody need be waited for."""
        return self._chunks is None and self._left <= len(self.waiting)

    @property
    def origin(self) -> str | None:
        """Which page asks, in a head that cannot be read; None where that has not come."""
        return origin_in(self.waiting)

    def feed(self, data: bytes) -> None:
        """Keep what came."""
        self.waiting += data

    def drop(self) -> None:
        """Forget all that waits."""
        self.waiting.clear()
        self._left, self._chunks, self.is_in_body = 0, None, False

    def next_head(self) -> Head | None:
        """Return the next head; None while its end has not come. Raises RefusedError."""
        if self.waiting[:1] in b"\r\n":  # RFC 9112 2.2: empty lines before a request are none of it
            self.waiting = self.waiting.lstrip(b"\r\n")
            self._searched = 0
        size = end_of_head(self.waiting, self._searched)
        self._searched = len(self.waiting)
        if not size:
            return None
        head = read_head(bytes(self.waiting[:size]))
        del self.waiting[:size]
        self._searched = 0
        if head.length is None:
            self._chunks = ChunkedBody()
        else:
            self._left = head.length
        self.is_in_body = head.length != 0
        return head

    def next_piece(self) -> bytes:
        """Return of the body what others need not wait for; ask again while `is_in_body`. Raises RefusedError."""
        if self._chunks is None:
            if len(self.waiting) == self._left <= _AT_ONCE_BYTES:  # as usual
                piece = bytes(self.waiting)
                self.waiting.clear()
            else:
                piece = bytes(self.waiting[: min(self._left, _AT_ONCE_BYTES)])
                del self.waiting[: len(piece)]
            self._left -= len(piece)
            self.is_in_body = self._left > 0
            return piece
        data = bytes(self.waiting[:_CHUNKS_AT_ONCE_BYTES])
        piece, rest = self._chunks.feed(data)
        del self.waiting[: len(data) - len(rest)]
        if self._chunks.is_complete:
            self._chunks, self.is_in_body = None, False
        return piece
