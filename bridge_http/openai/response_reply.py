"""From results of the fleet to the JSON that clients of the Responses API read, whole and as events. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import msgspec
from msgspec import UNSET

from ...client.response import Chunk, Result
from ...protocol.markup import CalledTool, Content, Delta, Reasoning, Tools, call_id
from ...protocol.tool_calls import text_arguments
from ..deltas import DeltaReader
from ..json_body import KEEP_ALIVE, event
from . import response_schema as s
from .requests import DEFAULT_TEMPERATURE
from .schema import ThoughtTokens

_TEXT: Final = s.TextConfig(format=s.TextFormat(type="text"))


class AnswerFrame:
    """What an answer repeats of its request, and the items that its parts become."""

    def __init__(self, request: s.ResponsesRequest, rid: bytes, created_at: int) -> None:
        self._rid = rid
        tools = list(request.tools or [])
        asked = () if request.tool_choice == "none" else tools
        self._callable: Tools = {tool.name: text_arguments(tool.parameters) for tool in asked}
        self._namespaces = {tool.name: tool.namespace for tool in tools}
        self.begun = s.ResponseReply(
            id=f"resp_{rid.hex()}",
            created_at=created_at,
            status="in_progress",
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata or {},
            model=request.model,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            temperature=DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
            text=request.text if request.text is not None and request.text.format is not None else _TEXT,
            tool_choice=request.tool_choice or "auto",
            tools=tools,
            top_p=1.0 if request.top_p is None else request.top_p,
        )

    def reader(self) -> DeltaReader:
        """Make what takes the answer apart."""
        return DeltaReader(self._callable, is_one=not self.begun.parallel_tool_calls)

    def item(self, place: int, delta: Delta, status: s.Status) -> s.OutputItem:
        """Build the item of a part."""
        name = f"{self._rid.hex()}_{place}"
        match delta:
            case Content(text):
                return s.OutputMessage(id=f"msg_{name}", status=status, content=[s.OutputText(text=text)])
            case Reasoning(text):
                return s.OutputThought(id=f"rs_{name}", status=status, content=[s.ThoughtText(text=text)])
            case CalledTool(number, called, arguments):
                id_ = call_id(self._rid, number)
                group = self._namespaces.get(called, UNSET)
                return s.OutputCall(id=f"fc_{name}", call_id=id_, name=called, arguments=arguments, namespace=group)

    def whole(self, result: Result) -> s.ResponseReply:
        """Build the answer; of one that says nothing there is a message without words."""
        reader = self.reader()
        parts = reader.whole(result.text) or [Content("")]
        last, status = len(parts) - 1, _status(result, reader)
        items = [self.item(at, part, status if at == last else "completed") for at, part in enumerate(parts)]
        return self.ended(result, items, status)

    def ended(self, result: Result, items: list[s.OutputItem], status: s.Status) -> s.ResponseReply:
        """Build the answer from its items."""
        usage = result.usage
        return msgspec.structs.replace(
            self.begun,
            status=status,
            incomplete_details=s.Incomplete() if status == "incomplete" else None,
            model=result.model,
            output=items,
            usage=s.ResponseUsage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                output_tokens_details=ThoughtTokens(reasoning_tokens=result.reasoning_tokens),
                total_tokens=usage.total_tokens,
            ),
        )


def _status(result: Result, reader: DeltaReader) -> s.Status:
    return "incomplete" if result.finish_reason == "length" or reader.is_cut_short else "completed"


class ResponseEvents:
    """The events of a streamed answer, each named by its type.

    A number counts the units so far and the events that are no further piece of a text, so it does not depend on how
    many units came at once: whoever comes back after a cut finds numbers above those that it has.
    """

    def __init__(self, frame: AnswerFrame) -> None:
        self._frame = frame
        self._reader = frame.reader()
        self._items: list[s.OutputItem] = []
        self._kind: type[Content | Reasoning] | None = None
        """Of what the item is that is being written; where it stands, and its text so far."""
        self._place: dict[str, Any] = {}
        self._pieces: list[str] = []
        self._units = 0
        self._events = 0

    def of(self, chunk: Chunk) -> Iterator[bytes]:
        """Write a part: nothing as long as its text is held back."""
        yield from self._beginning()
        self._units = chunk.index + (len(chunk.token_ids) or 1)
        for delta in self._reader.feed(chunk.text):
            yield from self._write(delta)

    def idle(self) -> bytes:
        """Say that it goes on; there is no event for that."""
        return b"".join(self._beginning()) or KEEP_ALIVE

    def end(self, result: Result) -> Iterator[bytes]:
        """Write what waited for more, and the whole answer with its usage."""
        yield from self._beginning()
        for delta in self._reader.finish():
            yield from self._write(delta)
        if not self._items and self._kind is None:
            yield from self._begin(Content)
        status = _status(result, self._reader)
        yield from self._close(status)
        whole = self._frame.ended(result, self._items, status)
        yield self._event(f"response.{whole.status}", response=whole)

    def failure(self, told: object) -> bytes:
        """Write what went wrong: in the fields of the event, and as an answer that failed, which clients raise."""
        body: dict[str, Any] = cast("dict[str, Any]", msgspec.to_builtins(told))
        error = body["error"]
        said = {name: error[name] for name in ("code", "message", "param")}
        return self._event("error", **said, error=error)

    def _beginning(self) -> Iterator[bytes]:
        """Write what comes before anything is known, once."""
        if not self._events:
            yield self._event("response.created", response=self._frame.begun)
            yield self._event("response.in_progress", response=self._frame.begun)

    def _write(self, delta: Delta) -> Iterator[bytes]:
        if isinstance(delta, CalledTool):
            yield from self._call(delta)
            return
        is_first = self._kind is not type(delta)
        if is_first:
            yield from self._begin(type(delta))
        self._pieces.append(delta.text)
        yield self._text_event("delta", is_counted=is_first, delta=delta.text)

    def _begin(self, kind: type[Content | Reasoning]) -> Iterator[bytes]:
        yield from self._close("completed")
        self._kind, self._pieces = kind, []
        item = self._item("in_progress")
        self._place = {"item_id": item.id, "output_index": len(self._items), "content_index": 0}
        begun = msgspec.structs.replace(item, content=[])
        yield self._event("response.output_item.added", output_index=len(self._items), item=begun)
        yield self._event("response.content_part.added", **self._place, part=item.content[0])

    def _close(self, status: s.Status) -> Iterator[bytes]:
        if self._kind is None:
            return
        item = self._item(status)
        yield self._text_event("done", text="".join(self._pieces))
        yield self._event("response.content_part.done", **self._place, part=item.content[0])
        yield from self._done(item)
        self._kind = None

    def _call(self, called: CalledTool) -> Iterator[bytes]:
        yield from self._close("completed")
        item = cast("s.OutputCall", self._frame.item(len(self._items), called, "completed"))
        begun = msgspec.structs.replace(item, status="in_progress", arguments="")
        place: dict[str, Any] = {"item_id": item.id, "output_index": len(self._items)}
        yield self._event("response.output_item.added", output_index=len(self._items), item=begun)
        name = "response.function_call_arguments"
        yield self._event(f"{name}.delta", **place, delta=item.arguments)
        yield self._event(f"{name}.done", **place, name=item.name, arguments=item.arguments)
        yield from self._done(item)

    def _done(self, item: s.OutputItem) -> Iterator[bytes]:
        yield self._event("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)

    def _item(self, status: s.Status) -> s.OutputMessage | s.OutputThought:
        """Return the item that is being written, as far as it goes."""
        assert self._kind is not None
        delta = self._kind("".join(self._pieces))
        return cast("s.OutputMessage | s.OutputThought", self._frame.item(len(self._items), delta, status))

    def _text_event(self, step: str, *, is_counted: bool = True, **fields: object) -> bytes:
        is_said = self._kind is Content
        name = "output_text" if is_said else "reasoning_text"
        logprobs: dict[str, Any] = {"logprobs": ()} if is_said else {}
        return self._event(f"response.{name}.{step}", is_counted=is_counted, **self._place, **fields, **logprobs)

    def _event(self, type_: str, *, is_counted: bool = True, **fields: object) -> bytes:
        self._events += is_counted
        number = max(0, self._units - 1) + self._events - 1
        return event(type_, {"type": type_, "sequence_number": number, **fields})
