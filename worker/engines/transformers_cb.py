"""The `transformers` engine: any causal model that transformers' continuous batching runs, behind `TokenEngine`.

It is the oracle for faster engines and the fallback for architectures they do not know. A token depends on the prompt,
the tokens before it and (seed, position) alone: not on what else is in the batch, nor on where the request ran before.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from .base import (
    Capacity,
    EngineFatalError,
    EngineFullError,
    EngineSpec,
    EngineStats,
    FinishReason,
    Progress,
    RequestRefusedError,
    TokenEngine,
    TokenEvent,
    TokenRequest,
)
from .cb_loop import ContinuousBatch, Pool
from .sampling_state import SamplingState, check
from .sampling_torch import BatchSampler, report

if TYPE_CHECKING:
    import torch


MAX_LOGPROBS: Final = 20


@dataclass(slots=True)
class _Live:
    """One request that has not had its terminal event."""

    ticket: int
    key: str
    draw: SamplingState
    stop_ids: frozenset[int]
    max_new_tokens: int
    logprobs: torch.Tensor | None = field(default=None)
    """Log probabilities of the step under way, if the request wants any."""


class TransformersEngine:
    """Continuous batching over one model; see `TokenEngine` for what the methods promise."""

    def __init__(self, model: Any, *, pool: Pool, context: int, eos_ids: Sequence[int] = ()) -> None:  # noqa: ANN401
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._sampler = BatchSampler(self._vocabulary, model.device)
        self._batch = ContinuousBatch(model, pool, self._choose)
        self._pool = pool
        self._context = min(context, pool.tokens)
        self._eos_ids = frozenset(eos_ids)
        self._keys = itertools.count()
        self._live: dict[str, _Live] = {}
        self._by_ticket: dict[int, _Live] = {}
        self._events: list[TokenEvent] = []
        self._has_ended_some = False
        """Whether requests were dropped whose blocks only the next step frees."""
        self._broken: str | None = None
        self._steps = self._tokens = self._largest_batch = 0

    def submit(self, request: TokenRequest) -> None:
        """Take a request in. Raises EngineFullError, RequestRefusedError or EngineFatalError."""
        self._raise_if_broken()
        self._check(request)
        stop_ids = frozenset(request.stop_ids)
        if not request.ignore_eos:
            stop_ids |= self._eos_ids
        room = self._context - len(request.prompt_ids)
        live = _Live(
            ticket=request.ticket,
            key=str(next(self._keys)),
            draw=SamplingState.of(request, stop_ids),
            stop_ids=stop_ids,
            max_new_tokens=min(request.max_new_tokens, room),
        )
        reason = self._finish_reason(live, request.resume_ids[-1] if request.resume_ids else None)
        if reason is not None:  # the node before us was lost after its last token, before it could say so
            self._events.append(TokenEvent(ticket=request.ticket, finish_reason=reason))
            return
        if len(self._live) >= self._pool.slots:
            raise EngineFullError(f"all {self._pool.slots} slots are taken")
        self._batch.add(live.key, [*request.prompt_ids, *request.resume_ids])
        self._live[live.key] = self._by_ticket[live.ticket] = live

    def _check(self, request: TokenRequest) -> None:
        total = len(request.prompt_ids) + len(request.resume_ids)
        if request.ticket in self._by_ticket:
            raise RequestRefusedError(f"ticket {request.ticket} is running already")
        if not request.prompt_ids:
            raise RequestRefusedError("prompt_ids is empty; there must be at least one token")
        if len(request.prompt_ids) >= self._context or total > self._context:
            raise RequestRefusedError(f"prompt_ids and resume_ids are {total} tokens, the context is {self._context}")
        if request.max_new_tokens < 1:
            raise RequestRefusedError(f"max_new_tokens is {request.max_new_tokens}, but must be 1 or above")
        if (request.sampling.logprobs or 0) > MAX_LOGPROBS:
            raise RequestRefusedError(f"logprobs is {request.sampling.logprobs}, but must be at most {MAX_LOGPROBS}")
        check(request, vocabulary=self._vocabulary)

    def cancel(self, ticket: int) -> None:
        """End a request; it has one last event, at the next poll. Unknown tickets are ignored."""
        live = self._by_ticket.get(ticket)
        if live is not None:
            self._drop(live)
            self._events.append(TokenEvent(ticket=ticket, finish_reason="cancelled"))

    def poll(self, timeout_s: float) -> list[TokenEvent]:
        """Run a step if there is work, and return what has happened since the last poll."""
        if not self._events:
            self._raise_if_broken()
        if self._live or self._has_ended_some:
            self._step()
            if not self._live and self._has_ended_some:
                self._step()  # runs nothing, and frees what the last requests held
        elif not self._events:
            time.sleep(timeout_s)  # nothing can happen before the caller's next call: this only paces its loop
        events, self._events = self._events, []
        return events

    def _step(self) -> None:
        self._has_ended_some = False
        try:
            tokens = self._batch.step(is_anyone_live=bool(self._live))
        except Exception as error:
            # Whose fault it was cannot be told, and what is left of the batch cannot be trusted. The process ends, and
            # its requests go on elsewhere; one that breaks engine after engine is found out by that.
            self._broken = f"{type(error).__name__}: {error}"
            raise EngineFatalError(self._broken) from error
        if tokens is None:
            return
        self._steps += 1
        self._tokens += len(tokens)
        self._largest_batch = max(self._largest_batch, len(tokens))
        self._events += [self._advance(self._live[key], token_id) for key, token_id in tokens]

    def _advance(self, live: _Live, token_id: int) -> TokenEvent:
        count = live.draw.sampling.logprobs or 0
        logprobs = None if live.logprobs is None else [report(live.logprobs, token_id, count)]
        live.draw.take(token_id)
        live.logprobs = None
        reason = self._finish_reason(live, token_id)
        if reason is not None:
            self._drop(live)
        return TokenEvent(ticket=live.ticket, token_ids=[token_id], logprobs=logprobs, finish_reason=reason)

    @staticmethod
    def _finish_reason(live: _Live, last_id: int | None) -> FinishReason | None:
        if last_id in live.stop_ids and live.draw.generated_count > live.draw.min_new_tokens:
            return "stop"
        return "length" if live.draw.generated_count >= live.max_new_tokens else None

    def _drop(self, live: _Live) -> None:
        del self._live[live.key], self._by_ticket[live.ticket]
        self._batch.end(live.key)
        self._has_ended_some = True

    def _choose(self, logits: torch.Tensor, keys: Sequence[str]) -> None:
        """Set the scores of one step; called from within it."""
        lives = [self._live[key] for key in keys]
        draws = [live.draw for live in lives]
        for row, logprobs in self._sampler.logprobs(logits, draws).items():
            lives[row].logprobs = logprobs
        self._sampler.scores(logits, draws)

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise EngineFatalError(self._broken)

    def capacity(self) -> Capacity:
        """Return how many requests, and tokens of one and of all, the engine holds."""
        return Capacity(slots=self._pool.slots, context=self._context, kv_tokens=self._pool.tokens)

    def stats(self) -> EngineStats:
        """Return counters and gauges; after `close` or a broken step the gauges are of no use."""
        running = self._batch.running
        return EngineStats(
            running=running,
            waiting=max(len(self._live) - running, 0),
            kv_percent=self._batch.used_percent,
            steps=self._steps,
            tokens=self._tokens,
            largest_batch=self._largest_batch,
        )

    def close(self) -> None:
        """Let everything go."""
        self._live.clear()
        self._by_ticket.clear()
        self._events.clear()
        self._broken = self._broken or "the engine is closed"
        self._batch.close()


def factory(spec: EngineSpec, progress: Progress) -> TransformersEngine:
    """Load the model of `spec` and make an engine of it; `--engine-opt` knows the names in `cb_load.OPTIONS`."""
    from .cb_load import check_options, load, plan

    check_options(spec)
    loaded = load(spec, progress)
    engine = TransformersEngine(
        loaded.model, pool=plan(spec, loaded), context=loaded.context, eos_ids=sorted(loaded.eos_ids)
    )
    warm_up(engine, progress)
    gc.freeze()  # half a million objects of torch and transformers live for ever: no pause and no exit walks them again
    return engine


def warm_up(engine: TokenEngine, progress: Progress) -> None:
    """Generate two tokens: a model that cannot run fails here, while it is loading, and not at the first request."""
    progress("warming", 0.0)
    engine.submit(TokenRequest(ticket=0, prompt_ids=[0], max_new_tokens=2, ignore_eos=True))
    events: list[TokenEvent] = []
    while not events or events[-1].finish_reason is None:
        events += engine.poll(0.0)
    if events[-1].error is not None:
        raise RuntimeError(events[-1].error)
    progress("warming", 100.0)
