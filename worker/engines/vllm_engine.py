"""vLLM as an engine: token ids in, token ids out. Text, templates and stop strings stay the agent's affair.

vLLM's AsyncLLM runs in an event loop on a thread of its own, and computes in processes of its own. Between that thread
and the loop of this process are `call_soon_threadsafe` in one direction and a queue with a wake-up in the other. Only
the loop's thread touches `_live`, only the other one `_tasks` and what follows from outputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import uvloop

from .adapters import describe
from .base import (
    Capacity,
    EngineFatalError,
    EngineFullError,
    EngineStats,
    FinishReason,
    TokenEvent,
    TokenRequest,
)
from .generate.schedule import Sequence, finish_reason
from .sampling_state import check, check_size
from .vllm_parameters import sampling_arguments

_STEP_S: Final = 0.2
"""How long a step is awaited before the engine gives no sign of life any more: as often as an idle one gives them."""
_TELL_EVERY_S: Final = 0.2
"""How often a request hears that its prompt has come further."""
_CLOSE_S: Final = 1.0
_REASONS: Final[dict[str, FinishReason]] = {"stop": "stop", "length": "length", "repetition": "stop"}
log = logging.getLogger(__name__)


class StepLog:
    """What vLLM tells of each of its steps: a logger of stats for AsyncLLM, by the names of its interface.

    One that counts nothing would be told nothing. vLLM calls that interface unstable, so numbers that are not there
    are zero; that something was told is what matters.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._gauges: dict[int, tuple[int, int, float]] = {}
        """By number of the replica of the model: requests that run and wait, and how full its memory is."""
        self.steps = 0
        self.largest_batch = 0

    def __call__(self, _config: object, _engine_index: int = 0) -> StepLog:
        """Be its own factory: vLLM asks for one logger for each replica."""
        return self

    def record(self, scheduler_stats: Any, _iteration: Any = None, *_: Any, engine_idx: int = 0, **__: Any) -> None:  # noqa: ANN401 - vLLM is not typed here
        """Hear of a step."""
        self.steps += 1
        if scheduler_stats is not None:
            running = int(getattr(scheduler_stats, "num_running_reqs", 0))
            waiting = int(getattr(scheduler_stats, "num_waiting_reqs", 0))
            usage = float(getattr(scheduler_stats, "kv_cache_usage", 0.0))
            self._gauges[engine_idx] = running, waiting, usage
        self._tell()

    def log_engine_initialized(self) -> None:
        """Say nothing."""

    def log(self) -> None:
        """Say nothing."""

    def record_sleep_state(self, *_: object, **__: object) -> None:
        """Say nothing: it is never put to sleep."""

    @property
    def running(self) -> int:
        """Requests that are computed."""
        return sum(running for running, _, _ in self._gauges.values())

    @property
    def waiting(self) -> int:
        """Requests that wait for memory or a place in a step."""
        return sum(waiting for _, waiting, _ in self._gauges.values())

    @property
    def kv_percent(self) -> int:
        """How full the fullest memory of keys and values is."""
        return min(100, int(100 * max((usage for _, _, usage in self._gauges.values()), default=0.0)))


class VllmEngine:
    """A TokenEngine around an AsyncLLM; see `TokenEngine` for what the methods promise."""

    fallback = ""

    def __init__(
        self,
        vllm: Any,  # noqa: ANN401 - the module; it is not typed here, as it is not installed everywhere
        make: Callable[[StepLog], Any],
        *,
        describe_capacity: Callable[[Any], Capacity],
        vocabulary: int,
        has_keyed_noise: bool,
        takes_seeds: bool,
        revision: str,
    ) -> None:
        """Start the thread, and vLLM by `make`; that raises what it raises."""
        self.revision = revision
        self.has_keyed_noise = has_keyed_noise
        self._takes_seeds = takes_seeds
        self._vllm = vllm
        self._steps = StepLog(self._stepped)
        self._client = make(self._steps)
        self._capacity = describe_capacity(self._client)
        self._vocabulary = vocabulary
        self._live: set[int] = set()
        self._moved_at = time.monotonic()
        self._broken = ""
        self._wake: Callable[[], None] = _nobody
        self._made: queue.SimpleQueue[list[TokenEvent]] = queue.SimpleQueue()
        self._fresh: list[TokenEvent] = []
        """Made in this round of the event loop; they are handed over together, as the tokens of one step."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._unbegun: dict[int, float] = {}
        """Requests without a token, the oldest first, and when they last heard that they have come further."""
        self._tokens = self._prompt_tokens = self._reused_tokens = self._largest_batch = 0
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="zmqrt-vllm", daemon=True)
        self._thread.start()

    def wake_by(self, wake: Callable[[], None]) -> None:
        """Call `wake`, from another thread, whenever a poll has something to return."""
        self._wake = wake

    @property
    def is_busy(self) -> bool:
        """Whether a poll has something to do: there are events, or vLLM has died."""
        return not self._made.empty() or self._is_broken()

    @property
    def is_alive(self) -> bool:
        """Whether vLLM keeps up: a step that takes long is a silence, as it is where it is computed in our loop."""
        return not self._live or time.monotonic() - self._moved_at <= _STEP_S

    # --- TokenEngine -----------------------------------------------------------------------------------------------

    def submit(self, request: TokenRequest) -> None:
        """Take a request in. Raises EngineFullError, RequestRefusedError or EngineFatalError."""
        self._raise_if_broken()
        max_new_tokens = check_size(request, self._capacity)
        check(request, vocabulary=self._vocabulary)
        over = finish_reason(Sequence.of(request, frozenset(request.stop_ids), max_new_tokens))
        if request.resume_ids and over is not None:  # the node before us was lost after its last token
            self._hand_over([TokenEvent(ticket=request.ticket, finish_reason=over)])
            return
        if len(self._live) >= self._capacity.slots:
            raise EngineFullError(f"all {self._capacity.slots} slots are taken")
        if not self._live:
            self._moved_at = time.monotonic()
        self._live.add(request.ticket)
        self._largest_batch = max(self._largest_batch, len(self._live))
        self._loop.call_soon_threadsafe(self._begin, request, max_new_tokens)

    def cancel(self, ticket: int) -> None:
        """End a request: its place is free when vLLM has heard of it. Unknown tickets are ignored."""
        if ticket in self._live:
            self._loop.call_soon_threadsafe(self._cancel, ticket)

    def poll(self, timeout_s: float) -> list[TokenEvent]:
        """Return what has happened, waiting at most `timeout_s` for anything to."""
        events: list[TokenEvent] = []
        with contextlib.suppress(queue.Empty):
            events += self._made.get(timeout=timeout_s) if timeout_s > 0 else self._made.get_nowait()
            while True:
                events += self._made.get_nowait()
        if not events:
            self._raise_if_broken()
        self._live.difference_update(event.ticket for event in events if event.finish_reason is not None)
        return events

    def capacity(self) -> Capacity:
        """Return what vLLM's scheduler takes."""
        return self._capacity

    def stats(self) -> EngineStats:
        """Read counters and gauges."""
        return EngineStats(
            running=self._steps.running,
            waiting=self._steps.waiting,
            kv_percent=self._steps.kv_percent,
            steps=self._steps.steps,
            tokens=self._tokens,
            largest_batch=self._largest_batch,
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
        )

    def close(self) -> None:
        """End vLLM's processes; what is left of them the agent ends with this one."""
        self._broken = self._broken or "the engine is closed"
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(_CLOSE_S)
        with contextlib.suppress(Exception):
            self._client.shutdown(timeout=_CLOSE_S)

    def _is_broken(self) -> bool:
        if not self._broken and self._client.errored:
            self._broken = "vLLM's engine has ended, see its log"
        return bool(self._broken)

    def _raise_if_broken(self) -> None:
        if self._is_broken():
            raise EngineFatalError(self._broken)

    # --- on the thread of the event loop -----------------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _stop(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        over = asyncio.gather(*self._tasks.values(), return_exceptions=True)
        over.add_done_callback(lambda _: self._loop.stop())

    def _begin(self, request: TokenRequest, max_new_tokens: int) -> None:
        task = self._loop.create_task(self._generate(request, max_new_tokens))
        self._tasks[request.ticket] = task
        self._unbegun[request.ticket] = time.monotonic()
        # In a callback, since a task that is cancelled before it began never runs a line of its own.
        task.add_done_callback(lambda done: self._end(request.ticket, done))

    def _cancel(self, ticket: int) -> None:
        task = self._tasks.get(ticket)
        if task is not None:
            task.cancel()

    async def _generate(self, request: TokenRequest, max_new_tokens: int) -> None:
        vllm = self._vllm
        arguments = sampling_arguments(
            request, max_new_tokens, has_keyed_noise=self.has_keyed_noise, takes_seeds=self._takes_seeds
        )
        params = vllm.SamplingParams(output_kind=vllm.sampling_params.RequestOutputKind.DELTA, **arguments)
        prompt = vllm.inputs.tokens_input([*request.prompt_ids, *request.resume_ids])
        async for output in self._client.generate(prompt, params, str(request.ticket)):
            self._take(request, output)

    def _take(self, request: TokenRequest, output: Any) -> None:  # noqa: ANN401 - vLLM is not typed here
        """Make an event of what vLLM says, unless it has stopped by itself: then its engine ends, and so do we."""
        said = output.outputs[0]
        ids = list(said.token_ids)
        reason = said.finish_reason
        if self._unbegun.pop(request.ticket, None) is not None:
            reused = output.num_cached_tokens or 0
            self._reused_tokens += reused
            self._prompt_tokens += len(request.prompt_ids) + len(request.resume_ids) - reused
        self._tokens += len(ids)
        if reason == "abort":  # nobody here has asked for that
            self._break("vLLM has given its requests up")
            return
        failed = reason is not None and reason not in _REASONS
        self._emit(
            TokenEvent(
                ticket=request.ticket,
                token_ids=ids,
                logprobs=_logprobs(said.logprobs) if request.sampling.logprobs is not None and ids else None,
                finish_reason="error" if failed else _REASONS[reason] if reason is not None else None,
                error=f"vLLM ended the request with {reason!r}" if failed else None,
            )
        )
        if reason is not None:
            del self._tasks[request.ticket]

    def _end(self, ticket: int, done: asyncio.Task[None]) -> None:
        """Say the last word of a task that has not said it itself."""
        raised = None if done.cancelled() else done.exception()
        self._unbegun.pop(ticket, None)
        if self._tasks.pop(ticket, None) is None or self._broken:
            return
        if done.cancelled():
            self._emit(TokenEvent(ticket=ticket, finish_reason="cancelled"))
        elif self._client.errored:
            self._break(describe(raised) if raised is not None else "vLLM's engine has ended")
        else:
            log.error("ticket %d: vLLM failed", ticket, exc_info=raised)
            error = (raised.__cause__ or raised) if raised is not None else RuntimeError("it ended without a reason")
            self._emit(TokenEvent(ticket=ticket, finish_reason="error", error=describe(error)))

    def _break(self, words: str) -> None:
        self._broken = self._broken or words
        self._wake()

    def _stepped(self) -> None:
        """Hear of a step. A prompt that takes several has come further by each: vLLM reads the oldest one first."""
        now = self._moved_at = time.monotonic()
        ticket = next(iter(self._unbegun), None)
        if ticket is not None and now - self._unbegun[ticket] >= _TELL_EVERY_S:
            self._unbegun[ticket] = now
            self._emit(TokenEvent(ticket=ticket))

    def _emit(self, event: TokenEvent) -> None:
        self._moved_at = time.monotonic()
        if not self._fresh:
            self._loop.call_soon(self._flush)
        self._fresh.append(event)

    def _flush(self) -> None:
        events, self._fresh = self._fresh, []
        self._hand_over(events)

    def _hand_over(self, events: list[TokenEvent]) -> None:
        self._made.put(events)
        self._wake()


def _nobody() -> None:
    """Wake nobody: whoever does not want to be woken polls."""


def _logprobs(said: Any) -> list[dict[int, float]]:  # noqa: ANN401 - vLLM is not typed here
    return [{token: float(each.logprob) for token, each in position.items()} for position in said or ()]
