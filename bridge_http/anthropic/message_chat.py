"""A body of the Messages API in the words of chat completions, for models behind a server that speaks those. Pure.

What `message_task.py` could not do, that server may: images, an effort, names that nobody here knows. So everything is
said as far as there are words for it there, and the rest keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from ..errors import InvalidRequestError
from ..json_body import encode
from ..openai.passing import list_of, map_of
from ..server_tools import kept_tools
from .message_schema import MessagesRequest
from .message_task import EXTRAS

_OTHERWISE: Final = frozenset({"system", "messages", "stop_sequences", "tools", "tool_choice", "output_config"})
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_ANY_TURN: Final = [{"role": "user", "content": "-"}]
Json = dict[str, Any]


def outline(given: Json) -> Json:
    """Return what an answer repeats of a request, or is read by: its own fields, without what is passed on unread."""
    known = {name: given[name] for name in MessagesRequest.__struct_fields__ if name in given}
    return {**known, "messages": _ANY_TURN, "system": None, "output_config": None}


def as_chat(given: Json) -> Json:
    """Say a request as a chat. Raises InvalidRequestError where there is no conversation in it."""
    chat = {
        name: value
        for name, value in given.items()
        if name not in _OTHERWISE and not (name in EXTRAS and EXTRAS[name].is_neutral(value, given))
    }
    turns = list_of(given.get("messages"))
    if not turns:
        raise InvalidRequestError("messages: a list of turns is meant", param="messages")
    chat["messages"] = [*_system(given.get("system")), *(one for turn in turns for one in _messages(turn))]
    choice = given.get("tool_choice")
    said = {
        "stop": given.get("stop_sequences"),
        "tools": [_tool(tool) for _, tool in kept_tools(list_of(given.get("tools")) or [], choice)] or None,
        **_choice(map_of(choice) or {}),
        **_config(map_of(given.get("output_config")) or {}),
    }
    return chat | {name: value for name, value in said.items() if value is not None}


def _system(given: object) -> list[Json]:
    return [{"role": "system", "content": _joined(given)}] if given else []


def _messages(given: object) -> Iterator[Json]:
    """Yield a turn; what calls came to are turns of their own, before what else it says."""
    turn: Json = map_of(given) or {}
    blocks = list_of(turn.get("content"))
    if blocks is None:
        yield {"role": turn.get("role"), "content": turn.get("content")}
        return
    parts: list[Json] = []
    calls: list[Json] = []
    for block in (cast("Json", map_of(one) or {}) for one in blocks):
        match block.get("type"):
            case "tool_result":
                yield {
                    "role": "tool",
                    "tool_call_id": block.get("tool_use_id"),
                    "content": _joined(block.get("content")),
                }
            case "tool_use":
                function = {"name": block.get("name"), "arguments": encode(block.get("input")).decode()}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case "thinking" | "redacted_thinking":
                pass
            case _:
                parts.append(_part(block))
    if parts or calls:
        content = "".join(part["text"] for part in parts) if all("text" in part for part in parts) else parts
        yield {"role": turn.get("role"), "content": content} | ({"tool_calls": calls} if calls else {})


def _part(block: Json) -> Json:
    """Say a text or an image; any other block is for the server to judge."""
    if block.get("type") == "text":
        return {"type": "text", "text": str(block.get("text", ""))}
    source: Json = map_of(block.get("source")) or {}
    if block.get("type") != "image":
        return block
    url = source.get("url") or f"data:{source.get('media_type')};base64,{source.get('data')}"
    return {"type": "image_url", "image_url": {"url": url}}


def _joined(given: object) -> object:
    """Return a text, or the texts of blocks; with images among them the parts."""
    blocks = list_of(given)
    if blocks is None:
        return given or ""
    parts = [_part(cast("Json", map_of(block) or {})) for block in blocks]
    return "".join(part["text"] for part in parts) if all("text" in part for part in parts) else parts


def _tool(given: object) -> Json:
    tool: Json = map_of(given) or {}
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
    }
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _choice(given: Json) -> Json:
    kind = given.get("type")
    named = {"type": "function", "function": {"name": given.get("name")}}
    return {
        "tool_choice": named if kind == "tool" else _CHOICES.get(str(kind)),
        "parallel_tool_calls": False if given.get("disable_parallel_tool_use") else None,
    }


def _config(given: Json) -> Json:
    form: Json = map_of(given.get("format")) or {}
    schema = {"name": "answer", "strict": True, "schema": form.get("schema")}
    return {
        "response_format": {"type": "json_schema", "json_schema": schema} if form else None,
        "reasoning_effort": given.get("effort"),
    }
