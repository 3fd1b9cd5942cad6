"""Finds out why a broker could not be used, in words that name the cause and the remedy.

First the events of ZeroMQ's own monitor are read; where they say nothing, a plain TCP connection shows who answers.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

import zmq

from .failure import PORTS, Failure, PeerRole, other

PROBE_S: Final = 1.0
GREETING_S: Final = 0.3
"""ZeroMQ greets within a round trip; an HTTP server never speaks first."""
SIGNATURE: Final = b"\xff"
_GREETING_BEGINS: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00"
"""ZMTP (RFC 23): signature and version 3.0, enough for the other side to tell everything about itself. Ours is never
finished: at a mismatch libzmq hangs up, and its own greeting may be lost on the way."""
_MECHANISM: Final = slice(12, 32)
_MISMATCH: Final = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
"""One side uses CURVE and the other does not."""
_NOBODY: Final = "nobody listens at {}; start one with `zmqrt up` or `zmqrt-broker`"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A try to connect that failed: where, as whom, with keys or not, and whether the handshake had begun."""

    endpoint: str
    role: PeerRole
    has_keys: bool
    broke_off: bool = False

    def mismatch(self) -> Failure:
        """Explain that one side uses keys and the other does not."""
        if self.has_keys:
            text = f"uses no keys, but this {self.role} does; leave `--keys` out, or give the broker its own"
        else:
            text = "demands a key; pass `--keys DIR` (made by `zmqrt keygen DIR`)"
        return Failure(f"{self.endpoint}: the broker there {text}", is_final=True, not_authorised=True)

    def of_zeromq(self, mechanism: bytes) -> Failure:
        """Explain what stands in the greeting of a ZeroMQ program."""
        if mechanism in (b"NULL", b"CURVE") and (mechanism == b"CURVE") != self.has_keys:
            return self.mismatch()
        if self.has_keys and self.broke_off:
            text = "the encrypted handshake failed; the broker's public key here is probably not its own"
            return Failure(f"{self.endpoint}: {text}", is_final=True, not_authorised=True)
        return Failure(f"{self.endpoint}: a ZeroMQ program listens there, but not as a broker, or it is overloaded")

    def of_another(self, answer: bytes) -> Failure:
        """Explain what another program says first, or to a question in HTTP."""
        line = next(iter(answer.splitlines()), b"")
        shown = line.decode("ascii", "replace")[:80]
        if line.startswith(b"HTTP/"):
            use = f"{self.role.capitalize()}s use {PORTS[self.role]}"
            what = f'is an HTTP server (it answered "{shown}"), not a broker; is it the bridge? {use}'
            return Failure(f"{self.endpoint} {what}", is_final=True)
        if line:
            return Failure(f'{self.endpoint} is not a broker: it answered "{shown}"', is_final=True)
        text = "something accepts the connection but says nothing; it is no broker, or it is frozen"
        return Failure(f"{self.endpoint}: {text}")


def of_handshake(event: int, value: int, endpoint: str, *, has_keys: bool, role: PeerRole = "client") -> Failure | None:
    """Read a monitor event; None when it tells no cause."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MISMATCH:
        return _Attempt(endpoint, role, has_keys).mismatch()
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        text = (
            f"{endpoint}: the broker does not allow this {role}'s key (answer {value}): it is not listed in "
            f"`authorized_{role}s`, or revoked or expired there, or this is the broker's port for {other(role)}s"
        )
        return Failure(text, is_final=True, not_authorised=True)
    return None  # the other side just closed the connection: the first words it says to a stranger tell why


def probe(
    endpoint: str,
    *,
    has_keys: bool = False,
    broke_off: bool = False,
    timeout_s: float = PROBE_S,
    role: PeerRole = "client",
) -> Failure:
    """Look who answers at an endpoint with which no ZeroMQ handshake came about. Blocks for about `timeout_s`.

    Args:
        has_keys: Whether whoever asks uses keys.
        broke_off: The handshake was begun and broken off; else it never ended.
    """
    scheme, _, address = endpoint.partition("://")
    host, _, port = address.rpartition(":")
    if scheme != "tcp":
        return Failure(_NOBODY.format(endpoint))
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as plain:
            return _look(plain, timeout_s, _Attempt(endpoint, role, has_keys, broke_off))
    except socket.gaierror as error:
        return Failure(f"{endpoint}: the name {host} cannot be resolved ({error.strerror})")
    except ConnectionRefusedError:
        return Failure(_NOBODY.format(endpoint))
    except TimeoutError:
        return Failure(f"{endpoint}: no answer at all; is the host up, and does a firewall let port {port} through?")
    except OSError as error:
        return Failure(f"{endpoint}: cannot connect ({error.strerror or error})")


def _look(plain: socket.socket, timeout_s: float, attempt: _Attempt) -> Failure:
    """Wait for a greeting; ask in HTTP if there is none. Never first: libzmq would hang up before it greets."""
    greeting = hear(plain, GREETING_S)
    if not greeting.startswith(SIGNATURE):
        return attempt.of_another(greeting or say(plain, b"GET / HTTP/1.0\r\n\r\n", timeout_s))
    greeting += say(plain, _GREETING_BEGINS, timeout_s, enough=_MECHANISM.stop - len(greeting))
    return attempt.of_zeromq(greeting[_MECHANISM].rstrip(b"\0"))


def say(plain: socket.socket, words: bytes, timeout_s: float, *, enough: int = 1) -> bytes:
    """Send something and return what comes, as `hear` does."""
    try:
        plain.sendall(words)
    except OSError:
        return b""
    return hear(plain, timeout_s, enough=enough)


def hear(plain: socket.socket, timeout_s: float, *, enough: int = 1) -> bytes:
    """Return what comes: `enough` bytes, or all until the other side is silent or hangs up."""
    received = b""
    plain.settimeout(timeout_s)
    try:
        while len(received) < enough and (more := plain.recv(256)):
            received += more
    except OSError:
        pass
    return received
