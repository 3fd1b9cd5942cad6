"""The mock engine: a toy model under a real scheduler, deterministic and free of torch.

`MockRunner` keeps token and hash chain of every place in the pool, and draws each next token from what it reads back
there. A place used too early, a wrong prefix, a resume without its tokens: each gives a wrong token at once, and
`mock_tokens.expected_tokens` knows the right one. What it does with batches of texts, `mock_batches` says.

Options (`--engine-opt`): step_ms, step_ms_per_row, prefill_ms_per_token, load_s, slots, chunk, eos (hash | never), dim,
script (a file: a JSON list of texts, uttered in the first, second, … turn of a conversation, whatever is asked),
and for tests of failure crash_on_prompt, hang_on_prompt, fail_on_prompt (a text that sets the fault off).
"""

from __future__ import annotations

import logging
import os
import signal
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from .base import (
    CannotLoadError,
    Engine,
    EngineSpec,
    Progress,
    TokenEvent,
    TokenRequest,
)
from .generate.engine import Drawn, GenerateEngine
from .generate.schedule import EngineStep, KvCopy, SchedulerLimits, SequenceStep
from .grammar import Grammars, is_installed
from .mock_batches import MockBatches, MockClassifier, MockEmbedder, MockReranker
from .mock_tokens import EOS, REVISION, VOCABULARY, extend, next_token, noise_of, token_under

DEFAULT_SLOTS: Final = 32
DEFAULT_CONTEXT: Final = 8192
DEFAULT_CHUNK: Final = 2048
_ASSISTANT: Final = 260
"""The marker of the assistant's turns (`ByteTokenizer`)."""
_OPTIONS: Final = (
    *("step_ms", "step_ms_per_row", "prefill_ms_per_token", "load_s", "slots", "chunk", "eos", "dim"),
    "script",
    *("crash_on_prompt", "hang_on_prompt", "fail_on_prompt"),
)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MockTiming:
    """How long a step takes, in milliseconds."""

    step_ms: float = 1.0
    per_row_ms: float = 0.0
    prefill_ms_per_token: float = 0.0

    def step_s(self, rows: int, prefilled_tokens: int) -> float:
        """Return the seconds of one step."""
        return (self.step_ms + self.per_row_ms * rows + self.prefill_ms_per_token * prefilled_tokens) / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class MockFaults:
    """Texts in a prompt that set a fault off; empty = none."""

    crash: str = ""
    hang: str = ""
    fail: str = ""

    def trigger(self, prompt_ids: list[int]) -> str | None:
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


_DEFAULT_TIMING: Final = MockTiming()
_NO_FAULTS: Final = MockFaults()


class MockRunner:
    """Computes steps of the toy model from what it reads back of its pool. It forgets nothing by itself.

    A step is computed when it is launched, in order, as on a device; what it drew is handed out when its time is over.
    """

    vocabulary = VOCABULARY

    def __init__(
        self,
        kv_tokens: int,
        *,
        timing: MockTiming,
        may_end: bool,
        clock: Callable[[], float],
        script: Sequence[str] = (),
    ) -> None:
        self._ids = array("L", bytes(kv_tokens * array("L").itemsize))
        self._chains = array("Q", bytes(kv_tokens * array("Q").itemsize))
        self._timing = timing
        self._may_end = may_end
        self._script = [text.encode() for text in script]
        self._clock = clock
        self._under_way: deque[tuple[float, Drawn]] = deque()

    def launch(self, step: EngineStep) -> list[SequenceStep]:
        """Copy, store, draw; the next step begins when this one is over."""
        for copy in step.copies:
            self._copy(copy)
        drawn = [self._run(part) for part in step.parts]
        prompt_tokens = sum(part.end - part.begin for part in step.parts if part.is_prompt)
        begins = max(self._clock(), self._under_way[-1][0] if self._under_way else 0.0)
        over = begins + self._timing.step_s(len(step.drawing), prompt_tokens)
        tokens = [token for token in drawn if token is not None]
        reports = [
            None if part.sequence.request.sampling.logprobs is None else {token: -0.5}
            for part, token in zip(step.drawing, tokens, strict=True)
        ]
        self._under_way.append((over, Drawn(tokens, reports if any(reports) else None)))
        return []

    def collect(self, timeout_s: float) -> Drawn | None:
        """Wait until the oldest step is over."""
        left_s = self._under_way[0][0] - self._clock()
        wait_s = min(left_s, timeout_s)
        if wait_s > 0:  # to sleep for no time at all still gives the processor away
            time.sleep(wait_s)
        return None if left_s > timeout_s else self._under_way.popleft()[1]

    def close(self) -> None:
        """Forget everything."""
        self._under_way.clear()

    def _copy(self, copy: KvCopy) -> None:
        for store in (self._ids, self._chains):
            store[copy.target : copy.target + copy.count] = store[copy.source : copy.source + copy.count]

    def _run(self, part: SequenceStep) -> int | None:
        """Store the tokens of a part behind what lies before them, and draw from all that can be read back."""
        sequence, at, ids, chains = part.sequence, part.begin, self._ids, self._chains
        request, (start, size) = sequence.request, sequence.extent
        given = ids[start + at : start + part.end] if part.ids is None else part.ids
        chain = chains[start + at - 1] if at else 0
        at += start
        for token in given:
            chain = extend(chain, token)
            ids[at], chains[at] = token, chain
            at += 1
        if not part.draws:
            return None
        made = part.end - len(request.prompt_ids)
        may_end = self._may_end and not request.ignore_eos and made >= request.min_new_tokens
        noise = noise_of(request.sampling.seed, request.sampling.temperature)
        last = ids[max(start, at - 3) : at] if ids[at - 1] >= 0x80 else ()  # else no character is half written
        token = next_token(chain, noise, last, may_end=may_end)
        if self._script:
            token = self._scripted(request.prompt_ids, made)
        matcher = sequence.sampling_state.matcher
        if matcher is not None:
            token = token_under(matcher.mask, chain, noise)
        if part.end < size:
            ids[at] = token  # for a next step that is launched before this one is read
        return token

    def _scripted(self, prompt_ids: Sequence[int], made: int) -> int:
        """Return what the script says as this token of this turn; its last text is for all further turns."""
        turn = max(0, prompt_ids.count(_ASSISTANT) - 1)
        text = self._script[min(turn, len(self._script) - 1)]
        return text[made] if made < len(text) else EOS


class MockEngine(GenerateEngine):
    """The toy model under the scheduler of the real engine."""

    revision: ClassVar[str] = REVISION

    def __init__(
        self,
        *,
        slots: int = DEFAULT_SLOTS,
        context: int = DEFAULT_CONTEXT,
        kv_tokens: int = 0,
        chunk_tokens: int = DEFAULT_CHUNK,
        depth: int = 1,
        is_deterministic: bool = False,
        timing: MockTiming = _DEFAULT_TIMING,
        faults: MockFaults = _NO_FAULTS,
        may_end: bool = True,
        clock: Callable[[], float] = time.monotonic,
        script: Sequence[str] = (),
    ) -> None:
        kv_tokens = kv_tokens or slots * context
        self._faults = faults
        super().__init__(
            MockRunner(kv_tokens, timing=timing, may_end=may_end, clock=clock, script=script),
            kv_tokens=kv_tokens,
            limits=SchedulerLimits(
                slots=slots,
                context=context,
                chunk_tokens=chunk_tokens,
                depth=depth,
                is_deterministic=is_deterministic,
            ),
            eos_ids=[EOS],
            grammars=Grammars.of_bytes(VOCABULARY, clock=time.thread_time) if is_installed() else None,
        )

    @property
    def is_alive(self) -> bool:
        """Its steps take as long as it was told: a long one is no hang."""
        return True

    def submit(self, request: TokenRequest) -> None:
        """Take a request in, unless its prompt sets a fault off."""
        error = self._faults.trigger(request.prompt_ids)
        if error is None:
            super().submit(request)
        else:
            self._events.append(TokenEvent(ticket=request.ticket, finish_reason="error", error=error))


def factory(spec: EngineSpec, progress: Progress) -> Mapping[str, Engine]:
    """Make the mock's services: text under the model's name; vectors, relevance and classes under names of their own.

    Those are the model's with "-embed", "-rerank" and "-classify" behind it.

    Raises:
        CannotLoadError: an option is unknown or no number.
    """
    options = spec.options
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise CannotLoadError(f"the mock engine has no option {unknown[0]!r}; it knows {', '.join(sorted(_OPTIONS))}")
    _load(spec.number("load_s", 0), progress)
    step_ms = spec.number("step_ms", 1)
    text = MockEngine(
        slots=spec.count("slots", 0) or spec.slots or DEFAULT_SLOTS,
        context=spec.max_model_len or DEFAULT_CONTEXT,
        chunk_tokens=spec.count("chunk", DEFAULT_CHUNK, least=1),
        timing=MockTiming(
            step_ms=step_ms,
            per_row_ms=spec.number("step_ms_per_row", 0),
            prefill_ms_per_token=spec.number("prefill_ms_per_token", 0),
        ),
        faults=MockFaults(
            crash=options.get("crash_on_prompt", ""),
            hang=options.get("hang_on_prompt", ""),
            fail=options.get("fail_on_prompt", ""),
        ),
        may_end=options.get("eos", "hash") != "never",
        script=_script(options.get("script", "")),
    )
    batches = MockBatches(
        size=spec.batch_max_size,
        step_s=step_ms / 1000,
        fail_on=options.get("fail_on_prompt", ""),
        context=spec.max_model_len or DEFAULT_CONTEXT,
    )
    return {
        "": text,
        "embed": MockEmbedder(f"{spec.model}-embed", batches, dim=spec.count("dim", 64, least=1)),
        "rerank": MockReranker(f"{spec.model}-rerank", batches),
        "classify": MockClassifier(f"{spec.model}-classify", batches),
    }


def _script(file: str) -> list[str]:
    """Read what is to be uttered. Raises CannotLoadError."""
    try:
        return msgspec.json.decode(Path(file).read_bytes(), type=list[str]) if file else []
    except (OSError, msgspec.MsgspecError) as error:
        raise CannotLoadError(f"script: a file with a JSON list of texts is meant: {error}") from None


def _load(load_s: float, progress: Progress) -> None:
    """Take the time a real model would, and say how far it is."""
    steps = 20
    for step in range(steps):
        progress("loading", 100 * step / steps)
        time.sleep(load_s / steps)
    progress("loading", 100.0)
