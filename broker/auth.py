"""Decides who may connect: answers libzmq's question about every handshake (RFC 27/ZAP), in a thread of its own.

Each socket has an allow-list of its own, told apart by its ZAP domain: a client's key never opens the worker port. Both
sockets enforce their domain, so when this thread has ended nobody new gets in. Why not pyzmq's: docs/adr/0010.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from ..protocol import transport
from ..protocol.authorized_keys import Principal, load_allowed
from ..protocol.errors import ConfigurationError
from ..protocol.limits import MAX_NAME_CHARS

_POLL_MS: Final = 200
_VERSION: Final = b"1.0"
log = logging.getLogger(__name__)


class Gate:
    """The allow-lists, and the thread that answers by them. Started before a socket is bound, closed after them."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], directory: Path) -> None:
        self._lists: dict[bytes, dict[bytes, Principal]] = {
            b"zmqrt.client": load_allowed(directory, "clients"),
            b"zmqrt.worker": load_allowed(directory, "workers"),
        }
        for principal in (principal for listed in self._lists.values() for principal in listed.values()):
            name = principal.name
            if len(name) > MAX_NAME_CHARS:
                text = f"{directory}: the name {name[:20]!r}… has {len(name)} characters, over {MAX_NAME_CHARS}"
                raise ConfigurationError(text)
        self._socket = transport.zap_socket(context)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="zap", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering: from here on nobody new gets in."""
        self._stop.set()
        self._thread.join()

    def is_admin(self, user: str) -> bool:
        """Say whether a client's principal may change things."""
        clients = self._lists[b"zmqrt.client"].values()
        return any(principal.is_admin for principal in clients if principal.name == user)

    def is_bridge(self, user: str) -> bool:
        """Say whether a client's principal may ask for others."""
        clients = self._lists[b"zmqrt.client"].values()
        return any(principal.is_bridge for principal in clients if principal.name == user)

    def _serve(self) -> None:
        try:
            while not self._stop.is_set():
                if self._socket.poll(_POLL_MS):
                    self._answer(self._socket.recv_multipart())
        finally:
            self._socket.close(0)

    def _answer(self, question: list[bytes]) -> None:
        """Reply to one request: [routing, empty, version, sequence, domain, address, identity, mechanism, key …]."""
        if len(question) < 8 or question[2] != _VERSION:
            log.error("libzmq asked in a form that is not ZAP 1.0")
            return
        routing, _, _, sequence, domain, address, _, mechanism = question[:8]
        principal = self._principal(domain, mechanism, question[8:])
        if principal is None:
            where = (address.decode("ascii", "replace"), domain.decode("ascii", "replace"))
            log.warning("refused %s at %s: its key is not on the list", *where)
        status, text, user = (b"200", b"OK", principal.name) if principal else (b"400", b"not on the list", "")
        reply = [routing, b"", _VERSION, sequence, status, text, user.encode(), b""]
        self._socket.send_multipart(reply)

    def _principal(self, domain: bytes, mechanism: bytes, credentials: list[bytes]) -> Principal | None:
        if mechanism != b"CURVE" or len(credentials) != 1 or len(credentials[0]) != 32:
            return None
        return self._lists.get(domain, {}).get(z85.encode(credentials[0]))
