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
from .book import Book
from .connection import Link
from .naming import Naming
from .requests import Request
from .sessions import Sessions

if TYPE_CHECKING:
    import random

_MAX_RESYNCS: Final = 3
"""Gaps in a row without a new unit between them: this broker cannot replay the stream."""


class Replies:
    """Reads PARTIAL, FINAL, ERROR, ACCEPTED and PONG."""

    def __init__(self, book: Book, sessions: Sessions, naming: Naming, rng: random.Random) -> None:
        self._book = book
        self._sessions = sessions
        self._naming = naming
        self._rng = rng

    def accepted(self, link: Link, accepted: m.Accepted, now: float) -> None:
        """Note that the broker holds it; later ones say that it has come further."""
        request = link.requests.get(accepted.rid)
        if request is None:
            return
        link.acknowledge(request)
        if "units" in accepted.ext:
            request.sent_at = now  # it is known to be there
            request.move_on(now)
            self._book.moved(request, now)

    def partial(self, link: Link, partial: m.Partial, now: float) -> None:
        """Deliver new units, in order and each once."""
        link.count(len(partial.body))
        request = link.requests.get(partial.rid)
        if request is None or not request.is_stream:
            return
        if partial.seq > request.expect:
            self._resync(link, request, now)
            return
        link.acknowledge(request, streaming=True)
        try:
            fresh = request.take(partial, now)
        except RequestError as error:
            link.cancel(request, "unreadable")
            self._book.fail(request, request.error(ErrorKind.MODEL_RAISED, f"a chunk cannot be read: {error.text}"))
            return
        if fresh is not None:
            self._book.moved(request, now)
            self._book.deliver(request, fresh)

    def final(self, link: Link, final: m.Final, now: float) -> None:
        """End a request with its result, if nothing of it is missing."""
        link.count(len(final.body))
        request = link.requests.get(final.rid)
        if request is None:
            return
        if request.is_stream and final.total_n > request.expect:
            self._resync(link, request, now)
        elif request.is_stream and final.total_n < request.expect:
            text = f"the stream ended at {final.total_n} units after {request.expect} were delivered"
            self._book.fail(request, request.error(ErrorKind.MODEL_RAISED, text))
        else:
            self._book.moved(request, now)
            self._book.finish(request, final)

    def _resync(self, link: Link, request: Request, now: float) -> None:
        """Ask again from the first missing unit on; what is on its way behind the gap is ignored meanwhile."""
        if request.is_resyncing:
            return
        request.resyncs += 1
        if request.resyncs > _MAX_RESYNCS:
            link.cancel(request, "gap")
            text = f"units from {request.expect} on are missing, and the broker cannot send them again"
            self._book.fail(request, request.error(ErrorKind.NOT_RESUMABLE, text))
            return
        request.is_resyncing = True
        link.add(request, now)

    def pong(self, link: Link, pong: m.Pong, now: float) -> None:
        """Send once more what the broker never saw."""
        for rid in link.pong(pong):
            request = link.requests.get(rid)
            if request is not None and not request.was_resent:
                request.was_resent = True
                link.add(request, now)

    def error(self, link: Link, error: m.Error, now: float) -> None:
        """End a request without a result, or let it rest and ask again."""
        kind = kind_of(error.code, error.reason)
        if kind is ErrorKind.NO_SESSION:
            self._forgotten(link, error.rid, now)
        elif error.rid is None:
            self._complaint(link, error, now)
        else:
            request = link.requests.get(error.rid)
            if request is not None:
                self._end(link, request, kind, error, now)

    def _forgotten(self, link: Link, rid: bytes | None, now: float) -> None:
        """Greet again. These errors come before the next WELCOME, so what they name is still waiting for it."""
        self._sessions.greet_again(link, now)
        request = self._book.live.get(rid) if rid is not None else None
        if request is not None and request.link is None:
            request.refused()

    def _complaint(self, link: Link, error: m.Error, now: float) -> None:
        """Before WELCOME it refuses the session; later it is about a message that named no request."""
        if not link.is_open:
            refused = error.code in (401, 403)
            text = f"{link.endpoint}: the broker refused the session: {error.text}"
            self._sessions.lose(link, Failure(text, refused or error.code == 426, refused), now)

    def _end(self, link: Link, request: Request, kind: ErrorKind, error: m.Error, now: float) -> None:
        if kind is ErrorKind.NOT_FOUND:
            self._naming.forget()
            if not request.call.service and request.refusals == 0 and request.refused():
                self._book.name_again(request)
                return
        if error.retryable and error.code in retry.REFUSED and self._rest(link, request, kind, error, now):
            return
        if error.code == 499:
            self._book.cancel(request, kind, error.text)
        else:
            self._book.fail(request, request.error(kind, error.text, retry_after_s=error.retry_after_ms / 1000))

    def _rest(self, link: Link, request: Request, kind: ErrorKind, error: m.Error, now: float) -> bool:
        """Let a refused request wait as the broker said; False if it must not or cannot go on."""
        if kind is ErrorKind.QUEUE_FULL:
            self._book.follow_service(request)  # a queue that others of this client move in
        moves_on = kind is ErrorKind.DRAINING and self._sessions.has_others
        if moves_on:
            self._sessions.leave(link, now + link.timing.drain_s, now)
        wake_at = now + retry.pause_s(request, 0.0 if moves_on else error.retry_after_ms / 1000, self._rng)
        wake_at = retry.before_deadline(request, wake_at, now)
        if not retry.may_retry(request, wake_at, is_free=moves_on) or not request.refused():
            return False
        link.drop(request)
        self._book.rest(request, wake_at)
        return True
