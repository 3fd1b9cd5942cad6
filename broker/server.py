"""The broker's process: two ROUTER sockets, one event loop, and no decisions.

Theory of operation
    One pass reads what the workers sent (results come before new work), then what the clients sent, each up to a
    budget of messages and time; gives it to the core; and sends everything the core has to say, one envelope per peer.
    The descriptors of ZeroMQ are edge-triggered, and any call on a socket may consume the wake-up. So a pass ends by
    asking both sockets whether something is left, and then runs again through the loop: timers get their turn between.
    A pass that raises is a bug of ours: it is counted and logged, and the watchdog starts the next one, so that a bug
    that stays cannot spin.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import math
import secrets
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import zmq

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

from ..protocol import codec, descriptors, enrolment, transport
from ..protocol import messages as m
from ..protocol.errors import ConfigurationError, ProtocolError, ZmqrtError
from ..protocol.keys import load_server
from ..protocol.metrics_server import ask_loop, serve_metrics
from .auth import Gate
from .config import BrokerSettings
from .core import Broker, SendFailure, Side
from .events import NODE_EVENTS
from .sockets import RouterSocket, Unsent

_MAX_MESSAGES: Final = 2048
"""Messages of one side in one pass …"""
_MAX_PASS_S: Final = 0.002
"""… or this long: what comes in the meantime waits no longer than a few of these."""
_WATCHDOG_S: Final = 0.1
"""A pass by the clock, in case a wake-up was lost all the same."""
_FAREWELL_S: Final = 2.0
_STARVED_LOG_S: Final = 60.0
_MOST_ENROLLING: Final = 64
"""At once: each is a write to disk."""
_LAST_WORDS_S: Final = 0.3
"""For the reason to reach a peer before its connection is reset."""
_LINGER_MS: Final = 250
_GC_THRESHOLDS: Final = (50_000, 20, 50)
_GC_IDLE_S: Final = 2.0
_GC_BUSY_OBJECTS: Final = 500
"""New objects between two looks: a heartbeat makes a handful, a request dozens."""
_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
log = logging.getLogger(__name__)


class GateError(ZmqrtError):
    """Nobody can say any more who may connect."""


class Server:
    """One broker process. `run` serves until it is drained or told to stop at once."""

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        has_keys = settings.keys is not None
        for endpoint in (settings.clients, settings.workers):
            transport.check_exposure(endpoint, has_keys=has_keys, insecure=settings.insecure)
        self._context = transport.make_context(io_threads=settings.io_threads)
        self._gate: Gate | None = None
        self._routers: list[RouterSocket] = []
        self.endpoints: dict[str, str] = {}
        try:
            self._bind(settings)
        except BaseException:
            self._close()
            raise
        # A counter from a random start: fresh in this process, and not those of the process before it.
        ids = itertools.count(secrets.randbits(62))
        self._core = Broker(
            settings.timing,
            settings.bounds,
            ids.__next__,
            broker_id=settings.name,
            broker_epoch=secrets.randbits(62),
            now=time.monotonic(),
            unix_s=time.time(),
            is_admin=self._is_admin,
            is_bridge=self._is_bridge,
        )
        self._look = transport.watch_for_input([router.socket for router in self._routers])
        self._router_of: dict[object, RouterSocket] = {router.socket: router for router in self._routers}
        self._garbage = _GarbageCollection()
        self._done = asyncio.Event()
        self._fatal: GateError | None = None
        self._enrolling: set[bytes] = set()
        self._passed_at = self._due = -math.inf
        self._wake_at = math.inf
        self._wake: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._again: asyncio.Handle | None = None
        self._logged_starved = self._logged_turned_away = 0
        self._starved_log_at = -math.inf

    def _bind(self, settings: BrokerSettings) -> None:
        """Open both ports; with keys the gate goes first, so that nobody finds a port that nobody guards."""
        pair = None
        if settings.keys is not None:
            pair = load_server(settings.keys)
            self._gate = Gate(self._context, settings.keys)
            self._gate.start()
        with_user = pair is not None
        try:
            backend, workers = transport.bind_backend(
                self._context, settings.workers, timing=settings.timing, keys=pair
            )
            self._routers.append(RouterSocket(Side.WORKERS, backend, codec.FROM_WORKER, with_user=with_user))
            frontend, clients = transport.bind_frontend(self._context, settings.clients, keys=pair)
            self._routers.append(RouterSocket(Side.CLIENTS, frontend, codec.FROM_CLIENT, with_user=with_user))
        except OSError as error:
            if isinstance(error, zmq.ZMQError):
                raise
            raise ZmqrtError(f"{error.strerror}; choose another with --clients or --workers") from None
        self.endpoints = {"clients": clients, "workers": workers}

    def _is_admin(self, user: str) -> bool:
        """Say whether a client may change things; without keys everybody may."""
        return self._gate is None or self._gate.is_admin(user)

    def _is_bridge(self, user: str) -> bool:
        """Without keys everybody may ask for others."""
        return self._gate is None or self._gate.is_bridge(user)

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve. SIGTERM or the first Ctrl-C drains, the second stops at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, self._asked_to_leave)
        watched: list[int] = []
        for router in self._routers:
            for descriptor, react in zip(router.descriptors(), (self._pass, self._probe_broken), strict=True):
                loop.add_reader(descriptor, react)
                watched.append(descriptor)
        self._garbage.begin()
        try:
            with serve_metrics(self._settings.metrics_port, lambda: self._collector(loop)) as url:
                if url is not None:
                    self.endpoints["metrics"] = url
                ready()
                self._watch()
                await self._done.wait()
        finally:
            for descriptor in watched:
                loop.remove_reader(descriptor)
            await self._say_goodbye()
            self._close()
        if self._fatal is not None:
            raise self._fatal

    def _collector(self, loop: asyncio.AbstractEventLoop) -> Collector:
        from ..protocol.prometheus import FleetCollector  # prometheus-client is an extra

        return FleetCollector(ask_loop(loop, lambda: self._core.snapshot(time.monotonic())))

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
        for handle in (self._wake, self._watchdog, self._again):
            if handle is not None:
                handle.cancel()
        self._core.close()
        self._log_events(math.inf)
        self._flush(time.monotonic())
        give_up_at = time.monotonic() + _FAREWELL_S
        while (retry_at := min(router.sender.next_retry for router in self._routers)) < give_up_at:
            await asyncio.sleep(max(0.0, retry_at - time.monotonic()))
            for router in self._routers:
                router.sender.retry(time.monotonic())

    def _close(self) -> None:
        for router in self._routers:
            router.close(_LINGER_MS)
        if self._gate is not None:
            self._gate.close()
        self._context.term()

    # --- when to look ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look by the clock, too: broken connections, sockets, deadlines."""
        self._watchdog = asyncio.get_running_loop().call_later(_WATCHDOG_S, self._watch)
        if any(router.has_events() for router in self._routers):
            self._probe_broken()
        elif time.monotonic() - self._passed_at > _WATCHDOG_S / 2:  # else one has just looked into the same sockets
            self._pass()
        self._cut_oversized()
        self._log_events(time.monotonic())
        self._log_starvation(time.monotonic())
        if self._gate is not None:
            self._follow(self._gate, time.monotonic())
        self._garbage.tick(time.monotonic())

    def _follow(self, gate: Gate, now: float) -> None:
        """End what came under keys that are let in no more, and tell whom the gate refused; end with the gate."""
        core = self._core
        if gate.failure is not None and not self._done.is_set():
            self._fatal = GateError(f"nobody could say any more who may connect, so this broker ends: {gate.failure!r}")
            self._done.set()
        for ended in gate.take_ended():
            router = next(each for each in self._routers if each.group == ended.group)
            peers = router.under_key(ended.key)
            core.note_gate("key_ended", ended.key[:8], f"{ended.why}; {len(peers)} sessions end", now)
            for peer in peers:
                core.shut_out(router.side, peer, ended.why, now)
                asyncio.get_running_loop().call_later(_LAST_WORDS_S, router.cut, peer)
        for refusal in gate.take_refusals():
            core.note_gate("key_refused", refusal.address, refusal.text, now)
        half_open = sum(router.half_open_cut for router in self._routers)
        core.state.labelled.zap_refused = {**gate.refused, "half_open": half_open}
        if core.out:
            self._pass()

    def _pass_again(self) -> None:
        self._again = None
        self._pass()

    def _wake_up(self) -> None:
        self._wake_at = math.inf
        self._pass()

    def _pass(self) -> None:
        """Do what there is to do, and arrange for the next pass."""
        if self._done.is_set():
            return
        is_left = False
        try:
            is_left = self._work()
        except Exception:
            # A bug of ours: the watchdog brings the next pass, so that it cannot spin.
            self._core.counters.internal_errors += 1
            log.exception("a pass failed")
        loop = asyncio.get_running_loop()
        if is_left:
            self._again = self._again or loop.call_soon(self._pass_again)
        elif self._due < self._wake_at:
            if self._wake is not None:
                self._wake.cancel()
            self._wake_at = self._due
            # In whole milliseconds, up: uvloop rounds to the nearest, and an early timer only comes back at once.
            delay_ms = math.ceil(1000 * max(0.0, self._due - time.monotonic()))
            self._wake = loop.call_later(delay_ms / 1000, self._wake_up)
        if self._core.is_draining and self._core.is_drained and self._due_to_send() == math.inf:
            self._done.set()

    # --- one pass ----------------------------------------------------------------------------------------------------

    def _work(self) -> bool:
        """Read, decide and send until nothing is left or the time of a pass is up; True if something is left."""
        core = self._core
        self._passed_at = begin = now = time.monotonic()
        stop_at = begin + _MAX_PASS_S
        waiting = self._look()
        while True:
            for socket, _ in waiting:
                now = self._read(self._router_of[socket], now)
            if now >= self._due:
                core.tick(now)
                self._retry(now)
            elif now == begin and not core.out:
                return False  # half of all wake-ups are about libzmq's own affairs
            self._flush(now)
            self._due = min(core.next_deadline(), self._due_to_send())
            waiting = self._look()
            if not waiting:
                return False
            begin = now = time.monotonic()
            if begin >= stop_at:
                return True

    def _read(self, router: RouterSocket, now: float) -> float:
        """Read one side up to the budget; return the time it is then."""
        left, stop_at = _MAX_MESSAGES, now + _MAX_PASS_S
        while True:
            received = router.receive()
            if received is None:
                return now
            peer, key, fd, frames = received
            user = key if self._gate is None else self._gate.name_of(router.group, key)
            if user is None:  # its key was let in when it came, or is good for one thing alone
                left -= 1
                self._enrol(router, peer, key, frames)
            else:
                left -= self._take(router, peer, user, frames, now)
                if not router.is_noted(peer, fd) and self._core.is_known(router.side, peer):
                    router.note(peer, fd, key)
            now = time.monotonic()
            if left <= 0 or now >= stop_at or not router.has_input():
                return now

    def _enrol(self, router: RouterSocket, peer: bytes, key: str, frames: list[transport.Frame]) -> None:
        """List the key that a machine has made, if it came by a line that is good once; its answer follows."""
        gate = self._gate
        if gate is None or not gate.is_once(router.group, key) or peer in self._enrolling:
            return
        try:
            messages = router.codec.unpack(frames).messages
        except ProtocolError:
            return
        asked = next((found for found in map(enrolment.key_in, messages) if found), "")
        if len(self._enrolling) >= _MOST_ENROLLING:
            return
        self._enrolling.add(peer)
        task = asyncio.get_running_loop().run_in_executor(None, gate.enrol, router.group, key, asked)
        task.add_done_callback(partial(self._enrolled, router, peer))

    def _enrolled(self, router: RouterSocket, peer: bytes, done: asyncio.Future[str]) -> None:
        self._enrolling.discard(peer)
        if done.cancelled() or self._done.is_set():
            return
        error = done.exception()
        if error is not None and not isinstance(error, ConfigurationError):
            log.error("a machine could not be enrolled", exc_info=error)
        refusal = (
            str(error) if isinstance(error, ConfigurationError) else "" if error is None else "see the broker's log"
        )
        for frames in codec.pack([enrolment.answer(router.group, refusal)]):
            router.sender.send_once(peer, frames)

    def _take(self, router: RouterSocket, peer: bytes, user: str, frames: list[transport.Frame], now: float) -> int:
        """Give one envelope to the core; return what it counts for in the budget."""
        core, side = self._core, router.side
        if not frames or not len(frames[0]) or core.is_muted(side, peer, now):
            return 1
        try:
            unpacked = router.codec.unpack(frames)
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
        return 1 + len(unpacked.messages)

    def _flush(self, now: float) -> None:
        """Send what the core has to say: one envelope per peer and pass. What cannot be sent is given back to it."""
        core = self._core
        while core.out:
            workers: dict[bytes, list[m.Message]] = {}
            clients: dict[bytes, list[m.Message]] = {}
            taken = core.out[:]
            core.out.clear()
            for side, peer, message in taken:
                boxes = workers if side is _WORKERS else clients
                box = boxes.get(peer)
                if box is None:
                    boxes[peer] = [message]
                else:
                    box.append(message)
            for router, boxes in zip(self._routers, (workers, clients), strict=True):
                for peer, messages in boxes.items():
                    unsent = router.sender.send(peer, messages, now)
                    if unsent is not None:
                        self._give_back(router, unsent, now)
        for side, peer in core.version_answers:
            self._routers[side is not _WORKERS].sender.send_once(peer, codec.pack_version_answer())
        core.version_answers.clear()

    def _log_events(self, now: float) -> None:
        """Log new events; by the clock, so that a flood of requests does not wait for log lines."""
        for event in self._core.state.events.take_unlogged(now):
            is_node = event.kind in NODE_EVENTS
            about = {"worker_id": event.subject if is_node else "", "request_id": event.request_id, "rid": event.rid}
            words = f"node {event.subject}" if is_node else event.subject
            times = f" ({event.count} times)" if event.count > 1 else ""
            log.log(_LEVELS[event.level], "%s %s%s: %s", words, event.kind, times, event.text, extra=about)

    def _retry(self, now: float) -> None:
        for router in self._routers:
            for unsent in router.sender.retry(now):
                self._give_back(router, unsent, now)
        self._core.counters.egress_retries = sum(router.sender.retries for router in self._routers)

    def _due_to_send(self) -> float:
        workers, clients = self._routers
        return min(workers.sender.next_retry, clients.sender.next_retry)

    def _give_back(self, router: RouterSocket, unsent: Unsent, now: float) -> None:
        """Tell the core what could not be sent; a peer that is given up has no connection any more."""
        peer, why, messages = unsent
        if why is not SendFailure.UNPACKABLE:
            router.forget(peer)
        self._core.send_failed(router.side, peer, messages, why, now)

    def _log_starvation(self, now: float) -> None:
        """Log, at most once a minute, that connections are refused for want of descriptors."""
        turned_away = sum(router.turned_away for router in self._routers)
        starved = sum(router.starved for router in self._routers)
        self._core.counters.turned_away = turned_away
        if starved > self._logged_starved and now >= self._starved_log_at:
            log.error(
                "out of file descriptors (%s at most): %d new connections were sent away; those that stand are served. "
                "Allow more: ulimit -n, LimitNOFILE= of systemd, --ulimit nofile of docker",
                descriptors.limit(),
                turned_away - self._logged_turned_away,
            )
            self._logged_starved, self._logged_turned_away = starved, turned_away
            self._starved_log_at = now + _STARVED_LOG_S

    def _probe_broken(self) -> None:
        """Probe peers whose connection may be gone, after reading what they sent last; a send will tell."""
        self._pass()
        for router in self._routers:
            for peer in router.broken():
                self._core.probe(router.side, peer)
        if self._core.out:
            self._pass()

    def _cut_oversized(self) -> None:
        for router in self._routers:
            cut = router.cut_oversized()
            if cut:
                self._core.counters.endless_envelopes += cut
                log.warning("%d connections of %s were cut: their envelopes had no end", cut, router.side.value)


class _GarbageCollection:
    """Garbage collection policy: full collections only when the broker is idle.

    Requests in flight are many small objects that live for seconds. With Python's own thresholds they would be walked
    over all the time, for cycles that they do not have.
    """

    def __init__(self) -> None:
        self._allocated = 0
        self._idle_since = 0.0
        self._is_clean = False

    def begin(self) -> None:
        """Set aside what was made at the start: it stays."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)

    def tick(self, now: float) -> None:
        """Collect once when nothing has happened for a while."""
        young = gc.get_count()[0]
        if abs(young - self._allocated) > _GC_BUSY_OBJECTS:
            self._idle_since, self._is_clean = now, False
        elif not self._is_clean and now - self._idle_since >= _GC_IDLE_S:
            gc.collect()
            self._is_clean = True
        self._allocated = gc.get_count()[0]


_WORKERS: Final = Side.WORKERS
