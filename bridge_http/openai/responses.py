"""From results of the fleet to the JSON that OpenAI's clients read. Pure; the time comes in as seconds since 1970."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec import UNSET

from ...client.results import Chunk, Embeddings, Result
from ...protocol.tasks import TokenLogprobs
from ..errors import encode
from . import schema as s

DONE = b"data: [DONE]\n\n"


def event(body: object) -> bytes:
    """Write one event of a stream."""
    return b"data: " + encode(body) + b"\n\n"


def usage_of(result: Result) -> s.Usage:
    """Count tokens."""
    usage = result.usage
    return s.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )


def finish_reason(result: Result) -> s.FinishReason:
    """Say why an answer is over, in the two words that clients know."""
    return "length" if result.finish_reason == "length" else "stop"


# --- whole answers ---------------------------------------------------------------------------------------------------


def chat(result: Result, id_: str, now: int) -> s.ChatCompletion:
    """Build the answer to a chat."""
    choice = s.ChatChoice(
        message=s.ReplyMessage(content=result.text),
        logprobs=chat_logprobs(result.logprobs, result.token_ids),
        finish_reason=finish_reason(result),
    )
    return s.ChatCompletion(
        id=id_,
        created=now,
        model=result.model,
        system_fingerprint=result.revision or None,
        choices=[choice],
        usage=usage_of(result),
    )


def completion(result: Result, id_: str, now: int) -> s.Completion:
    """Build the answer to a completion."""
    choice = s.CompletionChoice(
        text=result.text,
        logprobs=completion_logprobs(result.logprobs, result.token_ids, 0),
        finish_reason=finish_reason(result),
    )
    return s.Completion(
        id=id_,
        created=now,
        model=result.model,
        system_fingerprint=result.revision or None,
        choices=[choice],
        usage=usage_of(result),
    )


def embeddings(found: Embeddings, *, is_base64: bool) -> s.EmbeddingList:
    """Build the answer to an embedding."""
    data = [
        s.Embedding(index=index, embedding=_base64(vector) if is_base64 else list(vector))
        for index, vector in enumerate(found.vectors)
    ]
    count = found.usage.prompt_tokens
    usage = s.EmbeddingUsage(prompt_tokens=count, total_tokens=count)
    return s.EmbeddingList(data=data, model=found.model, usage=usage)


def _base64(vector: array[float]) -> str:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")


# --- streams ---------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ChatStream:
    """The events of a streamed chat."""

    id: str
    created: int
    model: str
    with_usage: bool
    fingerprint: str = ""
    _has_begun: bool = False

    def first(self) -> bytes | None:
        """Begin: who speaks; None if that has been said."""
        return None if self._has_begun else self._begin()

    def idle(self) -> bytes:
        """Add nothing, so that a reader sees that it goes on."""
        return self._event([s.ChatChunkChoice(delta=s.Delta(content=""))]) if self._has_begun else self._begin()

    def _begin(self) -> bytes:
        self._has_begun = True
        return self._event([s.ChatChunkChoice(delta=s.Delta(role="assistant", content=""))])

    def piece(self, chunk: Chunk) -> bytes | None:
        """Add text, and log probabilities where they were asked for; None if there is nothing to tell."""
        logprobs = chat_logprobs(chunk.logprobs, chunk.token_ids)
        if not chunk.text and logprobs is None:
            return None
        return self._event([s.ChatChunkChoice(delta=s.Delta(content=chunk.text), logprobs=logprobs)])

    def last(self, result: Result) -> Iterable[bytes]:
        """End: why, and the usage if it was asked for."""
        yield self._event([s.ChatChunkChoice(delta=s.Delta(), finish_reason=finish_reason(result))])
        if self.with_usage:
            yield self._event([], usage_of(result))

    def _event(self, choices: list[s.ChatChunkChoice], usage: s.Usage | None = None) -> bytes:
        chunk = s.ChatChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint or None,
            choices=choices,
            usage=usage if self.with_usage else UNSET,
        )
        return event(chunk)


@dataclass(kw_only=True)
class CompletionStream:
    """The events of a streamed completion."""

    id: str
    created: int
    model: str
    with_usage: bool
    fingerprint: str = ""
    _offset: int = 0

    def first(self) -> bytes | None:
        """Begin: nothing is said before the first text."""
        return None

    def idle(self) -> bytes:
        """Add nothing, so that a reader sees that it goes on."""
        return self._event([s.CompletionChoice(text="", finish_reason=None)])

    def piece(self, chunk: Chunk) -> bytes | None:
        """Add text, and log probabilities where they were asked for; None if there is nothing to tell."""
        logprobs = completion_logprobs(chunk.logprobs, chunk.token_ids, self._offset)
        self._offset += len(chunk.text)
        if not chunk.text and logprobs is None:
            return None
        return self._event([s.CompletionChoice(text=chunk.text, logprobs=logprobs, finish_reason=None)])

    def last(self, result: Result) -> Iterable[bytes]:
        """End: why, and the usage if it was asked for."""
        yield self._event([s.CompletionChoice(text="", finish_reason=finish_reason(result))])
        if self.with_usage:
            yield self._event([], usage_of(result))

    def _event(self, choices: list[s.CompletionChoice], usage: s.Usage | None = None) -> bytes:
        chunk = s.Completion(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint or None,
            choices=choices,
            usage=usage if self.with_usage else UNSET,
        )
        return event(chunk)


# --- log probabilities -----------------------------------------------------------------------------------------------


def chat_logprobs(told: Sequence[TokenLogprobs] | None, ids: Sequence[int]) -> s.ChatLogprobs | None:
    """Write log probabilities as chats have them; None where they were not asked for."""
    if told is None:
        return None
    content: list[s.TokenLogprob] = []
    for token_id, one in zip(ids, told, strict=True):
        own = one.spelled.get(token_id, b"")
        top = [_likely(one.spelled.get(other, b""), logprob) for other, logprob in one.top.items()]
        likely = _likely(own, one.logprob)
        content.append(s.TokenLogprob(token=likely.token, logprob=likely.logprob, bytes=likely.bytes, top_logprobs=top))
    return s.ChatLogprobs(content=content)


def completion_logprobs(
    told: Sequence[TokenLogprobs] | None, ids: Sequence[int], offset: int
) -> s.CompletionLogprobs | None:
    """Write log probabilities as completions have them; `offset` is the length of the text before."""
    if told is None:
        return None
    tokens = [_read(one.spelled.get(token_id, b"")) for token_id, one in zip(ids, told, strict=True)]
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return s.CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[_finite(one.logprob) for one in told],
        top_logprobs=[
            {_read(one.spelled.get(other, b"")): _finite(logprob) for other, logprob in one.top.items()} for one in told
        ],
        text_offset=offsets,
    )


def _likely(spelled: bytes, logprob: float) -> s.Likely:
    return s.Likely(token=_read(spelled), logprob=_finite(logprob), bytes=list(spelled))


def _read(spelled: bytes) -> str:
    return spelled.decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what is very unlikely."""
    return max(logprob, -9999.0)
