"""What a broker's words mean for a request: progress, an end, a gap, "not now". No socket, no clock.

Only the session that a request is in now is heard about it; what comes late from an earlier one is dropped, and so is
everything behind its first terminal message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..protocol import messages as m
from ..protocol.errors import ErrorKind, RequestError, kind_of
from ..protocol.failure import Failure
from . import retry
from .connection import BrokerConnection
from .failover import Connections
from .request_table import RequestTable
from .requests import ClientRequest

if TYPE_CHECKING:
    import random

_MAX_RESYNCS: Final = 3
"""Gaps in a row without a new unit between them: this broker cannot replay the stream."""


class Replies:
    """Reads PARTIAL, FINAL, ERROR, ACCEPTED and PONG."""

    def __init__(self, table: RequestTable, connections: Connections, rng: random.Random) -> None:
        self._table = table
        self._connections = connections
        self._rng = rng

    def accepted(self, connection: BrokerConnection, accepted: m.Accepted, now: float) -> None:
        """Note that the broker holds it; later ones say that it has come further."""
        request = connection.requests.get(accepted.rid)
        if request is None:
            return
        connection.acknowledge(request)
        if "units" in accepted.ext:
            request.sent_at = now  # it is known to be there
            request.move_on(now)
            self._table.moved(request, now)

    def partial(self, connection: BrokerConnection, partial: m.Partial, now: float) -> None:
        """Deliver new units, in order and each once."""
        connection.count(len(partial.body))
        request = connection.requests.get(partial.rid)
        if request is None or not request.is_stream:
            return
        if partial.seq > request.expect:
            self._resync(connection, request, now)
            return
        connection.acknowledge(request, streaming=True)
        try:
            fresh = request.take(partial, now)
        except RequestError as error:
            connection.cancel(request, "unreadable")
            self._table.fail(request, request.error(ErrorKind.MODEL_RAISED, f"a chunk cannot be read: {error.text}"))
            return
        if partial.ext:
            request.learn_service(partial.ext)
        if fresh is not None:
            self._table.moved(request, now)
            self._table.deliver(request, fresh)

    def final(self, connection: BrokerConnection, final: m.Final, now: float) -> None:
        """End a request with its result, if nothing of it is missing."""
        connection.count(len(final.body))
        request = connection.requests.get(final.rid)
        if request is None:
            return
        if request.is_stream and final.total_n > request.expect:
            self._resync(connection, request, now)
        elif request.is_stream and final.total_n < request.expect:
            text = f"the stream ended at {final.total_n} units after {request.expect} were delivered"
            self._table.fail(request, request.error(ErrorKind.MODEL_RAISED, text))
        else:
            self._table.moved(request, now)
            self._table.finish(request, final)

    def _resync(self, connection: BrokerConnection, request: ClientRequest, now: float) -> None:
        """Ask again from the first missing unit on; what is on its way behind the gap is ignored meanwhile."""
        if request.is_resyncing:
            return
        request.resyncs += 1
        if request.resyncs > _MAX_RESYNCS:
            connection.cancel(request, "gap")
            text = f"units from {request.expect} on are missing, and the broker cannot send them again"
            self._table.fail(request, request.error(ErrorKind.NOT_RESUMABLE, text))
            return
        request.is_resyncing = True
        connection.add(request, now)

    def pong(self, connection: BrokerConnection, pong: m.Pong, now: float) -> None:
        """Send once more what the broker never saw."""
        for rid in connection.pong(pong):
            request = connection.requests.get(rid)
            if request is not None and not request.was_resent:
                request.was_resent = True
                connection.add(request, now)

    def error(self, connection: BrokerConnection, error: m.Error, now: float) -> None:
        """End a request without a result, or let it rest and ask again."""
        kind = kind_of(error.code, error.reason)
        if kind is ErrorKind.NO_SESSION:
            self._forgotten(connection, error.rid, now)
        elif error.rid is None:
            self._complaint(connection, error, now)
        else:
            request = connection.requests.get(error.rid)
            if request is not None:
                self._end(connection, request, kind, error, now)

    def _forgotten(self, connection: BrokerConnection, rid: bytes | None, now: float) -> None:
        """Greet again. These errors come before the next WELCOME, so what they name is still waiting for it."""
        self._connections.greet_again(connection, now)
        request = self._table.live.get(rid) if rid is not None else None
        if request is not None and request.connection is None:
            request.refused()

    def _complaint(self, connection: BrokerConnection, error: m.Error, now: float) -> None:
        """Before WELCOME it refuses the session; later it is about a message that named no request."""
        if not connection.is_open:
            refused = error.code in (401, 403)
            text = f"{connection.endpoint}: the broker refused the session: {error.text}"
            self._connections.lose(connection, Failure(text, refused or error.code == 426, refused), now)

    def _end(
        self, connection: BrokerConnection, request: ClientRequest, kind: ErrorKind, error: m.Error, now: float
    ) -> None:
        if error.retryable and error.code in retry.REFUSED and self._rest(connection, request, kind, error, now):
            return
        if error.code == 499:
            self._table.cancel(request, kind, error.text)
        else:
            self._table.fail(request, request.error(kind, error.text, retry_after_s=error.retry_after_ms / 1000))

    def _rest(
        self, connection: BrokerConnection, request: ClientRequest, kind: ErrorKind, error: m.Error, now: float
    ) -> bool:
        """Let a refused request wait as the broker said; False if it must not or cannot go on."""
        if kind is ErrorKind.QUEUE_FULL:
            self._table.follow_service(request)  # a queue that others of this client move in
        moves_on = kind is ErrorKind.DRAINING and self._connections.has_others
        if moves_on:
            self._connections.leave(connection, now + connection.timing.drain_s, now)
        wake_at = now + retry.pause_s(request, 0.0 if moves_on else error.retry_after_ms / 1000, self._rng)
        wake_at = retry.before_deadline(request, wake_at, now)
        if not retry.may_retry(request, wake_at, is_free=moves_on) or not request.refused():
            return False
        connection.drop(request)
        self._table.back_off(request, wake_at)
        return True
