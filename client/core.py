"""The client's decisions: which broker, which request goes out when, what a loss means, when to give up.

Messages, failures and wishes come in with `now`; what to do comes out: `actions` for sockets, `events` for whoever
waits, and each link's `outbox`. No socket, clock, thread or chance of its own, so every fault can be tried in a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, assert_never

from ..protocol import messages as m
from ..protocol.errors import Kind, RequestError, ZmqrtError, clip, kind_of, request_error
from ..protocol.limits import MAX_OUTSTANDING, WINDOW_BYTES
from . import questions
from .book import Book, Timers
from .catalogue import Catalogue
from .connection import INFINITY, Link, LinkState
from .endpoints import Endpoints, Failure
from .reading import Event
from .requests import Request, Sink

if TYPE_CHECKING:
    import random

    from .config import ClientConfig

_JUDGE_EVERY_S: Final = 0.1
_MAX_RESYNCS: Final = 3
"""Gaps in a row without a new unit between them: this broker cannot replay the stream."""
_MAX_GREETINGS: Final = 3
_REFUSED: Final = frozenset({429, 503})


@dataclass(frozen=True, slots=True)
class Open:
    """Make a socket for the link and connect it."""

    link: Link


@dataclass(frozen=True, slots=True)
class Close:
    """Send what is left in the link's outbox and close its socket."""

    link: Link


@dataclass(frozen=True, slots=True)
class Diagnose:
    """Find out what answers at the endpoint, and report by `explained`."""

    endpoint: str


Action = Open | Close | Diagnose


class Ask:
    """A question to the broker that waits for its answer; without a message only a session is wanted."""

    __slots__ = ("asked_at", "deadline", "message", "qid", "sink")

    def __init__(
        self, message: Callable[[int], m.Query | m.Admin] | None, sink: Sink | None, now: float, timeout_s: float
    ) -> None:
        self.qid = 0
        self.message = message
        self.sink = sink
        self.asked_at = now
        self.deadline = now + timeout_s


class ClientCore:
    """One client, whatever the number of threads and tasks that use it."""

    def __init__(self, config: ClientConfig, client_uuid: bytes, rng: random.Random) -> None:
        self.actions: list[Action] = []
        self.links: dict[int, Link] = {}
        self.current: Link | None = None
        """Where new requests go; None while there is no session, or only one that is leaving."""
        self._config = config
        self._uuid = client_uuid
        self._rng = rng
        self._book = Book(config.max_waiting)
        self._endpoints = Endpoints(config.endpoints, rng)
        self._catalogue = Catalogue(config.default_model)
        self._catalogue_ask: Ask | None = None
        self._asks: dict[int, Ask] = {}
        self._ask_timers: Timers[Ask] = Timers()
        self._opening: Link | None = None
        self._open_at = INFINITY
        self._down_since = 0.0
        self._judged_at = 0.0
        self._last_id = 0
        self._is_closed = False

    # --- wishes of the faces

    def start(self, now: float) -> None:
        """Begin to connect."""
        self._down_since = now
        self._open_at = now

    def submit(self, request: Request, now: float) -> None:
        """Take a request; its events will follow."""
        if self._is_closed:
            self._book.events.append((request.sink, request.error(Kind.CANCELLED, "the client is closed")))
        elif self._book.admit(request):
            self._book.enqueue(request)
            self._hurry(now)
            self._pump(now)

    def cancel(self, rid: bytes, now: float, *, kind: Kind = Kind.CANCELLED, text: str = "cancelled here") -> None:
        """Give a request up; nothing happens if it has ended."""
        request = self._book.live.get(rid)
        if request is None:
            return
        if request.link is not None:
            request.link.cancel(request, clip(text), now)
        self._book.cancel(request, kind, text)
        self._pump(now)

    def overflowed(self, rid: bytes, now: float) -> None:
        """Give a stream up whose reader is too far behind; the others do not wait for it."""
        text = "its reader is too slow: more than 1 MiB of the stream lay unread, so this stream alone was cancelled"
        self.cancel(rid, now, kind=Kind.SLOW_READER, text=text)

    def ask(self, ask: Ask, now: float) -> None:
        """Put a question; its answer will follow."""
        if self._is_closed:
            self._answer(ask, request_error(Kind.CANCELLED, "the client is closed"))
            return
        ask.qid = self._new_id()
        self._asks[ask.qid] = ask
        self._ask_timers.add(ask.deadline, ask)
        self._hurry(now)
        if self.current is not None:
            self._put(ask, self.current, now)

    def close(self, now: float) -> None:
        """End: everything under way is cancelled."""
        self._is_closed = True
        for request in list(self._book.live.values()):
            self._book.cancel(request, Kind.CANCELLED, "the client was closed before the answer came")
        for ask in list(self._asks.values()):
            self._answer(ask, request_error(Kind.CANCELLED, "the client was closed before the answer came"))
        for link in list(self.links.values()):
            if link.is_open:
                link.outbox.append(m.Bye())
            self._shut(link)
        self._open_at = INFINITY
        self.current = None

    def take_events(self) -> list[tuple[Sink, Event]]:
        """Hand over what happened since the last call."""
        events = self._book.events
        if events:
            self._book.events = []
        return events

    # --- news from the shell

    def link_ready(self, link: Link, now: float) -> None:
        """The ZMTP handshake is done: greet."""
        if link.state is LinkState.OPENING:
            link.state = LinkState.HELLO_SENT
            self._greet(link)
            link.tell(now)

    def link_failed(self, link: Link, failure: Failure | None, now: float) -> None:
        """The connection is gone, or never came to be; None = the cause is not known yet."""
        if link.state is LinkState.DEAD:
            return
        was_opening = link is self._opening
        lost = list(link.requests.values())
        link.requests.clear()
        self._shut(link)
        self._book.put_back(lost)
        if was_opening:
            self._opening = None
            self._open_at = now + self._endpoints.failed(link.endpoint, failure)
            if failure is None:
                self.actions.append(Diagnose(link.endpoint))
        elif link is self.current:
            self._go_down(link, now)
            if failure is not None:
                self._endpoints.explained(link.endpoint, failure)
        self._judge(now)

    def explained(self, endpoint: str, failure: Failure, now: float) -> None:
        """A diagnosis is here."""
        self._endpoints.explained(endpoint, failure)
        self._judge(now)

    def received(self, link: Link, messages: Sequence[m.ToClient], now: float) -> None:
        """Take what a broker sent."""
        link.hear(now)
        for message in messages:
            if link.state is LinkState.DEAD:
                return
            self._take(link, message, now)
        self._pump(now)
        self._shut_if_done(link)

    # --- time

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        due = min(self._open_at, self._book.next_deadline(), self._ask_timers.first())
        for link in self.links.values():
            due = min(due, link.next_deadline())
        if self.current is None and (self._book.line or self._book.unnamed or self._asks):
            due = min(due, self._judged_at + _JUDGE_EVERY_S)
        return due

    def tick(self, now: float) -> None:
        """Do what is due. Sockets must have been read first: what lies there unread is no silence."""
        for link in list(self.links.values()):
            self._check(link, now)
        self._book.wake(now)
        for request in self._book.expired(now):
            self._expire(request, now)
        for ask in self._ask_timers.due(now):
            if ask.qid in self._asks:
                self._answer(ask, request_error(Kind.DEADLINE, "the broker did not answer the question in time"))
        if now >= self._open_at:
            self._open(now)
        if self.current is None:
            self._judge(now)
        self._pump(now)

    def _check(self, link: Link, now: float) -> None:
        failure = link.check(now)
        if failure is not None:
            vague = link.state is LinkState.OPENING
            self.link_failed(link, None if vague else failure, now)
        elif now >= link.leave_by:
            self.link_failed(link, Failure(f"{link.endpoint}: the broker has left"), now)
        else:
            self._shut_if_done(link)

    def _expire(self, request: Request, now: float) -> None:
        seconds = f"{request.call.timeout_s:g} s"
        if request.link is not None:
            what = f"no new token for {seconds}" if request.expect else f"no answer within {seconds}"
            kind = Kind.STALLED if request.expect else Kind.DEADLINE
            error = request.error(kind, f"{what} from {request.service} through {request.link.endpoint}")
            request.link.cancel(request, "its time is up", now)
        elif self.current is None:
            error = request.error(Kind.BROKER_LOST, f"no broker could be reached again within {seconds}")
        else:
            error = request.error(Kind.DEADLINE, f"waited {seconds} in this client for its turn; send fewer at a time")
        self._book.fail(request, error)

    # --- messages

    def _take(self, link: Link, message: m.ToClient, now: float) -> None:
        match message:
            case m.Partial():
                self._take_partial(link, message, now)
            case m.Final():
                self._take_final(link, message, now)
            case m.Accepted():
                request = link.requests.get(message.rid)
                if request is not None:
                    link.acknowledge(request)
            case m.Error():
                self._take_error(link, message, now)
            case m.Pong():
                for rid in link.pong(message):
                    self._resend(link, rid, now)
            case m.Status():
                self._take_status(link, message, now)
            case m.Welcome():
                self._take_welcome(link, message, now)
            case m.Goaway():
                self._leave(link, now + message.deadline_ms / 1000, now)
            case _:
                assert_never(message)

    def _take_partial(self, link: Link, partial: m.Partial, now: float) -> None:
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
            link.cancel(request, "unreadable", now)
            self._book.fail(request, request.error(Kind.MODEL_RAISED, f"a chunk cannot be read: {error.text}"))
            return
        if fresh is not None:
            self._book.deliver(request, fresh)

    def _take_final(self, link: Link, final: m.Final, now: float) -> None:
        link.count(len(final.body))
        link.confirm(final.rid)
        request = link.requests.get(final.rid)
        if request is None:
            return
        if request.is_stream and final.total_n > request.expect:
            self._resync(link, request, now)
        elif request.is_stream and final.total_n < request.expect:
            text = f"the stream ended at {final.total_n} units after {request.expect} were delivered"
            self._book.fail(request, request.error(Kind.MODEL_RAISED, text))
        else:
            self._book.finish(request, final)

    def _resync(self, link: Link, request: Request, now: float) -> None:
        """Ask again from the first missing unit on; what is on its way behind the gap is ignored meanwhile."""
        if request.is_resyncing:
            return
        request.resyncs += 1
        if request.resyncs > _MAX_RESYNCS:
            link.cancel(request, "gap", now)
            text = f"units from {request.expect} on are missing, and the broker cannot send them again"
            self._book.fail(request, request.error(Kind.NOT_RESUMABLE, text))
            return
        request.is_resyncing = True
        link.add(request, now)

    def _resend(self, link: Link, rid: bytes, now: float) -> None:
        """Send a request once more that the broker never saw."""
        request = link.requests.get(rid)
        if request is not None and not request.was_resent:
            request.was_resent = True
            link.add(request, now)

    def _take_error(self, link: Link, error: m.Error, now: float) -> None:
        kind = kind_of(error.code, error.reason)
        if kind is Kind.NO_SESSION:
            self._greet_again(link, now)
            return
        if error.rid is None:
            if not link.is_open:
                refused = error.code in (401, 403)
                text = f"{link.endpoint}: the broker refused the session: {error.text}"
                self.link_failed(link, Failure(text, refused or error.code == 426, refused), now)
            return
        link.confirm(error.rid)
        request = link.requests.get(error.rid)
        if request is None:
            return
        if kind is Kind.NOT_FOUND:
            self._catalogue.forget()
        if error.retryable and error.code in _REFUSED:
            self._rest_or_fail(link, request, kind, error.text, error.retry_after_ms / 1000, now)
        elif error.code == 499:
            self._book.cancel(request, kind, error.text)
        else:
            self._book.fail(request, request.error(kind, error.text, retry_after_s=error.retry_after_ms / 1000))

    def _take_status(self, link: Link, status: m.Status, now: float) -> None:
        link.asks.pop(status.qid, None)
        ask = self._asks.get(status.qid)
        if ask is None:
            return
        if ask is self._catalogue_ask:
            self._read_catalogue(status, now)
        self._answer(ask, status)

    def _take_welcome(self, link: Link, welcome: m.Welcome, now: float) -> None:
        if link.state is not LinkState.HELLO_SENT:
            return
        link.welcome(welcome, self._config.max_outstanding, now)
        self._opening = None
        self._open_at = INFINITY
        self._endpoints.welcomed(link.endpoint)
        self.current = link
        for ask in list(self._asks.values()):
            if ask.message is None:
                self._answer(ask, welcome)
            else:
                self._put(ask, link, now)

    # --- sessions

    def _open(self, now: float) -> None:
        self._open_at = INFINITY
        link = self._opening = Link(self._new_id(), self._endpoints.choose(now), now)
        self.links[link.id] = link
        self.actions.append(Open(link))

    def _greet(self, link: Link) -> None:
        wish = self._config.max_outstanding
        ext: m.Ext = {"max_outstanding": wish} if wish != MAX_OUTSTANDING else {}
        link.greet(self._uuid, self._config.name[:128], WINDOW_BYTES, ext)

    def _greet_again(self, link: Link, now: float) -> None:
        """The broker has forgotten this session (it took us for gone): open it anew in the same connection."""
        if link.state is not LinkState.UP:
            return  # greeted already
        if link.greetings >= _MAX_GREETINGS:
            self.link_failed(link, Failure(f"{link.endpoint}: the broker forgets this session again and again"), now)
            return
        lost = list(link.requests.values())
        link.reset(now)
        self._book.put_back(lost)
        if link is self.current:
            self.current = None
            self._down_since = now
        self._opening = link
        self._greet(link)

    def _leave(self, link: Link, until: float, now: float) -> None:
        """New work goes to the next broker; what runs here may finish."""
        if link.state is not LinkState.UP:
            return
        link.state = LinkState.LEAVING
        link.leave_by = until
        self._endpoints.leaving(link.endpoint, until)
        if link is self.current:
            self._go_down(link, now)

    def _go_down(self, link: Link, now: float) -> None:
        self.current = None
        self._down_since = now
        self._open_at = now + self._endpoints.lost(now - link.up_since)
        self._catalogue.forget()

    def _shut_if_done(self, link: Link) -> None:
        if link.state is LinkState.LEAVING and not link.requests and not link.asks:
            link.outbox.append(m.Bye())
            self._shut(link)

    def _shut(self, link: Link) -> None:
        link.state = LinkState.DEAD
        self.links.pop(link.id, None)
        self.actions.append(Close(link))

    def _hurry(self, now: float) -> None:
        """Somebody waits now: do not sit out a long pause between attempts to connect."""
        if self._open_at - now > _JUDGE_EVERY_S and self._open_at != INFINITY:
            self._open_at = now + self._rng.uniform(0, _JUDGE_EVERY_S)

    def _judge(self, now: float) -> None:
        """Tell those who were never sent what is in the way, once that is certain or they have waited enough."""
        self._judged_at = now
        if self.current is not None:
            return
        patience_s = self._config.connect_timeout_s
        if self._endpoints.is_hopeless:
            patience_s = 0.0
        elif self._endpoints.is_explained:
            patience_s /= 2  # whoever starts client and broker together still succeeds
        for request in [*self._book.line.values(), *self._book.unnamed.values()]:
            waited_s = now - max(request.submitted_at, self._down_since)
            if not request.was_sent and waited_s >= patience_s:
                self._book.fail(request, self._unreachable(waited_s))
        for ask in list(self._asks.values()):
            waited_s = now - max(ask.asked_at, self._down_since)
            if waited_s >= patience_s:
                self._answer(ask, self._unreachable(waited_s))

    def _unreachable(self, waited_s: float) -> ZmqrtError:
        if any(link.state is LinkState.LEAVING for link in self.links.values()) and not self._endpoints.is_explained:
            return request_error(Kind.DRAINING, "the broker is shutting down, and there is no other", retry_after_s=1.0)
        return self._endpoints.error(waited_s)

    # --- requests

    def _pump(self, now: float) -> None:
        """Send what may be sent: never more than the broker allows."""
        if self._book.unnamed:
            self._name(now)
        link = self.current
        if link is None:
            return
        line = self._book.line
        while line and link.has_room(now):
            _, request = line.popitem(last=False)
            obstacle = request.obstacle(link.identity, now, link.timing.dedupe_s)
            if obstacle is None:
                link.add(request, now)
            else:
                self._book.fail(request, obstacle)

    def _rest_or_fail(
        self, link: Link, request: Request, kind: Kind, text: str, retry_after_s: float, now: float
    ) -> None:
        """Ask again when the broker said, if the caller wants that and there is time."""
        leaves = kind is Kind.DRAINING and len(self._config.endpoints) > 1
        if leaves:
            self._leave(link, now + link.timing.drain_s, now)
        pause_s = self._pause_s(request, 0.0 if leaves else retry_after_s)
        retries = request.call.retries
        wanted = leaves or retries is None or request.refusals < retries
        if not wanted or now + pause_s >= request.deadline or not request.refused():
            self._book.fail(request, request.error(kind, text, retry_after_s=retry_after_s))
            return
        link.drop(request)
        self._book.rest(request, now + pause_s)

    def _pause_s(self, request: Request, retry_after_s: float) -> float:
        """Wait as told, and a little more by chance, or all who were refused together would come back together."""
        spread_s = min(1.0, 0.05 * 2.0 ** min(request.refusals, 10))
        return retry_after_s * self._rng.uniform(1.0, 1.25) + self._rng.uniform(0.0, spread_s)

    def _name(self, now: float) -> None:
        """Choose models for those that named none, or ask the broker which there are."""
        if self._catalogue.is_fresh(now):
            for request in list(self._book.unnamed.values()):
                self._choose(request, now)
        elif self._catalogue_ask is None and self.current is not None:
            self._catalogue_ask = Ask(questions.services().message, None, now, self._config.timeout_s)
            self.ask(self._catalogue_ask, now)

    def _read_catalogue(self, status: m.Status, now: float) -> None:
        try:
            services = questions.services().read(status)
        except ZmqrtError as error:
            for request in list(self._book.unnamed.values()):
                self._book.fail(request, error)
            return
        self._catalogue.learn(services, now)
        for request in list(self._book.unnamed.values()):
            self._choose(request, now)

    def _choose(self, request: Request, now: float) -> None:
        try:
            request.service = self._catalogue.choose(request.call.task)
        except RequestError as error:
            del self._book.unnamed[request.call.rid]
            self._refuse_unnamed(request, error, now)
            return
        del self._book.unnamed[request.call.rid]
        self._book.enqueue(request)

    def _refuse_unnamed(self, request: Request, error: RequestError, now: float) -> None:
        retries = request.call.retries
        pause_s = self._pause_s(request, 0.0)
        wanted = error.code in _REFUSED and (retries is None or request.refusals < retries)
        if wanted and now + pause_s < request.deadline:
            self._book.rest(request, now + pause_s)
        else:
            self._book.fail(request, request.error(error.kind, error.text))

    # --- questions

    def _put(self, ask: Ask, link: Link, now: float) -> None:
        if ask.message is None:
            return  # answered by the session itself
        link.ask(ask, ask.message(ask.qid), now)

    def _answer(self, ask: Ask, event: Event) -> None:
        self._asks.pop(ask.qid, None)
        for link in self.links.values():
            link.asks.pop(ask.qid, None)
        if ask is self._catalogue_ask:
            self._catalogue_ask = None  # those that wait for it ask again, or are judged themselves
        if ask.sink is not None:
            self._book.events.append((ask.sink, event))

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id
