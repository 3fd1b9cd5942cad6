"""The grammar of an answer that must be a call of a tool, so that the weakest of models calls one that there is.

The call is in the form of Hermes and Qwen whatever the model was trained on: a model that may write nothing else
writes it, and it is read like any other (`protocol/markup.py`).
"""

from __future__ import annotations

import json
from typing import Any, Final, cast

from ..protocol.errors import ErrorKind, RequestError, request_error
from ..protocol.limits import MAX_GRAMMAR_CHARS
from ..protocol.tasks import Generate, Grammar, Tool
from .grammar_check import compile_grammar

_ANY_OBJECT: Final = '{"type":"object"}'
_SAYS_ITS_TYPE: Final = frozenset({"type", "$ref", "anyOf", "allOf", "oneOf", "const", "enum"})
_OBJECT: Final = {"type": "object"}
"""What arguments are, whatever is forgotten in their schema."""
_COMPACT: Final = {"whitespace_flexible": False}
"""As of other schemas: a weak model fills an answer with blanks where it may."""


def compile_calls(task: Generate) -> str:
    """Return the grammar of an answer that is a call of one of the tools, or several, as engines take it.

    Where no call is required, it is that or what the task's own schema says.

    Raises:
        RequestError: (400) the parameters of a tool are no schema, or one that cannot be kept to; with its name.
    """
    tools = [tool for tool in task.tools if task.tool_name in (None, tool.name)]
    size = sum(len(tool.parameters) for tool in tools)
    if size > MAX_GRAMMAR_CHARS:
        raise _bad(f"their schemas have {size} characters together, more than {MAX_GRAMMAR_CHARS}")
    for tool in tools:
        _check(tool)
    more = ' ("\\n" call)*' if task.parallel_tool_calls and task.tool_name is None else ""
    words = None if task.tool_choice == "required" else task.grammar
    lines = [
        f"start: call{more}" + (" | words" if words else ""),
        'call: "<tool_call>\\n" (' + " | ".join(f"call_{n}" for n in range(len(tools))),
    ]
    lines[-1] += ') "\\n</tool_call>"'
    for number, tool in enumerate(tools):
        begin = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
        lines += [
            f'call_{number}: {begin} arguments_{number} "}}"',
            f"arguments_{number}: %json {_schema(tool.parameters, _OBJECT)}",
        ]
    if words is not None:
        compile_grammar(words)
        lines.append(f"words: %json {_schema(words.text)}")
    try:
        return compile_grammar(Grammar(kind="lark", text="\n".join(lines)))
    except RequestError as error:
        raise _bad(f"they cannot be kept to together: {error.text}") from None


def _check(tool: Tool) -> None:
    """Look at the schema of one tool by itself, so that what is wrong with it has a name and a place."""
    try:
        compile_grammar(Grammar(kind="json_schema", text=tool.parameters or _ANY_OBJECT))
    except RequestError as error:
        raise _bad(f"{tool.name}: parameters: {error.text.removeprefix('grammar: json_schema: ')}") from None


def _schema(text: str, usual: dict[str, Any] | None = None) -> str:
    """Return a schema on one line; `usual` where it does not say what it is of."""
    read: object = json.loads(text or _ANY_OBJECT)
    schema = cast("dict[str, Any]", read) if isinstance(read, dict) else {}
    if usual and not _SAYS_ITS_TYPE & schema.keys():
        schema |= usual
    return json.dumps({**schema, "x-guidance": _COMPACT})


def _bad(text: str) -> RequestError:
    return request_error(ErrorKind.BAD_REQUEST, f"tools: {text}")
