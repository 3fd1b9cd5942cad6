"""Endpoints and hosts as text: which are valid, which stay on this machine, which addresses a name stands for.

An IPv6 address stands in brackets, `tcp://[::1]:7555`. Whether a *name* means IPv6 only its resolution tells.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from .errors import ConfigurationError

_MAX_PORT: Final = 65_535
_TRANSPORTS: Final = ("tcp", "ipc", "inproc")
_TRY_S: Final = 0.5
"""For each address of a name with several: within the two seconds that a client waits for a handshake."""
_MOST_TRIED: Final = 4
_LONG_S: Final = 1.0
_KEPT_S: Final = 10.0
"""What took so long to look up is good for one more try within this time."""
EXAMPLE: Final = "tcp://127.0.0.1:7555"


def split_tcp(endpoint: str) -> tuple[str, str]:
    """Return host (without brackets) and port of tcp://HOST:PORT."""
    host, _, port = endpoint.partition("://")[2].rpartition(":")
    return (host[1:-1] if host.startswith("[") and host.endswith("]") else host), port


def join_host(host: str, port: int | str) -> str:
    """Write host and port as they stand in an endpoint or URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback_host(host: str) -> bool:
    """Say whether a host is this machine, under an address that no other machine can reach."""
    host = host.strip("[]").lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False  # a name, an interface or "*": may be anywhere
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (inner or address).is_loopback


def is_loopback(endpoint: str) -> bool:
    """Say whether nothing beyond this machine can reach, or be reached by, the endpoint."""
    return endpoint.startswith(("ipc://", "inproc://")) or is_loopback_host(split_tcp(endpoint)[0])


def check_endpoint(endpoint: str) -> None:
    """Refuse what libzmq would take for something else: of a port above 65535 it uses the lower half of the bits.

    Raises:
        ConfigurationError: neither tcp://HOST:PORT nor another transport with an address.
    """
    scheme, _, rest = endpoint.partition("://")
    if scheme in ("http", "https") and rest:
        raise ConfigurationError(
            f"{endpoint} is an HTTP address (the bridge's?); zmqrt's own endpoints are ZeroMQ's, for example {EXAMPLE}"
        )
    if scheme not in _TRANSPORTS or not rest or not rest.isprintable() or (scheme == "tcp" and not _is_tcp(endpoint)):
        raise ConfigurationError(f"{endpoint!r} is not an endpoint; expected something like {EXAMPLE}")


def check_endpoints(endpoints: Sequence[str]) -> None:
    """Check a setting that lists endpoints. Raises ValueError."""
    for endpoint in endpoints:
        try:
            check_endpoint(endpoint)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None


def _is_tcp(endpoint: str) -> bool:
    host, port = split_tcp(endpoint)
    is_port = port == "*" or (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= _MAX_PORT)
    has_brackets = endpoint.startswith("tcp://[")
    return bool(host) and is_port and (":" in host) == has_brackets and " " not in host


def addresses_of(host: str) -> list[str]:
    """Return the addresses that a host stands for, IPv4 first. Blocks as long as the resolver does. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    ordered = sorted(found, key=lambda info: info[0] != socket.AF_INET)
    return list(dict.fromkeys(str(info[4][0]) for info in ordered))


def to_bind(endpoint: str) -> list[str]:
    """Return what to bind for an endpoint: each address of a name, and nothing that is somebody else's file.

    Raises:
        ConfigurationError: ipc:// would replace a file.
        OSError: somebody listens there.
    """
    if endpoint.startswith("ipc://"):
        _refuse_to_replace(endpoint.removeprefix("ipc://"))
    if not endpoint.startswith("tcp://"):
        return [endpoint]
    host, port = split_tcp(endpoint)
    hosts = [host]
    if is_name(endpoint) and host != "*":
        with contextlib.suppress(OSError, UnicodeError):  # the name of an interface, perhaps: libzmq knows those
            hosts = addresses_of(host)
    return [f"tcp://{join_host(address, '*' if port == '0' else port)}" for address in hosts]


def _refuse_to_replace(path: str) -> None:
    """Keep libzmq, which removes whatever has the name of an ipc endpoint, from removing all but a dead socket."""
    if sys.platform == "win32" or path.startswith("@") or path == "*":  # an abstract name, or one that libzmq makes up
        return
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # nothing there, or nothing that can be reached: libzmq says so
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"{path} is there already and is no socket; ipc:// would replace it: choose another")
    with socket.socket(socket.AF_UNIX) as knock:
        try:
            knock.connect(path)
        except OSError:
            return  # left behind by a process that is gone
    raise OSError(errno.EADDRINUSE, f"ipc://{path} is in use by another process")


def is_name(endpoint: str) -> bool:
    """Say whether the endpoint's host has to be looked up, which may take seconds."""
    if not endpoint.startswith("tcp://"):
        return False
    try:
        ipaddress.ip_address(split_tcp(endpoint)[0].partition("%")[0])
    except ValueError:
        return True
    return False


def resolve(endpoint: str) -> str:
    """Return the endpoint with an address for its name; itself if there is none to be found.

    libzmq looks a name up in one family, and its other connections wait meanwhile, so it is done here. A name with
    several addresses is tried: a broker may listen at one of them. Blocks as long as the resolver does, and a second.
    """
    if not is_name(endpoint):
        return endpoint
    host, port = split_tcp(endpoint)
    try:
        addresses = addresses_of(host)
    except (OSError, ValueError):  # whoever waits for the connection will look closer, and say why
        return endpoint
    if len(addresses) > 1 and port.isdigit():
        open_ones = (address for address in addresses[:_MOST_TRIED] if _accepts(address, int(port)))
        addresses = [next(open_ones, addresses[0])]
    return f"tcp://{join_host(addresses[0], port)}" if addresses else endpoint


def _accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), _TRY_S).close()
    except (OSError, OverflowError):  # a broker may have named any port
        return False
    return True


class Resolver:
    """Looks endpoints up beside everything else, each in one thread at a time.

    A resolver may take longer than a try to connect (five seconds, where the first of two servers is dead). So a new
    try waits for the look-up of the one before, and finds what came too late for that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, Callable[[str], object]] = {}
        self._late: dict[str, tuple[float, str]] = {}

    def look_up(self, endpoint: str, then: Callable[[str], object]) -> None:
        """Call `then` with what `resolve` finds, from any thread; whoever waited for this endpoint waits no more."""
        with self._lock:
            until, found = self._late.pop(endpoint, (0.0, ""))
            if time.monotonic() >= until:
                is_new = endpoint not in self._waiting
                self._waiting[endpoint] = then
                if is_new:
                    threading.Thread(target=self._look, args=(endpoint,), name="zmqrt-lookup", daemon=True).start()
                return
        then(found)

    def _look(self, endpoint: str) -> None:
        began = time.monotonic()
        found = resolve(endpoint)
        now = time.monotonic()
        with self._lock:
            then = self._waiting.pop(endpoint)
            self._late = {name: kept for name, kept in self._late.items() if now < kept[0]}
            if now - began > _LONG_S:
                self._late[endpoint] = (now + _KEPT_S, found)
        with contextlib.suppress(RuntimeError, OSError):  # whoever asked may be gone meanwhile
            then(found)
