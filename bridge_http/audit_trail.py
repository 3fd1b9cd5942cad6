"""What the audit log is told of a request, and what becomes of requests while it cannot be written."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from .access import Caller
from .audit import AuditLine, AuditLog
from .config import BridgeSettings
from .errors import RefusedError
from .in_flight import HttpRequest

STRANGERS_PER_S: Final = 10
"""Lines about callers that were not let in: more than a person reads. Whoever has no key fills no disk."""


class AuditTrail:
    """One bridge's requests, as its audit log knows them."""

    def __init__(self, audit: AuditLog, settings: BridgeSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._audit = audit
        self._clock = clock
        self._left = float(STRANGERS_PER_S)
        self._at = clock()
        self._left_out = 0
        self._is_needed = settings.unrecorded == "refuse"

    def admit(self, caller: Caller) -> Caller:
        """Refuse a request that could not be recorded, where that matters. Its own line tries the file again."""
        if not self._is_needed or not self._audit.problem or caller.refused is not None:
            return caller
        text = "what is asked cannot be recorded now, so nothing is answered; the log of this bridge says why"
        return caller._replace(refused=RefusedError(503, "unrecorded", text))

    def note(self, request: HttpRequest, status: int, took_s: float) -> None:
        """Write down how a request ended."""
        caller, key, standing = request.caller, request.caller.key, request.caller.standing
        is_strange = caller.refused is not None and key is None
        if is_strange and not self._has_room():
            self._left_out += 1
            return
        peer = request.scope.get("client")
        self._audit.write(
            AuditLine(
                request_id=caller.request_id,
                tenant=caller.tenant,
                name=key.name if key is not None else "",
                key=key.id if key is not None else "",
                peer=str(peer[0]) if peer else "",
                method="POST",
                path=request.path,
                status=status,
                model=standing.model if standing is not None else "",
                prompt_tokens=standing.prompt_tokens if standing is not None else 0,
                completion_tokens=standing.completion_tokens if standing is not None else 0,
                seconds=round(took_s, 3),
                left_out=self._left_out if is_strange else 0,
            )
        )
        if is_strange:
            self._left_out = 0

    def _has_room(self) -> bool:
        now = self._clock()
        self._left = min(float(STRANGERS_PER_S), self._left + (now - self._at) * STRANGERS_PER_S)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
