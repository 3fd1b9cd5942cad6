"""The shell of the broker: two ROUTERs, one event loop, and nothing decided.

One pass: take what the workers sent (results before new work), then what the clients sent, each up to a budget; give
it to the core; send everything the core has to say, one envelope per peer. The descriptors of ZeroMQ are edge-triggered
and any call on a socket may eat the wake-up, so each pass ends with the question whether something is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import signal
import time
from collections.abc import Callable
from typing import Any, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from ..protocol import codec, transport
from ..protocol import messages as m
from ..protocol.codec import Codec
from ..protocol.errors import ProtocolError, ZmqrtError
from ..protocol.keys import load_server
from ..protocol.limits import MAX_INT
from .auth import Gate
from .config import BrokerSettings
from .core import Broker, Side
from .egress import Egress, Peer

_MAX_MESSAGES: Final = 2048
"""Messages of one side in one pass …"""
_MAX_PASS_S: Final = 0.002
"""… or this long: what comes in the meantime waits no longer than a few of these."""
_WATCHDOG_S: Final = 0.1
"""A look at the sockets by the clock, in case a wake-up was lost all the same."""
_FAREWELL_S: Final = 2.0
_GC_THRESHOLDS: Final = (50_000, 20, 50)
"""In-flight requests are many small objects that live for seconds: the default would walk over them all the time."""
log = logging.getLogger(__name__)


class Server:
    """One broker process. `run` serves until it is drained or told to stop at once."""

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        has_keys = settings.keys is not None
        for endpoint in (settings.clients, settings.workers):
            transport.check_exposure(endpoint, has_keys=has_keys, insecure=settings.insecure)
        self._context = transport.make_context(io_threads=settings.io_threads)
        self._gate: Gate | None = None
        self._sockets: dict[Side, zmq.Socket[bytes]] = {}
        self._monitors: dict[Side, zmq.Socket[bytes]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.Handle | None = None
        self.endpoints: dict[str, str] = {}
        try:
            self._gate = self._open_gate(settings)
            self._bind(settings)
        except BaseException:
            self._close()
            raise
        self._codecs: dict[Side, Codec[Any]] = {Side.WORKERS: codec.FROM_WORKER, Side.CLIENTS: codec.FROM_CLIENT}
        self._egress = Egress(self._sockets)
        self._peers_of: dict[Side, dict[int, set[bytes]]] = {side: {} for side in Side}
        self._fd_of: dict[Side, dict[bytes, int]] = {side: {} for side in Side}
        self._core = Broker(
            settings.timing,
            settings.bounds,
            lambda: secrets.randbits(63),
            broker_id=settings.name,
            broker_epoch=secrets.randbits(62) & MAX_INT,
            now=time.monotonic(),
            is_admin=self._gate.is_admin if self._gate is not None else lambda _: True,
        )
        self._done = asyncio.Event()

    def _open_gate(self, settings: BrokerSettings) -> Gate | None:
        """Begin to answer who may connect, before there is anything to connect to."""
        if settings.keys is None:
            return None
        gate = Gate(self._context, settings.keys)
        gate.start()
        return gate

    def _bind(self, settings: BrokerSettings) -> None:
        pair = load_server(settings.keys) if settings.keys is not None else None
        try:
            frontend, clients = transport.bind_frontend(self._context, settings.clients, keys=pair)
            self._sockets[Side.CLIENTS] = frontend
            backend, workers = transport.bind_backend(
                self._context, settings.workers, timing=settings.timing, keys=pair
            )
            self._sockets[Side.WORKERS] = backend
        except OSError as error:
            if isinstance(error, zmq.ZMQError):
                raise
            raise ZmqrtError(f"{error.strerror}; choose another with --clients or --workers") from None
        self.endpoints = {"clients": clients, "workers": workers}
        self._monitors = {side: transport.monitor_disconnections(one) for side, one in self._sockets.items()}

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve. SIGTERM or the first Ctrl-C drains, the second stops at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, self._asked_to_leave)
        watched = [*self._sockets.values(), *self._monitors.values()]
        for one in watched:
            loop.add_reader(transport.descriptor(one), self._pass)
        _tame_garbage_collector()
        ready()
        self._pass()
        try:
            await self._done.wait()
        finally:
            for one in watched:
                loop.remove_reader(transport.descriptor(one))
            await self._say_goodbye()
            self._close()

    def _asked_to_leave(self) -> None:
        if self._core.is_draining:
            log.warning("told twice to leave: stopping at once")
            self._done.set()
            return
        log.info("draining: no new requests; what is here is finished within %.0f s", self._settings.timing.drain_s)
        self._core.drain(time.monotonic())
        self._pass()

    async def _say_goodbye(self) -> None:
        """Tell the workers, and give what is on its way a moment to leave."""
        now = time.monotonic()
        self._core.close()
        self._flush(now)
        give_up_at = now + _FAREWELL_S
        while self._egress.next_retry() < give_up_at and time.monotonic() < give_up_at:
            await asyncio.sleep(max(0.0, self._egress.next_retry() - time.monotonic()))
            self._egress.retry(time.monotonic())

    def _close(self) -> None:
        for handle in (self._timer, self._again):
            if handle is not None:
                handle.cancel()
        for side, monitor in self._monitors.items():
            self._sockets[side].disable_monitor()
            monitor.close(0)
        for one in self._sockets.values():
            one.close(250)
        if self._gate is not None:
            self._gate.close()
        self._context.term()

    # --- one pass ----------------------------------------------------------------------------------------------------

    def _pass(self) -> None:
        if self._done.is_set():
            return
        now = time.monotonic()
        is_left = self._drain(Side.WORKERS, now)
        is_left |= self._drain(Side.CLIENTS, now)
        self._read_monitors()
        now = time.monotonic()
        if self._core.next_deadline() <= now:
            self._core.tick(now)
        self._flush(now)
        if self._core.is_draining and self._core.is_drained and self._egress.next_retry() == float("inf"):
            self._done.set()
            return
        self._arrange(is_left, now)

    def _arrange(self, is_left: bool, now: float) -> None:  # noqa: FBT001
        """See to it that the next pass comes: now if something is left to read, else when something is due."""
        loop = asyncio.get_running_loop()
        for handle in (self._timer, self._again):
            if handle is not None:
                handle.cancel()
        if is_left or any(transport.has_input(one) for one in (*self._sockets.values(), *self._monitors.values())):
            self._again = loop.call_soon(self._pass)
            return
        due = min(self._core.next_deadline(), self._egress.next_retry(), now + _WATCHDOG_S)
        self._timer = loop.call_later(max(0.0, due - now), self._pass)

    def _drain(self, side: Side, now: float) -> bool:
        """Read one side up to the budget; True if it was used up."""
        socket, left = self._sockets[side], _MAX_MESSAGES
        stop_at = now + _MAX_PASS_S
        with_user = self._gate is not None
        while left > 0:
            received = transport.receive_routed(socket, with_user=with_user)
            if received is None:
                return False
            peer, user, fd, frames = received
            now = time.monotonic()
            left -= self._take(side, peer, user, frames, now)
            self._note_descriptor(side, peer, fd)
            if now >= stop_at:
                return True
        return True

    def _take(self, side: Side, peer: bytes, user: str, frames: list[transport.Frame], now: float) -> int:
        """Give one envelope to the core; return what it counts for in the budget."""
        core = self._core
        if not frames or not len(frames[0]) or core.is_muted(side, peer, now):
            return 1
        try:
            unpacked = self._codecs[side].unpack(frames)
        except ProtocolError as error:
            core.bad_input(side, peer, error, now)
            return 1
        try:
            core.handle(side, peer, unpacked.messages, now, user)
        except Exception:
            # A bug of ours must cost one envelope, not the service of everybody else.
            core.counters.internal_errors += 1
            log.exception("a message of %s from %s could not be handled", peer.hex(), side.value)
        if unpacked.bad:
            core.bad_input(side, peer, unpacked.bad, now)
        return len(unpacked.messages) + len(unpacked.bad)

    def _flush(self, now: float) -> None:
        """Send what the core has to say: one envelope per peer and pass. What cannot be sent is given back to it."""
        core = self._core
        for peer, failure, unsent in self._egress.retry(now):
            core.send_failed(*peer, unsent, failure, now)
        core.counters.egress_retries = self._egress.retries
        while core.out or core.version_answers:
            for side, address in core.version_answers:
                with contextlib.suppress(zmq.ZMQError):  # a courtesy to a stranger
                    transport.send_routed(self._sockets[side], address, codec.pack_version_answer())
            core.version_answers.clear()
            for peer, messages in _by_peer(core):
                why = self._egress.send(peer, messages, now)
                if why is not None:
                    core.send_failed(*peer, [*self._egress.forget(peer), *messages], why, now)

    # --- who is still there ------------------------------------------------------------------------------------------

    def _note_descriptor(self, side: Side, peer: bytes, fd: int) -> None:
        if self._fd_of[side].get(peer) == fd or not self._core.is_known(side, peer):
            return
        self._fd_of[side][peer] = fd
        self._peers_of[side].setdefault(fd, set()).add(peer)

    def _read_monitors(self) -> None:
        """Ask the sessions of a descriptor that was closed whether they are still there; a send will tell."""
        for side, monitor in self._monitors.items():
            while transport.has_input(monitor):
                fd = int(parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["value"])
                for peer in self._peers_of[side].pop(fd, ()):
                    self._fd_of[side].pop(peer, None)
                    self._core.probe(side, peer)


def _by_peer(core: Broker) -> list[tuple[Peer, list[m.Message]]]:
    """Take the core's messages, put together by peer, in order."""
    taken = core.out[:]
    core.out.clear()
    if len(taken) == 1:
        side, peer, message = taken[0]
        return [((side, peer), [message])]
    grouped: dict[Peer, list[m.Message]] = {}
    for side, peer, message in taken:
        grouped.setdefault((side, peer), []).append(message)
    return list(grouped.items())


def _tame_garbage_collector() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
