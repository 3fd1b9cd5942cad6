"""From results of the fleet to the JSON that OpenAI's clients read. Pure; the time comes in as seconds since 1970."""

from __future__ import annotations

import base64
import codecs
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from ...client.results import Chunk, Embeddings, Result
from ...protocol.tasks import TokenLogprobs
from ..json_body import encode
from . import schema as s

_REPLACEMENT = "\ufffd"
DONE = b"data: [DONE]\n\n"


def event(body: object) -> bytes:
    """Write one event of a stream."""
    return b"data: " + encode(body) + b"\n\n"


def usage_of(result: Result) -> s.TokenUsage:
    """Count tokens."""
    usage = result.usage
    return s.TokenUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )


def finish_reason(result: Result) -> s.FinishReason:
    """Say why an answer is over, in the two words that clients know."""
    return "length" if result.finish_reason == "length" else "stop"


# --- whole answers ---------------------------------------------------------------------------------------------------


def chat(result: Result, id_: str, now: int, spelling: Spelling) -> s.ChatCompletion:
    """Build the answer to a chat."""
    choice = s.ChatChoice(
        message=s.ReplyMessage(content=result.text),
        logprobs=chat_logprobs(result.logprobs, result.token_ids, spelling),
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


def completion(result: Result, id_: str, now: int, spelling: Spelling) -> s.Completion:
    """Build the answer to a completion."""
    choice = s.CompletionChoice(
        text=result.text,
        logprobs=completion_logprobs(result.logprobs, result.token_ids, Offsets(), spelling),
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


class Offsets:
    """Where tokens begin in the text: a function of their bytes alone, and so the same whole, streamed or resumed."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def of(self, spelled: bytes) -> int:
        """Return where the next token begins: at the character that it goes on with, if that is not whole yet."""
        waiting, begins = self._decoder.getstate()[0], self._at
        text = self._decoder.decode(spelled)
        self._at += len(text)
        if waiting and text.startswith(_REPLACEMENT) and not (waiting + spelled).startswith(_REPLACEMENT.encode()):
            begins += len(waiting.decode("utf-8", "replace"))  # what waited has turned out to be no character
        return begins


@dataclass(kw_only=True)
class _Stream:
    """What the events of every stream share. `fingerprint` and `prompt_tokens` are known once it has begun."""

    id: str
    created: int
    model: str
    with_usage: bool
    with_usage_so_far: bool = False
    """vLLM's `continuous_usage_stats`: the usage so far in each event."""
    spelling: Spelling
    fingerprint: str | None = None
    prompt_tokens: int | None = None
    offsets: Offsets = field(default_factory=Offsets)
    _made: int = 0
    _has_begun: bool = False

    def learn(self, revision: str, prompt_tokens: int | None) -> None:
        """Note what a part of the stream tells about all of it."""
        self.fingerprint = revision or self.fingerprint
        self.prompt_tokens = prompt_tokens

    def count(self, chunk: Chunk) -> None:
        """Note that tokens were made."""
        self._made += len(chunk.token_ids)

    def usage_so_far(self) -> s.TokenUsage | UnsetType | None:
        """Return what each event says about usage: nothing, null, or (if it was asked for) how much it is by now."""
        if not self.with_usage:
            return UNSET
        if not self.with_usage_so_far or self.prompt_tokens is None:
            return None
        return s.TokenUsage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self._made,
            total_tokens=self.prompt_tokens + self._made,
        )


class ChatStream(_Stream):
    """The events of a streamed chat."""

    def first(self) -> bytes | None:
        """Begin: who speaks; None if that has been said."""
        return None if self._has_begun else self._begin()

    def idle(self) -> bytes:
        """Add nothing, so that a reader sees that it goes on."""
        return self._event([s.ChatChunkChoice(delta=s.ChatDelta(content=""))]) if self._has_begun else self._begin()

    def _begin(self) -> bytes:
        self._has_begun = True
        return self._event([s.ChatChunkChoice(delta=s.ChatDelta(role="assistant", content=""))])

    def piece(self, chunk: Chunk) -> bytes | None:
        """Add text, and log probabilities where they were asked for; None if there is nothing to tell."""
        self.count(chunk)
        logprobs = chat_logprobs(chunk.logprobs, chunk.token_ids, self.spelling)
        if not chunk.text and logprobs is None:
            return None
        return self._event([s.ChatChunkChoice(delta=s.ChatDelta(content=chunk.text), logprobs=logprobs)])

    def last(self, result: Result) -> Iterable[bytes]:
        """End: why, and the usage if it was asked for."""
        yield self._event([s.ChatChunkChoice(delta=s.ChatDelta(), finish_reason=finish_reason(result))])
        if self.with_usage:
            yield self._event([], usage_of(result))

    def _event(self, choices: list[s.ChatChunkChoice], usage: s.TokenUsage | None = None) -> bytes:
        chunk = s.ChatChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=choices,
            usage=usage or self.usage_so_far(),
        )
        return event(chunk)


class CompletionStream(_Stream):
    """The events of a streamed completion."""

    def first(self) -> bytes | None:
        """Begin: nothing is said before the first text."""
        return None

    def idle(self) -> bytes:
        """Add nothing, so that a reader sees that it goes on."""
        return self._event([s.CompletionChoice(text="", finish_reason=None)])

    def piece(self, chunk: Chunk) -> bytes | None:
        """Add text, and log probabilities where they were asked for; None if there is nothing to tell."""
        self.count(chunk)
        logprobs = completion_logprobs(chunk.logprobs, chunk.token_ids, self.offsets, self.spelling)
        if not chunk.text and logprobs is None:
            return None
        return self._event([s.CompletionChoice(text=chunk.text, logprobs=logprobs, finish_reason=None)])

    def last(self, result: Result) -> Iterable[bytes]:
        """End: why, and the usage if it was asked for."""
        yield self._event([s.CompletionChoice(text="", finish_reason=finish_reason(result))])
        if self.with_usage:
            yield self._event([], usage_of(result))

    def _event(self, choices: list[s.CompletionChoice], usage: s.TokenUsage | None = None) -> bytes:
        chunk = s.Completion(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=choices,
            usage=usage or self.usage_so_far(),
        )
        return event(chunk)


# --- log probabilities -----------------------------------------------------------------------------------------------

Spelling = Callable[[int, bytes], str]
"""How a token is written: by its text, or (vLLM's `return_tokens_as_token_ids`) by its number."""


def as_text(_token_id: int, spelled: bytes) -> str:
    """Write a token as its text; half a character as its replacement."""
    return spelled.decode("utf-8", "replace")


def as_id(token_id: int, _spelled: bytes) -> str:
    """Write a token as its number."""
    return f"token_id:{token_id}"


def chat_logprobs(
    told: Sequence[TokenLogprobs] | None, ids: Sequence[int], spelling: Spelling
) -> s.ChatLogprobs | None:
    """Write log probabilities as chats have them; None where they were not asked for.

    The token that came is always among the likeliest, in the place of the last if it is none of them.
    """
    if told is None:
        return None
    content: list[s.TokenLogprob] = []
    for token_id, one in zip(ids, told, strict=True):
        likeliest = list(one.top.items())
        if likeliest and token_id not in one.top:
            likeliest[-1] = (token_id, one.logprob)
        top = [_likely(other, logprob, one, spelling) for other, logprob in likeliest]
        likely = _likely(token_id, one.logprob, one, spelling)
        content.append(s.TokenLogprob(token=likely.token, logprob=likely.logprob, bytes=likely.bytes, top_logprobs=top))
    return s.ChatLogprobs(content=content)


def completion_logprobs(
    told: Sequence[TokenLogprobs] | None, ids: Sequence[int], offsets: Offsets, spelling: Spelling
) -> s.CompletionLogprobs | None:
    """Write log probabilities as completions have them: the token that came is always one of the likeliest."""
    if told is None:
        return None
    pairs = list(zip(ids, told, strict=True))
    return s.CompletionLogprobs(
        tokens=[spelling(token_id, one.spelled.get(token_id, b"")) for token_id, one in pairs],
        token_logprobs=[_finite(one.logprob) for one in told],
        top_logprobs=[_by_token(token_id, one, spelling) for token_id, one in pairs],
        text_offset=[offsets.of(one.spelled.get(token_id, b"")) for token_id, one in pairs],
    )


def _by_token(token_id: int, one: TokenLogprobs, spelling: Spelling) -> dict[str, float]:
    """Write the likeliest, and the one that came: of two that are written alike (halves of characters), that one."""
    likeliest: dict[str, float] = {}
    for other, logprob in one.top.items():
        likeliest.setdefault(spelling(other, one.spelled.get(other, b"")), _finite(logprob))
    likeliest[spelling(token_id, one.spelled.get(token_id, b""))] = _finite(one.logprob)
    return likeliest


def _likely(token_id: int, logprob: float, one: TokenLogprobs, spelling: Spelling) -> s.Likely:
    spelled = one.spelled.get(token_id, b"")
    return s.Likely(token=spelling(token_id, spelled), logprob=_finite(logprob), bytes=list(spelled))


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what is very unlikely."""
    return max(logprob, -9999.0)
