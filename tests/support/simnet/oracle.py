"""Knows the right answer of every request before anybody is asked, and checks each answer as it comes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from zmqrt.client import calls
from zmqrt.client.calls import Call
from zmqrt.client.config import ClientConfig
from zmqrt.client.requests import Sink
from zmqrt.client.response import Event, Result, read_generation
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.errors import ErrorKind, RequestError, ZmqrtError
from zmqrt.protocol.tasks import FinishReason
from zmqrt.worker.detokenizer import TextStream
from zmqrt.worker.engines.base import TokenRequest
from zmqrt.worker.engines.mock_tokens import EOS, expected_tokens
from zmqrt.worker.tokenizer import ByteTokenizer

from .engine import SERVICE

_VOCABULARY = ByteTokenizer()
_CONFIG = ClientConfig(endpoints=("tcp://a:1",))
NEVER = frozenset(
    {
        ErrorKind.BAD_REQUEST,
        ErrorKind.CONTEXT_EXCEEDED,
        ErrorKind.WRONG_TASK,
        ErrorKind.UNAUTHORIZED,
        ErrorKind.FORBIDDEN,
        ErrorKind.CONFLICT,
        ErrorKind.TOO_LARGE,
        ErrorKind.VERSION,
        ErrorKind.MODEL_RAISED,
        ErrorKind.NO_SLOT,
        ErrorKind.NO_SESSION,
        ErrorKind.NOT_RESUMABLE,
        ErrorKind.MEMORY_FULL,
    }
)
"""Nothing that these networks do may ever end a request so: each of them blames the request or hides a bug."""


@dataclass
class Wish:
    """What a request is made of."""

    prompt: str
    max_tokens: int
    seed: int
    temperature: float
    stop: list[str]
    is_stream: bool
    is_idempotent: bool
    timeout_s: float
    stuck_after: int = 10**9
    """Units after which its reader takes nothing more."""

    def call(self, rid: bytes) -> Call:
        """Build the call."""
        task = tasks.Generate(
            prompt=self.prompt,
            raw=True,
            max_tokens=self.max_tokens,
            seed=self.seed,
            temperature=self.temperature,
            stop=self.stop,
        )
        return calls.make_call(
            _CONFIG,
            task,
            timeout_s=self.timeout_s,
            stream=self.is_stream,
            rid=rid,
            model=SERVICE if len(self.prompt) % 3 else None,  # then the broker chooses
            idempotent=self.is_idempotent,
        )


@dataclass
class Asked(Sink):
    """One request of one client: what it must be answered, and what it was."""

    wish: Wish
    call: Call
    ids: list[int]
    text: str
    reason: FinishReason
    asked_at: float
    received: list[int] = field(default_factory=list[int])
    end: Event | None = None
    was_cancelled: bool = False

    def __post_init__(self) -> None:
        """Read as the library reads."""
        self._reading = read_generation(self.call.request_id, stream=self.wish.is_stream)

    def put(self, event: Event) -> bool:
        """Take an event: units in order, each once and right; then one end, and nothing behind it."""
        assert self.end is None, f"{event} after the end {self.end}"
        if isinstance(event, m.Partial):
            assert self.wish.is_stream
            assert event.seq == len(self.received), f"unit {event.seq} where {len(self.received)} was due"
            chunk = self._reading.feed(event)
            assert chunk is not None
            assert len(chunk.token_ids) == event.n
            self.received += chunk.token_ids
            right = self.ids[event.seq : event.seq + event.n]
            assert chunk.token_ids == right, f"units {event.seq}: {chunk.token_ids} instead of {right}"
            return len(self.received) < self.wish.stuck_after
        self.end = event
        if isinstance(event, m.Final):
            self._reading.feed(event)
            self._check(self._reading.outcome())
        else:
            assert isinstance(event, ZmqrtError), event
            self._check_error(event)
        return True

    def _check(self, result: Result) -> None:
        assert result.token_ids == self.ids, f"ids {result.token_ids} instead of {self.ids}"
        assert result.text == self.text, f"text {result.text!r} instead of {self.text!r}"
        assert result.usage.completion_tokens == len(self.ids)
        assert result.finish_reason == self.reason
        assert result.seed == self.wish.seed

    def _check_error(self, error: ZmqrtError) -> None:
        kind = error.kind if isinstance(error, RequestError) else None
        assert kind not in NEVER, f"{kind}: {error}"
        assert kind is not ErrorKind.CANCELLED or self.was_cancelled, error
        assert kind is not ErrorKind.OUTCOME_UNKNOWN or not self.wish.is_idempotent, error

    @property
    def kind(self) -> str:
        """How it ended, in a word."""
        if isinstance(self.end, m.Final):
            return "answered"
        if self.end is None:
            return "open"
        return self.end.kind.value if isinstance(self.end, RequestError) else type(self.end).__name__


class Oracle:
    """All requests of a run."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._by_prompt: dict[str, Asked] = {}
        self._runs: dict[str, int] = {}

    def ask(self, wish: Wish, rng: random.Random, now: float) -> Asked:
        """Make a request out of a wish, with its right answer."""
        wish.prompt = f"{len(self.asked)}: {wish.prompt}"
        prompt_ids = _VOCABULARY.encode(wish.prompt, is_raw=True)
        tokens = expected_tokens(prompt_ids, wish.max_tokens, seed=wish.seed, temperature=wish.temperature)
        text = TextStream(_VOCABULARY.detokenizer(), wish.stop, min_tokens=0)
        ids: list[int] = []
        pieces: list[str] = []
        for token in tokens:
            ids.append(token)
            pieces.append("" if token == EOS else text.step(token))
            if text.is_stopped:
                break
        reason: FinishReason = "stop" if text.is_stopped or ids[-1] == EOS else "length"
        asked = Asked(wish, wish.call(rng.randbytes(16)), ids, "".join(pieces) + text.finish(), reason, now)
        self.asked.append(asked)
        self._by_prompt[wish.prompt] = asked
        return asked

    def submitted(self, request: TokenRequest) -> None:
        """Check what an engine is given: units that were delivered before, and nothing a second time that must not."""
        prompt = bytes(request.prompt_ids[1:]).decode()
        asked = self._by_prompt[prompt]
        assert request.resume_ids == asked.ids[: len(request.resume_ids)], "a prefix that was never right"
        self._runs[prompt] = runs = self._runs.get(prompt, 0) + 1
        assert asked.wish.is_idempotent or runs == 1, f"{prompt!r} must not run twice"
