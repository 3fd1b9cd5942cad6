"""Keeps the newest snapshot of a broker, asked for in a thread of its own: a view never waits for the network."""

from __future__ import annotations

import dataclasses
import threading
from typing import Final, Self

from ...protocol.errors import DeadlineError, UnavailableError, ZmqrtError
from ...protocol.snapshot import Snapshot
from ..config import ClientSettings
from ..sync import Client

_EVERY_S: Final = 0.5
_TIMEOUT_S: Final = 2.0


class Poller:
    """Ask one broker for its status again and again while in the `with` block.

    `snapshot` is None while it does not answer, and `problem` says why; both are empty before the first answer.
    """

    def __init__(
        self,
        endpoint: str,
        settings: ClientSettings,
        *,
        every_s: float = _EVERY_S,
        name: str = "zmqrt up",
    ) -> None:
        self.endpoint = endpoint
        self.snapshot: Snapshot | None = None
        self.problem = ""
        self.is_leaving = False
        self._every_s = every_s
        self._settings = dataclasses.replace(settings, broker=(endpoint,), timeout_s=_TIMEOUT_S)
        self._name = name
        self._client = self._make_client()
        self._swap = threading.Lock()
        self._stop = threading.Event()
        self._has_asked = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"status of {endpoint}", daemon=True)

    @property
    def client(self) -> Client:
        """A client of that broker, for further questions."""
        return self._client

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._swap:
            self._stop.set()
            self._client.close()
        self._thread.join(self._every_s)

    def wait_for_first(self, timeout_s: float) -> None:
        """Wait until it has answered, or failed to."""
        self._has_asked.wait(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._ask()
            except UnavailableError as error:  # it has sent its goodbye, and may finish what it has
                self.snapshot, self.problem, self.is_leaving = None, str(error), True
                self._has_asked.set()
                self._stop.wait(self._every_s)
                continue
            except DeadlineError:
                text = f"{self.endpoint}: no answer within {_TIMEOUT_S:.0f} s; it is frozen, or overloaded"
                self.snapshot, self.problem = None, text
            except ZmqrtError as error:
                self.snapshot, self.problem = None, str(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the picture must not stand still as if it were now
                self.snapshot, self.problem = None, f"{self.endpoint}: {type(error).__name__}: {error}"
            self.is_leaving = False
            self._has_asked.set()
            self._stop.wait(self._every_s)

    def _ask(self) -> None:
        if self.snapshot is None:
            self._client.connect()  # its error names the cause, and the remedy
        snapshot = self._client.status()
        if self._client.endpoint not in (None, self.endpoint):
            self._begin_anew()
            raise ZmqrtError(f"{self.endpoint} does not answer")
        self.snapshot, self.problem = snapshot, ""

    def _make_client(self) -> Client:
        return Client.from_settings(self._settings, name=self._name)

    def _begin_anew(self) -> None:
        """Replace a client that has failed over to another broker, one that brokers name to it: this one is watched."""
        with self._swap:
            if not self._stop.is_set():
                self._client.close()
                self._client = self._make_client()
