"""A broker core on a stage: events by hand, time by hand, outputs as plain values. No socket, no sleep."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

from support.broker_invariants import check
from zmqrt.broker.core import Bounds, Broker, SendFailure, Side
from zmqrt.protocol import messages as m
from zmqrt.protocol.timing import Timing

M = TypeVar("M")
SERVICE = "toy"
UNARY = m.IDEMPOTENT
STREAM = m.IDEMPOTENT | m.STREAM | m.RESUMABLE


def rid_of(number: int) -> bytes:
    """Make a request id that is easy to read in a failure."""
    return number.to_bytes(16, "big")


class Stage:
    """One broker, its clock, and what it has said since it was last asked."""

    def __init__(
        self,
        timing: Timing | None = None,
        is_admin: Callable[[str], bool] | None = None,
        is_bridge: Callable[[str], bool] | None = None,
        **bounds: Any,
    ) -> None:
        self.now: float = 1000.0
        self.timing = timing or Timing()
        self.said: dict[tuple[Side, bytes], list[Any]] = {}
        self._numbers = itertools.count(1)
        self._ids = itertools.count(100)
        rights = {"is_admin": is_admin, "is_bridge": is_bridge}
        more: dict[str, Any] = {name: right for name, right in rights.items() if right is not None}
        self.broker = Broker(
            self.timing,
            Bounds(**bounds),
            self._ids.__next__,
            broker_id="b",
            broker_epoch=7,
            now=self.now,
            **more,
        )

    @property
    def counters(self) -> Any:
        """What the broker counted."""
        return self.broker.counters

    def collect(self) -> None:
        """Sort what the broker has to say by peer, and check its tables."""
        for side, peer, message in self.broker.out:
            self.said.setdefault((side, peer), []).append(message)
        self.broker.out.clear()
        check(self.broker.state)

    def handle(self, side: Side, peer: bytes, *messages: Any, user: str = "") -> None:
        """Give the broker one envelope."""
        self.broker.handle(side, peer, messages, self.now, user)
        self.collect()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, ticking whenever something is due."""
        end = self.now + seconds
        while (due := self.broker.next_deadline()) <= end:
            assert due > self.now, "a deadline that ticking does not move"
            self.now = due
            self.broker.tick(self.now)
            self.collect()
        self.now = end
        self.broker.tick(self.now)
        self.collect()

    def stay_alive(self, seconds: int, *peers: Client | Worker) -> None:
        """Let time pass while each of them gives a sign of life a second."""
        for _ in range(seconds):
            for peer in peers:
                if isinstance(peer, Worker):
                    peer.beat()
                else:
                    peer.send(m.Ping(0))
            self.pass_time(1.0)

    def gone(self, who: Client | Worker) -> None:
        """Break a connection."""
        self.broker.peer_gone(who.side, who.peer, self.now)
        self.collect()

    def send_failed(self, who: Client | Worker, messages: list[Any], why: SendFailure) -> None:
        """Give messages back as undeliverable."""
        self.broker.send_failed(who.side, who.peer, messages, why, self.now)
        self.collect()

    def client(self, name: str = "", *, user: str = "", greets: bool = True, **hello: Any) -> Client:
        """Make a client, with a session unless told otherwise."""
        made = Client(self, name or f"c{next(self._numbers)}", user)
        if greets:
            made.send(m.Hello(hello.pop("client_uuid", made.uuid), 1, 1, **hello))
            made.hear()
        return made

    def worker(
        self, name: str = "", *, user: str = "", capacity: int = 4, credit: int | None = None, **ready: Any
    ) -> Worker:
        """Make a node that has registered and is ready to work."""
        made = Worker(self, name or f"w{next(self._numbers)}", user, capacity)
        made.register(**ready)
        made.beat(limit=capacity if credit is None else credit)
        said = self.said.pop((made.side, made.peer), [])
        if jobs := [one for one in said if isinstance(one, m.Dispatch)]:
            self.said[made.side, made.peer] = jobs  # what waited for it
        return made

    def with_peers(self, name: str = "", **worker: Any) -> tuple[Stage, Client, Worker]:
        """Add a client with a session and a node that is ready."""
        return self, self.client(), self.worker(name, **worker)

    def running(self, number: int = 1, **request: Any) -> tuple[Stage, Client, Worker, m.Dispatch]:
        """Add a client, a node, and a request that the node has."""
        _, client, worker = self.with_peers()
        client.request(number, **request)
        (job,) = worker.work()
        return self, client, worker, job


class Peer:
    """One end of a connection."""

    side: Side

    def __init__(self, stage: Stage, name: str, user: str) -> None:
        self.stage = stage
        self.name = name
        self.peer = name.encode()
        self.uuid = name.encode().ljust(16, b"\0")
        self.user = user

    def send(self, *messages: Any) -> None:
        """Send one envelope."""
        self.stage.handle(self.side, self.peer, *messages, user=self.user)

    def hear(self) -> list[Any]:
        """Take everything said to this peer since the last time."""
        return self.stage.said.pop((self.side, self.peer), [])

    def hear_only(self, kind: type[M]) -> list[M]:
        """Take everything, and return what is of one kind."""
        return [one for one in self.hear() if isinstance(one, kind)]


class Client(Peer):
    """A client that does nothing by itself."""

    side = Side.CLIENTS

    def request(
        self, number: int = 1, *, body: bytes = b"hi", flags: int = UNARY, ttl_s: float = 30.0, **more: Any
    ) -> bytes:
        """Send a REQUEST; return its rid."""
        rid = rid_of(number)
        self.send(ask(number, body=body, flags=flags, ttl_s=ttl_s, **more))
        return rid


def ask(number: int = 1, *, body: bytes = b"hi", flags: int = UNARY, ttl_s: float = 30.0, **more: Any) -> m.Request:
    """Build a REQUEST."""
    fields: dict[str, Any] = {"service": SERVICE, "prio": 0, "resume_n": 0, "cost": 0, **more}
    return m.Request(rid=rid_of(number), ttl_ms=int(ttl_s * 1000), flags=flags, body=body, **fields)


def offer(
    service: str = SERVICE, max_inflight: int = 1000, revision: str = "r1", can: list[str] | None = None
) -> m.ServiceOffer:
    """Build an offer; without capabilities, as nodes from before make it."""
    return m.ServiceOffer(service, max_inflight, "generate", "Toy", revision, 128, can)


class Worker(Peer):
    """A node that does nothing by itself."""

    side = Side.WORKERS

    def __init__(self, stage: Stage, name: str, user: str, capacity: int) -> None:
        super().__init__(stage, name, user)
        self.capacity = capacity
        self.epoch = 0
        self.limit = 0
        self.beats = 0
        self.offers = [offer()]
        self.ext: m.Ext = {"proof": f"made up by {name}"}

    def register(self, **ready: Any) -> m.WorkerWelcome | None:
        """Send READY; return the WELCOME."""
        self.offers = ready.pop("services", self.offers)
        devices = ready.pop("devices", [])
        ext = {**self.ext, **ready.pop("ext", {})}
        self.send(m.Ready(self.uuid, self.name, self.capacity, self.offers, devices, ext=ext, **ready))
        for message in self.stage.said.get((self.side, self.peer), []):
            if isinstance(message, m.WorkerWelcome):
                self.epoch = message.epoch
                return message
        return None

    def come_back(self, peer: bytes, **ready: Any) -> m.WorkerWelcome | None:
        """Register anew over another connection."""
        self.peer = peer
        return self.register(**ready)

    def beat(self, *, limit: int | None = None, phase: m.Phase = "ready", **more: Any) -> None:
        """Send a HEARTBEAT."""
        self.beats += 1
        self.limit = self.limit if limit is None else limit
        self.send(m.Heartbeat(self.epoch, self.beats, more.pop("loop_age_ms", 0), self.limit, phase, **more))

    def work(self) -> list[m.Dispatch]:
        """Take what was dispatched."""
        return self.hear_only(m.Dispatch)

    def partial(self, lease: int, seq: int, n: int = 1, body: bytes | None = None) -> None:
        """Send units, of a byte each unless told otherwise."""
        self.send(m.WorkerPartial(self.epoch, lease, seq, n, b"u" * n if body is None else body))

    def final(
        self, lease: int, total_n: int = 0, body: bytes = b"done", *, credit: int = 1, meta: m.Ext | None = None
    ) -> None:
        """Send a result, and credit for the slot it frees."""
        self.limit += credit
        self.send(m.WorkerFinal(self.epoch, lease, total_n, self.limit, meta or {}, body))

    def error(
        self, lease: int, code: int, reason: str, text: str = "", *, credit: int = 0, ext: m.Ext | None = None
    ) -> None:
        """Send a failure."""
        self.limit += credit
        self.send(m.WorkerError(self.epoch, lease, code, reason, False, self.limit, text, ext or {}))
