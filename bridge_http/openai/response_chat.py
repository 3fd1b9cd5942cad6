"""A body of the Responses API in the words of chat completions, for models behind a server that speaks those. Pure.

What `response_task.py` could not do, that server may: images, an effort, names that nobody here knows. What refers to
an answer from before is refused all the same: it would be ours, and nothing is kept here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from ..errors import InvalidRequestError
from ..server_tools import kept_tools
from .passing import list_of, map_of
from .response_schema import ResponsesRequest
from .response_task import RESPONSE_EXTRAS

_KNOWN: Final = frozenset(ResponsesRequest.__struct_fields__)
_OTHERWISE: Final = frozenset(
    {"input", "instructions", "max_output_tokens", "tools", "tool_choice", "text", "reasoning", "metadata"}
)
_OURS: Final = frozenset({"store", "previous_response_id", "conversation", "prompt", "background", "include"})
"""What is about answers that are kept, and what is told beside one: never passed on."""
_TEXTS: Final = ("input_text", "output_text", "text")
Json = dict[str, Any]


def outline(given: Json) -> Json:
    """Return what an answer repeats of a request, or is read by: its own fields, without what is passed on unread."""
    names = (*ResponsesRequest.__struct_fields__, *_OURS)
    return {**{name: given[name] for name in names if name in given}, "input": "-", "text": None, "reasoning": None}


def as_chat(given: Json) -> Json:
    """Say a request as a chat. Raises InvalidRequestError where there is no conversation in it."""
    chat = {
        name: value
        for name, value in given.items()
        if name not in _OTHERWISE | _OURS and (name in _KNOWN or not _says_nothing(name, value, given))
    }
    said = {
        "max_tokens": given.get("max_output_tokens"),
        "tools": [_tool(tool) for tool in _offered(given)] or None,
        "tool_choice": _choice(given.get("tool_choice")),
        "reasoning_effort": (map_of(given.get("reasoning")) or {}).get("effort"),
        **_text(map_of(given.get("text")) or {}),
    }
    messages = _messages(given.get("instructions"), given.get("input"))
    return chat | {name: value for name, value in said.items() if value is not None} | {"messages": messages}


def _says_nothing(name: str, value: object, given: Json) -> bool:
    return name in RESPONSE_EXTRAS and RESPONSE_EXTRAS[name].is_neutral(value, given)


def _messages(instructions: object, given: object) -> list[Json]:
    messages: list[Json] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    items = list_of(given)
    if not items:
        raise InvalidRequestError("input: a text, or a list of items, is meant", param="input")
    for item in (cast("Json", map_of(one) or {}) for one in items):
        match item.get("type", "message"):
            case "reasoning":
                pass
            case "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                call = {"id": item.get("call_id"), "type": "function", "function": function}
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                messages[-1].setdefault("tool_calls", []).append(call)
            case "function_call_output":
                content = _content(item.get("output"))
                messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
            case _:
                messages.append({"role": item.get("role"), "content": _content(item.get("content"))})
    return messages


def _content(given: object) -> object:
    """Return a text, or the texts of parts; with images among them the parts."""
    items = list_of(given)
    if items is None:
        return given
    parts = [_part(cast("Json", map_of(one) or {})) for one in items]
    return "".join(part["text"] for part in parts) if all("text" in part for part in parts) else parts


def _part(part: Json) -> Json:
    """Say a text or an image; any other part is for the server to judge."""
    if part.get("type") in _TEXTS:
        return {"type": "text", "text": str(part.get("text", ""))}
    if part.get("type") != "input_image":
        return part
    detail = {} if part.get("detail") is None else {"detail": part["detail"]}
    return {"type": "image_url", "image_url": {"url": part.get("image_url"), **detail}}


def _offered(given: Json) -> Iterator[object]:
    """Yield the tools that a model is told of, those of a namespace each by itself."""
    for _, tool in kept_tools(list_of(given.get("tools")) or [], given.get("tool_choice")):
        group: Json = map_of(tool) or {}
        yield from (list_of(group.get("tools")) or []) if group.get("type") == "namespace" else [tool]


def _tool(given: object) -> object:
    tool: Json = map_of(given) or {}
    if tool.get("type") != "function":
        return given
    function = {name: tool[name] for name in ("name", "description", "parameters", "strict") if name in tool}
    return {"type": "function", "function": function}


def _choice(given: object) -> object:
    choice: Json = map_of(given) or {}
    return {"type": "function", "function": {"name": choice.get("name")}} if choice.get("type") == "function" else given


def _text(given: Json) -> Json:
    form: Json = map_of(given.get("format")) or {}
    kind = form.get("type")
    if kind == "json_schema":
        inner = {name: form[name] for name in ("name", "description", "schema", "strict") if name in form}
        form = {"type": kind, "json_schema": inner}
    return {"response_format": form if kind not in (None, "text") else None, "verbosity": given.get("verbosity")}
