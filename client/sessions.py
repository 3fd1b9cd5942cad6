"""Which broker is used: opening sessions, losing them, moving on, and saying what is in the way. No socket, no clock.

There is one session for new work (`current`), at most one being opened, and those that are leaving but still busy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..protocol import messages as m
from ..protocol.errors import ErrorKind, ZmqrtError, request_error
from ..protocol.failure import Failure
from ..protocol.limits import MAX_NAME_CHARS, WINDOW_BYTES
from .book import Book
from .connection import Link, LinkState
from .endpoints import STEADY_S, Endpoints
from .timers import INFINITY

if TYPE_CHECKING:
    import random

    from .config import ClientConfig

_PAUSE_S: Final = 0.1
"""Longest pause between two attempts while somebody has just begun to wait."""
_MAX_GREETINGS: Final = 3
"""A broker that forgets the session more often than this is not well."""


@dataclass(frozen=True, slots=True)
class Open:
    """Make a socket for the link and connect it."""

    link: Link


@dataclass(frozen=True, slots=True)
class Close:
    """Send what is left in the link's outbox and close its socket."""

    link: Link
    why: str


@dataclass(frozen=True, slots=True)
class Diagnose:
    """Find out what answers at the endpoint, and report by `explained`."""

    endpoint: str
    broke_off: bool


Action = Open | Close | Diagnose


class Sessions:
    """All links of a client. What a lost one leaves unfinished goes back into the book."""

    def __init__(self, config: ClientConfig, client_uuid: bytes, book: Book, rng: random.Random) -> None:
        self.actions: list[Action] = []
        self.links: dict[int, Link] = {}
        self.current: Link | None = None
        self.down_since = 0.0
        self._config = config
        self._uuid = client_uuid
        self._book = book
        self._rng = rng
        self._endpoints = Endpoints(config.endpoints, rng)
        self._opening: Link | None = None
        self._open_at = INFINITY
        self._last_id = 0

    # --- opening

    def start(self, now: float) -> None:
        """Begin to connect."""
        self.down_since = now
        self._open_at = now

    def hurry(self, now: float) -> None:
        """Do not sit out a long pause between attempts: somebody waits now."""
        if _PAUSE_S < self._open_at - now < INFINITY:
            self._open_at = now + self._rng.uniform(0, _PAUSE_S)

    def greet(self, link: Link, now: float) -> None:
        """Say HELLO once the ZMTP handshake is done."""
        if link.state is LinkState.OPENING:
            self._hello(link, now)

    def _hello(self, link: Link, now: float) -> None:
        link.greet(m.Hello(self._uuid, m.VERSION, m.VERSION, self._config.name[:MAX_NAME_CHARS], WINDOW_BYTES), now)

    def welcome(self, link: Link, welcome: m.Welcome, now: float) -> bool:
        """Use a session that is open; False if it was not waited for."""
        if link.state is not LinkState.HELLO_SENT:
            return False
        link.welcome(welcome, self._config.max_outstanding, now)
        self._opening = None
        self._open_at = INFINITY
        self._endpoints.welcomed(link.endpoint)
        self._endpoints.learn(welcome.params.brokers)
        self.current = link
        return True

    def _open(self, now: float) -> None:
        self._open_at = INFINITY
        self._last_id += 1
        link = self._opening = Link(self._last_id, self._endpoints.choose(now), now)
        self.links[link.id] = link
        self.actions.append(Open(link))

    # --- losing

    def lose(self, link: Link, failure: Failure | None, now: float) -> None:
        """Give a connection up that is gone or never came to be; None = the cause is not known yet."""
        if link.state is LinkState.DEAD:
            return
        lost = link.strand()
        self._shut(link, failure.text if failure is not None else f"{link.endpoint}: no connection")
        self._book.put_back(lost)
        if link is self._opening:
            self._opening = None
            self._open_at = now + self._endpoints.failed(link.endpoint, failure)
            if failure is None:
                self.actions.append(Diagnose(link.endpoint, link.broke_off))
        elif link is self.current:
            self._go_down(link, now)
            if failure is not None:
                self._endpoints.explained(link.endpoint, failure)

    def greet_again(self, link: Link, now: float) -> None:
        """Open a session anew in its old connection: the broker has forgotten it (it took us for gone)."""
        if link.state is not LinkState.UP:
            return  # greeted already
        if link.greetings >= _MAX_GREETINGS:
            self.lose(link, Failure(f"{link.endpoint}: the broker forgets this session again and again"), now)
            return
        stranded = link.strand()
        for request in stranded:
            request.known_to = None  # what the broker forgot it may have cancelled, too
        self._book.put_back(stranded)
        if link is self.current:
            self.current = None
            self.down_since = now
        self._opening = link
        self._hello(link, now)

    def leave(self, link: Link, until: float, now: float) -> None:
        """Send new work to the next broker; what runs here may finish."""
        if link.state is not LinkState.UP:
            return
        link.state = LinkState.LEAVING
        link.leave_by = until
        self._endpoints.leaving(link.endpoint, until)
        if link is self.current:
            self._go_down(link, now)

    def close(self) -> None:
        """Say goodbye to all."""
        for link in list(self.links.values()):
            if link.is_open:
                link.outbox.append(m.Bye())
            self._shut(link, f"{link.endpoint}: closed here")
        self._open_at = INFINITY
        self.current = None

    def shut_if_done(self, link: Link) -> None:
        """Say goodbye to a broker that is leaving, once it owes us nothing."""
        if link.state is LinkState.LEAVING and not link.requests and not link.asked:
            link.outbox.append(m.Bye())
            self._shut(link, f"{link.endpoint}: the broker is leaving, and nothing is left to do there")

    def _go_down(self, link: Link, now: float) -> None:
        self.current = None
        lasted_s = now - link.up_since
        if lasted_s >= STEADY_S:
            self.down_since = now  # else it was none: callers wait no longer because of it
        self._open_at = now + self._endpoints.lost(lasted_s)

    def _shut(self, link: Link, why: str) -> None:
        link.state = LinkState.DEAD
        self.links.pop(link.id, None)
        self.actions.append(Close(link, why))

    # --- time

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        due = self._open_at
        for link in self.links.values():
            due = min(due, link.next_deadline())
        return due

    def tick(self, now: float) -> None:
        """Look after every session, and open one if it is time."""
        for link in list(self.links.values()):
            self._check(link, now)
        if now >= self._open_at:
            self._open(now)

    def _check(self, link: Link, now: float) -> None:
        is_vague = link.state is LinkState.OPENING  # a look at who answers there will say more
        failure = link.check(now)
        if failure is not None:
            self.lose(link, None if is_vague else failure, now)
        elif now >= link.leave_by:
            self.lose(link, Failure(f"{link.endpoint}: the broker has left"), now)
        else:
            self.shut_if_done(link)

    # --- what is in the way

    def explained(self, endpoint: str, failure: Failure) -> None:
        """Learn the cause of an earlier failure."""
        self._endpoints.explained(endpoint, failure)

    @property
    def patience_s(self) -> float:
        """How long to let callers wait for a session that does not come."""
        if self._endpoints.is_hopeless:
            return 0.0
        if self._endpoints.is_explained:
            return self._config.connect_timeout_s / 2  # whoever starts client and broker together still succeeds
        return self._config.connect_timeout_s

    def unreachable(self, waited_s: float) -> ZmqrtError:
        """Put into one error why there is no session."""
        if self._is_leaving() and not self._endpoints.is_explained:
            return _leaving()
        return self._endpoints.error(waited_s)

    def unanswered(self) -> ZmqrtError:
        """Say why a question was not answered in its time."""
        if self.current is None and self._is_leaving():
            return _leaving()
        if self.current is None and self._endpoints.is_explained:
            return self._endpoints.error(0.0)
        return request_error(ErrorKind.DEADLINE, "the broker did not answer the question in time")

    def _is_leaving(self) -> bool:
        return any(link.state is LinkState.LEAVING for link in self.links.values())

    @property
    def has_others(self) -> bool:
        """Whether there is more than one broker to choose from."""
        return self._endpoints.count > 1


def _leaving() -> ZmqrtError:
    return request_error(ErrorKind.DRAINING, "the broker is shutting down, and there is no other", retry_after_s=1.0)
