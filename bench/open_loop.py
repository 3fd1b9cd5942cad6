"""A client that never waits: requests come by a seeded Poisson clock, whatever has become of those before them.

`python open_loop.py client ENDPOINT` reads an `OpenOrder` a line and writes an `OpenOutcome`. It speaks ZRT/1 itself,
since the client library would ask again by itself, and what a broker says at the first time would not be seen. Some of
those who are told to come back later do so, once, exactly when they were told to.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sys
import time
from typing import Final

import msgspec
from rounds import Order, Outcome, at_share, serve
from zrt_peers import Peer

from zmqrt.protocol import codec
from zmqrt.protocol import messages as m

_PATIENCE_S: Final = 5.0
"""Beyond the last deadline: what has no end by then gets none."""
_WINDOW_STEP_BYTES: Final = 1 << 20
_PING_S: Final = 2.0
_LATER: Final = (429, 503)
_TOO_LATE: Final = 504


class OpenOrder(Order, frozen=True, kw_only=True):
    """Ask so often for so long. `depth` means nothing here: however many are in flight, the next one comes."""

    rate: float
    """Requests per second, on average."""
    deadline_s: float
    service: str
    body: bytes
    seed: int = 1
    return_share: float = 0.0
    """Of those who are told to come back later, who do."""
    settle_s: float = 0.0
    """From the start; what is answered earlier does not count as goodput: queues are still filling."""


class OpenOutcome(Outcome, frozen=True, kw_only=True):
    """What came of it. Latencies are those of requests answered at their first try, from when they were to be sent.

    `answered` counts all answers, also late ones; `refused` what was told to come back later, each time.
    """

    asked: int
    goodput: float
    """Answers per second that came before their deadline, from `settle_s` to the end of the asking."""
    rejected_p50_ms: float
    rejected_p99_ms: float
    rejected_most_ms: float
    """From when it was sent to when it was told to come back later."""
    told_p50_s: float
    """In how long it was told to come back."""
    timed_out: int
    """Taken in, and ended at its deadline without an answer."""
    overdue_most_ms: float
    """By how much the latest end of what was taken in came after its deadline; below 0: none did."""
    overdue_ms: list[float]
    """The same for each that came after its deadline."""
    failed: int
    """Ended in any other way."""
    unanswered: int
    """Without an end, long after its deadline."""
    returned: int
    """Who came back when told …"""
    returned_in: int
    """… and was taken in then."""
    returned_after: int
    """Who came back when nobody else came any more …"""
    returned_after_in: int
    """… and was taken in then."""
    lag_p99_ms: float
    """How late requests were sent: above some milliseconds the client is what is measured."""
    cpu_s: float
    """Of the client."""


class Ask(msgspec.Struct):
    """One request on its way."""

    due_at: float
    sent_at: float
    is_return: bool
    is_after: bool


class Arrivals:
    """One client, which asks as ordered."""

    def __init__(self, endpoint: str) -> None:
        self._peer = Peer(endpoint)
        self._rids = itertools.count(time.time_ns())
        self._consumed = self._told = self._pings = 0
        self._ping_at = 0.0
        self._peer.say([m.Hello(time.time_ns().to_bytes(16, "big"), 1, 1, "open loop")])
        self._peer.hear(codec.TO_CLIENT, 5000)

    def run(self, order: OpenOrder) -> OpenOutcome:
        """Run one round: ask for so long, then wait for all ends."""
        used_s = time.process_time()
        ledger = Ledger(order, time.perf_counter())
        while True:
            now = time.perf_counter()
            if due := ledger.take_due(now):
                self._ask(order, ledger, due, now)
            if ledger.is_over(now):
                break
            for message in self._peer.hear(codec.TO_CLIENT, ledger.timeout_ms(now)):
                if isinstance(message, m.Final):
                    self._consumed += len(message.body)
                ledger.take(message, time.perf_counter())
            self._keep_alive(time.perf_counter())
        return ledger.outcome(time.process_time() - used_s)

    def _ask(self, order: OpenOrder, ledger: Ledger, due: list[Ask], now: float) -> None:
        requests: list[m.Message] = []
        for ask in due:
            rid = next(self._rids).to_bytes(16, "big")
            ask.sent_at = now
            ledger.pending[rid] = ask
            ttl_ms = int(order.deadline_s * 1000)
            requests.append(m.Request(rid, order.service, ttl_ms, m.IDEMPOTENT, 0, 0, 0, order.body))
        self._peer.say(requests)

    def _keep_alive(self, now: float) -> None:
        messages: list[m.Message] = []
        if self._consumed - self._told > _WINDOW_STEP_BYTES:
            self._told = self._consumed
            messages.append(m.Window(self._consumed))
        if now >= self._ping_at:
            self._ping_at, self._pings = now + _PING_S, self._pings + 1
            messages.append(m.Ping(self._pings))
        if messages:
            self._peer.say(messages)


class Ledger:
    """What is to be asked when, what is on its way, and what became of the rest."""

    def __init__(self, order: OpenOrder, now: float) -> None:
        self._order = order
        self._began_at = now
        self._end_at = now + order.seconds
        chance = random.Random(order.seed)
        self._arrivals: list[float] = []
        at = now
        while (at := at + chance.expovariate(order.rate)) < self._end_at:
            self._arrivals.append(at)
        self._arrivals.reverse()
        self._asked = len(self._arrivals)
        self._chance = chance
        self._returns: list[float] = []
        self._last_deadline = self._end_at
        self.pending: dict[bytes, Ask] = {}
        self._latencies_s: list[float] = []
        self._rejected_s: list[float] = []
        self._told_s: list[float] = []
        self._overdue_s: list[float] = []
        self._lags_s: list[float] = []
        self._in_time = self._answered = self._timed_out = self._failed = 0
        self._returned = self._returned_in = self._returned_after = self._returned_after_in = 0

    def take_due(self, now: float) -> list[Ask]:
        """Return what is to be sent now."""
        due: list[Ask] = []
        while self._arrivals and self._arrivals[-1] <= now:
            due.append(Ask(self._arrivals.pop(), now, is_return=False, is_after=False))
        while self._returns and self._returns[0] <= now:
            due.append(Ask(heapq.heappop(self._returns), now, is_return=True, is_after=now >= self._end_at))
        if due:
            self._lags_s += [now - ask.due_at for ask in due]
            self._last_deadline = max(self._last_deadline, now + self._order.deadline_s)
        return due

    def is_over(self, now: float) -> bool:
        """Whether nothing is to come, or nothing comes any more."""
        if self._arrivals or self._returns:
            return False
        return not self.pending or now > self._last_deadline + _PATIENCE_S

    def timeout_ms(self, now: float) -> int:
        """Return how long to listen: until the next one is due, and no less than a poll can wait."""
        due_at = min([*self._arrivals[-1:], *self._returns[:1], now + 0.1])
        return max(1, int((due_at - now) * 1000))

    def take(self, message: m.ToClient, now: float) -> None:
        """Note an end."""
        if not isinstance(message, m.Final | m.Error) or message.rid is None:
            return
        ask = self.pending.pop(message.rid, None)
        if ask is None:
            return  # of an earlier round
        if isinstance(message, m.Error) and message.code in _LATER:
            self._reject(ask, message, now)
            return
        deadline = ask.sent_at + self._order.deadline_s
        self._overdue_s.append(now - deadline)
        self._count_return(ask, 1)
        if isinstance(message, m.Error):
            self._timed_out += message.code == _TOO_LATE
            self._failed += message.code != _TOO_LATE
            return
        self._answered += 1
        if not ask.is_return:
            self._latencies_s.append(now - ask.due_at)
        self._in_time += now <= deadline and self._began_at + self._order.settle_s <= now < self._end_at

    def _reject(self, ask: Ask, message: m.Error, now: float) -> None:
        self._rejected_s.append(now - ask.sent_at)
        self._told_s.append(message.retry_after_ms / 1000)
        self._count_return(ask, 0)
        if not ask.is_return and self._chance.random() < self._order.return_share:
            heapq.heappush(self._returns, now + message.retry_after_ms / 1000)

    def _count_return(self, ask: Ask, taken: int) -> None:
        if ask.is_after:
            self._returned_after += 1
            self._returned_after_in += taken
        elif ask.is_return:
            self._returned += 1
            self._returned_in += taken

    def outcome(self, cpu_s: float) -> OpenOutcome:
        """Sum up."""
        for values in (self._latencies_s, self._rejected_s, self._told_s, self._overdue_s, self._lags_s):
            values.sort()
        return OpenOutcome(
            answered=self._answered,
            refused=len(self._rejected_s),
            elapsed_s=time.perf_counter() - self._began_at,
            p50_us=at_share(self._latencies_s, 0.5) * 1e6,
            p99_us=at_share(self._latencies_s, 0.99) * 1e6,
            asked=self._asked,
            goodput=self._in_time / (self._order.seconds - self._order.settle_s),
            rejected_p50_ms=at_share(self._rejected_s, 0.5) * 1e3,
            rejected_p99_ms=at_share(self._rejected_s, 0.99) * 1e3,
            rejected_most_ms=at_share(self._rejected_s, 1.0) * 1e3,
            told_p50_s=at_share(self._told_s, 0.5),
            timed_out=self._timed_out,
            overdue_most_ms=at_share(self._overdue_s, 1.0) * 1e3,
            overdue_ms=[round(1e3 * late_s, 2) for late_s in self._overdue_s if late_s > 0],
            failed=self._failed,
            unanswered=len(self.pending),
            returned=self._returned,
            returned_in=self._returned_in,
            returned_after=self._returned_after,
            returned_after_in=self._returned_after_in,
            lag_p99_ms=at_share(self._lags_s, 0.99) * 1e3,
            cpu_s=cpu_s,
        )


if __name__ == "__main__":
    serve(Arrivals(sys.argv[2]).run, OpenOrder)
