"""Tools and their calls as programs write them, in OpenAI's shape or plain, made fields of a request. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec

from . import arguments

OPTIONS: Final = frozenset({"tools", "tool_choice"})
"""The names of the options that are about this."""


def take_tools(fields: dict[str, Any]) -> None:
    """Put `tools` and `tool_choice` of a request into its own form. What is neither is left for the schema to name.

    Raises:
        RequestError: (400) parameters that are no JSON.
    """
    tools: object = fields.get("tools")
    if isinstance(tools, (list, tuple)):
        fields["tools"] = [_tool(tool) for tool in cast("list[object]", tools)]
    choice = fields.get("tool_choice")
    if isinstance(choice, Mapping):
        named = _inner(cast("Mapping[str, Any]", choice))
        fields |= {"tool_choice": "required", "tool_name": named.get("name", "")}


def plain_turn(turn: dict[str, Any]) -> dict[str, Any]:
    """Put the calls of a turn into the form of a request; beside them there need be no content."""
    calls: object = turn.get("tool_calls")
    if not isinstance(calls, (list, tuple)):
        return turn
    content = "" if turn.get("content") is None else turn["content"]
    return {**turn, "content": content, "tool_calls": [_call(call) for call in cast("list[object]", calls)]}


def _tool(given: object) -> object:
    if not isinstance(given, Mapping):
        return given
    tool = _inner(cast("Mapping[str, Any]", given))
    tool.pop("strict", None)  # kept to where a call is required
    parameters = tool.get("parameters")
    if isinstance(parameters, Mapping):
        try:
            tool["parameters"] = msgspec.json.encode(dict(cast("Mapping[str, Any]", parameters))).decode()
        except (TypeError, ValueError, RecursionError) as error:
            raise arguments.bad("tools", f"parameters of {tool.get('name')!r}: {error}") from None
    return {name: value for name, value in tool.items() if value is not None}


def _call(given: object) -> object:
    if not isinstance(given, Mapping):
        return msgspec.structs.asdict(given) if isinstance(given, msgspec.Struct) else given
    outer = cast("Mapping[str, Any]", given)
    return _inner(outer) | ({"id": outer["id"]} if "id" in outer else {})


def _inner(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands in `function`, as OpenAI nests it; else the map itself."""
    function = given.get("function")
    return dict(cast("Mapping[str, Any]", function) if isinstance(function, Mapping) else given)
