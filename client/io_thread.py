"""Starts a client's one I/O thread at the first use, and ends it at `close`, after a fork, at the interpreter's end."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from typing import Final

from ..protocol import transport
from .config import ClientConfig
from .io_base import CLOSED, BaseIo
from .io_loop import IoLoop
from .wakeup import Command, Wakeup

_STOP_S: Final = 2.0
"""Longest wait for the goodbye: 250 ms of linger, and whatever the machine is busy with."""
_FORKED: Final = "it was made before a fork; make a new client in the child process"
log = logging.getLogger(__name__)


class IoThread(BaseIo):
    """Runs a ClientCore in a thread of its own. Every method may be called by any thread."""

    def __init__(self, config: ClientConfig) -> None:
        super().__init__(config)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wakeup: Wakeup | None = None
        self._loop: IoLoop | None = None

    def check_alive(self) -> None:
        """Raise if nobody is there any more to answer. Raises CancelledError."""
        thread = self._thread
        if self._over is not None and (thread is None or not thread.is_alive()):
            raise self._unusable()

    def stop(self) -> None:
        """Cancel everything, say goodbye and end the thread; calling it twice does no harm."""
        with self._lock:
            over, self._over = self._over, self._over or CLOSED
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

    def _post(self, command: Command) -> None:
        if self._over is not None:
            raise self._unusable()
        wakeup = self._wakeup or self._start()
        if not wakeup.post(command):
            raise self._unusable()

    def _post_if_used(self, command: Command) -> None:
        if self._wakeup is not None and self._over is None:
            self._wakeup.post(command)

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

    def _run(self, loop: IoLoop) -> None:
        try:
            loop.run()
        except BaseException as error:
            log.exception("the client's I/O thread failed; every request under way is cancelled")
            self._over = f"its I/O thread failed: {error!r}"
        finally:
            self._over = self._over or CLOSED
            _live.discard(self)
            loop.finish()


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
