"""Tells a model of tools where its chat template cannot: in words of the conversation, as Hermes and Qwen have them.

Also what templates that know tools get: names and nesting as transformers gives them. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ..protocol.tasks import ChatMessage, Tool, ToolCall

_TOLD: Final = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def in_words(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[ChatMessage]:
    """Return a conversation of texts alone that says the same: tools by the system, calls and results as markup."""
    turns = [_plain(message) for message in messages]
    if not tools:
        return turns
    told = _TOLD.format(tools="\n".join(_json(tool_map(tool)) for tool in tools))
    if turns and turns[0].role in ("system", "developer"):
        first = ChatMessage(role=turns[0].role, content=f"{turns[0].content}\n\n{told}")
        return [first, *turns[1:]]
    return [ChatMessage(role="system", content=told), *turns]


def unescaped(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> tuple[list[ChatMessage], list[Tool]]:
    """Return the same with every JSON text as it will be read, so that no escape hides a text from who looks at it."""
    turns = [
        msgspec.structs.replace(
            message,
            tool_calls=[
                msgspec.structs.replace(call, arguments=_rewritten(call.arguments)) for call in message.tool_calls
            ],
        )
        for message in messages
    ]
    return turns, [msgspec.structs.replace(tool, parameters=_rewritten(tool.parameters)) for tool in tools]


def _rewritten(text: str) -> str:
    try:
        return msgspec.json.encode(msgspec.json.decode(text)).decode()
    except (msgspec.DecodeError, RecursionError):
        return text


def is_in_words(messages: Sequence[ChatMessage]) -> bool:
    """Whether a conversation is of texts alone."""
    return not any(message.role == "tool" or message.tool_calls for message in messages)


def tool_map(tool: Tool) -> dict[str, Any]:
    """Return a tool as chat templates know it, which is as OpenAI has it."""
    parameters: Any = msgspec.json.decode(tool.parameters) if tool.parameters else {"type": "object", "properties": {}}
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def turn_map(message: ChatMessage) -> dict[str, Any]:
    """Return a turn as chat templates know it; the arguments of calls are objects there."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [_call_map(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _call_map(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments_of(call)}}


def arguments_of(call: ToolCall) -> Any:  # noqa: ANN401 - whatever JSON a model wrote
    """Read the arguments of a call; what is no JSON stays the text that it is."""
    try:
        return msgspec.json.decode(call.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return call.arguments


def _plain(message: ChatMessage) -> ChatMessage:
    if message.role == "tool":
        return ChatMessage(role="user", content=f"<tool_response>\n{message.content}\n</tool_response>")
    calls = [
        f"<tool_call>\n{_json({'name': call.name, 'arguments': arguments_of(call)})}\n</tool_call>"
        for call in message.tool_calls
    ]
    return ChatMessage(role=message.role, content="\n".join([*([message.content] if message.content else []), *calls]))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
