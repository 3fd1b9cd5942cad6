"""Tools of a chat: from its request to a task, and from the text of an answer to calls, as OpenAI writes both. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from msgspec import UNSET, UnsetType

from ...protocol import markup
from ...protocol.faults import show
from ...protocol.tasks import ChatMessage, Tool, ToolCall
from ...protocol.tool_calls import text_arguments
from ..errors import InvalidRequestError
from ..json_body import encode
from . import schema as s

NAMES: Final = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
"""The fields of a request that are about this."""


def tool_fields(request: s.ChatRequest) -> dict[str, Any]:
    """Return the fields of the task; none where no tool is given. Raises InvalidRequestError."""
    choice = request.tool_choice
    if not request.tools:
        if choice is not None and choice not in ("none", "auto"):
            text = (
                f"tool_choice: {show(choice) if isinstance(choice, str) else 'a tool'} is meant, and there are no tools"
            )
            raise InvalidRequestError(text, param="tool_choice")
        return {}
    tools = [_tool(one.function) for one in request.tools]
    fields: dict[str, Any] = {"tools": tools}
    if isinstance(choice, s.NamedTool):
        if choice.function.name not in {tool.name for tool in tools}:
            text = f"tool_choice: there is no tool {show(choice.function.name)}"
            raise InvalidRequestError(text, param="tool_choice")
        fields |= {"tool_choice": "required", "tool_name": choice.function.name}
    elif choice is not None:
        fields["tool_choice"] = choice
    if request.parallel_tool_calls is False:
        fields["parallel_tool_calls"] = False
    return fields


def _tool(given: s.FunctionTool) -> Tool:
    parameters = encode(given.parameters).decode() if given.parameters else ""
    return Tool(name=given.name, description=given.description or "", parameters=parameters)


def speaks_of_tools(request: s.Generation) -> bool:
    """Whether a node has to know tools to understand a request."""
    if not isinstance(request, s.ChatRequest):
        return False
    return bool(request.tools) or any(turn.role == "tool" or turn.tool_calls for turn in request.messages)


def turn(message: s.Message, content: str) -> ChatMessage:
    """Make a turn with its calls, or what one of them returned; nodes from before know words alone."""
    if message.role == "assistant" and message.tool_calls:
        calls = [ToolCall(id=c.id, name=c.function.name, arguments=c.function.arguments) for c in message.tool_calls]
        return ChatMessage(role="assistant", content=content, tool_calls=calls)
    if message.role == "tool":
        named = message.name or None
        return ChatMessage(role="tool", content=content, tool_call_id=message.tool_call_id or None, name=named)
    return ChatMessage(role=message.role, content=content)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedTools:
    """What the calls of an answer are read by. Of `rid` their ids are made."""

    rid: bytes = b""
    names: markup.Tools = ()
    is_one: bool = False
    """Whether one call is wanted at most."""

    @classmethod
    def of(cls, request: s.Generation, rid: bytes, extra: Mapping[str, Any]) -> AskedTools:
        """Take from a request what its answer has to be read by; tools may be among the `extra` of another server."""
        if "tools" in extra:
            return cls._of_extra(rid, extra)
        if not isinstance(request, s.ChatRequest) or request.tool_choice == "none":
            return cls(rid=rid)
        functions = [tool.function for tool in request.tools or ()]
        names = {one.name: text_arguments(one.parameters) for one in functions}
        return cls(rid=rid, names=names, is_one=request.parallel_tool_calls is False)

    @classmethod
    def _of_extra(cls, rid: bytes, extra: Mapping[str, Any]) -> AskedTools:
        """Read tools that their server has yet to look at."""
        listed: object = extra["tools"]
        if extra.get("tool_choice") == "none" or not isinstance(listed, list):
            return cls(rid=rid)
        tools = [
            cast("dict[str, Any]", one).get("function") for one in cast("list[object]", listed) if isinstance(one, dict)
        ]
        named = [cast("dict[str, Any]", one) for one in tools if isinstance(one, dict)]
        names = {
            one["name"]: text_arguments(one.get("parameters")) for one in named if isinstance(one.get("name"), str)
        }
        return cls(rid=rid, names=names, is_one=extra.get("parallel_tool_calls") is False)


class ChatReader:
    """Takes the text of one choice apart into what the deltas of its stream say."""

    def __init__(self, asked: AskedTools, choice: int) -> None:
        self._asked = asked
        self._choice = choice
        self._parser = markup.AnswerParser(asked.names)

    @property
    def has_called(self) -> bool:
        """Whether the answer called a tool."""
        return self._parser.has_called

    @property
    def is_cut_short(self) -> bool:
        """Whether the answer ended within a call."""
        return self._parser.is_cut_short

    def feed(self, text: str) -> Iterator[s.ChatDelta]:
        """Take a part of the answer."""
        return self._told(self._parser.feed(text))

    def finish(self) -> Iterator[s.ChatDelta]:
        """Return what waited for more."""
        return self._told(self._parser.finish())

    def message(self, text: str) -> s.ReplyMessage:
        """Read a whole answer."""
        deltas = [*self.feed(text), *self.finish()]
        calls = [call for delta in deltas for call in delta.tool_calls or ()]
        content = "".join(delta.content or "" for delta in deltas)
        thoughts: str | UnsetType = "".join(delta.reasoning_content or "" for delta in deltas) or UNSET
        return s.ReplyMessage(
            content=None if calls and not content else content,
            reasoning_content=thoughts,
            reasoning=thoughts,
            tool_calls=[s.MessageCall(id=call.id, function=call.function) for call in calls] or UNSET,
        )

    def _told(self, deltas: Sequence[markup.Delta]) -> Iterator[s.ChatDelta]:
        for delta in deltas:
            match delta:
                case markup.Content(text):
                    yield s.ChatDelta(content=text)
                case markup.Reasoning(text):
                    yield s.ChatDelta(reasoning_content=text, reasoning=text)
                case markup.CalledTool(number, name, arguments):
                    if not (number and self._asked.is_one):
                        yield s.ChatDelta(tool_calls=[self._call(number, name, arguments)])

    def _call(self, number: int, name: str, arguments: str) -> s.CallDelta:
        id_ = markup.call_id(self._asked.rid + bytes([self._choice]), number)
        return s.CallDelta(index=number, id=id_, function=s.FunctionCall(name=name, arguments=arguments))
