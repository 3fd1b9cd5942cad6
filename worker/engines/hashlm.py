"""The mock engine: a toy model under a real scheduler, deterministic and free of torch.

`HashLM` keeps a store per slot, token and hash chain by position, and draws each next token from what it reads back
through its slot table. A slot reused too early, a stale row, a resume without its prefix: each gives a wrong token at
once, and `toy_model.expected_tokens` knows the right one. `HashEmbed` is its twin for batches.

Options (`--engine-opt`): step_ms, step_ms_per_row, prefill_ms_per_token, load_s, slots, eos (hash | never), dim, and
for tests of failure crash_on_prompt, hang_on_prompt, fail_on_prompt (a text that sets the fault off).
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from ...protocol.toy_model import EOS, REVISION, extend, next_token, noise_of
from .base import (
    Capacity,
    Engine,
    EngineFullError,
    EngineSpec,
    EngineStats,
    FinishReason,
    Item,
    Progress,
    RequestRefusedError,
    Result,
    TokenEvent,
    TokenRequest,
)

DEFAULT_SLOTS: Final = 32
DEFAULT_CONTEXT: Final = 8192
_MAX_DIM: Final = 4096
_KNOWN: Final = frozenset(
    {
        "step_ms",
        "step_ms_per_row",
        "prefill_ms_per_token",
        "load_s",
        "slots",
        "eos",
        "dim",
        "crash_on_prompt",
        "hang_on_prompt",
        "fail_on_prompt",
    }
)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a step takes, in milliseconds."""

    step_ms: float = 1.0
    per_row_ms: float = 0.0
    prefill_ms_per_token: float = 0.0

    def step_s(self, rows: int, prefilled_tokens: int) -> float:
        """Return the seconds of one step."""
        return (self.step_ms + self.per_row_ms * rows + self.prefill_ms_per_token * prefilled_tokens) / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Texts in a prompt that set a fault off; empty = none."""

    crash: str = ""
    hang: str = ""
    fail: str = ""

    def strike(self, prompt_ids: list[int]) -> str | None:
        """Die, stall, or return the words of an error, as the prompt asks for."""
        if not (self.crash or self.hang or self.fail):
            return None
        text = bytes(token for token in prompt_ids if token < 256).decode("utf-8", "replace")
        if self.crash and self.crash in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.hang and self.hang in text:
            log.warning("told to hang")
            signal.pause()
        return f"told to fail by {self.fail!r} in the prompt" if self.fail and self.fail in text else None


class SlotStore:
    """What the model remembers: token id and hash chain at (slot, position). It forgets nothing by itself."""

    def __init__(self, slots: int) -> None:
        self._ids: list[list[int]] = [[] for _ in range(slots)]
        self._chains: list[list[int]] = [[] for _ in range(slots)]

    def write(self, slot: int, position: int, token_id: int) -> None:
        """Store a token behind what lies before it in this slot."""
        ids, chains = self._ids[slot], self._chains[slot]
        del ids[position:], chains[position:]
        ids.append(token_id)
        chains.append(extend(chains[-1] if chains else 0, token_id))

    def read(self, slot: int, length: int) -> tuple[int, list[int]]:
        """Return the chain over the first `length` tokens of a slot, and the last three of them."""
        return self._chains[slot][length - 1], self._ids[slot][max(0, length - 3) : length]


@dataclass(slots=True)
class Row:
    """A request in a slot. `length` counts the tokens stored: prompt, prefix and those made here."""

    request: TokenRequest
    slot: int
    noise: int
    length: int = 0
    made: int = 0
    is_cancelled: bool = False


@dataclass
class HashLM:
    """Iteration-level batching over the toy model: admit, step, report, once per `poll`."""

    slots: int = DEFAULT_SLOTS
    context: int = DEFAULT_CONTEXT
    pace: Pace = field(default_factory=Pace)
    faults: Faults = field(default_factory=Faults)
    may_end: bool = True
    clock: Callable[[], float] = time.monotonic
    revision: ClassVar[str] = REVISION

    def __post_init__(self) -> None:
        """Lay out the slots."""
        self._store = SlotStore(self.slots)
        self._free = list(range(self.slots))
        self._waiting: deque[TokenRequest] = deque()
        self._rows: dict[int, Row] = {}
        self._in_step: list[Row] = []
        self._due: float | None = None
        self._early: list[TokenEvent] = []
        self._steps = self._tokens = self._largest = 0

    def submit(self, request: TokenRequest) -> None:
        """Queue a request. Raises EngineFullError, or RequestRefusedError if it can never fit."""
        length = len(request.prompt_ids) + len(request.resume_ids)
        if not 0 < length < self.context:
            raise RequestRefusedError(f"a prompt of {length} tokens does not fit a context of {self.context}")
        if len(self._waiting) >= self.slots:
            raise EngineFullError
        self._waiting.append(request)

    def cancel(self, ticket: int) -> None:
        """Give a request up; the slot of a running one frees when the step that uses it is over."""
        row = self._rows.pop(ticket, None)
        if row is not None:
            row.is_cancelled = True
            if not any(one is row for one in self._in_step):
                self._free.append(row.slot)
        else:
            waiting = next((one for one in self._waiting if one.ticket == ticket), None)
            if waiting is None:
                return
            self._waiting.remove(waiting)
        self._early.append(TokenEvent(ticket=ticket, finish_reason="cancelled"))

    def poll(self, timeout_s: float) -> list[TokenEvent]:
        """Begin a step if none is under way, wait for it (at most `timeout_s`), and return what it made."""
        events, self._early = self._early, []
        if self._due is None and not self._begin(events):
            return events
        assert self._due is not None
        left_s = self._due - self.clock()
        if left_s > timeout_s or (left_s > 0 and events):
            time.sleep(0 if events else timeout_s)
            return events
        if left_s > 0:
            time.sleep(left_s)
        self._finish(events)
        return events

    def capacity(self) -> Capacity:
        """Tell slots and context."""
        return Capacity(slots=self.slots, context=self.context)

    def stats(self) -> EngineStats:
        """Read the counters."""
        return EngineStats(
            running=len(self._rows),
            waiting=len(self._waiting),
            kv_percent=100 * len(self._rows) // self.slots,
            steps=self._steps,
            tokens=self._tokens,
            largest_batch=self._largest,
        )

    def close(self) -> None:
        """Forget everything."""
        self._waiting.clear()
        self._rows.clear()

    # --- one step --------------------------------------------------------------------------------------------------

    def _begin(self, events: list[TokenEvent]) -> bool:
        prefilled = 0
        while self._waiting and self._free:
            prefilled += self._admit(self._waiting.popleft(), events)
        self._in_step = list(self._rows.values())
        if not self._in_step:
            return False
        self._due = self.clock() + self.pace.step_s(len(self._in_step), prefilled)
        return True

    def _admit(self, request: TokenRequest, events: list[TokenEvent]) -> int:
        """Put a request into a slot and its prompt into the store; return how many tokens that were."""
        error = self.faults.strike(request.prompt_ids)
        if error is not None:
            events.append(TokenEvent(ticket=request.ticket, finish_reason="error", error=error))
            return 0
        sampling = request.sampling
        row = Row(request, self._free.pop(), noise_of(sampling.seed, sampling.temperature))
        for token_id in (*request.prompt_ids, *request.resume_ids):
            self._store.write(row.slot, row.length, token_id)
            row.length += 1
        row.made = len(request.resume_ids)
        self._rows[request.ticket] = row
        return row.length

    def _finish(self, events: list[TokenEvent]) -> None:
        rows, self._in_step, self._due = self._in_step, [], None
        self._steps += 1
        self._largest = max(self._largest, len(rows))
        for row in rows:
            if row.is_cancelled:
                self._free.append(row.slot)
            else:
                events.append(self._advance(row))

    def _advance(self, row: Row) -> TokenEvent:
        request = row.request
        chain, last = self._store.read(row.slot, row.length)
        may_end = self.may_end and not request.ignore_eos and row.made >= request.min_new_tokens
        token = next_token(chain, row.noise, last, may_end=may_end)
        self._store.write(row.slot, row.length, token)
        row.length += 1
        row.made += 1
        self._tokens += 1
        reason: FinishReason | None = None
        if row.made > request.min_new_tokens and (token == EOS or token in request.stop_ids):
            reason = "stop"
        elif row.made >= request.max_new_tokens or row.length >= self.context:
            reason = "length"
        if reason is not None:
            del self._rows[request.ticket]
            self._free.append(row.slot)
        top = None if request.sampling.logprobs is None else [{token: -0.5}]
        return TokenEvent(ticket=request.ticket, token_ids=[token], logprobs=top, finish_reason=reason)


class HashEmbed:
    """Unit vectors drawn from a hash of the text: equal texts have equal vectors, whatever stands beside them."""

    revision: ClassVar[str] = REVISION

    def __init__(self, *, model: str, dim: int, batch: int, step_s: float, fail_on: str = "") -> None:
        self._model = model
        self._dim = dim
        self._batch = batch
        self._step_s = step_s
        self._fail_on = fail_on

    def run(self, items: list[Item]) -> list[Result]:
        """Embed a batch. Raises ValueError if it holds the text that was chosen to fail."""
        time.sleep(self._step_s)
        return [Result(ticket=item.ticket, body=self._embed(item.task)) for item in items]

    def capacity(self) -> Capacity:
        """Tell how much waits and runs at once: a batch that runs, and one that fills."""
        return Capacity(slots=8 * self._batch, context=DEFAULT_CONTEXT)

    def close(self) -> None:
        """Nothing to free."""

    def _embed(self, task: dict[str, Any]) -> dict[str, Any]:
        given = task["input"]
        inputs = [given] if isinstance(given, str) else list(given)
        dim = min(task.get("dimensions") or self._dim, _MAX_DIM)
        raw = [one.encode("utf-8", "replace") if isinstance(one, str) else repr(one).encode() for one in inputs]
        if self._fail_on and any(self._fail_on.encode() in one for one in raw):
            raise ValueError(f"told to fail by {self._fail_on!r} in the input")
        return {
            "vectors": {
                "dtype": "f4",
                "shape": [len(raw), dim],
                "data": b"".join(_unit_vector(one, dim) for one in raw),
            },
            "usage": {"prompt_tokens": sum(map(len, raw)), "completion_tokens": 0},
            "model": self._model,
            "revision": REVISION,
        }


def _unit_vector(data: bytes, dim: int) -> bytes:
    numbers = struct.unpack(f"<{dim}h", hashlib.shake_128(data).digest(2 * dim))
    norm = sum(number * number for number in numbers) ** 0.5 or 1.0
    return struct.pack(f"<{dim}f", *(number / norm for number in numbers))


def factory(spec: EngineSpec, progress: Progress) -> Mapping[str, Engine]:
    """Make the mock's two services: text under the model's name, vectors under the name with "-embed" behind it.

    Raises:
        ValueError: an option is unknown or no number.
    """
    options = spec.options
    unknown = sorted(set(options) - _KNOWN)
    if unknown:
        raise ValueError(f"the mock engine has no option {unknown[0]!r}; it knows {', '.join(sorted(_KNOWN))}")
    _load(float(options.get("load_s", "0")), progress)
    step_ms = float(options.get("step_ms", "1"))
    text = HashLM(
        slots=int(options.get("slots", "0")) or spec.slots or DEFAULT_SLOTS,
        context=spec.max_model_len or DEFAULT_CONTEXT,
        pace=Pace(
            step_ms=step_ms,
            per_row_ms=float(options.get("step_ms_per_row", "0")),
            prefill_ms_per_token=float(options.get("prefill_ms_per_token", "0")),
        ),
        faults=Faults(
            crash=options.get("crash_on_prompt", ""),
            hang=options.get("hang_on_prompt", ""),
            fail=options.get("fail_on_prompt", ""),
        ),
        may_end=options.get("eos", "hash") != "never",
    )
    vectors = HashEmbed(
        model=f"{spec.model}-embed",
        dim=int(options.get("dim", "64")),
        batch=spec.batch_max_size,
        step_s=step_ms / 1000,
        fail_on=options.get("fail_on_prompt", ""),
    )
    return {"": text, "embed": vectors}


def _load(load_s: float, progress: Progress) -> None:
    """Take the time a real model would, and say how far it is."""
    steps = 20
    for step in range(steps):
        progress("loading", 100 * step / steps)
        time.sleep(load_s / steps)
    progress("loading", 100.0)
