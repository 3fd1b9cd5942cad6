"""The dynamic batcher: which waiting items go to the device together. Pure; `now` comes in, in seconds.

Size and latency are upper bounds, never targets. A device that is idle starts with what is there; the batch fills while
another one runs. So under load batches are full, and alone a request pays nothing.

Items of about the same length go together (padding is wasted work): groups of 64 tokens, or as `pad` says. The fullest
group goes first, unless an item of another one has waited for the latency bound: then that one does, so nobody starves.
Within a group, and where several have waited, whose turn is lower goes first; of equal ones who came first.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .base import Item

PAD_TO: Final = 64
_FINEST: Final = 16


@dataclass(frozen=True, slots=True)
class _Waiting:
    item: Item
    since: float
    turn: float
    number: int

    @property
    def order(self) -> tuple[float, int]:
        return self.turn, self.number


def in_steps_of_64(length: int) -> int:
    """Round a length up to the length of its group."""
    return max(1, -(-length // PAD_TO)) * PAD_TO


def within_a_quarter(length: int) -> int:
    """Round a length up by a quarter at most, in steps of 16 tokens at least: for texts, of which most are short."""
    step = max(_FINEST, 1 << max(0, length.bit_length() - 3))
    return max(1, -(-length // step)) * step


class Batcher:
    """Collects items and gives them out in batches.

    Args:
        max_size: Items in one batch at most.
        max_latency_s: Age at which an item's group is preferred, whatever else waits.
        max_tokens: Tokens in one batch at most, padding counted; one longer item goes alone. 0 = not bounded.
        pad: Rounds a length up to that of its group.
    """

    def __init__(
        self,
        *,
        max_size: int,
        max_latency_s: float,
        max_tokens: int = 0,
        pad: Callable[[int], int] = in_steps_of_64,
    ) -> None:
        self._max_size = max_size
        self._max_latency_s = max_latency_s
        self._max_tokens = max_tokens
        self._pad = pad
        self._groups: dict[int, list[_Waiting]] = {}
        self._retries: deque[list[Item]] = deque()
        self._arrived = 0
        self._seen = 0

    def __len__(self) -> int:
        return sum(map(len, self._groups.values())) + sum(map(len, self._retries))

    def add(self, item: Item, now: float, turn: float = 0) -> None:
        """Let an item wait for its batch; of equal turns who comes first goes first."""
        self._arrived += 1
        group = self._groups.setdefault(self._pad(item.length), [])
        insort(group, _Waiting(item, now, turn, self._arrived), key=lambda waiting: waiting.order)

    def cancel(self, ticket: int) -> bool:
        """Take an item out; False if it does not wait here (it runs, or is over)."""
        before = len(self)
        self.drop({ticket})
        return len(self) < before

    def drop(self, tickets: set[int]) -> None:
        """Take out those of some items that wait here."""
        for batch in self._retries:
            batch[:] = [item for item in batch if item.ticket not in tickets]
        for length, group in list(self._groups.items()):
            group[:] = [waiting for waiting in group if waiting.item.ticket not in tickets]
            if not group:
                del self._groups[length]

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
        length = self._choose(now)
        is_still_coming = self._arrived != self._seen
        self._seen = self._arrived
        if is_still_coming and len(self._groups[length]) < self._most(length):
            return None
        return self._take(length)

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

    def _choose(self, now: float) -> int:
        oldest = min(self._groups, key=lambda length: self._groups[length][0].order)
        if now - self._groups[oldest][0].since >= self._max_latency_s:
            return oldest
        return max(self._groups, key=self._fullness)

    def _fullness(self, length: int) -> tuple[float, float, int]:
        """Say how full a batch of a group would be; of equal ones the group comes first whose turn it is."""
        group = self._groups[length]
        turn, number = group[0].order
        return min(1.0, len(group) / self._most(length)), -turn, -number

    def _most(self, length: int) -> int:
        if not self._max_tokens:
            return self._max_size
        return max(1, min(self._max_size, self._max_tokens // length))

    def _take(self, length: int) -> list[Item]:
        group, most = self._groups[length], self._most(length)
        batch = [waiting.item for waiting in group[:most]]
        del group[:most]
        if not group:
            del self._groups[length]
        return batch
