"""What the audit log is told of a request, and what becomes of requests while it cannot be written."""

from __future__ import annotations

from .access import Caller
from .audit import AuditLine, AuditLog
from .config import BridgeSettings
from .errors import RefusedError
from .in_flight import HttpRequest


class AuditTrail:
    """One bridge's requests, as its audit log knows them."""

    def __init__(self, audit: AuditLog, settings: BridgeSettings) -> None:
        self._audit = audit
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
            )
        )
