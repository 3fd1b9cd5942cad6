"""From results of the fleet to the JSON that OpenAI's clients read. Pure; the time comes in as seconds since 1970."""

from __future__ import annotations

import base64
import codecs
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from msgspec import UNSET, UnsetType

from ...client.response import Chunk, Embeddings, Result
from ...protocol.tasks import TokenLogprobs
from ..json_body import encode
from . import schema as s
from .tools import AskedTools, ChatReader

_REPLACEMENT = "\ufffd"
DONE = b"data: [DONE]\n\n"


Spelling = Callable[[int, bytes], str]
"""How a token is written: by its text, or (vLLM's `return_tokens_as_token_ids`) by its number."""


def event(body: object) -> bytes:
    """Write one event of a stream."""
    return b"data: " + encode(body) + b"\n\n"


def _usage(prompt_tokens: int, completion_tokens: int, thoughts: int = 0) -> s.TokenUsage:
    return s.TokenUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        completion_tokens_details=s.ThoughtTokens(reasoning_tokens=thoughts) if thoughts else UNSET,
    )


def _usage_of_all(results: Sequence[Result], per_prompt: int) -> s.TokenUsage:
    """Add up what choices took; a prompt counts once, however many answers it got."""
    read = sum(result.usage.prompt_tokens for result in results[::per_prompt])
    thoughts = sum(result.reasoning_tokens for result in results)
    return _usage(read, sum(result.usage.completion_tokens for result in results), thoughts)


def _finish_reason(result: Result) -> s.FinishReason:
    """Return why an answer is over, in the two words that clients know."""
    return "length" if result.finish_reason == "length" else "stop"


def _chat_finish_reason(result: Result, reader: ChatReader) -> s.ChatFinishReason:
    if reader.is_cut_short:
        return "length"  # whatever cut the call off: its arguments are not whole
    reason = _finish_reason(result)
    return "tool_calls" if reason == "stop" and reader.has_called else reason


# --- whole answers ---------------------------------------------------------------------------------------------------


def chat(
    results: Sequence[Result], per_prompt: int, id_: str, now: int, spelling: Spelling, asked: AskedTools
) -> s.ChatCompletion:
    """Build the answer to a chat."""
    choices = [_chat_choice(index, result, spelling, asked) for index, result in enumerate(results)]
    usage, first = _usage_of_all(results, per_prompt), results[0]
    return s.ChatCompletion(
        id=id_, created=now, model=first.model, system_fingerprint=first.revision or None, choices=choices, usage=usage
    )


def _chat_choice(index: int, result: Result, spelling: Spelling, asked: AskedTools) -> s.ChatChoice:
    reader = ChatReader(asked, index)
    message = reader.message(result.text)
    return s.ChatChoice(
        index=index,
        message=message,
        logprobs=chat_logprobs(result.logprobs, result.token_ids, spelling),
        finish_reason=_chat_finish_reason(result, reader),
    )


def completion(
    results: Sequence[Result], per_prompt: int, id_: str, now: int, spelling: Spelling, _asked: AskedTools
) -> s.Completion:
    """Build the answer to a completion, or to several: `per_prompt` choices for each prompt."""
    choices = [
        s.CompletionChoice(
            index=index,
            text=result.text,
            logprobs=completion_logprobs(result.logprobs, result.token_ids, Offsets(), spelling),
            finish_reason=_finish_reason(result),
        )
        for index, result in enumerate(results)
    ]
    usage, first = _usage_of_all(results, per_prompt), results[0]
    return s.Completion(
        id=id_, created=now, model=first.model, system_fingerprint=first.revision or None, choices=choices, usage=usage
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


_Choice = s.ChatChunkChoice | s.CompletionChoice


@dataclass(kw_only=True)
class _Stream:
    """What the events of every choice share. `fingerprint` and `prompt_tokens` are known once it has begun.

    `with_usage_so_far` is vLLM's `continuous_usage_stats`: the usage so far in each event.
    """

    id: str
    created: int
    model: str
    with_usage: bool
    with_usage_so_far: bool = False
    spelling: Spelling
    asked: AskedTools = AskedTools()
    index: int = 0
    fingerprint: str | None = None
    prompt_tokens: int | None = None
    offsets: Offsets = field(default_factory=Offsets)
    _made: int = 0
    _chunk: ClassVar[Callable[..., s.ChatChunk | s.Completion]]

    def of(self, chunk: Chunk) -> Iterator[bytes]:
        """Write a part: its text, and log probabilities where they were asked for."""
        self._learn(chunk.revision, chunk.prompt_tokens)
        yield from self._beginning()
        self._made += len(chunk.token_ids)
        choice = self._choice(chunk.text, chunk)
        if chunk.text or choice.logprobs is not None:
            yield self._event(choice)

    def idle(self) -> bytes:
        """Add nothing, so that a reader sees that it goes on: many clients know of nothing but `data:` lines."""
        return next(self._beginning(), b"") or self._event(self._choice(""))

    def end(self, result: Result) -> Iterator[bytes]:
        """Write the end of the answer, if this is its one choice."""
        yield from self.finish(result)
        yield from self.close([result], 1)

    def finish(self, result: Result) -> Iterator[bytes]:
        """Write why it is over."""
        self._learn(result.revision, result.usage.prompt_tokens)
        yield self._event(self._choice(None, finish_reason=_finish_reason(result)))

    def close(self, results: Sequence[Result], per_prompt: int) -> Iterator[bytes]:
        """Write what stands behind all choices: their usage if it was asked for, and that nothing follows."""
        if self.with_usage:
            yield self._event(usage=_usage_of_all(results, per_prompt))
        yield DONE

    def failure(self, told: object) -> bytes:
        """Write what went wrong, and no [DONE] that could be taken for the end."""
        return event(told)

    def _learn(self, revision: str, prompt_tokens: int | None) -> None:
        self.fingerprint = revision or self.fingerprint
        self.prompt_tokens = prompt_tokens

    def _beginning(self) -> Iterator[bytes]:
        """Yield what comes before the first text, once."""
        return iter(())

    def _usage_so_far(self) -> s.TokenUsage | UnsetType | None:
        """Return what an event says about usage: nothing, null, or (if it was asked for) how much it is by now."""
        if not self.with_usage:
            return UNSET
        if not self.with_usage_so_far or self.prompt_tokens is None:
            return None
        return _usage(self.prompt_tokens, self._made)

    def _event(self, *choices: _Choice, usage: s.TokenUsage | None = None) -> bytes:
        chunk = self._chunk(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=list(choices),
            usage=usage or self._usage_so_far(),
        )
        return event(chunk)

    def _choice(
        self, text: str | None, chunk: Chunk | None = None, finish_reason: s.FinishReason | None = None
    ) -> _Choice:
        raise NotImplementedError


class ChatStream(_Stream):
    """The events of a streamed chat: the first one says who speaks."""

    _chunk = s.ChatChunk
    _has_begun = False
    _reader: ChatReader | None = None

    def of(self, chunk: Chunk) -> Iterator[bytes]:
        """Write what a part says, thinks or calls; log probabilities are those of its tokens, whatever they are of."""
        self._learn(chunk.revision, chunk.prompt_tokens)
        yield from self._beginning()
        self._made += len(chunk.token_ids)
        logprobs = chat_logprobs(chunk.logprobs, chunk.token_ids, self.spelling)
        deltas = list(self._reading.feed(chunk.text)) or ([s.ChatDelta(content="")] if logprobs is not None else [])
        for delta in deltas:
            yield self._event(s.ChatChunkChoice(index=self.index, delta=delta, logprobs=logprobs))
            logprobs = None

    def finish(self, result: Result) -> Iterator[bytes]:
        """Write what waited for more of the answer, and why it is over."""
        self._learn(result.revision, result.usage.prompt_tokens)
        for delta in self._reading.finish():
            yield self._event(s.ChatChunkChoice(index=self.index, delta=delta))
        reason = _chat_finish_reason(result, self._reading)
        yield self._event(s.ChatChunkChoice(index=self.index, delta=s.ChatDelta(), finish_reason=reason))

    @property
    def _reading(self) -> ChatReader:
        if self._reader is None:
            self._reader = ChatReader(self.asked, self.index)
        return self._reader

    def _beginning(self) -> Iterator[bytes]:
        if not self._has_begun:
            self._has_begun = True
            yield self._event(s.ChatChunkChoice(index=self.index, delta=s.ChatDelta(role="assistant", content="")))

    def _choice(
        self, text: str | None, chunk: Chunk | None = None, finish_reason: s.FinishReason | None = None
    ) -> s.ChatChunkChoice:
        logprobs = chat_logprobs(chunk.logprobs, chunk.token_ids, self.spelling) if chunk else None
        delta = s.ChatDelta(content=text)
        return s.ChatChunkChoice(index=self.index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)


class CompletionStream(_Stream):
    """The events of a streamed completion."""

    _chunk = s.Completion

    def _choice(
        self, text: str | None, chunk: Chunk | None = None, finish_reason: s.FinishReason | None = None
    ) -> s.CompletionChoice:
        logprobs = completion_logprobs(chunk.logprobs, chunk.token_ids, self.offsets, self.spelling) if chunk else None
        return s.CompletionChoice(index=self.index, text=text or "", logprobs=logprobs, finish_reason=finish_reason)


class AnswerStream:
    """The events of a streamed answer with several choices, in whatever order they come."""

    def __init__(self, choices: Sequence[_Stream], per_prompt: int) -> None:
        self._choices = choices
        self._per_prompt = per_prompt
        self._results: dict[int, Result] = {}

    @property
    def is_over(self) -> bool:
        """Whether all choices have ended."""
        return len(self._results) == len(self._choices)

    def of(self, choice: int, chunk: Chunk) -> Iterator[bytes]:
        """Write a part of a choice."""
        return self._choices[choice].of(chunk)

    def end(self, choice: int, result: Result) -> Iterator[bytes]:
        """Write the end of a choice, and behind the last one that of the answer."""
        self._results[choice] = result
        yield from self._choices[choice].finish(result)
        if self.is_over:
            results = [self._results[index] for index in range(len(self._choices))]
            yield from self._choices[0].close(results, self._per_prompt)

    def idle(self) -> bytes:
        """Add nothing to a choice that has not ended."""
        return next(stream for index, stream in enumerate(self._choices) if index not in self._results).idle()

    def failure(self, told: object) -> bytes:
        """Write what one of them failed of."""
        return self._choices[0].failure(told)


# --- log probabilities -----------------------------------------------------------------------------------------------


def as_text(_token_id: int, spelled: bytes) -> str:
    """Write a token as its text; half a character as its replacement."""
    return spelled.decode("utf-8", "replace")


def as_id(token_id: int, _spelled: bytes) -> str:
    """Write a token as its number."""
    return f"token_id:{token_id}"


def chat_logprobs(
    logprobs: Sequence[TokenLogprobs] | None, ids: Sequence[int], spelling: Spelling
) -> s.ChatLogprobs | None:
    """Write log probabilities as chats have them; None where they were not asked for.

    The token that came is always among the likeliest, in the place of the last if it is none of them.
    """
    if logprobs is None:
        return None
    content: list[s.TokenLogprob] = []
    for token_id, token in zip(ids, logprobs, strict=True):
        likeliest = list(token.top.items())
        if likeliest and token_id not in token.top:
            likeliest[-1] = (token_id, token.logprob)
        top = [_likely(other, logprob, token, spelling) for other, logprob in likeliest]
        likely = _likely(token_id, token.logprob, token, spelling)
        content.append(s.TokenLogprob(token=likely.token, logprob=likely.logprob, bytes=likely.bytes, top_logprobs=top))
    return s.ChatLogprobs(content=content)


def completion_logprobs(
    logprobs: Sequence[TokenLogprobs] | None, ids: Sequence[int], offsets: Offsets, spelling: Spelling
) -> s.CompletionLogprobs | None:
    """Write log probabilities as completions have them: the token that came is always one of the likeliest."""
    if logprobs is None:
        return None
    pairs = list(zip(ids, logprobs, strict=True))
    return s.CompletionLogprobs(
        tokens=[spelling(token_id, token.spelled.get(token_id, b"")) for token_id, token in pairs],
        token_logprobs=[_finite(token.logprob) for token in logprobs],
        top_logprobs=[_by_token(token_id, token, spelling) for token_id, token in pairs],
        text_offset=[offsets.of(token.spelled.get(token_id, b"")) for token_id, token in pairs],
    )


def _by_token(token_id: int, token: TokenLogprobs, spelling: Spelling) -> dict[str, float]:
    """Write the likeliest, and the one that came: of two that are written alike (halves of characters), that token."""
    likeliest: dict[str, float] = {}
    for other, logprob in token.top.items():
        likeliest.setdefault(spelling(other, token.spelled.get(other, b"")), _finite(logprob))
    likeliest[spelling(token_id, token.spelled.get(token_id, b""))] = _finite(token.logprob)
    return likeliest


def _likely(token_id: int, logprob: float, token: TokenLogprobs, spelling: Spelling) -> s.Likely:
    spelled = token.spelled.get(token_id, b"")
    return s.Likely(token=spelling(token_id, spelled), logprob=_finite(logprob), bytes=list(spelled))


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what is very unlikely."""
    return max(logprob, -9999.0)
