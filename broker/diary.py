"""What an operator may want to know, as it happens: nodes that come, go and fall silent, requests that had to move.

The monitor shows the newest, the log has them all. Equal events within a second are one event that counts, so that a
flood of refusals is a line and not a flood of lines.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from ..protocol.snapshot import MAX_EVENTS, EventKind, FleetEvent, Level

_WINDOW_S: Final = 1.0
_LEVELS: Final[dict[EventKind, Level]] = {
    "joined": "info",
    "ready": "info",
    "returned": "info",
    "recovered": "info",
    "draining": "info",
    "left": "info",
    "suspect": "warning",
    "lost": "warning",
    "evicted": "error",
    "failed": "error",
    "restarted": "warning",
    "resumed": "warning",
    "rejected": "warning",
    "request_failed": "warning",
    "muted": "warning",
}
"""info: as it should be. warning: somebody may have waited longer, or was refused. error: a machine needs a look."""


NODE_EVENTS: Final = frozenset(_LEVELS) - {"rejected", "request_failed", "muted"}
"""Those whose subject is a node; that of the others is a reason, or a side."""


class _Entry(msgspec.Struct, eq=False):
    id: int
    kind: EventKind
    subject: str
    text: str
    rid: bytes
    at: float
    count: int


class Diary:
    """The newest events, oldest first. `fresh` holds those that the shell has not logged yet."""

    __slots__ = ("_last", "_last_id", "_started_at", "entries", "fresh")

    def __init__(self, started_at: float) -> None:
        self._started_at = started_at
        self._last_id = 0
        self._last: dict[tuple[EventKind, str], _Entry] = {}
        self.entries: deque[_Entry] = deque(maxlen=MAX_EVENTS)
        self.fresh: deque[FleetEvent] = deque(maxlen=MAX_EVENTS)

    def note(self, kind: EventKind, subject: str, text: str, now: float, rid: bytes = b"", *, count: int = 1) -> None:
        """Write down that something happened to a node, or (rejections, failures) for a reason."""
        entry = self._last.get((kind, subject))
        if entry is not None and now - entry.at < _WINDOW_S:
            entry.count += count
            entry.text, entry.rid = text, rid
            return
        self._last_id += 1
        entry = _Entry(self._last_id, kind, subject, text, rid, now, count)
        if len(self._last) >= MAX_EVENTS:
            self._last = {key: one for key, one in self._last.items() if now - one.at < _WINDOW_S}
        self._last[kind, subject] = entry
        self.entries.append(entry)
        self.fresh.append(self._told(entry))

    def tell(self) -> list[FleetEvent]:
        """List the newest events."""
        return [self._told(entry) for entry in self.entries]

    def _told(self, entry: _Entry) -> FleetEvent:
        return FleetEvent(
            id=entry.id,
            at_s=entry.at - self._started_at,
            level=_LEVELS[entry.kind],
            kind=entry.kind,
            subject=entry.subject,
            text=entry.text,
            count=entry.count,
            rid=entry.rid.hex(),
        )
