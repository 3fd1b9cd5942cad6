"""The loop of the `generate` engine: what is asked, planned and computed becomes events. Knows no model and no device.

While the device works on one step the next one is planned and handed to it (`SchedulerLimits.depth` at a time), so that
it never waits for us.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from ....protocol.capabilities import BEFORE, GRAMMAR, TOOLS
from ..base import (
    Capacity,
    EngineFatalError,
    EngineFullError,
    EngineStats,
    RequestRefusedError,
    TokenEvent,
    TokenRequest,
)
from ..grammar import Grammars, Matcher
from ..sampling_state import check, check_size
from .kv_cache import KvCache
from .prompt_pace import PromptPace
from .schedule import EngineStep, Scheduler, SchedulerCounts, SchedulerLimits, Sequence, SequenceStep, finish_reason

_STEP_S: Final = 0.2
"""How long a step is awaited before the engine gives no sign of life any more: as often as an idle one gives them."""
log = logging.getLogger(__name__)


class Drawn(msgspec.Struct, frozen=True):
    """What a step drew: for each drawing part in order a token, and log probabilities if its request wants them."""

    tokens: list[int]
    logprobs: list[dict[int, float] | None] | None = None


class _Launched(msgspec.Struct, frozen=True):
    """What the runner was given: a step, or a portion of one; `is_last`: no other portion of the step follows."""

    step: EngineStep
    is_last: bool


class Runner(Protocol):
    """Computes steps, in the order they are given."""

    @property
    def vocabulary(self) -> int:
        """Ids run from 0 to this, exclusive."""
        ...

    def launch(self, step: EngineStep) -> list[SequenceStep]:
        """Begin a step; may return before it is done. Raises what breaks the engine.

        Returns pieces of prompts that there was no memory for: nothing came of them, and they draw nothing.
        """
        ...

    def collect(self, timeout_s: float) -> Drawn | None:
        """Return what the oldest step under way drew, waiting at most `timeout_s`; None if it is not done by then."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class GenerateEngine:
    """Continuous batching around a runner; see `TokenEngine` for what the methods promise."""

    def __init__(
        self,
        runner: Runner,
        *,
        kv_tokens: int,
        limits: SchedulerLimits,
        eos_ids: Iterable[int] = (),
        pace: PromptPace | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        """`grammars`: of the tokens of its model; without, it takes no request that has a grammar."""
        self.runner = runner
        """Computes; for looking in."""
        self.fallback = ""
        """What it has to do without, and why."""
        self._scheduler = Scheduler(KvCache(kv_tokens), limits, pace)
        self.limits = limits
        """How much it does at once."""
        self._eos_ids = frozenset(eos_ids)
        self._grammars = grammars
        self._live: set[int] = set()
        self._steps: deque[_Launched] = deque()
        self._events: list[TokenEvent] = []
        self._broken: str | None = None
        self._moved_at = time.monotonic()
        """When the step that is awaited now became the oldest one under way."""
        self._launched_at = self._moved_at
        """When the newest one was launched: where only one is under way at a time, it is that one."""

    @property
    def is_busy(self) -> bool:
        """Whether a poll has something to do: the step behind a stop id is under way, and there is nobody any more."""
        return bool(self._live or self._steps)

    @property
    def is_alive(self) -> bool:
        """Whether the device keeps up. The loop turns beside it, and would vouch for one that hangs.

        So a step that takes long is a silence, as it is where the step is computed in the loop itself: the agent ends
        an engine that is silent for too long.
        """
        return not self._steps or time.monotonic() - self._moved_at <= _STEP_S

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can do beyond its task."""
        return BEFORE | ({TOOLS} if self._grammars is None else {TOOLS, GRAMMAR})

    @property
    def counts(self) -> SchedulerCounts:
        """What was done so far, and how much of it was found in the pool."""
        return self._scheduler.counts

    # --- TokenEngine -----------------------------------------------------------------------------------------------

    def submit(self, request: TokenRequest) -> None:
        """Take a request in. Raises EngineFullError, RequestRefusedError or EngineFatalError."""
        self._raise_if_broken()
        max_new_tokens = self._check(request)
        stop_ids = frozenset(request.stop_ids) if request.ignore_eos else self._eos_ids.union(request.stop_ids)
        sequence = Sequence.of(request, stop_ids, max_new_tokens, self._matcher(request, stop_ids))
        if self._ends_at_once(sequence):
            return
        if self._scheduler.is_full:
            raise EngineFullError(f"all {self.limits.slots} slots are taken")
        self._scheduler.submit(sequence)
        self._live.add(request.ticket)

    def cancel(self, ticket: int) -> None:
        """End a request; it has one last event, at the next poll. Unknown tickets are ignored."""
        if ticket in self._live:
            self._live.remove(ticket)
            self._scheduler.cancel(ticket)
            self._events.append(TokenEvent(ticket=ticket, finish_reason="cancelled"))

    def poll(self, timeout_s: float) -> list[TokenEvent]:
        """Keep the runner busy, take in a step if one is done in time, and return what has happened."""
        if not self._events:
            self._raise_if_broken()
        if self._live or self._steps:
            try:
                self._advance(0.0 if self._events else timeout_s)
            except Exception as error:
                # Whose fault it was cannot be told, and what is left of the pool cannot be trusted. The process ends,
                # its requests go on elsewhere, and one that breaks engine after engine is found out by that.
                self._broken = f"{type(error).__name__}: {error}"
                raise EngineFatalError(self._broken) from error
        elif not self._events:
            time.sleep(timeout_s)  # nothing can happen before the caller's next call: this only paces its loop
        events, self._events = self._events, []
        return events

    def capacity(self) -> Capacity:
        """Return how many requests, and tokens of one and of all, the engine holds."""
        return Capacity(slots=self.limits.slots, context=self.limits.context, kv_tokens=self._scheduler.cache.tokens)

    def stats(self) -> EngineStats:
        """Read counters and gauges."""
        scheduler, counts = self._scheduler, self._scheduler.counts
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_percent=100 * scheduler.cache.used_tokens // scheduler.cache.tokens,
            steps=counts.steps,
            tokens=counts.tokens,
            largest_batch=counts.largest_batch,
            prompt_tokens=counts.prompt_tokens,
            reused_tokens=counts.reused_tokens,
        )

    def close(self) -> None:
        """Let everything go."""
        self._live.clear()
        self._events.clear()
        self._steps.clear()
        self._broken = self._broken or "the engine is closed"
        self.runner.close()

    # --- a step ----------------------------------------------------------------------------------------------------

    def _advance(self, timeout_s: float) -> None:
        while sum(each.is_last for each in self._steps) < self.limits.depth:
            step = self._scheduler.plan()
            if step is None:
                break
            self._launch(step)
        if not self._steps:
            if self._live:
                raise RuntimeError("requests are waiting, and none of them can run")
            return
        drawn = self.runner.collect(timeout_s)
        if drawn is None:
            return
        self._moved_at = time.monotonic()
        step = self._steps.popleft().step
        self._scheduler.learn(step, self._moved_at - self._launched_at)
        logprobs: dict[Sequence, dict[int, float] | None] = {}
        if drawn.logprobs is not None:
            logprobs = {part.sequence: each for part, each in zip(step.drawing, drawn.logprobs, strict=True)}
        self._events += [  # no tokens, but a piece of their prompts is done
            TokenEvent(ticket=part.sequence.request.ticket)
            for part in step.parts
            if part.is_prompt and not part.draws
            if not part.sequence.has_ended
        ]
        for sequence, token_id, reason in self._scheduler.finish(step, drawn.tokens):
            if reason is not None:
                self._live.remove(sequence.request.ticket)
            report = logprobs.get(sequence) if logprobs else None
            self._events.append(
                TokenEvent(
                    ticket=sequence.request.ticket,
                    token_ids=[token_id],
                    logprobs=None if report is None else [report],
                    finish_reason=reason,
                    error=_error(sequence) if reason == "error" else None,
                )
            )

    def _launch(self, step: EngineStep) -> None:
        """Give a step to the runner. To a device in portions: answers need not wait for the prompts beside them."""
        portions = step.portions() if self.limits.idle_chunk_tokens else [step]
        for number, portion in enumerate(portions, 1):
            self._launched_at = time.monotonic()
            lost = self.runner.launch(portion)
            for part in lost:
                self._fail(part)
            if not self._steps:
                self._moved_at = time.monotonic()
            self._steps.append(_Launched(portion.without(lost) if lost else portion, number == len(portions)))

    def _fail(self, part: SequenceStep) -> None:
        """End one request whose prompt the device had no memory for; the others go on."""
        ticket = part.sequence.request.ticket
        log.warning("ticket %d: no memory for %d tokens of its prompt at once", ticket, part.end - part.begin)
        self._scheduler.fail(part.sequence)
        self._live.remove(ticket)
        text = (
            f"the device ran out of memory at tokens {part.begin} to {part.end} of the prompt; send a shorter one, or"
        )
        text += " give the worker less to do at once (--engine-opt chunk=, kv_mib=, or --slots)"
        self._events.append(TokenEvent(ticket=ticket, finish_reason="error", error=text))

    # --- at the door -----------------------------------------------------------------------------------------------

    def _check(self, request: TokenRequest) -> int:
        """Refuse what could never run; return how many new tokens there is room for."""
        if request.ticket in self._live:
            raise RequestRefusedError(f"ticket {request.ticket} is running already")
        max_new_tokens = check_size(request, self.capacity())
        check(request, vocabulary=self.runner.vocabulary)
        return max_new_tokens

    def _matcher(self, request: TokenRequest, stop_ids: frozenset[int]) -> Matcher | None:
        if not request.grammar:
            return None
        if self._grammars is None:
            raise RequestRefusedError("grammar: this engine keeps to none; is llguidance installed beside it?")
        return self._grammars.matcher(request.grammar, request.resume_ids, stop_ids)

    def _ends_at_once(self, sequence: Sequence) -> bool:
        """Say so if nothing is left to do: the node before us was lost after its last token, before it could tell."""
        reason, ticket = finish_reason(sequence), sequence.request.ticket
        if reason is not None:
            error = _error(sequence) if reason == "error" else None
            self._events.append(TokenEvent(ticket=ticket, finish_reason=reason, error=error))
        return reason is not None

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise EngineFatalError(self._broken)


def _error(sequence: Sequence) -> str:
    matcher = sequence.sampling_state.matcher
    return matcher.error if matcher is not None else ""
