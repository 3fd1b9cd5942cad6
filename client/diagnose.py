"""Why a broker could not be used, in words that name the cause and the remedy.

First the events of ZeroMQ's own monitor are read; where they say nothing, a plain TCP connection shows who answers.
"""

from __future__ import annotations

import socket
from typing import Final

import zmq

from .endpoints import Failure

PROBE_S: Final = 1.0
_LISTENING: Final = "; start one with `zmqrt up` or `zmqrt-broker`"
_KEY_WANTED: Final = "the broker there demands a key; pass `--keys DIR` (made by `zmqrt keygen DIR`)"
_NO_KEY_WANTED: Final = (
    "the broker there uses no keys, but this client does; leave `--keys` out, or give the broker its own"
)
_GREETING_BEGINS: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00"
"""Signature and version 3.0: enough for the other side to tell everything about itself."""
_MECHANISM: Final = slice(12, 32)
_GREETING_S: Final = 0.3
"""ZeroMQ greets within a round trip; an HTTP server never speaks first."""
_MISMATCH: Final = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
"""One side uses CURVE and the other does not."""


def of_handshake(event: int, value: int, endpoint: str, *, has_keys: bool) -> Failure | None:
    """Read a monitor event; None when it tells no cause."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MISMATCH:
        text = _NO_KEY_WANTED if has_keys else _KEY_WANTED
        return Failure(f"{endpoint}: {text}", is_final=True, not_authorised=True)
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        text = (
            f"{endpoint}: the broker does not allow this client's key (answer {value}): it is missing in "
            "`authorized_clients`, or this is the broker's port for workers"
        )
        return Failure(text, is_final=True, not_authorised=True)
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and has_keys:
        text = f"{endpoint}: the encrypted handshake failed; the broker's public key here is probably not its own"
        return Failure(text, is_final=True, not_authorised=True)
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return Failure(f"{endpoint}: what answers there does not speak ZeroMQ as a broker does (error {value:#x})")
    return None


def of_version(lowest: int, highest: int, own: int, endpoint: str) -> Failure:
    """Explain a version answer."""
    text = f"{endpoint}: the broker speaks ZRT/{lowest} to ZRT/{highest}, this client ZRT/{own}; update the older one"
    return Failure(text, is_final=True)


def of_worker_port(endpoint: str) -> Failure:
    """Explain a message that only workers are sent."""
    return Failure(
        f"{endpoint} is the broker's port for workers; clients connect to the other one (7555 by default)", True
    )


def of_stranger(endpoint: str) -> Failure:
    """Explain an envelope that is not ZRT."""
    return Failure(f"{endpoint}: something there speaks ZeroMQ but not ZRT; is it another program?", is_final=True)


def probe(endpoint: str, timeout_s: float = PROBE_S, *, has_keys: bool = False) -> Failure:
    """Look who answers at an endpoint with which no ZeroMQ handshake came about. Blocks for some `timeout_s`."""
    scheme, _, address = endpoint.partition("://")
    if scheme != "tcp":
        return Failure(f"nobody listens at {endpoint}{_LISTENING}")
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as plain:
            if not _greets_first(plain):
                return _of_answer(_first_line(plain, timeout_s), endpoint)
            return _of_mechanism(_mechanism(plain, timeout_s), endpoint, has_keys=has_keys)
    except socket.gaierror as error:
        return Failure(f"{endpoint}: the name {host} cannot be resolved ({error.strerror})")
    except ConnectionRefusedError:
        return Failure(f"nobody listens at {endpoint}{_LISTENING}")
    except TimeoutError:
        return Failure(f"{endpoint}: no answer at all; is the host up, and does a firewall let port {port} through?")
    except OSError as error:
        return Failure(f"{endpoint}: cannot connect ({error.strerror or error})")


def _greets_first(plain: socket.socket) -> bool:
    """Say whether ZeroMQ is there: it sends its signature unasked, where others wait to be spoken to."""
    plain.settimeout(_GREETING_S)
    try:
        return plain.recv(1, socket.MSG_PEEK) == b"\xff"
    except TimeoutError:
        return False


def _mechanism(plain: socket.socket, timeout_s: float) -> bytes:
    """Read the security mechanism of the other side out of its greeting (RFC 23/ZMTP); empty if it is silent.

    Ours is never finished: at a mismatch libzmq hangs up, and its own greeting may be lost on the way.
    """
    plain.settimeout(timeout_s)
    greeting = b""
    try:
        plain.sendall(_GREETING_BEGINS)
        while len(greeting) < _MECHANISM.stop and (piece := plain.recv(_MECHANISM.stop - len(greeting))):
            greeting += piece
    except OSError:
        return b""
    return greeting[_MECHANISM].rstrip(b"\0")


def _of_mechanism(mechanism: bytes, endpoint: str, *, has_keys: bool) -> Failure:
    # The monitor's event tells of a mismatch only if the other side's greeting was read before it hung up.
    if mechanism == b"CURVE" and not has_keys:
        return Failure(f"{endpoint}: {_KEY_WANTED}", is_final=True, not_authorised=True)
    if mechanism == b"NULL" and has_keys:
        return Failure(f"{endpoint}: {_NO_KEY_WANTED}", is_final=True, not_authorised=True)
    return Failure(f"{endpoint}: a ZeroMQ program listens there but not as a broker, or it is overloaded")


def _first_line(plain: socket.socket, timeout_s: float) -> bytes:
    plain.settimeout(timeout_s)
    try:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return plain.recv(200).splitlines()[0]
    except (OSError, IndexError):
        return b""


def _of_answer(line: bytes, endpoint: str) -> Failure:
    shown = line.decode("ascii", "replace")[:80]
    if line.startswith(b"HTTP/"):
        text = f'{endpoint} is an HTTP server (it answered "{shown}"), not a broker; is it the bridge? Clients use 7555'
        return Failure(text, is_final=True)
    if line.isascii() and line:
        return Failure(f'{endpoint} is not a broker: it answered "{shown}"', is_final=True)
    return Failure(f"{endpoint}: something accepts the connection but says nothing; it is no broker, or it is frozen")
