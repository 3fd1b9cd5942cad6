"""What a peer sends, cut into heads and pieces of bodies, in their order. Pure: bytes in, and bytes that wait inside.

Nothing is read before it is asked for, so what follows the end of a request stays bytes until its turn.
"""

from __future__ import annotations

from .bodies import Body, body_of
from .cors import origin_in
from .heads import Head, end_of_head, read_head


class RequestParser:
    """The sending half of one connection."""

    def __init__(self) -> None:
        self._came = bytearray()
        self._seen = 0  # bytes of it that hold no end of a head
        self._body: Body | None = None  # of the last head, while something of it is missing

    def __len__(self) -> int:
        """Count the bytes that nobody has asked for."""
        return len(self._came)

    @property
    def is_in_body(self) -> bool:
        """Whether something is missing of the body of the last head."""
        return self._body is not None

    @property
    def origin(self) -> str | None:
        """Which page asks, in a head that cannot be read; None where that has not come."""
        return origin_in(self._came)

    def feed(self, data: bytes) -> None:
        """Keep what came."""
        self._came += data

    def drop(self) -> None:
        """Forget all that waits."""
        self._came.clear()
        self._body = None

    def next_head(self) -> Head | None:
        """Return the next head; None while its end has not come. Raises RefusedError."""
        if self._came[:1] in b"\r\n":  # RFC 9112 2.2: empty lines before a request are none of it
            self._came = self._came.lstrip(b"\r\n")
            self._seen = 0
        size = end_of_head(self._came, self._seen)
        self._seen = len(self._came)
        if not size:
            return None
        head = read_head(bytes(self._came[:size]))
        del self._came[:size]
        self._seen = 0
        body = body_of(head.length)
        self._body = None if body.is_complete else body
        return head

    def next_piece(self) -> bytes:
        """Return of the body what others need not wait for; ask again while `is_in_body`. Raises RefusedError."""
        assert self._body is not None
        data = bytes(self._came[: self._body.AT_ONCE_BYTES])
        piece, rest = self._body.feed(data)
        del self._came[: len(data) - len(rest)]
        if self._body.is_complete:
            self._body = None
        return piece
