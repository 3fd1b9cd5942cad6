"""Which node gets the next request: the least loaded one, found in constant time.

Load is the broker's own exact count over the node's capacity, in 64 steps; among equals the one with more free KV
memory (four steps), then the one that waited longest. Every offer of a service stands in one of 256 ordered sets, and
one integer has a bit for each set that is not empty, so the best set is its lowest bit.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from .nodes import KV_STEPS

if TYPE_CHECKING:
    from .nodes import Node, Offer

LOAD_STEPS: Final = 64
_BITS: Final = tuple(1 << index for index in range(LOAD_STEPS * KV_STEPS))


class LoadIndex:
    """The offers of one service that can take a request now."""

    __slots__ = ("_sets", "mask")

    def __init__(self) -> None:
        self.mask = 0
        self._sets: dict[int, OrderedDict[Offer, None]] = {}
        """Those that are not empty: a service that nobody offers costs next to nothing."""

    def __len__(self) -> int:
        return sum(map(len, self._sets.values()))

    def __contains__(self, offer: Offer) -> bool:
        return offer.index >= 0 and offer in self._sets[offer.index]

    def put(self, offer: Offer, index: int) -> None:
        """Move an offer to the end of a set; -1 takes it out."""
        old = offer.index
        if old == index:
            if old >= 0:
                self._sets[old].move_to_end(offer)
            return
        if old >= 0:
            held = self._sets[old]
            del held[offer]
            if not held:
                del self._sets[old]
                self.mask ^= _BITS[old]
        offer.index = index
        if index >= 0:
            if not self.mask & _BITS[index]:
                self._sets[index] = OrderedDict()
                self.mask |= _BITS[index]
            self._sets[index][offer] = None

    def best(self) -> Offer:
        """Return the least loaded offer; only while `mask` is not 0."""
        mask = self.mask
        return next(iter(self._sets[(mask & -mask).bit_length() - 1]))

    def best_for(self, avoid: Node | None, revision: str | None) -> Offer | None:
        """Return the least loaded offer of an equal revision, on another node than `avoid` where there is one.

        Only for requests that come back: it walks, where `best` looks once.
        """
        fallback: Offer | None = None
        mask = self.mask
        while mask:
            low = mask & -mask
            mask ^= low
            for offer in self._sets[low.bit_length() - 1]:
                if revision is not None and offer.spec.revision != revision:
                    continue
                if offer.node is not avoid:
                    return offer
                fallback = fallback or offer
        return fallback


def level(node: Node) -> int:
    """Return the set in which a node's offers belong; -1 if it may not be given one more request."""
    running = len(node.running)
    if not node.is_usable or node.dispatched >= node.limit:
        return -1
    if running >= node.most or running >= node.ready.capacity:
        return -1
    load = running * LOAD_STEPS // min(node.capacity, node.most)
    return (load if load < LOAD_STEPS else LOAD_STEPS - 1) * KV_STEPS + node.kv_step


def reindex(node: Node) -> None:
    """Put all offers of a node where its load says; call it after anything about the node has changed."""
    index = level(node)
    for offer in node.offers.values():
        wanted = index if offer.running < offer.max_inflight else -1
        if wanted != offer.index:
            offer.service.load_index.put(offer, wanted)


def reindex_after_dispatch(node: Node) -> None:
    """Do the same, and put its offers behind the others of their set: the next equal request goes elsewhere."""
    index = level(node)
    for offer in node.offers.values():
        offer.service.load_index.put(offer, index if offer.running < offer.max_inflight else -1)
