"""Finds the model for requests that name none, by asking the broker which there are (at most once at a time)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol import messages as m
from ..protocol.errors import RequestError, ZmqrtError
from . import questions, retry
from .asks import Ask, Asks
from .book import Book
from .catalogue import Catalogue
from .connection import Link
from .reading import Event
from .requests import Request

if TYPE_CHECKING:
    import random

_ASK_S = 5.0


class Naming:
    """Empties `book.unnamed`. It is the sink of its own question."""

    def __init__(self, book: Book, asks: Asks, default_model: str | None, rng: random.Random) -> None:
        self._book = book
        self._asks = asks
        self._catalogue = Catalogue(default_model)
        self._rng = rng
        self._is_asking = False
        self._news: m.Status | None = None

    def put(self, event: Event) -> bool:
        """Take the answer; it is read at the next `name`."""
        self._is_asking = False
        self._news = event if isinstance(event, m.Status) else None  # asked again while somebody waits
        return True

    def forget(self) -> None:
        """Another broker, or an answer that shows the list to be old."""
        self._catalogue.forget()

    def name(self, link: Link | None, now: float) -> None:
        """Move the unnamed into the line, as far as it is known what they mean."""
        if self._news is not None:
            self._learn(self._news, now)
            self._news = None
        if not self._book.unnamed:
            return
        if self._catalogue.is_fresh(now):
            self._choose_all(now)
        if self._book.unnamed and link is not None and not self._is_asking:
            self._is_asking = True
            self._asks.add(Ask(questions.services().message, self, now, _ASK_S, is_own=True), link, now)

    def _learn(self, status: m.Status, now: float) -> None:
        try:
            self._catalogue.learn(questions.services().read(status), now)
        except ZmqrtError as error:
            for request in list(self._book.unnamed.values()):
                self._book.fail(request, error)
        else:
            self._choose_all(now)

    def _choose_all(self, now: float) -> None:
        for request in list(self._book.unnamed.values()):
            self._choose(request, now)

    def _choose(self, request: Request, now: float) -> None:
        try:
            request.service = self._catalogue.choose(request.call.task)
        except RequestError as error:
            if self._catalogue.may_refuse(now):
                self._refuse(request, error, now)
            return
        del self._book.unnamed[request.call.rid]
        self._book.enqueue(request)

    def _refuse(self, request: Request, error: RequestError, now: float) -> None:
        wake_at = now + retry.pause_s(request, 0.0, self._rng)
        if error.code in retry.REFUSED and retry.may_retry(request, wake_at):
            del self._book.unnamed[request.call.rid]
            self._book.rest(request, wake_at)
        else:
            self._book.fail(request, request.error(error.kind, error.text))
