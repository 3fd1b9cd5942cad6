"""The protocols of engines, and the plain records that cross them.

An engine turns token ids (or batch items, or a task) into results on one device. It knows nothing of sockets, brokers,
leases, requests ids, tokenizers or stop strings: the agent owns text, the engine process (`process.py`) owns the loop.
A factory named by `--engine` may return any of them, or a mapping of service suffix (or "=" and a whole name) to
engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

FinishReason = Literal["stop", "length", "cancelled", "error"]
Phase = Literal["starting", "downloading", "converting", "loading", "warming", "ready", "restarting", "failed"]
TaskName = Literal["generate", "embed", "rerank", "classify"]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How the next token is drawn; every field is already resolved (no None means "default" here).

    `temperature` below 1e-5 is greedy. `seed` is 0..2**63-1; noise is a pure function of (seed, position, token id).
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    logprobs: int | None = None


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One generation for a `TokenEngine`.

    `resume_ids` were generated (and delivered) before, elsewhere: they count towards `max_new_tokens`, penalties and
    positions, and are never reported again. Position of a token = its index in prompt_ids + generated ids.

    `grammar`: what the answer keeps to, as llguidance writes it; "" = anything. It comes only to engines with the
    capability `grammar`. The answer is over ("stop") where nothing can follow, else at a stop id where it may end.
    """

    ticket: int
    prompt_ids: list[int]
    resume_ids: list[int] = []
    max_new_tokens: int
    min_new_tokens: int = 0
    stop_ids: list[int] = []
    ignore_eos: bool = False
    grammar: str = ""
    sampling: SamplingParams = SamplingParams()


class TokenEvent(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What one step did for one request: new token ids, and at the very end a finish reason.

    An event with neither says that the request has come further without a token: a piece of its prompt is done. Without
    any event for the time that its caller allows, a request is given up.

    Exactly one event of a ticket carries `finish_reason`, and none follows it. With `error` set the reason is "error".
    A sampled stop id is reported in `token_ids` and followed (or accompanied) by finish_reason "stop".
    """

    ticket: int
    token_ids: list[int] = []
    logprobs: list[dict[int, float]] | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine can hold at once: `slots` requests beside each other, `context` tokens in one (prompt + output),
    `kv_tokens` over all (0 = not limited apart from slots x context). `vocabulary` of a BatchEngine: it takes token ids
    below this as inputs, and can cut inputs to a number of tokens; 0 = it takes texts alone."""

    slots: int
    context: int
    kv_tokens: int = 0
    vocabulary: int = 0


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Counters since the start of the engine, and gauges of this moment."""

    running: int = 0
    waiting: int = 0
    kv_percent: int = 0
    steps: int = 0
    tokens: int = 0
    largest_batch: int = 0
    prompt_tokens: int = 0
    """Computed; those whose keys and values were found in the pool are `reused_tokens`."""
    reused_tokens: int = 0


class EngineFullError(Exception):
    """The engine has no free slot; the caller keeps the request and tries again after the next event."""


class RequestRefusedError(Exception):
    """The engine can never serve this request (its words go to the client as a 400)."""


class CannotLoadError(ValueError):
    """A factory cannot make the engine, and would not the next time either: a damaged model, a wrong option.

    The process is not started again. Whatever else a factory raises is tried again, for others may free memory.
    """


class StartAgainError(Exception):
    """A factory has lost its device to something that it can do without: a new process may have it, with more options.

    They go on top of those of the spec, as long as the node lives.
    """

    def __init__(self, words: str, options: dict[str, str]) -> None:
        super().__init__(words)
        self.options = options


class EngineFatalError(Exception):
    """The engine is broken for good: its process must end, and what it ran goes on elsewhere."""


Failure = Literal["", "bad_request", "context_length_exceeded", "no_slot", "engine_restarted", "not_resumable"]
"""Why a `StreamEngine` ends one request: the values of `protocol.errors.ErrorKind`; "" = the model raised."""


class RequestFailedError(Exception):
    """A `StreamEngine` ends one request, and says whose fault that is.

    "no_slot": it is full, "engine_restarted": it has failed, and another node may do it; "not_resumable": it cannot go
    on with what was delivered; "bad_request" and "context_length_exceeded": the caller is told so.
    """

    def __init__(self, words: str, failure: Failure = "") -> None:
        super().__init__(words)
        self.failure: Failure = failure


@runtime_checkable
class TokenEngine(Protocol):
    """Continuous batching over token ids. All methods are called from one thread; none but `poll` may block.

    One whose `poll` returns while its device still computes may also have a property `is_alive`: False once a step
    takes so long that the device may hang. The process gives no sign of life then, and is ended after the stall time.
    One that computes ahead may have a property `is_busy` too: True while it wants to be polled, requests or not.
    One that computes in threads or processes of its own may have a method `wake_by(wake)`, called once, before all
    others. It is then polled only while it `is_busy`, without waiting, and calls `wake`, from any thread, when that
    begins.
    """

    def submit(self, request: TokenRequest) -> None:
        """Take a request in. Raises EngineFullError or RequestRefusedError."""
        ...

    def cancel(self, ticket: int) -> None:
        """Stop a request: idempotent; a live one yields exactly one terminal event, an unknown ticket nothing."""
        ...

    def poll(self, timeout_s: float) -> list[TokenEvent]:
        """Run or await at most one step, waiting at most `timeout_s` seconds; return the events of it.

        Raises EngineFatalError if a step has broken the engine: its process ends, and its requests go on elsewhere.
        """
        ...

    def capacity(self) -> Capacity:
        """Tell how much the engine holds; fixed from the start."""
        ...

    def stats(self) -> EngineStats:
        """Read counters and gauges; cheap enough for every step."""
        ...

    def close(self) -> None:
        """Free everything within two seconds, requests running or not."""
        ...


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a batch: the decoded body of the task and its padded-length hint in tokens (or bytes)."""

    ticket: int
    task: dict[str, Any]
    length: int


class ItemResult(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One output of a batch, in the order of the items: a FINAL body, or the words of what went wrong with it.

    `refused` says that the item is at fault and not the model: the caller is told by a 400 with those words, which
    begin with the field. "context_length_exceeded": it is longer than the context (`protocol.errors.too_long`).
    """

    ticket: int
    body: dict[str, Any] | None = None
    error: str | None = None
    refused: Literal["", "bad_request", "context_length_exceeded"] = ""


@runtime_checkable
class BatchEngine(Protocol):
    """Embeddings, classifiers and the like: many in, as many out; the batcher stands in front of it.

    What it does, it says by an attribute `task`, a `TaskName`; without, it embeds. The bodies are those of
    `protocol.tasks`: items are `Embed`, `Rerank` or `Classify`, results what they are answered with.
    """

    def run(self, items: list[Item]) -> list[ItemResult]:
        """Run one batch; one result per item, in their order."""
        ...

    def capacity(self) -> Capacity:
        """Tell how much the engine holds; fixed from the start."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class AnswerEnd(msgspec.Struct, frozen=True, kw_only=True):
    """What a StreamEngine may yield last: why the answer is over, and its tokens; 0 = as many as there were pieces."""

    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Of these, those of thoughts."""


class Row(msgspec.Struct, frozen=True):
    """One sequence of a batch: token ids, and for each the number of the text that it is of (empty: all of one)."""

    token_ids: list[int]
    text_numbers: list[int] = []


@runtime_checkable
class RowEngine(Protocol):
    """A BatchEngine for items of several sequences (the texts of one request to embed, the documents to rank).

    Batches are made of rows, whosever they are: full ones from many small items, which pass a large one instead of
    waiting for it. All methods are called from one thread. `task`: what it serves; `batch_tokens`:
    so many tokens, padding counted, are computed at once at most (a single longer row goes alone).
    """

    task: TaskName
    batch_tokens: int

    def divide(self, item: Item) -> list[Row] | ItemResult:
        """Cut an item into its rows, at least one; or say what is wrong with it."""
        ...

    def run(self, rows: list[Row]) -> list[bytes | Exception]:
        """Compute a batch: for each row its numbers (32-bit floats, little-endian), or what is wrong with that one.

        What it raises is tried again with fewer rows, until the one that is at fault is alone.
        """
        ...

    def unite(self, item: Item, rows: list[Row], numbers: list[bytes]) -> dict[str, Any]:
        """Make the FINAL body of an item from the numbers of all its rows, which are in their order."""
        ...

    def capacity(self) -> Capacity:
        """Tell how much the engine holds; fixed from the start."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


@runtime_checkable
class StreamEngine(Protocol):
    """A model that deals in text itself (an upstream server, a user's generator): chunks of text, then return.

    One that can go on after text of its own has `resumes = True`: the task of a request that has begun elsewhere has
    its pieces as `delivered`, which are not yielded again. One may also have a coroutine `watch`, which runs as long as
    the engine: if it raises, every request ends as `engine_restarted`, and so does the process.
    """

    def generate(self, task: dict[str, Any]) -> AsyncIterator[str | AnswerEnd]:
        """Yield the text of one task in pieces, perhaps an `AnswerEnd`; closing the iterator cancels it.

        An empty piece says that it makes progress. `max_tokens` is always in the task. What it raises ends the request:
        a RequestFailedError as that says, anything else as a failure of the model.
        """
        ...

    def capacity(self) -> Capacity:
        """Tell how much the engine holds; fixed from the start."""
        ...

    async def close(self) -> None:
        """Free everything."""
        ...


Engine = TokenEngine | BatchEngine | RowEngine | StreamEngine
"""Any of them may have `revision`: what its tokens depend on, else made from the spec. `fallback`: in a sentence
for operators, what it has to do without and why; the status of its node shows it. And `capabilities`: names of what it
can do beyond its task (protocol/capabilities.py), so that requests that need it come here and the others are refused
before they do; else `logprobs` and `token_ids` for a TokenEngine, `token_ids` for an engine of vectors that tells
its `vocabulary`, and nothing for a StreamEngine."""
Progress = Callable[[Phase, float], None]
"""Called by a factory while it loads: the phase, and how much of it is done in percent (0..100)."""


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a factory gets: which model on which device, with which bounds. `options` are `--engine-opt k=v`.

    Equal `revision` means equal weights (`model_sources.ModelFiles`); empty for engines that have none.
    `quantize` says in how many bits the engine is to keep them.
    """

    engine: str
    model: str
    model_path: str
    revision: str = ""
    device: str
    dtype: str
    max_model_len: int
    batch_max_size: int
    batch_max_latency_ms: int
    slots: int
    options: dict[str, str] = {}
    quantize: str = "none"

    def count(self, name: str, default: int, *, least: int = 0) -> int:
        """Read an option that is a whole number. Raises CannotLoadError."""
        given = self.options.get(name, str(default))
        if not given.isdecimal() or int(given[:20]) < least:
            raise CannotLoadError(f"--engine-opt {name}={given[:40]}: it is a whole number of at least {least}")
        return int(given[:20])

    def number(self, name: str, default: float) -> float:
        """Read an option that is a number and not negative. Raises CannotLoadError."""
        given = self.options.get(name, str(default))
        with contextlib.suppress(ValueError):
            if 0 <= (value := float(given)) < float("inf"):
                return value
        raise CannotLoadError(f"--engine-opt {name}={given[:40]}: it is a number of at least 0")


def dtype_on(device: str, asked: str, quantize: str = "none") -> str:
    """Return the type to compute in: what was asked for, else what is usual on a device of this kind.

    With weights of four bits that is bfloat16: torch multiplies with them at speed in no other type.
    """
    if asked not in {"", "auto"}:
        return asked
    return "bfloat16" if device.startswith("cuda") or quantize == "int4" else "float32"


Factory = Callable[[EngineSpec, Progress], "Engine | Mapping[str, Engine]"]
