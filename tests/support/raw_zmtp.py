"""A peer that speaks ZMTP 3.1 (RFC 37) by hand, with the NULL mechanism, over a plain socket.

It says what libzmq never would, stops where it likes, and sees what a broker does to the connection.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Final, Self

SIGNATURE: Final = b"\xff" + bytes(8) + b"\x7f"
PATIENCE_S: Final = 20.0
_MORE, _LONG, _COMMAND = 1, 2, 4
_SHORTEST_LONG = 256


def greeting(*, signature: bytes = SIGNATURE, version: bytes = b"\x03\x01", mechanism: bytes = b"NULL") -> bytes:
    """Build the 64 bytes that open a connection."""
    return signature + version + mechanism.ljust(20, b"\0") + bytes(32)


def header(size: int, *, more: bool = False, is_command: bool = False) -> bytes:
    """Announce a frame of this size."""
    flags = _MORE * more | _COMMAND * is_command
    if size < _SHORTEST_LONG:
        return bytes([flags, size])
    return bytes([flags | _LONG]) + struct.pack(">Q", size)


def frame(body: bytes, *, more: bool = False) -> bytes:
    """Build a frame of a message."""
    return header(len(body), more=more) + body


def ready(socket_type: bytes = b"DEALER", routing_id: bytes = b"") -> bytes:
    """Build the command that ends a handshake."""
    body = b"\x05READY"
    for name, value in ((b"Socket-Type", socket_type), (b"Identity", routing_id)):
        body += bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
    return header(len(body), is_command=True) + body


class RawPeer:
    """One connection. It answers nothing by itself, ZMTP's PING included."""

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Self:
        """Say something."""
        self.socket.sendall(data)
        return self

    def handshake(self, routing_id: bytes = b"") -> Self:
        """Greet, and see the other side's greeting and READY."""
        self.send(greeting())
        assert self._read(64)[9:11] == SIGNATURE[9:] + b"\x03"  # libzmq fills the eight bytes between for ZMTP 1
        self.send(ready(routing_id=routing_id))
        flags, body = self.read_frame()
        assert flags & _COMMAND, body
        assert body.startswith(b"\x05READY")
        return self

    def read_frame(self) -> tuple[int, bytes]:
        """Read one frame: its flags and its body."""
        flags = self._read(1)[0]
        (size,) = struct.unpack(">Q", self._read(8)) if flags & _LONG else self._read(1)
        return flags, self._read(size)

    def read_message(self) -> list[bytes]:
        """Read one message of the broker, passing over commands."""
        frames: list[bytes] = []
        while True:
            flags, body = self.read_frame()
            if not flags & _COMMAND:
                frames.append(body)
                if not flags & _MORE:
                    return frames

    def is_cut(self, within_s: float = PATIENCE_S) -> bool:
        """Wait for the other side to hang up, whatever it says until then."""
        give_up_at = time.monotonic() + within_s
        try:
            while (left_s := give_up_at - time.monotonic()) > 0:
                self.socket.settimeout(left_s)
                if not self.socket.recv(65_536):
                    return True
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return False

    def _read(self, count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            more = self.socket.recv(count - len(got))
            assert more, "the other side has hung up"
            got += more
        return bytes(got)
