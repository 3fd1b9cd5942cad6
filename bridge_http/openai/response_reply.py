"""From results of the fleet to the JSON that clients of the Responses API read, whole and as events. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import msgspec

from ...client.response import Chunk, Result
from ..json_body import KEEP_ALIVE, event
from . import response_schema as s
from .requests import DEFAULT_TEMPERATURE

_TEXT: Final = s.TextConfig(format=s.TextFormat(type="text"))
_BEFORE_TEXT: Final = 4
"""Events before the first text."""


def begun(request: s.ResponsesRequest, rid: str, created_at: int) -> s.ResponseReply:
    """Build an answer of which nothing is there yet."""
    return s.ResponseReply(
        id=f"resp_{rid}",
        created_at=created_at,
        status="in_progress",
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        model=request.model,
        temperature=DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
        text=request.text if request.text is not None and request.text.format is not None else _TEXT,
        top_p=1.0 if request.top_p is None else request.top_p,
    )


def ended(reply: s.ResponseReply, result: Result) -> s.ResponseReply:
    """Build the whole answer: one message with one text."""
    usage, is_whole = result.usage, result.finish_reason != "length"
    status: s.Status = "completed" if is_whole else "incomplete"
    return msgspec.structs.replace(
        reply,
        status=status,
        incomplete_details=None if is_whole else s.Incomplete(),
        model=result.model,
        output=[_message(reply, status, s.OutputText(text=result.text))],
        usage=s.ResponseUsage(
            input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, total_tokens=usage.total_tokens
        ),
    )


def _message(reply: s.ResponseReply, status: s.Status, *content: s.OutputText) -> s.OutputMessage:
    return s.OutputMessage(id=f"msg_{reply.id.removeprefix('resp_')}", status=status, content=list(content))


class ResponseEvents:
    """The events of a streamed answer, each named by its type.

    They are numbered by the units of the answer and not one by one, so that whoever comes back after a cut finds the
    numbers that it left.
    """

    def __init__(self, reply: s.ResponseReply) -> None:
        self._reply = reply
        self._number = -1
        self._place: dict[str, Any] = {"item_id": _message(reply, "in_progress").id, "output_index": 0}
        self._place["content_index"] = 0

    def of(self, chunk: Chunk) -> Iterator[bytes]:
        """Write a part: nothing as long as its text is held back."""
        yield from self._beginning()
        if not chunk.text:
            return
        yield from self._opening()
        self._number = max(self._number, _BEFORE_TEXT - 2 + chunk.index + (len(chunk.token_ids) or 1))
        yield self._event("response.output_text.delta", **self._place, delta=chunk.text, logprobs=())

    def idle(self) -> bytes:
        """Say that it goes on; there is no event for that."""
        return b"".join(self._beginning()) or KEEP_ALIVE

    def end(self, result: Result) -> Iterator[bytes]:
        """Write the whole text, and the whole answer with its usage."""
        yield from self._beginning()
        yield from self._opening()
        whole = ended(self._reply, result)
        message = whole.output[0]
        self._number = max(self._number, _BEFORE_TEXT + result.usage.completion_tokens)
        yield self._event("response.output_text.done", **self._place, text=result.text, logprobs=())
        yield self._event("response.content_part.done", **self._place, part=message.content[0])
        yield self._event("response.output_item.done", output_index=0, item=message)
        yield self._event(f"response.{whole.status}", response=whole)

    def failure(self, told: object) -> bytes:
        """Write what went wrong: in the fields of the event, and as an answer that failed, which clients raise."""
        body: dict[str, Any] = cast("dict[str, Any]", msgspec.to_builtins(told))
        error = body["error"]
        said = {name: error[name] for name in ("code", "message", "param")}
        return self._event("error", **said, error=error)

    def _beginning(self) -> Iterator[bytes]:
        """Write what comes before anything is known, once."""
        if self._number < 0:
            yield self._event("response.created", response=self._reply)
            yield self._event("response.in_progress", response=self._reply)

    def _opening(self) -> Iterator[bytes]:
        """Write what comes before the first text, once."""
        if self._number < _BEFORE_TEXT - 1:
            item = _message(self._reply, "in_progress")
            yield self._event("response.output_item.added", output_index=0, item=item)
            yield self._event("response.content_part.added", **self._place, part=s.OutputText(text=""))

    def _event(self, type_: str, **fields: object) -> bytes:
        self._number += 1
        return event(type_, {"type": type_, "sequence_number": self._number, **fields})
