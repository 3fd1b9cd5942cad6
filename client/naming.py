"""Finds the model for requests that name none, by asking the broker which there are (at most once at a time)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol import messages as m
from ..protocol.errors import RequestError, ZmqrtError
from . import queries, retry
from .asks import PendingQueries, PendingQuery
from .catalogue import Catalogue
from .connection import BrokerConnection
from .reading import Event
from .request_table import RequestTable
from .requests import ClientRequest

if TYPE_CHECKING:
    import random

_ASK_S = 5.0


class Naming:
    """Empties `table.unnamed`. It is the sink of its own question."""

    def __init__(
        self, table: RequestTable, asks: PendingQueries, default_model: str | None, rng: random.Random
    ) -> None:
        self._table = table
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

    def name(self, connection: BrokerConnection | None, now: float) -> None:
        """Move the unnamed into the line, as far as it is known what they mean."""
        if self._news is not None:
            self._learn(self._news, now)
            self._news = None
        if not self._table.unnamed:
            return
        if self._catalogue.is_fresh(now):
            self._choose_all(now)
        if self._table.unnamed and connection is not None and not self._is_asking:
            self._is_asking = True
            self._asks.add(PendingQuery(queries.services().message, self, now, _ASK_S, is_own=True), connection, now)

    def _learn(self, status: m.Status, now: float) -> None:
        try:
            self._catalogue.learn(queries.services().read(status), now)
        except ZmqrtError as error:
            for request in list(self._table.unnamed.values()):
                self._table.fail(request, error)
        else:
            self._choose_all(now)

    def _choose_all(self, now: float) -> None:
        for request in list(self._table.unnamed.values()):
            self._choose(request, now)

    def _choose(self, request: ClientRequest, now: float) -> None:
        try:
            request.service = self._catalogue.choose(request.call.task)
        except RequestError as error:
            if self._catalogue.may_refuse(now):
                self._refuse(request, error, now)
            return
        del self._table.unnamed[request.call.rid]
        self._table.enqueue(request)

    def _refuse(self, request: ClientRequest, error: RequestError, now: float) -> None:
        wake_at = now + retry.pause_s(request, 0.0, self._rng)
        if error.code in retry.REFUSED and retry.may_retry(request, wake_at):
            del self._table.unnamed[request.call.rid]
            self._table.back_off(request, wake_at)
        else:
            self._table.fail(request, request.error(error.kind, error.text))
