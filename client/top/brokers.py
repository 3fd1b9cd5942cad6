"""The brokers that the monitor watches: each is asked once a second, in a thread of its own."""

from __future__ import annotations

import contextlib
import time
from typing import Final, Self

from ...protocol.errors import NotFoundError, ZmqrtError
from ...protocol.request_trace import RequestTrace
from ..cli.poller import Poller
from ..config import ClientSettings
from .fleet import BrokerView

EVERY_S: Final = 1.0


class WatchedBrokers:
    """The brokers of the settings. `waits`: the `with` block begins when each has answered, or failed to."""

    def __init__(self, settings: ClientSettings, *, waits: bool) -> None:
        self._exits = contextlib.ExitStack()
        self._patience_s = settings.connect_timeout_s + 1.0 if waits else 0.3
        self._pollers = [Poller(endpoint, settings, every_s=EVERY_S, name="zmqrt top") for endpoint in settings.broker]

    def __enter__(self) -> Self:
        for poller in self._pollers:
            self._exits.enter_context(poller)
        give_up_at = time.monotonic() + self._patience_s
        for poller in self._pollers:
            poller.wait_for_first(max(0.0, give_up_at - time.monotonic()))
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def look(self) -> list[BrokerView]:
        """Return the newest view of each."""
        return [
            BrokerView(
                endpoint=poller.endpoint,
                snapshot=poller.snapshot,
                problem=poller.problem,
                is_leaving=poller.is_leaving,
            )
            for poller in self._pollers
        ]

    def drain(self, node_id: str) -> str:
        """Ask the brokers until one has done it: the node leaves all of them. Those that answer are asked first."""
        problems: list[str] = []
        for poller in sorted(self._pollers, key=lambda poller: poller.snapshot is None):
            try:
                return poller.client.drain(node_id).text
            except NotFoundError as error:
                problems.append(str(error))
            except ZmqrtError as error:
                problems.insert(0, str(error))
        return problems[0] if problems else "there is no broker to ask"

    def explain(self, endpoint: str, rid: str) -> list[RequestTrace]:
        """Ask the broker that knows the request for its trace. Raises ZmqrtError."""
        poller = next(poller for poller in self._pollers if poller.endpoint == endpoint)
        return poller.client.explain(rid)
