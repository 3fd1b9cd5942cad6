"""Which node gets the next request: the least loaded one, unless one that is about as free knows how its prompt begins.

Load is the broker's own exact count over the node's capacity, in 64 steps; among equals the node with more free KV
memory comes first (four steps), then the one that waited longest. Every offer of a service stands in one of 256 ordered
sets, its level, and one integer has a bit for each set that is not empty. So the best set is the lowest bit, and
finding a node takes the same time among three nodes as among three thousand.

Why 64 steps: a device runs at most some hundreds of sequences, and a difference below a 64th of that is less than what
one long prompt does to it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from ..protocol.capabilities import NOTHING
from ..protocol.prefix import BORDERS
from .nodes import ANYWHERE, KV_STEPS, Demand, Node, Offer

LOAD_STEPS: Final = 64
_MOST_KNOWN: Final = 4096
"""Prefixes remembered for one service."""
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
        return offer.level >= 0 and offer in self._sets[offer.level]

    def put(self, offer: Offer, level: int) -> None:
        """Move an offer to the end of a set; -1 takes it out."""
        old = offer.level
        if old == level:
            if old >= 0:
                self._sets[old].move_to_end(offer)
            return
        if old >= 0:
            held = self._sets[old]
            del held[offer]
            if not held:
                del self._sets[old]
                self.mask ^= _BITS[old]
        offer.level = level
        if level >= 0:
            if not self.mask & _BITS[level]:
                self._sets[level] = OrderedDict()
                self.mask |= _BITS[level]
            self._sets[level][offer] = None

    def best(self) -> Offer:
        """Return the least loaded offer; only while `mask` is not 0."""
        mask = self.mask
        return next(iter(self._sets[(mask & -mask).bit_length() - 1]))

    def best_for(self, avoid: Node | None, demand: Demand) -> Offer | None:
        """Return the least loaded offer that meets a demand, on another node than `avoid` where there is one.

        Only for requests that come back, or that not every node can serve: it walks, where `best` looks once.
        """
        fallback: Offer | None = None
        mask = self.mask
        while mask:
            low = mask & -mask
            mask ^= low
            for offer in self._sets[low.bit_length() - 1]:
                if not demand.is_met_by(offer.supply):
                    continue
                if offer.node is not avoid:
                    return offer
                fallback = fallback or offer
        return fallback

    def meets(self, demand: Demand) -> bool:
        """Say whether a node that meets a demand is free."""
        return bool(self.mask) if demand == ANYWHERE else self.best_for(None, demand) is not None


class Prefixes:
    """Which node lately had a prompt that begins in the same way, and so has less of it to compute; for one service.

    Clients say how prompts begin by hashes (protocol/prefix.py). The node of the longest known one is taken only while
    it is about as free as the freest: a beginning that all prompts share must not send them all to one node.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[str, Offer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def choose(self, hint: str, best: Offer, needs: frozenset[str] = NOTHING) -> Offer:
        """Return the offer that has the longest of the prefixes and can do what is needed, or the best one; and
        remember which it was.
        """
        hashes = hint.split(",", len(BORDERS))[: len(BORDERS)]
        chosen = best
        for prefix in reversed(hashes):
            offer = self._known.get(prefix)
            if offer is None or offer.level < 0 or not needs <= offer.supply.can:
                continue
            if _is_about_as_free(offer.node, best.node):
                chosen = offer
                break
        for prefix in hashes:
            self._known[prefix] = chosen
            self._known.move_to_end(prefix)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return chosen

    def offers(self) -> set[int]:
        """Return the identities of all offers that are remembered, for tests."""
        return set(map(id, self._known.values()))

    def forget(self, offer: Offer) -> None:
        """Let go of an offer that is withdrawn."""
        for prefix in [prefix for prefix, known in self._known.items() if known is offer]:
            del self._known[prefix]


def load_level(node: Node) -> int:
    """Return the set in which a node's offers belong; -1 if it may not be given one more request."""
    running = len(node.running)
    if not node.is_usable or node.dispatched >= node.limit:
        return -1
    if running >= node.most or running >= node.ready.capacity:
        return -1
    load = running * LOAD_STEPS // min(node.capacity, node.most)
    return (load if load < LOAD_STEPS else LOAD_STEPS - 1) * KV_STEPS + node.kv_step


def _is_about_as_free(node: Node, freest: Node) -> bool:
    """Whether the loads (running / capacity) differ by less than a tenth; in whole numbers, where a tenth is one."""
    more = len(node.running) * freest.capacity - len(freest.running) * node.capacity
    return 10 * more < node.capacity * freest.capacity
