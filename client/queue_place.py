"""Where a request stands that waits at a broker: what the broker tells of it, as callers read it."""

from __future__ import annotations

from typing import Final

import msgspec

from ..protocol import messages as m

PLACE_KEY: Final = "place"
"""In ext of a REQUEST: tell me. In ext of the ACCEPTED that do: `before` and `wait_ms`."""


class QueuePlace(msgspec.Struct, frozen=True):
    """A place in a queue, as the broker sees it now.

    Attributes:
        before: How many requests have their turn first.
        wait_s: How long that will take, by what the nodes were measured to need.
    """

    before: int
    wait_s: float

    def __str__(self) -> str:
        """Say it in a few words."""
        return f"{self.before} before this one, about {in_words(self.wait_s)}"


def place_in(ext: m.Ext) -> QueuePlace | None:
    """Read what a broker tells; None if it tells nothing of a place, or nothing that can be read."""
    before, wait_ms = ext.get("before"), ext.get("wait_ms")
    if type(before) is not int or type(wait_ms) is not int or before < 0 or wait_ms < 0:
        return None
    return QueuePlace(before, wait_ms / 1000)


def in_words(wait_s: float) -> str:
    """Round a time as far as it is known."""
    if wait_s < 1:
        return "a moment"
    if wait_s < 90:
        return f"{wait_s:.0f} s"
    return f"{wait_s / 60:.0f} min"
