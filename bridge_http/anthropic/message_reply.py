"""From results of the fleet to the JSON that clients of the Messages API read, whole and as events. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec

from ...client.response import Chunk, Result
from ...protocol.markup import CalledTool, Content, Delta, Reasoning, Tools, call_id
from ..deltas import DeltaReader
from ..json_body import event
from . import message_schema as s

Block = s.TextBlock | s.ThinkingBlock | s.ToolUseBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedMessage:
    """What an answer repeats of its request, or is read by; `rid` is of which request the ids of calls are made."""

    rid: bytes
    model: str
    max_tokens: int
    stops: Sequence[str] = ()
    tools: Tools = ()
    is_one_call: bool = False

    @property
    def id(self) -> str:
        """Name the answer."""
        return f"msg_{self.rid.hex()}"

    def reader(self) -> DeltaReader:
        """Make what takes the answer apart."""
        return DeltaReader(self.tools, is_one=self.is_one_call)

    def ending(self, result: Result, reader: DeltaReader) -> tuple[s.StopReason, str | None]:
        """Return why an answer is over, and the stop sequence that ended it."""
        if result.finish_reason == "length":
            is_full = result.usage.completion_tokens < self.max_tokens
            return ("model_context_window_exceeded" if is_full else "max_tokens"), None
        if reader.is_cut_short:
            return "max_tokens", None  # whatever cut the call off: its input is not whole
        if reader.has_called:
            return "tool_use", None
        at = result.stop_index
        if at is not None and 0 <= at < len(self.stops):
            return "stop_sequence", self.stops[at]
        return "end_turn", None

    def call(self, called: CalledTool) -> s.ToolUseBlock:
        """Build the block of a call. Arguments that are no object (of one cut short) are told as Anthropic does."""
        try:
            given: Any = msgspec.json.decode(called.arguments)
        except (msgspec.DecodeError, RecursionError):
            given = None
        arguments = cast("dict[str, Any]", given) if isinstance(given, dict) else {"INVALID_JSON": called.arguments}
        return s.ToolUseBlock(id=call_id(self.rid, called.number), name=called.name, input=arguments)


def whole(result: Result, asked: AskedMessage) -> s.MessageReply:
    """Build the answer to a request. Without any text it has no block, as there."""
    reader = asked.reader()
    blocks = [_block(delta, asked) for delta in reader.whole(result.text)]
    reason, stop = asked.ending(result, reader)
    return s.MessageReply(
        id=asked.id,
        model=result.model,
        content=blocks,
        stop_reason=reason,
        stop_sequence=stop,
        usage=_usage(result),
    )


def _block(delta: Delta, asked: AskedMessage) -> Block:
    match delta:
        case Content(text):
            return s.TextBlock(text=text)
        case Reasoning(text):
            return s.ThinkingBlock(thinking=text)
        case CalledTool():
            return asked.call(delta)


class MessageEvents:
    """The events of a streamed answer, each named by its type."""

    def __init__(self, asked: AskedMessage) -> None:
        self._asked = asked
        self._reader = asked.reader()
        self._has_begun = False
        self._open: Literal["", "text", "thinking"] = ""
        self._index = -1

    def of(self, chunk: Chunk) -> Iterator[bytes]:
        """Write a part: nothing as long as its text is held back."""
        yield from self._beginning(chunk.prompt_tokens or 0)
        for delta in self._reader.feed(chunk.text):
            yield from self._write(delta)

    def idle(self) -> bytes:
        """Say that it goes on."""
        return b"".join(self._beginning(0)) or _event("ping")

    def end(self, result: Result) -> Iterator[bytes]:
        """Write why it is over, and the usage, which is the one that counts: at the beginning it may not be known."""
        yield from self._beginning(result.usage.prompt_tokens)
        for delta in self._reader.finish():
            yield from self._write(delta)
        yield from self._close()
        reason, stop = self._asked.ending(result, self._reader)
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

    def _write(self, delta: Delta) -> Iterator[bytes]:
        match delta:
            case Content(text):
                if self._open != "text":
                    yield from self._begin(s.TextBlock(text=""))
                    self._open = "text"
                yield self._delta(type="text_delta", text=text)
            case Reasoning(text):
                if self._open != "thinking":
                    yield from self._begin(s.ThinkingBlock(thinking=""))
                    self._open = "thinking"
                yield self._delta(type="thinking_delta", thinking=text)
            case CalledTool():
                block = self._asked.call(delta)
                yield from self._begin(msgspec.structs.replace(block, input={}))
                yield self._delta(type="input_json_delta", partial_json=msgspec.json.encode(block.input).decode())
                yield _event("content_block_stop", index=self._index)

    def _begin(self, block: Block) -> Iterator[bytes]:
        yield from self._close()
        self._index += 1
        yield _event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> Iterator[bytes]:
        if self._open:
            self._open = ""
            yield _event("content_block_stop", index=self._index)

    def _delta(self, **delta: str) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)


def _event(type_: str, **fields: object) -> bytes:
    return event(type_, {"type": type_, **fields})


def _usage(result: Result) -> s.MessageUsage:
    usage = result.usage
    return s.MessageUsage(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)
