"""From results of the fleet to the JSON that clients of the Messages API read, whole and as events. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...client.response import Chunk, Result
from ..json_body import event
from . import message_schema as s


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedMessage:
    """What an answer repeats of its request, or is read by."""

    id: str
    model: str
    max_tokens: int
    stops: Sequence[str]

    def ending(self, result: Result) -> tuple[s.StopReason, str | None]:
        """Return why an answer is over, and the stop sequence that ended it."""
        if result.finish_reason == "length":
            is_full = result.usage.completion_tokens < self.max_tokens
            return ("model_context_window_exceeded" if is_full else "max_tokens"), None
        at = result.stop_index
        if at is not None and 0 <= at < len(self.stops):
            return "stop_sequence", self.stops[at]
        return "end_turn", None


def whole(result: Result, asked: AskedMessage) -> s.MessageReply:
    """Build the answer to a request. Without any text it has no block, as there."""
    reason, stop = asked.ending(result)
    return s.MessageReply(
        id=asked.id,
        model=result.model,
        content=[s.TextBlock(text=result.text)] if result.text else [],
        stop_reason=reason,
        stop_sequence=stop,
        usage=_usage(result),
    )


class MessageEvents:
    """The events of a streamed answer, each named by its type."""

    def __init__(self, asked: AskedMessage) -> None:
        self._asked = asked
        self._has_begun = False
        self._has_block = False

    def of(self, chunk: Chunk) -> Iterator[bytes]:
        """Write a part: nothing as long as its text is held back."""
        yield from self._beginning(chunk.prompt_tokens or 0)
        if not chunk.text:
            return
        if not self._has_block:
            self._has_block = True
            yield _event("content_block_start", index=0, content_block=s.TextBlock(text=""))
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": chunk.text})

    def idle(self) -> bytes:
        """Say that it goes on."""
        return b"".join(self._beginning(0)) or _event("ping")

    def end(self, result: Result) -> Iterator[bytes]:
        """Write why it is over, and the usage, which is the one that counts: at the beginning it may not be known."""
        yield from self._beginning(result.usage.prompt_tokens)
        if self._has_block:
            yield _event("content_block_stop", index=0)
        reason, stop = self._asked.ending(result)
        yield _event("message_delta", delta={"stop_reason": reason, "stop_sequence": stop}, usage=_usage(result))
        yield _event("message_stop")

    def failure(self, told: object) -> bytes:
        """Write what went wrong."""
        return event("error", told)

    def _beginning(self, prompt_tokens: int) -> Iterator[bytes]:
        """Write what comes before the first text, once."""
        if self._has_begun:
            return
        self._has_begun = True
        usage = s.MessageUsage(input_tokens=prompt_tokens, output_tokens=0)
        message = s.MessageReply(id=self._asked.id, model=self._asked.model, content=[], usage=usage)
        yield _event("message_start", message=message)
        yield _event("ping")


def _event(type_: str, **fields: object) -> bytes:
    return event(type_, {"type": type_, **fields})


def _usage(result: Result) -> s.MessageUsage:
    usage = result.usage
    return s.MessageUsage(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)
