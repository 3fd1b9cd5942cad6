"""One round of load: what the bench asks of a client process, what that tells back, and the lines between them.

A client process lives for the whole run. It reads one `Order` a line on its standard input and writes one `Outcome` a
line; it ends when its input does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec


class Order(msgspec.Struct, frozen=True):
    """Keep `depth` requests in flight for so long."""

    depth: int
    seconds: float
    body_bytes: int = 100
    """Of each request and each answer."""


OrderT = TypeVar("OrderT", bound=Order)


class Outcome(msgspec.Struct, frozen=True):
    """What came of it. The time runs until the last answer: nothing is left over."""

    answered: int
    refused: int
    elapsed_s: float
    p50_us: float
    p99_us: float


class CallOrder(Order, frozen=True, kw_only=True):
    """Ask a server: for whole answers or for streams, of so many tokens each."""

    url: str
    """With the path that is asked; for native calls the endpoint of a broker."""
    max_tokens: int
    is_stream: bool = False
    model: str = ""
    """If given, the model of a chat completion."""
    end_mark: str = ""
    """What the end of a whole stream has in it."""


class CallOutcome(Outcome, frozen=True, kw_only=True):
    """What came of it, and what it cost to ask."""

    stalled: int
    """Callers whose answer did not come at all."""
    events: int
    """Events of streams: a server may put several tokens into one."""
    cpu_s: float
    """CPU time of the process that asks."""


class Tally:
    """What the client of a round counts while it runs."""

    def __init__(self, order: Order) -> None:
        self._began_at = time.perf_counter()
        self.end_at = self._began_at + order.seconds
        self.latencies_s: list[float] = []
        self.refused = 0

    async def repeat(self, ask: Callable[[], Awaitable[object]]) -> None:
        """Ask one thing after the other until the round is over."""
        while (began_at := time.perf_counter()) < self.end_at:
            await ask()
            self.latencies_s.append(time.perf_counter() - began_at)

    def outcome(self) -> Outcome:
        """Sum up."""
        elapsed_s = time.perf_counter() - self._began_at
        latencies_s = sorted(self.latencies_s)
        return Outcome(
            answered=len(latencies_s),
            refused=self.refused,
            elapsed_s=elapsed_s,
            p50_us=at_share(latencies_s, 0.50) * 1e6,
            p99_us=at_share(latencies_s, 0.99) * 1e6,
        )

    def call_outcome(self, *, stalled: int, events: int, used_s: float) -> CallOutcome:
        """Sum up with what it cost to ask; `used_s` is the CPU time of this process when the round began."""
        cpu_s = time.process_time() - used_s
        return CallOutcome(**msgspec.structs.asdict(self.outcome()), stalled=stalled, events=events, cpu_s=cpu_s)


def at_share(ordered: list[float], share: float) -> float:
    """Return the value below which this share of them is; 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def serve(run: Callable[[OrderT], Outcome], order: type[OrderT]) -> None:
    """Run rounds as they are ordered, until nobody orders any more."""
    say("ready")
    for line in sys.stdin:
        say(msgspec.json.encode(run(msgspec.json.decode(line, type=order))).decode())


def say(line: str) -> None:
    """Write one line to the bench."""
    print(line, flush=True)
