"""Records what an operator may want to know: nodes that come, go and fall silent, requests that had to move.

The monitor shows the newest events, the log has them all. Equal events within a second are one event that counts, so
that a flood of refusals is a line and not a flood of lines.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from ..protocol import messages as m
from ..protocol.sanitize import printable
from ..protocol.snapshot import MAX_EVENTS, EventKind, EventLevel, FleetEvent

_WINDOW_S: Final = 1.0
_MOST_UNLOGGED: Final = 10_000
"""A fleet of thousands that joins at once, within the tenth of a second between two looks."""
_LEVELS: Final[dict[EventKind, EventLevel]] = {
    "joined": "info",
    "same_name": "warning",
    "fallback": "warning",
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
    "key_refused": "warning",
    "key_ended": "warning",
}
"""info: as it should be. warning: somebody may have waited longer, or was refused. error: a machine needs a look."""


NODE_EVENTS: Final = frozenset(_LEVELS) - {"rejected", "request_failed", "muted", "key_refused", "key_ended"}
"""Those whose subject is a node; that of the others is a reason, a side, an address or a principal."""


class _Entry(msgspec.Struct, eq=False):
    id: int
    kind: EventKind
    subject: str
    text: str
    rid: str
    request_id: str
    at: float
    count: int


class EventLog:
    """The newest events, oldest first; and those that the shell has not logged yet."""

    __slots__ = ("_entries", "_last", "_last_id", "_started_at", "_unlogged")

    def __init__(self, started_at: float) -> None:
        self._started_at = started_at
        self._last_id = 0
        self._last: dict[tuple[EventKind, str], _Entry] = {}
        self._entries: deque[_Entry] = deque(maxlen=MAX_EVENTS)
        self._unlogged: deque[_Entry] = deque(maxlen=_MOST_UNLOGGED)

    def record(
        self, kind: EventKind, subject: str, text: str, now: float, ask: m.Request | None = None, *, count: int = 1
    ) -> None:
        """Record that something happened to a node, or (rejections, failures) for a reason; `ask`: to which."""
        entry = self._last.get((kind, subject))
        if entry is None or now - entry.at >= _WINDOW_S:
            entry = self._begin(kind, subject, now)
        entry.count += count
        entry.text = text
        if ask is not None:
            name = ask.ext.get("request_id")
            entry.rid, entry.request_id = ask.rid.hex(), name if isinstance(name, str) else ""

    def _begin(self, kind: EventKind, subject: str, now: float) -> _Entry:
        self._last_id += 1
        entry = _Entry(self._last_id, kind, subject, "", "", "", now, 0)
        self._last.pop((kind, subject), None)
        if len(self._last) >= MAX_EVENTS:
            del self._last[next(iter(self._last))]  # the oldest: a thousand subjects a second are no window's worth
        self._last[kind, subject] = entry
        self._entries.append(entry)
        self._unlogged.append(entry)
        return entry

    def newest(self) -> list[FleetEvent]:
        """List the newest events."""
        return [self._event(entry) for entry in self._entries]

    def take_unlogged(self, now: float) -> list[FleetEvent]:
        """Return each event once; one that may yet happen again within its second, when that is over."""
        ripe: list[FleetEvent] = []
        while self._unlogged:
            entry = self._unlogged[0]
            if entry.kind not in NODE_EVENTS and now - entry.at < _WINDOW_S:
                break
            ripe.append(self._event(self._unlogged.popleft()))
        return ripe

    def _event(self, entry: _Entry) -> FleetEvent:
        return FleetEvent(
            id=entry.id,
            at_s=entry.at - self._started_at,
            level=_LEVELS[entry.kind],
            kind=entry.kind,
            subject=printable(entry.subject),
            text=printable(entry.text),
            count=entry.count,
            rid=entry.rid,
            request_id=printable(entry.request_id),
        )
