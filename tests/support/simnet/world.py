"""A whole network in one process and one thread: from a seed to a verdict.

A run has three parts. Requests come in while things go wrong; then nothing goes wrong any more, and all that was asked
must end within three times the request timeout (what makes progress lives on); then every client asks once more, must
be answered, and nothing may be left anywhere. Whatever breaks a rule is raised with the seed and the last events.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from zmqrt.broker.core import Side
from zmqrt.protocol.timing import Timing

from .broker import BrokerProcess
from .client import ClientProcess
from .clock import Agenda
from .faults import Faults
from .oracle import Asked, Oracle, Wish
from .plan import Plan, make_plan, make_wish
from .process import Process
from .wire import Closed, Wire
from .worker import WorkerProcess

_SETTLE_S = 12.0
"""Longer than any grace, backoff and held lease of the timing below."""


class World:
    """Everything there is in one run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.agenda = Agenda()
        self.plan: Plan = make_plan(self.rng)
        self.timing: Timing = self.plan.timing
        self.busy = self.plan.busy
        self.uses_codec = self.plan.uses_codec
        self.totals: Counter[str] = Counter()
        self.oracle = Oracle()
        self.partitions: set[frozenset[str]] = set()
        self._wires: list[Wire] = []
        self._numbers = 0
        self.brokers: list[BrokerProcess] = []
        for index in range(2):
            self.brokers.append(BrokerProcess(self, f"b{index}", self.plan.bounds))
        self.workers = [WorkerProcess(self, f"w{index}") for index in range(self.plan.workers)]
        self.clients = [ClientProcess(self, f"c{index}") for index in range(self.plan.clients)]
        self.faults = Faults(self)

    # --- what processes need -----------------------------------------------------------------------------------------

    def next_number(self) -> int:
        """Return a number that was never used."""
        self._numbers += 1
        return self._numbers

    def delay_s(self) -> float:
        """Return how long the network takes this time."""
        usual_s = self.rng.uniform(0.2, 1.0) * self.plan.delay_s
        return usual_s if self.rng.random() > 0.01 else usual_s + self.rng.uniform(0.0, 0.5)

    def zmtp_s(self, side: Side) -> float:
        """Return after how much silence libzmq cuts a connection."""
        return 10.0 if side is Side.CLIENTS else 4 * self.timing.eviction_s

    def dial(self, dialer: Process, broker: int, side: Side) -> Wire:
        """Make a connection; if nobody listens, it is refused a moment later."""
        listener = self.brokers[broker]
        wire = Wire(self, dialer, listener, side)
        if listener.is_up:
            self._wires.append(wire)
        else:
            wire.is_cut = True
            self.agenda.after(self.delay_s(), lambda: dialer.arrive(wire, Closed()))
        return wire

    def wires(self) -> list[Wire]:
        """Return the connections that are there."""
        self._wires = [wire for wire in self._wires if not wire.is_cut]
        return self._wires

    def wires_of(self, process: Process) -> list[Wire]:
        """Return the connections of a process."""
        return [wire for wire in self.wires() if process in (wire.dialer, wire.listener)]

    def processes(self) -> Iterator[BrokerProcess | WorkerProcess | ClientProcess]:
        """Yield all that run now."""
        yield from self.brokers
        yield from self.workers
        yield from self.clients

    # --- a run -------------------------------------------------------------------------------------------------------

    def run(self) -> Counter[str]:
        """Run to the end; raise AssertionError with seed and trace if a rule is broken."""
        try:
            self._run()
        except Exception as error:
            words = f"seed {self.seed}: {type(error).__name__}: {error}\n{self.plan}\n{self.agenda.trace()}"
            raise AssertionError(words) from error
        self._count()
        return self.totals

    def _run(self) -> None:
        begin = self.agenda.now
        self.faults.plan()
        for _ in range(self.plan.requests):
            self.agenda.at(begin + self.rng.uniform(0.0, self.plan.faulty_s), self._ask)
        self.agenda.run(begin + self.plan.faulty_s)
        self.faults.stop()
        self._finish_what_is_open()
        self._ask_once_more()
        self._settle()

    def _ask(self) -> None:
        client = self.rng.choice(self.clients)
        if not client.is_up:
            return
        asked = client.ask(make_wish(self.rng, self.plan))
        if self.rng.random() < self.plan.cancels:
            self.agenda.after(self.rng.uniform(0.0, 1.0), lambda: client.cancel(asked))

    def _finish_what_is_open(self) -> None:
        self.agenda.run(self.agenda.now + 3 * self.timing.request_timeout_s, self._is_answered)
        for client in self.clients:
            assert client.is_idle(), f"{client.name} still waits for {[a.wish.prompt for a in client.asked]}"

    def _is_answered(self) -> bool:
        return all(client.is_idle() for client in self.clients)

    def _ask_once_more(self) -> None:
        """Nothing is wrong now, so nothing but an answer will do."""
        self.agenda.run(self.agenda.now + self.timing.eviction_s + 1.0)
        last: list[Asked] = []
        for client in self.clients:
            wish = Wish("and now?", 8, self.rng.getrandbits(40), 0.7, [], self.rng.random() < 0.5, True, 10.0)
            last.append(client.ask(wish))
        self.agenda.run(self.agenda.now + 10.0, self._is_answered)
        for asked in last:
            assert asked.kind == "answered", f"in a network that is well: {asked.end}"

    def _settle(self) -> None:
        self.agenda.run(self.agenda.now + _SETTLE_S, self._is_quiet)
        for process in self.processes():
            process.check_empty()

    def _is_quiet(self) -> bool:
        return all(process.is_idle() for process in self.processes())

    def _count(self) -> None:
        for broker in self.brokers:
            self.faults.count(broker)
        for asked in self.oracle.asked:
            self.totals[asked.kind] += 1
        self.totals["requests"] += len(self.oracle.asked)
        self.totals["events"] += self.agenda.events
