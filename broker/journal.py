"""What a request has delivered so far: its PARTIAL bodies, encoded the way a RESUME blob wants them.

One bytearray of MessagePack bins, and beside it where each chunk begins. Three users: a new worker gets all of it as
the prefix, a subscriber that lags or joins late gets the chunks it lacks, and the end of the stream frees it.
It knows no request and no subscriber; it never looks into a body.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right

_HEAD_BYTES = {0xC4: 2, 0xC5: 3, 0xC6: 5}


class Journal:
    """The chunks of one stream, in order. Units before `base_n` came from the client itself: they have no chunk."""

    __slots__ = ("_elements", "_first", "_prefix_count", "_seqs", "_starts", "_trimmed", "base_n", "is_whole", "next_n")

    def __init__(self, prefix: bytes = b"", prefix_count: int = 0, base_n: int = 0) -> None:
        self.base_n = base_n
        self.next_n = base_n
        self.is_whole = True
        """Whether it still reaches back to unit 0, so that a new worker can go on from it."""
        self._elements = bytearray(prefix)
        self._prefix_count = prefix_count
        self._seqs = array("Q")
        self._starts = array("Q")  # counted from the first byte ever held
        self._first = 0
        self._trimmed = 0

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        return len(self._elements)

    @property
    def end(self) -> int:
        """Number of the chunk that comes next."""
        return self._first + len(self._seqs)

    def append(self, seq: int, n: int, body: bytes) -> int:
        """Add units `seq` .. `seq + n - 1`; return how many bytes that takes."""
        elements = self._elements
        before = len(elements)
        self._seqs.append(seq)
        self._starts.append(self._trimmed + before)
        elements += _bin_head(len(body))
        elements += body
        self.next_n = seq + n
        return len(elements) - before

    def blob(self) -> bytes:
        """Return everything as one MessagePack array of bins; only while whole."""
        count = self._prefix_count + len(self._seqs)
        return _array_head(count) + self._elements

    def chunk_at(self, unit: int) -> int | None:
        """Return the number of the chunk that holds a unit; None if it is not (or no longer) here."""
        if unit == self.next_n:
            return self.end
        if unit > self.next_n or not self._seqs or unit < self._seqs[0]:
            return None
        return self._first + bisect_right(self._seqs, unit) - 1

    def chunk(self, number: int) -> tuple[int, int, bytes]:
        """Return one chunk as (seq, n, body)."""
        index = number - self._first
        is_last = index + 1 == len(self._seqs)
        start = self._starts[index] - self._trimmed
        stop = len(self._elements) if is_last else self._starts[index + 1] - self._trimmed
        following = self.next_n if is_last else self._seqs[index + 1]
        seq = self._seqs[index]
        return seq, following - seq, bytes(self._elements[start + _HEAD_BYTES[self._elements[start]] : stop])

    def bytes_from(self, number: int) -> int:
        """Return the size of a chunk and all after it."""
        index = number - self._first
        return len(self._elements) + self._trimmed - self._starts[index] if index < len(self._starts) else 0

    def trim(self, number: int) -> None:
        """Forget the chunks before `number` and the client's own prefix. No worker can go on from here any more."""
        keep = self.bytes_from(number)
        gone = len(self._elements) - keep
        del self._elements[:gone]
        del self._seqs[: number - self._first]
        del self._starts[: number - self._first]
        self._first = number
        self._trimmed += gone
        self.is_whole = False


def split_blob(blob: bytes) -> tuple[int, bytes] | None:
    """Read the array head of a client's RESUME blob: (count, elements), or None if it cannot be one.

    The elements stay as they are: they are the client's own, and only a worker can judge them.
    """
    if not blob:
        return None
    head, size = blob[0], {0xDC: 2, 0xDD: 4}.get(blob[0], 0)
    if not size and head & 0xF0 != 0x90:
        return None
    count = int.from_bytes(blob[1 : 1 + size], "big") if size else head & 0x0F
    elements = blob[1 + size :]
    return (count, elements) if count <= len(elements) else None  # each takes a byte at least


def _bin_head(size: int) -> bytes:
    if size < 256:
        return b"\xc4" + size.to_bytes(1, "big")
    if size < 65536:
        return b"\xc5" + size.to_bytes(2, "big")
    return b"\xc6" + size.to_bytes(4, "big")


def _array_head(count: int) -> bytes:
    if count < 16:
        return bytes([0x90 | count])
    if count < 65536:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")
