"""One line that lets a machine join a fleet: where the brokers are, who they are, and a key of its own.

    zmqrt-join1.<base64url of: length, MessagePack, the beginning of its SHA-256>

It is a secret, like the file of a key. The length tells a line that was cut while it was copied from one that is wrong.
Its key stands on the broker's list, so a line is no more than that list says: it expires and is revoked there.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from typing import Annotated, Final, Literal

import msgspec
import zmq
from msgspec import Meta
from zmq.utils import z85

from .addresses import check_endpoint
from .api_keys import moment
from .errors import ConfigurationError
from .keys import KeyPair, PeerKeys
from .limits import MAX_BROKERS, MAX_ENDPOINT_CHARS, MAX_NAME_CHARS

PREFIX: Final = "zmqrt-join"
_VERSION: Final = "1"
_SUM_BYTES: Final = 6
_LENGTH_BYTES: Final = 2
_MAX_CHARS: Final = 8192
"""Twice what eight brokers with the longest addresses need."""
LineRole = Literal["worker", "client", "admin", "bridge"]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]


class JoinLine(msgspec.Struct, frozen=True, array_like=True):
    """What a line holds. `expires`: in whole seconds since 1970; None: it lasts until it is revoked.

    `is_once`: its key can do nothing but list another one, which its machine has made itself (enrolment.py).
    """

    role: LineRole
    brokers: Annotated[tuple[Annotated[str, Meta(max_length=MAX_ENDPOINT_CHARS)], ...], Meta(max_length=MAX_BROKERS)]
    server_public: Key
    secret: Key
    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
    expires: int | None = None
    is_once: bool = False

    def __repr__(self) -> str:
        return f"JoinLine({self.role!r}, {self.brokers!r}, name={self.name!r})"

    @property
    def is_worker(self) -> bool:
        """Whether it opens the port of workers, and not that of clients."""
        return self.role == "worker"

    def peer_keys(self) -> PeerKeys:
        """Return the keys that a session needs."""
        secret = z85.encode(self.secret)
        return PeerKeys(KeyPair(zmq.curve_public(secret), secret), z85.encode(self.server_public))


def write_line(
    role: LineRole,
    brokers: tuple[str, ...],
    server_public: bytes,
    secret: bytes,
    name: str,
    expires: float | None,
    *,
    is_once: bool = False,
) -> str:
    """Write a line; keys are given in Z85. Raises ConfigurationError where it could not be read."""
    ends = None if expires is None else int(expires)
    line = JoinLine(role, brokers, z85.decode(server_public), z85.decode(secret), name, ends, is_once)
    body = msgspec.msgpack.encode(line)
    whole = len(body).to_bytes(_LENGTH_BYTES) + body + hashlib.sha256(body).digest()[:_SUM_BYTES]
    text = f"{PREFIX}{_VERSION}.{base64.urlsafe_b64encode(whole).decode().rstrip('=')}"
    read_line(text)
    return text


def read_line(text: str) -> JoinLine:
    """Read a line, also one that a terminal or a mail has broken over several. Raises ConfigurationError."""
    text = "".join(text.split())
    head, dot, rest = text.partition(".")
    if not head.startswith(PREFIX) or len(text) > _MAX_CHARS:
        raise ConfigurationError(f"this is no line to join by: it would begin with {PREFIX}{_VERSION}.")
    if head != PREFIX + _VERSION:
        if not dot:
            raise ConfigurationError("this line to join by is cut off; copy all of it")
        raise ConfigurationError(f"this line is of another version ({head[:20]}); it needs another version of zmqrt")
    line = _decode(_body(rest))
    for endpoint in line.brokers:
        check_endpoint(endpoint)
    if not line.brokers or not line.name.isprintable() or " " in line.name:
        raise ConfigurationError("this line names no broker, or its name is no word; make a new one")
    return line


def check_line(text: str) -> None:
    """Check a setting that holds a line. Raises ValueError."""
    try:
        read_line(text)
    except ConfigurationError as error:
        raise ValueError(str(error)) from None


def refuse_expired(line: JoinLine) -> None:
    """Refuse a line that no broker would take any more. Raises ConfigurationError."""
    if line.expires is not None and time.time() >= line.expires:
        raise ConfigurationError(f"the line for {line.name} expired at {moment(line.expires)}; {_ASK}")


_ASK: Final = "ask for a new one: zmqrt keys fleet invite"


def _body(rest: str) -> bytes:
    try:
        whole = base64.b64decode(rest + "=" * (-len(rest) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        if len(rest) % 4 == 1 and rest.isascii():
            whole = b""  # no base64 has this length
        else:
            raise ConfigurationError("this line holds letters that no line has; copy it again") from None
    length = int.from_bytes(whole[:_LENGTH_BYTES]) if len(whole) >= _LENGTH_BYTES else len(whole) + 1
    end = _LENGTH_BYTES + length
    if len(whole) < end + _SUM_BYTES:
        raise ConfigurationError("this line to join by is cut off; copy all of it")
    body = whole[_LENGTH_BYTES:end]
    if whole[end:] != hashlib.sha256(body).digest()[:_SUM_BYTES]:
        raise ConfigurationError("this line was changed on its way: its checksum is wrong; copy it again")
    return body


def _decode(body: bytes) -> JoinLine:
    try:
        return msgspec.msgpack.decode(body, type=JoinLine)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ConfigurationError("this line was not made by zmqrt, or by a newer one") from None
