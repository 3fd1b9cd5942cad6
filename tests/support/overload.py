"""A broker on a virtual clock that is asked for more than its nodes can do: from a seed to what became of each request.

Nodes take so long for each request, for what it reads and for what it makes, as their steps and chance have it. Nobody
waits for an answer before the next one asks.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from support.stage import SERVICE, rid_of
from zmqrt.broker.core import Bounds, Broker, Side
from zmqrt.protocol import messages as m
from zmqrt.protocol.timing import Timing

STEP_S: Final = 0.02
_EACH_S: Final = 0.1
_TOKEN_S: Final = 0.01
_TOKENS: Final = (8, 16, 32, 64, 128)
_CLIENT: Final = b"client"
MEAN_S: Final = _EACH_S + _TOKEN_S * sum(_TOKENS) / len(_TOKENS)


@dataclass
class Outcome:
    """What became of one request; times are those of the clock."""

    asked_at: float
    deadline: float
    prio: int
    ended_at: float = 0.0
    end: m.Final | m.Error | None = None

    @property
    def was_refused(self) -> bool:
        """Whether it was told to come back."""
        return isinstance(self.end, m.Error) and self.end.code == 429

    @property
    def was_answered(self) -> bool:
        """Whether it was done."""
        return isinstance(self.end, m.Final)


@dataclass
class Pressure:
    """What is asked of the fleet."""

    factor: float = 3.0
    seconds: float = 30.0
    nodes: int = 3
    slots: int = 4
    ttl_s: tuple[float, float] = (3.0, 8.0)
    noise: float = 0.1
    tenants: int = 1
    prios: tuple[int, ...] = (0,)
    lost_at: float | None = None
    """When one of the nodes is lost."""

    @property
    def capacity_per_s(self) -> float:
        """Requests a second that can be done."""
        return self.nodes * self.slots / MEAN_S


@dataclass
class OverloadedFleet:
    """The broker, its nodes and its clock."""

    seed: int
    pressure: Pressure
    outcomes: dict[bytes, Outcome] = field(default_factory=dict[bytes, Outcome])

    def __post_init__(self) -> None:
        """Let the nodes come."""
        self._chance = random.Random(self.seed)
        self._numbers = itertools.count(1)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.now = self._began_at = 1000.0
        bounds = Bounds(in_flight=100_000, outstanding=1_000_000, priority=100)
        ids = itertools.count(100).__next__
        self.broker = Broker(Timing(), bounds, ids, broker_id="b", broker_epoch=1, now=self.now)
        self._epochs: dict[bytes, int] = {}
        self._limits: dict[bytes, int] = {}
        self._say(Side.CLIENTS, _CLIENT, m.Hello(b"c" * 16, 1, 1, "", 1 << 40))
        for index in range(self.pressure.nodes):
            self._join(b"node%d" % index)

    def run(self) -> list[Outcome]:
        """Ask for so long, then wait for all ends."""
        pressure, at = self.pressure, self.now
        rate = pressure.factor * pressure.capacity_per_s
        while (at := at + self._chance.expovariate(rate)) < self._began_at + pressure.seconds:
            self._at(at, self._ask)
        if pressure.lost_at is not None:
            self._at(self._began_at + pressure.lost_at, lambda: self._leave(b"node0"))
        while self._agenda or any(outcome.end is None for outcome in self.outcomes.values()):
            due = self.broker.next_deadline()
            if self._agenda and self._agenda[0][0] <= due:
                self.now, _, act = heapq.heappop(self._agenda)
                act()
            else:
                self.now = due
                self.broker.tick(due)
                self._carry()
        return list(self.outcomes.values())

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._numbers), act))

    def _ask(self) -> None:
        pressure, number = self.pressure, next(self._numbers)
        tokens, prio = self._chance.choice(_TOKENS), self._chance.choice(pressure.prios)
        ttl_s = self._chance.uniform(*pressure.ttl_s)
        ext: m.Ext = {"party": f"t{self._chance.randrange(pressure.tenants)}"}
        rid = rid_of(number)
        self.outcomes[rid] = Outcome(self.now, self.now + ttl_s, prio)
        ask = m.Request(rid, SERVICE, int(ttl_s * 1000), m.IDEMPOTENT, prio, 0, tokens, b"?", b"", ext)
        self._say(Side.CLIENTS, _CLIENT, ask)

    def _join(self, peer: bytes) -> None:
        offers = [m.ServiceOffer(SERVICE, 1000, "generate", "Toy", "r1", 4096, None)]
        self._limits[peer] = self.pressure.slots
        self._say(Side.WORKERS, peer, m.Ready(peer.ljust(16), peer.decode(), self.pressure.slots, offers, []))
        self._beat(peer)

    def _beat(self, peer: bytes, count: int = 1) -> None:
        if peer in self._limits and self.now < self._began_at + self.pressure.seconds + 60:
            self._say(Side.WORKERS, peer, m.Heartbeat(self._epochs[peer], count, 0, self._limits[peer], "ready"))
            self._say(Side.CLIENTS, _CLIENT, m.Ping(count))
            self._at(self.now + 1.0, lambda: self._beat(peer, count + 1))

    def _leave(self, peer: bytes) -> None:
        del self._limits[peer]
        self.broker.handle(Side.WORKERS, peer, [m.Leave(self._epochs[peer])], self.now)
        self._carry()

    def _say(self, side: Side, peer: bytes, message: Any) -> None:
        self.broker.handle(side, peer, [message], self.now)
        self._carry()

    def _carry(self) -> None:
        said, self.broker.out[:] = list(self.broker.out), []
        for _, peer, message in said:
            match message:
                case m.WorkerWelcome():
                    self._epochs[peer] = message.epoch
                case m.Dispatch():
                    self._work(peer, message)
                case m.Final() | m.Error() if message.rid in self.outcomes:
                    outcome = self.outcomes[message.rid]
                    outcome.end, outcome.ended_at = message, self.now
                case _:
                    pass

    def _work(self, peer: bytes, job: m.Dispatch) -> None:
        tokens = self.broker.state.leases[job.lease].ask.cost
        noise = self._chance.uniform(1 - self.pressure.noise, 1 + self.pressure.noise)
        steps = max(1, round((_EACH_S + _TOKEN_S * tokens) * noise / STEP_S))
        self._at(self.now + steps * STEP_S, lambda: self._finish(peer, job))

    def _finish(self, peer: bytes, job: m.Dispatch) -> None:
        if peer not in self._limits:
            return
        self._limits[peer] += 1
        final = m.WorkerFinal(self._epochs[peer], job.lease, 0, self._limits[peer], {}, b"done")
        self._say(Side.WORKERS, peer, final)
