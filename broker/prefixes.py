"""Which node lately had a prompt that begins like this one, and so has less of it to compute.

Clients say how prompts begin by hashes (protocol/prefix.py). The node of the longest known one is taken only while it
is about as free as the freest: a beginning that all prompts share must not send them all to one node.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from ..protocol.prefix import BORDERS, EXT_KEY

if TYPE_CHECKING:
    from .nodes import Node, Offer
    from .requests import Request
    from .services import Service

_MOST_KNOWN: Final = 4096


class Prefixes:
    """The prefixes of one service, the one used longest ago first."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[str, Offer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def choose(self, hint: str, best: Offer) -> Offer:
        """Return the offer that has the longest of the prefixes, or the best one; and remember which it was."""
        hashes = hint.split(",", len(BORDERS))[: len(BORDERS)]
        chosen = best
        for one in reversed(hashes):
            offer = self._known.get(one)
            if offer is not None and offer.index >= 0 and _is_about_as_free(offer.node, best.node):
                chosen = offer
                break
        for one in hashes:
            self._known[one] = chosen
            self._known.move_to_end(one)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return chosen

    def offers(self) -> set[int]:
        """Return the identities of all offers that are remembered, for tests."""
        return set(map(id, self._known.values()))

    def forget(self, offer: Offer) -> None:
        """Let go of an offer that is withdrawn."""
        for one in [one for one, known in self._known.items() if known is offer]:
            del self._known[one]


def place(service: Service, request: Request) -> Offer:
    """Return where a request goes that has not run yet; only while the ring of the service is not empty."""
    best = service.load_index.best()
    hint = request.ext.get(EXT_KEY)
    return service.prefixes.choose(hint, best) if type(hint) is str else best


def _is_about_as_free(node: Node, freest: Node) -> bool:
    """Whether the loads (running / capacity) differ by less than a tenth; in whole numbers, where a tenth is one."""
    more = len(node.running) * freest.capacity - len(freest.running) * node.capacity
    return 10 * more < node.capacity * freest.capacity
