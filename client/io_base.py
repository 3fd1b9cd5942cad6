"""What both shells of a client offer: requests, cancellations and questions become commands for its core."""

from __future__ import annotations

import logging
import random
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

from ..protocol import keys as key_files
from ..protocol import messages as m
from ..protocol import transport
from ..protocol.errors import ErrorKind, RequestError, request_error
from .calls import Call
from .config import ClientConfig
from .core import ClientCore
from .queries import PendingQuery
from .requests import ClientRequest, Sink
from .wakeup import Command

CLOSED: Final = "it was closed"
log = logging.getLogger(__name__)


class BaseIo(ABC):
    """A ClientCore from the first use until `stop`."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._core = ClientCore(config, secrets.token_bytes(16), random.Random())
        self._over: str | None = None
        """Why it cannot be used any more."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a client, a stream or a handle cannot be pickled or copied: its thread and sockets belong to one process; "
            "make a client in each, and hand results and errors over instead"
        )

    @property
    def endpoint(self) -> str | None:
        """The broker in use."""
        connection = self._core.connections.current
        return connection.endpoint if connection is not None else None

    def submit(self, call: Call, sink: Sink) -> None:
        """Send a call; its events go to the sink."""
        self._post(partial(_alone, sink, partial(self._submit, call, sink)))

    def cancel(self, rid: bytes, sink: Sink) -> None:
        """Give a request up; nothing happens once it has ended or the client is closed."""
        core = self._core
        self._post_if_used(partial(_alone, None, lambda now: core.cancel(rid, now, reader=sink)))

    def ask(self, message: Callable[[int], m.Query | m.Admin] | None, sink: Sink, *, timeout_s: float) -> None:
        """Ask the broker something; the answer goes to the sink."""
        core = self._core
        self._post(partial(_alone, sink, lambda now: core.ask(PendingQuery(message, sink, now, timeout_s), now)))

    def _submit(self, call: Call, sink: Sink, now: float) -> None:
        self._core.submit(ClientRequest(call, sink, now), now)

    @abstractmethod
    def check_alive(self) -> None:
        """Raise if nobody is there any more to answer. Raises CancelledError."""

    @abstractmethod
    def stop(self) -> None:
        """Cancel everything, say goodbye and end; calling it twice does no harm."""

    @abstractmethod
    def _post(self, command: Command) -> None:
        """Have a command called; the first one starts it all. Raises CancelledError where it cannot be used."""

    @abstractmethod
    def _post_if_used(self, command: Command) -> None:
        """Have a command called, unless it never began or is over."""

    def _unusable(self) -> RequestError:
        return request_error(ErrorKind.CANCELLED, f"this client cannot be used: {self._over or CLOSED}")

    def _load_keys(self) -> key_files.PeerKeys | None:
        """Refuse what is unsafe before anything is opened."""
        directory, keys = self._config.keys, self._config.line_keys
        if keys is None and directory is not None:
            keys = key_files.load_peer(directory, "client", as_admin=self._config.as_admin)
        for endpoint in self._config.endpoints:
            transport.check_exposure(endpoint, has_keys=keys is not None, insecure=self._config.insecure)
        return keys


def _alone(sink: Sink | None, command: Command, now: float) -> None:
    """Let a command that fails end for whoever gave it, and the shell go on for all others."""
    try:
        command(now)
    except Exception as error:
        log.exception("the client could not carry out what it was asked for")
        if sink is not None:
            sink.put(request_error(ErrorKind.BAD_REQUEST, f"this request cannot be carried out: {error!r}"))
