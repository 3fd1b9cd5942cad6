"""The dynamic batcher: which waiting items go to the device together. Pure; `now` comes in, in seconds.

Size and latency are upper bounds, never targets. A device that is idle starts with what is there; the batch fills while
another one runs. So under load batches are full, and alone a request pays nothing.

Items of about the same length go together (padding is wasted work): groups of 64 tokens. The fullest group goes first,
unless an item of another one has waited for the latency bound: then that one does, so nobody starves.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from .base import Item

PAD_TO: Final = 64


@dataclass(frozen=True, slots=True)
class _Waiting:
    item: Item
    since: float
    number: int


class Batcher:
    """Collects items and gives them out in batches.

    Args:
        max_size: Items in one batch at most.
        max_latency_s: Age at which an item's group is preferred, whatever else waits.
    """

    def __init__(self, *, max_size: int, max_latency_s: float) -> None:
        self._max_size = max_size
        self._max_latency_s = max_latency_s
        self._groups: dict[int, deque[_Waiting]] = {}
        self._retries: deque[list[Item]] = deque()
        self._arrived = 0
        self._seen = 0

    def __len__(self) -> int:
        return sum(map(len, self._groups.values())) + sum(map(len, self._retries))

    def add(self, item: Item, now: float) -> None:
        """Let an item wait for its batch."""
        self._arrived += 1
        self._groups.setdefault(_padded(item), deque()).append(_Waiting(item, now, self._arrived))

    def cancel(self, ticket: int) -> bool:
        """Take an item out; False if it does not wait here (it runs, or is over)."""
        for batch in self._retries:
            for item in batch:
                if item.ticket == ticket:
                    batch.remove(item)
                    return True
        for length, group in self._groups.items():
            for waiting in group:
                if waiting.item.ticket == ticket:
                    group.remove(waiting)
                    if not group:
                        del self._groups[length]
                    return True
        return False

    def next_batch(self, now: float, *, idle: bool) -> list[Item] | None:
        """Return the batch to run now, or None: the device is busy, nothing waits, or more is just coming in.

        To be asked on every pass of the loop: as long as items arrived since the last time, a batch that is not full
        waits one more pass, which costs a look at the socket and no time.
        """
        if not idle:
            return None
        while self._retries:
            batch = self._retries.popleft()
            if batch:
                return batch
        if not self._groups:
            return None
        group = self._choose(now)
        is_still_coming = self._arrived != self._seen
        self._seen = self._arrived
        if is_still_coming and len(group) < self._max_size:
            return None
        return self._take(group)

    def failed(self, batch: list[Item]) -> list[Item]:
        """Take back a batch that raised: its halves go first, until the one bad item is alone.

        Returns:
            The items that cannot be saved: a batch of one.
        """
        if len(batch) == 1:
            return batch
        middle = len(batch) // 2
        self._retries.extendleft([batch[middle:], batch[:middle]])
        return []

    def _choose(self, now: float) -> deque[_Waiting]:
        oldest = min(self._groups.values(), key=lambda group: group[0].number)
        if now - oldest[0].since >= self._max_latency_s:
            return oldest
        return max(self._groups.values(), key=lambda group: (min(len(group), self._max_size), -group[0].number))

    def _take(self, group: deque[_Waiting]) -> list[Item]:
        length = _padded(group[0].item)
        batch = [group.popleft().item for _ in range(min(self._max_size, len(group)))]
        if not group:
            del self._groups[length]
        return batch


def _padded(item: Item) -> int:
    return max(1, -(-item.length // PAD_TO)) * PAD_TO
