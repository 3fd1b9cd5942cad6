"""Starts a client's one I/O thread at the first use, and ends it at `close`, after a fork, at the interpreter's end."""

from __future__ import annotations

import atexit
import logging
import os
import random
import secrets
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Final, NoReturn

from ..protocol import keys as key_files
from ..protocol import messages as m
from ..protocol import transport
from ..protocol.errors import ErrorKind, RequestError, request_error
from .calls import Call
from .config import ClientConfig
from .core import ClientCore
from .io_loop import IoLoop
from .queries import PendingQuery
from .requests import ClientRequest, Sink
from .wakeup import Wakeup

_STOP_S: Final = 2.0
"""Longest wait for the goodbye: 250 ms of linger, and whatever the machine is busy with."""
_FORKED: Final = "it was made before a fork; make a new client in the child process"
_CLOSED: Final = "it was closed"
log = logging.getLogger(__name__)


class IoThread:
    """Runs a ClientCore from the first use until `stop`. Every method may be called by any thread."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._core = ClientCore(config, secrets.token_bytes(16), random.Random())
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wakeup: Wakeup | None = None
        self._loop: IoLoop | None = None
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
        core = self._core
        self._post(_alone(sink, lambda now: core.submit(ClientRequest(call, sink, now), now)))

    def cancel(self, rid: bytes, sink: Sink) -> None:
        """Give a request up; nothing happens once it has ended or the client is closed."""
        core, wakeup = self._core, self._wakeup
        if wakeup is not None and self._over is None:
            wakeup.post(_alone(None, lambda now: core.cancel(rid, now, reader=sink)))

    def ask(self, message: Callable[[int], m.Query | m.Admin] | None, sink: Sink, *, timeout_s: float) -> None:
        """Ask the broker something; the answer goes to the sink."""
        core = self._core
        self._post(_alone(sink, lambda now: core.ask(PendingQuery(message, sink, now, timeout_s), now)))

    def check_alive(self) -> None:
        """Raise if nobody is there any more to answer. Raises CancelledError."""
        thread = self._thread
        if self._over is not None and (thread is None or not thread.is_alive()):
            raise self._unusable()

    def stop(self) -> None:
        """Cancel everything, say goodbye and end the thread; calling it twice does no harm."""
        with self._lock:
            over, self._over = self._over, self._over or _CLOSED
            thread, wakeup, loop = self._thread, self._wakeup, self._loop
        if over is None and wakeup is not None and loop is not None:
            wakeup.post(lambda _: loop.stop())
        if over != _FORKED and thread is not None and thread is not threading.current_thread():
            thread.join(_STOP_S)

    def forked(self) -> None:
        """Mark this client as unusable in a child process: sockets and threads do not survive a fork."""
        self._over = _FORKED
        self._lock = threading.Lock()  # its old owner may not be here
        self._thread = None

    def _post(self, command: Callable[[float], None]) -> None:
        if self._over is not None:
            raise self._unusable()
        wakeup = self._wakeup or self._start()
        if not wakeup.post(command):
            raise self._unusable()

    def _unusable(self) -> RequestError:
        return request_error(ErrorKind.CANCELLED, f"this client cannot be used: {self._over or _CLOSED}")

    def _start(self) -> Wakeup:
        with self._lock:
            if self._wakeup is not None:
                return self._wakeup
            keys = self._load_keys()
            context = transport.make_context()
            wake, bell = transport.wake_pair(context, "wake")
            self._wakeup = Wakeup(bell)
            self._loop = IoLoop(self._core, context, keys, wake, self._wakeup, insecure=self._config.insecure)
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name="zmqrt-client", daemon=True)
            _live.add(self)
            self._thread.start()
            return self._wakeup

    def _load_keys(self) -> key_files.PeerKeys | None:
        """Refuse what is unsafe before anything is opened."""
        directory = self._config.keys
        keys = (
            key_files.load_peer(directory, "client", as_admin=self._config.as_admin) if directory is not None else None
        )
        for endpoint in self._config.endpoints:
            transport.check_exposure(endpoint, has_keys=keys is not None, insecure=self._config.insecure)
        return keys

    def _run(self, loop: IoLoop) -> None:
        try:
            loop.run()
        except BaseException as error:
            log.exception("the client's I/O thread failed; every request under way is cancelled")
            self._over = f"its I/O thread failed: {error!r}"
        finally:
            self._over = self._over or _CLOSED
            _live.discard(self)
            loop.finish()


def _alone(sink: Sink | None, command: Callable[[float], None]) -> Callable[[float], None]:
    """Let a command that fails end for whoever gave it, and the thread go on for all others."""

    def run(now: float) -> None:
        try:
            command(now)
        except Exception as error:
            log.exception("the client could not carry out what it was asked for")
            if sink is not None:
                sink.put(request_error(ErrorKind.BAD_REQUEST, f"this request cannot be carried out: {error!r}"))

    return run


_live: Final[weakref.WeakSet[IoThread]] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Say goodbye at the interpreter's end, so that brokers cancel at once what nobody waits for."""
    for thread in list(_live):
        thread.stop()


def _mark_forked() -> None:
    for thread in list(_live):
        thread.forked()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_mark_forked)
