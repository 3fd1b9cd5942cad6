"""Extents of one flat pool of keys and values, and the finished sequences that still lie in it. Pure.

A sequence has one extent: where it begins, and how long it may get. What is finished stays until its place is needed,
oldest first, so that a prompt that begins like it need not be computed again. No copying, no device: whoever owns the
tensors is told from where to where tokens move.
"""

from __future__ import annotations

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

HEAD: Final = 16
"""Ids that a prefix has at least: a shorter one is computed as fast as it is looked up."""
_MOST_KEPT: Final = 512
_MOST_TRIED: Final = 16
"""Sequences with the same head that one prompt is compared with, the newest first."""


class Extent(NamedTuple):
    """`size` tokens of the pool from `start` on. A tuple: it is looked up with each request, and hashes in C."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The first token behind it."""
        return self.start + self.size


class KvCache:
    """The pool: every token of it is free, in use, or kept for its contents."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._free = [Extent(0, tokens)]
        self._kept: OrderedDict[Extent, Sequence[int]] = OrderedDict()
        self._by_head: dict[tuple[int, ...], dict[Extent, None]] = {}
        self.used_tokens = 0
        """Tokens in use; kept ones are not, for they go when asked."""

    def is_kept(self, extent: Extent) -> bool:
        """Whether an extent holds a finished sequence."""
        return extent in self._kept

    def alike(self, ids: Sequence[int]) -> Iterator[tuple[Extent, Sequence[int]]]:
        """Give finished sequences that begin like this one, with the ids whose keys and values lie there."""
        found = self._by_head.get(tuple(ids[:HEAD]), {})
        for extent in itertools.islice(reversed(found), _MOST_TRIED):
            yield extent, self._kept[extent]

    def allocate(self, size: int, *, spare: Extent | None = None) -> Extent | None:
        """Take an extent, giving up what was kept longest as needed, but never `spare`; None if there is no room."""
        found = self._first_fit(size)
        if found is None:
            if not self._could_fit(size, spare):
                return None
            while found is None:
                oldest = next(extent for extent in self._kept if extent != spare)
                self.forget(oldest)
                found = self._first_fit(size)
        self.used_tokens += size
        return found

    def release(self, extent: Extent) -> None:
        """Give an extent back."""
        self.used_tokens -= extent.size
        index = bisect.bisect_left(self._free, extent.start, key=lambda hole: hole.start)
        start, end = extent.start, extent.end
        if index < len(self._free) and self._free[index].start == end:
            end = self._free.pop(index).end
        if index and self._free[index - 1].end == start:
            index -= 1
            start = self._free.pop(index).start
        self._free.insert(index, Extent(start, end - start))

    def keep(self, extent: Extent, ids: Sequence[int]) -> None:
        """Give an extent back, but remember what lies in it: `ids` from its start on."""
        if len(ids) < HEAD:
            self.release(extent)
            return
        self.used_tokens -= extent.size
        self._kept[extent] = ids
        self._by_head.setdefault(tuple(ids[:HEAD]), {})[extent] = None
        if len(self._kept) > _MOST_KEPT:
            self.forget(next(iter(self._kept)))

    def take(self, extent: Extent) -> None:
        """Use a kept extent again as it is."""
        self.used_tokens += extent.size
        head = tuple(self._kept.pop(extent)[:HEAD])
        alike = self._by_head[head]
        del alike[extent]
        if not alike:
            del self._by_head[head]

    def touch(self, extent: Extent) -> None:
        """Note that a kept extent was of use."""
        self._kept.move_to_end(extent)

    def forget(self, extent: Extent) -> None:
        """Free a kept extent."""
        self.take(extent)
        self.release(extent)

    def _first_fit(self, size: int) -> Extent | None:
        for index, hole in enumerate(self._free):
            if hole.size >= size:
                rest = [Extent(hole.start + size, hole.size - size)] if hole.size > size else []
                self._free[index : index + 1] = rest
                return Extent(hole.start, size)
        return None

    def _could_fit(self, size: int, spare: Extent | None) -> bool:
        """Say whether giving up everything kept would make a hole large enough."""
        end = run = 0
        could_go = (extent for extent in self._kept if extent != spare)
        for extent in sorted([*self._free, *could_go], key=lambda extent: extent.start):
            run = run + extent.size if extent.start == end else extent.size
            end = extent.end
            if run >= size:
                return True
        return False


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the ids with which both begin; by halves, so that comparing is done in C."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low + 1 < high:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low + (low < high and one[low] == other[low])
