"""Flags about tools: which file describes them, and whether one must be called."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click
import msgspec

from ...protocol.tool_calls import text_arguments
from ..calls import GenerateOptions

F = TypeVar("F")
TOOL_HELP: Final = """\b
FILE of --tools holds a JSON list, as OpenAI's clients have it or plain:
  [{"name": "weather", "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]
"""


def _read_tools(_context: click.Context, _param: click.Parameter, given: str | None) -> list[dict[str, Any]]:
    """Read the file of tools; whether they can be called, the node says."""
    if given is None:
        return []
    try:
        found: object = msgspec.json.decode(Path(given).read_bytes())
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        words = error.strerror if isinstance(error, OSError) else f"it is no JSON: {error}"
        raise click.BadParameter(f"{given}: {words}", param_hint="--tools") from None
    tools: list[Any] = [*found] if isinstance(found, list) else [found]  # pyright: ignore[reportUnknownVariableType]
    if not tools or any(_name_of(tool) is None for tool in tools):
        raise click.BadParameter(f"{given}: a JSON list of objects with a name is meant", param_hint="--tools")
    return tools


def _name_of(tool: object) -> str | None:
    outer = cast("dict[str, Any]", tool) if isinstance(tool, dict) else {}
    inner: object = outer.get("function", outer)
    name: Any = cast("dict[str, Any]", inner).get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


def callable_tools(tools: list[dict[str, Any]], choice: str | None) -> Mapping[str, Collection[str]]:
    """Return the tools that an answer may call, as its parser wants them: with their arguments that are texts."""
    if choice == "none":
        return {}
    inner = [tool.get("function", tool) for tool in tools]
    return {one["name"]: text_arguments(one.get("parameters")) for one in inner}


_OPTIONS: Final = (
    click.option(
        "--tools", metavar="FILE", callback=_read_tools, help="Let the model call the tools in this file of JSON."
    ),
    click.option(
        "--tool-choice",
        metavar="CHOICE",
        help="auto, none, required, or the name of the tool that must be called [default: auto].",
    ),
)


def tool_options(function: F) -> F:
    """Give a click function the flags above, as `tools` and `tool_choice`."""
    wrapped: Any = function
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return cast("F", wrapped)


def tool_fields(tools: list[dict[str, Any]], choice: str | None) -> GenerateOptions:
    """Return what flags say, as the library's verbs take it."""
    if not tools:
        if choice is not None:
            raise click.UsageError("--tool-choice says something of tools; give them by --tools FILE")
        return {}
    if choice is None:
        return {"tools": tools}
    return {"tools": tools, "tool_choice": choice if choice in ("auto", "none", "required") else {"name": choice}}
