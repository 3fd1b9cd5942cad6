"""Why a broker could not be used, in words that name the cause and the remedy.

First the events of ZeroMQ's own monitor are read; where they say nothing, a plain TCP connection shows who answers.
"""

from __future__ import annotations

import socket
from typing import Final

import zmq

from .failure import PORTS, Failure, Role, other

PROBE_S: Final = 1.0
_LISTENING: Final = "; start one with `zmqrt up` or `zmqrt-broker`"
_KEY_WANTED: Final = "the broker there demands a key; pass `--keys DIR` (made by `zmqrt keygen DIR`)"
_NO_KEY_WANTED: Final = "uses no keys, but this {role} does; leave `--keys` out, or give the broker its own"
GREETING_S: Final = 0.3
"""ZeroMQ greets within a round trip; an HTTP server never speaks first."""
SIGNATURE: Final = b"\xff"
_GREETING_BEGINS: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00"
"""ZMTP (RFC 23): signature and version 3.0, enough for the other side to tell everything about itself. Ours is never
finished: at a mismatch libzmq hangs up, and its own greeting may be lost on the way."""
_MECHANISM: Final = slice(12, 32)
_MISMATCH: Final = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
"""One side uses CURVE and the other does not."""


def of_handshake(event: int, value: int, endpoint: str, *, has_keys: bool, role: Role = "client") -> Failure | None:
    """Read a monitor event; None when it tells no cause."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MISMATCH:
        return _of_mismatch(endpoint, has_keys=has_keys, role=role)
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        text = (
            f"{endpoint}: the broker does not allow this {role}'s key (answer {value}): it is missing in "
            f"`authorized_{role}s`, or this is the broker's port for {other(role)}s"
        )
        return Failure(text, is_final=True, not_authorised=True)
    return None  # the other side just closed the connection: the first words it says to a stranger tell why


def _of_mismatch(endpoint: str, *, has_keys: bool, role: Role) -> Failure:
    text = f"the broker there {_NO_KEY_WANTED.format(role=role)}" if has_keys else _KEY_WANTED
    return Failure(f"{endpoint}: {text}", is_final=True, not_authorised=True)


def probe(
    endpoint: str,
    *,
    has_keys: bool = False,
    broke_off: bool = False,
    timeout_s: float = PROBE_S,
    role: Role = "client",
) -> Failure:
    """Look who answers at an endpoint with which no ZeroMQ handshake came about. Blocks for about `timeout_s`.

    Args:
        has_keys: Whether whoever asks uses keys.
        broke_off: The handshake was begun and broken off; else it never ended.
    """
    scheme, _, address = endpoint.partition("://")
    if scheme != "tcp":
        return Failure(f"nobody listens at {endpoint}{_LISTENING}")
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as plain:
            return _look(plain, endpoint, timeout_s, has_keys=has_keys, broke_off=broke_off, role=role)
    except socket.gaierror as error:
        return Failure(f"{endpoint}: the name {host} cannot be resolved ({error.strerror})")
    except ConnectionRefusedError:
        return Failure(f"nobody listens at {endpoint}{_LISTENING}")
    except TimeoutError:
        return Failure(f"{endpoint}: no answer at all; is the host up, and does a firewall let port {port} through?")
    except OSError as error:
        return Failure(f"{endpoint}: cannot connect ({error.strerror or error})")


def _look(
    plain: socket.socket, endpoint: str, timeout_s: float, *, has_keys: bool, broke_off: bool, role: Role
) -> Failure:
    """Wait for a greeting; ask in HTTP if there is none. Never first: libzmq would hang up before it greets."""
    said = hear(plain, GREETING_S)
    if said.startswith(SIGNATURE):
        greeting = said + say(plain, _GREETING_BEGINS, timeout_s, enough=_MECHANISM.stop - len(said))
        mechanism = greeting[_MECHANISM].rstrip(b"\0")
        return _of_zeromq(mechanism, endpoint, has_keys=has_keys, broke_off=broke_off, role=role)
    return _of_answer(said or say(plain, b"GET / HTTP/1.0\r\n\r\n", timeout_s), endpoint, role)


def say(plain: socket.socket, words: bytes, timeout_s: float, *, enough: int = 1) -> bytes:
    """Say something and return what comes, as `hear` does."""
    try:
        plain.sendall(words)
    except OSError:
        return b""
    return hear(plain, timeout_s, enough=enough)


def hear(plain: socket.socket, timeout_s: float, *, enough: int = 1) -> bytes:
    """Return what comes: `enough` bytes, or all until the other side is silent or hangs up."""
    said = b""
    plain.settimeout(timeout_s)
    try:
        while len(said) < enough and (more := plain.recv(256)):
            said += more
    except OSError:
        pass
    return said


def _of_zeromq(mechanism: bytes, endpoint: str, *, has_keys: bool, broke_off: bool, role: Role) -> Failure:
    if mechanism in (b"NULL", b"CURVE") and (mechanism == b"CURVE") != has_keys:
        return _of_mismatch(endpoint, has_keys=has_keys, role=role)
    if has_keys and broke_off:
        text = f"{endpoint}: the encrypted handshake failed; the broker's public key here is probably not its own"
        return Failure(text, is_final=True, not_authorised=True)
    return Failure(f"{endpoint}: a ZeroMQ program listens there, but not as a broker, or it is overloaded")


def _of_answer(said: bytes, endpoint: str, role: Role) -> Failure:
    line = next(iter(said.splitlines()), b"")
    shown = line.decode("ascii", "replace")[:80]
    if line.startswith(b"HTTP/"):
        said_so = f'{endpoint} is an HTTP server (it answered "{shown}"), not a broker; is it the bridge?'
        text = f"{said_so} {role.capitalize()}s use {PORTS[role]}"
        return Failure(text, is_final=True)
    if line:
        return Failure(f'{endpoint} is not a broker: it answered "{shown}"', is_final=True)
    return Failure(f"{endpoint}: something accepts the connection but says nothing; it is no broker, or it is frozen")
