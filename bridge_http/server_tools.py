"""Tools that a server runs by itself (searches, fetches, code): offered to a model, and nobody here can run them.

An offer need not be taken. So beside tools that can be called they are left out, and the model does without; a request
that is about them alone, or has one called by name, is refused. Tools that a *client* runs, whose schema the model is
meant to know (a shell, an editor), are always refused: a model that was not trained on them would call them wrongly.
"""

from __future__ import annotations

from typing import Any, Final, cast

_RUN_BY_SERVERS: Final = (
    *("web_search", "web_fetch", "code_execution", "tool_search"),  # Anthropic's, with a date behind
    *("file_search", "code_interpreter", "image_generation", "mcp"),  # OpenAI's, beside web_search
)


def kept_tools(tools: list[object], choice: object) -> list[tuple[int, object]]:
    """Return the tools that a model is told of, with their places among all: without what servers run, where it may be.

    It may not where nothing else is there, or where one of them has to be called.
    """
    every = list(enumerate(tools))
    kept = [(at, tool) for at, tool in every if not _is_run_by_server(tool)]
    return kept if kept and not _names_one(choice, tools) else every


def _is_run_by_server(tool: object) -> bool:
    kind: Any = cast("dict[str, Any]", tool).get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and kind.startswith(_RUN_BY_SERVERS)


def _names_one(choice: object, tools: list[object]) -> bool:
    """Whether a choice is one of those tools, by its name (Anthropic) or its type (OpenAI)."""
    if not isinstance(choice, dict):
        return False
    said = cast("dict[str, Any]", choice)
    served = [cast("dict[str, Any]", tool) for tool in tools if _is_run_by_server(tool)]
    name = said.get("name")
    return _is_run_by_server(said) or any(name is not None and name == one.get("name") for one in served)
