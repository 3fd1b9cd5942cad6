"""Applies what a broker answers to the requests: progress, an end, a gap, "not now". No socket, no clock.

A request takes messages of its present session only: what comes late from an earlier one is dropped, and so is
everything after its first terminal message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..protocol import messages as m
from ..protocol.errors import ErrorKind, RequestError, kind_of
from ..protocol.failure import Failure
from ..protocol.timing import backoff_s
from .connection import BrokerConnection
from .failover import Connections
from .queue_place import place_in
from .request_table import RequestTable
from .requests import ClientRequest

if TYPE_CHECKING:
    import random

_REFUSED: Final = frozenset({429, 503})
_FIRST_SPREAD_S: Final = 0.05
_MOST_SPREAD_S: Final = 1.0
_LEAST_PAUSE_S: Final = 0.1
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
        request = self._table.at(connection, accepted.rid)
        if request is None:
            return
        request.acknowledge(connection)
        if request.call.on_wait is not None and (place := place_in(accepted.ext)) is not None:
            self._table.tell_place(request, place)
        if "units" in accepted.ext:
            request.sent_at = now  # it is known to be there
            request.move_on(now)
            self._table.moved(request, now)

    def partial(self, connection: BrokerConnection, partial: m.Partial, now: float) -> None:
        """Deliver new units, in order and each once."""
        connection.count(len(partial.body))
        request = self._table.at(connection, partial.rid)
        if request is None or not request.is_stream:
            return
        if partial.seq > request.expect:
            self._resync(connection, request, now)
            return
        request.acknowledge(connection, streaming=True)
        try:
            fresh = request.take(partial, now)
        except RequestError as error:
            request.cancel("unreadable")
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
        request = self._table.at(connection, final.rid)
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
            request.cancel("gap")
            text = f"units from {request.expect} on are missing, and the broker cannot send them again"
            self._table.fail(request, request.error(ErrorKind.NOT_RESUMABLE, text))
            return
        request.is_resyncing = True
        request.send(connection, now)

    def pong(self, connection: BrokerConnection, pong: m.Pong, now: float) -> None:
        """Send once more what the broker never saw."""
        for rid in connection.pong(pong):
            request = self._table.at(connection, rid)
            if request is not None and not request.was_resent:
                request.was_resent = True
                request.send(connection, now)

    def error(self, connection: BrokerConnection, error: m.Error, now: float) -> None:
        """End a request without a result, or let it back off and ask again."""
        kind = kind_of(error.code, error.reason)
        if kind is ErrorKind.NO_SESSION:
            self._forgotten(connection, error.rid, now)
        elif error.rid is None:
            self._complaint(connection, error, now)
        else:
            request = self._table.at(connection, error.rid)
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
        if error.retryable and error.code in _REFUSED and self._try_again_later(connection, request, kind, error, now):
            return
        if error.code == 499:
            self._table.cancel(request, kind, error.text)
        else:
            self._table.fail(request, request.error(kind, error.text, retry_after_s=error.retry_after_ms / 1000))

    def _try_again_later(
        self, connection: BrokerConnection, request: ClientRequest, kind: ErrorKind, error: m.Error, now: float
    ) -> bool:
        """Let a refused request wait as the broker said; False if it must not or cannot go on."""
        if kind is ErrorKind.QUEUE_FULL:
            self._table.follow_service(request)  # a queue that others of this client move in
        moves_on = kind is ErrorKind.DRAINING and self._connections.has_others
        if moves_on:
            self._connections.leave(connection, now + connection.timing.drain_s, now)
        wake_at = now + _pause_s(request, 0.0 if moves_on else error.retry_after_ms / 1000, self._rng)
        wake_at = _before_deadline(request, wake_at, now)
        if not _may_retry(request, wake_at, is_free=moves_on) or not request.refused():
            return False
        request.leave()
        self._table.back_off(request, wake_at)
        return True


# --- when to ask again after "not now": as long as the caller wants that, there is time, and it can do no harm


def _pause_s(request: ClientRequest, retry_after_s: float, rng: random.Random) -> float:
    """Wait as told, and a little more by chance, or all who were refused together would come back together."""
    spread_s = backoff_s(request.refusals, _FIRST_SPREAD_S, _MOST_SPREAD_S)
    return retry_after_s * rng.uniform(1.0, 1.25) + rng.uniform(0.0, spread_s)


def _before_deadline(request: ClientRequest, wake_at: float, now: float) -> float:
    """Bring the next try of a request that was accepted once to half of the time that is left, if it would be too late.

    When the queue will have emptied is only a broker's guess, and this one was promised an end.
    """
    if not request.was_accepted or wake_at < request.due_at:
        return wake_at
    return now + max(_LEAST_PAUSE_S, (request.due_at - now) / 2)


def _may_retry(request: ClientRequest, wake_at: float, *, is_free: bool = False) -> bool:
    """Say whether to ask again at `wake_at`; a free try (the broker is leaving, another is there) is not counted."""
    retries = request.call.retries
    is_wanted = is_free or retries is None or request.refusals < retries
    return is_wanted and wake_at < request.due_at
