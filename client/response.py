"""What the library returns to its callers, and how the events of a request become chunks and at last one outcome.

Bodies are read here, on the caller's side, so that a client's I/O thread never spends its time on them. Nothing here
knows threads or loops: `mailbox` brings the events.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from ..protocol import messages as m
from ..protocol import tasks
from ..protocol.errors import ErrorKind, RequestError, ZmqrtError, request_error
from ..protocol.tasks import FinishReason, TokenLogprobs, Usage
from .queue_place import QueuePlace

R = TypeVar("R")
Event = m.Partial | m.Final | m.Status | m.Welcome | QueuePlace | ZmqrtError
"""What the core reports of a request, a query or a wait for a connection. All but PARTIAL and places are the last."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """Some tokens of a stream.

    Attributes:
        text: What they add to the text; empty while the text is held back (half a character, maybe a stop string).
        token_ids: The new tokens; empty in a last chunk that only brings held-back text.
        index: Tokens before this chunk.
        pieces: The text of each token by itself.
        revision: Weights, dtype and engine that make this stream; "" where the broker did not tell.
        prompt_tokens: Tokens of the prompt, after the template; None where the node did not tell.
    """

    text: str
    token_ids: list[int]
    index: int
    pieces: list[str] = []
    logprobs: list[TokenLogprobs] | None = None
    revision: str = ""
    prompt_tokens: int | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A generation, whole: `text` is what was added to the prompt, without special tokens.

    `stop_index`: which of the texts in `stop` ended it; None if none did, or if its node did not tell.
    `reasoning_tokens`: how many of its tokens are thoughts, with their marks; 0 where its node did not tell.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    seed: int
    model: str
    revision: str
    request_id: str
    logprobs: list[TokenLogprobs] | None = None
    stop_index: int | None = None
    reasoning_tokens: int = 0


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """One vector (`array('f')`) for each input, in its order."""

    vectors: list[array[float]]
    usage: Usage
    model: str
    revision: str
    request_id: str


def read_result(final: m.Final, request_id: str) -> Result:
    """Read the end of a unary generation."""
    body = tasks.decode_answer(final.body, tasks.GenerateResult)
    return _result(final, body, (body.text or "") + body.tail, body.ids or [], body.logprobs, request_id)


def read_embeddings(final: m.Final, request_id: str) -> Embeddings:
    """Read the end of an embedding."""
    body = tasks.decode_answer(final.body, tasks.EmbedResult)
    return Embeddings(
        vectors=_rows(body.vectors, request_id),
        usage=body.usage,
        model=body.model,
        revision=body.revision,
        request_id=request_id,
    )


class StreamFold:
    """Fold the chunks of one stream into its result: chunk texts joined are always the result's text."""

    _revision = ""
    _prompt_tokens: int | None = None

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._pieces: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []

    def chunk(self, partial: m.Partial) -> Chunk:
        """Read one PARTIAL."""
        body = tasks.decode_answer(partial.body, tasks.GenerateChunk)
        if len(body.text) != partial.n:
            text = f"{partial.n} units were announced, and {len(body.text)} came"
            raise request_error(ErrorKind.MODEL_RAISED, text)
        self._pieces += body.text
        self._ids += body.ids
        if body.logprobs:
            self._logprobs += body.logprobs
        if partial.ext:
            self._learn(partial.ext)
        return Chunk(
            text="".join(body.text),
            token_ids=body.ids,
            index=partial.seq,
            pieces=body.text,
            logprobs=body.logprobs,
            revision=self._revision,
            prompt_tokens=self._prompt_tokens,
        )

    def end(self, final: m.Final) -> tuple[Chunk | None, Result]:
        """Read FINAL: a last chunk if text was held back, and the result."""
        body = tasks.decode_answer(final.body, tasks.GenerateResult)
        last = None
        if body.tail:
            self._pieces.append(body.tail)
            revision, prompt_tokens = self._revision, self._prompt_tokens
            last = Chunk(
                text=body.tail, token_ids=[], index=len(self._ids), revision=revision, prompt_tokens=prompt_tokens
            )
        result = _result(final, body, "".join(self._pieces), self._ids, self._logprobs or None, self._request_id)
        return last, result

    def _learn(self, ext: m.Ext) -> None:
        """Take what the first units tell about the whole stream."""
        revision, prompt_tokens = ext.get("revision"), ext.get("prompt_tokens")
        self._revision = revision if isinstance(revision, str) else self._revision
        self._prompt_tokens = prompt_tokens if isinstance(prompt_tokens, int) else self._prompt_tokens


def _result(
    final: m.Final,
    body: tasks.GenerateResult,
    text: str,
    ids: list[int],
    logprobs: list[TokenLogprobs] | None,
    request_id: str,
) -> Result:
    stop_index = thoughts = None
    if final.meta:
        stop_index, thoughts = final.meta.get("stop_index"), final.meta.get("reasoning_tokens")
    return Result(
        text=text,
        token_ids=ids,
        finish_reason=body.finish_reason,
        usage=body.usage,
        seed=body.seed,
        model=body.model,
        revision=body.revision,
        request_id=request_id,
        logprobs=logprobs,
        stop_index=stop_index if isinstance(stop_index, int) else None,
        reasoning_tokens=thoughts if isinstance(thoughts, int) else 0,
    )


def _rows(tensor: tasks.Tensor, request_id: str) -> list[array[float]]:
    """Cut a tensor into its rows; on the wire numbers are little-endian."""
    numbers = array("f")
    rows, columns = tensor.shape if len(tensor.shape) == 2 else (-1, 0)
    if rows < 0 or rows * columns * numbers.itemsize != len(tensor.data):
        text = f"the node answered {len(tensor.data)} bytes for vectors of shape {tensor.shape}"
        raise request_error(ErrorKind.MODEL_RAISED, text, request_id=request_id)
    numbers.frombytes(tensor.data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return [numbers[row * columns : (row + 1) * columns] for row in range(rows)]


class ResponseReader(Generic[R]):
    """Feed on the events of a request until it is done; then `outcome` returns its value or raises its error."""

    is_done = False
    on_wait: Callable[[QueuePlace], None] | None = None
    """Who wants to hear where the request stands while it waits."""
    _value: R | None = None
    _error: BaseException | None = None

    def __init__(
        self,
        request_id: str,
        read_chunk: Callable[[m.Partial], Chunk],
        read_end: Callable[[m.Final], tuple[Chunk | None, R]],
    ) -> None:
        self.request_id = request_id
        self._read_chunk = read_chunk
        self._read_end = read_end

    def feed(self, event: Event) -> Chunk | None:
        """Take one event; return the chunk that it brings."""
        try:
            match event:
                case m.Partial():
                    return self._read_chunk(event)
                case m.Final():
                    chunk, self._value = self._read_end(event)
                    self.is_done = True
                    return chunk
                case ZmqrtError():
                    self.fail(event)
                case QueuePlace():
                    if self.on_wait is not None:
                        self.on_wait(event)
                case m.Status() | m.Welcome():
                    raise AssertionError(event)
        except RequestError as error:  # raised by a body that is no answer at all
            text = f"the node's answer cannot be read: {error.text}"
            self.fail(request_error(ErrorKind.MODEL_RAISED, text, request_id=self.request_id))
        return None

    def fail(self, error: BaseException) -> None:
        """End without a value."""
        self.is_done = True
        self._error = error

    def outcome(self) -> R:
        """Return the value or raise the error; only once it is done."""
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value


def read_unary(request_id: str, read: Callable[[m.Final, str], R]) -> ResponseReader[R]:
    """Read an answer that comes whole."""
    return ResponseReader(request_id, _no_chunk, lambda final: (None, read(final, request_id)))


def _no_chunk(partial: m.Partial) -> Chunk:
    raise AssertionError(partial)  # the core passes none on


def read_stream(request_id: str) -> ResponseReader[Result]:
    """Read an answer that comes in chunks."""
    fold = StreamFold(request_id)
    return ResponseReader(request_id, fold.chunk, fold.end)


def read_generation(request_id: str, *, stream: bool) -> ResponseReader[Result]:
    """Read a generation either way."""
    return read_stream(request_id) if stream else read_unary(request_id, read_result)
