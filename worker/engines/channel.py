"""A stream socket between an agent and one engine process as a channel of messages, each behind its length.

Neither end ever blocks, and no thread of its own stands between them: the agent watches the descriptor in its event
loop, the engine polls it between two steps. What the other end has no room for waits here; it is bounded by what an
engine has slots for. The end of the file is the news that the other process is gone. Unix only, as nodes are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from typing import Final

_HEAD: Final = struct.Struct("!I")
"""Before each message: how long it is, in bytes."""
_READ_BYTES: Final = 256 << 10
_FOR_NOW: Final = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS, errno.ENOMEM)
"""Errors that pass; any other one is the end of the channel."""


class Channel:
    """One end. `send` and `receive` return at once; `flush` goes on where `send` could not."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._lock = threading.Lock()  # loaders report their progress from threads of their own
        self._unsent = bytearray()
        self._unread = bytearray()
        self.is_over = False
        """Whether the other end is gone: what is sent goes nowhere from then on."""

    def fileno(self) -> int:
        """Return the descriptor, to be watched for reading; for writing as long as `has_unsent`."""
        return self._socket.fileno()

    @property
    def is_reading(self) -> bool:
        """Whether the beginning of a message is here, and its end is not."""
        return bool(self._unread) and not self.is_over

    @property
    def has_unsent(self) -> bool:
        """Whether something waits for room."""
        return bool(self._unsent)

    def send(self, message: bytes) -> None:
        """Send a message, or as much of it as there is room for; the rest waits for `flush`."""
        with self._lock:
            self._unsent += _HEAD.pack(len(message))
            self._unsent += message
            self._flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent and not self.is_over:
                del self._unsent[: self._socket.send(self._unsent)]
        except OSError as error:
            self.is_over = error.errno not in _FOR_NOW
        if self.is_over:
            self._unsent.clear()

    def receive(self) -> list[bytes]:
        """Return every whole message that is here."""
        self._read()
        messages: list[bytes] = []
        at, unread = 0, self._unread
        while len(unread) - at >= _HEAD.size:
            end = at + _HEAD.size + _HEAD.unpack_from(unread, at)[0]
            if len(unread) < end:
                break
            messages.append(bytes(unread[at + _HEAD.size : end]))
            at = end
        if at:
            del unread[:at]
        return messages

    def _read(self) -> None:
        try:
            while True:
                data = self._socket.recv(_READ_BYTES)
                self._unread += data
                if len(data) < _READ_BYTES:  # all that is here; a descriptor that has more says so again
                    self.is_over |= not data
                    return
        except OSError as error:
            self.is_over = error.errno not in _FOR_NOW

    def close(self, within_s: float = 0.0) -> None:
        """Close, after what waits has gone out or `within_s` seconds are over. The other end reads what was sent."""
        if self._unsent and within_s > 0:
            self._socket.settimeout(within_s)
            with contextlib.suppress(OSError):
                self._socket.sendall(self._unsent)
        self._socket.close()


def make_channel() -> tuple[Channel, socket.socket]:
    """Return our end, and the other one as a process that is started inherits it. Raises OSError."""
    ours, its = socket.socketpair()
    return Channel(ours), its


def inherited(descriptor: int) -> Channel:
    """Return the end that this process was started with. Raises OSError."""
    os.set_inheritable(descriptor, False)  # what this process starts has no part in it
    return Channel(socket.socket(fileno=descriptor))


class WakePipe:
    """Lets other threads wake a poll: a descriptor that is readable once somebody has called `wake`."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._reader

    def wake(self) -> None:
        """Make it readable. Called by any thread."""
        with contextlib.suppress(OSError):  # full: it wakes already
            os.write(self._writer, b"\0")

    def drain(self) -> None:
        """Take all calls so far as one."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._reader, 4096)) == 4096:
                pass
