"""One service over the whole fleet: its queue, the nodes that can take a request now, and how fast it goes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Generic, get_args

from ..protocol.capabilities import NOTHING, shared_by
from ..protocol.histogram import Meter
from ..protocol.limits import MAX_ANSWER_TOKENS
from ..protocol.messages import Ext, ServiceOffer
from ..protocol.prefix import EXT_KEY
from ..protocol.tasks import FinishReason
from .backlog import Before
from .nodes import Demand, Node, Offer, Supply
from .placement import LoadIndex, Prefixes
from .predictor import Forecast, WaitPredictor
from .queues import R, ServiceQueue
from .service_times import NO_WORK, Workload

_MOST_RETRY_S = 60.0
_LEAST_RETRY_S = 0.05
_SMOOTHING = 0.1
_MOST_GONE = 4
"""Supplies that are remembered after their last node: a rolling upgrade has two or three at a time. Of 1,024 services,
with all the names that offers may hold, they are 10 MiB."""


def _no_results() -> dict[str, int]:
    return {"": 0, **dict.fromkeys(get_args(FinishReason), 0)}


@dataclass(slots=True, eq=False)
class Service(Generic[R]):
    """A service by its name.

    Attributes:
        spec: What the last node to register said of it; None until one has.
        healthy: Nodes that are well and offer it, full or not.
        unhealthy_since: When the last healthy one went …
        is_due_back: … and whether it fell silent, was lost or restarts, rather than leave of its own accord.
        supplies: Healthy nodes by what decides which requests they may get …
        shared: … and what all of these can do.
        gone: When the last healthy node of a supply went, of the few last ones.
        mean_s: Time from dispatch to end, smoothed; 0 until one has ended.
        first_s: The same to the first sign of a node that it works on it …
        first_size: … and the size of those requests: one that is larger may take longer in proportion.
        queue_time, first_token, token_time, duration: See ServiceStatus, as the counts below.
    """

    name: str
    queue: ServiceQueue[R] = field(default_factory=ServiceQueue[R])
    load_index: LoadIndex = field(default_factory=LoadIndex)
    prefixes: Prefixes = field(default_factory=Prefixes)
    predictor: WaitPredictor = field(default_factory=WaitPredictor)
    offers: dict[Node, Offer] = field(default_factory=dict[Node, Offer])
    spec: ServiceOffer | None = None
    healthy: int = 0
    unhealthy_since: float = -math.inf
    is_due_back: bool = False
    supplies: dict[Supply, int] = field(default_factory=dict[Supply, int])
    shared: frozenset[str] = NOTHING
    gone: dict[Supply, float] = field(default_factory=dict[Supply, float])
    running: int = 0
    mean_s: float = 0.0
    moved_at: float = -math.inf
    first_s: float = 0.0
    first_size: float = 0.0
    slot: int = 0
    queue_time: Meter = field(default_factory=Meter)
    first_token: Meter = field(default_factory=Meter)
    token_time: Meter = field(default_factory=Meter)
    duration: Meter = field(default_factory=Meter)
    finished: dict[str, int] = field(default_factory=_no_results)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    answers: int = 0

    @property
    def is_wanted(self) -> bool:
        """Whether a request waits for it or runs."""
        return bool(self.queue.count or self.running)

    @property
    def has_served(self) -> bool:
        """Whether it has ever answered anything."""
        return any(self.finished.values())

    def place(self, ext: Ext, needs: frozenset[str]) -> Offer | None:
        """Return where a request goes that has not run yet; only while the load index is not empty.

        None: no node that is free can do what it needs.
        """
        load_index = self.load_index
        best = (
            load_index.best() if not needs or needs <= self.shared else load_index.best_for(None, Demand(None, needs))
        )
        hint = ext.get(EXT_KEY)
        return self.prefixes.choose(hint, best, needs) if best is not None and type(hint) is str else best

    def has(self, demand: Demand) -> bool:
        """Say whether a healthy node meets a demand, free or not."""
        return any(map(demand.is_met_by, self.supplies))

    def had(self, demand: Demand, since: float) -> bool:
        """Say whether a healthy node meets a demand, or has at any moment since then."""
        return self.has(demand) or any(since < at and demand.is_met_by(supply) for supply, at in self.gone.items())

    def withdraw(self, node: Node, offer: Offer) -> None:
        """Let go of what a node offered."""
        self.load_index.put(offer, -1)
        self.prefixes.forget(offer)
        self.offers.pop(node, None)

    def expect_back(self) -> None:
        """Note that its last healthy node may come back any moment."""
        self.is_due_back = True

    def expect_nobody(self) -> None:
        """Note that its last node has left of its own accord."""
        self.is_due_back = False

    def note_first(self, first_s: float, size: int) -> None:
        """Learn how long a node took for its first sign of a request of that size."""
        share = _SMOOTHING if self.first_s else 1.0
        self.first_s += (first_s - self.first_s) * share
        self.first_size += (size - self.first_size) * share

    def usual_first_s(self, size: int) -> float:
        """Guess how long the first sign of a request of that size takes; 0 = nothing is known yet."""
        return self.first_s * max(1.0, size / max(self.first_size, 1.0))

    def note_result(self, meta: Ext, context: int, queued_s: float, ran_s: float, whole_s: float) -> int:
        """Learn from a request that was answered; return how many tokens it took, 0 if its node does not say.

        Args:
            meta: What its node says of it.
            context: The most tokens its node can see; 0 = not told.
            queued_s: Until its first dispatch.
            ran_s: From its last dispatch.
            whole_s: From its coming in.
        """
        self.mean_s += (ran_s - self.mean_s) * (_SMOOTHING if self.mean_s else 1.0)
        self.answers += 1
        self.queue_time.add(queued_s)
        self.duration.add(whole_s)
        if not meta:
            self.finished[""] += 1
            return 0
        reason = meta.get("finish_reason", "")
        if reason in self.finished:
            self.finished[reason] += 1
        else:
            self.finished[""] += 1  # they become names of counters, so a node may not invent any
        prompt, generated = meta.get("prompt_tokens"), meta.get("completion_tokens")
        most = min(context, MAX_ANSWER_TOKENS) if context else MAX_ANSWER_TOKENS
        if type(prompt) is int and type(generated) is int and 0 <= prompt <= most >= generated >= 0:
            self.prompt_tokens += prompt
            self.generated_tokens += generated
            return prompt + generated
        return 0

    def retry_after_s(self) -> float:
        """Estimate when what waits now will have been started (Little's law).

        So many run at a time as do now, or as the healthy nodes can: a broker that has just taken over from another one
        runs next to nothing yet.
        """
        if not self.mean_s:
            return 1.0
        return within_bounds((self.queue.count + 1) * self.mean_s / self._at_once())

    def forecast(self, before: Before, own: Workload, priority: int) -> Forecast | None:
        """Say what is expected of a request that has so much before it; None: nothing is known."""
        return self.predictor.foresee(before, own, priority, self._at_once()) if self.healthy else None

    def whole_wait_s(self) -> float | None:
        """Return in how long all that waits will have been started; None while nothing waits or nothing is known."""
        if not self.queue.count:
            return None
        waiting = self.queue.backlog.work
        forecast = self.forecast(Before(waiting, waiting), NO_WORK, 0)
        return None if forecast is None else forecast.wait_s

    def _at_once(self) -> int:
        """Return how many run beside each other: those that do while no node is free, and no node is just coming."""
        if self.running > self.healthy and not self.load_index.mask:
            return self.running
        able = [(node, offer) for node, offer in self.offers.items() if node.is_usable]
        room = sum(min(node.capacity, node.most, offer.max_inflight) for node, offer in able)  # not what it claims
        return max(1, self.running, room)

    def count_healthy(self, supply: Supply, change: int, now: float) -> None:
        """Count a node in (1) or out (-1)."""
        self.healthy += change
        left = self.supplies.get(supply, 0) + change
        if left:
            self.supplies[supply] = left
            self.gone.pop(supply, None)
        else:
            del self.supplies[supply]
            self._note_gone(supply, now)
        self.shared = shared_by(each.can for each in self.supplies)
        if not self.healthy:
            self.unhealthy_since = now

    def _note_gone(self, supply: Supply, now: float) -> None:
        self.gone[supply] = now
        if len(self.gone) > _MOST_GONE:
            del self.gone[next(iter(self.gone))]


def within_bounds(wait_s: float) -> float:
    """Return a wait as a client is told it: not so short that it comes at once, nor so long that it gives up."""
    return min(_MOST_RETRY_S, max(_LEAST_RETRY_S, wait_s))
