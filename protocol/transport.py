"""The only place that makes ZeroMQ sockets and knows their options. What is sent through them is not known here.

Rules that every option below serves: one TCP connection is one session (no ROUTING_ID, no reconnect: a loss is seen and
a new socket registers anew); a send never blocks and never vanishes unseen (MANDATORY, IMMEDIATE); a frozen or vanished
peer is noticed; off loopback there is CURVE or there is no socket.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal

import zmq

from .addresses import check_endpoint, is_loopback, join_host, resolve, split_tcp, to_bind
from .errors import ConfigurationError
from .keys import KeyPair, PeerKeys
from .limits import MAX_FRAME_BYTES, MAX_LARGE_BODIES
from .timing import Timing

# Plain integers: combining IntFlags costs 2 us each time, on every frame.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.SNDMORE | zmq.NOBLOCK)
_POLLIN: Final = int(zmq.POLLIN)
_SRCFD: Final = int(zmq.SRCFD)
_COPY_BYTES: Final = 32 << 10
_LAST_FRAME: Final = 1 + MAX_LARGE_BODIES
_FRONTEND_DOMAIN: Final = "zmqrt.client"
_BACKEND_DOMAIN: Final = "zmqrt.worker"

Frame = bytes | memoryview
Domain = Literal["zmqrt.client", "zmqrt.worker"]
log = logging.getLogger(__name__)


def make_context(*, io_threads: int = 1, max_sockets: int = 65_000) -> zmq.Context[zmq.Socket[bytes]]:
    """Make a context of its own (never the global one: a role ends what it began)."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads)
    limit = context.get(zmq.SOCKET_LIMIT)
    context.set(zmq.MAX_SOCKETS, min(max_sockets, limit))
    return context


# --- addresses -------------------------------------------------------------------------------------------------------


def check_exposure(endpoint: str, *, has_keys: bool, insecure: bool) -> None:
    """Refuse to leave loopback in the clear: under NULL security any TCP peer can exhaust or abort a broker.

    Raises:
        ConfigurationError: no endpoint at all; or no keys, not loopback, and not overridden.
    """
    check_endpoint(endpoint)
    if has_keys or insecure or is_loopback(endpoint):
        return
    raise ConfigurationError(
        f"{endpoint} is reachable from other machines, and no keys are set: anybody could send work, read answers or "
        "crash the broker. Make keys with 'zmqrt keygen DIR' and pass '--keys DIR' to every role, or stay on "
        "127.0.0.1. '--insecure' overrides this on a network you trust."
    )


# --- sockets ---------------------------------------------------------------------------------------------------------


def bind_frontend(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, keys: KeyPair | None = None
) -> tuple[zmq.Socket[bytes], str]:
    """Bind the ROUTER that clients talk to; return it and the endpoint it got (a port of 0 or * picks a free one)."""
    router = _router(context, timeout_ms=10_000, domain=_FRONTEND_DOMAIN, keys=keys)
    router.sndhwm = 1000  # bytes are bounded by WINDOW, not by this
    router.rcvhwm = 64  # a flood waits in its sender, not here
    router.sndbuf = 256 << 10
    return router, _bind(router, endpoint)


def bind_backend(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, timing: Timing, keys: KeyPair | None = None
) -> tuple[zmq.Socket[bytes], str]:
    """Bind the ROUTER that workers talk to; return it and the endpoint it got."""
    # The protocol's own heartbeat decides first: libzmq would cut a frozen node before it is evicted.
    timeout_ms = min(int(4000 * timing.eviction_s), 65_000)
    router = _router(context, timeout_ms=timeout_ms, domain=_BACKEND_DOMAIN, keys=keys)
    router.sndhwm = 1000
    router.rcvhwm = 1000
    return router, _bind(router, endpoint)


def make_dealer(context: zmq.Context[zmq.Socket[bytes]], *, keys: PeerKeys | None = None) -> zmq.Socket[bytes]:
    """Make one session's DEALER. It never reconnects: after a loss, close it and register through a new one."""
    dealer = context.socket(zmq.DEALER)
    _common(dealer, timeout_ms=10_000)
    dealer.reconnect_ivl = -1
    dealer.immediate = 1  # a send before the handshake raises EAGAIN instead of queueing blindly
    dealer.sndhwm = 1000
    dealer.rcvhwm = 1000
    if keys is not None:
        dealer.curve_publickey = keys.own.public
        dealer.curve_secretkey = keys.own.secret
        dealer.curve_serverkey = keys.server_public
    return dealer


def connect(dealer: zmq.Socket[bytes], endpoint: str, *, at: str | None = None) -> None:
    """Begin to connect (after `monitor`, so that no event is missed).

    Args:
        at: What `addresses.resolve` has found; None looks now, and blocks for a name.

    Raises:
        ConfigurationError: a bad endpoint.
    """
    at = resolve(endpoint) if at is None else at
    dealer.ipv6 = at.startswith("tcp://[")
    try:
        dealer.connect(at)
    except zmq.ZMQError as error:
        raise ConfigurationError(
            f"{endpoint!r} is not an endpoint ({error}); expected something like tcp://127.0.0.1:7555"
        ) from None


def monitor(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """Return a PAIR that tells of handshakes, failures and disconnections (`zmq.utils.monitor` reads it)."""
    return socket.get_monitor_socket()


def monitor_connections(router: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """Return a PAIR that tells of connections: accepted (or not) and gone, by descriptor."""
    return router.get_monitor_socket(int(zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED))


def has_input(socket: zmq.Socket[bytes]) -> bool:
    """Say whether a message can be read now; any call on a socket may have eaten the wake-up for it."""
    return bool(zmq.zmq_poll([(socket, _POLLIN)], 0))  # getsockopt(EVENTS) looks its option up in an enum


def watch_for_input(sockets: Sequence[zmq.Socket[bytes]]) -> Callable[[], Sequence[tuple[object, int]]]:
    """Return what looks which of these sockets have a message to read: a pair (socket, …) for each that has.

    One look at two sockets costs half of what a look at each does.
    """
    return partial(zmq.zmq_poll, [(socket, _POLLIN) for socket in sockets], 0)


def descriptor(socket: zmq.Socket[bytes]) -> int:
    """Return the descriptor that an event loop watches: edge-triggered, for reading alone."""
    return int(socket.getsockopt(zmq.FD))


def wake_pair(context: zmq.Context[zmq.Socket[bytes]], name: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Make a PAIR that lets other threads wake a poller: (the poller's end, the others' end)."""
    ends = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    for end in ends:
        end.linger = 0
    ends[0].bind(f"inproc://{name}")
    ends[1].connect(f"inproc://{name}")
    return ends


def zap_socket(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Bind the socket that libzmq asks about every handshake (RFC 27/ZAP). Must be there before any ROUTER is bound."""
    handler = context.socket(zmq.ROUTER)
    handler.linger = 0
    handler.bind("inproc://zeromq.zap.01")
    return handler


def _router(
    context: zmq.Context[zmq.Socket[bytes]], *, timeout_ms: int, domain: Domain, keys: KeyPair | None
) -> zmq.Socket[bytes]:
    router = context.socket(zmq.ROUTER)
    _common(router, timeout_ms=timeout_ms)
    router.router_mandatory = 1
    router.backlog = 4096
    router.handshake_ivl = 15_000  # shorter makes a reconnect storm under CURVE feed itself
    if keys is not None:
        router.curve_server = 1
        router.curve_publickey = keys.public
        router.curve_secretkey = keys.secret
        router.zap_domain = domain.encode()
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # no handler = nobody gets in
    return router


def _common(socket: zmq.Socket[bytes], *, timeout_ms: int) -> None:
    socket.linger = 0
    socket.maxmsgsize = MAX_FRAME_BYTES
    socket.heartbeat_ivl = 5000
    socket.heartbeat_timeout = timeout_ms
    socket.heartbeat_ttl = min(timeout_ms, 65_000)  # above 65,599 the field overflows (libzmq #4226)
    socket.tcp_keepalive = 1
    socket.tcp_keepalive_idle = 30
    socket.tcp_keepalive_intvl = 10
    socket.tcp_keepalive_cnt = 3
    socket.setsockopt(zmq.TCP_MAXRT, 10_000)


def _bind(router: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind every address of the endpoint; return the first one with its port."""
    try:
        addresses = to_bind(endpoint)  # libzmq itself takes no names, and one family at a time
        first = _bind_one(router, addresses[0])
        for address in addresses[1:]:
            _bind_one(router, f"tcp://{join_host(split_tcp(address)[0], split_tcp(first)[1])}")
    except BaseException:
        router.close(0)
        raise
    return first


def _bind_one(router: zmq.Socket[bytes], endpoint: str) -> str:
    # `*` means both families. Elsewhere off: on, an IPv4 address would come back as ::ffff:…
    router.ipv6 = endpoint.startswith(("tcp://[", "tcp://*:"))
    try:
        router.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise OSError(error.errno, f"{endpoint} is in use by another process") from None
        raise ConfigurationError(f"cannot bind {endpoint!r}: {error}") from None
    return str(router.getsockopt_string(zmq.LAST_ENDPOINT))


# --- moving frames ---------------------------------------------------------------------------------------------------


def receive_routed(socket: zmq.Socket[bytes], *, with_user: bool = False) -> tuple[bytes, str, int, list[Frame]] | None:
    """Take one envelope off a ROUTER without waiting.

    Returns:
        (routing id, user id that ZAP gave: the key, file descriptor it came from, frames), or None if nothing is there.
        The descriptor is a hint: after a disconnection the system gives it to the next peer. -1 = not known.
    """
    try:
        peer = socket.recv(_NOBLOCK)
    except zmq.Again:
        return None
    first = socket.recv(_NOBLOCK, copy=False)  # a ROUTER puts the routing id before whatever came, so there is one
    user = ""
    if with_user:
        try:
            user = str(first.get("User-Id"))
        except zmq.ZMQError:
            user = ""  # a peer without one has not passed ZAP; the broker refuses it
    try:
        fd = int(first.get(_SRCFD))
    except zmq.ZMQError:
        fd = -1  # a peer of ZMTP 1 or 2: libzmq keeps nothing about such a connection
    return peer, user, fd, _frames(socket, first)


def receive(socket: zmq.Socket[bytes]) -> list[Frame] | None:
    """Take one envelope off a DEALER without waiting; None if nothing is there."""
    try:
        first = socket.recv(_NOBLOCK, copy=False)
    except zmq.Again:
        return None
    return _frames(socket, first)


def _frames(socket: zmq.Socket[bytes], frame: zmq.Frame) -> list[Frame]:
    """Read on to the end of the envelope; frames beyond the limit are read and dropped (one is kept: it shows)."""
    frames = [_own(frame)]
    while frame.more:
        frame = socket.recv(_NOBLOCK, copy=False)
        if len(frames) <= _LAST_FRAME:
            frames.append(_own(frame))
    return frames


def _own(frame: zmq.Frame) -> Frame:
    """Small frames are copied: as views they would pin the arena they were received in (8 KiB each)."""
    return frame.bytes if len(frame) < _COPY_BYTES else frame.buffer


def send_routed(socket: zmq.Socket[bytes], peer: bytes, frames: Sequence[Frame]) -> None:
    """Queue one envelope for a peer of a ROUTER.

    Raises:
        zmq.Again: its queue is full.
        zmq.ZMQError: (EHOSTUNREACH) it is gone.
    """
    socket.send(peer, _MORE)
    send(socket, frames)


def send(socket: zmq.Socket[bytes], frames: Sequence[Frame]) -> None:
    """Queue one envelope. Raises zmq.Again when the queue is full or (DEALER) nobody is connected.

    The header is always copied: it is held by nobody else, and to be told when libzmq has done with it costs the
    wake-up of a thread that wants the GIL, more than the copy does.
    """
    last = len(frames) - 1
    for index, frame in enumerate(frames):
        socket.send(frame, _NOBLOCK if index == last else _MORE, copy=not index or len(frame) < _COPY_BYTES)
