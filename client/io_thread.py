"""The one I/O thread of a client: moves envelopes between sockets and the core, and events to whoever waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..protocol import messages as m
from .calls import Call
from .config import ClientConfig
from .reading import Event


class Sink(Protocol):
    """Where the events of a request go. Called by the I/O thread; must not block."""

    def put(self, event: Event) -> bool:
        """Take an event; False = the reader is too far behind."""
        ...


class IoThread:
    """Starts with the first use."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.endpoint: str | None = None

    def submit(self, call: Call, sink: Sink) -> None:
        """Send a call; its events go to the sink."""
        raise NotImplementedError

    def cancel(self, rid: bytes) -> None:
        """Give a request up."""
        raise NotImplementedError

    def ask(self, message: Callable[[int], m.Query | m.Admin] | None, sink: Sink, *, timeout_s: float) -> None:
        """Ask the broker something; the answer goes to the sink."""
        raise NotImplementedError

    def check_alive(self) -> None:
        """Raise if the thread is gone."""

    def stop(self) -> None:
        """End it."""
