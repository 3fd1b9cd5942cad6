"""Decides who may connect: answers libzmq's question about every handshake (RFC 27/ZAP), in a thread of its own.

Each socket has an allow-list of its own, told apart by its ZAP domain: a client's key never opens the worker port. Both
sockets enforce their domain, so when this thread has ended nobody new gets in; the broker sees that and ends, too. Why
not pyzmq's: docs/adr/0010.

Whoever is refused is told so and named, as often as a person who has made a mistake would try; beyond that an address
gets silence (a status of 300), and is counted. A right key is let in from there all the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from pathlib import Path
from typing import Final, NamedTuple

import zmq
from zmq.utils import z85

from ..protocol import authorized_keys as lists
from ..protocol import transport
from ..protocol.authorized_keys import GROUPS, Group
from .allow_lists import Ended, principals, read_lists
from .rate_limits import TokenBucket, full_bucket

_POLL_MS: Final = 200
_LOOK_S: Final = 0.2
"""Between two looks at the lists: what changes there is to take effect within a second."""
_IN_FORCE_S: Final = 5.0
_VERSION: Final = b"1.0"
_DOMAINS: Final[dict[bytes, Group]] = {b"zmqrt.client": "clients", b"zmqrt.worker": "workers"}
_TOLD_RATE: Final = 1.0
_TOLD_BURST: Final = 20.0
"""Refusals of one address that are told and named: a fleet that was started with the wrong keys, once, and then …"""
_NAMED_RATE: Final = 10.0
_NAMED_BURST: Final = 200.0
"""Of all addresses together: who has many would fill the log, and push what others should read out of the monitor."""
_MOST_ADDRESSES: Final = 1024
_MOST_UNREAD: Final = 1000
REFUSALS: Final = ("unlisted", "other_port", "expired", "revoked", "used", "no_key", "too_often")
"""Why a connection was not let in, as `zmqrt_zap_refused_total` has it."""
log = logging.getLogger(__name__)


class Refusal(NamedTuple):
    """A connection that was not let in, in words."""

    address: str
    text: str


class Gate:
    """The allow-lists, and the thread that answers by them. Started before a socket is bound, closed after them."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], directory: Path) -> None:
        self._directory = directory
        self._lists = read_lists(directory, time.time())
        self.refused: dict[str, int] = dict.fromkeys(REFUSALS, 0)
        """How often each; only this thread writes."""
        self.failure: Exception | None = None
        """What has ended the thread, if it was not told to end."""
        self._ended: deque[Ended] = deque()
        self._unread: deque[Refusal] = deque(maxlen=_MOST_UNREAD)
        self._told: OrderedDict[str, TokenBucket] = OrderedDict()
        self._named = full_bucket(_NAMED_RATE, _NAMED_BURST, time.monotonic())
        self._look_at = 0.0
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

    # --- for the broker's loop -------------------------------------------------------------------------------------

    def name_of(self, group: Group, key: str) -> str | None:
        """Return the principal that a connection's key stands for; None: it is let in no more."""
        principal = self._lists[group].allowed.get(key)
        return principal.name if principal is not None else None

    def is_once(self, group: Group, key: str) -> bool:
        """Say whether a connection came by a line that is good once, and may do nothing but enrol."""
        return key in self._lists[group].once

    def enrol(self, group: Group, line_key: str, public: str) -> str:
        """List a key in place of a line, and wait until it is let in. Raises ConfigurationError saying why not."""
        principal = lists.enrol(self._directory, group, line_key.encode(), public.encode(), time.time())
        give_up_at = time.monotonic() + _IN_FORCE_S
        while self.name_of(group, public) is None and time.monotonic() < give_up_at:
            time.sleep(_LOOK_S / 4)
        log.info("%s has joined with the key %s", principal.name, public)
        return principal.name

    def is_admin(self, user: str) -> bool:
        """Say whether a client's principal may change things."""
        return any(principal.is_admin for principal in principals(self._lists["clients"].allowed, user))

    def is_bridge(self, user: str) -> bool:
        """Say whether a client's principal may ask for others."""
        return any(principal.is_bridge for principal in principals(self._lists["clients"].allowed, user))

    def take_ended(self) -> list[Ended]:
        """Return, once each, the keys that are let in no more."""
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def take_refusals(self) -> list[Refusal]:
        """Return, once each, whom to name."""
        return [self._unread.popleft() for _ in range(len(self._unread))]

    # --- the thread ------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while not self._stop.is_set():
                if self._socket.poll(_POLL_MS):
                    self._answer(self._socket.recv_multipart())
                if time.monotonic() >= self._look_at:
                    self._look_at = time.monotonic() + _LOOK_S
                    self._look()
        except Exception as error:
            log.exception("the thread that says who may connect has failed")
            self.failure = error
        finally:
            self._socket.close(0)

    def _look(self) -> None:
        for group in GROUPS:
            self._ended += self._lists[group].refresh(time.time())

    def _answer(self, question: list[bytes]) -> None:
        """Reply to one request: [routing, empty, version, sequence, domain, address, identity, mechanism, key …].

        The user id is the key itself: whose it is, and whether it still is, the lists say for each envelope.
        """
        if len(question) < 8 or question[2] != _VERSION:
            log.error("libzmq asked in a form that is not ZAP 1.0")
            return
        routing, _, _, sequence, domain, address, _, mechanism = question[:8]
        group, credentials = _DOMAINS.get(domain), question[8:]
        is_key = mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32
        key = z85.encode(credentials[0]).decode() if is_key and group is not None else ""
        if group is not None and not self._lists[group].knows(key):
            self._look()  # who was listed a moment ago need not try twice
        if group is not None and self._lists[group].knows(key):
            status, text = b"200", b"OK"
        else:
            status, text = self._refuse(address.decode("ascii", "replace"), group, key), b"not on the list"
        self._socket.send_multipart([routing, b"", _VERSION, sequence, status, text, key.encode(), b""])

    def _refuse(self, address: str, group: Group | None, key: str) -> bytes:
        """Count and name; return the status of the answer."""
        if not self._may_tell(address, time.monotonic()):
            self.refused["too_often"] += 1
            return b"300"
        reason, text = self._why_not(group, key)
        self.refused[reason] += 1
        if self._named.take(time.monotonic()):
            self._unread.append(Refusal(address, f"refused at the port of {group}: {text}"))
        return b"400"

    def _why_not(self, group: Group | None, key: str) -> tuple[str, str]:
        if group is None or not key:
            return "no_key", "no key"
        listed, now = self._lists[group].find(key), time.time()
        if listed is not None and (why := listed.why_not(now)):
            return "revoked" if listed.revoked else "used" if listed.used else "expired", why
        other: Group = "clients" if group == "workers" else "workers"
        if (elsewhere := self._lists[other].allowed.get(key)) is not None:
            return "other_port", f"the key of {elsewhere.name} is for the port of {other}"
        return "unlisted", f"the key {key} is not on the list"

    def _may_tell(self, address: str, now: float) -> bool:
        bucket = self._told.pop(address, None) or full_bucket(_TOLD_RATE, _TOLD_BURST, now)
        self._told[address] = bucket
        if len(self._told) > _MOST_ADDRESSES:
            self._told.popitem(last=False)
        return bucket.take(now)
